"""What the number formats of the backend `cpu` cost a voice, measured on recordings: behind `wavenet-fast check`.

Two questions, per number format. What does it cost? Bits per sample, teacher-forced, less those of fp32, over all
samples of all recordings. And does the engine compute what it should? Every stage over the beginning of the first
recording, under forced history, against the PyTorch reference that rounds where the engine rounds.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .audio import read_audio
from .checkpoint import Checkpoint
from .errors import AudioError, BackendError, InputError, MelMismatchWarning, WavenetFastError
from .format_costs import FormatCost, FormatCosts, weights_fingerprint
from .inputs import as_speakers
from .packing import DTYPES
from .stages import StageError, beginning_of, stage_errors
from .vocoder import Vocoder

Watch = Callable[[int, int], None]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Recording:
    """One recording and its bits per sample in every number format that could be measured."""

    path: Path
    samples: int
    bits: Mapping[str, float]


@dataclass
class Outcome:
    """What was measured. `problems`: number format → why it was not; `failed`: recordings left out, and why."""

    fingerprint: str
    sample_rate: int
    isa: str
    recordings: list[Recording] = field(default_factory=list)
    failed: list[tuple[Path, str]] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)
    stages: dict[str, dict[str, StageError]] = field(default_factory=dict)
    """Number format → stage → error."""
    stages_against: str = ""
    stage_samples: int = 0

    @property
    def formats(self) -> list[str]:
        """Number formats measured on every recording."""
        return [dtype for dtype in DTYPES if dtype not in self.problems]

    @property
    def seconds(self) -> float:
        return sum(r.samples for r in self.recordings) / self.sample_rate

    def bits(self, dtype: str) -> float:
        """Per sample, over all samples."""
        samples = [r.samples for r in self.recordings]
        return float(np.average([r.bits[dtype] for r in self.recordings], weights=samples))

    def cost(self, dtype: str) -> FormatCost:
        """Against fp32."""
        differences = [r.bits[dtype] - r.bits["fp32"] for r in self.recordings]
        return weighted_cost(differences, [r.samples for r in self.recordings])

    def record(self) -> FormatCosts:
        """For `checkpoint.record_costs`, rounded to what can be told apart."""
        costs = {dtype: _rounded(self.cost(dtype)) for dtype in self.formats}
        return FormatCosts(
            weights=self.fingerprint,
            recordings=len(self.recordings),
            seconds=round(self.seconds, 3),
            bits_fp32=round(self.bits("fp32"), 6),
            bf16=costs.get("bf16"),
            fp16=costs.get("fp16"),
            int8=costs.get("int8"),
        )

    def to_dict(self) -> dict[str, Any]:
        """For programs. Bits are per sample; stage errors in standard deviations of the stage."""
        formats: dict[str, Any] = {dtype: {"problem": why} for dtype, why in self.problems.items()}
        for dtype in self.formats:
            stages = {name: asdict(error) for name, error in self.stages.get(dtype, {}).items()}
            cost = self.cost(dtype)
            formats[dtype] = {
                "bits": self.bits(dtype), "cost_bits": cost.cost_bits, "standard_error": cost.standard_error,
                "stages": stages,
            }  # fmt: skip
        recordings = [{"file": str(r.path), "samples": r.samples, "bits": dict(r.bits)} for r in self.recordings]
        return {
            "weights": self.fingerprint, "isa": self.isa, "seconds": self.seconds, "formats": formats,
            "stages_against": self.stages_against, "stage_samples": self.stage_samples,
            "recordings": recordings, "failed": [{"file": str(p), "error": why} for p, why in self.failed],
        }  # fmt: skip


def _rounded(cost: FormatCost) -> FormatCost:
    return FormatCost(round(cost.cost_bits, 7), None if cost.standard_error is None else round(cost.standard_error, 7))


def weighted_cost(differences: Sequence[float], samples: Sequence[int]) -> FormatCost:
    """The mean of the recordings' differences, weighted by samples, and its standard error over recordings."""
    d, n = np.asarray(differences, np.float64), np.asarray(samples, np.float64)
    mean, count = float(np.average(d, weights=n)), len(d)
    if count < 2:
        return FormatCost(mean)
    variance = count / (count - 1) * np.sum((n * (d - mean)) ** 2) / n.sum() ** 2
    return FormatCost(mean, float(np.sqrt(variance)))


# --- measuring --------------------------------------------------------------------------------------------------


def check_voice(
    checkpoint: Checkpoint,
    paths: Sequence[Path],
    speaker: Any = None,
    say: Say = lambda line: None,
    watch: Watch = lambda done, total: None,
) -> Outcome:
    """Measure every number format of the backend `cpu` on the recordings at `paths`.

    Recordings at another sample rate are resampled. One that cannot be used is told to `say` and left out; so is a
    number format that cannot hold these weights. `speaker` as for `Vocoder.nll`; `watch(steps done, steps in all)`.
    Raises `BackendError` where the backend does not work here, `InputError` for the speaker, `AudioError` where no
    recording can be used."""
    table = checkpoint.weights.get("speakers.weight")
    vectors = as_speakers(speaker, 1, checkpoint.config.speakers, table)
    voices, problems = _voices(checkpoint)
    for dtype, why in problems.items():
        say(f"{dtype}: {why}; it is left out")
    outcome = Outcome(
        weights_fingerprint(checkpoint.weights),
        checkpoint.config.sample_rate,
        voices["fp32"].isa,
        problems=dict(problems),
    )
    steps = _Steps(watch, len(voices) * (len(paths) + 1))
    beginning = None
    for path in paths:
        try:
            wav, mel, bits = _measure(voices, path, speaker, outcome, steps)
        except (WavenetFastError, MemoryError) as error:
            why = str(error) or "not enough memory"
            outcome.failed.append((path, why))
            say(f"{why if why.startswith(str(path)) else f'{path}: {why}'}; it is left out")
        else:
            outcome.recordings.append(Recording(path, min(len(wav), mel.shape[1] * voices["fp32"].hop_length), bits))
            beginning = beginning or beginning_of(checkpoint.config, mel, wav)
        steps.reach(len(voices) * (len(outcome.recordings) + len(outcome.failed)))
    if beginning is None:
        raise AudioError(f"none of the {len(paths)} recordings can be used; {outcome.failed[0][1]}")
    for dtype, why in outcome.problems.items():
        if dtype not in problems:
            say(f"{dtype}: {why}; it is left out")
    outcome.stage_samples, vector = len(beginning.history), None if vectors is None else vectors[0]
    with_torch = importlib.util.find_spec("torch") is not None
    outcome.stages_against = "the PyTorch reference, rounding alike" if with_torch else "the engine's portable code"
    for dtype in outcome.formats if with_torch else ["fp32"]:
        outcome.stages[dtype] = stage_errors(checkpoint, dtype, beginning, vector, not with_torch)
        steps.one()
    return outcome


class _Steps:
    """Counts the work that is done."""

    def __init__(self, watch: Watch, total: int) -> None:
        self._watch, self._total, self._done = watch, total, 0
        watch(0, total)

    def reach(self, done: int) -> None:
        self._done = done
        self._watch(done, self._total)

    def one(self) -> None:
        self.reach(self._done + 1)


def _voices(checkpoint: Checkpoint) -> tuple[dict[str, Vocoder], dict[str, str]]:
    """The voice in every number format that can hold it, and why the others cannot."""
    voices, problems = {}, {}
    for dtype in DTYPES:
        try:
            voices[dtype] = Vocoder(checkpoint, "cpu", dtype=dtype)
        except BackendError as error:
            if dtype == "fp32":
                raise
            problems[dtype] = str(error)
    return voices, problems


def _measure(
    voices: Mapping[str, Vocoder], path: Path, speaker: Any, outcome: Outcome, steps: _Steps
) -> tuple[NDArray[np.float32], NDArray[np.float32], dict[str, float]]:
    """The sound (N,), its mel (M, F) and the bits per sample of every number format."""
    plain = voices["fp32"]
    wav, rate = read_audio(path, plain.sample_rate, resample=True)
    mel = plain.mel(wav, rate)
    bits = {}
    for dtype, voice in voices.items():
        with warnings.catch_warnings():
            if voice is not plain:  # said once is enough
                warnings.simplefilter("ignore", MelMismatchWarning)
            found = voice.nll(mel, wav, speaker)
        if math.isfinite(found):
            bits[dtype] = found
        elif voice is plain:
            raise InputError(f"its likelihood is {found} in fp32; this voice cannot be judged by it")
        else:
            outcome.problems.setdefault(dtype, f"the likelihood of {path} is {found}")
        steps.one()
    return wav, mel, bits


# --- for people -------------------------------------------------------------------------------------------------


def format_outcome(outcome: Outcome) -> str:
    """The tables of costs and of stage errors; of the layers of one stage the worst is shown."""
    return "\n".join([*_cost_table(outcome), "", *_stage_table(outcome)])


def _cost_table(outcome: Outcome) -> Iterator[str]:
    yield f"{len(outcome.recordings)} recordings, {outcome.seconds:.1f} s, {outcome.isa}; bits per sample"
    yield ""
    yield f"{'format':8}{'bits':>10}{'cost':>11}{'standard error':>17}"
    for dtype in outcome.formats:
        cost = outcome.cost(dtype)
        error = "–" if cost.standard_error is None or dtype == "fp32" else f"{cost.standard_error:.6f}"
        costs = "–" if dtype == "fp32" else f"{cost.cost_bits:+.6f}"
        yield f"{dtype:8}{outcome.bits(dtype):>10.4f}{costs:>11}{error:>17}"
    for dtype, why in outcome.problems.items():
        yield f"{dtype:8}{why}"


def _stage_table(outcome: Outcome) -> Iterator[str]:
    formats = list(outcome.stages)
    yield (
        f"stage errors over the first {outcome.stage_samples} samples against {outcome.stages_against}: largest and"
        " root mean square, in standard deviations of the stage"
    )
    if formats == ["fp32"] and len(outcome.formats) > 1:
        yield 'PyTorch is not installed, so the other formats are left out; pip install "wavenet-fast[torch]" adds it'
    yield ""
    yield f"{'stage':14}" + "".join(f"{dtype:>20}" for dtype in formats)
    for kind in dict.fromkeys(name.partition(".")[0] for name in outcome.stages[formats[0]]):
        cells = []
        for dtype in formats:
            worst = _worst(e for name, e in outcome.stages[dtype].items() if name.partition(".")[0] == kind)
            cells.append(f"{worst.largest:.1e} {worst.rms:.1e}")
        yield f"{kind:14}" + "".join(f"{cell:>20}" for cell in cells)


def _worst(errors: Iterable[StageError]) -> StageError:
    found = list(errors)
    return StageError(max(e.largest for e in found), max(e.rms for e in found))
