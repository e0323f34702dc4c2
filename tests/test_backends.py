"""The registry, and the laws of base.py on every backend that works here, for unusual voices."""

from __future__ import annotations

import dataclasses

import msgspec
import numpy as np
import pytest
from last_device import device_of
from tolerances import UNIFORM

from wavenet_fast.backends import BACKENDS, availability, choose
from wavenet_fast.conditioning import lookahead_frames
from wavenet_fast.config import (
    CategoricalHead,
    Conditioning,
    FrameConv,
    GaussianHead,
    Hold,
    Linear,
    LogisticHead,
    OneHotInput,
    RepeatStage,
    ScalarInput,
    Signal,
    Speakers,
    Stages,
    TransposedStage,
)
from wavenet_fast.errors import BackendError, StateError
from wavenet_fast.rng import uniforms
from wavenet_fast.sampling import cdf_edge_distance, expand, mulaw_decode, sample
from wavenet_fast.signal import fed_back, to_waveform

CONVS = (FrameConv(7, 3, activation="tanh"), FrameConv(9, 4, activation="relu", padding="zero"))
SCALAR = ScalarInput(kernel_size=3, tanh=True, start=0.1)
CONFIGS = {
    "hold": {},
    "linear": {
        "conditioning": Conditioning(standardise=True, network=CONVS, upsampling=Linear(0.5)),
        "input": OneHotInput(kernel_size=2),
        "signal": Signal(preemphasis=0.9, gain=1.5),
    },
    "late logistics": {
        "conditioning": Conditioning(network=CONVS, upsampling=Hold(), offset=-1),
        "input": SCALAR,
        "head": LogisticHead(3, log_scale_min=-5.0),
        "signal": Signal(domain="mulaw", preemphasis=0.8),
        "skip_rule": "running",
        "skip_scale": 0.5**0.5,
    },
    "transposed gaussian": {
        "conditioning": Conditioning(
            network=CONVS[:1],
            upsampling=Stages((TransposedStage(2, 5, crop=2, channels=8), TransposedStage(3, 7, crop=1, image=True))),
        ),
        "input": SCALAR,
        "head": GaussianHead(1),
        "speakers": Speakers(channels=3, count=4),
    },
    "repeat classes": {
        "conditioning": Conditioning(upsampling=Stages((RepeatStage(6, 13, channels=8),)), offset=-1),
        "input": SCALAR,
        "head": CategoricalHead(64),
        "signal": Signal(domain="mulaw"),
    },
}
FRAMES = 9


class Setup:
    """One engine and the inputs of three utterances."""

    def __init__(self, backend, config, weights, dtype="fp32"):
        self.config = config
        self.weights = weights
        self.engine = BACKENDS[backend].make(config, weights, dtype, device_of(backend))
        rng = np.random.default_rng(7)
        self.mel = rng.standard_normal((3, config.n_mels, FRAMES)).astype(np.float32)
        self.seeds = np.array([5, 2**64 - 1, 1 << 33], np.uint64)
        P = config.speakers.channels
        self.speakers = rng.standard_normal((3, P)).astype(np.float32) if P else None

    def start(self, which=slice(None)):
        return self.engine.start(self.seeds[which], None if self.speakers is None else self.speakers[which])

    def feed(self, state, mel, ended=False, frames=None, **options):
        batch = len(mel)
        frames = np.full(batch, mel.shape[2]) if frames is None else np.asarray(frames)
        ended = np.broadcast_to(np.asarray(ended), (batch,))
        mel = np.ascontiguousarray(mel)
        return self.engine.advance(state, mel, frames.astype(np.int64), ended.copy(), 0.8, threads=1, **options)

    def whole(self):
        return self.feed(self.start(), self.mel, ended=True)[0]


@pytest.fixture(scope="module", params=CONFIGS)
def setup(request, backend, make_config, make_weights):
    if backend == "cuda" and request.param == "repeat classes":
        pytest.skip("each kernel takes seconds to compile, and the others have all of its parts")
    config = make_config(**CONFIGS[request.param])
    return Setup(backend, config, make_weights(config))


@pytest.fixture(scope="module")
def whole(setup):
    sound = setup.whole()
    assert sound.dtype == np.float32 and np.abs(sound).max() <= 1
    assert len(np.unique(sound)) > 20, "the voice says too little for a test to fail"
    return sound


# --- laws -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [(1,) * FRAMES, (2, 5, 2), (0, 7, 0, 1, 1), (4, 5)])
def test_any_chunking_gives_the_same_bits(setup, whole, chunks):
    state, first, parts = setup.start(), 0, []
    ahead = lookahead_frames(setup.config)
    for size in chunks:
        audio, ready = setup.feed(state, setup.mel[:, :, first : first + size])
        first += size
        parts.append(audio)
        assert (state.positions == max(0, first - ahead) * setup.config.hop_length).all()
        assert audio.shape == (3, ready[0])
    parts.append(setup.feed(state, setup.mel[:, :, first:], ended=True)[0])
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


def test_a_stream_does_not_notice_its_batch_its_slot_or_lengths_of_others(setup, whole):
    order = [2, 0, 1]
    mel, lengths = setup.mel[order].copy(), np.array([FRAMES, 4, 0])
    for b, length in enumerate(lengths):
        mel[b, :, length:] = np.nan
    state = setup.engine.start(setup.seeds[order], None if setup.speakers is None else setup.speakers[order])
    audio, ready = setup.feed(state, mel, ended=True, frames=lengths)
    assert list(ready) == list(lengths * setup.config.hop_length)
    np.testing.assert_array_equal(audio[0], whole[2])
    alone, _ = setup.feed(setup.start([0]), setup.mel[:1, :, :4], ended=True)
    np.testing.assert_array_equal(audio[1, : ready[1]], alone[0])
    assert not audio[1, ready[1] :].any() and not audio[2].any()


def test_samples_are_causal_in_frames_up_to_the_look_ahead(setup, whole):
    changed, at = setup.mel.copy(), 5
    changed[:, :, at:] += 1
    audio = setup.feed(setup.start(), changed, ended=True)[0]
    same = (at - lookahead_frames(setup.config)) * setup.config.hop_length
    np.testing.assert_array_equal(audio[:, :same], whole[:, :same])
    assert (audio != whole).any()


def test_reset_equals_fresh(setup, whole):
    state = setup.start()
    setup.feed(state, setup.mel[::-1, :, :4], ended=[True, False, False])
    state.reset(np.array([True, False, True]))
    frames = [FRAMES, 0, FRAMES]
    audio, _ = setup.feed(state, setup.mel, ended=[True, False, True], frames=frames)
    np.testing.assert_array_equal(audio[[0, 2]], whole[[0, 2]])
    state.reset(np.array([False, True, False]), setup.seeds[[1, 0, 1]], setup.speakers)
    audio, _ = setup.feed(state, setup.mel[[0, 1, 2]], ended=[False, True, False], frames=[0, FRAMES, 0])
    other = setup.engine.start(setup.seeds[:1], None if setup.speakers is None else setup.speakers[1:2])
    np.testing.assert_array_equal(audio[1:2], setup.feed(other, setup.mel[1:2], ended=True)[0])


def test_restore_equals_never_interrupted(setup, whole):
    state = setup.start()
    head, _ = setup.feed(state, setup.mel[:, :, :5])
    saved = state.state_dict()
    setup.feed(state, setup.mel[:, :, :3])
    fresh = setup.engine.start(np.zeros(3, np.uint64), None if setup.speakers is None else setup.speakers * 0)
    for target in (state, fresh):
        target.load_state_dict(saved)
        tail, _ = setup.feed(target, setup.mel[:, :, 5:], ended=True)
        np.testing.assert_array_equal(np.concatenate([head, tail], axis=1), whole)


def test_saved_states_do_not_change_later(setup):
    state = setup.start()
    setup.feed(state, setup.mel[:, :, :5])
    saved = state.state_dict()
    copied = {name: np.copy(value) for name, value in saved.items() if isinstance(value, np.ndarray)}
    setup.feed(state, setup.mel[:, :, 5:], ended=True)
    state.reset(np.ones(3, bool))
    for name, value in copied.items():
        np.testing.assert_array_equal(saved[name], value)


def test_states_of_others_are_refused(setup, make_config, make_weights, backend):
    saved = setup.start().state_dict()
    with pytest.raises(StateError):
        setup.start([0]).load_state_dict(saved)
    other = Setup(backend, setup.config, make_weights(setup.config, seed=1))
    with pytest.raises(StateError):
        other.start().load_state_dict(saved)
    reduced = Setup(backend, setup.config, make_weights(setup.config), "bf16").engine
    with pytest.raises(StateError):
        reduced.start(setup.seeds, setup.speakers).load_state_dict(saved)
    state = setup.start()
    for damage in ({}, {**saved, "more": 1}, {k: v for k, v in saved.items() if k != sorted(saved)[-1]}):
        with pytest.raises(StateError):
            state.load_state_dict(damage)
    for name, value in saved.items():
        if isinstance(value, np.ndarray) and value.size and value.ndim:
            with pytest.raises(StateError):
                state.load_state_dict({**saved, name: np.concatenate([value, value], axis=0)})


# --- the network itself -----------------------------------------------------------------------------------------


def test_logits_are_the_references_and_the_draws_follow_from_them(setup):
    torch = pytest.importorskip("torch")
    from wavenet_fast.reference import Reference

    c = setup.config
    samples = FRAMES * c.hop_length
    logits = np.full((3, samples, c.out_channels), np.nan, np.float32)
    raw, _ = setup.feed(setup.start(), setup.mel, ended=True, logits=logits, raw=True)
    heard = np.concatenate([np.full((3, 1), c.start), fed_back(raw, c)[:, :-1]], axis=1)
    kind = torch.int64 if isinstance(c.input, OneHotInput) else torch.float32
    weights = setup.weights
    model = Reference(c, {n: torch.tensor(w) for n, w in weights.items()})
    speakers = None if setup.speakers is None else torch.tensor(setup.speakers)
    conditioning = model.conditioning(torch.tensor(setup.mel), speakers)
    expected = model.forward(torch.tensor(heard).to(kind), conditioning).numpy()
    scale = np.abs(expected).max()
    assert np.abs(logits - expected).max() < 2e-5 * scale
    t = np.arange(samples)
    for b in range(3):
        drawn = sample(logits[b], uniforms(setup.seeds[b], t), c.head, 0.8)
        if isinstance(c.head, CategoricalHead):
            off = np.flatnonzero(drawn != raw[b])
            u = uniforms(setup.seeds[b], off)[:, 0]
            far = cdf_edge_distance(logits[b][off], u, 0.8, (drawn[off], raw[b][off]))
            assert len(off) <= 1 and (far <= UNIFORM).all(), f"{len(off)} differ, by {far}"
        else:
            np.testing.assert_allclose(raw[b], drawn, atol=2e-6)
        np.testing.assert_allclose(setup.whole()[b], to_waveform(raw[b], c)[0], atol=2e-6)


def test_forced_history_is_heard_in_place_of_the_draws(setup):
    c = setup.config
    rng = np.random.default_rng(0)
    shape = (3, FRAMES * c.hop_length)
    if isinstance(c.input, OneHotInput):
        forced = rng.integers(0, c.out_channels, shape)
    else:
        forced = rng.uniform(-1, 1, shape).astype(np.float32)
    logits = np.zeros((*shape, c.out_channels), np.float32)
    setup.feed(setup.start(), setup.mel, ended=True, forced=forced, logits=logits)
    own = np.zeros_like(logits)
    raw, _ = setup.feed(setup.start(), setup.mel, ended=True, raw=True, logits=own)
    again = np.zeros_like(logits)
    setup.feed(setup.start(), setup.mel, ended=True, forced=fed_back(raw, c), logits=again)
    np.testing.assert_array_equal(own, again)
    np.testing.assert_array_equal(logits[:, 0], own[:, 0])
    assert (logits[:, 1] != own[:, 1]).any()
    halves, state = np.zeros_like(logits), setup.start()
    ahead = lookahead_frames(c)
    cut = max(0, 5 - ahead) * c.hop_length
    setup.feed(state, setup.mel[:, :, :5], forced=forced[:, :cut], logits=halves[:, :cut].copy())
    rest = np.zeros_like(logits[:, cut:])
    setup.feed(state, setup.mel[:, :, 5:], ended=True, forced=forced[:, cut:], logits=rest)
    np.testing.assert_array_equal(rest, logits[:, cut:])


def test_de_emphasis_goes_on_from_the_forced_history(setup):
    """Under forcing every draw stands on the forced past; what follows stands on the end of it. y is that past, written
    down here in float64."""
    c = setup.config
    s, rng = c.signal, np.random.default_rng(4)
    cut = (5 - lookahead_frames(c)) * c.hop_length
    if isinstance(c.input, OneHotInput):
        forced = rng.integers(0, c.out_channels, (3, cut))
        past = mulaw_decode(forced, c.head.classes - 1, c.head.decode_offset)
    else:
        forced = rng.uniform(-1, 1, (3, cut)).astype(np.float32)
        mu = c.head.classes - 1 if isinstance(c.head, CategoricalHead) else s.mu
        past = expand(forced, mu) if s.domain == "mulaw" else forced
    y = np.zeros((3, cut + 1))
    for t in range(cut):
        y[:, t + 1] = past[:, t] + s.preemphasis * y[:, t]
    results = []
    for raw in (False, True):
        state = setup.start()
        during, _ = setup.feed(state, setup.mel[:, :, :5], forced=forced, raw=raw)
        after, _ = setup.feed(state, setup.mel[:, :, 5:], ended=True, raw=raw)
        results.append((during, after))
    (sound, rest), (drawn, drawn_rest) = results
    assert sound.shape == (3, cut) and cut
    for b in range(3):
        made = to_waveform(
            drawn[b], msgspec.structs.replace(c, signal=msgspec.structs.replace(s, preemphasis=0, gain=1))
        )[0]
        expected = np.clip((made + s.preemphasis * y[b, :-1]) / s.gain, -1, 1)
        np.testing.assert_allclose(sound[b], expected, atol=3e-6)
        np.testing.assert_allclose(rest[b], to_waveform(drawn_rest[b], c, float(y[b, -1]))[0], atol=3e-6)


def test_progress_reaches_the_end_and_its_exceptions_come_through(setup):
    told = []
    setup.feed(setup.start(), setup.mel, ended=True, progress=lambda done, total: told.append((done, total)))
    total = 3 * FRAMES * setup.config.hop_length
    assert told[-1] == (total, total) and told == sorted(told)

    def stop(done, total):
        raise KeyError("enough")

    state = setup.start()
    setup.feed(state, setup.mel[:, :, :3])
    before = state.state_dict()
    with pytest.raises(KeyError, match="enough"):
        setup.feed(state, setup.mel, ended=True, progress=stop)
    after = state.state_dict()
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(value, after[name])


# --- the registry -----------------------------------------------------------------------------------------------


@pytest.fixture
def only(monkeypatch):
    """Makes only the named backends available."""

    def set_available(*names):
        for name, b in BACKENDS.items():
            why = None if name in names else f"{name} was switched off"
            changed = dataclasses.replace(b, why_not=lambda device, why=why: why, auto_dtype=lambda costs: "fp32")
            monkeypatch.setitem(BACKENDS, name, changed)

    return set_available


def test_auto_takes_the_first_that_works(only):
    only("cpu", "reference")
    assert choose()[0].name == "cpu"
    only("reference")
    assert choose()[0].name == "reference"
    off = {name: f"{name} was switched off" for name in ("cuda", "triton", "cpu")}
    assert availability() == {**off, "reference": None}


def test_without_any_backend_every_reason_is_given(only):
    only()
    with pytest.raises(BackendError, match=r"cpu: cpu was switched off.*reference: reference was switched off"):
        choose()


def test_asking_for_what_is_not_there_is_an_error(only):
    only("reference")
    with pytest.raises(BackendError, match=r"'cpu' is not available here: cpu was switched off. Available: reference"):
        choose("cpu")
    with pytest.raises(
        BackendError, match=r"backend is 'tpu'; there are 'cuda', 'triton', 'cpu', 'reference' and 'auto'"
    ):
        choose("tpu")
    with pytest.raises(BackendError, match=r"device is 'cuda'; backend 'reference' offers 'cpu' and 'auto'"):
        choose("reference", device="cuda")
    with pytest.raises(
        BackendError, match=r"dtype is 'fp64'; backend 'reference' offers 'fp32', .*, 'int8' and 'auto'"
    ):
        choose("reference", dtype="fp64")


def test_number_format_follows_from_the_instruction_set_and_the_recorded_costs(monkeypatch):
    if availability()["cpu"] is not None:
        pytest.skip(f"cpu: {availability()['cpu']}")
    import wavenet_fast.backends.cpu as cpu

    for isa in ("portable", "avx2", "avx512", "avx512vnni", "avx512bf16", "amx"):
        monkeypatch.setattr(cpu, "isa_in_use", lambda isa=isa: isa)
        dtype = "bf16" if isa in ("avx512bf16", "amx") else "fp32"
        assert choose("cpu")[2] == choose("cpu", costs={})[2] == choose("cpu", costs={"int8": 0.021})[2] == dtype
        cheap = choose("cpu", costs={"int8": 0.02, "bf16": 0.0})[2]
        assert cheap == ("fp32" if isa == "portable" else "int8")
    assert choose("cpu", dtype="fp32", costs={"int8": 0.0})[2] == "fp32"
