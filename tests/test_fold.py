"""`voc(mel, fold=N)`: where utterances are cut, how pieces are joined, and what an utterance's samples depend on."""

from __future__ import annotations

import wave
from functools import cache

import numpy as np
import pytest
from click.testing import CliRunner
from engine_models import MODELS, random_history, random_mel, random_weights, small, speaker_vectors
from hypothesis import given
from hypothesis import strategies as st
from last_device import device_of

from wavenet_fast import InputError, StateError, Vocoder, fold
from wavenet_fast.audio import read_audio
from wavenet_fast.backends import BACKENDS
from wavenet_fast.backends.base import Engine
from wavenet_fast.checkpoint import bundled_voices, resolve, save_checkpoint
from wavenet_fast.cli import cli
from wavenet_fast.conditioning import context_frames, lookahead_frames
from wavenet_fast.config import Conditioning, FrameConv, Linear, Signal, Speakers
from wavenet_fast.errors import ShapeError
from wavenet_fast.fold import cross_fade, cut, join, meeting_place

FRAMES = 151


@pytest.fixture
def short_overlaps(monkeypatch):
    """Overlaps of 12 … 18 frames in the small voice, so that FRAMES are enough for several pieces."""
    monkeypatch.setattr(fold, "SHORTEST", 0.004)
    monkeypatch.setattr(fold, "LONGEST", 0.0085)
    monkeypatch.setattr(fold, "FADE", 0.001)


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint, make_config):
    """Looks back and ahead in frames, has speakers, and a de-emphasis filter."""
    up = Conditioning(network=(FrameConv(7, 4, activation="tanh"),), upsampling=Linear())
    config = make_config(conditioning=up, speakers=Speakers(channels=3, count=4), signal=Signal(preemphasis=0.5))
    return make_checkpoint(config)


@pytest.fixture(scope="module")
def voc(checkpoint):
    return Vocoder(checkpoint, backend="cpu", dtype="fp32", threads=2)


@pytest.fixture(scope="module")
def mel(voc):
    return np.random.default_rng(1).standard_normal((3, voc.n_mels, FRAMES)).astype(np.float32)


# --- cutting ----------------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.integers(1, 40))
def test_pieces_cover_the_utterance_and_share_frames_with_one_neighbour(frames, n):
    config = small()
    starts, overlap = cut(frames, n, config)
    stops = np.append(starts[1:] + overlap, frames)
    lengths = stops - starts
    assert 1 <= len(starts) <= n and starts[0] == 0
    assert (starts[1:] >= starts[:-1] + overlap).all(), "a frame in three pieces"
    assert lengths.max() - lengths.min() <= 1, "one piece holds up the others"
    seconds = (overlap * config.hop_length - fold.settling_samples(config)) / config.sample_rate
    if len(starts) > 1:
        assert fold.SHORTEST + fold.FADE <= seconds <= fold.LONGEST + fold.FADE + config.hop_length / config.sample_rate
        assert overlap > lookahead_frames(config)
    else:
        assert n == 1 or seconds <= 0


def test_long_utterances_get_all_pieces_and_short_ones_fewer():
    config = small()
    assert len(cut(100_000, 16, config)[0]) == 16
    assert [len(cut(frames, 16, config)[0]) for frames in (0, 1, 16, 400)] == [1, 1, 1, 1]
    counts = [len(cut(frames, 16, config)[0]) for frames in range(0, 9000, 100)]
    assert counts == sorted(counts) and set(range(1, 17)) <= set(counts)
    assert fold.settling_samples(small(signal=Signal(preemphasis=0.97))) == config.receptive_field + 227


# --- joining ----------------------------------------------------------------------------------------------------


def noise(n: int, seed: int, gain: float = 0.1) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(n) * gain).astype(np.float32)


def test_what_is_the_same_comes_out_bit_for_bit():
    sound = noise(900, 0)
    np.testing.assert_array_equal(join(sound, sound, 100, 50), sound)
    np.testing.assert_array_equal(cross_fade(sound, sound), sound)
    silence = np.zeros(900, np.float32)
    np.testing.assert_array_equal(join(silence, silence, 100, 50), silence)
    assert np.isfinite(cross_fade(sound, silence)).all()


@pytest.mark.parametrize("agree", [100, 417, 850])
def test_a_join_lies_where_the_two_agree(agree):
    early, late = noise(900, 1), noise(900, 2)
    late[agree : agree + 50] = early[agree : agree + 50]
    late[20:70] = early[20:70]  # before anything is settled: not looked at
    assert meeting_place(early, late, 100, 50) == agree
    joined = join(early, late, 100, 50)
    np.testing.assert_array_equal(joined[: agree + 50], early[: agree + 50])
    np.testing.assert_array_equal(joined[agree:], late[agree:])
    assert joined.dtype == np.float32


def test_a_join_prefers_what_is_quiet_to_what_is_loud():
    early, late = noise(900, 1), noise(900, 2)
    early[300:350] *= 1e-3
    late[300:350] *= 1e-3
    assert meeting_place(early, late, 100, 50) == 300


def test_a_cross_fade_keeps_the_loudness_of_strangers_and_is_linear_between_likes():
    a, b = noise(200_000, 3), noise(200_000, 4)
    middle = slice(90_000, 110_000)
    assert np.std(cross_fade(a, b)[middle]) == pytest.approx(0.1, rel=0.02)
    x = (np.arange(200_000) + 0.5) / 200_000
    np.testing.assert_allclose(cross_fade(a, 2 * a), a + x * a, rtol=1e-5)
    np.testing.assert_allclose(cross_fade(a, -a), (a - 2 * x * a) / np.sqrt((1 - x) ** 2 + x**2), rtol=1e-4, atol=1e-7)
    loud = np.full(100, 1, np.float32)
    assert np.abs(cross_fade(loud * np.sign(noise(100, 5)), loud * np.sign(noise(100, 6)))).max() <= 1


# --- streams that begin in the middle ---------------------------------------------------------------------------


def beginning(engine: Engine, mel: np.ndarray, first: list[int]) -> np.ndarray:
    """What `begin_at` takes, with NaN in what must not be read."""
    width, ahead = context_frames(engine.config) + lookahead_frames(engine.config), lookahead_frames(engine.config)
    window = np.full((len(first), len(mel), width), np.nan, np.float32)
    for row, start in zip(window, first, strict=True):
        known = mel[:, max(0, start + ahead - width) : start + ahead]
        row[:, width - known.shape[1] :] = known if start else np.nan
    return window


@cache
def engine_of(name: str, backend: str) -> Engine:
    return BACKENDS[backend].make(MODELS[name], random_weights(MODELS[name]), "fp32", device_of(backend))


@pytest.mark.parametrize("name", MODELS)
def test_a_stream_from_the_middle_is_the_whole_one_without_its_past(name, backend):
    """Under one history, the logits are the same once that history fills the receptive field; its draws follow the
    same uniforms. A fresh stream beside it is not touched."""
    if device_of(backend) == "emulated" and name not in ("odd", "logistic", "gaussian", "wide-input"):
        pytest.skip("each kernel takes seconds to compile: every kind of upsampling, head and input once")
    engine, config = engine_of(name, backend), MODELS[name]
    hop, ahead = config.hop_length, lookahead_frames(config)
    first = max(1, context_frames(config) - 1, 3)
    frames = first + ahead + -(-config.receptive_field // hop) + 2
    mel, history = random_mel(config, frames), random_history(config, frames * hop)
    speakers = speaker_vectors(config, 2)
    speakers = None if speakers is None else np.repeat(speakers[:1], 2, 0)
    logits = np.zeros((2, frames * hop, config.out_channels), np.float32)
    state = engine.start(np.array([7, 7], np.uint64), speakers)
    state.begin_at(np.array([first, 0]), beginning(engine, mel, [first, 0]))
    assert state.positions.tolist() == [first * hop, 0] and state.frames.tolist() == [first + ahead, 0]
    other = engine.start(np.array([1, 1], np.uint64), speakers)
    other.load_state_dict(state.state_dict())  # a state that a stream can arrive at
    block, new = np.full((2, len(mel), frames), np.nan, np.float32), np.array([frames - first - ahead, frames])
    for row, n in zip(block, new, strict=True):
        row[:, :n] = mel[:, frames - n :]
    forced = np.stack([np.concatenate([history[first * hop :], history[: first * hop]]), history])
    drawn, made = engine.advance(
        other, block, new, np.ones(2, bool), 1.0, forced=forced, logits=logits, raw=True
    )  # fmt: skip
    assert made.tolist() == [(frames - first) * hop, frames * hop]
    filled = config.receptive_field
    np.testing.assert_array_equal(logits[0, filled : made[0]], logits[1, first * hop + filled :])
    np.testing.assert_array_equal(drawn[0, filled : made[0]], drawn[1, first * hop + filled :])
    assert (logits[0, : made[0]] != logits[1, first * hop :]).any(), "the past was not forgotten"


def test_only_fresh_streams_begin_in_the_middle(backend):
    engine = engine_of("logistic", backend)
    mel = random_mel(engine.config, 30)
    window = beginning(engine, mel, [9])
    state = engine.start(np.zeros(1, np.uint64))
    with pytest.raises(ShapeError, match="mel"):
        state.begin_at(np.array([9]), window[:, :, 1:])
    with pytest.raises(ShapeError, match="first"):
        state.begin_at(np.array([9, 9]), window)
    with pytest.raises(StateError, match="fresh stream"):
        state.begin_at(np.array([-1]), window)
    state.begin_at(np.array([9]), window)
    with pytest.raises(StateError, match="reset"):
        state.begin_at(np.array([9]), window)
    state.reset(np.ones(1, bool))
    state.begin_at(np.array([9]), window)


# --- voc(mel, fold=N) -------------------------------------------------------------------------------------------


def whole(voc, mel, **options):
    return voc(mel, speaker=2, **options)


def test_one_piece_is_the_plain_call(voc, mel, short_overlaps):
    plain = whole(voc, mel, seed=5)
    for one in (None, 1, np.int64(1)):
        np.testing.assert_array_equal(whole(voc, mel, seed=5, fold=one), plain)
    np.testing.assert_array_equal(whole(voc, mel[0, :, :20], fold=9), whole(voc, mel[0, :, :20]))
    assert voc(mel[0, :, :0], speaker=2, fold=3).shape == (0,)


@pytest.mark.parametrize("n", [2, 3, 5, 400])
def test_pieces_begin_as_the_plain_call_and_are_each_a_stream_of_the_utterance(
    voc, mel, short_overlaps, monkeypatch, n
):
    """Between two joins, the samples are those of one stream that began at its piece's first frame."""
    plain, config, hop = whole(voc, mel[0], seed=5), voc.config, voc.hop_length
    starts, overlap = cut(FRAMES, n, config)
    assert len(starts) == min(n, 9)
    met = []
    monkeypatch.setattr(fold, "meeting_place", lambda *given: met.append(meeting_place(*given)) or met[-1])
    sound = whole(voc, mel[0], seed=5, fold=n)
    fade, settle = fold.fade_samples(config), fold.settling_samples(config)
    places = [int(start) * hop + at for start, at in zip(starts[1:], met, strict=True)]
    assert all(settle <= at <= overlap * hop - fade for at in met)
    np.testing.assert_array_equal(sound[: places[0]], plain[: places[0]])
    engine, table = voc._engine, voc._checkpoint.weights["speakers.weight"]
    for i, start in enumerate(starts[1:].tolist()):
        state = engine.start(np.array([5], np.uint64), table[2:3])
        state.begin_at(np.array([start]), beginning(engine, mel[0], [start]))
        rest = mel[:1, :, start + lookahead_frames(config) :]
        alone, _ = engine.advance(state, rest, np.array([rest.shape[2]]), np.ones(1, bool), 1.0)
        begin, end = places[i] + fade, [*places, len(sound)][i + 1]
        np.testing.assert_array_equal(sound[begin:end], alone[0, begin - start * hop : end - start * hop])
    assert (sound != plain).any()


def test_an_utterance_depends_on_nothing_beside_it(voc, mel, checkpoint, short_overlaps, monkeypatch):
    lengths = [FRAMES, 97, 30]
    padded = mel.copy()
    for row, length in zip(padded, lengths, strict=True):
        row[:, length:] = np.nan
    sound, samples = whole(voc, padded, lengths=lengths, seed=[5, 2**64 - 1, 7], fold=4)
    assert samples.tolist() == [n * voc.hop_length for n in lengths]
    monkeypatch.setattr(fold, "_PIECE_VALUES", 1)  # a few frames a call of the engine
    single = Vocoder(checkpoint, backend="cpu", dtype="fp32", threads=1)
    for b, (length, seed) in enumerate(zip(lengths, [5, 2**64 - 1, 7], strict=True)):
        alone = whole(single, mel[b, :, :length], seed=seed, fold=4)
        np.testing.assert_array_equal(sound[b, : samples[b]], alone)
        assert not sound[b, samples[b] :].any()
    assert (whole(voc, mel[0], seed=6, fold=4) != sound[0]).any()
    assert (voc(mel[0], seed=5, speaker=3, fold=4) != sound[0]).any()
    each = voc(mel, seed=5, speaker=[2, 3, 1], fold=4)
    np.testing.assert_array_equal(each[0], sound[0])
    np.testing.assert_array_equal(each[1], voc(mel[1], seed=6, speaker=3, fold=4))


def test_the_reference_folds_alike(checkpoint, voc, mel, short_overlaps):
    """Begun by the other backend, the pieces are cut and placed alike: their first part is its own plain call."""
    pytest.importorskip("torch")
    slow = Vocoder(checkpoint, backend="reference", dtype="fp32")
    part = mel[0, :, :60]
    assert len(cut(60, 2, voc.config)[0]) == 2
    a, b = whole(slow, part, fold=2), whole(voc, part, fold=2)
    assert a.shape == b.shape and np.corrcoef(a, b)[0, 1] > 0.9
    begin = int(cut(60, 2, voc.config)[0][1]) * voc.hop_length
    np.testing.assert_array_equal(a[:begin], whole(slow, part)[:begin])


def test_progress_counts_the_samples_asked_for_and_can_stop(voc, mel, short_overlaps, monkeypatch):
    monkeypatch.setattr(fold, "_PIECE_VALUES", 1)
    told = []
    whole(voc, mel, fold=4, progress=lambda done, total: told.append((done, total)))
    total = 3 * FRAMES * voc.hop_length
    assert len(told) > 5 and told == sorted(told) and told[-1] == (total, total) and {t for _, t in told} == {total}

    class Stop(Exception):
        pass

    def stop(done, total):
        raise Stop

    with pytest.raises(Stop):
        whole(voc, mel, fold=4, progress=stop)


@pytest.mark.parametrize("wrong", [0, -1, 2.0, True, "4", [2], float("nan")])
def test_fold_must_be_a_positive_integer(voc, mel, wrong):
    with pytest.raises(InputError, match=r"fold is .*; it is the number of pieces .* 1 \(not cut, exact\) or more"):
        whole(voc, mel, fold=wrong)


def test_copy_synthesis_passes_it_on(voc):
    wav = noise(6000, 9)
    np.testing.assert_array_equal(
        voc.copy_synthesis(wav, voc.sample_rate, speaker=1, fold=2),
        voc(voc.mel(wav, voc.sample_rate), speaker=1, fold=2),
    )


# --- the trained voice ------------------------------------------------------------------------------------------


def test_pieces_of_the_bundled_voice_fall_into_step(monkeypatch):
    """Sharing their randomness, two streams of different pasts come to agree: at every join of a real recording they
    are nearly the same (1 would be two strangers)."""
    voc = Vocoder.from_pretrained(bundled_voices()[0], backend="cpu", dtype="fp32")
    path = sorted((resolve(bundled_voices()[0]) / "samples").glob("*.flac"))[0]
    mel = voc.mel(*read_audio(path, voc.sample_rate))[:, :200]
    found = []

    def spy(a, b):
        a, b = a.astype(np.float64), b.astype(np.float64)
        found.append(float(((a - b) ** 2).sum() / (a @ a + b @ b)) if (a != b).any() else 0.0)
        return a.astype(np.float32)

    monkeypatch.setattr(fold, "cross_fade", spy)
    voc(mel, seed=1, fold=3)
    assert len(found) == 2 and max(found) < 0.3


# --- command line -----------------------------------------------------------------------------------------------


def test_the_command_line_folds(tmp_path, make_checkpoint, short_overlaps):
    voice = str(tmp_path / "voice")
    save_checkpoint(tmp_path / "voice", make_checkpoint())
    rng = np.random.default_rng(5)
    (tmp_path / "mels").mkdir()
    mels = {name: rng.standard_normal((5, frames)).astype(np.float32) for name, frames in (("a", 90), ("b", 7))}
    for name, mel in mels.items():
        np.save(tmp_path / "mels" / f"{name}.npy", mel)
    (tmp_path / "mels" / "c.npy").write_bytes(b"no mel")
    args = ["vocode", str(tmp_path / "mels"), "-o", str(tmp_path / "out"), "--voice", voice, "--seed", "3"]
    result = CliRunner().invoke(cli, [*args, "--fold", "3", "--quiet"])
    assert result.exit_code == 3 and "c.npy" in result.stderr
    voc = Vocoder.from_pretrained(voice)
    for name, mel in mels.items():
        with wave.open(str(tmp_path / "out" / f"{name}.wav")) as file:
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        np.testing.assert_array_equal(samples, np.rint(voc(mel, seed=3, fold=3) * 32767).astype("<i2"))
        assert (voc(mel, seed=3, fold=3) != voc(mel, seed=3)).any() == (name == "a")
    result = CliRunner().invoke(cli, [*args, "--fold", "3", "--batch", "2"])
    assert result.exit_code == 2 and "--fold 3" in result.stderr and "one of the two" in result.stderr
    assert CliRunner().invoke(cli, [*args, "--fold", "0"]).exit_code == 2
    assert "approximate" in CliRunner().invoke(cli, ["resynth", "--help"]).output
