"""Timing an engine beside what its speed is held against, all in one process and in turn, so that a change of the
machine's mood falls on all alike.

A round is one long call, then every reading loop, then chunks of about 10 ms of sound with an empty loop of the same
length after each. A chunk is a whole number of mel frames, because frames are what a stream is given. The collector of
Python's garbage is off meanwhile.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm  # type: ignore[import-untyped]

from . import _engine
from .backends.base import Engine
from .bench_gate import Weights, standard_mel
from .conditioning import lookahead_frames

CHUNK_SECONDS = 0.010
LOOP_SECONDS = 0.02
"""Of one reading loop in one round."""
MAX_MEL_VALUES = 1 << 25
LONG, CHUNKS = 0.4, 0.3
"""Shares of a round's time: the long call and the chunks. The empty loops take as long as the chunks."""


@dataclass
class Load:
    """B streams of an engine and the mel that they are given, again and again."""

    engine: Engine
    weights: Weights
    batch: int
    threads: int

    def __post_init__(self) -> None:
        c = self.engine.config
        self.chunk_frames = max(1, round(CHUNK_SECONDS * c.sample_rate / c.hop_length))
        self.lookahead = lookahead_frames(c)
        self.mel = standard_mel(c, self.weights, self.batch, self.lookahead + 16 * self.chunk_frames)

    @property
    def chunk_samples(self) -> int:
        """Of one stream."""
        return self.chunk_frames * self.engine.config.hop_length

    def start(self) -> Any:
        """Fresh streams, that have heard what the first frame looks ahead to."""
        vectors = np.zeros((self.batch, self.engine.config.speakers.channels), np.float32)
        state = self.engine.start(np.arange(self.batch, dtype=np.uint64), vectors)
        if self.lookahead:
            self.advance(state, self.mel[:, :, : self.lookahead])
        return state

    def advance(self, state: Any, mel: NDArray[np.float32], ended: bool = False) -> int:
        """Samples of each stream for these frames (B, M, n)."""
        frames = np.full(self.batch, mel.shape[2])
        ends = np.full(self.batch, ended)
        sound, _ = self.engine.advance(state, mel, frames, ends, 1.0, threads=self.threads)
        return int(sound.shape[1])

    def chunks(self) -> Iterator[NDArray[np.float32]]:
        """Without end, the frames of one chunk after the other, (B, M, chunk frames)."""
        while True:
            for first in range(self.lookahead, self.mel.shape[2], self.chunk_frames):
                yield self.mel[:, :, first : first + self.chunk_frames]

    def long_mel(self, frames: int) -> NDArray[np.float32]:
        """(B, M, frames), bounded in memory."""
        frames = max(1, min(frames, MAX_MEL_VALUES // (self.batch * self.engine.config.n_mels)))
        mel: NDArray[np.float32] = np.take(self.mel, np.arange(frames) % self.mel.shape[2], axis=2)
        return mel


@dataclass
class Timings:
    """What was measured, in seconds unless said otherwise."""

    rates: list[float] = field(default_factory=list)
    """Samples a second of each stream, one per round: one long call."""
    chunks: list[float] = field(default_factory=list)
    spins: list[float] = field(default_factory=list)
    """Empty loops, one after each chunk."""
    first_audio: list[float] = field(default_factory=list)
    bandwidth: dict[str, list[float]] = field(default_factory=dict)
    """Bytes a second of each reading loop, one per round."""


def run_rounds(load: Load, bytes_read: int, seconds: float, rounds: int) -> Timings:
    """Time a load for about so many seconds. Where one chunk takes long there are fewer rounds, at least one."""
    state, chunks = load.start(), load.chunks()
    load.advance(state, next(chunks))
    typical = float(np.median([_clocked(lambda: load.advance(state, next(chunks))) for _ in range(5)]))
    rounds = max(1, min(rounds, int(seconds / (3 * typical))))
    share = seconds / rounds / typical  # chunks that fit in one round
    mel = load.long_mel(max(load.chunk_frames, round(LONG * share * load.chunk_frames)))
    pairs = max(1, round(CHUNKS * share))
    count = _spin_count(typical, load.threads)
    probe = _engine.ReadProbe(bytes_read, load.threads)
    loops = reading_loops()
    passes = {name: max(1, int(LOOP_SECONDS / probe.run(*loop, 1)[0])) for name, loop in loops.items()}
    timings = Timings(bandwidth={name: [] for name in loops})
    with _no_collection():
        for _ in tqdm(range(rounds), desc="rounds", disable=None, leave=False):
            fresh, began = load.start(), time.perf_counter()
            samples = load.advance(fresh, mel, ended=True)
            timings.rates.append(samples / (time.perf_counter() - began))
            for name, loop in loops.items():
                taken, _ = probe.run(*loop, passes[name])
                timings.bandwidth[name].append(passes[name] * bytes_read / taken)
            timings.first_audio.append(_clocked(lambda: load.advance(load.start(), next(chunks))))
            for _ in range(pairs):
                mel_chunk = next(chunks)
                timings.chunks.append(_clocked(lambda mel_chunk=mel_chunk: load.advance(state, mel_chunk)))
                timings.spins.append(_clocked(lambda: _engine.spin(count, load.threads)))
    return timings


def reading_loops() -> dict[str, tuple[str, str]]:
    """Those worth timing here, by name; not those of an instruction set that is for tests alone."""
    for_tests = {isa["name"] for isa in _engine.isas() if not isa["automatic"]}
    return {f"{isa} {kind}": (isa, kind) for isa, kind in _engine.read_loops() if isa not in for_tests}


def spread(times: NDArray[np.float64]) -> float:
    """p99.9 ÷ p50, of times that occurred."""
    low, high = np.quantile(times, [0.5, 0.999], method="inverted_cdf")
    return float(high / low)


def _clocked(job: Any) -> float:
    began = time.perf_counter()
    job()
    return time.perf_counter() - began


def _spin_count(seconds: float, threads: int) -> int:
    """Turns of the empty loop that take so long."""
    trial = 1_000_000
    shortest = min(_clocked(lambda: _engine.spin(trial, threads)) for _ in range(5))
    return max(1, int(trial * seconds / shortest))


@contextmanager
def _no_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
