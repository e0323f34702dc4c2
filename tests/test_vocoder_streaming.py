"""`voc.stream` and `voc.streaming`: the same sound in pieces, lanes that live their own lives, nothing left behind."""

from __future__ import annotations

import dataclasses
import gc
import pickle
import weakref
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from last_device import device_of

from wavenet_fast import InputError, ShapeError, StateError, Vocoder
from wavenet_fast.config import Conditioning, FrameConv, Linear

FRAMES = 11
SEED = 5
EXAMPLES = settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def voc(make_checkpoint, make_config, backend):
    up = Conditioning(network=(FrameConv(7, 3, activation="tanh"),), upsampling=Linear())
    config = make_config(conditioning=up, hop_length=3, dilations=(1, 3))
    return Vocoder(make_checkpoint(config), backend, device_of(backend), "fp32")


@pytest.fixture(scope="module")
def mel(voc):
    return np.random.default_rng(1).standard_normal((3, voc.n_mels, FRAMES)).astype(np.float32)


@pytest.fixture(scope="module")
def sound(voc, mel):
    return voc(mel, seed=SEED)


# --- stream -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_frames", [1, 3, 8, FRAMES, 1000])
def test_stream_is_the_one_shot_call_in_even_pieces(voc, mel, sound, chunk_frames):
    chunks = list(voc.stream(mel[0], chunk_frames, seed=SEED))
    np.testing.assert_array_equal(np.concatenate(chunks), sound[0])
    assert all(chunk.dtype == np.float32 and len(chunk) for chunk in chunks)
    pieces = [len(chunk) for chunk in chunks[: (FRAMES - voc.lookahead_frames) // chunk_frames]]
    assert pieces == [chunk_frames * voc.hop_length] * len(pieces)


@EXAMPLES
@given(cuts=st.lists(st.integers(0, FRAMES), max_size=8), chunk_frames=st.integers(1, FRAMES))
def test_stream_of_blocks_whatever_their_size(voc, mel, sound, cuts, chunk_frames):
    edges = [0, *sorted(cuts), FRAMES]
    blocks = (mel[0, :, a:b] for a, b in pairwise(edges))
    np.testing.assert_array_equal(np.concatenate(list(voc.stream(blocks, chunk_frames, seed=SEED))), sound[0])


def test_stream_gives_sound_as_soon_as_frames_allow(voc, mel):
    taken = []

    def frames():
        for f in range(FRAMES):
            taken.append(f)
            yield mel[0, :, f : f + 1]

    chunks = voc.stream(frames(), chunk_frames=4)
    assert not taken
    assert len(next(chunks)) == voc.hop_length
    assert len(taken) == voc.lookahead_frames + 1


def test_stream_takes_the_other_layout_and_tensors(voc, mel, sound):
    chunks = voc.stream(mel[0].T, 4, seed=SEED, layout="tc")
    np.testing.assert_array_equal(np.concatenate(list(chunks)), sound[0])
    torch = pytest.importorskip("torch")
    chunks = list(voc.stream(torch.from_numpy(mel[0]), 4, seed=SEED))
    assert all(isinstance(chunk, torch.Tensor) for chunk in chunks)
    np.testing.assert_array_equal(torch.cat(chunks).numpy(), sound[0])


def test_stream_of_nothing(voc, mel):
    assert list(voc.stream(mel[0, :, :0])) == []
    assert list(voc.stream([])) == []


def test_stream_refuses_at_once_what_it_can_see(voc, mel):
    bad = mel[0].copy()
    bad[2, 9] = np.nan
    calls = (
        lambda: voc.stream(mel[0].T), lambda: voc.stream(mel), lambda: voc.stream(bad), lambda: voc.stream(mel[0], 0),
        lambda: voc.stream(mel[0], 1.5), lambda: voc.stream(mel[0], seed=-1), lambda: voc.stream(mel[0], speaker=3),
        lambda: voc.stream(mel[0], temperature=0), lambda: voc.stream(mel[0], layout="x"),
    )  # fmt: skip
    for call in calls:
        with pytest.raises((ShapeError, InputError)):
            call()
    blocks = voc.stream([mel[0, :, :5], bad[:, 5:]])
    next(blocks)
    with pytest.raises(InputError, match="frame 4, band 2"):
        next(blocks)
    with pytest.raises(ShapeError, match="one utterance is streamed as frames"):
        next(voc.stream([mel]))
    with pytest.raises(InputError, match="mel is NoneType"):
        voc.stream(None)


def test_stream_takes_frames_one_by_one(voc, mel, sound):
    np.testing.assert_array_equal(np.concatenate(list(voc.stream(iter(mel[0].T), seed=SEED))), sound[0])
    frames = list(mel[0].T)
    np.testing.assert_array_equal(np.concatenate(list(voc.stream(frames, seed=SEED, layout="tc"))), sound[0])


def test_a_strict_voice_goes_on_refusing(make_checkpoint, make_config, backend):
    """What was refused once is not let through by asking again."""
    voice = make_checkpoint(make_config())
    statistics = {"mel.mean": np.zeros(5, np.float32), "mel.scale": np.ones(5, np.float32)}
    voice = dataclasses.replace(voice, weights={**voice.weights, **statistics})
    with Vocoder(voice, backend, device_of(backend), strict_mel=True).streaming() as lanes:
        for _ in range(2):
            with pytest.raises(InputError, match="looks like"):
                lanes.step(np.full((5, 40), -50, np.float32))


def test_a_saved_state_keeps_its_temperature(voc, mel):
    with voc.streaming(temperature=0.5) as first, voc.streaming(temperature=2.0) as second:
        first.step(mel[0, :, :6])
        second.load_state_dict(first.state_dict())
        np.testing.assert_array_equal(first.step(mel[0, :, 6:]), second.step(mel[0, :, 6:]))
        saved = first.state_dict()
        for name in saved:  # what is neither number nor text nor array, in every place
            with pytest.raises(StateError):
                second.load_state_dict(saved | {name: [[1], [1, 2]]})
        for state in ([1], saved | {"temperature": -1.0}):
            with pytest.raises(StateError):
                second.load_state_dict(state)


def test_a_saved_state_survives_an_npz_file(voc, mel, tmp_path):
    with voc.streaming() as first, voc.streaming() as second:
        first.step(mel[0, :, :6])
        np.savez(tmp_path / "state.npz", **first.state_dict())
        with np.load(tmp_path / "state.npz") as saved:
            second.load_state_dict(saved)
        np.testing.assert_array_equal(first.step(mel[0, :, 6:]), second.step(mel[0, :, 6:]))


def test_a_generator_dropped_half_way_leaves_nothing(voc, mel, monkeypatch):
    states = []
    start = type(voc._engine).start

    def noticed(engine, *arguments):
        state = start(engine, *arguments)
        states.append(weakref.ref(state))
        return state

    monkeypatch.setattr(type(voc._engine), "start", noticed)
    gc.disable()  # nothing may wait for the collector of cycles
    try:
        for _ in range(100):
            next(voc.stream(mel[0, :, :4], 1))
            voc.stream(mel[0])
    finally:
        gc.enable()
    assert len(states) == 200 and not any(state() for state in states)


# --- streaming --------------------------------------------------------------------------------------------------


@EXAMPLES
@given(cuts=st.lists(st.integers(0, FRAMES), max_size=6))
def test_steps_of_any_size_are_the_one_shot_call(voc, mel, sound, cuts):
    edges = [0, *sorted(cuts), FRAMES]
    with voc.streaming(3, seed=SEED) as lanes:
        parts = [lanes.step(mel[:, :, a:b]) for a, b in pairwise(edges)]
        assert (lanes.positions == (FRAMES - voc.lookahead_frames) * voc.hop_length).all()
        parts.append(lanes.flush())
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), sound)


def test_one_lane_without_a_batch_axis(voc, mel, sound):
    with voc.streaming(seed=SEED) as lane:
        parts = [lane.step(mel[0, :, :4]), lane.step(mel[0, :, 4:]), lane.flush()]
        assert all(part.ndim == 1 for part in parts)
        np.testing.assert_array_equal(np.concatenate(parts), sound[0])
    with voc.streaming(1, seed=SEED) as lane:
        np.testing.assert_array_equal(lane.step(mel[:1]), sound[:1, : -voc.lookahead_frames * voc.hop_length])
        assert lane.flush().shape == (1, voc.lookahead_frames * voc.hop_length)


def collect(parts, lanes, audio):
    """Append what belongs to each lane; nothing but zeros may follow."""
    for b, n in enumerate(lanes.ready):
        parts[b].append(audio[b, :n])
        assert not audio[b, n:].any()
    assert audio.shape == (len(parts), lanes.ready.max())


@EXAMPLES
@given(data=st.data())
def test_lanes_that_get_different_numbers_of_frames(voc, mel, sound, data):
    """Frames arrive at random; lanes are masked at random; each one's sound is its own."""
    given_frames, parts = np.zeros(3, int), [[], [], []]
    with voc.streaming(3, seed=SEED) as lanes:
        while (given_frames < FRAMES).any():
            running = np.array(data.draw(st.lists(st.booleans(), min_size=3, max_size=3)))
            if not running.any():
                running[np.argmin(given_frames)] = True
            counts = np.array([data.draw(st.integers(0, FRAMES - n)) for n in given_frames])
            frames = np.full((3, voc.n_mels, max(1, counts.max())), np.nan, np.float32)
            for b in np.flatnonzero(running):
                frames[b, :, : counts[b]] = mel[b, :, given_frames[b] : given_frames[b] + counts[b]]
            lanes.set_exec_mask(running)
            collect(parts, lanes, lanes.step(frames, counts))
            given_frames += counts * running
            if not counts[running].any():
                lanes.set_exec_mask([True] * 3)
                counts = np.minimum(1, FRAMES - given_frames)
                frames = np.stack([mel[b, :, min(n, FRAMES - 1)][:, None] for b, n in enumerate(given_frames)])
                collect(parts, lanes, lanes.step(frames, counts))
                given_frames += counts
        lanes.set_exec_mask(np.ones(3, bool))
        collect(parts, lanes, lanes.flush())
    for b in range(3):
        np.testing.assert_array_equal(np.concatenate(parts[b]), sound[b])


def test_a_lane_begins_anew_while_the_others_go_on(voc, mel, sound):
    parts = [[], [], []]
    with voc.streaming(3, seed=SEED) as lanes:
        collect(parts, lanes, lanes.step(mel[:, :, :6]))
        lanes.set_exec_mask([True, False, True])
        lanes.reset([False, True, False])  # a masked lane can be reset, and keeps its seed
        parts[1].clear()
        collect(parts, lanes, lanes.step(mel[:, :, 6:]))
        lanes.set_exec_mask([False, True, False])
        collect(parts, lanes, lanes.step(mel))
        lanes.set_exec_mask([True, True, True])
        collect(parts, lanes, lanes.flush([True, False, True]))
        assert lanes.ready[1] == 0
        collect(parts, lanes, lanes.flush())
        assert list(lanes.ready > 0) == [False, True, False]
        for b in range(3):
            np.testing.assert_array_equal(np.concatenate(parts[b]), sound[b])
        lanes.reset([True, False, False], seed=SEED + 1)  # lane 0 takes the seed SEED + 1 + 0
        frames = np.repeat(mel[1:2], 3, axis=0)
        lanes.set_exec_mask([True, False, False])
        first = lanes.step(frames)[0]
        np.testing.assert_array_equal(np.concatenate([first, lanes.flush()[0]]), sound[1])
        lanes.reset(seed=[7, 6, 5])
        lanes.set_exec_mask([True] * 3)
        again = lanes.step(mel[::-1])
        np.testing.assert_array_equal(again, sound[::-1, : again.shape[1]])


def test_after_its_end_a_stream_takes_no_more_frames(voc, mel):
    with voc.streaming(2) as lanes:
        lanes.step(mel[:2])
        lanes.flush([False, True])
        positions = lanes.positions
        with pytest.raises(StateError, match="stream 1 has ended; reset it before feeding more, or mask it"):
            lanes.step(mel[:2])
        assert (lanes.positions == positions).all()
        lanes.step(mel[:2], counts=[3, 0])
        lanes.set_exec_mask([True, False])
        lanes.step(mel[:2])
        lanes.set_exec_mask([True, True])
        lanes.reset([False, True])
        lanes.set_exec_mask([True, False])
        lanes.flush()
        lanes.set_exec_mask([False, True])  # the masked lane was not ended
        lanes.step(mel[:2])


def test_a_flush_without_frames_is_silent(voc):
    with voc.streaming(2) as lanes:
        assert lanes.flush().shape == (2, 0)
        assert lanes.flush().shape == (2, 0)


def test_a_saved_state_goes_on_as_if_never_interrupted(voc, mel, sound):
    with voc.streaming(3, seed=SEED) as lanes:
        head = lanes.step(mel[:, :, :5])
        lanes.set_exec_mask([True, True, False])
        saved = pickle.loads(pickle.dumps(lanes.state_dict()))
        lanes.step(mel[:, :, :3])
        lanes.load_state_dict(saved)
        middle = lanes.step(mel[:, :, 5:])
        assert lanes.ready[2] == 0
    with voc.streaming(3, seed=99) as other:
        other.load_state_dict(saved)
        np.testing.assert_array_equal(other.step(mel[:, :, 5:]), middle)
        other.set_exec_mask([True] * 3)
        rest = other.flush()
    whole = np.concatenate([head[:2], middle[:2], rest[:2, : other_ready(rest, voc)]], axis=1)
    np.testing.assert_array_equal(whole, sound[:2])


def other_ready(rest, voc):
    """Lanes 0 and 1 had all their frames: what is left of them is the look-ahead."""
    return min(rest.shape[1], voc.lookahead_frames * voc.hop_length)


def test_states_that_do_not_fit(voc, mel, make_checkpoint, make_config, backend):
    stranger = Vocoder(make_checkpoint(make_config(hop_length=3)), backend, device_of(backend), "fp32")
    reduced = Vocoder(voc._checkpoint, backend, device_of(backend), "bf16")
    with voc.streaming(2) as lanes, voc.streaming(3) as more:
        lanes.step(mel[:2])
        before = lanes.state_dict()
        for other in (stranger.streaming(2), reduced.streaming(2), more):
            with pytest.raises(StateError):
                lanes.load_state_dict(other.state_dict())
        for damage in (
            {},
            {**before, "exec_mask": [True]},
            {**before, "exec_mask": [True] * 3},
            {"exec_mask": [True] * 2},
        ):
            with pytest.raises(StateError):
                lanes.load_state_dict(damage)
        after = lanes.state_dict()
        assert before.keys() == after.keys()
        for name, value in before.items():
            np.testing.assert_array_equal(value, after[name])


def test_bad_arguments(voc, mel):
    for size in (0, -1, 1.5, True, "3", None):
        with pytest.raises(InputError, match="batch_size"):
            voc.streaming(size)
    with pytest.raises(InputError, match="seeds for 2"):
        voc.streaming(2, seed=[1, 2, 3])
    with voc.streaming(3) as lanes:
        with pytest.raises(ShapeError, match="got frames for 2 streams; this context has 3 lanes"):
            lanes.step(mel[:2])
        with pytest.raises(ShapeError, match="got frames for 1 streams"):
            lanes.step(mel[0])
        with pytest.raises(ShapeError, match="transposed"):
            lanes.step(mel.swapaxes(1, 2))
        for counts in ([1, 2], [1, 2, FRAMES + 1], [1, 2, -1], [1.0, 2.0, 3.0]):
            with pytest.raises((InputError, ShapeError), match="counts"):
                lanes.step(mel, counts)
        for mask in (True, [1, 0, 1], [True, False], "yes"):
            for use in (lanes.set_exec_mask, lanes.reset, lanes.flush):
                with pytest.raises(InputError, match=r"give one True or False per stream, \(3,\)"):
                    use(mask)
        with pytest.raises(InputError, match="seed"):
            lanes.reset(seed=-1)
        bad = mel.copy()
        bad[1, 0, 2] = np.nan
        with pytest.raises(InputError, match="nan at utterance 1, frame 2, band 0"):
            lanes.step(bad)
        assert not lanes.positions.any()
        lanes.set_exec_mask([True, False, True])
        assert lanes.step(bad).shape[1] > 0


def test_nothing_works_after_close(voc, mel):
    with voc.streaming(3) as lanes:
        lanes.step(mel)
    lanes.close()
    uses = (
        lambda: lanes.step(mel), lanes.flush, lanes.reset, lanes.state_dict, lambda: lanes.load_state_dict({}),
        lambda: lanes.set_exec_mask([True] * 3), lambda: lanes.positions, lanes.__enter__,
    )  # fmt: skip
    for use in uses:
        with pytest.raises(StateError, match="this streaming context is closed; open another"):
            use()


def test_memory_does_not_grow_with_the_stream(voc, mel):
    with voc.streaming(3, seed=SEED) as lanes:
        lanes.step(mel)
        size = len(pickle.dumps(lanes.state_dict()))
        for _ in range(10):
            lanes.step(mel)
        assert len(pickle.dumps(lanes.state_dict())) < size + 200
