"""Mels → sound files: as many streams at once as --batch says, each written chunk by chunk as it is made.

A lane that has finished its file begins the next one at once, so a long file holds up no other. Every file has the
same seed and its own stream, so what else is vocoded beside it changes none of its samples. With --fold, files are made
one after the other, each whole before it is written: its pieces are the streams.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..audio import WavWriter
from ..errors import InputError, MelMismatchWarning, ShapeError
from .files import Job, Plan
from .options import FORMATS, Settings
from .report import Progress, Report, say

if TYPE_CHECKING:
    from ..streaming import Streaming
    from ..vocoder import Vocoder

CHUNK_SECONDS = 0.1
"""Sound made between two writes, and so what a Ctrl-C may lose."""
LoadMel = Callable[[Job], NDArray[np.float32]]


def facts_of(voice: Vocoder, name: str, settings: Settings) -> dict[str, Any]:
    """What a report says of a run as a whole."""
    temperature = voice.default_temperature if settings.temperature is None else settings.temperature
    return {
        "voice": name,
        "backend": voice.backend,
        "isa": voice.isa,
        "dtype": voice.dtype,
        "device": voice.device,
        "sample_rate": voice.sample_rate,
        "seed": settings.seed,
        "temperature": temperature,
        "fold": settings.fold,
    }


@dataclass
class Lane:
    """One file on its way."""

    job: Job
    mel: NDArray[np.float32]
    output: WavWriter
    fed: int = 0

    @property
    def ended(self) -> bool:
        return bool(self.fed == self.mel.shape[1])

    def take(self, count: int) -> NDArray[np.float32]:
        """The next frames, (M, ≤ count)."""
        frames = self.mel[:, self.fed : self.fed + count]
        self.fed += frames.shape[1]
        return frames


class Speech:
    """A run over the jobs of a plan."""

    def __init__(
        self, voice: Vocoder, plan: Plan, load_mel: LoadMel, settings: Settings, report: Report, progress: Progress
    ) -> None:
        self.voice, self.plan, self.load_mel, self.settings = voice, plan, load_mel, settings
        self.report, self.progress = report, progress
        self.lanes: list[Lane | None] = []
        self.piece = max(1, round(CHUNK_SECONDS * voice.sample_rate / voice.hop_length))

    def run(self) -> None:
        """Vocode every job. Whatever stops it, no unfinished file is left under a name that held a finished one."""
        if self.settings.fold > 1:
            return self._run_folded()
        waiting, s = iter(self.plan.jobs), self.settings
        size = max(1, min(s.batch, len(self.plan.jobs)))
        self.lanes = [None] * size
        with ExitStack() as stack:
            stack.push(self._abandon)
            streams = stack.enter_context(
                self.voice.streaming(size, seed=[s.seed] * size, temperature=s.temperature, speaker=s.speaker)
            )
            # Each mel has been compared with the recipe as a whole, by `_begin`.
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore", MelMismatchWarning)
            while self._fill(waiting):
                self._turn(streams)

    def _run_folded(self) -> None:
        """Vocode the jobs one by one, each in pieces."""
        with ExitStack() as stack:
            stack.push(self._abandon)
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore", MelMismatchWarning)
            for job in self.plan.jobs:
                with self.report.surviving(job):
                    lane = self._begin(job)
                    self.lanes = [lane]
                    lane.output.write(self._folded(lane.mel))
                    self._finish(lane)
                for left in filter(None, self.lanes):
                    left.output.discard()  # nothing to do where it is finished
                self.lanes = []

    def _folded(self, mel: NDArray[np.float32]) -> NDArray[np.float32]:
        s, told, began = self.settings, 0, time.perf_counter()

        def tell(done: int, _: int) -> None:
            nonlocal told
            self.progress.advance((done - told) / self.voice.sample_rate)
            told = done

        sound: NDArray[np.float32] = self.voice(
            mel, seed=s.seed, temperature=s.temperature, speaker=s.speaker, fold=s.fold, progress=tell
        )
        self.report.working += time.perf_counter() - began
        return sound

    def _fill(self, waiting: Iterator[Job]) -> bool:
        """Give every empty lane the next job that can be begun; False when nothing is left to do."""
        for i in range(len(self.lanes)):
            while self.lanes[i] is None and (job := next(waiting, None)) is not None:
                with self.report.surviving(job):
                    self.lanes[i] = self._begin(job)
        return any(lane is not None for lane in self.lanes)

    def _begin(self, job: Job) -> Lane:
        mel = self.load_mel(job)
        self._check(job, mel)
        if self.settings.layout == "tc":
            mel = mel.T
        self.progress.begin(mel.shape[1] * self.voice.hop_length / self.voice.sample_rate)
        if job.target is not None:
            job.target.parent.mkdir(parents=True, exist_ok=True)
        _, encoding, container = FORMATS[self.settings.format]
        return Lane(job, mel, WavWriter(job.target or sys.stdout.buffer, self.voice.sample_rate, encoding, container))

    def _check(self, job: Job, mel: NDArray[np.float32]) -> None:
        """What can be wrong with a mel is found here, before its file is begun: `stream` looks at all of it."""
        s = self.settings
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always", MelMismatchWarning)
            try:
                self.voice.stream(mel, seed=s.seed, temperature=s.temperature, speaker=s.speaker, layout=s.layout)
            except (ShapeError, InputError) as error:
                raise type(error)(f"{job.name}: {error}") from None
        for warning in seen:
            if s.strict_mel and issubclass(warning.category, MelMismatchWarning):
                raise InputError(f"{job.name}: {warning.message}")
            say(f"warning: {job.name}: {warning.message}")

    def _turn(self, streams: Streaming) -> None:
        """Feed every lane its next frames, then end those that have had their last."""
        nothing = np.empty((self.voice.n_mels, 0), np.float32)
        taken = [nothing if lane is None else lane.take(self.piece) for lane in self.lanes]
        counts = np.array([part.shape[1] for part in taken])
        block = np.zeros((len(taken), self.voice.n_mels, int(counts.max())), np.float32)
        for row, part in zip(block, taken, strict=True):
            row[:, : part.shape[1]] = part
        self._write(streams, lambda: streams.step(block, counts))
        ending = np.array([lane is None or lane.ended for lane in self.lanes])
        if not ending.any():
            return
        self._write(streams, lambda: streams.flush(ending))
        for i, lane in enumerate(self.lanes):
            if lane is not None and lane.ended:
                self.lanes[i] = None
                with self.report.surviving(lane.job):
                    self._finish(lane)
        streams.reset(ending)

    def _write(self, streams: Streaming, make: Callable[[], NDArray[np.float32]]) -> None:
        """Append what `make` returns to the files of its lanes; a lane that cannot be written is given up."""
        began = time.perf_counter()
        sound = make()
        self.report.working += time.perf_counter() - began
        for i, (lane, ready) in enumerate(zip(self.lanes, streams.ready.tolist(), strict=True)):
            if lane is None or not ready:
                continue
            self.progress.advance(ready / self.voice.sample_rate, self.report.working)
            with self.report.surviving(lane.job):
                lane.output.write(sound[i, :ready])
                continue
            lane.output.discard()
            self.lanes[i] = None

    def _finish(self, lane: Lane) -> None:
        lane.output.commit()
        self.report.done(lane.job, **self._length(lane))

    def _length(self, lane: Lane) -> dict[str, Any]:
        return {"samples": lane.output.samples, "seconds": lane.output.samples / self.voice.sample_rate}

    def _abandon(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        """After an interrupt, keep what is made and say where; after an error, remove it."""
        for lane in filter(None, self.lanes):
            if error is None or not isinstance(error, KeyboardInterrupt):
                lane.output.discard()
            elif (kept := lane.output.keep_partial(beside=self.plan.many)) is not None:
                told = self._length(lane)
                self.report.interrupted(lane.job, **told, partial=str(kept))
                say(f"stopped; the first {told['seconds']:.2f} s are in {kept}")
