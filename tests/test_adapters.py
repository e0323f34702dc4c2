"""Every adapter against the documented contract of the peer it stands for, and against plain calls of the voice."""

from __future__ import annotations

import copy
import pickle
import warnings

import numpy as np
import pytest
from children import python
from msgspec.structs import replace

from wavenet_fast import CheckpointError, InputError, MelMismatchWarning, ShapeError, Vocoder, convert_mel
from wavenet_fast.checkpoint import Checkpoint, save_checkpoint
from wavenet_fast.config import Conditioning, Speakers

torch = pytest.importorskip("torch", reason="the adapters are PyTorch modules")

from wavenet_fast import adapters, nn  # noqa: E402 - they need torch

M, HOP, F, RATE = 5, 6, 9, 8000
MEAN, SCALE = np.linspace(-2, 1, M, dtype=np.float32), np.linspace(0.5, 2, M, dtype=np.float32)
STATISTICS = {"mel.mean": MEAN, "mel.scale": SCALE}


@pytest.fixture(scope="module")
def voc(make_checkpoint):
    return Vocoder(make_checkpoint(), "cpu", dtype="fp32")


@pytest.fixture(scope="module")
def normalised(make_checkpoint):
    """A voice that takes mels normalised by mean and variance."""
    plain = make_checkpoint()
    spec = replace(plain.mel, log="log10", normalize="meanvar")
    return Vocoder(Checkpoint(plain.config, spec, {**plain.weights, **STATISTICS}), "cpu", dtype="fp32")


@pytest.fixture(scope="module")
def standardising(make_checkpoint, make_config):
    """A voice that normalises by itself."""
    plain = make_checkpoint(make_config(conditioning=Conditioning(standardise=True)))
    return Vocoder(Checkpoint(plain.config, plain.mel, {**plain.weights, **STATISTICS}), "cpu", dtype="fp32")


@pytest.fixture(scope="module")
def mels():
    return torch.from_numpy(np.random.default_rng(3).standard_normal((2, M, F)).astype(np.float32))


@pytest.fixture(autouse=True)
def quiet():
    """Random mels follow no recipe."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MelMismatchWarning)
        yield


def same(a, b) -> bool:
    return torch.equal(torch.as_tensor(a), torch.as_tensor(b))


# --- calls of the voice itself ------------------------------------------------------------------------------------


def test_vocos_and_nemo(voc, mels):
    expected = voc(mels, seed=4)
    assert expected.shape == (2, F * HOP) and expected.abs().max() > 0
    assert same(voc.decode(mels, seed=4), expected)
    assert same(voc.convert_spectrogram_to_audio(spec=mels, seed=4), expected)
    assert isinstance(voc.decode(mels.numpy()), np.ndarray)
    with pytest.raises(TypeError):
        voc.convert_spectrogram_to_audio(mels)


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_parallel_wavegan(voc, mels, kind):
    c = kind(mels[0].T.contiguous())
    wav = voc.inference(c, seed=4)
    assert wav.shape == (F * HOP, 1) and wav.dtype == torch.float32
    assert same(wav.view(-1), voc(mels[0], seed=4))
    with pytest.raises(ShapeError, match="transposed"):
        voc.inference(kind(mels[0]))
    with pytest.raises(InputError, match="no mean and scale"):
        voc.inference(c, normalize_before=True)


def test_parallel_wavegan_normalises_by_the_voice_s_statistics(normalised, standardising, mels):
    raw = mels[0] * torch.from_numpy(SCALE)[:, None] + torch.from_numpy(MEAN)[:, None]
    by_hand = ((raw.double() - torch.from_numpy(MEAN)[:, None]) / torch.from_numpy(SCALE)[:, None]).float()
    assert same(normalised.inference(raw.T, normalize_before=True)[:, 0], normalised(by_hand))
    assert same(normalised.inference(by_hand.T)[:, 0], normalised(by_hand))
    assert not same(normalised(raw), normalised(by_hand))
    for normalize_before in (False, True):
        assert same(standardising.inference(raw.T, normalize_before)[:, 0], standardising(raw))


def test_statistics_that_a_voice_only_carries_normalise_nothing(make_checkpoint):
    plain = make_checkpoint()
    voice = Vocoder(Checkpoint(plain.config, plain.mel, {**plain.weights, **STATISTICS}), "cpu", dtype="fp32")
    assert voice.mel_statistics is not None and not hasattr(nn.VocoderModule(voice), "mean")
    with pytest.raises(InputError, match="no mean and scale"):
        voice.inference(np.zeros((F, M), np.float32), normalize_before=True)


# --- modules --------------------------------------------------------------------------------------------------------


def test_hifigan(voc, mels):
    generator = nn.VocoderModule(voc, seed=4).to("cpu").eval()
    generator.remove_weight_norm()
    with torch.no_grad():
        wav = generator(mels)
    assert wav.shape == (2, 1, F * HOP) and wav.dtype == torch.float32
    assert same(wav.squeeze(1), voc(mels, seed=4))
    assert same(generator(mels[0]), voc(mels[0], seed=4)[None])
    assert generator.h.sampling_rate == generator.h["sampling_rate"] == RATE
    spec = voc.mel_spec
    h = generator.h
    assert (h.num_mels, h.hop_size, h.n_fft, h.win_size, h.fmin, h.fmax) == (
        spec.n_mels, spec.hop_length, spec.n_fft, spec.win_length, spec.fmin, spec.fmax,
    )  # fmt: skip
    with pytest.raises(AttributeError, match="no 'segment_size'; there are sampling_rate"):
        h.segment_size  # noqa: B018
    assert next(generator.parameters()).device == torch.device("cpu")
    for other in (pickle.loads(pickle.dumps(generator)), copy.deepcopy(generator)):
        assert same(other(mels), wav) and other.h.hop_size == HOP


def test_options_are_those_of_the_voice_s_call(make_checkpoint, make_config, mels):
    voc = Vocoder(make_checkpoint(make_config(speakers=Speakers(channels=3, count=4))), "cpu", dtype="fp32")
    expected = voc(mels, seed=[7, 8], speaker=2, temperature=0.5)
    options = {"seed": [7, 8], "speaker": 2, "temperature": 0.5}
    assert same(nn.VocoderModule(voc, **options)(mels)[:, 0], expected)
    assert same(adapters.torchaudio(voc, **options)(mels)[0], expected)
    assert same(adapters.hf(voc, **options)(mels.mT), expected)


class EspnetLike(torch.nn.Module):
    """What ESPnet asks of the vocoder that ParallelWaveGAN's `load_model` gives."""

    def __init__(self, vocoder):
        super().__init__()
        self.vocoder = vocoder
        if hasattr(vocoder, "remove_weight_norm"):
            vocoder.remove_weight_norm()
        self.normalize_before = hasattr(vocoder, "mean")

    def forward(self, feats):
        return self.vocoder.inference(feats, normalize_before=self.normalize_before).view(-1)


def test_espnet(voc, normalised, standardising, mels, tmp_path):
    raw = mels[0] * torch.from_numpy(SCALE)[:, None] + torch.from_numpy(MEAN)[:, None]
    for name, voice, own in (("a", voc, raw), ("b", normalised, None), ("c", standardising, raw)):
        voice.save_pretrained(tmp_path / name)
        model = EspnetLike(adapters.load_model(tmp_path / name, {"sampling_rate": RATE})).eval()
        assert model.normalize_before == (voice is not voc)
        if own is None:
            own = convert_mel(raw, replace(voice.mel_spec, normalize="none"), voice)
        wav = model(raw.T)
        assert wav.shape == (F * HOP,)
        assert same(wav, Vocoder.from_pretrained(tmp_path / name)(own)), name


def test_espnet_s_text2speech_calls_its_vocoder_so(normalised, mels):
    vocoder = adapters.espnet(normalised, seed=4).to("cpu")
    raw = mels[0] * torch.from_numpy(SCALE)[:, None] + torch.from_numpy(MEAN)[:, None]
    own = convert_mel(raw, replace(normalised.mel_spec, normalize="none"), normalised)
    wav = vocoder(raw.T)  # feat_gen_denorm, (F, M)
    assert wav.shape == (F * HOP,) and vocoder.fs == RATE and same(wav, normalised(own, seed=4))


def test_load_model_takes_a_voice_and_its_own_config(voc, make_checkpoint, tmp_path, mels):
    save_checkpoint(tmp_path / "voice", make_checkpoint())
    config = {"sampling_rate": RATE, "hop_size": HOP, "num_mels": M, "generator_type": "ParallelWaveGANGenerator"}
    for path in (tmp_path / "voice", str(tmp_path / "voice" / "model.safetensors")):
        module = adapters.load_model(path, config, stats="stats.h5", seed=4).eval()
        assert same(module(mels)[:, 0], Vocoder.from_pretrained(tmp_path / "voice")(mels, seed=4))
    for name, value in (("sampling_rate", 24000), ("hop_size", 300), ("num_mels", 80)):
        with pytest.raises(CheckpointError, match=f"{name} .*config that was given says {value}"):
            adapters.load_model(tmp_path / "voice", {**config, name: value})
    (tmp_path / "checkpoint-400000steps.pkl").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(CheckpointError, match=r"may be a pickle.*wavenet-fast convert"):
        adapters.load_model(tmp_path / "checkpoint-400000steps.pkl")


def test_torchaudio(voc, mels):
    vocoder = adapters.torchaudio(voc, seed=4).to("cpu")
    assert vocoder.sample_rate == RATE
    wav, samples = vocoder(mels, torch.tensor([F, 4], dtype=torch.int32))
    assert wav.shape == (2, F * HOP) and samples.tolist() == [F * HOP, 4 * HOP]
    assert same(wav[0], voc(mels[0], seed=4))
    assert same(wav[1, : 4 * HOP], voc(mels[1, :, :4], seed=5)) and not wav[1, 4 * HOP :].any()
    wav, samples = vocoder(mels)
    assert same(wav, voc(mels, seed=4)) and samples.tolist() == [F * HOP] * 2
    assert isinstance(samples, torch.Tensor)


def test_torchaudio_s_own_interface(voc, mels):
    torchaudio = pytest.importorskip("torchaudio", reason="torchaudio is not installed", exc_type=ImportError)
    abstract = torchaudio.pipelines.Tacotron2TTSBundle.Vocoder
    names = {name for name in dir(abstract) if not name.startswith("_")}
    assert names <= set(dir(adapters.torchaudio(voc)))


def test_hugging_face_axes(voc, normalised, mels):
    vocoder = adapters.hf(voc, seed=4)
    assert same(vocoder(mels.mT), voc(mels, seed=4))
    assert same(vocoder(mels[0].T), voc(mels[0], seed=4))
    assert vocoder.config.sampling_rate == RATE and vocoder.config.model_in_dim == M
    raw = mels * torch.from_numpy(SCALE)[:, None] + torch.from_numpy(MEAN)[:, None]
    own = convert_mel(raw, replace(normalised.mel_spec, normalize="none"), normalised)
    assert same(adapters.hf(normalised)(raw.mT), normalised(own))
    with pytest.raises(ShapeError, match="transposed"):
        vocoder(mels)


@pytest.mark.parametrize("make", [nn.VocoderModule, adapters.torchaudio, adapters.hf])
def test_mels_of_another_recipe_are_converted(voc, normalised, mels, make):
    log10 = mels / float(np.log(10))
    for voice in (voc, normalised):
        given = log10.mT if make is adapters.hf else log10
        wav = make(voice, mel_from="log10")(given)
        wav = wav[0] if isinstance(wav, tuple) else wav
        own = convert_mel(log10, "log10", voice)
        assert same(wav.reshape(2, -1), voice(own))
        for normalize_before in (False, True):
            wav = nn.VocoderModule(voice, mel_from="log10").inference(log10[0].T, normalize_before)
            assert same(wav[:, 0], voice(own[0]))


# --- transformers ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def speecht5():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    config = transformers.SpeechT5Config(
        vocab_size=11, hidden_size=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=12, decoder_ffn_dim=12, num_mel_bins=M, speaker_embedding_dim=7,
        speech_decoder_prenet_units=8, speech_decoder_postnet_units=8, speech_decoder_postnet_layers=2,
    )  # fmt: skip
    return transformers.SpeechT5ForTextToSpeech(config).eval()


def test_speecht5_generates_speech_with_a_voice(speecht5, voc):
    ids, speaker = torch.tensor([[4, 3, 7, 1, 6]]), torch.zeros(1, 7)
    options = {"threshold": 2.0, "maxlenratio": 4.0}  # it never ends by itself with random weights

    def generate(batch: int, **more):
        torch.manual_seed(1)  # the prenet's dropout stays on
        return speecht5.generate_speech(ids.repeat(batch, 1), speaker.repeat(batch, 1), **options, **more)

    spectrogram = generate(1)
    assert spectrogram.ndim == 2 and spectrogram.shape[1] == M
    wav = generate(1, vocoder=adapters.hf(voc, seed=4))
    assert same(wav, voc(spectrogram.T, seed=4))
    batch, lengths = generate(2, vocoder=adapters.hf(voc, seed=4), return_output_lengths=True)
    assert batch.shape == (2, max(lengths)) and lengths == [len(spectrogram) * HOP] * 2
    assert same(batch, voc(generate(2).mT, seed=4))


def test_transformers_pipeline_takes_a_voice(speecht5, voc):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "<pad>": 1, "a": 2}, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>")
    speak = transformers.pipeline("text-to-audio", speecht5, tokenizer=tokenizer, vocoder=adapters.hf(voc, seed=4))
    torch.manual_seed(1)
    said = speak(
        "a a a", forward_params={"speaker_embeddings": torch.zeros(1, 7), "threshold": 2.0, "maxlenratio": 4.0}
    )
    assert said["sampling_rate"] == RATE and said["audio"].size % HOP == 0 and np.abs(said["audio"]).max() > 0


# --- without torch --------------------------------------------------------------------------------------------------


def test_names_are_found_without_an_import_of_torch():
    code = "import sys, wavenet_fast as wf; assert {'nn', 'adapters'} < set(dir(wf)); "
    code += "assert 'torch' not in sys.modules; wavenet_fast = wf; wavenet_fast.nn.VocoderModule; "
    python(code + "wavenet_fast.adapters.hf; assert 'torch' in sys.modules")


def test_without_torch_a_sentence_says_what_to_install():
    code = "import sys; sys.modules['torch'] = None\nimport wavenet_fast\ntry:\n    wavenet_fast.adapters\n"
    said = python(code + "except ImportError as error:\n    print(error)")
    assert "PyTorch is not installed" in said and "wavenet-fast[torch]" in said
