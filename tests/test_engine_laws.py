"""The laws of backends/base.py on the native engine, bit for bit: causality, chunking, independence of batch, slot and
threads, reset and restore. For every part of the configuration that could break them."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from engine_models import MODELS, SMALL, random_history, random_mel, random_weights, small, speaker_vectors
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import MISMATCHES

from wavenet_fast import _engine
from wavenet_fast.backends import usable_cores
from wavenet_fast.backends.cpu import CpuEngine, CpuState, isas_possible
from wavenet_fast.conditioning import context_frames, lookahead_frames
from wavenet_fast.config import Conditioning, Linear
from wavenet_fast.errors import BackendError
from wavenet_fast.packing import DTYPES
from wavenet_fast.rng import uniforms
from wavenet_fast.sampling import sample

FRAMES = 14
NAMES = ["tiny", "odd", *SMALL]
# Models by what their older taps do: dilations beyond and below all that is made at once, a past that is presumed, two
# taps.
AHEAD = {name: MODELS[name] for name in ("odd", "gaussian", "steady", "no-bias")} | {
    "far": small(dilations=(1, 20, 16, 3), hop_length=16)
}


@cache
def engine_of(name: str, dtype: str = "fp32", isa: str | None = None) -> CpuEngine:
    return CpuEngine(MODELS[name], random_weights(MODELS[name]), dtype, isa)


def start(engine: CpuEngine, seeds: list[int], speakers: Any = None) -> CpuState:
    vectors = speaker_vectors(engine.config, len(seeds)) if speakers is None else speakers
    return engine.start(np.array(seeds, np.uint64), vectors)


def feed(engine: CpuEngine, state: CpuState, mel: Any, frames: Any = None, ended: Any = True, **options: Any) -> Any:
    """One call: the sound and how much of it each stream has."""
    batch = state.batch
    frames = np.full(batch, mel.shape[2]) if frames is None else np.asarray(frames)
    ended = np.broadcast_to(np.asarray(ended), batch)
    return engine.advance(state, mel, frames, ended, options.pop("temperature", 0.9), **options)


@cache
def one_shot(name: str, dtype: str = "fp32", seed: int = 7) -> Any:
    """The sound of FRAMES frames, (T,): what all other ways of making it must equal."""
    engine = engine_of(name, dtype)
    sound, ready = feed(engine, start(engine, [seed]), random_mel(engine.config, FRAMES, 1))
    assert ready.tolist() == [FRAMES * engine.config.hop_length]
    assert np.unique(sound).size > 10  # not a constant, which would satisfy every law
    return sound[0]


# --- 1: causal --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_causal_in_samples(name: str, dtype: str) -> None:
    engine, config = engine_of(name, dtype), MODELS[name]
    mel = random_mel(config, FRAMES, 1)
    T = FRAMES * config.hop_length
    history, changed = random_history(config, T), T // 2
    logits = []
    for values in (history, np.concatenate([history[:changed], random_history(config, T, 9)[changed:]])):
        out = np.zeros((1, T, config.out_channels), np.float32)
        feed(engine, start(engine, [1]), mel, forced=values[None], logits=out)
        logits.append(out[0])
    first = changed + int(np.argmax(history[changed:] != values[changed:]))
    np.testing.assert_array_equal(logits[0][: first + 1], logits[1][: first + 1])
    assert (logits[0][first + 1] != logits[1][first + 1]).any()


@pytest.mark.parametrize("name", NAMES)
def test_causal_in_frames_up_to_the_look_ahead_and_no_less(name: str) -> None:
    """A frame changes its own samples, those of `lookahead_frames` frames before it, and none earlier."""
    engine, config = engine_of(name), MODELS[name]
    hop, ahead, changed = config.hop_length, lookahead_frames(config), 9
    T = FRAMES * hop
    mel = random_mel(config, FRAMES)
    other = mel.copy()
    other[:, changed] += 1
    history = random_history(config, T)
    stages = [engine.trace(m, history, 0, first_speaker(config))["conditioning"] for m in (mel, other)]
    differs = np.flatnonzero((stages[0] != stages[1]).any(axis=(1, 2)))
    assert differs[0] >= (changed - ahead) * hop
    assert differs[0] < (changed - ahead + 1) * hop, "the look-ahead is larger than it needs to be"
    assert differs[-1] < (changed + context_frames(config) + 1) * hop


def first_speaker(config: Any) -> Any:
    vectors = speaker_vectors(config, 1)
    return None if vectors is None else vectors[0]


# --- 2: any chunking --------------------------------------------------------------------------------------------


def in_chunks(engine: CpuEngine, sizes: list[int], seed: int = 7) -> Any:
    """FRAMES frames fed in pieces of these sizes, then the end; each call must return exactly what is ready."""
    config, state, pieces, fed = engine.config, start(engine, [seed]), [], 0
    mel = random_mel(config, FRAMES, 1)
    for size in sizes:
        size = min(size, FRAMES - fed)
        sound, ready = feed(engine, state, mel[:, :, fed : fed + size], ended=False)
        fed += size
        pieces.append(sound[0])
        assert ready[0] == sound.shape[1]
        assert state.positions[0] == max(0, fed - lookahead_frames(config)) * config.hop_length
    pieces.append(feed(engine, state, mel[:, :, fed:], ended=True)[0][0])
    return np.concatenate(pieces)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("name", NAMES)
def test_chunks_of_one_size_equal_one_shot(name: str, size: int, dtype: str) -> None:
    chunks = in_chunks(engine_of(name, dtype), [size] * (FRAMES // size + 1 if size else 3))
    np.testing.assert_array_equal(chunks, one_shot(name, dtype))


@given(name=st.sampled_from(NAMES), sizes=st.lists(st.integers(0, 5), max_size=12))
@settings(max_examples=60, deadline=None)
def test_any_chunking_equals_one_shot(name: str, sizes: list[int]) -> None:
    np.testing.assert_array_equal(in_chunks(engine_of(name), sizes), one_shot(name))


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("isa", isas_possible())
@pytest.mark.parametrize("name", ["odd", "logistic", "gaussian", "gaussian-mixture", "scalar-categorical", "no-bias"])
def test_conditioning_windows_change_no_bit(name: str, isa: str, dtype: str) -> None:
    """One call over many frames works in windows, of up to 512 frames; frame by frame, each call has windows of its
    own."""
    engine = engine_of(name, dtype, isa)
    config, frames = engine.config, 1100
    mel = random_mel(config, frames, 1)
    whole = feed(engine, start(engine, [4]), mel)[0][0]
    state, pieces = start(engine, [4]), []
    for f in range(frames):
        pieces.append(feed(engine, state, mel[:, :, f : f + 1], ended=f == frames - 1)[0][0])
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("at", [1, 4])
@pytest.mark.parametrize("size", [3e38, -3e38])
@pytest.mark.parametrize("name", NAMES)
def test_a_frame_beyond_all_measure_changes_no_sample_before(name: str, size: float, at: int, dtype: str) -> None:
    engine = engine_of(name, dtype)
    c = engine.config
    mel = random_mel(c, 6, 1)
    mel[..., at] = size
    whole = feed(engine, start(engine, [4]), mel)[0][0]
    alone = feed(engine, start(engine, [4]), mel[..., :at], ended=False)[0][0]
    assert len(alone) == max(0, at - lookahead_frames(c)) * c.hop_length
    np.testing.assert_array_equal(whole[: len(alone)], alone)


# --- 3: batch, slot, threads ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 2, 5, 300])
@pytest.mark.parametrize("name", NAMES)
def test_streams_do_not_depend_on_batch_slot_or_threads(name: str, threads: int, dtype: str) -> None:
    """Five streams of different lengths, one empty, together and each alone."""
    engine, config = engine_of(name, dtype), MODELS[name]
    lengths, seeds = np.array([5, 0, FRAMES, 1, 9]), [11, 12, 7, 11, 2**64 - 1]
    mel = random_mel(config, FRAMES, 5)
    vectors = speaker_vectors(config, 5)
    sound, ready = feed(engine, start(engine, seeds, vectors), mel, lengths, threads=threads)
    assert ready.tolist() == (lengths * config.hop_length).tolist()
    for b, frames in enumerate(lengths):
        alone = start(engine, [seeds[b]], None if vectors is None else vectors[b : b + 1])
        expected = feed(engine, alone, mel[b : b + 1, :, :frames])[0][0]
        np.testing.assert_array_equal(sound[b, : ready[b]], expected)
        assert (sound[b, ready[b] :] == 0).all()
    assert (sound[0, : config.hop_length] != sound[3, : config.hop_length]).any()  # another mel, the same seed


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", isas_possible())
@pytest.mark.parametrize("name", ["odd", "gaussian", "logistic"])
def test_no_bit_depends_on_how_many_streams_and_threads_share_the_work(name: str, isa: str, dtype: str) -> None:
    """More streams than are made side by side, of all lengths, some of which end early and leave their place to others:
    alone, together, shared out over threads, and with the rows of every layer shared out over threads."""
    config, weights = MODELS[name], random_weights(MODELS[name])
    batch = 21
    lengths = np.array([(5 * b) % 7 for b in range(batch)])
    mel, vectors = random_mel(config, 6, batch), speaker_vectors(config, batch)
    seeds = list(range(100, 100 + batch))
    alone = CpuEngine(config, weights, dtype, isa, "streams")
    expected = np.zeros((batch, 6 * config.hop_length), np.float32)
    for b, frames in enumerate(lengths):
        own = None if vectors is None else vectors[b : b + 1]
        sound = feed(alone, start(alone, [seeds[b]], own), mel[b : b + 1, :, :frames])[0][0]
        expected[b, : len(sound)] = sound
    for split, threads in (("streams", 1), ("streams", 3), ("rows", 1), ("rows", 2), ("rows", 5)):
        engine = CpuEngine(config, weights, dtype, isa, split)
        state = start(engine, seeds, vectors)
        sound, ready = feed(engine, state, mel, lengths, threads=threads)
        assert ready.tolist() == (lengths * config.hop_length).tolist()
        np.testing.assert_array_equal(sound, expected, f"{split}, {threads} threads")
        # And so is what they remember.
        np.testing.assert_array_equal(state.rings[batch // 2], rings_after(alone, mel, lengths, vectors, batch // 2))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", isas_possible())
@pytest.mark.parametrize("dilations", [(1,), (1, 2), (1, 2, 4)])
def test_threads_of_a_team_make_the_same_samples_from_a_wide_x(dilations: Any, isa: str, dtype: str) -> None:
    """A residual product too large for each thread to make it all by itself, as those of small models are made; and
    more streams than a team makes side by side, of which some end early."""
    config = small(
        residual_channels=200, gate_channels=394, dilations=dilations, conditioning=Conditioning(upsampling=Linear())
    )
    weights, batch = random_weights(config), 19
    mel, seeds = random_mel(config, 2, batch), list(range(batch))
    lengths = np.array([b % 3 for b in range(batch)])
    found = []
    for split, threads in (("streams", 1), ("rows", 2), ("rows", 3)):
        engine = CpuEngine(config, weights, dtype, isa, split)
        state = start(engine, seeds, None)
        found.append((feed(engine, state, mel, lengths, threads=threads)[0], state.rings.copy()))
    assert found[0][0].any()
    for sound, rings in found[1:]:
        np.testing.assert_array_equal(sound, found[0][0])
        np.testing.assert_array_equal(rings, found[0][1])


def test_plans_follow_from_weights_streams_and_cores() -> None:
    cache = _engine.second_cache()
    assert _engine.plan(cache, 1, 8, "auto")[:3] == (1, 1, 1)
    assert _engine.plan(cache, 20, 1, "auto")[:3] == (1, 1, 16)
    assert _engine.plan(cache, 20, 3, "auto")[:3] == (3, 1, 7)
    assert _engine.plan(cache, 5, 300, "auto")[:3] == (5, 1, 1)
    assert _engine.plan(cache, 1, 3, "rows")[:3] == (1, 3, 1)
    assert _engine.plan(cache + 1, 1, 3, "streams")[:3] == (1, 1, 1)
    # Larger weights: no more members than cores, and no team where every thread has streams enough.
    assert _engine.plan(cache + 1, 1, 1000, "auto")[:3] == (1, usable_cores(), 1)
    assert _engine.plan(cache + 1, 4000, 2, "auto")[:3] == (2, 1, 16)


def test_how_far_ahead_older_taps_are_made_follows_from_where_weights_are() -> None:
    cache = _engine.second_cache()

    def ahead(size: int, streams: int, **options: Any) -> int:
        return _engine.plan(size, streams, options.pop("threads", 1), options.pop("split", "streams"), **options)[3]

    assert [ahead(cache // 2, n) for n in (1, 2)] == [1, 1]  # close by
    assert [ahead(cache, n) for n in (1, 2)] == [8, 1]
    assert [ahead(cache + 2, n) for n in (1, 2, 3, 8, 9, 16, 40)] == [16, 16, 16, 8, 7, 4, 4]
    assert ahead(2 * cache, 1, split="rows", threads=2) == 8  # each thread keeps to its half
    assert [ahead(1, 2, ahead=n) for n in (1, 3, 100)] == [1, 3, 32]  # as asked, as far as there is room


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", isas_possible())
@pytest.mark.parametrize("name", AHEAD)
def test_older_taps_made_ahead_change_nothing(name: str, isa: str, dtype: str) -> None:
    """Alone, in a team, and beside streams that end early; and none of it is remembered from call to call."""
    config, weights = AHEAD[name], random_weights(AHEAD[name])
    batch, lengths = 5, np.array([6, 15, 3, 9, 12])
    mel, seeds, vectors = random_mel(config, 15, batch), list(range(batch)), speaker_vectors(config, batch)

    def made(ahead: int, count: int, split: str = "streams", threads: int = 1) -> tuple[Any, Any]:
        engine = CpuEngine(config, weights, dtype, isa, split, ahead)
        state = start(engine, seeds[:count], None if vectors is None else vectors[:count])
        first = np.minimum(lengths, 7)[:count]
        sounds = [
            feed(engine, state, mel[:count, :, :7], first, lengths[:count] <= 7, threads=threads)[0],
            feed(engine, state, mel[:count, :, 7:], lengths[:count] - first, True, threads=threads)[0],
        ]
        return np.concatenate(sounds, 1), state.rings.copy()

    for count in (1, 2, 5):
        sound, rings = made(1, count)
        assert np.unique(sound).size > 6
        for ahead, split, threads in ((2, "streams", 1), (5, "rows", 2), (16, "streams", 1), (16, "streams", 3)):
            again, remembered = made(ahead, count, split, threads)
            np.testing.assert_array_equal(again, sound, f"{count} streams, {ahead} ahead, {split}")
            np.testing.assert_array_equal(remembered, rings)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("split, threads", [("streams", 1), ("rows", 2)])
def test_what_was_made_ahead_for_a_stream_is_not_heard_by_the_one_that_follows_it(
    dtype: str, split: str, threads: int
) -> None:
    """In its place, while as many go on as before; and by none where others move up."""
    config, weights = AHEAD["far"], random_weights(AHEAD["far"])
    lengths = np.array([5, 9, 7, *[12] * 13, 9, 8, 11])  # sixteen places; the first three are taken again
    mel, seeds = random_mel(config, 12, len(lengths)), list(range(len(lengths)))
    sounds = []
    for ahead in (1, 4):
        engine = CpuEngine(config, weights, dtype, None, split, ahead)
        sounds.append(feed(engine, start(engine, seeds), mel, lengths, threads=threads)[0])
    assert np.unique(sounds[0]).size > 6
    np.testing.assert_array_equal(*sounds)


@pytest.mark.parametrize("wrong", [0, -3, 2.5, True])
def test_ahead_is_a_number_of_samples(wrong: Any) -> None:
    with pytest.raises(BackendError, match=f"ahead is {wrong}; give a number of samples from 1 on"):
        CpuEngine(MODELS["tiny"], random_weights(MODELS["tiny"]), ahead=wrong)


def test_eight_threads_in_one_team_are_right_on_fewer_cores() -> None:
    """They wait for each other by spinning, and give the core away where one of them has to wait for it."""
    config, weights = MODELS["tiny"], random_weights(MODELS["tiny"])
    mel = random_mel(config, FRAMES, 2)
    sounds = []
    for split, threads in (("streams", 1), ("rows", 8)):
        engine = CpuEngine(config, weights, "fp32", None, split)
        sounds.append(feed(engine, start(engine, [1, 2]), mel, threads=threads)[0])
    np.testing.assert_array_equal(*sounds)


def rings_after(engine: CpuEngine, mel: Any, lengths: Any, vectors: Any, b: int) -> Any:
    """What stream b remembers once it was made alone."""
    own = None if vectors is None else vectors[b : b + 1]
    state = start(engine, [100 + b], own)
    feed(engine, state, mel[b : b + 1, :, : lengths[b]])
    return state.rings[0]


def test_streams_that_end_at_different_times_equal_one_shot() -> None:
    engine = engine_of("gaussian")
    config = engine.config
    mel = random_mel(config, FRAMES, 2)
    vectors = speaker_vectors(config, 2)
    state, rows = start(engine, [1, 2], vectors), [[], []]
    for f in range(0, FRAMES, 2):
        frames = np.array([2, 2 if f < 6 else 0])
        sound, ready = feed(engine, state, mel[:, :, f : f + 2], frames, [f + 2 >= FRAMES, f >= 4])
        for b in range(2):
            rows[b].append(sound[b, : ready[b]])
    for b, frames in enumerate((FRAMES, 6)):
        alone = feed(engine, start(engine, [b + 1], vectors[b : b + 1]), mel[b : b + 1, :, :frames])[0][0]
        np.testing.assert_array_equal(np.concatenate(rows[b]), alone)


def test_seeds_and_temperature_matter() -> None:
    a, b = one_shot("tiny"), one_shot("tiny", seed=8)
    assert (a != b).any()
    engine = engine_of("tiny")
    cold = feed(engine, start(engine, [7]), random_mel(engine.config, FRAMES, 1), temperature=0.1)[0][0]
    assert (cold != a).any()


# --- 4: reset and restore ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_reset_equals_fresh(name: str, dtype: str) -> None:
    engine, config = engine_of(name, dtype), MODELS[name]
    mel = random_mel(config, FRAMES, 3)
    vectors = speaker_vectors(config, 3)
    state = start(engine, [5, 6, 7], vectors)
    feed(engine, state, mel[:, :, :6], ended=[True, False, False])
    before = state.state_dict()
    state.reset(np.array([True, False, True]), np.array([50, 60, 70], np.uint64))
    after = state.state_dict()
    assert state.positions.tolist() == [0, before["positions"][1], 0] and state.frames.tolist() == [0, 6, 0]
    for key in ("rings", "inputs", "mel", "filters", "seeds"):
        np.testing.assert_array_equal(after[key][1], before[key][1])
    sound, ready = feed(engine, state, mel, [FRAMES, 0, FRAMES], True)
    fresh = start(engine, [50, 70], None if vectors is None else vectors[[0, 2]])
    expected = feed(engine, fresh, mel[[0, 2]])[0]
    np.testing.assert_array_equal(sound[[0, 2]], expected)
    assert ready[1] == 6 * config.hop_length - before["positions"][1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_restore_equals_never_interrupted(name: str, dtype: str) -> None:
    engine, config = engine_of(name, dtype), MODELS[name]
    mel = random_mel(config, FRAMES, 1)
    state = start(engine, [7])
    begun = feed(engine, state, mel[:, :, :5], ended=False)[0][0]
    saved = state.state_dict()
    rest = feed(engine, state, mel[:, :, 5:])[0][0]
    np.testing.assert_array_equal(np.concatenate([begun, rest]), one_shot(name, dtype))
    # Into a state with another past, in a newly made engine.
    other = CpuEngine(config, random_weights(config), dtype)
    restored = start(other, [999])
    feed(other, restored, mel[:, :, 3:9], ended=False)
    restored.load_state_dict(saved)
    np.testing.assert_array_equal(feed(other, restored, mel[:, :, 5:])[0][0], rest)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_saved_state_fits_every_instruction_set(dtype: str) -> None:
    """The samples then agree as closely as the instruction sets do, which for these lengths is to the class."""
    mel = random_mel(MODELS["odd"], FRAMES, 1)
    results = []
    for isa in isas_possible():
        first, second = engine_of("odd", dtype, isas_possible()[-1]), engine_of("odd", dtype, isa)
        state = start(first, [3])
        feed(first, state, mel[:, :, :5], ended=False)
        restored = start(second, [0])
        restored.load_state_dict(state.state_dict())
        results.append(feed(second, restored, mel[:, :, 5:], raw=True)[0][0])
    for result in results[1:]:
        assert (result[:20] == results[0][:20]).all()


@pytest.mark.parametrize("name", ["odd", "gaussian", "scalar-categorical"])
def test_forced_history_continues_where_it_stopped(name: str) -> None:
    """Priming: after a call under forced history, the next one hears the end of that history."""
    engine, config = engine_of(name), MODELS[name]
    T = FRAMES * config.hop_length
    mel, history = random_mel(config, FRAMES, 1), random_history(config, T)[None]
    whole = np.zeros((1, T, config.out_channels), np.float32)
    feed(engine, start(engine, [1]), mel, forced=history, logits=whole)
    state, split = start(engine, [1]), []
    for piece, ended in ((slice(0, 6), False), (slice(6, FRAMES), True)):
        out = np.zeros((1, T, config.out_channels), np.float32)
        at = int(state.positions[0])
        ready = feed(engine, state, mel[:, :, piece], ended=ended, forced=history[:, at:], logits=out)[1][0]
        split.append(out[0, :ready])
    np.testing.assert_array_equal(np.concatenate(split), whole[0])


@pytest.mark.parametrize("name", ["tiny", "odd"])
def test_the_counter_of_the_uniforms_has_64_bits(name: str) -> None:
    """A stream that has come to sample 2³² and more draws by its whole position: a class follows from the logits and
    the uniforms of that position, and no longer from those 2³² samples earlier."""
    engine, config = engine_of(name), MODELS[name]
    hop = config.hop_length
    state, received = start(engine, [3]), 2**32 // hop + 5
    saved = state.state_dict()
    first = received - lookahead_frames(config)
    kept = int(engine.kept_frames(np.array([first * hop]), np.array([received]))[0])
    saved |= {"frames": np.array([received]), "positions": np.array([first * hop]), "mel_frames": np.array([kept])}
    saved["mel"] = np.zeros((1, engine.kept, config.n_mels), np.float32)
    state.load_state_dict(saved)
    mel = random_mel(config, FRAMES, 1)
    T = (FRAMES + lookahead_frames(config)) * hop
    logits = np.zeros((1, T, config.out_channels), np.float32)
    drawn = feed(engine, state, mel, raw=True, logits=logits, temperature=1.0)[0][0]
    t = first * hop + np.arange(T)
    assert t[0] > 2**32
    assert (drawn != sample(logits[0], uniforms(np.uint64(3), t), config.head, 1.0)).mean() <= MISMATCHES["fp32"]
    assert (drawn != sample(logits[0], uniforms(np.uint64(3), t - 2**32), config.head, 1.0)).mean() > 0.1


def test_the_past_before_the_beginning_is_silent() -> None:
    """At t = 0 only the newest tap of the input hears `start`, older taps and all rings hear nothing."""
    engine = engine_of("wide-input")
    config, weights = engine.config, random_weights(engine.config)
    embed = engine.trace(random_mel(config, 1), random_history(config, config.hop_length))["embed"]
    expected = np.tanh(weights["input.weight"][:, 7, -1].astype(np.float64) + weights["input.bias"])
    np.testing.assert_allclose(embed[0], expected, atol=1e-6)
