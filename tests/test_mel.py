"""Mel extraction against librosa, the presets, and the check for mels of another recipe."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soxr
from children import python
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from tolerances import TRANSFORMERS

import wavenet_fast.mel as mel_module
from wavenet_fast.audio import read_audio
from wavenet_fast.config import MelSpec
from wavenet_fast.errors import InputError, ShapeError
from wavenet_fast.mel import MEL_PRESETS, frame_count, mel_filterbank, mel_spectrogram
from wavenet_fast.recipe import explain_mismatch, speech_statistics

RELATIVE = 1e-5
"""Largest difference from librosa, of the mel itself and, above the floor, of what the logarithm makes of it."""

BASE = MEL_PRESETS["nv-wavenet-16k"]
SPECS = {
    **MEL_PRESETS,
    "odd": MelSpec(sample_rate=11025, n_fft=601, hop_length=143, win_length=577, n_mels=37, fmin=31.5, fmax=5000),
    "odd, not centred": replace(BASE, n_fft=771, hop_length=194, win_length=640, center=False, power=2),
    "htk power db": replace(BASE, mel_scale="htk", mel_norm="none", power=2, log="db", ref_db=16.5, floor=1e-10),
    "slaney scale, no norm": replace(BASE, mel_norm="none", pad_mode="constant"),
    "0 to 1": replace(BASE, log="db", ref_db=20.0, normalize="minmax01", preemphasis=0.97),
    "pre-emphasis, zeros around": replace(BASE, pad_mode="constant", preemphasis=0.85, center=False),
}


def speech_like(n: int, seed: int = 0) -> np.ndarray:
    """(n,) float32: a falling buzz and noise under a syllable-like envelope, with pauses, so that levels span 80 dB."""
    rng, t = np.random.default_rng(seed), np.arange(n) / 16000
    phase = np.cumsum(120 + 30 * np.sin(2 * np.pi * 0.7 * t + seed)) / 16000
    buzz = sum(np.sin(2 * np.pi * k * phase) / k**1.3 for k in range(1, 40))
    envelope = np.clip(np.sin(2 * np.pi * 3.1 * t + seed), 0, None) ** 2 * (np.sin(2 * np.pi * 0.4 * t) > -0.6)
    return (envelope * (0.25 * buzz + 0.02 * rng.standard_normal(n)) + 1e-4 * rng.standard_normal(n)).astype(np.float32)


def oracle(wav: np.ndarray, spec: MelSpec, mean: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(linear mel, finished mel) by librosa, in float64."""
    librosa = pytest.importorskip("librosa")
    y = wav.astype(np.float64)
    if spec.preemphasis:
        y = np.append(y[:1], y[1:] - spec.preemphasis * y[:-1])
    if not spec.center:
        y = np.pad(y, (spec.n_fft - spec.hop_length) // 2, mode=spec.pad_mode)
    sizes = {"n_fft": spec.n_fft, "hop_length": spec.hop_length, "win_length": spec.win_length}
    spectrum = librosa.stft(y, **sizes, center=spec.center, pad_mode=spec.pad_mode)
    filters = librosa.filters.mel(
        sr=spec.sample_rate, n_fft=spec.n_fft, n_mels=spec.n_mels, fmin=spec.fmin, fmax=spec.fmax,
        htk=spec.mel_scale == "htk", norm="slaney" if spec.mel_norm == "slaney" else None, dtype=np.float64,
    )  # fmt: skip
    linear = filters @ np.sqrt(np.abs(spectrum) ** 2 + spec.epsilon) ** spec.power
    if spec.log == "db":
        to_db = librosa.amplitude_to_db if spec.power == 1 else librosa.power_to_db
        floor = {"amin": spec.floor, "top_db": None}
        mel = to_db(linear, ref=1.0, **floor) - spec.ref_db
    else:
        mel = {"ln": np.log, "log10": np.log10}[spec.log](np.maximum(linear, spec.floor))
    if spec.normalize == "minmax01":
        mel = np.clip((mel - spec.min_db) / -spec.min_db, 0, 1)
    elif spec.normalize == "meanvar":
        mel = (mel - mean[:, None]) / scale[:, None]
    return linear, mel


def linear_of(mel: np.ndarray, spec: MelSpec, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The mel before the logarithm, from the finished one."""
    mel = mel.astype(np.float64)
    if spec.normalize == "meanvar":
        mel = mel * scale[:, None] + mean[:, None]
    if spec.normalize == "minmax01":
        mel = mel * -spec.min_db + spec.min_db
    if spec.log == "db":
        return 10 ** ((mel + spec.ref_db) * spec.power / 20)
    return np.exp(mel) if spec.log == "ln" else 10**mel


@pytest.mark.parametrize("name", SPECS)
def test_numpy_and_torch_agree_with_librosa(name: str) -> None:
    torch = pytest.importorskip("torch")
    spec, wav = SPECS[name], speech_like(16000 + 777)
    rng = np.random.default_rng(1)
    mean, scale = rng.normal(-2, 0.3, spec.n_mels), rng.uniform(0.5, 1.5, spec.n_mels)
    linear, expected = oracle(wav, spec, mean, scale)
    audible = linear > spec.floor
    if spec.normalize == "minmax01":
        audible &= (expected > 0) & (expected < 1)
    assert audible.mean() > 0.2
    in_torch = mel_spectrogram(torch.from_numpy(wav), spec, mean, scale)
    assert in_torch.dtype == torch.float32
    for mel in (mel_spectrogram(wav, spec, mean, scale), in_torch.numpy()):
        assert mel.dtype == np.float32
        assert mel.shape == expected.shape == (spec.n_mels, frame_count(len(wav), spec))
        assert (np.abs(mel - expected) <= RELATIVE * np.maximum(1, np.abs(expected))).all()
        ratio = linear_of(mel, spec, mean, scale)[audible] / linear[audible]
        assert np.abs(ratio - 1).max() <= RELATIVE


@pytest.mark.parametrize("name", SPECS)
def test_filters_agree_with_librosa(name: str) -> None:
    librosa, spec = pytest.importorskip("librosa"), SPECS[name]
    expected = librosa.filters.mel(
        sr=spec.sample_rate, n_fft=spec.n_fft, n_mels=spec.n_mels, fmin=spec.fmin, fmax=spec.fmax,
        htk=spec.mel_scale == "htk", norm="slaney" if spec.mel_norm == "slaney" else None, dtype=np.float64,
    )  # fmt: skip
    filters = mel_filterbank(spec)
    assert filters.shape == (spec.n_mels, spec.n_fft // 2 + 1)
    np.testing.assert_allclose(filters, expected, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="read-only"):
        filters[0, 0] = 1


@pytest.mark.parametrize("seconds", [0.3, 1.1])
def test_presets_agree_with_transformers(seconds: float) -> None:
    """The feature extractors of SpeechT5's vocoder, and of UnivNet, whose mel is BigVGAN's at 24 kHz."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    spec = MEL_PRESETS["speecht5-16k"]
    wav = speech_like(int(seconds * spec.sample_rate))
    theirs = transformers.SpeechT5FeatureExtractor()(audio_target=wav, sampling_rate=16000)["input_values"][0]
    ours = mel_spectrogram(wav, spec)
    assert ours.shape == theirs.T.shape
    np.testing.assert_allclose(ours, theirs.T, rtol=0, atol=TRANSFORMERS)

    spec = MEL_PRESETS["bigvgan-24k"]
    wav = speech_like(int(seconds * spec.sample_rate))
    theirs = transformers.UnivNetFeatureExtractor().mel_spectrogram(wav)
    ours = mel_spectrogram(wav, spec)
    assert ours.shape == theirs.T.shape
    np.testing.assert_allclose(ours, theirs.T, rtol=0, atol=TRANSFORMERS)


def test_a_batch_is_its_rows_and_a_block_boundary_is_not_heard() -> None:
    wavs = np.stack([speech_like(40000, seed) for seed in range(3)])
    batch = mel_spectrogram(wavs, BASE)
    for row, wav in zip(batch, wavs, strict=True):
        np.testing.assert_allclose(row, mel_spectrogram(wav, BASE), rtol=0, atol=2e-6)
    # 40,000 samples cross no block boundary of a single stream; 700 frames do.
    long = speech_like(200 * 1500)
    mel = mel_spectrogram(long, BASE)
    cut = mel_spectrogram(long[200 * 600 :], BASE)
    np.testing.assert_allclose(mel[:, 604:], cut[:, 4:], rtol=0, atol=2e-6)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 900),
    n_fft=st.integers(2, 400),
    hop=st.integers(1, 400),
    center=st.booleans(),
    pad_mode=st.sampled_from(["reflect", "constant"]),
)
def test_short_audio_is_padded_as_numpy_pads(n: int, n_fft: int, hop: int, center: bool, pad_mode: str) -> None:
    hop = min(hop, n_fft)
    spec = replace(
        BASE, n_fft=n_fft, win_length=n_fft, hop_length=hop, n_mels=3, center=center, pad_mode=pad_mode, floor=1e-12
    )
    wav = speech_like(n) + np.float32(0.01)
    mel = mel_spectrogram(wav, spec)
    assert mel.shape == (3, frame_count(n, spec))
    padded = np.pad(wav.astype(np.float64), n_fft // 2 if center else (n_fft - hop) // 2, mode=pad_mode)
    starts = range(0, len(padded) - n_fft + 1, hop)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    frames = [np.abs(np.fft.rfft(padded[s : s + n_fft] * window)) for s in starts]
    assert len(frames) == mel.shape[1]
    if frames:
        expected = np.log(np.maximum(mel_filterbank(spec) @ np.array(frames).T, spec.floor))
        np.testing.assert_allclose(mel, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "n", "frames"),
    [
        ("hifigan-22k", 25600, 100),
        ("hifigan-22k", 25855, 100),
        ("hifigan-22k", 255, 0),
        ("tacotron2-22k", 25600, 101),
        ("tacotron2-22k", 25599, 100),
        ("nv-wavenet-16k", 1, 1),
        ("nv-wavenet-16k", 0, 0),
    ],
)
def test_frame_count_of_both_conventions(name: str, n: int, frames: int) -> None:
    assert frame_count(n, MEL_PRESETS[name]) == frames


def test_magnitude_epsilon_matters_where_it_should() -> None:
    quiet = 1e-4 * speech_like(8000)
    with_it, without = (mel_spectrogram(quiet, replace(BASE, epsilon=e, floor=1e-9)) for e in (1e-9, 0.0))
    assert np.abs(with_it - without).max() > 0.1


def test_torch_result_can_be_differentiated() -> None:
    torch = pytest.importorskip("torch")
    wav = torch.from_numpy(speech_like(1600)).requires_grad_()
    mel_spectrogram(wav, BASE).sum().backward()
    assert torch.isfinite(wav.grad).all()
    assert wav.grad.abs().max() > 0


def test_memory_stays_in_blocks() -> None:
    wav = speech_like(16000 * 60)
    mel_spectrogram(wav[:16000], BASE)
    tracemalloc.start()
    mel = mel_spectrogram(wav, BASE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Whole, the windowed frames of this minute would be 4,801 · 800 · 8 bytes = 31 MB, their spectra as much again.
    assert peak < 2 * mel.nbytes + wav.nbytes + 16e6


@pytest.mark.parametrize(
    ("wav", "error", "words"),
    [
        (np.zeros((2, 3, 4), np.float32), ShapeError, r"\(2, 3, 4\)"),
        (np.float32(0), ShapeError, "batch"),
        (np.zeros(100, np.int16), InputError, "int16.*divide by 32768"),
        (np.zeros(100, complex), InputError, "complex"),
        (np.zeros(0, np.float32), InputError, "empty"),
        (np.array([0, np.nan], np.float32), InputError, "NaN"),
        (np.array([0, -np.inf], np.float32), InputError, "infinity"),
    ],
)
def test_bad_waveforms(wav: np.ndarray, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        mel_spectrogram(wav, BASE)


def test_foreign_layouts_give_the_same_mel() -> None:
    wav = speech_like(4000)
    expected = mel_spectrogram(wav, BASE)
    for same in (wav.astype(">f4"), wav.astype(np.float64), np.stack([wav, wav], 1)[:, 1], wav.tolist()):
        np.testing.assert_array_equal(mel_spectrogram(same, BASE), expected)


def test_statistics_are_needed_and_checked() -> None:
    spec, wav = MEL_PRESETS["pwg-16k"], speech_like(4000)
    with pytest.raises(InputError, match=r"mel\.mean"):
        mel_spectrogram(wav, spec)
    with pytest.raises(ShapeError, match=r"scale has shape \(79,\)"):
        mel_spectrogram(wav, spec, np.zeros(80), np.ones(79))


def test_torch_is_not_imported() -> None:
    code = "import sys, wavenet_fast.mel as m, numpy as np; m.mel_spectrogram(np.ones(999, np.float32), m.MEL_PRESETS"
    python(code + "['hifigan-22k']); sys.exit('torch' in sys.modules)")


# --- mels of another recipe -----------------------------------------------------------------------------------------

KINDS = {
    "natural logarithms": BASE,
    "log10 values": replace(BASE, log="log10", floor=1e-10),
    "decibels": replace(BASE, log="db"),
    "decibels less a reference of 20 dB": replace(BASE, log="db", ref_db=20.0),
    "decibels mapped to 0 … 1": replace(BASE, log="db", ref_db=20.0, normalize="minmax01"),
}
NORMALISED = MEL_PRESETS["pwg-16k"]
SPEECH = [speech_like(48000, seed) for seed in range(6)]


def statistics(spec: MelSpec) -> tuple[np.ndarray, np.ndarray]:
    raw = replace(spec, normalize="none") if spec.normalize == "meanvar" else spec
    mels = np.concatenate([mel_spectrogram(wav, raw) for wav in SPEECH[:3]], 1)
    return mels.mean(1), mels.std(1)


@pytest.mark.parametrize("target", KINDS)
@pytest.mark.parametrize("source", KINDS)
def test_a_foreign_mel_is_named_and_an_own_one_passes(source: str, target: str) -> None:
    mean, scale = statistics(KINDS[target])
    said = [explain_mismatch(mel_spectrogram(wav, KINDS[source]), mean, scale, KINDS[target]) for wav in SPEECH[3:]]
    if {source, target} <= {"decibels", "decibels less a reference of 20 dB"}:
        assert source != target or said == [None] * 3  # 20 dB apart: may be a quiet recording
        return
    for sentence in said:
        assert (sentence is None) if source == target else (sentence is not None and f"looks like {source}" in sentence)


CLOSE = {("natural logarithms", "log10 values"), ("decibels", "decibels less a reference of 20 dB")}
"""Pairs that are told apart only by statistics of the voice's own."""
RECORDINGS = [
    read_audio(path, 16000)[0]
    for path in sorted((Path(mel_module.__file__).parent / "voices").glob("*/samples/*.flac"))
]


@pytest.mark.parametrize("target", KINDS)
@pytest.mark.parametrize("source", KINDS)
def test_without_statistics_speech_in_general_is_expected(source: str, target: str) -> None:
    statistics_of = speech_statistics(KINDS[target])
    said = [
        explain_mismatch(mel_spectrogram(wav, KINDS[source]), *statistics_of, KINDS[target])
        for wav in (*SPEECH, *RECORDINGS)
    ]
    if source == target:
        assert said == [None] * len(said)
    elif (source, target) not in CLOSE and (target, source) not in CLOSE:
        assert all(sentence is not None for sentence in said)
        kind = source.partition(" less")[0]
        assert sum(f"looks like {kind}" in (sentence or "") for sentence in said) > 0.7 * len(said)


@pytest.mark.parametrize("gain_db", [-30, 0, 10])
@pytest.mark.parametrize("name", ["hifigan-22k", "pwg-24k", "vocos-24k", "speecht5-16k"])
def test_no_recipe_is_taken_for_another_without_statistics(name: str, gain_db: int) -> None:
    spec = replace(MEL_PRESETS[name], normalize="none")
    mean, scale = speech_statistics(spec)
    for wav in (*SPEECH, *RECORDINGS):
        at_rate = soxr.resample(wav, 16000, spec.sample_rate) * np.float32(10 ** (gain_db / 20))
        mel = mel_spectrogram(at_rate, spec)
        for frames in (12, 60, mel.shape[1]):
            assert explain_mismatch(mel[:, 40 : 40 + frames], mean, scale, spec) is None


def test_the_sentence_says_how_to_convert() -> None:
    for target, source, words in (
        ("natural logarithms", "decibels", "convert_mel(mel, 'db', voc), --mel-from db"),
        ("decibels", "decibels mapped to 0 … 1", "convert_mel(mel, 'unit', voc), --mel-from unit"),
    ):
        mel = mel_spectrogram(SPEECH[3], KINDS[source])
        assert words in (explain_mismatch(mel, *statistics(KINDS[target]), KINDS[target]) or "")
    mean, scale = statistics(NORMALISED)
    raw = mel_spectrogram(SPEECH[4], replace(NORMALISED, normalize="none"))
    assert "convert_mel(mel, 'log10', voc)" in (explain_mismatch(raw, mean, scale, NORMALISED) or "")
    sentence = explain_mismatch(np.exp(mel_spectrogram(SPEECH[4], BASE)), *statistics(BASE), BASE)
    assert sentence is not None and "--mel-from" not in sentence


def test_normalisation_and_units_are_named() -> None:
    mean, scale = statistics(BASE)
    raw = mel_spectrogram(SPEECH[4], BASE)
    for mel, words in (
        ((raw - mean[:, None]) / scale[:, None], "normalised by mean and variance"),
        (np.exp(raw), "without a logarithm"),
        (raw + np.log(32768), "16-bit integer"),
    ):
        sentence = explain_mismatch(mel, mean, scale, BASE)
        assert sentence is not None
        assert words in sentence
        assert "expects about" in sentence
    mean, scale = statistics(NORMALISED)
    raw = mel_spectrogram(SPEECH[4], replace(NORMALISED, normalize="none"))
    assert explain_mismatch((raw - mean[:, None]) / scale[:, None], mean, scale, NORMALISED) is None
    assert "not normalised" in (explain_mismatch(raw, mean, scale, NORMALISED) or "")


@pytest.mark.parametrize("gain_db", [-30, -15, 10])
@pytest.mark.parametrize("frames", [1, 10, 100, 241])
def test_quiet_loud_and_short_mels_are_left_alone(gain_db: int, frames: int) -> None:
    for spec in (*KINDS.values(), NORMALISED):
        mean, scale = statistics(spec)
        for wav in SPEECH[3:]:
            mel = mel_spectrogram(wav * np.float32(10 ** (gain_db / 20)), spec, mean, scale)
            for start in range(0, mel.shape[1] - frames + 1, max(50, frames)):
                assert explain_mismatch(mel[:, start : start + frames], mean, scale, spec) is None


def test_a_few_frames_suffice_where_no_speech_could_reach() -> None:
    mean, scale = statistics(BASE)
    decibels = mel_spectrogram(SPEECH[3], KINDS["decibels"])[:, 60:65]
    assert "looks like decibels" in (explain_mismatch(decibels, mean, scale, BASE) or "")


def test_a_fraction_of_a_second_suffices_where_no_value_is_negative() -> None:
    mean, scale = statistics(BASE)
    for spec, words in ((KINDS["decibels mapped to 0 … 1"], "decibels mapped to 0"), (None, "without a logarithm")):
        mel = np.exp(mel_spectrogram(SPEECH[3], BASE)) if spec is None else mel_spectrogram(SPEECH[3], spec)
        assert words in (explain_mismatch(mel[:, 60:80], mean, scale, BASE) or "")


def test_mismatch_takes_batches_and_no_frames() -> None:
    mean, scale = statistics(BASE)
    decibels = mel_spectrogram(np.stack(SPEECH[3:]), KINDS["decibels"])
    assert "decibels" in (explain_mismatch(decibels, mean, scale, BASE) or "")
    assert explain_mismatch(np.zeros((80, 0), np.float32), mean, scale, BASE) is None
