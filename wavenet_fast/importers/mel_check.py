"""Does a recording give the mel that another project made of it, by the recipe that a voice was given?"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import Checkpoint
from ..config import MelSpec
from ..errors import InputError
from ..mel import MEL_PRESETS, mel_spectrogram

LIMIT = 0.05
"""Root mean square difference, in standard deviations of the mel. The same recipe leaves what a project did to the
recording before, such as a filter below the lowest band; another one differs by more than 0.3."""
MOST_FRAMES_APART = 8


def difference(wav: NDArray[Any], mel: NDArray[Any], spec: MelSpec, mean: Any = None, scale: Any = None) -> float:
    """Root mean square difference between `mel` (M, F) and that of `wav` (N,), in standard deviations of `mel`.

    Raises `InputError` where their lengths cannot be those of one utterance."""
    made = mel_spectrogram(wav, spec, mean, scale)
    frames = min(made.shape[1], mel.shape[1])
    if abs(made.shape[1] - mel.shape[1]) > MOST_FRAMES_APART:
        raise InputError(f"the recording has {made.shape[1]} frames by this recipe, the mel {mel.shape[1]}")
    apart = made[:, :frames].astype(np.float64) - mel[:, :frames]
    return float(np.sqrt(np.mean(apart**2)) / (mel.std() or 1.0))


def check(checkpoint: Checkpoint, wav: NDArray[Any], mel: NDArray[Any]) -> float:
    """The difference, which is at most `LIMIT`. mel (M, F), or (F, M) as r9y9's and kan-bayashi's files hold it.

    Raises `InputError` that names the recipe which comes nearest where it is larger."""
    spec, weights = checkpoint.mel, checkpoint.weights
    if spec.normalize == "elsewhere":
        raise InputError("--mel-check compares a recipe, and this voice was given none (--mel elsewhere)")
    if mel.shape[0] != spec.n_mels and mel.shape[1] == spec.n_mels:
        mel = mel.T
    if mel.shape[0] != spec.n_mels:
        raise InputError(f"the mel has shape {mel.shape}; this voice has {spec.n_mels} bands")
    statistics = weights.get("mel.mean"), weights.get("mel.scale")
    found = difference(wav, mel, spec, *statistics)
    if found <= LIMIT:
        return found
    others = {}
    for name, other in MEL_PRESETS.items():
        alike = (other.sample_rate, other.hop_length, other.n_mels) == (spec.sample_rate, spec.hop_length, spec.n_mels)
        if alike and not (other.normalize == "meanvar" and statistics[0] is None):
            others[name] = difference(wav, mel, other, *statistics)
    best = min(others, key=lambda name: others[name], default=None)
    nearest = "" if best is None else f"; nearest is --mel {best}, with {others[best]:.3f}"
    raise InputError(
        f"by the recipe of this voice the recording's mel differs from the one given by {found:.3f} of its standard"
        f" deviation, and {LIMIT} is allowed{nearest}"
    )
