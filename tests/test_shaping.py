"""The filter between what a network says and its sound: against plain arithmetic, and the laws of streams."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from wavenet_fast import Vocoder
from wavenet_fast.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from wavenet_fast.conditioning import lookahead_frames
from wavenet_fast.config import ScalarInput, Signal
from wavenet_fast.errors import CheckpointError, ConfigError, InputError, StateError
from wavenet_fast.importers.kan_bayashi import mlsa_response
from wavenet_fast.inspect import describe, format_description
from wavenet_fast.shaping import FILTER, MAX_TAPS, ShapedEngine, filtered, inverse

TAPS = np.array([0.3, -0.12, 0.05, 0.02, -0.01], np.float32)


@pytest.fixture(scope="module")
def voices(make_checkpoint: Any) -> tuple[Vocoder, Vocoder]:
    """The same network without the filter and with it."""
    plain: Checkpoint = make_checkpoint()
    with_filter = replace(plain, weights={**plain.weights, FILTER: TAPS})
    return Vocoder(plain, "cpu", dtype="fp32"), Vocoder(with_filter, "cpu", dtype="fp32")


def mel_of(voice: Vocoder, frames: int, batch: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, voice.n_mels, frames)).astype(np.float32)


def convolved(x: np.ndarray) -> np.ndarray:
    return np.stack([np.convolve(row.astype(np.float64), TAPS.astype(np.float64))[: len(row)] for row in x])


def test_the_sound_is_what_the_network_says_through_the_filter(voices: Any) -> None:
    plain, shaped = voices
    mel = mel_of(plain, 40, 3)
    said = plain(mel, seed=7)
    assert np.abs(said).max() > 0.5
    np.testing.assert_allclose(shaped(mel, seed=7), convolved(said), atol=1e-6)


def test_no_chunk_and_no_batch_changes_a_bit(voices: Any) -> None:
    _, shaped = voices
    mel = mel_of(shaped, 23, 3)
    whole = shaped(mel, seed=7)
    for b in range(3):
        np.testing.assert_array_equal(shaped(mel[b], seed=7 + b), whole[b])
        np.testing.assert_array_equal(np.concatenate(list(shaped.stream(mel[b], 1, seed=7 + b))), whole[b])
    with shaped.streaming(3, seed=7) as lanes:
        parts = []
        for first, last in ((0, 2), (2, 2), (2, 17), (17, 23)):
            saved = lanes.state_dict()
            lanes.step(mel[:, :, first:last] + 1)
            lanes.load_state_dict(saved)  # and again, as if that had not been
            parts.append(lanes.step(mel[:, :, first:last]))
        parts.append(lanes.flush())
        np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
        lanes.reset(seed=7)
        np.testing.assert_array_equal(lanes.step(mel)[:, :30], whole[:, :30])
        with pytest.raises(StateError, match="filter_past"):
            lanes.load_state_dict({**saved, "filter_past": np.zeros((3, 9), np.float32)})


def test_unequal_lanes_keep_their_own_past(voices: Any) -> None:
    _, shaped = voices
    mel = mel_of(shaped, 12, 2)
    sound, samples = shaped(mel, lengths=[5, 12], seed=[1, 2])
    np.testing.assert_array_equal(sound[0, : samples[0]], shaped(mel[0, :, :5], seed=1))
    assert not sound[0, samples[0] :].any()
    with shaped.streaming(2, seed=[1, 2]) as lanes:
        first = lanes.step(mel[:, :, :5], counts=[5, 0])
        rest = lanes.step(mel[:, :, :12], counts=[0, 12])
        np.testing.assert_array_equal(first[0], sound[0, : samples[0]])
        np.testing.assert_array_equal(rest[1], sound[1])


def test_sound_goes_on_from_a_forced_history(voices: Any) -> None:
    """What was heard, and not what would have been drawn, is behind the filter."""
    plain, shaped = voices
    engine = shaped._open()
    assert isinstance(engine, ShapedEngine)
    mel, counts, end = mel_of(plain, 8), np.array([8]), np.array([True])
    forced = np.random.default_rng(1).integers(0, 256, (1, 48)).astype(np.int32)
    seeds = np.array([3], np.uint64)
    said, _ = engine.inner.advance(engine.inner.start(seeds), mel, counts, end, 1.0, forced=forced)
    made, _ = engine.advance(engine.start(seeds), mel, counts, end, 1.0, forced=forced)
    from wavenet_fast.signal import heard_signal

    heard = heard_signal(forced, plain.config)
    expected = convolved(heard) + TAPS[0] * (said - heard)
    np.testing.assert_allclose(made, np.clip(expected, -1, 1), atol=1e-6)


def test_likelihood_is_that_of_what_the_network_would_have_said(voices: Any) -> None:
    plain, shaped = voices
    mel = mel_of(plain, 30)[0]
    said = plain(mel, seed=2) * np.float32(0.9)
    sound = convolved(said[None])[0].astype(np.float32)
    np.testing.assert_allclose(shaped.nll(mel, sound), plain.nll(mel, said), rtol=1e-2)


@pytest.mark.parametrize("pieces", [(5,), (2, 3)])
def test_streams_primed_with_their_own_sound_go_on_as_if_they_had_spoken_it(voices: Any, pieces: Any) -> None:
    """Of two lanes one is primed, by classes that come out of the sound through the filter undone; what stands for the
    other is not read."""
    _, shaped = voices
    hop = shaped.hop_length
    mel = mel_of(shaped, 12, 2)
    spoken = shaped(mel, seed=[4, 5])
    assert np.abs(spoken).max() < 1  # nothing is lost by clipping
    mel[1, :, :5] = np.nan
    ahead = lookahead_frames(shaped.config)
    with shaped.streaming(2, seed=[4, 5]) as lanes:
        heard, given = 0, 0
        for n in pieces:
            sound = np.where([[True], [False]], spoken[:, heard * hop : (heard + n) * hop], np.float32(np.nan))
            last = heard + n + ahead
            lanes.prime(sound, mel[:, :, given:last], mask=[True, False])
            heard, given = heard + n, last
        rest = np.nan_to_num(mel[:, :, given:])
        again = np.concatenate([lanes.step(rest, counts=[rest.shape[2], 0]), lanes.flush([True, False])], axis=1)
    np.testing.assert_array_equal(again[0], spoken[0, heard * hop :])


def test_streams_whose_filter_cannot_be_undone_are_not_primed(voices: Any, make_checkpoint: Any) -> None:
    plain: Checkpoint = make_checkpoint()
    voice = Vocoder(replace(plain, weights={**plain.weights, FILTER: np.array([0.5, 1.0], np.float32)}), "cpu")
    frames = 1 + lookahead_frames(voice.config)
    with voice.streaming(seed=1) as lane:
        with pytest.raises(InputError, match="cannot be undone"):
            lane.prime(np.zeros(voice.hop_length, np.float32), mel_of(voice, frames)[0])
        assert lane.positions.tolist() == [0]
        assert not lane._unchecked  # nor do those frames count when the mel's recipe is checked


def test_the_inverse_undoes_the_filter() -> None:
    x = np.random.default_rng(0).standard_normal((2, 300)).astype(np.float32)
    undone = inverse(TAPS)
    there = filtered(x, TAPS, np.zeros((2, len(TAPS) - 1), np.float32))
    np.testing.assert_allclose(filtered(there, undone, np.zeros((2, len(undone) - 1), np.float32)), x, atol=1e-5)
    for no_filter in ([0.5, 1.0], [1e-39, 0.0]):
        with pytest.raises(InputError, match="cannot be undone"):
            inverse(np.array(no_filter, np.float32))


def test_it_is_part_of_the_voice(voices: Any, tmp_path: Any) -> None:
    _, shaped = voices
    shaped.save_pretrained(tmp_path / "voice")
    again = load_checkpoint(tmp_path / "voice")
    np.testing.assert_array_equal(again.weights[FILTER], TAPS)
    assert describe(again)["sound_filter_taps"] == 5 and "5 taps" in format_description(describe(again))
    for taps in (np.zeros((2, 3), np.float32), np.zeros(MAX_TAPS + 1, np.float32), np.zeros(0, np.float32)):
        with pytest.raises(CheckpointError, match=r"sound\.filter"):
            save_checkpoint(tmp_path / "bad", replace(again, weights={**again.weights, FILTER: taps}))


def test_what_it_cannot_do_is_a_sentence(voices: Any, make_checkpoint: Any, make_config: Any) -> None:
    _, shaped = voices
    from wavenet_fast.config import LogisticHead

    config = make_config(input=ScalarInput(), head=LogisticHead(), signal=Signal(preemphasis=0.5))
    emphasised = make_checkpoint(config)
    with pytest.raises(ConfigError, match="preemphasis"):
        Vocoder(replace(emphasised, weights={**emphasised.weights, FILTER: TAPS}), "cpu")
    engine = shaped._open()
    with pytest.raises(InputError, match="draws"):
        engine.advance(
            engine.start(np.zeros(1, np.uint64)), mel_of(shaped, 1), np.ones(1, int), np.ones(1, bool), 1.0, raw=True
        )


# --- kan-bayashi's noise shaping --------------------------------------------------------------------------------


def test_the_exponential_of_one_delay() -> None:
    """exp(c·z⁻¹) = Σ cⁿ/n!·z⁻ⁿ."""
    response = mlsa_response([0.0, 0.7], 0.0)
    expected = [0.7**n / math.factorial(n) for n in range(len(response))]
    np.testing.assert_allclose(response, expected, atol=1e-7)
    assert 5 < len(response) < 20


def test_mlsa_filters_are_those_of_sptk() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pysptk = pytest.importorskip("pysptk", reason="pysptk is not installed", exc_type=ImportError)
    rng = np.random.default_rng(0)
    mcep = rng.standard_normal(25) * 0.5 / (1 + np.arange(25))
    mcep[0] = 0
    coef = pysptk.mc2b(mcep, 0.41)
    x = rng.standard_normal(4000)
    synthesizer = pysptk.synthesis.Synthesizer(pysptk.synthesis.MLSADF(24, 0.41), hopsize=80)
    theirs = synthesizer.synthesis(x, np.tile(coef, [51, 1]))
    taps = mlsa_response(coef, 0.41)
    ours = filtered(x[None].astype(np.float32), taps, np.zeros((1, len(taps) - 1), np.float32))[0]
    # SPTK's filter approximates the exponential by a Padé approximant of fourth order.
    assert np.abs(ours - theirs).max() < 1e-3 * theirs.std()


@pytest.mark.parametrize(
    "coef, alpha", [([], 0.4), ([0, np.nan], 0.4), ([0, 1], 1.0), ([0, 1], np.nan), ([0, 900.0], 0.4)]
)
def test_filters_that_are_none(coef: Any, alpha: float) -> None:
    with pytest.raises(InputError, match="noise-shaping filter"):
        mlsa_response(coef, alpha)
