"""A `Vocoder` called as other vocoders are: the methods by which Vocos, ParallelWaveGAN and NeMo are called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import inputs
from .errors import InputError
from .inputs import Form, Layout

if TYPE_CHECKING:
    from .vocoder import Vocoder


class PeerCalls:
    """Calls of other projects, with their axes. `options` are those of `Vocoder.__call__`."""

    def decode(self: Vocoder, mel: Any, **options: Any) -> Any:  # type: ignore[misc]
        """Vocos: (B, M, F) → (B, F·hop)."""
        return self(mel, **options)

    def convert_spectrogram_to_audio(self: Vocoder, *, spec: Any, **options: Any) -> Any:  # type: ignore[misc]
        """NeMo: (B, M, F) → (B, F·hop), by keyword only."""
        return self(spec, **options)

    def inference(self: Vocoder, c: Any, normalize_before: bool = False, **options: Any) -> Any:  # type: ignore[misc]
        """ParallelWaveGAN: (F, M), NumPy or torch → a torch tensor (F·hop, 1), on the device of `c`.

        normalize_before: `c` is not normalised by mean and variance, though this voice has statistics to do so; else it
        is as this voice takes it. Raises `InputError` where the voice has none."""
        torch = require_torch("Vocoder.inference")
        if normalize_before and not has_statistics(self):
            raise InputError(
                "normalize_before is True, but this voice has no mean and scale to normalise by; leave it out, and give"
                " the mel as voc.mel makes it"
            )
        values, form = (from_raw if normalize_before else _as_it_is)(self, c, "tc")
        sound = torch.as_tensor(self(values, **options), device=form.device)
        return sound[..., None] if form.batched else sound[0, :, None]


def has_statistics(voc: Vocoder) -> bool:
    """Whether the voice normalises mels, or takes them normalised, by statistics of its own."""
    uses = voc.mel_spec.normalize == "meanvar" or voc.config.conditioning.standardise
    return uses and voc.mel_statistics is not None


def from_raw(voc: Vocoder, mel: Any, layout: Layout) -> tuple[NDArray[Any], Form]:
    """A mel that is not normalised by mean and variance, as the voice takes it, (B, M, F), and the form it came in.

    A voice whose recipe is "meanvar" takes it normalised; one that standardises by itself takes it as it is."""
    values, form = _as_it_is(voc, mel, layout)
    statistics = voc.mel_statistics
    if voc.mel_spec.normalize == "meanvar" and statistics is not None:
        mean, scale = (part.astype(np.float64)[:, None] for part in statistics)
        values = (values - mean) / scale
    return values, form


def _as_it_is(voc: Vocoder, mel: Any, layout: Layout) -> tuple[NDArray[Any], Form]:
    return inputs.as_mel(mel, voc.n_mels, layout)


def require_torch(what: str) -> Any:
    try:
        import torch
    except ImportError:
        raise ImportError(
            f'{what} gives torch tensors, and PyTorch is not installed; `pip install "wavenet-fast[torch]"` adds it'
        ) from None
    return torch
