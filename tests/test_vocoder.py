"""`Vocoder` as a caller meets it: shapes, kinds of arrays, seeds, bad input, likelihood, threads and processes."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import threading
import warnings

import msgspec
import numpy as np
import pytest
from last_device import device_of

from wavenet_fast import (
    AudioError,
    BackendError,
    Checkpoint,
    InputError,
    MelMismatchWarning,
    ShapeError,
    StateError,
    Vocoder,
)
from wavenet_fast.config import (
    CategoricalHead,
    Conditioning,
    FrameConv,
    Linear,
    LogisticHead,
    ScalarInput,
    Signal,
    Speakers,
)
from wavenet_fast.inputs import MAX_CALL_SAMPLES

FRAMES = 7


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint, make_config):
    up = Conditioning(network=(FrameConv(7, 3, activation="tanh"),), upsampling=Linear())
    return make_checkpoint(make_config(conditioning=up))


@pytest.fixture(scope="module")
def voc(checkpoint, backend):
    return Vocoder(checkpoint, backend, device_of(backend), "fp32")


@pytest.fixture(scope="module")
def mel(voc):
    return np.random.default_rng(1).standard_normal((3, voc.n_mels, FRAMES)).astype(np.float32)


@pytest.fixture(scope="module")
def sound(voc, mel):
    """One-shot sound of the three utterances with seeds 5, 6 and 7."""
    return voc(mel, seed=5)


# --- shapes and seeds -------------------------------------------------------------------------------------------


def test_a_batch_gives_exactly_hop_samples_per_frame(voc, mel, sound):
    assert sound.shape == (3, FRAMES * voc.hop_length) and sound.dtype == np.float32
    assert np.abs(sound).max() <= 1 and len(np.unique(sound)) > 10


def test_one_utterance_has_no_batch_axis_and_its_own_seed_alone_decides(voc, mel, sound):
    for b in range(3):
        np.testing.assert_array_equal(voc(mel[b], seed=5 + b), sound[b])
    np.testing.assert_array_equal(voc(mel[::-1], seed=[7, 6, 5]), sound[::-1])
    assert (voc(mel[0], seed=8) != sound[0]).any()
    np.testing.assert_array_equal(voc(mel[0]), voc(mel[0], seed=0))


def test_no_frames_give_no_samples(voc, mel):
    assert voc(mel[0, :, :0]).shape == (0,)
    assert voc(mel[:, :, :0]).shape == (3, 0)
    assert voc(mel[:0]).shape == (0, FRAMES * voc.hop_length)
    assert voc(mel[0, :, :1]).shape == (voc.hop_length,)
    with pytest.raises(InputError, match="seed"):
        voc(mel[:, :, :0], seed=-1)


def test_lengths_give_a_pair_and_silence_beyond_each_end(voc, mel, sound):
    lengths = [2, FRAMES, 0]
    padded = mel.copy()
    for b, length in enumerate(lengths):
        padded[b, :, length:] = np.nan
    given, samples = voc(padded, lengths=lengths, seed=5)
    assert given.shape == sound.shape and samples.tolist() == [n * voc.hop_length for n in lengths]
    np.testing.assert_array_equal(given[1], sound[1])
    for b in (0, 2):
        np.testing.assert_array_equal(given[b, : samples[b]], voc(mel[b, :, : lengths[b]], seed=5 + b))
        assert not given[b, samples[b] :].any()
    short, samples = voc(mel, lengths=np.array([2, 1, 0]), seed=5)
    assert short.shape == sound.shape and samples.max() == 2 * voc.hop_length
    alone, samples = voc(mel[0], lengths=2, seed=5)
    assert alone.shape == (FRAMES * voc.hop_length,) and samples == 2 * voc.hop_length


@pytest.mark.parametrize("lengths", [[1, 2], [1, 2, FRAMES + 1], [1, 2, -1], [1.0, 2.0, 3.0], [[1, 2, 3]], 3])
def test_bad_lengths(voc, mel, lengths):
    with pytest.raises((InputError, ShapeError), match="lengths"):
        voc(mel, lengths=lengths)


def test_the_other_layout_on_request_only(voc, mel, sound):
    np.testing.assert_array_equal(voc(mel.swapaxes(1, 2), seed=5, layout="tc"), sound)
    np.testing.assert_array_equal(voc(mel[0].T, seed=5, layout="tc"), sound[0])
    hint = r"got a mel of shape \(7, 5\); this checkpoint wants \(5, F\).*transposed: pass mel.T or layout=\"tc\""
    with pytest.raises(ShapeError, match=hint):
        voc(mel[0].T)
    with pytest.raises(ShapeError, match=r'pass mel.T or layout="ct"'):
        voc(mel[0], layout="tc")
    with pytest.raises(ShapeError, match=r"pass mel.swapaxes\(1, 2\)"):
        voc(mel.swapaxes(1, 2))
    with pytest.raises(ShapeError, match="5 mel bands"):
        voc(np.zeros((6, 9), np.float32))
    with pytest.raises(InputError, match="layout is 'bct'"):
        voc(mel, layout="bct")


def test_a_square_mel_follows_the_declared_layout(voc, mel):
    square = mel[0, :, : voc.n_mels]
    np.testing.assert_array_equal(voc(square.T, layout="tc"), voc(square))
    assert (voc(square.T) != voc(square)).any()


# --- kinds of arrays --------------------------------------------------------------------------------------------

SAME = {
    "fortran": np.asfortranarray,
    "strided": lambda m: np.repeat(m, 2, axis=-1)[..., ::2],
    "reversed": lambda m: m[..., ::-1].copy()[..., ::-1],
    "big-endian": lambda m: m.astype(">f4"),
    "float64": lambda m: m.astype(np.float64),
    "longdouble": lambda m: m.astype(np.longdouble),
    "list": lambda m: m.astype(np.float64).tolist(),
}


@pytest.mark.parametrize("kind", SAME)
def test_any_floating_point_array_will_do(voc, mel, sound, kind):
    np.testing.assert_array_equal(voc(SAME[kind](mel), seed=5), sound)


def test_read_only_and_half_precision(voc, mel):
    frozen = mel[0].astype(np.float16)
    frozen.flags.writeable = False
    np.testing.assert_array_equal(voc(frozen), voc(frozen.astype(np.float32)))


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, bool, np.complex64, object, "U3", "M8[s]"])
def test_other_numbers_are_refused(voc, dtype):
    with pytest.raises(InputError, match=r"the mel is .*; give floating point"):
        voc(np.zeros((5, 4), dtype))


@pytest.mark.parametrize("shape", [(), (5,), (1, 1, 5, 4)])
def test_other_ranks_are_refused(voc, shape):
    with pytest.raises(ShapeError, match=r"give \(5, F\) or a batch \(B, 5, F\)"):
        voc(np.zeros(shape, np.float32))


def test_nonsense_is_refused(voc):
    for nonsense in (None, "mel.npy", [[1.0], [1.0, 2.0]]):
        with pytest.raises((InputError, ShapeError)):
            voc(nonsense)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_first_bad_frame_and_band_are_named(voc, mel, value):
    bad = mel.copy()
    bad[1, 3, 2] = bad[1, 0, 4] = value
    with pytest.raises(InputError, match=f"{value} at utterance 1, frame 2, band 3"):
        voc(bad)
    with pytest.raises(InputError, match=f"{value} at frame 2, band 3"):
        voc(bad[1])
    huge = mel[0].astype(np.float64)
    huge[2, 1] = 1e300
    with pytest.raises(InputError, match=r"1e\+300 at frame 1, band 2, which float32 cannot hold"):
        voc(huge)


@pytest.mark.parametrize("value", [1e30, -1e30, 1e-40, 3e38])
def test_finite_extremes_give_finite_sound(voc, value):
    sound = voc(np.full((voc.n_mels, 3), value, np.float32))
    assert np.isfinite(sound).all() and np.abs(sound).max() <= 1


def test_utterances_beyond_the_limit_are_refused_before_memory_is_touched(voc):
    frames = MAX_CALL_SAMPLES // voc.hop_length + 1
    endless = np.broadcast_to(np.zeros((voc.n_mels, 1), np.float32), (voc.n_mels, frames))
    with pytest.raises(InputError, match=f"{frames} frames of 6 samples; one call makes at most {MAX_CALL_SAMPLES}"):
        voc(endless)


def test_torch_in_torch_out(voc, mel, sound):
    torch = pytest.importorskip("torch")
    given, samples = voc(torch.from_numpy(mel), lengths=torch.tensor([FRAMES, 2, 0]), seed=5)
    assert isinstance(given, torch.Tensor) and given.dtype == torch.float32 and given.device.type == "cpu"
    assert isinstance(samples, torch.Tensor) and samples.tolist() == [FRAMES * 6, 12, 0]
    np.testing.assert_array_equal(given[0].numpy(), sound[0])
    learning = torch.from_numpy(mel[0]).double().requires_grad_()
    np.testing.assert_array_equal(voc(learning, seed=5).numpy(), sound[0])
    half = torch.from_numpy(mel[0]).bfloat16()
    np.testing.assert_array_equal(voc(half).numpy(), voc(half.float().numpy()))
    np.testing.assert_array_equal(voc(torch.from_numpy(mel[0].T.copy()).T, seed=5).numpy(), sound[0])


def test_tensors_without_usable_values_are_refused(voc):
    torch = pytest.importorskip("torch")
    for tensor in (
        torch.zeros(5, 4, device="meta"),
        torch.zeros(5, 4).to_sparse(),
        torch.zeros(5, 4, dtype=torch.int32),
    ):
        with pytest.raises(InputError, match="the mel is "):
            voc(tensor)


# --- other arguments --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "seed", [-1, 2**64, 1.5, True, "7", None, [1, 2], [1, 2, -3], [1, 2, 2**64], np.zeros((3, 1), int)]
)
def test_bad_seeds(voc, mel, seed):
    with pytest.raises(InputError, match="seed"):
        voc(mel, seed=seed)


def test_the_largest_seeds(voc, mel):
    assert voc(mel[0, :, :1], seed=2**64 - 1).shape == (voc.hop_length,)
    with pytest.raises(InputError, match="too large for 3 utterances"):
        voc(mel, seed=2**64 - 2)


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), float("inf"), "1", True, [1.0]])
def test_bad_temperatures(voc, mel, temperature):
    with pytest.raises(InputError, match="temperature"):
        voc(mel, temperature=temperature)


def test_temperature_left_out_is_the_checkpoints(checkpoint, backend, voc, mel):
    assert voc.default_temperature == 1
    np.testing.assert_array_equal(voc(mel[0]), voc(mel[0], temperature=1.0))
    info = {"sampling": {"temperature": 0.5}}
    cooler = Vocoder(
        Checkpoint(checkpoint.config, checkpoint.mel, checkpoint.weights, info), backend, device_of(backend), "fp32"
    )
    assert cooler.default_temperature == 0.5
    np.testing.assert_array_equal(cooler(mel[0]), voc(mel[0], temperature=0.5))
    np.testing.assert_array_equal(cooler(mel[0], temperature=1.0), voc(mel[0]))
    assert (cooler(mel[0]) != voc(mel[0])).any()


def test_progress_and_its_exceptions(voc, mel, sound):
    told = []
    voc(mel, seed=5, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (sound.size, sound.size)

    def stop(done, total):
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        voc(mel, seed=5, progress=stop)
    np.testing.assert_array_equal(voc(mel, seed=5), sound)


def test_speakers(make_checkpoint, make_config, backend, voc, mel):
    with pytest.raises(InputError, match="leave speaker out"):
        voc(mel, speaker=0)
    checkpoint = make_checkpoint(make_config(speakers=Speakers(channels=3, count=4)))
    many = Vocoder(checkpoint, backend, device_of(backend), "fp32")
    table = checkpoint.weights["speakers.weight"]
    by_id = many(mel, speaker=[3, 0, 3], seed=5)
    np.testing.assert_array_equal(by_id, many(mel, speaker=table[[3, 0, 3]], seed=5))
    np.testing.assert_array_equal(by_id[0], many(mel[0], speaker=3, seed=5))
    np.testing.assert_array_equal(by_id[0], many(mel[0], speaker=table[3].astype(np.float64), seed=5))
    assert (by_id[0] != many(mel[0], speaker=2, seed=5)).any()
    np.testing.assert_array_equal(many(mel, speaker=1, seed=5)[2], many(mel[2], speaker=1, seed=7))
    for bad in (None, 4, -1, [0, 1], [0, 1, 4], "anna", np.zeros(4), np.zeros((2, 3)), np.full(3, np.nan), True):
        with pytest.raises((InputError, ShapeError), match="speaker"):
            many(mel, speaker=bad)


def test_threads(checkpoint, backend, voc, mel, sound):
    for threads in (1, 2, 3, 64):
        several = Vocoder(checkpoint, backend, device_of(backend), "fp32", threads=threads)
        assert several.threads == threads
        np.testing.assert_array_equal(several(mel, seed=5), sound)
    for threads in (0, -1, 1025, 1.0, "2", True):
        with pytest.raises(InputError, match=r"threads is .*give 1 … 1024"):
            Vocoder(checkpoint, backend, device_of(backend), threads=threads)
    assert voc.threads >= 1


def test_threads_ignore_the_environment(checkpoint, backend, monkeypatch):
    for value in ("0", "abc"):
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert Vocoder(checkpoint, backend, device_of(backend)).threads >= 1


# --- mel, copy synthesis, likelihood ----------------------------------------------------------------------------


def test_mel_and_copy_synthesis(voc):
    wav = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 100)).astype(np.float32)
    mels = voc.mel(wav, voc.sample_rate)
    assert mels.shape == (2, voc.n_mels, 1 + 100 // voc.hop_length)
    np.testing.assert_array_equal(voc.mel(wav[1], voc.sample_rate), mels[1])
    np.testing.assert_array_equal(voc.copy_synthesis(wav, voc.sample_rate, seed=3), voc(mels, seed=3))
    with pytest.raises(AudioError, match=r"16000 Hz, this voice 8000 Hz; .*resample=True"):
        voc.mel(wav, 16000)
    assert voc.mel(wav, 16000, resample=True).shape == (2, voc.n_mels, 1 + 50 // voc.hop_length)
    for rate in (0, -8000, "8000", None, float("nan")):
        with pytest.raises(AudioError, match="sr is"):
            voc.mel(wav, rate)


def test_mel_of_a_tensor_is_a_tensor(voc):
    torch = pytest.importorskip("torch")
    wav = torch.rand(100) - 0.5
    for rate in (voc.sample_rate, 2 * voc.sample_rate):
        assert isinstance(voc.mel(wav, rate, resample=True), torch.Tensor)


MODELS = {
    "classes": {},
    "scalar classes": {"input": ScalarInput(kernel_size=2), "head": CategoricalHead(64), "signal": Signal("mulaw")},
    "logistics": {"input": ScalarInput(), "head": LogisticHead(3), "signal": Signal(preemphasis=0.5, gain=0.9)},
    "speakers": {"speakers": Speakers(channels=3, count=4)},
}


@pytest.mark.parametrize("model", MODELS)
def test_nll_is_what_the_references_logits_give(make_checkpoint, make_config, backend, mel, model):
    torch = pytest.importorskip("torch")
    from wavenet_fast.reference import Reference
    from wavenet_fast.sampling import nll_bits
    from wavenet_fast.signal import fed_back, to_model_domain

    checkpoint = make_checkpoint(make_config(**MODELS[model]))
    config = checkpoint.config
    voc = Vocoder(checkpoint, backend, device_of(backend), "fp32")
    speaker = [3, 0, 1] if model == "speakers" else None
    sound = voc(mel, seed=5, speaker=speaker)
    target = to_model_domain(sound, config)
    heard = fed_back(target, config)
    history = np.concatenate([np.full((3, 1), config.start, heard.dtype), heard[:, :-1]], axis=1)
    reference = Reference(config, {name: torch.tensor(w) for name, w in checkpoint.weights.items()})
    vectors = None if speaker is None else reference.weights["speakers.weight"][speaker]
    logits = reference.forward(torch.from_numpy(history), reference.conditioning(torch.from_numpy(mel), vectors))
    expected = nll_bits(logits.numpy(), target, config.head, config.signal.levels).mean(axis=1)
    bits = voc.nll(mel, sound, speaker=speaker)
    assert bits.shape == (3,) and bits.dtype == np.float64
    np.testing.assert_allclose(bits, expected, rtol=1e-5)


def test_nll_of_one_utterance_is_a_number(voc, mel, sound):
    bits = voc.nll(mel, sound)
    alone = voc.nll(mel[1], sound[1])
    assert isinstance(alone, float) and alone == bits[1]
    assert (voc.nll(mel, -sound) > bits).all()


def test_nll_does_not_depend_on_the_size_of_blocks(voc, mel, sound, monkeypatch):
    whole = voc.nll(mel, sound)
    monkeypatch.setattr("wavenet_fast.likelihood._BLOCK_LOGITS", 1)
    np.testing.assert_allclose(voc.nll(mel, sound), whole, rtol=1e-12)


def test_nll_lengths_may_differ_by_less_than_a_hop(voc, mel, sound):
    hop = voc.hop_length
    shorter = voc.nll(mel[0], sound[0, : 1 - hop])
    longer = voc.nll(mel[0], np.concatenate([sound[0], np.ones(hop - 1, np.float32)]))
    assert longer == voc.nll(mel[0], sound[0]) and shorter != longer
    for n in (sound.shape[1] - 2 * hop, sound.shape[1] + hop):
        with pytest.raises(ShapeError, match=f"the waveform has {n}; they must agree to within a hop"):
            voc.nll(mel[0], np.resize(sound[0], n))
    # A centred recipe makes one frame more than whole hops: what voc.mel gives always fits.
    for n in (5 * hop, 5 * hop + 1, 6 * hop - 1):
        wav = np.resize(sound[0], n)
        assert np.isfinite(voc.nll(voc.mel(wav, voc.sample_rate), wav))


def test_nll_bad_input(voc, mel, sound):
    with pytest.raises(InputError, match="the waveform is empty"):
        voc.nll(mel[0, :, :0], sound[0, :0])
    with pytest.raises(ShapeError, match="batch"):
        voc.nll(mel, sound[0])
    with pytest.raises(ShapeError, match="batch"):
        voc.nll(mel[:2], sound)
    with pytest.raises(InputError, match="16-bit integers: divide by 32768"):
        voc.nll(mel[0], (sound[0] * 32767).astype(np.int16))
    with pytest.raises(InputError, match="nan at utterance 0, sample 3"):
        voc.nll(mel, np.where(np.arange(sound.shape[1]) == 3, np.nan, sound))


def test_nll_undoes_nothing_twice(make_checkpoint, make_config, backend, mel):
    """With pre-emphasis and gain, own samples are still the likeliest: the domain is that of the model."""
    config = make_config(signal=Signal(preemphasis=0.9, gain=0.5))
    voc = Vocoder(make_checkpoint(config), backend, device_of(backend), "fp32")
    sound = voc(mel[0], temperature=0.3)
    assert voc.nll(mel[0], sound * 0.9) > voc.nll(mel[0], sound) < voc.nll(mel[0], sound * 1.1)


# --- recipes ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def speech_like(make_checkpoint, make_config):
    """A voice that knows the statistics of its training mels, and a mel that follows them."""
    checkpoint = make_checkpoint(make_config(n_mels=20, hop_length=8))
    mean, scale = np.linspace(-3, -7, 20).astype(np.float32), np.full(20, 1.5, np.float32)
    weights = {**checkpoint.weights, "mel.mean": mean, "mel.scale": scale}
    mel = mean[:, None] + scale[:, None] * np.random.default_rng(0).standard_normal((20, 40)).astype(np.float32)
    return Checkpoint(checkpoint.config, checkpoint.mel, weights), mel.clip(np.log(1e-5))


def test_a_mel_of_another_recipe_is_noticed(speech_like, backend):
    checkpoint, mel = speech_like
    voc = Vocoder(checkpoint, backend, device_of(backend), "fp32")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        voc(mel[:, :1])
        next(voc.stream(mel))
    decibels = mel * (20 / np.log(10))
    with pytest.warns(MelMismatchWarning, match="decibels") as told:
        next(voc.stream(decibels))
    assert told[0].filename == __file__
    blocks = (decibels[:, f : f + 4] for f in range(0, 40, 4))
    with pytest.warns(MelMismatchWarning), voc.streaming() as lane:
        for block in blocks:
            lane.step(block)
    strict = Vocoder(checkpoint, backend, device_of(backend), "fp32", strict_mel=True)
    with pytest.raises(InputError, match="decibels"):
        strict(decibels)
    # Only what the lengths count is looked at, in every utterance.
    padded = np.stack([np.concatenate([mel[:, f : f + 6], decibels], axis=1) for f in (0, 6)])
    strict(padded, lengths=[6, 6])
    with pytest.raises(InputError, match="decibels"):
        strict(padded, lengths=[6, 40])


def test_a_voice_without_statistics_notices_too_and_one_without_a_recipe_does_not(speech_like):
    checkpoint, mel = speech_like
    mel, spec = np.tile(mel, 3), msgspec.structs.replace(checkpoint.mel, n_fft=512, win_length=512)
    weights = {name: value for name, value in checkpoint.weights.items() if not name.startswith("mel.")}
    voc = Vocoder(Checkpoint(checkpoint.config, spec, weights), "cpu", dtype="fp32")
    decibels = mel * (20 / np.log(10))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        voc(mel)
        with pytest.raises(MelMismatchWarning, match=r"decibels.*--mel-from db"):
            voc(decibels)
        elsewhere = msgspec.structs.replace(spec, normalize="elsewhere")
        for kept in (weights, checkpoint.weights):
            Vocoder(Checkpoint(checkpoint.config, elsewhere, kept), "cpu", dtype="fp32")(decibels)


# --- living with it ---------------------------------------------------------------------------------------------


def test_what_python_would_refuse_is_refused_in_a_sentence(voc, mel):
    ragged = [[1], [1, 2]]
    for call in (
        lambda: voc(mel, lengths=ragged), lambda: voc(ragged), lambda: voc(mel, temperature=10**400),
        lambda: voc.streaming(2).reset(ragged), lambda: voc.nll(mel, ragged),
    ):  # fmt: skip
        with pytest.raises((InputError, ShapeError)):
            call()


def test_a_negated_view_of_a_tensor(voc, mel, sound):
    torch = pytest.importorskip("torch")
    negated = torch._neg_view(torch.tensor(-mel))
    assert negated.is_neg()
    np.testing.assert_array_equal(voc(negated, seed=5).numpy(), sound)


@pytest.mark.parametrize("sr", [0, -1, 1, 1e-9, 1e9, np.inf, np.nan, True, "8000"])
def test_sample_rates_that_are_none(voc, sr):
    with pytest.raises(AudioError, match="1000 … 384000 Hz"):
        voc.mel(np.zeros(8000, np.float32), sr, resample=True)


def test_sound_with_its_channels_last_is_explained(voc):
    for stereo in (np.zeros((4000, 2), np.float32), np.zeros((4000, 1), np.float32)):
        with pytest.raises(ShapeError, match=r"looks like \(samples, channels\)"):
            voc.mel(stereo, voc.sample_rate)


def test_save_and_load(voc, backend, mel, sound, tmp_path):
    voc.save_pretrained(tmp_path / "voice")
    for path in (tmp_path / "voice", str(tmp_path / "voice")):
        again = Vocoder.from_pretrained(path, backend=backend, device=device_of(backend), dtype="fp32")
        np.testing.assert_array_equal(again(mel, seed=5), sound)


def test_what_it_says_about_itself(voc, checkpoint, backend):
    assert (voc.sample_rate, voc.hop_length, voc.n_mels) == (8000, 6, 5)
    assert (voc.backend, voc.device, voc.dtype) == (backend, device_of(backend), "fp32")
    assert voc.config == checkpoint.config and voc.mel_spec == checkpoint.mel
    assert voc.lookahead_frames == 2
    assert "8000 Hz, 5 mels, hop 6" in repr(voc) and backend in repr(voc)


def test_how_a_call_runs_is_told_before_it_is_made(voc, backend):
    for streams in (1, np.int64(20)):
        plan = voc.plan(streams)
        assert str(plan).startswith(f"{backend}, ") and json.dumps(plan.details)
    for wrong in (0, -1, True, 1.0, "2", None):
        with pytest.raises(InputError, match=r"^streams is .*; give the number of utterances of a call, 1 or more"):
            voc.plan(wrong)


def test_unknown_devices_and_formats(checkpoint, backend):
    with pytest.raises(BackendError, match="device is 'tpu'"):
        Vocoder(checkpoint, backend, device="tpu")
    with pytest.raises(BackendError, match="dtype is 'fp8'"):
        Vocoder(checkpoint, backend, device_of(backend), "fp8")


def test_bf16_is_another_number_format_but_nearly_the_same_model(checkpoint, backend, voc, mel, sound):
    reduced = Vocoder(checkpoint, backend, device_of(backend), "bf16")
    assert reduced.dtype == "bf16"
    assert abs(reduced.nll(mel, sound) - voc.nll(mel, sound)).max() < 0.1
    assert (reduced.nll(mel, sound) != voc.nll(mel, sound)).any()


def test_use_after_close(checkpoint, backend, mel):
    with Vocoder(checkpoint, backend, device_of(backend)) as voc:
        voc(mel[0, :, :1])
    voc.close()
    assert "closed" in repr(voc)
    uses = (
        lambda: voc(mel), lambda: voc.stream(mel[0]), voc.streaming, lambda: voc.nll(mel, mel), lambda: voc.backend,
        lambda: voc.mel(mel[0, 0], 8000), lambda: voc.save_pretrained("x"), voc.__enter__, lambda: pickle.dumps(voc),
    )  # fmt: skip
    for use in uses:
        with pytest.raises(StateError, match="this Vocoder is closed; load the voice again"):
            use()


def test_two_threads_at_the_same_time(voc, mel, sound):
    results: dict[int, np.ndarray] = {}

    def work(b: int) -> None:
        for _ in range(3):
            results[b] = voc(mel[b], seed=5 + b)

    threads = [threading.Thread(target=work, args=(b,)) for b in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for b in range(3):
        np.testing.assert_array_equal(results[b], sound[b])


def _vocode(voc: Vocoder, mel: np.ndarray) -> np.ndarray:
    return voc(mel, seed=5)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_after_use(voc, mel, sound, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system cannot {method}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: forking a process that has threads
        with multiprocessing.get_context(method).Pool(1) as pool:
            if method == "spawn":
                # The child cannot import this file by name, so it calls what it can import.
                given = pool.apply_async(voc, (mel,), {"seed": 5})
            else:
                given = pool.apply_async(_vocode, (voc, mel))
            np.testing.assert_array_equal(given.get(timeout=240), sound)
