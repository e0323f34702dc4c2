"""Sound as its mel arrives: `Streaming` for servers, with a lane per stream, and `stream_frames` for one utterance.

What is ready. The conditioning network looks `lookahead_frames` ahead, so while a stream is open, k frames make
(k − lookahead_frames)·hop samples; `flush` ends it and gives the rest, so that F frames always make F·hop samples. Any
chunking gives the samples of the one-shot call, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import inputs
from .backends.base import Engine
from .errors import InputError, ShapeError, StateError
from .inputs import Form, Layout
from .recipe import Recipe
from .rng import utterance_seeds
from .sampling import check_temperature

Seed = int | Sequence[int] | NDArray[Any]
_FRAMES_BEFORE_CHECK = 32
"""Frames gathered before they are compared with the voice's recipe: fewer may be a pause."""


class Streaming:
    """`batch_size` streams in lanes that advance, end and begin anew independently. Made by `Vocoder.streaming`.

    `step` and `flush` return (B, n) sound, n the most that any stream made. A stream that made less, because it got
    fewer frames, began later, ended or was masked, is zero beyond `ready[b]`. Frames given as (M, k), which one lane
    allows, return (n,). One instance belongs to one thread at a time; used after `close` it raises `StateError`.
    """

    def __init__(
        self,
        engine: Engine,
        recipe: Recipe | None,
        table: NDArray[np.float32] | None,
        threads: int,
        batch_size: int,
        seed: Seed,
        temperature: float,
        speaker: Any,
    ) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, (int, np.integer)) or batch_size < 1:
            raise InputError(f"batch_size is {batch_size!r}; it is the number of streams, 1 or more")
        self.batch_size = int(batch_size)
        self._config, self._recipe, self._table = engine.config, recipe, table
        self._threads, self._temperature = threads, temperature
        self._engine: Engine | None = engine
        self._state: Any = engine.start(utterance_seeds(seed, self.batch_size), self._speakers(speaker))
        self._running = np.ones(self.batch_size, bool)
        self._ready = np.zeros(self.batch_size, np.int64)
        self._form = Form(batched=True)
        self._unchecked: list[NDArray[np.float32]] = []

    def step(self, frames: Any, counts: Any = None, layout: Layout = "ct") -> Any:
        """Feed frames (B, M, k), or (M, k) for one lane; returns the sound that is ready now.

        `counts` (B,): how many of the k frames are new for each stream, where they differ; the others are not read.
        Masked lanes take no frames. Raises `StateError` when a stream that has ended is given more, and the errors
        of `Vocoder.__call__` for bad frames; either way no stream has moved."""
        engine = self._open()
        values, form = inputs.as_mel(frames, self._config.n_mels, layout)
        if len(values) != self.batch_size:
            raise ShapeError(f"got frames for {len(values)} streams; this context has {self.batch_size} lanes")
        new = inputs.as_counts(counts, self.batch_size, values.shape[-1], "counts") * self._running
        if (late := np.flatnonzero((new > 0) & self._state.ended)).size:
            raise StateError(f"stream {late[0]} has ended; reset it before feeding more, or mask it (set_exec_mask)")
        inputs.check_length(new, self._config.hop_length)
        values = inputs.prepare_mel(values, new, form.batched)
        self._check_recipe(values, new)
        self._form = form
        return self._advance(engine, values, new, np.zeros(self.batch_size, bool))

    def flush(self, mask: Any = None) -> Any:
        """End the running streams, or those of `mask` (B,), and return the rest of their sound."""
        engine = self._open()
        ending = inputs.as_mask(mask, self.batch_size) & self._running & ~self._state.ended
        nothing = np.zeros((self.batch_size, self._config.n_mels, 0), np.float32)
        return self._advance(engine, nothing, np.zeros(self.batch_size, np.int64), ending)

    @property
    def ready(self) -> NDArray[np.int64]:
        """(B,): how many samples of the last `step` or `flush` belong to each stream."""
        return self._ready.copy()

    @property
    def positions(self) -> NDArray[np.int64]:
        """(B,): samples each stream has made since it began."""
        self._open()
        return np.array(self._state.positions, np.int64)

    def reset(self, mask: Any = None, seed: Seed | None = None, speaker: Any = None) -> None:
        """Begin anew in the lanes of `mask` (B,), or in all: nothing of the old streams remains.

        A lane keeps its seed and speaker where none is given. `seed` counts as at the beginning: an integer n gives
        lane b the seed n + b, a sequence has one for every lane. Masked lanes can be reset; they stay masked."""
        self._open()
        lanes = inputs.as_mask(mask, self.batch_size)
        seeds = None if seed is None else utterance_seeds(seed, self.batch_size)
        self._state.reset(lanes, seeds, None if speaker is None else self._speakers(speaker))

    def set_exec_mask(self, mask: Any) -> None:
        """Which lanes run, (B,) booleans: a masked lane (False) stands still, and frames given for it are ignored."""
        self._open()
        self._running = inputs.as_mask(mask, self.batch_size)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the streams' future depends on, as NumPy arrays and plain values."""
        self._open()
        return {**self._state.state_dict(), "exec_mask": self._running.copy(), "temperature": self._temperature}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken. Raises `StateError` where the state is of another model, number format,
        version or batch size; the streams are then as before."""
        self._open()
        if not isinstance(state, Mapping):
            raise StateError(f"the state is {type(state).__name__}; give what state_dict returned")
        rest = dict(state)
        temperature = rest.pop("temperature", None)
        try:
            running = inputs.as_mask(rest.pop("exec_mask", ()), self.batch_size, "exec_mask")
            if isinstance(temperature, np.ndarray) and temperature.ndim == 0:
                temperature = temperature.item()
            check_temperature(temperature)
        except (InputError, ShapeError) as error:
            raise StateError(f"the state does not fit these {self.batch_size} lanes: {error}") from None
        self._state.load_state_dict(rest)
        self._running, self._temperature = running, float(temperature)

    def close(self) -> None:
        """Let go of the streams; also what leaving the `with` block does."""
        self._engine = self._state = None

    def __enter__(self) -> Streaming:
        self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> Engine:
        if self._engine is None:
            raise StateError("this streaming context is closed; open another with voc.streaming(batch_size)")
        return self._engine

    def _speakers(self, speaker: Any) -> NDArray[np.float32] | None:
        return inputs.as_speakers(speaker, self.batch_size, self._config.speakers, self._table)

    def _advance(
        self, engine: Engine, mel: NDArray[np.float32], new: NDArray[np.int64], ending: NDArray[np.bool_]
    ) -> Any:
        audio, self._ready = engine.advance(self._state, mel, new, ending, self._temperature, threads=self._threads)
        return self._form.give(audio)

    def _check_recipe(self, mel: NDArray[np.float32], new: NDArray[np.int64]) -> None:
        if self._recipe is None:
            return
        self._unchecked += [mel[b, :, :count].copy() for b, count in enumerate(new) if count]
        if sum(part.shape[1] for part in self._unchecked) >= _FRAMES_BEFORE_CHECK:
            frames, self._unchecked = np.concatenate(self._unchecked, axis=1)[None], []
            self._recipe.check(frames, np.array([frames.shape[-1]]))
            self._recipe = None  # once is enough, unless it was refused


def check_chunk_frames(chunk_frames: Any) -> int:
    """Raises `InputError` unless it is a positive integer."""
    if isinstance(chunk_frames, bool) or not isinstance(chunk_frames, (int, np.integer)) or chunk_frames < 1:
        raise InputError(f"chunk_frames is {chunk_frames!r}; it is the number of frames per chunk of sound, 1 or more")
    return int(chunk_frames)


def stream_frames(
    context: Streaming, blocks: Iterable[Any], chunk_frames: int, lookahead: int, layout: Layout
) -> Iterator[Any]:
    """The sound of one stream, chunk by chunk, for blocks of frames as they come.

    Blocks longer than `chunk_frames` are cut, shorter ones are not held back. The first piece may be longer by what
    the network looks ahead, so that the chunks of a long block come out even. The context is closed at the end, also
    where the generator is dropped half-way."""
    axis = -1 if layout == "ct" else 0
    size, begun = chunk_frames + lookahead, False
    with context:
        for block in blocks:
            block = block if hasattr(block, "shape") else np.asarray(block)
            if len(block.shape) == 1:
                block = block[:, None] if layout == "ct" else block[None]
            if len(block.shape) != 2:
                raise ShapeError(
                    f"a block has shape {tuple(block.shape)}; one utterance is streamed as frames (M,) or blocks (M, k)"
                )
            first = 0
            while first < block.shape[axis]:
                piece = slice(first, first + size)
                first, size, begun = first + size, chunk_frames, True
                chunk = context.step(block[:, piece] if axis else block[piece], layout=layout)
                if len(chunk):
                    yield chunk
        # A stream that was never fed has nothing left, and no kind of array to give it in.
        chunk = context.flush() if begun else ()
        if len(chunk):
            yield chunk
