"""What the benchmarks of speed share: the model, what it is fed, the gate before the stopwatch, interleaved rounds and
what is written beside the figures."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import wavenet_fast as wf
from wavenet_fast import bench_gate
from wavenet_fast.backends import BACKENDS
from wavenet_fast.backends.base import Engine
from wavenet_fast.backends.reference import ReferenceEngine
from wavenet_fast.bench import case_subject, voice_subject
from wavenet_fast.bench_gate import forced_history
from wavenet_fast.cases import CASES
from wavenet_fast.doctor import examine

Weights = Mapping[str, np.ndarray]

GATE = {"fp32": 1e-4, "fp16": 0.05, "bf16": 0.2, "int8": 1.0}
"""Largest logit error over the logits' standard deviation. tests/tolerances.py is the strict table; this one only keeps
a broken build from being timed."""


class GateError(SystemExit):
    """A system does not compute what it should; its speed would mean nothing."""


def model_of(name: str) -> tuple[wf.WaveNetConfig, Weights]:
    """Configuration and weights of a case, a bundled voice or a checkpoint directory."""
    subject = case_subject(name) if name in CASES else voice_subject(name)
    return subject.config, subject.weights


def standard_mel(config: wf.WaveNetConfig, weights: Weights, frames: int, batch: int = 1) -> NDArray[np.float32]:
    """Noise with the mean and spread of the voice's own mels, (B, M, frames)."""
    return bench_gate.standard_mel(config, weights, batch, frames)


def generate(engine: Engine, mel: NDArray[np.float32], **options: Any) -> int:
    """Fresh streams over the whole mel (B, M, F); the number of samples made by all of them."""
    batch = len(mel)
    vectors = np.zeros((batch, engine.config.speakers.channels), np.float32)
    state = engine.start(np.arange(batch, dtype=np.uint64), vectors)
    frames = np.full(batch, mel.shape[2])
    sound, _ = engine.advance(state, mel, frames, np.ones(batch, bool), 1.0, **options)
    return sound.size


def logits(engine: Engine, mel: NDArray[np.float32], frames: int = 1) -> NDArray[np.float32]:
    """Of the first frames under one forced history, (frames·hop, A)."""
    samples = frames * engine.config.hop_length
    out = np.empty((1, samples, engine.config.out_channels), np.float32)
    generate(engine, mel[:1, :, :frames], forced=forced_history(engine.config, samples), logits=out)
    return out[0]


def expected_logits(
    config: wf.WaveNetConfig, weights: Weights, dtype: str, mel: NDArray[np.float32], frames: int = 1
) -> NDArray[np.float32]:
    """The reference's, rounding as `dtype` does where the reference can, else in fp32."""
    known = dtype if dtype in BACKENDS["reference"].dtypes else "fp32"
    return logits(ReferenceEngine(config, weights, known), mel, frames)


def gate(name: str, found: NDArray[np.float32], expected: NDArray[np.float32], dtype: str) -> float:
    """Largest error in standard deviations of the logits; raises `GateError` beyond the limit of `GATE`."""
    error = float(np.abs(found - expected).max() / expected.std())
    if not error <= GATE[dtype]:
        raise GateError(f"{name}: logits are off by {error:.2g} standard deviations; nothing is timed")
    return error


def interleaved(runs: Mapping[str, Callable[[], int]], rounds: int, title: str = "") -> dict[str, list[float]]:
    """Samples a second of every run, once a round each, so that a change of the machine's mood falls on all alike."""
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    with tqdm(total=rounds * len(runs), desc=title or None, disable=None) as bar:
        for _ in range(rounds):
            for name, run in runs.items():
                began = time.perf_counter()
                samples = run()
                speeds[name].append(samples / (time.perf_counter() - began))
                bar.update()
    return speeds


def medians(speeds: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: float(np.median(values)) for name, values in speeds.items()}


def machine() -> dict[str, Any]:
    """The processor, what it can and how many cores may be used."""
    told = examine()["machine"]
    return {key: told[key] for key in ("architecture", "processor", "features", "usable_cores")}


def versions(*packages: str) -> dict[str, str | None]:
    """Versions of installed packages; None for one that is not."""
    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found
