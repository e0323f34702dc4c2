"""Between a waveform and the numbers a model predicts: gain, pre-emphasis, companding, classes, and the way back."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .config import CategoricalHead, ScalarInput, WaveNetConfig
from .sampling import compand, expand, mulaw_decode, mulaw_encode


def to_model_domain(wav: ArrayLike, config: WaveNetConfig) -> NDArray[Any]:
    """Waveform (…, N) in [−1, 1] → what the model predicts: classes (int64) or values (float32), (…, N).

    Gain and pre-emphasis are applied here and undone after generation; what leaves [−1, 1] is clipped. The waveform
    is silent before its first sample. Raises `InputError` for NaN where the head is categorical."""
    s = config.signal
    x = np.asarray(wav, np.float32) * np.float32(s.gain)
    before = np.concatenate([np.zeros_like(x[..., :1]), x[..., :-1]], axis=-1)
    x = np.clip(x - np.float32(s.preemphasis) * before, -1, 1)
    if isinstance(config.head, CategoricalHead):
        return mulaw_encode(x, config.head.classes - 1, config.head.encode_offset)
    return compand(x, s.mu).astype(np.float32) if s.domain == "mulaw" else x


def to_waveform(drawn: ArrayLike, config: WaveNetConfig, memory: float = 0.0) -> tuple[NDArray[np.float32], float]:
    """What the model predicts, (N,) classes or values → waveform (N,) float32 in [−1, 1], and the filter's memory.

    The inverse of `to_model_domain` up to quantisation and clipping: expand, undo the pre-emphasis
    y[t] = x[t] + preemphasis·y[t−1], divide by the gain, clamp. `memory` is y[−1], to go on where a piece ended."""
    s = config.signal
    if isinstance(config.head, CategoricalHead):
        x = mulaw_decode(drawn, config.head.classes - 1, config.head.decode_offset)
    elif s.domain == "mulaw":
        x = expand(drawn, s.mu).astype(np.float32)
    else:
        x = np.array(drawn, np.float32)
    if s.preemphasis:
        factor, y = np.float32(s.preemphasis), np.float32(memory)
        for t in range(len(x)):
            y = x[t] + factor * y
            x[t] = y
        memory = float(y)
    return np.clip(x / np.float32(s.gain), np.float32(-1), np.float32(1)), memory


def fed_back(drawn: NDArray[Any], config: WaveNetConfig) -> NDArray[Any]:
    """What the network hears of samples (…) it predicted: the classes themselves for a one-hot input, else values.

    A scalar input under a categorical head hears the decoded class, companded again where the signal is µ-law."""
    if not isinstance(config.head, CategoricalHead) or not isinstance(config.input, ScalarInput):
        return drawn
    mu, offset = config.head.classes - 1, config.head.decode_offset
    if config.signal.domain == "mulaw":
        # On the companded axis a class is a straight line; no need to expand and compand.
        return (2 * (np.asarray(drawn, np.float64) - offset) / mu - 1).astype(np.float32)
    return mulaw_decode(drawn, mu, offset)
