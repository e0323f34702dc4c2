"""One long utterance as several overlapping pieces, each a stream of its own, joined again: offline, and approximate.

A piece is the utterance's own stream, begun in the middle. It hears the conditioning of the whole, and since a stream's
randomness follows from seed and position, it draws the uniforms that the whole draws there. Only what was said before
is missing; silence stands in for it. Two streams that differ in their past alone tend to fall into step, at once in a
pause and after some tenths of a second in speech. So neighbours overlap for up to `LONGEST` seconds, and each join is
put where the two agree best. What follows a join is a sample of the model as good as any other, but not the one that
the whole would have given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .backends.base import Engine, Progress, State
from .conditioning import context_frames, lookahead_frames
from .config import WaveNetConfig

SHORTEST, LONGEST = 0.2, 0.8
"""Seconds of an overlap in which a join is looked for. Measured: `benchmarks/fold_quality.py`."""
FADE = 0.01
"""Seconds of a cross-fade: about one period of a low voice."""
_PIECE_VALUES = 1 << 22
"""Mel values and samples that one call of the engine takes and gives, in all."""


def cut(frames: int, fold: int, config: WaveNetConfig) -> tuple[NDArray[np.int64], int]:
    """Where `frames` are cut into at most `fold` pieces of nearly equal length: the first frame of each, (N,), and the
    frames that neighbours share. No frame is in three pieces; what is too short for N pieces gets fewer."""
    settle, fade = settling_samples(config), fade_samples(config)
    limits = [
        lookahead_frames(config) + math.ceil((settle + fade + seconds * config.sample_rate) / config.hop_length)
        for seconds in (SHORTEST, LONGEST)
    ]
    pieces = max(1, min(fold, frames // limits[0] - 1))
    overlap = min(limits[1], frames // (pieces + 1)) if pieces > 1 else 0
    return np.arange(pieces) * (frames - overlap) // pieces, overlap


def settling_samples(config: WaveNetConfig) -> int:
    """Samples after which a stream hears nothing that it did not draw itself, and its de-emphasis has forgotten 60 dB
    of its beginning."""
    factor = config.signal.preemphasis
    return config.receptive_field + (math.ceil(math.log(1e-3) / math.log(factor)) if factor else 0)


def fade_samples(config: WaveNetConfig) -> int:
    return max(1, round(FADE * config.sample_rate))


def join(early: NDArray[np.float32], late: NDArray[np.float32], settle: int, fade: int) -> NDArray[np.float32]:
    """Two versions (n,) of the same stretch as one that begins as `early` and ends as `late`, with a cross-fade of
    `fade` samples at their `meeting_place`."""
    first = meeting_place(early, late, settle, fade)
    last = first + fade
    return np.concatenate([early[:first], cross_fade(early[first:last], late[first:last]), late[last:]])


def meeting_place(early: NDArray[np.float32], late: NDArray[np.float32], settle: int, fade: int) -> int:
    """The first of those `fade` samples, not before `settle`, over which two sounds (n,) differ least; n ≥ settle +
    fade. The energy of the difference counts half as it is and half relative to the sound's: what is quiet hides less
    of it, but it is less."""
    a, b = early.astype(np.float64), late.astype(np.float64)
    difference, energy = _windowed((a - b) ** 2, fade)[settle:], _windowed(a * a + b * b, fade)[settle:]
    floor = 1e-3 * float(energy.mean()) + 1e-12
    return settle + int(np.argmin(difference / np.sqrt(energy + floor)))


def cross_fade(early: NDArray[np.float32], late: NDArray[np.float32]) -> NDArray[np.float32]:
    """From one sound (n,) into another of the same loudness, which the fade keeps: linear where they are alike, of
    equal power where they have nothing in common."""
    a, b = early.astype(np.float64), late.astype(np.float64)
    x = (np.arange(len(a)) + 0.5) / len(a)
    product = float(np.sqrt((a @ a) * (b @ b)))
    alike = min(max(float(a @ b) / product, 0.0), 1.0) if product else 1.0
    gain = np.sqrt((1 - x) ** 2 + x**2 + 2 * x * (1 - x) * alike)
    return np.clip((a + x * (b - a)) / gain, -1, 1).astype(np.float32)


def _windowed(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Sums over `width` neighbours, (n,) → (n − width + 1,)."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return np.asarray(np.maximum(sums[width:] - sums[:-width], 0.0))


@dataclass
class _Piece:
    """Frames [start, stop) of utterance `row`; the first `shared` of them are the last of the piece before."""

    row: int
    start: int
    stop: int
    shared: int
    head: NDArray[np.float32]
    """Its version of the shared frames' sound."""
    made: int = field(default=0)
    """Samples so far."""

    def keep(self, new: NDArray[np.float32], sound: NDArray[np.float32], hop: int) -> None:
        """Put the next samples (n,) where they belong: into `head`, then into the utterance's `sound`."""
        new = new[: (self.stop - self.start) * hop - self.made]
        split = min(max(len(self.head) - self.made, 0), len(new))
        self.head[self.made : self.made + split] = new[:split]
        here = self.start * hop + self.made
        sound[here + split : here + len(new)] = new[split:]
        self.made += len(new)


def vocode_in_pieces(
    engine: Engine,
    mel: NDArray[np.float32],
    counts: NDArray[np.int64],
    seeds: NDArray[np.uint64],
    speakers: NDArray[np.float32] | None,
    fold: int,
    temperature: float,
    threads: int,
    progress: Progress | None,
    sound: NDArray[np.float32],
) -> None:
    """(B, M, F), of which the first counts[b] frames count, into `sound` (B, F·hop), untouched beyond each end.

    Each utterance is cut by its own length, and all pieces are streams of one batch. Beside mel and sound this needs
    the pieces' histories and some 30 MB, however long the utterances are. `progress` counts samples of the sound."""
    config, hop = engine.config, engine.config.hop_length
    pieces = [piece for b, frames in enumerate(counts.tolist()) for piece in _pieces(b, frames, fold, config)]
    state = _begin(engine, mel, pieces, seeds, speakers)
    fed, ends = state.frames.copy(), counts[[p.row for p in pieces]]
    last = np.minimum([p.stop + lookahead_frames(config) for p in pieces], ends)
    step = max(8, _PIECE_VALUES // (len(pieces) * (config.n_mels + hop)))
    work, asked = sum(p.stop - p.start for p in pieces) * hop, int(counts.sum()) * hop
    while (fed < last).any():
        new = np.minimum(last - fed, step)
        block = np.zeros((len(pieces), config.n_mels, int(new.max())), np.float32)
        for part, p, begin, n in zip(block, pieces, fed, new, strict=True):
            part[:, :n] = mel[p.row, :, begin : begin + n]
        fed += new
        done = sum(p.made for p in pieces)

        def tell(samples: int, _: int, done: int = done) -> None:
            assert progress is not None
            progress(min(done + samples, work) * asked // work, asked)

        audio, ready = engine.advance(
            state, block, new, fed == ends, temperature, threads=threads,
            progress=None if progress is None else tell,
        )  # fmt: skip
        for p, part, n in zip(pieces, audio, ready, strict=True):
            p.keep(part[:n], sound[p.row], hop)
    for p in pieces:
        if p.shared:
            stretch = sound[p.row, p.start * hop : (p.start + p.shared) * hop]
            stretch[:] = join(stretch, p.head, settling_samples(config), fade_samples(config))


def _begin(
    engine: Engine,
    mel: NDArray[np.float32],
    pieces: list[_Piece],
    seeds: NDArray[np.uint64],
    speakers: NDArray[np.float32] | None,
) -> State:
    """A stream for each piece, at its first frame; those in the middle have received what they look back and ahead."""
    rows, ahead = [p.row for p in pieces], lookahead_frames(engine.config)
    state: State = engine.start(seeds[rows], None if speakers is None else speakers[rows])
    window = np.zeros((len(pieces), engine.config.n_mels, context_frames(engine.config) + ahead), np.float32)
    for part, p in zip(window, pieces, strict=True):
        known = mel[p.row, :, max(0, p.start - context_frames(engine.config)) : p.start + ahead]
        if p.start:
            part[:, part.shape[1] - known.shape[1] :] = known
    state.begin_at(np.array([p.start for p in pieces]), window)
    return state


def _pieces(row: int, frames: int, fold: int, config: WaveNetConfig) -> list[_Piece]:
    if not frames:
        return []
    starts, overlap = cut(frames, fold, config)
    stops = [*(starts[1:] + overlap).tolist(), frames]
    shared = [0] + [overlap] * (len(starts) - 1)
    return [
        _Piece(row, start, stop, n, np.zeros(n * config.hop_length, np.float32))
        for start, stop, n in zip(starts.tolist(), stops, shared, strict=True)
    ]
