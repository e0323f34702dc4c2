"""What engines share whose states are `HostState`s: everything that is given is checked here, in sentences, and what
frames make ready is worked out, so that a backend only packs weights, makes rings, and runs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..conditioning import MAX_STREAM_SAMPLES, context_frames, lookahead_frames, ready_samples
from ..config import CategoricalHead, OneHotInput, WaveNetConfig, encode
from ..errors import InputError, ShapeError, StateError
from ..sampling import check_temperature
from .base import Progress
from .host_state import HostState, checked_seeds

_FORCED_LIMIT = 2.0  # a decode offset leads a little beyond −1

S = TypeVar("S", bound=HostState)


@dataclass(frozen=True)
class Call:
    """One `advance`, checked: what `HostEngine._run` is given beside the state.

    mel          float32 (B, M, n), any strides; of stream b the first frames[b] count, the others are never read
    frames       int64 (B,)
    ended        bool (B,): streams to which no frames come after these
    counts       int64 (B,): samples that each stream makes; `longest` of them, at least 1, is the largest
    temperature  float in 1e-37 … 3e38
    threads      as given
    forced       float32 (B, longest), zero beyond a stream's own count: classes as numbers, or values; or None
    logits       float32 (B, ≥ longest, A), contiguous, to be filled up to each stream's count; or None
    audio, raw   one of the two, float32 (B, longest) of zeros to be filled; the other is None. Classes are numbers
    stages       for `trace` of the backend that offers it
    """

    mel: NDArray[np.float32]
    frames: NDArray[np.int64]
    ended: NDArray[np.bool_]
    counts: NDArray[np.int64]
    temperature: float
    threads: int
    forced: NDArray[np.float32] | None
    logits: NDArray[np.float32] | None
    audio: NDArray[np.float32] | None
    raw: NDArray[np.float32] | None
    progress: Progress | None
    stages: dict[str, NDArray[np.float32]] | None

    @property
    def longest(self) -> int:
        return int(self.counts.max(initial=0))


class HostEngine(Generic[S]):
    """A model made ready; immutable. Implements `base.Engine` with the two hooks `_new_state` and `_run`.

    A subclass sets `name` and `isa` and calls `__init__` with the model and the name and version of its saved states.
    """

    name: str
    isa: str

    def __init__(
        self, config: WaveNetConfig, weights: Mapping[str, NDArray[np.float32]], dtype: str, state_format: str
    ) -> None:
        self.config, self.dtype = config, dtype
        self._categorical = isinstance(config.head, CategoricalHead)
        self._context = context_frames(config)
        self.kept = self._context + lookahead_frames(config)
        """Frames that a state has room for."""
        self.ring_slots = (config.kernel_size - 1) * sum(config.dilations)
        """Inputs that a stream's layers remember together, (K−1)·D each."""
        self.identity = {
            "format": f"wavenet_fast {state_format}", "model": _fingerprint(config, weights), "dtype": dtype,
        }  # fmt: skip

    # --- hooks ------------------------------------------------------------------------------------------------------

    def _new_state(self, seeds: NDArray[np.uint64], speakers: NDArray[np.float32]) -> S:
        """A fresh state; seeds (B,) and speakers (B, P) have been checked. Raises `InputError` where no room is left
        for so many streams."""
        raise NotImplementedError

    def _run(self, state: S, call: Call) -> None:
        """Make the samples of a call, and leave rings, `inputs` and `filters` of the state as they then are. All else
        of the state is brought up to date afterwards; whatever is raised puts all of it back."""
        raise NotImplementedError

    # --- the contract -----------------------------------------------------------------------------------------------

    def start(self, seeds: NDArray[np.uint64], speakers: NDArray[np.float32] | None = None) -> S:
        """See `base.Engine.start`. Raises `InputError` where the model has speakers and no vectors are given."""
        seeds = np.asarray(seeds)
        if seeds.ndim != 1 or not seeds.size:
            raise ShapeError(f"seeds have shape {seeds.shape}; give (B,), one per stream and at least one")
        return self._new_state(checked_seeds(seeds, len(seeds)), self.checked_speakers(speakers, len(seeds)))

    def advance(
        self,
        state: S,
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
        """See `base.Engine.advance`. `threads` ≥ 1: at most so many of the processor's, where the backend uses them.

        Raises `ShapeError` and `InputError` for arguments that do not fit, `StateError` for frames after the end."""
        with state.exclusively():
            return self._advance(state, mel, frames, ended, temperature, threads, forced, logits, raw, progress, None)

    def _advance(
        self,
        state: S,
        mel: NDArray[np.float32],
        frames: NDArray[np.int64],
        ended: NDArray[np.bool_],
        temperature: float,
        threads: int,
        forced: NDArray[Any] | None,
        logits: NDArray[np.float32] | None,
        raw: bool,
        progress: Progress | None,
        stages: dict[str, NDArray[np.float32]] | None,
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        check_temperature(temperature)
        mel, frames = self._checked_frames(state, mel, frames)
        ended = state.ended | np.asarray(ended, bool)
        counts = ready_samples(self.config, state.frames + frames, ended) - state.positions
        longest, total = int(counts.max(initial=0)), int(counts.sum())
        history = None if forced is None else self._checked_history(forced, counts, longest)
        self._check_logits(logits, state.batch, longest)
        out = np.zeros((state.batch, longest), np.float32)
        call = Call(
            mel, frames, ended, counts, min(max(float(temperature), 1e-37), 3e38), int(threads), history, logits,
            None if raw else out, out if raw else None, progress, stages,
        )  # fmt: skip
        with state.unchanged_on_failure():
            if longest:
                self._run(state, call)
            state.positions += counts
            state.receive(mel, frames)
            state.ended[:] = ended
            if longest and progress is not None:
                progress(total, total)
        return (out.astype(np.int32) if raw and self._categorical else out), counts

    def kept_frames(self, positions: NDArray[np.int64], frames: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many of the received frames streams at these positions still need."""
        first = np.maximum(0, positions // self.config.hop_length - self._context)
        return np.asarray(frames - np.minimum(first, frames))

    # --- checks -----------------------------------------------------------------------------------------------------

    def checked_speakers(self, speakers: NDArray[np.float32] | None, batch: int) -> NDArray[np.float32]:
        """(B, P) float32, P = 0 where the model has no speakers."""
        P = self.config.speakers.channels
        if speakers is None and P:
            raise InputError(f"this model has speakers: give a vector of {P} numbers for each of the {batch} streams")
        vectors = np.zeros((batch, 0), np.float32) if speakers is None else np.asarray(speakers, np.float32)
        if vectors.shape != (batch, P):
            raise ShapeError(f"speakers have shape {vectors.shape}; this model needs ({batch}, {P})")
        if not np.isfinite(vectors).all():
            raise InputError("a speaker vector holds NaN or infinity; give finite numbers")
        return np.ascontiguousarray(vectors)

    def _checked_frames(
        self, state: S, mel: NDArray[np.float32], frames: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        batch, M = state.batch, self.config.n_mels
        if state.engine is not self:
            raise StateError("this stream state belongs to another engine; start it with this one")
        if mel.ndim != 3 or mel.shape[:2] != (batch, M):
            raise ShapeError(f"mel has shape {mel.shape}; {batch} streams of this model need ({batch}, {M}, frames)")
        if mel.dtype != np.float32:
            raise InputError(f"mel is {mel.dtype}; the engine takes float32 in native byte order")
        counts = np.asarray(frames)
        if counts.shape != (batch,) or counts.dtype.kind not in "iu":
            raise ShapeError(f"frames are {counts.dtype} {counts.shape}; give integers ({batch},), one per stream")
        if counts.min() < 0 or counts.max() > mel.shape[2]:
            raise InputError(f"frames lie in {counts.min()} … {counts.max()}; the mel has 0 … {mel.shape[2]} to give")
        if (late := state.ended & (counts > 0)).any():
            raise StateError(f"frames for streams {np.flatnonzero(late).tolist()}, which have ended; reset them first")
        if int((state.frames + counts).max()) > MAX_STREAM_SAMPLES // self.config.hop_length:
            raise InputError(f"a stream of more than {MAX_STREAM_SAMPLES} samples is asked for; reset it first")
        if not mel.flags.aligned or any(stride % mel.itemsize for stride in mel.strides):
            mel = mel.copy()
        return mel, counts.astype(np.int64)

    def _checked_history(self, forced: NDArray[Any], counts: NDArray[np.int64], longest: int) -> NDArray[np.float32]:
        """(B, longest) float32 out of (B, ≥ longest); what lies beyond a stream's own samples is never looked at."""
        c, values = self.config, np.asarray(forced)
        if values.ndim != 2 or len(values) != len(counts) or values.shape[1] < longest:
            raise ShapeError(f"forced has shape {values.shape}; this call makes ({len(counts)}, {longest}) samples")
        history = np.zeros((len(counts), longest), np.float32)
        for b, count in enumerate(counts):
            row = values[b, :count]
            if isinstance(c.input, OneHotInput):
                if row.dtype.kind not in "iu" or (row.size and not (row.min() >= 0 and row.max() < c.out_channels)):
                    raise InputError(f"forced must hold integer classes 0 … {c.out_channels - 1}; use mulaw_encode")
            elif row.dtype.kind != "f" or not (np.abs(row) <= _FORCED_LIMIT).all():
                raise InputError("forced must hold floating-point values in the model's domain, −1 … 1")
            history[b, :count] = row
        return history

    def _check_logits(self, logits: NDArray[np.float32] | None, batch: int, longest: int) -> None:
        if logits is None:
            return
        A = self.config.out_channels
        fits = logits.ndim == 3 and logits.shape[0] == batch and logits.shape[1] >= longest and logits.shape[2] == A
        if not fits or logits.dtype != np.float32 or not logits.flags.c_contiguous or not logits.flags.writeable:
            raise ShapeError(
                f"logits is {logits.dtype} {logits.shape}; this call fills contiguous float32 ({batch}, {longest}, {A})"
            )


def _fingerprint(config: WaveNetConfig, weights: Mapping[str, NDArray[np.float32]]) -> str:
    """16 hexadecimal digits that differ whenever the configuration or a weight does."""
    digest = hashlib.blake2b(repr(encode(config)).encode(), digest_size=8)
    for name in sorted(weights):
        digest.update(np.ascontiguousarray(weights[name], np.float32).data)
    return digest.hexdigest()
