"""What the streams of an engine remember, wherever it keeps their histories: everything else is small and lies in NumPy
arrays here. A backend adds its rings, through the hooks at the end of `HostState`."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..conditioning import MAX_STREAM_SAMPLES, lookahead_frames, ready_samples
from ..config import OneHotInput
from ..errors import ShapeError, StateError
from .base import as_array, check_beginning, check_identity

if TYPE_CHECKING:
    from .host_engine import HostEngine

_ARRAYS = ("inputs", "filters", "positions", "frames", "ended", "seeds", "speakers", "mel", "mel_frames")


class HostState:
    """The streams of one batch; implements `base.State`, but for the rings, which a subclass makes (zero) in its own
    `__init__` and handles in the hooks.

    The arrays below and the rings are the whole state. `inputs` (B, taps) float32: past inputs, oldest first, classes
    as numbers and −1 for none. `filters` (B,) float32: the de-emphasis filter's last output, before the gain.
    `mel` (B, context + look-ahead, M): the last `mel_frames` (B,) received.
    """

    def __init__(self, engine: HostEngine[Any], seeds: NDArray[np.uint64], speakers: NDArray[np.float32]) -> None:
        c, batch = engine.config, len(seeds)
        self.engine: HostEngine[Any] = engine
        self._busy = threading.Lock()
        self.inputs = np.empty((batch, c.input.kernel_size), np.float32)
        self.filters = np.zeros(batch, np.float32)
        self.positions = np.zeros(batch, np.int64)
        self.frames = np.zeros(batch, np.int64)
        self.ended = np.zeros(batch, bool)
        self.seeds, self.speakers = seeds.copy(), speakers.copy()
        self.mel = np.zeros((batch, engine.kept, c.n_mels), np.float32)
        self.mel_frames = np.zeros(batch, np.int64)
        self._forget_inputs(np.ones(batch, bool))  # all else is zero

    @property
    def batch(self) -> int:
        """B."""
        return len(self.seeds)

    def _forget_inputs(self, mask: NDArray[np.bool_]) -> None:
        c = self.engine.config
        none = -1 if isinstance(c.input, OneHotInput) else 0
        self.inputs[mask, :-1] = c.start if c.past == "steady" else none
        self.inputs[mask, -1] = c.start

    def _start(self, mask: NDArray[np.bool_]) -> None:
        self._zero_rings(mask)
        self._forget_inputs(mask)
        for array in (self.filters, self.positions, self.frames, self.ended, self.mel, self.mel_frames):
            array[mask] = 0

    def reset(
        self,
        mask: NDArray[np.bool_],
        seeds: NDArray[np.uint64] | None = None,
        speakers: NDArray[np.float32] | None = None,
    ) -> None:
        """See `base.State.reset`. Raises `ShapeError` for arrays of another batch size."""
        mask = np.asarray(mask)
        if mask.shape != (self.batch,) or mask.dtype != bool:
            raise ShapeError(f"mask is {mask.dtype} {mask.shape}; give booleans ({self.batch},), one per stream")
        with self.exclusively():
            if seeds is not None:
                self.seeds[mask] = checked_seeds(seeds, self.batch)[mask]
            if speakers is not None:
                self.speakers[mask] = self.engine.checked_speakers(speakers, self.batch)[mask]
            self._start(mask)

    def begin_at(self, first: NDArray[np.int64], mel: NDArray[np.float32]) -> None:
        """See `base.State.begin_at`."""
        c = self.engine.config
        check_beginning(first, mel, (self.batch, c.n_mels, self.engine.kept), self.frames)
        with self.exclusively():
            for b in np.flatnonzero(first):
                self.positions[b] = first[b] * c.hop_length
                self.frames[b] = first[b] + lookahead_frames(c)
                kept = self.mel_frames[b] = int(self.engine.kept_frames(self.positions[b], self.frames[b]))
                self.mel[b, :kept] = mel[b, :, self.engine.kept - kept :].T

    def state_dict(self) -> dict[str, Any]:
        """See `base.State.state_dict`."""
        with self.exclusively():
            copies = self._saved_rings() | {name: getattr(self, name).copy() for name in _ARRAYS}
        return {**self.engine.identity, "batch": self.batch, **copies}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `base.State.load_state_dict`."""
        own = self.state_dict()
        check_identity(state, own)
        arrays = {}
        for name in sorted(own.keys() - self.engine.identity.keys() - {"batch"}):
            arrays[name] = as_array(state[name], name)
            if arrays[name].dtype != own[name].dtype or arrays[name].shape != own[name].shape:
                raise StateError(
                    f"{name} of this state is {arrays[name].dtype} {arrays[name].shape}; it must be "
                    f"{own[name].dtype} {own[name].shape}"
                )
        self._check_values(arrays)
        with self.exclusively():
            self._load_rings(arrays)
            for name in _ARRAYS:
                getattr(self, name)[...] = arrays[name]

    def _check_values(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Raises `StateError` unless the numbers are some that a stream can arrive at."""
        c = self.engine.config
        for name in ("inputs", "filters", "speakers", "mel"):
            check_finite(name, arrays[name])
        inputs = arrays["inputs"]
        whole = (inputs == np.floor(inputs)) & (inputs >= -1) & (inputs < c.out_channels)
        if isinstance(c.input, OneHotInput) and not whole.all():
            raise StateError(f"inputs of this state must be classes 0 … {c.out_channels - 1}, or -1 for none")
        frames = arrays["frames"]
        if (frames < 0).any() or (frames > MAX_STREAM_SAMPLES // c.hop_length).any():
            raise StateError("frames of this state are out of range; it was damaged since it was saved")
        if (arrays["positions"] != ready_samples(c, frames, arrays["ended"])).any():
            raise StateError("positions of this state do not follow from its frames; it was damaged since it was saved")
        if (arrays["mel_frames"] != self.engine.kept_frames(arrays["positions"], frames)).any():
            raise StateError(
                "mel_frames of this state do not follow from its frames; it was damaged since it was saved"
            )

    @contextmanager
    def unchanged_on_failure(self) -> Iterator[None]:
        """What happens inside happens wholly or not at all."""
        before = {name: getattr(self, name).copy() for name in _ARRAYS}
        rings = self._copied_rings()
        try:
            yield
        except BaseException:
            for name, array in before.items():
                getattr(self, name)[...] = array
            self._put_back_rings(rings)
            raise

    @contextmanager
    def exclusively(self) -> Iterator[None]:
        """Raises `StateError` where another thread is at work on this state."""
        if not self._busy.acquire(blocking=False):
            raise StateError("this stream state is in use by another thread; give each thread a state of its own")
        try:
            yield
        finally:
            self._busy.release()

    def receive(self, mel: NDArray[np.float32], frames: NDArray[np.int64]) -> None:
        """Keep of the old and the new frames what samples to come depend on; `positions` are already the new ones."""
        for b in range(self.batch):
            new, held = int(frames[b]), int(self.mel_frames[b])
            self.frames[b] += new
            kept = int(self.engine.kept_frames(self.positions[b], self.frames[b]))
            old = max(0, kept - new)
            self.mel[b, :old] = self.mel[b, held - old : held].copy()
            self.mel[b, old:kept] = mel[b, :, new - (kept - old) : new].T
            self.mel[b, kept:] = 0
            self.mel_frames[b] = kept

    # --- hooks: the rings -------------------------------------------------------------------------------------------

    def _zero_rings(self, mask: NDArray[np.bool_]) -> None:
        """Forget the histories of the streams in `mask` (B,)."""
        raise NotImplementedError

    def _saved_rings(self) -> dict[str, NDArray[Any]]:
        """A copy of the histories for `state_dict`, without padding: the same whatever the hardware."""
        raise NotImplementedError

    def _load_rings(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Put in place what `_saved_rings` gave, here or in another process; dtypes and shapes have been checked."""
        raise NotImplementedError

    def _copied_rings(self) -> Any:
        """What `_put_back_rings` takes, should the call that begins now fail. May stay where the rings are."""
        return self._saved_rings()

    def _put_back_rings(self, copied: Any) -> None:
        self._load_rings(copied)


def check_finite(name: str, array: NDArray[Any]) -> None:
    """Raises `StateError` for an array of a saved state that holds what no stream arrives at."""
    if not np.isfinite(array).all():
        raise StateError(f"{name} of this state holds NaN or infinity; it was damaged since it was saved")


def checked_seeds(seeds: NDArray[np.uint64], batch: int) -> NDArray[np.uint64]:
    """(B,) uint64. Raises `ShapeError` for anything else."""
    values = np.asarray(seeds)
    if values.shape != (batch,) or values.dtype != np.uint64:
        raise ShapeError(f"seeds are {values.dtype} {values.shape}; give uint64 ({batch},), see rng.utterance_seeds")
    return values
