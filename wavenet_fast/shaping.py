"""A filter between what a network says and its sound, for networks that were trained on sound without it (noise
shaping). It stands behind an engine as an engine of its own, whichever the backend: y[t] = Σ h[k]·x[t−k], h being the
voice's tensor `sound.filter` (N,).

Every output adds its products in the same order, so that no chunk, batch or thread changes a bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .backends.base import Engine, Plan, Progress, State, as_array
from .config import WaveNetConfig
from .errors import ConfigError, InputError, StateError
from .signal import heard_signal

FILTER = "sound.filter"
MAX_TAPS = 4096
_BLOCK = 4096
"""Samples filtered at once, which the first cache holds."""
Array = NDArray[np.float32]


def filtered(x: Array, taps: Array, past: Array) -> Array:
    """x (B, T) through `taps` (N,), behind `past` (B, N − 1), in float32."""
    whole = np.concatenate([past, x], axis=1)
    y = np.zeros_like(x)
    for start in range(0, x.shape[1], _BLOCK):
        part = y[:, start : start + _BLOCK]
        for k, tap in enumerate(taps):
            first = start + len(taps) - 1 - k
            part += tap * whole[:, first : first + part.shape[1]]
    return y


def inverse(taps: Array) -> Array:
    """The filter (n,) that undoes a minimum-phase one: Σ_j h[j]·g[n−j] is 1 at n = 0, else 0; until less than a
    millionth of it is left. Raises `InputError` for a filter that is none."""
    h, g = taps.astype(np.float64), np.zeros(MAX_TAPS)
    with np.errstate(all="ignore"):
        g[0] = 1 / h[0]
        for n in range(1, len(g)):
            known = h[1 : n + 1]
            g[n] = -(known @ g[n - len(known) : n][::-1]) / h[0]
        left = np.cumsum(np.abs(g[::-1]))[::-1]
    count = int(np.argmax(left <= 1e-6 * left[0]))
    if not count or np.abs(g[:count]).max() > np.finfo(np.float32).max:
        raise InputError(f"the voice's {FILTER} cannot be undone: its inverse does not die away in {MAX_TAPS} samples")
    return g[:count].astype(np.float32)


class ShapedState:
    """The inner state, and the last N − 1 samples that went into the filter, (B, N − 1). Implements `base.State`."""

    def __init__(self, inner: State, taps: int) -> None:
        self.inner = inner
        self.past = np.zeros((inner.batch, taps - 1), np.float32)

    @property
    def batch(self) -> int:
        return self.inner.batch

    @property
    def positions(self) -> NDArray[np.int64]:
        return self.inner.positions

    @property
    def frames(self) -> NDArray[np.int64]:
        return self.inner.frames

    @property
    def ended(self) -> NDArray[np.bool_]:
        return self.inner.ended

    def reset(
        self,
        mask: NDArray[np.bool_],
        seeds: NDArray[np.uint64] | None = None,
        speakers: Array | None = None,
    ) -> None:
        self.inner.reset(mask, seeds, speakers)
        self.past[mask] = 0

    def begin_at(self, first: NDArray[np.int64], mel: Array) -> None:
        self.inner.begin_at(first, mel)

    def state_dict(self) -> dict[str, Any]:
        return {**self.inner.state_dict(), "filter_past": self.past.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        past = as_array(state.get("filter_past", ()), "filter_past")
        if past.dtype != np.float32 or past.shape != self.past.shape or not np.isfinite(past).all():
            raise StateError(
                f"filter_past of this state is {past.dtype} {past.shape}; it must be finite float32 {self.past.shape}"
            )
        self.inner.load_state_dict({name: value for name, value in state.items() if name != "filter_past"})
        self.past[...] = past


class ShapedEngine:
    """An engine with the filter behind it. Implements `base.Engine`, but for draws (`raw`), which it does not filter.

    Raises `ConfigError` for a network whose own pre-emphasis would have to be undone before."""

    def __init__(self, inner: Engine, taps: Array) -> None:
        if inner.config.signal.preemphasis:
            raise ConfigError(f"a voice with {FILTER} must have signal.preemphasis 0: the filter does its work")
        self.inner, self._taps = inner, np.array(taps, np.float32)

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def dtype(self) -> str:
        return self.inner.dtype

    @property
    def isa(self) -> str:
        return self.inner.isa

    @property
    def config(self) -> WaveNetConfig:
        return self.inner.config

    def explain(self, streams: int, threads: int) -> Plan:
        return self.inner.explain(streams, threads)

    def start(self, seeds: NDArray[np.uint64], speakers: Array | None = None) -> ShapedState:
        return ShapedState(self.inner.start(seeds, speakers), len(self._taps))

    def unshaped(self, wav: Array, state: ShapedState | None = None) -> Array:
        """What the network would have said of a recording, (B, N), where it begins or, with a state, where its streams
        stand. Raises `InputError` where the filter cannot be undone."""
        undone = inverse(self._taps)
        if state is not None:
            wav = wav - filtered(np.zeros_like(wav), self._taps, state.past)  # what still sounds of the past
        return filtered(wav, undone, np.zeros((len(wav), len(undone) - 1), np.float32))

    def advance(
        self,
        state: ShapedState,
        mel: Array,
        frames: NDArray[np.int64],
        ended: NDArray[np.bool_],
        temperature: float,
        *,
        threads: int = 1,
        forced: NDArray[Any] | None = None,
        logits: Array | None = None,
        raw: bool = False,
        progress: Progress | None = None,
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """See `base.Engine.advance`. Raises `InputError` where draws are asked for."""
        if raw:
            raise InputError(f"this voice has {FILTER}, through which draws do not go; ask the engine inside")
        said, counts = self.inner.advance(
            state.inner, mel, frames, ended, temperature, threads=threads, forced=forced, logits=logits,
            progress=progress,
        )  # fmt: skip
        heard = said
        if forced is not None:
            heard = np.clip(heard_signal(forced[:, : said.shape[1]], self.config) / self.config.signal.gain, -1, 1)
        sound = filtered(heard.astype(np.float32), self._taps, state.past) + self._taps[0] * (said - heard)
        inside = np.arange(said.shape[1]) < counts[:, None]
        for b, count in enumerate(counts):
            if count:
                state.past[b] = np.concatenate([state.past[b], heard[b, :count]])[count:]
        return np.clip(np.where(inside, sound, 0), -1, 1).astype(np.float32), counts


def shaped(engine: Engine, weights: Mapping[str, Array]) -> Engine:
    """The engine itself, or with the voice's filter behind it."""
    return ShapedEngine(engine, weights[FILTER]) if FILTER in weights else engine
