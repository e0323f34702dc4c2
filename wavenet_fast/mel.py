"""Waveform → log-mel spectrogram, by recipe (`MelSpec`), in NumPy or, given a torch tensor, in torch.

Both run the same lines in float64 and in blocks of frames, so that memory beyond input and output stays at a few
megabytes and every value agrees with librosa's to 1e-5 relative.
"""

import sys
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .config import MelSpec
from .errors import InputError, ShapeError

Array = NDArray[Any]

_BLOCK_VALUES = 1 << 19
"""Windowed samples held at once: 4 MiB of float64."""


def _recipe(rate: int, n_fft: int, hop: int, win: int, bands: int, fmin: float, fmax: float, **rest: Any) -> MelSpec:
    sizes: dict[str, Any] = {"sample_rate": rate, "n_fft": n_fft, "hop_length": hop, "win_length": win, "n_mels": bands}
    return MelSpec(**sizes, fmin=fmin, fmax=fmax, **rest)


_HIFIGAN: dict[str, Any] = {"center": False, "epsilon": 1e-9}
_LOG10: dict[str, Any] = {"log": "log10", "floor": 1e-10}
_PWG: dict[str, Any] = {**_LOG10, "normalize": "meanvar"}
_VOCOS: dict[str, Any] = {"mel_scale": "htk", "mel_norm": "none", "floor": 1e-7}

# Recipes as their projects' own configurations give them. What a project does to recordings before (trimming, r9y9's
# 70 Hz high-pass, loudness) is no part of the mel. r9y9's old generation (lws frames) cannot be said in a MelSpec.
MOST_CHANNELS = 8
"""A waveform with no more columns and more rows than that has its axes the wrong way round."""

MEL_PRESETS: dict[str, MelSpec] = {
    # AutoVC and SpeechSplit, make_spect.py: decibels less 16, mapped to 0 … 1, of a recording filtered above 30 Hz.
    "autovc-16k": _recipe(
        16000, 1024, 256, 1024, 80, 90, 7600, log="db", floor=1e-5, ref_db=16.0, normalize="minmax01"
    ),
    "hifigan-22k": _recipe(22050, 1024, 256, 1024, 80, 0, 8000, **_HIFIGAN),
    "bigvgan-22k": _recipe(22050, 1024, 256, 1024, 80, 0, 11025, **_HIFIGAN),  # bigvgan_v2_22khz_80band_256x
    "bigvgan-22k-fmax8k": _recipe(22050, 1024, 256, 1024, 80, 0, 8000, **_HIFIGAN),  # …_fmax8k_256x and version 1
    "bigvgan-24k": _recipe(24000, 1024, 256, 1024, 100, 0, 12000, **_HIFIGAN),
    "bigvgan-44k": _recipe(44100, 2048, 512, 2048, 128, 0, 22050, **_HIFIGAN),  # bigvgan_v2_44khz_128band_512x
    "bigvgan-44k-256x": _recipe(44100, 1024, 256, 1024, 128, 0, 22050, **_HIFIGAN),
    "pwg-16k": _recipe(16000, 1024, 256, 1024, 80, 80, 7600, **_PWG),  # kan-bayashi/ParallelWaveGAN: arctic
    "pwg-22k": _recipe(22050, 1024, 256, 1024, 80, 80, 7600, **_PWG),  # ljspeech
    "pwg-24k": _recipe(24000, 2048, 300, 1200, 80, 80, 7600, **_PWG),  # libritts, csmsc, jsut
    "r9y9-22k": _recipe(22050, 1024, 256, 1024, 80, 125, 7600, **_PWG),  # r9y9/wavenet_vocoder from v0.2.0
    "speecht5-16k": _recipe(16000, 1024, 256, 1024, 80, 80, 7600, **_LOG10),  # its vocoder normalises by itself
    "tacotron2-22k": _recipe(22050, 1024, 256, 1024, 80, 0, 8000),  # NVIDIA/tacotron2, WaveGlow
    "nv-wavenet-16k": _recipe(16000, 800, 200, 800, 80, 0, 8000),
    "vocos-24k": _recipe(24000, 1024, 256, 1024, 100, 0, 12000, **_VOCOS),
}


def frame_count(n_samples: int, spec: MelSpec) -> int:
    """F, the number of frames of `n_samples` samples.

    center=True: 1 + ⌊N/hop⌋ for an even n_fft. center=False: ⌊N/hop⌋ where n_fft − hop is even, ⌊(N−1)/hop⌋ where
    it is odd. No audio has no frames."""
    usable = n_samples + 2 * _padding(spec) - spec.n_fft
    return 0 if n_samples <= 0 or usable < 0 else 1 + usable // spec.hop_length


def mel_spectrogram(wav: Any, spec: MelSpec, mean: Any = None, scale: Any = None) -> Any:
    """The log-mel spectrogram of `wav` by the recipe `spec`.

    wav: (N,) or (B, N), floating point, full scale ±1, at spec.sample_rate; NumPy array or torch tensor.
    mean, scale: (M,), used (and needed) where spec.normalize is "meanvar".
    Returns (M, F) or (B, M, F) float32 with F = frame_count(N, spec); a tensor on wav's device (differentiable) where
    wav is one. Audio shorter than the padding is reflected as often as needed.

    Raises `ShapeError` for another rank, `InputError` for integers, NaN or infinity, empty audio, or where mean and
    scale are missing.
    """
    xp = _namespace(wav)
    if xp is np:
        wav = np.asarray(wav)
    _check_waveform(xp, wav)
    if spec.normalize == "elsewhere":
        raise InputError("this voice hears features that are made elsewhere; it has no recipe to make them by")
    if spec.normalize == "meanvar":
        mean, scale = checked_statistic("mean", mean, spec), checked_statistic("scale", scale, spec)
        mean, scale = _constant(xp, mean, wav), _constant(xp, scale, wav)
    window, filters = _constant(xp, hann_window(spec), wav), _constant(xp, mel_filterbank(spec).T, wav)
    batch = wav.shape[0] if wav.ndim == 2 else 1
    total, per_block = frame_count(wav.shape[-1], spec), max(1, _BLOCK_VALUES // (spec.n_fft * max(1, batch)))
    blocks = []
    for first in range(0, total, per_block):
        frames = _frames(xp, wav, first, min(first + per_block, total), spec)
        mel = _magnitude(xp, xp.fft.rfft(frames * window), spec) @ filters
        mel = _compress(xp, mel, spec, mean, scale).swapaxes(-1, -2)
        blocks.append(mel.astype(np.float32) if xp is np else mel.to(xp.float32))
    if not blocks:
        shape = (*wav.shape[:-1], spec.n_mels, 0)
        return np.zeros(shape, np.float32) if xp is np else wav.new_zeros(shape, dtype=xp.float32)
    return xp.concatenate(blocks, -1)


@lru_cache(maxsize=16)
def mel_filterbank(spec: MelSpec) -> Array:
    """Triangular mel filters, (M, n_fft//2 + 1) float64, read-only.

    Corner frequencies are M + 2 points equally spaced in mel between fmin and fmax. Norm slaney: every triangle has
    unit area in Hz (height 2 / width); none: unit height. (M. Slaney, Auditory Toolbox, 1998.)
    """
    lowest, highest = _hz_to_mel(np.array([spec.fmin, spec.fmax]), spec.mel_scale)
    corners = _mel_to_hz(np.linspace(lowest, highest, spec.n_mels + 2), spec.mel_scale)
    bins = np.arange(spec.n_fft // 2 + 1) * (spec.sample_rate / spec.n_fft)
    left, centre, right = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    filters: Array = np.maximum(0, np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)))
    if spec.mel_norm == "slaney":
        filters *= 2 / (right - left)
    filters.flags.writeable = False
    return filters


def _hz_to_mel(hz: Array, scale: str) -> Array:
    """htk: 2595·log10(1 + f/700) (the HTK book). slaney: f·3/200 up to 1 kHz, then 27 steps per factor of 6.4."""
    if scale == "htk":
        return 2595 * np.log10(1 + hz / 700)
    return np.where(hz < 1000, hz * (3 / 200), 15 + 27 * np.log(np.maximum(hz, 1000) / 1000) / np.log(6.4))


def _mel_to_hz(mel: Array, scale: str) -> Array:
    if scale == "htk":
        return 700 * (10 ** (mel / 2595) - 1)
    return np.where(mel < 15, mel * (200 / 3), 1000 * np.exp((mel - 15) * (np.log(6.4) / 27)))


@lru_cache(maxsize=16)
def hann_window(spec: MelSpec) -> Array:
    """Periodic Hann window of win_length, in the middle of n_fft."""
    window = np.zeros(spec.n_fft)
    start = (spec.n_fft - spec.win_length) // 2
    phase = np.arange(spec.win_length) * (2 * np.pi / spec.win_length)
    window[start : start + spec.win_length] = 0.5 - 0.5 * np.cos(phase)
    window.flags.writeable = False
    return window


def _padding(spec: MelSpec) -> int:
    """Samples added at each end."""
    return spec.n_fft // 2 if spec.center else (spec.n_fft - spec.hop_length) // 2


def _frames(xp: Any, wav: Any, first: int, last: int, spec: MelSpec) -> Any:
    """Frames first … last−1 of the pre-emphasised, padded waveform, (…, frames, n_fft) float64 (overlapping views)."""
    n, hop = wav.shape[-1], spec.hop_length
    index = np.arange(first * hop, (last - 1) * hop + spec.n_fft) - _padding(spec)
    if spec.pad_mode == "reflect":
        keep = np.ones_like(index)
        index = index % max(1, 2 * (n - 1))
        index = np.where(index < n, index, 2 * (n - 1) - index)
    else:
        keep = (index >= 0) & (index < n)
        index = np.clip(index, 0, n - 1)
    signal = _gather(xp, wav, index, keep)
    if spec.preemphasis:
        signal = signal - spec.preemphasis * _gather(xp, wav, np.maximum(index - 1, 0), keep * (index > 0))
    if xp is np:
        return np.lib.stride_tricks.sliding_window_view(signal, spec.n_fft, axis=-1)[..., ::hop, :]
    return signal.unfold(-1, spec.n_fft, hop)


def _gather(xp: Any, wav: Any, index: Array, keep: Array) -> Any:
    """wav at `index` in float64, zero where not `keep`."""
    if xp is np:
        return wav[..., index].astype(np.float64) * keep
    keep = _constant(xp, keep, wav)
    return wav[..., xp.as_tensor(index, device=wav.device)].to(keep.dtype) * keep


def _magnitude(xp: Any, spectrum: Any, spec: MelSpec) -> Any:
    if spec.power == 1 and not spec.epsilon:
        return xp.abs(spectrum)
    square = spectrum.real**2 + spectrum.imag**2 + spec.epsilon
    return square if spec.power == 2 else xp.sqrt(square)


def _compress(xp: Any, mel: Any, spec: MelSpec, mean: Any = None, scale: Any = None) -> Any:
    """Floor, logarithm and normalisation of (…, F, M)."""
    mel = xp.clip(mel, spec.floor, None)
    if spec.log == "ln":
        mel = xp.log(mel)
    elif spec.log == "log10":
        mel = xp.log10(mel)
    else:
        mel = (20 / spec.power) * xp.log10(mel) - spec.ref_db
    if spec.normalize == "minmax01":
        return xp.clip((mel - spec.min_db) / -spec.min_db, 0, 1)
    return mel if spec.normalize == "none" else (mel - mean) / scale


def _check_waveform(xp: Any, wav: Any) -> None:
    if wav.ndim not in (1, 2):
        raise ShapeError(f"the waveform has shape {tuple(wav.shape)}; give (samples,) or (batch, samples)")
    if not (np.issubdtype(wav.dtype, np.floating) if xp is np else wav.is_floating_point()):
        raise InputError(
            f"the waveform is {wav.dtype}; give floating point in -1 … 1 (16-bit integers: divide by 32768)"
        )
    if wav.ndim == 2 and wav.shape[1] <= MOST_CHANNELS < wav.shape[0]:
        raise ShapeError(
            f"the waveform has shape {tuple(wav.shape)}, which looks like (samples, channels); give one channel,"
            " wav[:, 0] or wav.mean(1), or a batch (batch, samples)"
        )
    if wav.shape[-1] == 0:
        raise InputError("the waveform is empty; at least one sample is needed")
    if not bool(xp.isfinite(wav).all()):
        raise InputError("the waveform holds NaN or infinity; a mel spectrogram needs finite samples")


def checked_statistic(name: str, value: Any, spec: MelSpec) -> Array:
    if value is None:
        raise InputError(
            f'this recipe normalises by mean and variance, and no {name} was given; pass the checkpoint\'s "mel.{name}"'
        )
    array: Array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value, np.float64)
    if array.shape != (spec.n_mels,):
        raise ShapeError(f"{name} has shape {array.shape}; this recipe needs one value per mel band, ({spec.n_mels},)")
    return array


def _namespace(wav: Any) -> Any:
    """torch for a tensor, else numpy; torch is only ever found, never imported."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and isinstance(wav, torch.Tensor) else np


def _constant(xp: Any, value: Array, wav: Any) -> Any:
    """`value` in float64 where `wav` lives; in float32 on Apple's GPU, which has no float64."""
    if xp is np:
        return value
    dtype = xp.float32 if wav.device.type == "mps" else xp.float64
    return xp.tensor(value, dtype=dtype, device=wav.device)
