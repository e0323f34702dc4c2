"""How fast is one stream on one core? Every instruction set and number format of this processor beside the reference.

    pip install ".[torch]"
    python benchmarks/engine_speed.py VOICE --json FILE

VOICE is a checkpoint directory, a bundled voice's name, or a shape of wavenet_fast/cases.py (`voice`, `nv-medium` …)
with random weights. The gate runs before the stopwatch: each engine must give the
reference's logits under forced history. Then all of them make sound in turn, once a round, on one thread, and the
medians over the rounds are reported, so that a change of the machine's mood falls on all alike.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import wavenet_fast as wf
from wavenet_fast.backends.base import Engine
from wavenet_fast.backends.cpu import CpuEngine, isas_possible
from wavenet_fast.backends.reference import ReferenceEngine
from wavenet_fast.cases import CASES, case, random_weights
from wavenet_fast.checkpoint import load_checkpoint, resolve
from wavenet_fast.config import OneHotInput
from wavenet_fast.doctor import examine

GATE = {"fp32": 1e-4, "bf16": 0.2}
"""Largest logit error over the logits' standard deviation. tests/tolerances.py is the strict table; this one only keeps
a broken build from being timed."""


def model_of(name: str) -> tuple[wf.WaveNetConfig, Mapping[str, np.ndarray]]:
    """Configuration and weights of a case, a bundled voice or a checkpoint directory."""
    if name in CASES:
        return case(name), random_weights(case(name))
    checkpoint = load_checkpoint(resolve(name))
    return checkpoint.config, checkpoint.weights


def standard_mel(config: wf.WaveNetConfig, weights: Mapping[str, np.ndarray], frames: int) -> np.ndarray:
    """Noise with the mean and spread of the voice's own mels, (1, M, frames)."""
    mel = np.random.default_rng(0).standard_normal((1, config.n_mels, frames)).astype(np.float32)
    mean, scale = weights.get("mel.mean"), weights.get("mel.scale")
    return mel if mean is None else mel * scale[:, None] + mean[:, None]


def generate(engine: Engine, mel: np.ndarray, **options: np.ndarray) -> int:
    """One fresh stream over the whole mel; the number of samples made."""
    vectors = np.zeros((1, engine.config.speakers.channels), np.float32)
    state = engine.start(np.zeros(1, np.uint64), vectors)
    frames = np.array([mel.shape[2]])
    sound, _ = engine.advance(state, mel, frames, np.ones(1, bool), 1.0, **options)
    return sound.shape[1]


def logits(engine: Engine, mel: np.ndarray) -> np.ndarray:
    """Of one frame under one forced history, (hop, A)."""
    config, rng = engine.config, np.random.default_rng(1)
    if isinstance(config.input, OneHotInput):
        forced = rng.integers(0, config.out_channels, (1, config.hop_length))
    else:
        forced = rng.uniform(-1, 1, (1, config.hop_length)).astype(np.float32)
    out = np.empty((1, config.hop_length, config.out_channels), np.float32)
    generate(engine, mel[:, :, :1], forced=forced, logits=out)
    return out[0]


def gate(name: str, engine: Engine, expected: np.ndarray, mel: np.ndarray) -> None:
    error = np.abs(logits(engine, mel) - expected).max() / expected.std()
    if not error <= GATE[engine.dtype]:
        raise SystemExit(f"{name}: logits are off by {error:.2g} standard deviations; nothing is timed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("voice")
    parser.add_argument("--frames", type=int, default=160, help="mel frames for each engine and round")
    parser.add_argument("--reference-frames", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = config, weights = model_of(args.voice)
    mel = standard_mel(config, weights, max(args.frames, args.reference_frames))
    reference = "reference fp32"
    engines: dict[str, Engine] = {reference: ReferenceEngine(*model, "fp32")}
    for isa in isas_possible():
        if isa != "portable16":  # the wide logic without wide instructions, for tests only
            engines |= {f"cpu {isa} {dtype}": CpuEngine(*model, dtype, isa) for dtype in ("fp32", "bf16")}
    expected = {d: logits(ReferenceEngine(*model, d), mel) for d in ("fp32", "bf16")}
    for name, engine in engines.items():
        gate(name, engine, expected[engine.dtype], mel)
        generate(engine, mel[:, :, :2])
    speeds: dict[str, list[float]] = {name: [] for name in engines}
    for _ in tqdm(range(args.rounds), disable=None):
        for name, engine in engines.items():
            frames = args.reference_frames if name == reference else args.frames
            began = time.perf_counter()
            samples = generate(engine, mel[:, :, :frames])
            speeds[name].append(samples / (time.perf_counter() - began))
    medians = {name: float(np.median(s)) for name, s in speeds.items()}
    print(f"{'one stream, one thread':26s}{'samples/s':>12s}{'× real time':>13s}{'× reference':>13s}")
    for name, speed in medians.items():
        print(f"{name:26s}{speed:12,.0f}{speed / config.sample_rate:13.2f}{speed / medians[reference]:13.1f}")
    if args.json:
        machine = examine()["machine"]
        about = {
            "voice": Path(args.voice).name,
            "sample_rate": config.sample_rate,
            "frames": args.frames,
            "reference_frames": args.reference_frames,
            "machine": {key: machine[key] for key in ("architecture", "processor", "features", "usable_cores")},
            "versions": {name: version(name) for name in ("numpy", "torch", "wavenet-fast")},
        }
        result = {"about": about, "median_samples_per_second": medians, "samples_per_second": speeds}
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
