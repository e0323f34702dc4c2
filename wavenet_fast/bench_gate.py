"""The gate before the stopwatch: does an engine compute the network that is about to be timed?

Its logits under a forced history, of every stream, with the batch and the threads that will be timed, are held against
the PyTorch reference where torch is installed, else against this package's own fp32 engine without SIMD (`portable`).
The limits only keep a broken build from being timed; the strict table, and the laws, are in the tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .backends import BACKENDS
from .backends.base import Engine
from .conditioning import lookahead_frames
from .config import OneHotInput, WaveNetConfig, decode, encode
from .errors import GateError

Weights = Mapping[str, NDArray[np.float32]]

LIMITS = {("fp32", "fp32"): 1e-4, ("fp16", "fp16"): 1e-4, ("bf16", "bf16"): 0.2}
"""(number format, the reference's) → largest logit error over the logits' standard deviation in time."""
ROUNDED_FP16_LIMIT = 2e-2
"""In fp16 the reference keeps activations in fp32, as the cpu backend does. An engine that rounds them too, as tensor
cores want it, differs by up to 5e-3, measured on the named cases with random weights."""
LOOSE_LIMIT = 0.5
"""Where the reference does not round as the engine does. An engine that computes something else is off by several."""

MAX_SAMPLES = 4096
MAX_WORK = 4e9
"""Multiply-adds of one check, over all streams: a few seconds."""

QUESTION, ANSWER = "question.npz", "answer.npy"
"""What the reference's process is given, and what it leaves."""


class Gate:
    """What one network must compute. Made once, it lets any number of engines of that network through, or not."""

    def __init__(self, config: WaveNetConfig, weights: Weights) -> None:
        self.config, self.weights = config, weights
        hop = config.hop_length
        self.frames = max(1, min(config.receptive_field, MAX_SAMPLES) // hop + 1)
        """Mel frames that reach beyond the receptive field, as far as `MAX_SAMPLES` allow."""
        self.lookahead = lookahead_frames(config)
        self.mel = standard_mel(config, weights, 1, self.frames + self.lookahead)
        self.forced = forced_history(config, self.frames * hop)
        self._expected: dict[str, tuple[str, str, NDArray[np.float32]]] = {}

    def check(self, engine: Engine, batch: int = 1, threads: int = 1) -> dict[str, Any]:
        """What the engine was held against, `error` and `limit` in standard deviations of the logits, and `samples`
        of each stream. Raises `GateError` where the error is larger."""
        hop = self.config.hop_length
        frames = max(1, min(self.frames, int(MAX_WORK / (macs_per_sample(self.config) * batch * hop))))
        reference, rounding, expected = self.expected(engine.dtype)
        expected = expected[: frames * hop]
        found = engine_logits(
            engine, self.mel[:, :, : frames + self.lookahead], self.forced[:, : frames * hop], batch, threads
        )
        limit = LIMITS.get((engine.dtype, rounding), LOOSE_LIMIT)
        if engine.dtype == rounding == "fp16" and engine.name not in ("cpu", "reference"):
            limit = ROUNDED_FP16_LIMIT
        spread = (expected - expected.mean(axis=0)).std()  # over time: outputs may stand at different heights
        error = float(np.abs(found - expected).max() / spread)
        if not error <= limit:  # a NaN is no smaller either
            raise GateError(
                f"{engine.name} {engine.isa} {engine.dtype}: its logits are {error:.2g} standard deviations off those "
                f"of {reference}, where {limit:g} are allowed; nothing is timed. Build the engine anew, or run the "
                "tests to see which stage is wrong"
            )
        return {"reference": reference, "error": error, "limit": limit, "samples": frames * hop}

    def expected(self, dtype: str) -> tuple[str, str, NDArray[np.float32]]:
        """What an engine of that number format is held against: name, the reference's own format, logits (T, A)."""
        if BACKENDS["reference"].why_not("cpu") is None:
            rounding = dtype if dtype in BACKENDS["reference"].dtypes else "fp32"
            name, make = f"the PyTorch reference in {rounding}", self._torch_logits
        else:
            rounding, name, make = "fp32", "this package's own portable engine in fp32", self._portable_logits
        if rounding not in self._expected:
            self._expected[rounding] = (name, rounding, make(rounding))
        return self._expected[rounding]

    def _torch_logits(self, dtype: str) -> NDArray[np.float32]:
        """In a process of its own: what torch takes of memory and threads stays out of what is measured."""
        home = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(Path(__file__).parents[1])]))
        with tempfile.TemporaryDirectory() as room:
            question: dict[str, Any] = {f"weights/{name}": tensor for name, tensor in self.weights.items()}
            question["config"] = np.frombuffer(json.dumps(encode(self.config)).encode(), np.uint8)
            np.savez(Path(room, QUESTION), mel=self.mel, forced=self.forced, **question)
            child = subprocess.run(
                [sys.executable, "-m", __name__, dtype], cwd=room, env={**os.environ, "PYTHONPATH": home},
                start_new_session=True, capture_output=True, text=True,
            )  # fmt: skip
            if child.returncode:
                reason = (child.stderr.strip().splitlines() or [f"it ended with {child.returncode}"])[-1]
                raise GateError(
                    f"the PyTorch reference, which the engine is to be held against, cannot be run: {reason}. Mend the "
                    "installation of torch, or remove it: the package's own portable engine then takes its place"
                )
            found: NDArray[np.float32] = np.load(Path(room, ANSWER))
        return found

    def _portable_logits(self, dtype: str) -> NDArray[np.float32]:
        from .backends.cpu import CpuEngine

        plain = CpuEngine(self.config, self.weights, dtype, "portable")
        found: NDArray[np.float32] = engine_logits(plain, self.mel, self.forced)[0]
        return found


def macs_per_sample(config: WaveNetConfig) -> int:
    """Multiply-adds of dilated, residual, skip and head for one sample, without padding and without conditioning."""
    c, half = config, config.gate_channels // 2
    R, S, H, A = c.residual_channels, c.skip_channels, c.head_channels, c.out_channels
    dilated = c.n_layers * c.kernel_size * R * c.gate_channels
    return dilated + (c.n_layers - 1) * R * half + c.n_layers * S * half + H * S + A * H


def standard_mel(config: WaveNetConfig, weights: Weights, batch: int, frames: int) -> NDArray[np.float32]:
    """Noise with the mean and spread of the voice's own mels, (B, M, frames)."""
    mel = np.random.default_rng(0).standard_normal((batch, config.n_mels, frames)).astype(np.float32)
    mean, scale = weights.get("mel.mean"), weights.get("mel.scale")
    return mel if mean is None or scale is None else mel * scale[:, None] + mean[:, None]


def forced_history(config: WaveNetConfig, samples: int) -> NDArray[Any]:
    """What samples hear instead of draws, (1, samples): classes, or values in −1 … 1."""
    rng = np.random.default_rng(1)
    if isinstance(config.input, OneHotInput):
        return rng.integers(0, config.out_channels, (1, samples))
    return rng.uniform(-1, 1, (1, samples)).astype(np.float32)


def engine_logits(
    engine: Engine, mel: NDArray[np.float32], forced: NDArray[Any], batch: int = 1, threads: int = 1
) -> NDArray[np.float32]:
    """Of B streams that all hear this mel (1, M, frames + look-ahead) and this history (1, frames · hop):
    (B, frames · hop, A)."""
    c, (_, samples) = engine.config, forced.shape
    logits = np.full((batch, samples, c.out_channels), np.nan, np.float32)
    state = engine.start(np.arange(batch, dtype=np.uint64), np.zeros((batch, c.speakers.channels), np.float32))
    engine.advance(
        state, np.repeat(mel, batch, axis=0), np.full(batch, mel.shape[2]), np.zeros(batch, bool), 1.0,
        threads=threads, forced=np.repeat(forced, batch, axis=0), logits=logits,
    )  # fmt: skip
    return logits


def reference_logits(
    config: WaveNetConfig, weights: Weights, dtype: str, mel: NDArray[np.float32], forced: NDArray[Any]
) -> NDArray[np.float32]:
    """Teacher-forced logits of the PyTorch model under the history (1, T): (T, A). Needs torch."""
    import torch

    from .reference import Reference

    with torch.inference_mode():
        model = Reference(config, {name: torch.tensor(weight) for name, weight in weights.items()}, dtype)
        heard = np.concatenate([np.full((1, 1), config.start, forced.dtype), forced[:, :-1]], axis=1)
        vector = torch.zeros(1, config.speakers.channels) if config.speakers.channels else None
        conditioning = model.conditioning(torch.tensor(mel), vector, 0, forced.shape[1])
        logits = model.forward(torch.tensor(heard), conditioning)
    found: NDArray[np.float32] = logits[0].numpy()
    return found


def _answer(dtype: str) -> None:
    """What the reference's process does in its working directory."""
    question = np.load(QUESTION)
    config = decode(WaveNetConfig, json.loads(question["config"].tobytes()), QUESTION)
    weights = {name.removeprefix("weights/"): question[name] for name in question if name.startswith("weights/")}
    np.save(ANSWER, reference_logits(config, weights, dtype, question["mel"], question["forced"]))


if __name__ == "__main__":
    _answer(sys.argv[1])
