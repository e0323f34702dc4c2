"""A `Vocoder` as a PyTorch module, called as HiFi-GAN, BigVGAN and ParallelWaveGAN are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .checkpoint import WEIGHTS
from .errors import CheckpointError
from .mel_convert import Recipe, convert_mel
from .peer_calls import has_statistics, require_torch
from .vocoder import Vocoder

torch = require_torch("wavenet_fast.nn")


class VoiceModule(torch.nn.Module):  # type: ignore[misc, name-defined]
    """What all modules over a voice share. Sound is made where the voice's backend runs, and comes back to the mel's
    device; nothing is learned, so there is no gradient, and `to`, `eval` and the like change nothing.

    voc       the voice
    mel_from  the recipe of the mels that will be given, where it is another than the voice's: see `convert_mel`
    options   of every call: seed, temperature, speaker, fold (`Vocoder.__call__`)
    """

    def __init__(self, voc: Vocoder, mel_from: Recipe | None = None, **options: Any) -> None:
        super().__init__()
        self.voc, self.mel_from, self.options = voc, mel_from, options
        # Scripts ask `next(model.parameters()).device` where to put the mel.
        self.where = torch.nn.Parameter(torch.empty(0), requires_grad=False)

    def own_mel(self, mel: Any, layout: Any = "ct") -> Any:
        """The mel by the voice's own recipe."""
        return mel if self.mel_from is None else convert_mel(mel, self.mel_from, self.voc, layout=layout)

    def remove_weight_norm(self) -> None:
        """Nothing: a voice holds plain weights."""

    def extra_repr(self) -> str:
        return repr(self.voc)


class VocoderModule(VoiceModule):
    """HiFi-GAN's and BigVGAN's generator: (B, M, F) → (B, 1, F·hop); ParallelWaveGAN's `inference`.

    h            the recipe by HiFi-GAN's names: sampling_rate, num_mels, n_fft, hop_size, win_size, fmin, fmax
    mean, scale  (M,) buffers, where the voice has statistics: ESPnet then passes mels that are not normalised
    """

    def __init__(self, voc: Vocoder, mel_from: Recipe | None = None, **options: Any) -> None:
        super().__init__(voc, mel_from, **options)
        spec = voc.mel_spec
        self.h = Attributes(
            sampling_rate=spec.sample_rate, num_mels=spec.n_mels, n_fft=spec.n_fft, hop_size=spec.hop_length,
            win_size=spec.win_length, fmin=spec.fmin, fmax=spec.fmax,
        )  # fmt: skip
        if has_statistics(voc):
            for name, value in zip(("mean", "scale"), voc.mel_statistics or (), strict=True):
                self.register_buffer(name, torch.from_numpy(value))

    def forward(self, mel: Any) -> Any:
        """(B, M, F) → (B, 1, F·hop), or (M, F) → (1, F·hop)."""
        return self.voc(self.own_mel(mel), **self.options).unsqueeze(-2)

    def inference(self, c: Any, normalize_before: bool = False) -> Any:
        """(F, M) → (F·hop, 1): see `Vocoder.inference`. With `mel_from` that says how `c` is normalised."""
        converted = self.mel_from is not None
        return self.voc.inference(self.own_mel(c, "tc"), normalize_before and not converted, **self.options)


class Attributes(dict[str, Any]):
    """A dictionary whose keys are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"there is no {name!r}; there are {', '.join(self)}") from None


def load_model(
    checkpoint: str | os.PathLike[str], config: Any = None, stats: Any = None, **options: Any
) -> VocoderModule:
    """ParallelWaveGAN's `load_model`, for a voice: a directory, its model.safetensors, or any name that
    `Vocoder.from_pretrained` takes. `options` are those of `VocoderModule`.

    config, stats: a voice brings its own. A dictionary as `config` is held against it where both name the same thing;
    files are not read. Raises `CheckpointError` where sampling_rate, hop_size or num_mels differ, and what
    `from_pretrained` raises."""
    path = Path(checkpoint)
    voc = Vocoder.from_pretrained(path.parent if path.name == WEIGHTS else checkpoint)
    module = VocoderModule(voc, **options)
    if isinstance(config, Mapping):
        for name in ("sampling_rate", "hop_size", "num_mels"):
            if name in config and config[name] != module.h[name]:
                raise CheckpointError(
                    f"{checkpoint}: has {name} {module.h[name]}, and the config that was given says {config[name]};"
                    " give the voice that belongs to that config, or leave config out"
                )
    return module
