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
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from wavenet_fast.backends import BACKENDS
from wavenet_fast.backends.base import Engine
from wavenet_fast.backends.cpu import CpuEngine, isas_possible
from wavenet_fast.backends.reference import ReferenceEngine
from wavenet_fast.bench import about, case_subject, voice_subject
from wavenet_fast.bench_gate import Gate, standard_mel
from wavenet_fast.cases import CASES
from wavenet_fast.errors import WavenetFastError


def generate(engine: Engine, mel: np.ndarray) -> int:
    """One fresh stream over the whole mel; the number of samples made."""
    state = engine.start(np.zeros(1, np.uint64), np.zeros((1, engine.config.speakers.channels), np.float32))
    sound, _ = engine.advance(state, mel, np.array([mel.shape[2]]), np.ones(1, bool), 1.0)
    return sound.shape[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("voice")
    parser.add_argument("--frames", type=int, default=160, help="mel frames for each engine and round")
    parser.add_argument("--reference-frames", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(1)
    subject = case_subject(args.voice) if args.voice in CASES else voice_subject(args.voice)
    model = config, weights = subject.config, subject.weights
    mel = standard_mel(config, weights, 1, max(args.frames, args.reference_frames))
    reference = "reference fp32"
    engines: dict[str, Engine] = {reference: ReferenceEngine(*model, "fp32")}
    for isa in isas_possible():
        if isa != "portable16":  # the wide logic without wide instructions, for tests only
            engines |= {f"cpu {isa} {dtype}": CpuEngine(*model, dtype, isa) for dtype in BACKENDS["cpu"].dtypes}
    gate = Gate(*model)
    for name, engine in engines.items():
        if name != reference:
            gate.check(engine)
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
        told = {
            subject.kind: subject.name,
            "sample_rate": config.sample_rate,
            "frames": args.frames,
            "reference_frames": args.reference_frames,
            **about(),
        }
        result = {"about": told, "median_samples_per_second": medians, "samples_per_second": speeds}
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except WavenetFastError as error:
        raise SystemExit(str(error)) from None
