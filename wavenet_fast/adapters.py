"""A `Vocoder` where torchaudio or Hugging Face expect one of theirs, and ParallelWaveGAN's `load_model`.

vocoder = wavenet_fast.adapters.torchaudio(voc)     # was: bundle.get_vocoder()
vocoder = wavenet_fast.adapters.hf(voc)             # was: SpeechT5HifiGan.from_pretrained(…)
"""

from __future__ import annotations

from typing import Any

from .inputs import as_counts
from .mel_convert import Recipe
from .nn import Attributes, VoiceModule, load_model
from .peer_calls import from_raw
from .vocoder import Vocoder

__all__ = ["HuggingFaceVocoder", "TorchaudioVocoder", "espnet", "hf", "load_model", "torchaudio"]


class TorchaudioVocoder(VoiceModule):
    """`torchaudio.pipelines.Tacotron2TTSBundle.Vocoder`: (specgrams, lengths) → (waveforms, lengths)."""

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return self.voc.sample_rate

    def forward(self, specgrams: Any, lengths: Any = None) -> tuple[Any, Any]:
        """specgrams (B, M, F), lengths (B,) in frames or None for all → waveforms (B, F·hop), zero beyond each end, and
        their lengths (B,) in samples."""
        frames = as_counts(lengths, len(specgrams), specgrams.shape[-1], "lengths")
        sound, samples = self.voc(self.own_mel(specgrams), lengths=frames, **self.options)
        return sound, samples


class HuggingFaceVocoder(VoiceModule):
    """`transformers.SpeechT5HifiGan`: spectrogram (B, F, M) or (F, M) → (B, F·hop) or (F·hop,). Goes where
    `generate_speech(vocoder=…)` and `pipeline("text-to-audio", vocoder=…)` take one.

    The spectrogram is not normalised by mean and variance; a voice that wants it so normalises it here, as theirs does.
    SpeechT5 makes log10 values (preset "speecht5-16k"); for a voice of another logarithm give `mel_from="log10"`.
    ESPnet2's `Text2Speech.vocoder` is called in the same way, and asked for its `fs`.
    """

    def __init__(self, voc: Vocoder, mel_from: Recipe | None = None, **options: Any) -> None:
        super().__init__(voc, mel_from, **options)
        self.config = Attributes(sampling_rate=voc.sample_rate, model_in_dim=voc.n_mels, normalize_before=True)
        self.fs = voc.sample_rate

    def forward(self, spectrogram: Any, **_: Any) -> Any:
        if self.mel_from is not None:
            return self.voc(self.own_mel(spectrogram, "tc"), layout="tc", **self.options)
        values, form = from_raw(self.voc, spectrogram, "tc")
        return form.give(self.voc(values, **self.options))


def torchaudio(voc: Vocoder, mel_from: Recipe | None = None, **options: Any) -> TorchaudioVocoder:
    """The voice as torchaudio's vocoder. `mel_from` and `options` as for `VoiceModule`."""
    return TorchaudioVocoder(voc, mel_from, **options)


def hf(voc: Vocoder, mel_from: Recipe | None = None, **options: Any) -> HuggingFaceVocoder:
    """The voice as Hugging Face's vocoder. `mel_from` and `options` as for `VoiceModule`."""
    return HuggingFaceVocoder(voc, mel_from, **options)


def espnet(voc: Vocoder, mel_from: Recipe | None = None, **options: Any) -> HuggingFaceVocoder:
    """The voice as the `vocoder` of ESPnet2's `Text2Speech`, which gives it features that are not normalised."""
    return HuggingFaceVocoder(voc, mel_from, **options)
