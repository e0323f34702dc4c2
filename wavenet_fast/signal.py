"""Between a waveform and the numbers a model predicts: gain, pre-emphasis, companding, classes, and the way back."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .config import CategoricalHead, OneHotInput, ScalarInput, WaveNetConfig
from .sampling import compand, expand, mulaw_decode, mulaw_encode

_LOUDEST = np.float32(1e30)
"""Far beyond what is clipped, and far enough from infinity for pre-emphasis to subtract."""


def to_model_domain(wav: ArrayLike, config: WaveNetConfig) -> NDArray[Any]:
    """Waveform (…, N) in [−1, 1] → what the model predicts: classes (int64) or values (float32), (…, N).

    Gain and pre-emphasis are applied here and undone after generation; what leaves [−1, 1] is clipped. The waveform
    is silent before its first sample. Raises `InputError` for NaN where the head is categorical."""
    s = config.signal
    with np.errstate(over="ignore"):
        x = np.asarray(wav, np.float32) * np.float32(s.gain)
    x = np.clip(x, -_LOUDEST, _LOUDEST)
    before = np.concatenate([np.zeros_like(x[..., :1]), x[..., :-1]], axis=-1)
    x = np.clip(x - np.float32(s.preemphasis) * before, -1, 1)
    if isinstance(config.head, CategoricalHead):
        return mulaw_encode(x, config.head.classes - 1, config.head.encode_offset)
    return compand(x, s.mu).astype(np.float32) if s.domain == "mulaw" else x


def to_waveform(drawn: ArrayLike, config: WaveNetConfig, memory: float = 0.0) -> tuple[NDArray[np.float32], float]:
    """What the model predicts, (N,) classes or values → waveform (N,) float32 in [−1, 1], and the filter's memory.

    The inverse of `to_model_domain` up to quantisation and clipping: expand, undo the pre-emphasis
    y[t] = x[t] + preemphasis·y[t−1], divide by the gain, clamp. `memory` is y[−1], to go on where a piece ended."""
    x = drawn_signal(drawn, config)
    if config.signal.preemphasis:
        x = without_emphasis(x, config, memory)
        memory = float(x[-1]) if len(x) else memory
    return np.clip(x / np.float32(config.signal.gain), np.float32(-1), np.float32(1)), memory


def drawn_signal(drawn: ArrayLike, config: WaveNetConfig) -> NDArray[np.float32]:
    """What the model predicts, (N,) classes or values → the signal it stands for, pre-emphasised and with gain."""
    if isinstance(config.head, CategoricalHead):
        return mulaw_decode(drawn, config.head.classes - 1, config.head.decode_offset)
    return _expanded(drawn, config, config.signal.mu)


def heard_signal(heard: ArrayLike, config: WaveNetConfig) -> NDArray[np.float32]:
    """The same of what the network hears, (N,) classes or values: the inverse of `fed_back` first."""
    if isinstance(config.input, OneHotInput):
        return drawn_signal(heard, config)
    head = config.head
    return _expanded(heard, config, head.classes - 1 if isinstance(head, CategoricalHead) else config.signal.mu)


def sound_of(
    drawn: NDArray[Any], heard: NDArray[Any], config: WaveNetConfig, memory: float
) -> tuple[NDArray[np.float32], float]:
    """Draws (N,) as sound, each on top of the past that was heard instead of the draws before it, (N,); and the
    filter's memory, which goes on from what was heard."""
    past = without_emphasis(heard_signal(heard, config), config, memory)
    before = np.concatenate([[np.float32(memory)], past[:-1]])
    emphasised = drawn_signal(drawn, config) + np.float32(config.signal.preemphasis) * before
    return np.clip(emphasised / np.float32(config.signal.gain), np.float32(-1), np.float32(1)), float(past[-1])


def without_emphasis(x: NDArray[np.float32], config: WaveNetConfig, memory: float) -> NDArray[np.float32]:
    """y[t] = x[t] + preemphasis·y[t−1] in float32, (N,); `memory` is y[−1]."""
    factor, y = np.float32(config.signal.preemphasis), np.float32(memory)
    out = np.empty_like(x)
    for t in range(len(x)):
        y = x[t] + factor * y
        out[t] = y
    return out


def _expanded(values: ArrayLike, config: WaveNetConfig, mu: int) -> NDArray[np.float32]:
    companded = config.signal.domain == "mulaw"
    return expand(values, mu).astype(np.float32) if companded else np.array(values, np.float32)


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
