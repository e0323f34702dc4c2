"""Does a mel follow the recipe its voice was trained on? Asked once per call, of at most a few hundred frames."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .checkpoint import Checkpoint
from .errors import AudioError, InputError, MelMismatchWarning
from .inputs import as_waveform
from .mel import explain_mismatch

FRAMES_LOOKED_AT = 512


class Recipe:
    """The recipe of a voice; silent where the checkpoint has no statistics of its training mels."""

    def __init__(self, checkpoint: Checkpoint, strict: bool) -> None:
        self._spec, self._strict = checkpoint.mel, strict
        self._statistics = checkpoint.weights.get("mel.mean"), checkpoint.weights.get("mel.scale")

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
    whole = isinstance(given, (int, float, np.integer, np.floating)) and not isinstance(given, bool) and given > 0
    if not whole:
        raise AudioError(f"sr is {given!r}; give the recording's sample rate in Hz, as the file says")
    if given == wanted:
        return wav
    if not resample:
        raise AudioError(f"the recording has {given} Hz, this voice {wanted} Hz; resample it, or pass resample=True")
    import soxr

    values, form = as_waveform(wav)
    return form.give(np.ascontiguousarray(soxr.resample(values.T, given, wanted, quality="VHQ").T))
