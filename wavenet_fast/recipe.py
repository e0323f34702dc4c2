"""Does a mel follow the recipe its voice was trained on? Asked of its values, once per call, of at most a few hundred
frames; and in words, of the recipe that a mel file carries."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .checkpoint import Checkpoint
from .config import MAX_RATE, MIN_RATE, MelSpec
from .errors import AudioError, InputError, MelMismatchWarning
from .inputs import as_waveform
from .mel import checked_statistic, hann_window, mel_filterbank

FRAMES_LOOKED_AT = 512


class Recipe:
    """The recipe of a voice. Where the checkpoint has no statistics of its training mels, as those of other projects
    have none, it is compared with what speech in general gives; silent where no recipe is known."""

    def __init__(self, checkpoint: Checkpoint, strict: bool) -> None:
        self._spec, self._strict = checkpoint.mel, strict
        self._statistics = checkpoint.weights.get("mel.mean"), checkpoint.weights.get("mel.scale")
        if self._spec.normalize == "elsewhere":
            self._statistics = None, None
        elif any(part is None for part in self._statistics):
            self._statistics = speech_statistics(self._spec)

    def check(self, mel: NDArray[np.float32], counts: NDArray[np.int64]) -> None:
        """`MelMismatchWarning`, or `InputError` where strict, for a mel (B, M, F) that looks like another recipe's.

        Only the first counts[b] frames of utterance b are looked at."""
        mean, scale = self._statistics
        total = int(counts.sum())
        if mean is None or scale is None or not total:
            return
        ends = np.cumsum(counts)
        chosen = np.unique(np.linspace(0, total - 1, min(total, FRAMES_LOOKED_AT)).astype(np.int64))
        owner = np.searchsorted(ends, chosen, side="right")
        frames = mel[owner, :, chosen - (ends - counts)[owner]].T
        explanation = explain_mismatch(frames, mean, scale, self._spec)
        if explanation is None:
            return
        if self._strict:
            raise InputError(explanation)
        warnings.warn(explanation, MelMismatchWarning, stacklevel=_callers_level())


def _callers_level() -> int:
    """The stack level, as `warnings` counts it from the function above, of the first frame outside this package."""
    package, level = __name__.partition(".")[0], 1
    frame: Any = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        frame, level = frame.f_back, level + 1
    return level


def at_rate(wav: Any, given: int, wanted: int, resample: bool) -> Any:
    """A recording (N,) or (B, N) at the wanted sample rate, Hz; resampled by soxr only on request."""
    number = isinstance(given, (int, float, np.integer, np.floating)) and not isinstance(given, bool)
    if not number or not MIN_RATE <= given <= MAX_RATE:
        possible = f"{MIN_RATE} … {MAX_RATE} Hz"
        raise AudioError(f"sr is {given!r}; give the recording's sample rate, {possible}, as the file says")
    if given == wanted:
        return wav
    if not resample:
        raise AudioError(f"the recording has {given} Hz, this voice {wanted} Hz; resample it, or pass resample=True")
    import soxr

    values, form = as_waveform(wav)
    return form.give(np.ascontiguousarray(soxr.resample(values.T, given, wanted, quality="VHQ").T))


def recipe_differences(given: MelSpec, wanted: MelSpec) -> str:
    """The fields in which two recipes differ, with both values."""
    fields = [f for f in given.__struct_fields__ if getattr(given, f) != getattr(wanted, f)]
    return ", ".join(f"{f} is {getattr(given, f)}, wanted {getattr(wanted, f)}" for f in fields)


_UNIT_DECIBELS, _NOT_NORMALISED = "decibels mapped to 0 … 1", "a mel that was not normalised by mean and variance"
_KIND_OF = {
    "natural logarithms": "ln",
    "log10 values": "log10",
    "decibels": "db",
    "decibels less a reference of 20 dB": "db-20",
    _UNIT_DECIBELS: "unit",
}
"""What a mel looks like → its short name in `mel_convert.KINDS`."""
_LEAST_FRAMES, _LEAST_WITHOUT_NEGATIVES = 100, 10
"""About a second: on less, only values that no speech takes count as evidence. Logarithms of speech of which none is
below zero are no speech sooner."""


def explain_mismatch(mel: NDArray[Any], mean: NDArray[Any], scale: NDArray[Any], spec: MelSpec) -> str | None:
    """A sentence where `mel` looks like another recipe's than `spec`, else None.

    mel: (M, F) or (B, M, F); mean, scale: (M,) mean and standard deviation of the training mels, before the
    normalisation where spec.normalize is "meanvar".

    Every way of reading the values (as they should be, as decibels, …) is a hypothesis: brought to the domain of the
    training mels they should follow, per band, a Student distribution of 4 degrees of freedom with that mean and
    deviation. The mean log-likelihoods per value, with the Jacobian of the change of variables, decide. The limits
    leave room for recordings 30 dB too quiet or 10 dB too loud. A power taken for a magnitude is not found: it is
    too much like a quiet recording.
    """
    values = np.moveaxis(np.asarray(mel, np.float64), -2, -1).reshape(-1, spec.n_mels)
    if not len(values):
        return None
    per_neper = {"ln": spec.power, "log10": spec.power / np.log(10), "db": 20 / np.log(10)}[spec.log]
    unit = float(per_neper / -spec.min_db if spec.normalize == "minmax01" else per_neper)
    mean = checked_statistic("mean", mean, spec)
    # Bands that rest on the floor have next to no deviation.
    scale = np.maximum(checked_statistic("scale", scale, spec), 0.1 * unit)

    fits: dict[str, float] = {}
    for name, reading, log_slope in _readings(values, mean, scale, unit, spec):
        z = (reading - mean) / scale
        fits[name] = float(np.mean(log_slope) - 2.5 * np.mean(np.log1p(z * z / 4)))
        if not name:
            plain = float(-2.5 * np.mean(np.log1p(z * z / 4)))
            outside = float(np.mean(np.median(np.abs(z), axis=1) > 8))
    expected = fits.pop("")
    cause = max(fits, key=lambda name: fits[name])
    telling = values.min() >= 0 > mean.min()
    enough = len(values) >= (_LEAST_WITHOUT_NEGATIVES if telling else _LEAST_FRAMES)
    gain = fits[cause] - expected
    if enough and spec.normalize != "minmax01" and values.min() >= 0 and values.max() <= 1:
        cause = _UNIT_DECIBELS if gain < 2.5 else cause
    elif not (outside > 0.2 or (enough and gain > (1.2 if plain < -0.9 else 2.5))):
        return None
    usual = 0.0 if spec.normalize == "meanvar" else float(np.median(mean))
    return (
        f"the mel's median is {np.median(values):.3g} where this voice expects about {usual:.3g}: it looks like"
        f" {cause}, and the voice wants log={spec.log!r}, power={spec.power}, normalize={spec.normalize!r};"
        f" compute it by the voice's own recipe (Vocoder.mel, or `wavenet-fast mel`){_conversion(cause, spec)}"
    )


def _conversion(cause: str, spec: MelSpec) -> str:
    """How a mel of that cause is converted, where it can be."""
    kind = _KIND_OF.get(cause, spec.log if cause == _NOT_NORMALISED and spec.log != "db" else None)
    return "" if kind is None else f", or convert it: convert_mel(mel, {kind!r}, voc), --mel-from {kind}"


SPEECH_LEVEL, SPEECH_TILT, SPEECH_SPREAD = -3.5, -0.9, 2.5
"""Of speech in general, in units of ln of a magnitude: the mean below 300 Hz, what an octave above that changes it by,
and the standard deviation."""


def speech_statistics(spec: MelSpec) -> tuple[NDArray[Any], NDArray[Any]]:
    """Mean and standard deviation (M,) that mels of this recipe have about, of speech of any speaker; before the
    normalisation where spec.normalize is "meanvar".

    Over 32 recordings of 10 languages, 5 presets with each logarithm, levels of −30 … +10 dB and pieces of 10 frames up
    to all, none of 9600 mels of the recipe itself was taken for another's by `explain_mismatch`."""
    filters, window = mel_filterbank(spec), hann_window(spec)
    total = np.maximum(filters.sum(axis=1), 1e-12)
    centre = filters @ np.arange(filters.shape[1]) / total * (spec.sample_rate / spec.n_fft)
    level = SPEECH_LEVEL + SPEECH_TILT * np.log2(np.maximum(centre, 300) / 300) + 0.5 * np.log((window**2).sum())
    linear = np.maximum(np.log(total) + spec.power * level, np.log(spec.floor))
    unit = {"ln": 1.0, "log10": 1 / np.log(10), "db": 20 / spec.power / np.log(10)}[spec.log]
    mean = unit * linear - (spec.ref_db if spec.log == "db" else 0.0)
    scale = np.full(spec.n_mels, SPEECH_SPREAD * unit * spec.power)
    if spec.normalize == "minmax01":
        return np.clip(1 - mean / spec.min_db, 0, 1), scale / -spec.min_db
    return mean, scale


def _readings(
    values: NDArray[Any], mean: NDArray[Any], scale: NDArray[Any], unit: float, spec: MelSpec
) -> Iterator[tuple[str, NDArray[Any], NDArray[Any] | float]]:
    """(name, values in the domain of `mean` and `scale`, ln of the derivative); the expected reading first, unnamed.

    `unit` is what a factor of e in magnitude adds to a value of that domain."""
    offset = -spec.ref_db if spec.log == "db" else 0.0
    if spec.normalize == "minmax01":
        offset = 1 - offset / spec.min_db
    normalised, slope = values * scale + mean, np.log(scale)
    if spec.normalize == "meanvar":
        yield "", normalised, slope
        yield _NOT_NORMALISED, values, 0.0
    else:
        yield "", values, 0.0
        yield "a mel normalised by mean and variance", normalised, slope
    yield "the mel of a waveform in 16-bit integer units", values - unit * np.log(32768), 0.0
    for name, per_neper, zero in (
        ("natural logarithms", spec.power, 0.0),
        ("log10 values", spec.power / np.log(10), 0.0),
        ("decibels", 20 / np.log(10), 0.0),
        ("decibels less a reference of 20 dB", 20 / np.log(10), -20.0),
        (_UNIT_DECIBELS, 0.2 / np.log(10), 0.8),
    ):
        if not np.allclose((unit, offset), (per_neper, zero)):
            yield name, (values - zero) * (unit / per_neper) + offset, float(np.log(unit / per_neper))
    if values.min() >= 0:
        linear = np.maximum(values, spec.floor)
        slope = np.where(values > spec.floor, np.log(unit / linear), 0.0)
        yield "linear magnitudes, without a logarithm", unit * np.log(linear) + offset, slope
