"""The contract of a backend. `Engine` is one model made ready for one device; `State` is what its streams remember."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..config import WaveNetConfig
from ..errors import ShapeError, StateError

Progress = Callable[[int, int], None]
"""Called as progress(samples done, samples in all) while a call runs; what it raises stops the call."""


class State(Protocol):
    """Everything that the next samples of B streams depend on, and nothing else: histories, past inputs, position,
    seed, speaker, the de-emphasis filter, the mel frames that are still needed, and whether a stream has ended."""

    @property
    def batch(self) -> int:
        """B."""

    @property
    def positions(self) -> NDArray[np.int64]:
        """Samples made since reset, (B,)."""

    @property
    def frames(self) -> NDArray[np.int64]:
        """Mel frames received since reset, (B,)."""

    @property
    def ended(self) -> NDArray[np.bool_]:
        """Streams that take no more frames before a reset, (B,)."""

    def reset(
        self,
        mask: NDArray[np.bool_],
        seeds: NDArray[np.uint64] | None = None,
        speakers: NDArray[np.float32] | None = None,
    ) -> None:
        """Make the streams in `mask` (B,) as fresh as `Engine.start` makes them, with new seeds (B,) and speaker
        vectors (B, P) where given, else with their own."""

    def begin_at(self, first: NDArray[np.int64], mel: NDArray[np.float32]) -> None:
        """Put fresh streams at frame first[b] (B,) of their utterances, as if they had been silent until then.

        mel  float32 (B, M, context + look-ahead): frames first − context … first + look-ahead − 1, thereby received
             (what would lie before frame 0 is never read); the next to feed is first + look-ahead

        A stream whose first is 0 stays as it is. Raises `StateError` where one has already received frames."""

    def state_dict(self) -> dict[str, Any]:
        """A copy as NumPy arrays and small values, which `load_state_dict` of the same model takes."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put a saved state in place of this one. Raises `StateError` for a state of another model, number format,
        version or batch size, and for damaged ones; this state is then unchanged."""


def check_identity(state: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raises `StateError` unless a saved state is of the same model, number format, version and batch size as `own`,
    and holds the same entries."""
    for name in ("format", "model", "dtype", "batch"):
        given = state.get(name)
        if isinstance(given, (np.ndarray, np.generic)) and given.ndim == 0:  # as it comes back from an .npz file
            given = given.item()
        if not isinstance(given, (str, int)) or given != own[name]:
            raise StateError(f"this state has {name} {given!r}; here it must be {own[name]!r}")
    if state.keys() != own.keys():
        raise StateError(f"this state lacks or adds {sorted(state.keys() ^ own.keys())}; it was not saved here")


def check_beginning(
    first: NDArray[np.int64], mel: NDArray[np.float32], shape: tuple[int, ...], received: NDArray[np.int64]
) -> None:
    """Raises `ShapeError` and `StateError` unless `State.begin_at` can do what is asked; `shape` is that of its mel,
    `received` (B,) how many frames each stream has."""
    if first.shape != shape[:1] or mel.shape != shape:
        raise ShapeError(
            f"first has shape {first.shape} and mel {mel.shape}; these streams need {shape[:1]} and {shape}"
        )
    if (first < 0).any() or ((first > 0) & (received > 0)).any():
        raise StateError("only a fresh stream can begin in the middle, at frame 0 or later; reset it first")


def as_array(value: Any, name: str) -> NDArray[Any]:
    """An entry of a saved state. Raises `StateError` for what is no array."""
    try:
        return np.asarray(value)
    except ValueError as error:
        raise StateError(f"{name} of this state is no array: {error}; it was damaged since it was saved") from None


@dataclass(frozen=True)
class Plan:
    """How an engine would run so many streams in one call: `str()` says it to people, `details` holds plain data."""

    text: str
    details: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.text


class Engine(Protocol):
    """Immutable; several threads may use one engine, each with its own `State`.

    A stream's samples depend on its own seed, speaker, mel and temperature alone: no bit depends on the batch, the
    slot, the number of threads, or the pieces in which frames arrive.
    """

    @property
    def name(self) -> str: ...

    @property
    def dtype(self) -> str:
        """Number format: "fp32", "bf16", "fp16" or "int8"."""

    @property
    def isa(self) -> str: ...

    @property
    def config(self) -> WaveNetConfig: ...

    def explain(self, streams: int, threads: int) -> Plan:
        """How a call with so many streams would run, on at most so many threads of the processor."""

    def start(self, seeds: NDArray[np.uint64], speakers: NDArray[np.float32] | None = None) -> Any:
        """A `State` of B fresh streams with these seeds (B,) and speaker vectors (B, P)."""

    def advance(
        self,
        state: Any,
        mel: NDArray[np.float32],
        frames: NDArray[np.int64],
        ended: NDArray[np.bool_],
        temperature: float,
        *,
        threads: int = 1,
        forced: NDArray[Any] | None = None,
        logits: NDArray[np.float32] | None = None,
        raw: bool = False,
        progress: Progress | None = None,
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Feed mel frames and make every sample whose conditioning is then known, in one call.

        mel      float32 (B, M, n); of stream b the first frames[b] ≤ n are new, the others are never read
        ended    (B,): after these frames no more will come, so that nothing is held back
        forced   (B, ≥ samples): the history that stream b hears instead of its own draws, integer classes or values
                 in −1 … 1 in the model's domain; its de-emphasis goes on from this history too. Draws are still
                 returned, as sound on top of that history
        logits   float32 (B, ≥ samples, A), filled with the network's outputs
        raw      return the draws, int32 classes or float32 values in the model's domain, instead of sound
        returns  sound float32 (B, samples) in −1 … 1, zero beyond each stream's own number, and those numbers (B,);
                 samples = the largest of them

        When the call is interrupted, or `progress` raises, `state` is as it was before the call.
        """
