"""Teacher-forced likelihood on any backend, in memory that does not grow with the utterance."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .backends.base import Engine
from .conditioning import ready_samples
from .config import WaveNetConfig
from .errors import InputError, ShapeError
from .sampling import nll_bits
from .signal import fed_back, to_model_domain

_BLOCK_LOGITS = 1 << 20
"""Logits held at once, unless a single frame of the batch needs more: 4 MiB, and a few times that in float64."""


def check_agreement(n_samples: int, n_frames: int, hop: int, recipe_frames: int) -> None:
    """Raises unless audio and mel belong to one utterance: they may differ in length by less than a hop.

    A mel with as many frames as its recipe gives that audio is right by definition: centred frames are one more than
    ⌊N/hop⌋."""
    if n_samples == 0:
        raise InputError("the waveform is empty; bits per sample need at least one sample")
    if abs(n_frames * hop - n_samples) >= hop and n_frames != recipe_frames:
        raise ShapeError(
            f"{n_frames} frames of {hop} samples are {n_frames * hop} samples, the waveform has {n_samples}; they must"
            " agree to within a hop: cut the longer one, or extract the mel with voc.mel(wav, sr)"
        )


def _targets(wav: NDArray[np.float32], first: int, last: int, config: WaveNetConfig) -> NDArray[Any]:
    """Samples first … last − 1 of (B, N), as far as there are any, in the model's domain."""
    before = min(first, 1)  # pre-emphasis looks one sample back
    return to_model_domain(wav[:, first - before : last], config)[:, before:]


def utterance_bits(
    engine: Engine,
    mel: NDArray[np.float32],
    wav: NDArray[np.float32],
    speakers: NDArray[np.float32] | None,
    threads: int,
) -> NDArray[np.float64]:
    """Mean −log₂ P of the samples of every utterance, each predicted from the true ones before it.

    mel (B, M, F), wav (B, N); the first min(N, F·hop) samples count. Returns (B,)."""
    config = engine.config
    batch, _, n_frames = mel.shape
    hop, A = config.hop_length, config.out_channels
    n = min(wav.shape[1], n_frames * hop)
    state = engine.start(np.zeros(batch, np.uint64), speakers)
    per_block = max(1, _BLOCK_LOGITS // max(1, batch * hop * A))
    total, done = np.zeros(batch), 0
    for first in range(0, n_frames, per_block):
        last = min(first + per_block, n_frames)
        known = int(ready_samples(config, last, last == n_frames))
        target = _targets(wav[:, :n], done, known, config)
        history = fed_back(target, config)
        forced = np.zeros((batch, known - done), history.dtype)
        forced[:, : history.shape[1]] = history
        logits = np.empty((batch, known - done, A), np.float32)
        engine.advance(
            state, np.ascontiguousarray(mel[:, :, first:last]), np.full(batch, last - first),
            np.full(batch, last == n_frames), 1.0, threads=threads, forced=forced, logits=logits,
        )  # fmt: skip
        if scored := target.shape[1]:
            total += nll_bits(logits[:, :scored], target, config.head, config.signal.levels).sum(axis=1)
        done = known
    mean: NDArray[np.float64] = total / n
    return mean
