"""Sound as its mel arrives: `Streaming` for servers, with a lane per stream, and `stream_frames` for one utterance.

What is ready. The conditioning network looks `lookahead_frames` ahead, so while a stream is open, k frames make
(k − lookahead_frames)·hop samples; `flush` ends it and gives the rest, so that F frames always make F·hop samples. Any
chunking gives the samples of the one-shot call, bit for bit. `prime` gives a stream a past that
it did not speak itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import inputs
from .backends.base import Engine, as_array
from .conditioning import lookahead_frames
from .errors import InputError, ShapeError, StateError
from .inputs import Form, Layout
from .recipe import Recipe
from .rng import utterance_seeds
from .sampling import check_temperature
from .shaping import ShapedEngine
from .signal import fed_back, to_model_domain

Seed = int | Sequence[int] | NDArray[Any]
_FRAMES_BEFORE_CHECK = 32
"""Frames gathered before they are compared with the voice's recipe: fewer may be a pause."""
_PRIME_SAMPLES = 1 << 18
"""Samples of all streams together that are primed at once, unless a single frame has more: 1 MiB of history."""


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
        self._last = np.zeros(self.batch_size, np.float32)
        """The newest sample of each stream's sound, its own or primed: pre-emphasis looks one back."""
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

    def prime(self, wav: Any, mel: Any, mask: Any = None, layout: Layout = "ct") -> None:
        """Let streams have spoken existing sound, so that they go on from it.

        The streams hear wav (B, N), or (N,) for one lane, in −1 … 1 as their own past for their next N samples, whole
        frames: N = n·hop. What they would have said there is not made, and what follows depends on their seed at the
        new position. Sound that leaves −1 … 1 after gain and pre-emphasis is clipped there, as `Vocoder.nll` does, and
        as there a voice's `sound.filter` is undone first.

        mel (B, M, F), or (M, F): the frames not yet received, up to the last one that those samples depend on. A fresh
        stream needs F = n + lookahead_frames, one that has made sound holds its look-ahead already and needs n; `step`
        goes on after them. Streams outside `mask` (B,) and masked lanes stand still; nothing given for them is read.

        Raises `ShapeError` for other N and F, `InputError` for values that cannot be used, `StateError` where a stream
        has ended or some hold more frames than others; nothing has moved then, nor when it is interrupted."""
        engine = self._open()
        values, form = inputs.as_mel(mel, self._config.n_mels, layout)
        lanes = inputs.as_mask(mask, self.batch_size) & self._running
        sound, sound_form = inputs.as_waveform(wav, lanes)
        if form.batched != sound_form.batched or len(values) != self.batch_size:
            raise ShapeError(
                f"mel {np.shape(mel)} and waveform {np.shape(wav)} for {self.batch_size} lanes; give (B, M, F) and"
                " (B, N), or (M, F) and (N,) for one lane"
            )
        if (ended := np.flatnonzero(lanes & self._state.ended)).size:
            raise StateError(f"stream {ended[0]} has ended; reset it before priming, or leave it out of the mask")
        if not lanes.any():
            return
        held, ahead = self._held_frames(lanes), lookahead_frames(self._config)
        inputs.check_primed(sound.shape[1], values.shape[-1], self._config.hop_length, ahead, held)
        new = values.shape[-1] * lanes
        values = inputs.prepare_mel(values, new, form.batched)
        if isinstance(engine, ShapedEngine):
            sound = engine.unshaped(np.where(lanes[:, None], sound, np.float32(0)), self._state)
        self._check_recipe(values, new)
        self._hear(engine, sound, values, lanes, held)
        self._form = form

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
        self._last[lanes] = 0

    def set_exec_mask(self, mask: Any) -> None:
        """Which lanes run, (B,) booleans: a masked lane (False) stands still, and frames given for it are ignored."""
        self._open()
        self._running = inputs.as_mask(mask, self.batch_size)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the streams' future depends on, as NumPy arrays and plain values."""
        self._open()
        own = {"exec_mask": self._running.copy(), "last_sample": self._last.copy(), "temperature": self._temperature}
        return {**self._state.state_dict(), **own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken. Raises `StateError` where the state is of another model, number format,
        version or batch size; the streams are then as before."""
        self._open()
        if not isinstance(state, Mapping):
            raise StateError(f"the state is {type(state).__name__}; give what state_dict returned")
        rest = dict(state)
        temperature = rest.pop("temperature", None)
        last = as_array(rest.pop("last_sample", ()), "last_sample")
        if last.dtype != np.float32 or last.shape != (self.batch_size,) or not np.isfinite(last).all():
            raise StateError(
                f"last_sample of this state is {last.dtype} {last.shape}; it must be finite float32"
                f" ({self.batch_size},), one per stream"
            )
        try:
            running = inputs.as_mask(rest.pop("exec_mask", ()), self.batch_size, "exec_mask")
            if isinstance(temperature, np.ndarray) and temperature.ndim == 0:
                temperature = temperature.item()
            check_temperature(temperature)
        except (InputError, ShapeError) as error:
            raise StateError(f"the state does not fit these {self.batch_size} lanes: {error}") from None
        self._state.load_state_dict(rest)
        self._running, self._last, self._temperature = running, last.copy(), float(temperature)

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
        made = np.flatnonzero(self._ready)
        self._last[made] = audio[made, self._ready[made] - 1]
        return self._form.give(audio)

    def _held_frames(self, lanes: NDArray[np.bool_]) -> int:
        """Frames that each of these streams has received and made no samples of yet."""
        held = (self._state.frames - self._state.positions // self._config.hop_length)[lanes]
        if (held != held[:1]).any():
            raise StateError(
                f"streams {np.flatnonzero(lanes).tolist()} hold {held.tolist()} frames that wait for look-ahead; prime"
                " those that hold equally many in one call, by mask: fresh ones hold none"
            )
        return int(held[0])

    def _hear(
        self, engine: Engine, wav: NDArray[np.float32], mel: NDArray[np.float32], lanes: NDArray[np.bool_], held: int
    ) -> None:
        """Force wav (B, N) on `lanes` (B,), in memory that does not grow with N."""
        c, batch, ahead = self._config, self.batch_size, lookahead_frames(self._config)
        before, last, done = self._state.state_dict(), self._last[:, None], 0
        size = max(1, _PRIME_SAMPLES // (batch * c.hop_length))
        try:
            for first in range(0, mel.shape[-1], size):
                part = mel[:, :, first : first + size]
                known = max(0, held + first + part.shape[-1] - ahead) * c.hop_length
                sound = np.where(lanes[:, None], np.concatenate([last, wav[:, done:known]], axis=1), np.float32(0))
                engine.advance(
                    self._state, np.ascontiguousarray(part), part.shape[-1] * lanes, np.zeros(batch, bool),
                    self._temperature, threads=self._threads, forced=fed_back(to_model_domain(sound, c)[:, 1:], c),
                )  # fmt: skip
                last, done = sound[:, -1:], known
        except BaseException:
            self._state.load_state_dict(before)
            raise
        self._last = np.where(lanes, last[:, 0], self._last)

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
