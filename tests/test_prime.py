"""`voc.streaming(…).prime`: a past that the streams did not speak, heard as if they had."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from engine_models import MODELS, random_mel, small, speaker_vectors
from last_device import device_of

from wavenet_fast import InputError, ShapeError, StateError, Vocoder, streaming
from wavenet_fast.config import Conditioning, FrameConv, Linear, OneHotInput, Signal
from wavenet_fast.rng import utterance_seeds
from wavenet_fast.signal import fed_back, to_model_domain

# The gain keeps the sound, up to ten times what is drawn, away from where it is clipped.
EMPHASISED = small(
    input=OneHotInput(kernel_size=2), signal=Signal(preemphasis=0.9, gain=16.0),
    conditioning=Conditioning(network=(FrameConv(7, 3, activation="tanh"),), upsampling=Linear()),
)  # fmt: skip
CONFIGS = {
    name: MODELS[name]
    for name in ("logistic", "gaussian", "gaussian-mixture", "scalar-categorical", "no-bias", "wide-input")
} | {"emphasised": EMPHASISED}
EXACT = ("gaussian-mixture", "no-bias", "wide-input", "emphasised")
"""Voices whose sound says exactly what was drawn, so that hearing it is having spoken it."""
EMULATED = {"triton": ("logistic", "gaussian", "wide-input", "emphasised"), "cuda": ("gaussian", "wide-input")}
"""Where kernels take seconds to compile. Together those of `triton` have what concerns a primed state: every
upsampling, both inputs, wide ones, speakers, pre-emphasis; `cuda` shares with it all but the rings."""
FRAMES, LANES, SEED = 9, 3, 5


class Voice:
    def __init__(self, name, checkpoint, backend):
        self.name, self.config = name, checkpoint.config
        self.voc = Vocoder(checkpoint, backend, device_of(backend), "fp32")
        self.ahead, self.hop = self.voc.lookahead_frames, self.voc.hop_length
        self.mel = random_mel(self.config, FRAMES, LANES)
        self.wav = np.random.default_rng(3).uniform(-0.7, 0.7, (LANES, FRAMES * self.hop)).astype(np.float32)
        self.speakers = speaker_vectors(self.config, LANES)

    def streams(self):
        return self.voc.streaming(LANES, seed=SEED, temperature=0.8, speaker=self.speakers)

    def prime(self, streams, wav, first, last, mask=None):
        """Let streams that stand at frame `first` have spoken frames first … last − 1 of the utterance wav (B, N)."""
        known = first + self.ahead if first else 0
        streams.prime(wav[:, first * self.hop : last * self.hop], self.mel[:, :, known : last + self.ahead], mask)

    def rest(self, streams, at):
        """The sound of the utterance after frame `at`."""
        return np.concatenate([streams.step(self.mel[:, :, at + self.ahead :]), streams.flush()], axis=1)


def same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


@pytest.fixture(scope="module", params=CONFIGS)
def voice(request, backend, make_checkpoint):
    if request.param not in EMULATED.get(backend, CONFIGS):
        pytest.skip("each kernel takes seconds to compile")
    return Voice(request.param, make_checkpoint(CONFIGS[request.param]), backend)


@pytest.fixture(scope="module")
def plain(backend, make_checkpoint):
    """One voice that looks ahead and has pre-emphasis, for what does not depend on the voice."""
    return Voice("emphasised", make_checkpoint(EMPHASISED), backend)


# --- what it means ----------------------------------------------------------------------------------------------


def test_priming_with_ones_own_sound_changes_nothing(voice):
    if voice.name not in EXACT:
        pytest.skip("its sound is rounded between what is drawn and what is heard")
    with voice.streams() as spoken, voice.streams() as primed, voice.streams() as later:
        whole = np.concatenate([spoken.step(voice.mel), spoken.flush()], axis=1)
        assert np.abs(whole).max() < 1 or not voice.config.signal.preemphasis
        voice.prime(primed, whole, 0, 5)
        assert (primed.positions == 5 * voice.hop).all()
        np.testing.assert_array_equal(voice.rest(primed, 5), whole[:, 5 * voice.hop :])
        later.step(voice.mel[:, :, : 2 + voice.ahead])  # a running lane
        voice.prime(later, whole, 2, 5)
        np.testing.assert_array_equal(voice.rest(later, 5), whole[:, 5 * voice.hop :])


def test_the_recording_is_heard_as_the_network_hears_it_and_speaking_goes_on(voice):
    """Against the engine, forced: the same state, and the same sound after."""
    at, engine = 5, voice.voc._engine
    state = engine.start(utterance_seeds(SEED, LANES), voice.speakers)
    frames, going = np.full(LANES, at + voice.ahead), np.zeros(LANES, bool)
    forced = fed_back(to_model_domain(voice.wav, voice.config), voice.config)
    engine.advance(state, voice.mel[:, :, : at + voice.ahead], frames, going, 1.0, forced=forced)
    with voice.streams() as streams:
        voice.prime(streams, voice.wav, 0, at)
        same(state.state_dict(), {name: streams.state_dict()[name] for name in state.state_dict()})
        left = np.full(LANES, FRAMES - at - voice.ahead)
        mel = np.ascontiguousarray(voice.mel[:, :, at + voice.ahead :])
        expected, _ = engine.advance(state, mel, left, ~going, 0.8)
        np.testing.assert_array_equal(voice.rest(streams, at), expected)


def test_what_was_primed_is_remembered(voice):
    after = []
    for past in (voice.wav, -voice.wav):
        with voice.streams() as streams:
            voice.prime(streams, past, 0, 5)
            after.append(voice.rest(streams, 5))
    with voice.streams() as streams:
        own = streams.step(voice.mel)
        after.append(np.concatenate([own, streams.flush()], axis=1)[:, 5 * voice.hop :])
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (after[one] != after[other]).any(axis=1).all()


@pytest.mark.parametrize("cuts", [(0, 2, 5), (0, 1, 4, 4, 5)])
def test_pieces_and_blocks_are_the_whole(voice, cuts, monkeypatch):
    with voice.streams() as whole, voice.streams() as pieces, voice.streams() as blocks:
        voice.prime(whole, voice.wav, 0, 5)
        for first, last in pairwise(cuts):
            voice.prime(pieces, voice.wav, first, last)
        same(whole.state_dict(), pieces.state_dict())
        monkeypatch.setattr(streaming, "_PRIME_SAMPLES", cuts[1] * LANES * voice.hop)
        voice.prime(blocks, voice.wav, 0, 5)
        same(whole.state_dict(), blocks.state_dict())


def test_speaking_and_priming_take_turns(plain):
    """A recording goes on from the sound before it, the stream's own or primed, wherever the state has been."""
    with plain.streams() as first, plain.streams() as second:
        own = first.step(plain.mel[:, :, : 2 + plain.ahead])
        second.load_state_dict(first.state_dict())
        for streams in (first, second):
            plain.prime(streams, plain.wav, 2, 4)
        same(first.state_dict(), second.state_dict())
        second.reset()
        plain.prime(second, np.concatenate([own, plain.wav[:, 2 * plain.hop :]], axis=1), 0, 4)
        same(first.state_dict(), second.state_dict())
        first.reset([False, True, False])
        with plain.streams() as fresh:
            plain.prime(fresh, plain.wav, 0, 3, [False, True, False])
            plain.prime(first, plain.wav, 0, 3, [False, True, False])
            assert first.state_dict()["last_sample"][1] == fresh.state_dict()["last_sample"][1] == plain.wav[1, 17]
            left = plain.mel[:, :, 3 + plain.ahead :], [0, FRAMES - 3 - plain.ahead, 0]
            np.testing.assert_array_equal(first.step(*left)[1], fresh.step(*left)[1])


def test_lanes_outside_the_mask_stand_still(voice):
    with voice.streams() as streams, voice.streams() as others, voice.streams() as all_lanes:
        for lanes in (streams, others):
            lanes.step(voice.mel[:, :, : 2 + voice.ahead])
            lanes.reset([True, False, True])
        wav, mel = voice.wav[:, : 4 * voice.hop].copy(), voice.mel[:, :, : 4 + voice.ahead].copy()
        wav[1:], mel[1:] = np.nan, np.nan
        streams.set_exec_mask([True, True, False])
        streams.prime(wav, mel, [True, False, True])
        assert list(streams.positions) == [4 * voice.hop, 2 * voice.hop, 0]
        streams.set_exec_mask([False, False, False])
        streams.prime(wav, mel)
        streams.set_exec_mask([True, True, True])
        assert (streams.state_dict()["last_sample"][1:] == others.state_dict()["last_sample"][1:]).all()
        voice.prime(all_lanes, voice.wav, 0, 4)
        frames, alone = voice.mel[:, :, 4 + voice.ahead :], np.array([True, False, False])
        streams.set_exec_mask(alone)
        all_lanes.set_exec_mask(alone)
        np.testing.assert_array_equal(streams.step(frames)[0], all_lanes.step(frames)[0])
        for lanes in (streams, others):
            lanes.set_exec_mask(~alone)
        np.testing.assert_array_equal(streams.step(voice.mel), others.step(voice.mel))


def test_sound_beyond_full_scale_is_clipped_however_loud(voice):
    loud, louder = voice.streams(), voice.streams()
    with loud, louder:
        voice.prime(loud, np.sign(voice.wav) * np.float32(100), 0, 4)
        voice.prime(louder, np.sign(voice.wav) * np.float32(3e38), 0, 4)
        same(*({**streams.state_dict(), "last_sample": None} for streams in (loud, louder)))


# --- what is refused --------------------------------------------------------------------------------------------


def test_a_refusal_moves_nothing(plain):
    wav, mel = plain.wav[:, : 4 * plain.hop], plain.mel[:, :, : 4 + plain.ahead]
    broken, silent = wav.copy(), mel.copy()
    broken[2, 7], silent[1, 3, 2] = np.inf, np.nan
    refused = (
        (ShapeError, r"23 samples; .* whole frames of 6 samples: 18 or 24", wav[:, :-1], mel),
        (ShapeError, r"got 4 frames for 24 samples; give 6: .* 4 frames of 6 .* depend on 2 more", wav, mel[:, :, :4]),
        (ShapeError, "got 6 frames for 18 samples; give 5", wav[:, :18], mel),
        (ShapeError, "2 streams; this context has 3 lanes", wav[:2], mel),
        (ShapeError, "for 3 lanes; give", wav, mel[:2]),
        (ShapeError, "1 streams; this context has 3 lanes", wav[0], mel[0]),
        (ShapeError, "transposed", wav, mel.swapaxes(1, 2)),
        (InputError, "inf at utterance 2, sample 7", broken, mel),
        (InputError, "nan at utterance 1, frame 2, band 3", wav, silent),
        (InputError, "give floating point", (wav * 9).astype(int), mel),
        (InputError, "one True or False per stream", wav, mel, [True]),
        (InputError, "layout", wav, mel, None, "x"),
    )
    with plain.streams() as streams:
        before = streams.state_dict()
        for error, sentence, *arguments in refused:
            with pytest.raises(error, match=sentence):
                streams.prime(*arguments)
            same(before, streams.state_dict())


def test_lanes_that_cannot_be_primed_together_or_at_all(plain):
    wav, mel = plain.wav[:, : 4 * plain.hop], plain.mel
    with plain.streams() as streams:
        streams.step(mel[:, :, :5], counts=[0, 1, 5])
        before = streams.state_dict()
        with pytest.raises(StateError, match=r"streams \[0, 1, 2\] hold \[0, 1, 2\] frames that wait for look-ahead"):
            streams.prime(wav, mel[:, :, :6])
        with pytest.raises(ShapeError, match=r"got 6 frames for 24 samples; give 5: .* hold 1 of those already"):
            streams.prime(wav, mel[:, :, :6], [False, True, False])
        same(before, streams.state_dict())
        for lane, frames in ((0, 6), (1, 5), (2, 4)):
            streams.prime(wav, mel[:, :, :frames], np.arange(LANES) == lane)
        assert list(streams.positions) == [24, 24, 3 * plain.hop + 24]
        streams.flush([False, True, False])
        before = streams.state_dict()
        with pytest.raises(StateError, match="stream 1 has ended; reset it before priming, or leave it out"):
            streams.prime(wav, mel[:, :, :4])
        same(before, streams.state_dict())
        streams.prime(wav, mel[:, :, :4], [True, False, True])
    with pytest.raises(StateError, match="this streaming context is closed"):
        streams.prime(wav, mel[:, :, :6])


def test_a_failure_half_way_restores_all(plain, monkeypatch):
    engine = type(plain.voc._engine)
    advance, calls = engine.advance, []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return advance(*arguments, **options)

    with plain.streams() as streams:
        streams.step(plain.mel[:, :, : 2 + plain.ahead])
        before = streams.state_dict()
        monkeypatch.setattr(streaming, "_PRIME_SAMPLES", 1)
        monkeypatch.setattr(engine, "advance", interrupted)
        with pytest.raises(KeyboardInterrupt):
            plain.prime(streams, plain.wav, 2, 6)
        assert len(calls) == 3
        same(before, streams.state_dict())


def test_a_damaged_last_sample_is_refused(plain):
    with plain.streams() as streams:
        saved = streams.state_dict()
        for damage in (np.zeros(2, np.float32), np.zeros(3), np.full(3, np.nan, np.float32), [[1], [1, 2]]):
            with pytest.raises(StateError, match="last_sample"):
                streams.load_state_dict(saved | {"last_sample": damage})
        same(saved, streams.state_dict())


# --- how it is called -------------------------------------------------------------------------------------------


def test_one_lane_the_other_layout_and_tensors(plain):
    wav, mel = plain.wav[0, : 4 * plain.hop], plain.mel[0, :, : 4 + plain.ahead]
    with plain.voc.streaming(seed=SEED) as lane, plain.voc.streaming(seed=SEED) as other:
        assert lane.prime(wav, mel) is None
        other.prime(wav[None], mel.T[None], layout="tc")
        same(lane.state_dict(), other.state_dict())
        assert lane.flush().shape == (plain.ahead * plain.hop,)
        torch = pytest.importorskip("torch", reason="tensors need torch")
        other.reset()
        other.prime(torch.from_numpy(wav), torch.from_numpy(mel))
        assert isinstance(other.flush(), torch.Tensor)
        same(lane.state_dict(), other.state_dict())
