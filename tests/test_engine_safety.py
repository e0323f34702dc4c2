"""The native engine under hostile use: bytes that must not be read, arguments that do not fit, interruption, memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from children import python
from engine_models import MODELS, case, random_history, random_mel, random_weights, small, speaker_vectors

from wavenet_fast import _engine
from wavenet_fast.backends import cpu
from wavenet_fast.backends.cpu import CpuEngine, CpuState, isas_possible, layouts_of
from wavenet_fast.config import Conditioning, FrameConv, encode
from wavenet_fast.errors import BackendError, InputError, ShapeError, StateError
from wavenet_fast.packing import DTYPES, Layout, hearing_format, pack

FRAMES = 8


def engine_of(name: str = "odd", dtype: str = "fp32", isa: str | None = None) -> CpuEngine:
    return CpuEngine(MODELS[name], random_weights(MODELS[name]), dtype, isa)


def start(engine: CpuEngine, batch: int = 1) -> CpuState:
    return engine.start(np.arange(batch).astype(np.uint64), speaker_vectors(engine.config, batch))


def everything(engine: CpuEngine, state: CpuState, mel: Any, **options: Any) -> Any:
    batch, _, n = mel.shape
    frames = options.pop("frames", np.full(batch, n))
    return engine.advance(state, mel, frames, np.ones(batch, bool), 1.0, **options)[0]


# --- bytes that must not be read --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", isas_possible())
@pytest.mark.parametrize("name", MODELS)
def test_padding_of_weights_never_leaks(name: str, isa: str, dtype: str) -> None:
    """NaN in every padded row of every matrix, scale and bias: the samples are the same."""
    config = MODELS[name]
    weights = random_weights(config)
    layouts = layouts_of(isa)
    clean = CpuEngine(config, weights, dtype, isa)
    # Packing ones tells which elements stand for a weight.
    used = pack(config, {k: np.ones_like(w) for k, w in weights.items()}, layouts, dtype)
    packed = pack(config, weights, layouts, dtype)
    poisoned, padding = {}, 0
    for key, array in packed.items():
        if key in ("speakers.weight",):
            continue
        array = array.copy()
        number = hearing_format(dtype) if key == "conditioning.weight" else dtype
        empty = padded_rows(used[key], key, layouts[number])
        padding += int(empty.sum())
        array[empty] = {"f": np.nan, "u": 0x7FC0 if number == "bf16" else 0x7E00, "i": 127}[array.dtype.kind]
        poisoned[key] = array
    assert padding > 0 or name == "tiny"
    dirty = CpuEngine(config, weights, dtype, isa)
    dirty._model = _engine.Model(encode(config), dtype, isa, poisoned)
    mel = random_mel(config, FRAMES, 1)
    np.testing.assert_array_equal(
        everything(dirty, start(dirty), mel, raw=True), everything(clean, start(clean), mel, raw=True)
    )


def padded_rows(used: Any, name: str, layout: Layout) -> Any:
    """True where a packed array of ones holds padding of rows. What fills up a run of inputs is no row: it meets an
    activation of zero and must be zero itself; biases that the model lacks are zeros that are read."""
    if name.endswith("bias") and not used.any():
        return np.zeros(used.shape, bool)
    if used.dtype == np.float32:
        return used == 0
    runs = (used == 0).reshape(-1, layout.run // layout.pack, layout.lanes, layout.pack)
    return np.broadcast_to(runs.all(axis=(1, 3), keepdims=True), runs.shape).reshape(used.shape)


@pytest.mark.parametrize("name", ["odd", "logistic", "gaussian", "gaussian-mixture"])
def test_frames_and_histories_beyond_a_stream_are_never_read(name: str) -> None:
    """Slices of larger arrays in odd orders, NaN wherever no stream has anything."""
    engine = engine_of(name)
    config, lengths = engine.config, np.array([3, FRAMES, 0])
    hop = config.hop_length
    mel = random_mel(config, FRAMES, 3)
    history = np.stack([random_history(config, FRAMES * hop, b) for b in range(3)])
    hostile = np.full((6, config.n_mels * 2, FRAMES + 5), np.nan, np.float32)[::2, ::-2, 2:-3]
    floating = history.dtype.kind == "f"
    forced = np.full((3, FRAMES * hop + 4), np.nan if floating else 10**6, history.dtype)
    for b, n in enumerate(lengths):
        hostile[b, :, :n] = mel[b, :, :n]
        forced[b, : n * hop] = history[b, : n * hop]
    assert np.isnan(hostile).any() and not hostile.flags.c_contiguous
    logits = np.full((3, FRAMES * hop + 2, config.out_channels), np.nan, np.float32)
    sound = everything(engine, start(engine, 3), hostile, frames=lengths, forced=forced, logits=logits)
    expected = everything(engine, start(engine, 3), mel, frames=lengths, forced=history)
    np.testing.assert_array_equal(sound, expected)
    for b, n in enumerate(lengths):
        assert np.isfinite(logits[b, : n * hop]).all() and np.isnan(logits[b, n * hop :]).all()
        assert (sound[b, n * hop :] == 0).all()


def test_arguments_are_not_written() -> None:
    engine = engine_of()
    mel = random_mel(engine.config, FRAMES, 1)
    frozen = mel.copy()
    frozen.setflags(write=False)
    everything(engine, start(engine), frozen)
    np.testing.assert_array_equal(frozen, mel)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list(MODELS))
def test_extreme_mels_give_finite_sound(name: str, dtype: str) -> None:
    engine = engine_of(name, dtype)
    for value in (1e30, -1e30, 3e38, 1e-42):
        mel = np.full((1, engine.config.n_mels, FRAMES), value, np.float32)
        sound = everything(engine, start(engine), mel)
        assert np.isfinite(sound).all() and np.abs(sound).max() <= 1


@pytest.mark.parametrize("temperature", [1e-320, 1e-45, 1e-30, 1e30, 1e300])
@pytest.mark.parametrize("name", ["odd", "logistic", "gaussian"])
def test_extreme_temperatures_give_finite_sound(name: str, temperature: float) -> None:
    engine = engine_of(name)
    mel = random_mel(engine.config, FRAMES, 1)
    sound = engine.advance(start(engine), mel, np.array([FRAMES]), np.array([True]), temperature)[0]
    assert np.isfinite(sound).all() and np.abs(sound).max() <= 1


# --- arguments that do not fit ----------------------------------------------------------------------------------


def arguments(engine: CpuEngine, **changes: Any) -> dict[str, Any]:
    good: dict[str, Any] = {
        "mel": random_mel(engine.config, FRAMES, 2), "frames": np.array([FRAMES, FRAMES]),
        "ended": np.array([True, True]), "temperature": 1.0,
    }  # fmt: skip
    return good | changes


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"mel": np.zeros((2, 12, FRAMES), np.float32)}, ShapeError, r"\(2, 12, 8\).*\(2, 13, frames\)"),
    ({"mel": np.zeros((3, 13, FRAMES), np.float32)}, ShapeError, r"\(2, 13, frames\)"),
    ({"mel": np.zeros((13, FRAMES), np.float32)}, ShapeError, r"\(2, 13, frames\)"),
    ({"mel": np.zeros((2, 13, FRAMES))}, InputError, "float64.*float32"),
    ({"mel": np.zeros((2, 13, FRAMES), ">f4")}, InputError, "native byte order"),
    ({"frames": np.array([FRAMES + 1, 0])}, InputError, "0 … 8"),
    ({"frames": np.array([-1, 0])}, InputError, "0 … 8"),
    ({"frames": np.array([1.0, 2.0])}, ShapeError, "integers"),
    ({"frames": np.array([FRAMES])}, ShapeError, "one per stream"),
    ({"temperature": 0.0}, InputError, "temperature"),
    ({"temperature": float("nan")}, InputError, "temperature"),
    ({"forced": np.zeros((2, 3), np.int64)}, ShapeError, r"\(2, 88\)"),
    ({"forced": np.full((2, 88), 200)}, InputError, "0 … 199"),
    ({"forced": np.full((2, 88), -1)}, InputError, "0 … 199"),
    ({"forced": np.zeros((2, 88))}, InputError, "integer classes"),
    ({"logits": np.zeros((2, 87, 200), np.float32)}, ShapeError, r"\(2, 88, 200\)"),
    ({"logits": np.zeros((2, 88, 199), np.float32)}, ShapeError, r"\(2, 88, 200\)"),
    ({"logits": np.zeros((2, 88, 200))}, ShapeError, "float64"),
    ({"logits": np.zeros((2, 200, 88), np.float32).transpose(0, 2, 1)}, ShapeError, "contiguous"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "kind", "words"), BAD)
def test_bad_arguments_are_explained_and_change_nothing(changes: Any, kind: type[Exception], words: str) -> None:
    engine = engine_of()
    state = start(engine, 2)
    before = state.state_dict()
    with pytest.raises(kind, match=words):
        engine.advance(state, **arguments(engine, **changes))
    after = state.state_dict()
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)
    engine.advance(state, **arguments(engine))


def test_frames_after_the_end_are_refused() -> None:
    engine = engine_of()
    state = start(engine, 2)
    engine.advance(state, **arguments(engine, ended=np.array([True, False])))
    with pytest.raises(StateError, match=r"\[0\], which have ended; reset"):
        engine.advance(state, **arguments(engine))
    _, ready = engine.advance(state, **arguments(engine, frames=np.array([0, 0])))
    assert ready[0] == 0


def test_states_stay_with_their_engine() -> None:
    with pytest.raises(StateError, match="another engine"):
        everything(engine_of(), start(engine_of()), random_mel(MODELS["odd"], FRAMES, 1))


def test_speakers_are_checked() -> None:
    engine, seeds = engine_of("gaussian"), np.zeros(2, np.uint64)
    for speakers, kind in (
        (None, InputError), (np.zeros((2, 4)), ShapeError), (np.zeros((1, 3)), ShapeError),
        (np.full((2, 3), np.nan), InputError),
    ):  # fmt: skip
        with pytest.raises(kind, match="speaker"):
            engine.start(seeds, speakers)
    with pytest.raises(ShapeError, match="speaker"):
        engine_of("odd").start(seeds, np.zeros((2, 3)))
    with pytest.raises(ShapeError, match="uint64"):
        engine.start(np.zeros(2), np.zeros((2, 3)))


def test_unknown_formats_and_weights_are_refused() -> None:
    config = MODELS["odd"]
    weights = random_weights(config)
    with pytest.raises(BackendError, match=r"'int4'.*fp32, bf16"):
        CpuEngine(config, weights, "int4")
    with pytest.raises(BackendError, match=r"head\.out\.weight"):
        CpuEngine(config, {k: w for k, w in weights.items() if k != "head.out.weight"})
    with pytest.raises(BackendError, match=r"extra"):
        CpuEngine(config, weights | {"extra": weights["head.out.bias"]})
    with pytest.raises(BackendError, match=r"head\.out\.bias.*\(3,\).*\(200,\)"):
        CpuEngine(config, weights | {"head.out.bias": np.zeros(3, np.float32)})


def test_more_streams_than_memory_holds_are_refused_in_a_sentence() -> None:
    engine = CpuEngine(MODELS["tiny"], random_weights(MODELS["tiny"]))
    with pytest.raises(InputError, match="GiB of history, which is not there; use fewer"):
        engine.start(np.broadcast_to(np.uint64(0), 1 << 40))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wrong", ["size", "dtype", "missing"])
def test_the_native_side_checks_packed_arrays_itself(wrong: str, dtype: str) -> None:
    config, isa = MODELS["odd"], isas_possible()[-1]
    packed = pack(config, random_weights(config), layouts_of(isa), dtype)
    for name in packed:
        bad = dict(packed)
        if wrong == "missing":
            del bad[name]
        else:
            bad[name] = packed[name].ravel()[:-1].copy() if wrong == "size" else packed[name].astype(np.float64)
        with pytest.raises(ValueError, match=name):
            _engine.Model(encode(config), dtype, isa, bad)


@pytest.mark.parametrize(
    "field",
    [
        "rings",
        "ring_scales",
        "inputs",
        "filters",
        "positions",
        "seeds",
        "speakers",
        "received",
        "pending",
        "pending_counts",
        "mel",
        "frames",
        "ended",
        "counts",
        "forced",
        "raw",
        "logits",
    ],
)
def test_the_native_side_checks_every_array_of_a_call(field: str) -> None:
    """Called past the Python checks with one array too short, of another type, or strided: refused, never read."""
    engine = engine_of("gaussian", "int8")
    state = start(engine, 2)
    T = FRAMES * engine.config.hop_length
    stateful = {
        "rings": state.rings.reshape(2, -1), "ring_scales": state.ring_scales, "inputs": state.inputs,
        "filters": state.filters, "positions": state.positions, "seeds": state.seeds, "speakers": state.speakers,
        "received": state.frames,
        "pending": state.mel, "pending_counts": state.mel_frames,
    }  # fmt: skip
    call = {
        "mel": random_mel(engine.config, FRAMES, 2), "frames": np.array([FRAMES, FRAMES]), "ended": np.ones(2, bool),
        "counts": np.array([T, T]), "forced": np.zeros((2, T), np.float32), "raw": np.zeros((2, T), np.float32),
        "logits": np.zeros((2, T, 2), np.float32),
    }  # fmt: skip

    def attempt(**changes: Any) -> None:
        native = _engine.State(**{k: changes.get(k, v) for k, v in stateful.items()})
        rest = {k: changes.get(k, v) for k, v in call.items()}
        _engine.generate(
            model=engine._model, state=native, temperature=1.0, threads=1, split="auto", ahead=0, audio=None,
            trace=None, progress=None, **rest,
        )  # fmt: skip

    array = stateful.get(field, call.get(field))
    double = np.concatenate([array, array], axis=-1)[..., ::2]
    bad = [array[:1], array[..., None], array.astype(np.complex64), array.astype(object)]
    if field not in ("logits", "mel"):
        bad.append(array[..., :-1].copy() if array.size else array[:1])
    if field != "mel" and array.size:
        bad.append(double)
    for value in bad:
        with pytest.raises((ValueError, TypeError)):
            attempt(**{field: value})
    attempt()


@pytest.mark.parametrize(
    ("field", "value"),
    [("counts", 10**9), ("counts", -1), ("positions", -1), ("positions", 10**15), ("positions", 2**62),
     ("received", -5), ("received", 2**61), ("pending_counts", 99), ("pending_counts", -1),
     ("frames", FRAMES + 1), ("frames", -1), ("inputs", 1e9), ("inputs", np.nan), ("inputs", 0.5), ("inputs", -2),
     ("forced", 200), ("forced", np.nan)],
)  # fmt: skip
def test_the_native_side_checks_every_number_of_a_call(field: str, value: float) -> None:
    engine = engine_of("odd")
    state = start(engine)
    T = FRAMES * engine.config.hop_length
    arrays = {
        "counts": np.array([T]), "positions": state.positions, "received": state.frames, "frames": np.array([FRAMES]),
        "pending_counts": state.mel_frames, "inputs": state.inputs, "forced": np.zeros((1, T), np.float32),
    }  # fmt: skip
    arrays[field].reshape(-1)[-1] = value
    native = state.native()
    with pytest.raises(ValueError):
        _engine.generate(
            model=engine._model, state=native, split="auto", ahead=0, mel=random_mel(engine.config, FRAMES, 1),
            frames=arrays["frames"], ended=np.array([True]), counts=arrays["counts"], temperature=1.0, threads=1,
            forced=arrays["forced"], audio=None, raw=np.zeros((1, T), np.float32), logits=None, trace=None,
            progress=None,
        )  # fmt: skip


# --- saved states -----------------------------------------------------------------------------------------------


def test_states_of_another_model_or_format_or_size_are_refused() -> None:
    state = start(engine_of(), 2)
    saved = state.state_dict()
    others = {
        "model": CpuEngine(MODELS["odd"], random_weights(MODELS["odd"], 1)),
        "dtype": engine_of(dtype="bf16"),
        "batch": None,
    }
    for word, engine in others.items():
        other = start(engine_of(), 3) if engine is None else start(engine, 2)
        with pytest.raises(StateError, match=word):
            other.load_state_dict(saved)
    with pytest.raises(StateError, match="format"):
        state.load_state_dict(saved | {"format": "wavenet_fast cpu 0"})
    with pytest.raises(StateError, match="format"):
        state.load_state_dict({})


@pytest.mark.parametrize(
    ("name", "change"),
    [("inputs", lambda a: a + 1e6), ("inputs", lambda a: a + 0.5), ("inputs", lambda a: a * np.nan),
     ("positions", lambda a: a + 1), ("positions", lambda a: a - 10**6), ("frames", lambda a: a + 1),
     ("frames", lambda a: a - 100), ("frames", lambda a: a + 2**60), ("mel_frames", lambda a: a + 1),
     ("mel", lambda a: a * np.nan), ("filters", lambda a: a + np.inf), ("rings", lambda a: a[:, :-1]),
     ("rings", lambda a: a.astype(np.float64)), ("seeds", lambda a: a.astype(np.int64)), ("ended", lambda a: ~a)],
)  # fmt: skip
def test_damaged_states_are_refused_and_change_nothing(name: str, change: Any) -> None:
    engine = engine_of()
    state = start(engine, 2)
    engine.advance(state, **arguments(engine, ended=np.array([False, False])))
    saved = state.state_dict()
    with pytest.raises(StateError, match=name.replace("ended", "positions")):
        state.load_state_dict(saved | {name: change(saved[name])})
    for key, value in state.state_dict().items():
        np.testing.assert_array_equal(value, saved[key])


def test_damaged_scales_of_int8_histories_are_refused() -> None:
    state = start(engine_of(dtype="int8"), 2)
    saved = state.state_dict()
    with pytest.raises(StateError, match="ring_scales"):
        state.load_state_dict(saved | {"ring_scales": saved["ring_scales"] * np.nan})


# --- instruction sets -------------------------------------------------------------------------------------------


def test_the_environment_variable_chooses_the_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for isa in isas_possible():
        monkeypatch.setenv("WAVENET_FAST_ISA", isa)
        assert engine_of().isa == cpu.isa_in_use() == isa
    monkeypatch.delenv("WAVENET_FAST_ISA")
    assert cpu.isa_in_use() == isas_possible()[-1]


@pytest.mark.parametrize("word", ["sse", "AVX2", "avx2 ", "portable,avx2", "0"])
def test_unknown_instruction_sets_are_explained(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    monkeypatch.setenv("WAVENET_FAST_ISA", word)
    with pytest.raises(BackendError, match=f"WAVENET_FAST_ISA is '{word}'.*Possible here: .*portable"):
        engine_of()


def test_instruction_sets_that_the_processor_lacks_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    table = [dict(isa) for isa in _engine.isas()]
    table[-1]["available"] = False
    monkeypatch.setattr(_engine, "isas", lambda: table)
    monkeypatch.setenv("WAVENET_FAST_ISA", table[-1]["name"])
    with pytest.raises(BackendError, match=r"this processor does not have it\. Possible here"):
        engine_of()
    monkeypatch.delenv("WAVENET_FAST_ISA")
    assert cpu.isa_in_use() != table[-1]["name"]


# --- long calls -------------------------------------------------------------------------------------------------


def long_call(engine: CpuEngine, state: CpuState, frames: int = 100_000, **options: Any) -> None:
    mel = np.zeros((state.batch, engine.config.n_mels, frames), np.float32)
    everything(engine, state, mel, **options)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_long_call_is_interrupted_within_a_fifth_of_a_second(threads: int) -> None:
    engine = CpuEngine(case("voice"), random_weights(case("voice")))
    state = start(engine, 3)
    mel = random_mel(engine.config, 3, 3)
    engine.advance(state, mel, np.array([2, 3, 1]), np.zeros(3, bool), 1.0)
    before = state.state_dict()
    sent: list[float] = []

    def interrupt() -> None:
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(0.3, interrupt)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        long_call(engine, state, threads=threads)
    assert time.monotonic() - sent[0] < 0.2
    # As it was before the call, so that the call can be made again.
    for name, value in state.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    again = start(engine, 3)
    engine.advance(again, mel, np.array([2, 3, 1]), np.zeros(3, bool), 1.0)
    np.testing.assert_array_equal(everything(engine, state, mel), everything(engine, again, mel))


def test_progress_is_reported_and_what_it_raises_stops_the_call() -> None:
    engine = CpuEngine(case("voice"), random_weights(case("voice")))
    state = start(engine, 2)
    seen: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        assert threading.current_thread() is threading.main_thread()
        seen.append((done, total))
        if len(seen) == 4:
            raise RuntimeError("enough")

    begun = time.monotonic()
    with pytest.raises(RuntimeError, match="enough"):
        long_call(engine, state, threads=2, progress=progress)
    assert time.monotonic() - begun < 5
    assert [total for _, total in seen] == [2 * 100_000 * 200] * 4
    assert 0 < seen[1][0] <= seen[2][0] <= seen[3][0]
    assert (state.positions == 0).all() and not state.rings.any()
    last: list[tuple[int, int]] = []
    everything(engine, state, random_mel(engine.config, 2, 2), progress=lambda *p: last.append(p))
    assert last[-1] == (800, 800)


def test_a_call_that_is_long_for_its_conditioning_alone_is_watched_too() -> None:
    """A few hundred samples of a small network behind a large conditioning network: the call reports, and can be
    stopped, before its first sample. On the portable instruction set, where this takes some tenths of a second."""
    network = tuple(FrameConv(channels=512, kernel_size=9) for _ in range(4))
    config = small(conditioning=Conditioning(network=network))
    engine = CpuEngine(config, random_weights(config), "fp32", "portable")
    state, seen = start(engine), []

    def progress(done: int, total: int) -> None:
        seen.append((done, total))
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        everything(engine, state, random_mel(config, 60, 1), progress=progress)
    assert seen == [(0, 60 * config.hop_length)]
    assert (state.positions == 0).all() and not state.rings.any()


def test_a_call_whose_last_report_raises_has_not_happened() -> None:
    engine = engine_of("logistic")
    state, mel = start(engine), random_mel(engine.config, FRAMES, 1)

    def progress(done: int, total: int) -> None:
        raise RuntimeError("at the end")

    before = state.state_dict()
    with pytest.raises(RuntimeError, match="at the end"):
        everything(engine, state, mel, progress=progress)
    for name, value in state.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_other_python_threads_run_meanwhile_and_a_state_serves_one_at_a_time() -> None:
    engine = CpuEngine(case("voice"), random_weights(case("voice")))
    state, problems = start(engine), []
    stop = threading.Event()

    def progress(done: int, total: int) -> None:
        if stop.is_set():
            raise RuntimeError("stopped")

    def call() -> None:
        try:
            long_call(engine, state, progress=progress)
        except RuntimeError as error:
            problems.append(str(error))

    worker = threading.Thread(target=call)
    worker.start()
    time.sleep(0.2)
    with pytest.raises(StateError, match="in use by another thread"):
        everything(engine, state, random_mel(engine.config, 1, 1))
    other = start(engine)
    assert everything(engine, other, random_mel(engine.config, 1, 1)).size == 200
    stop.set()
    worker.join(5)
    assert problems == ["stopped"]


MEMORY = """
import resource
import numpy as np
from engine_models import MODELS, random_weights
from wavenet_fast.backends.cpu import CpuEngine
config, frames = MODELS["gaussian"], 120_000
engine = CpuEngine(config, random_weights(config))
mel = np.ones((1, config.n_mels, frames), np.float32)
def call(n):
    state = engine.start(np.zeros(1, np.uint64), np.zeros((1, 3), np.float32))
    return engine.advance(state, mel[:, :, :n], np.array([n]), np.array([True]), 1.0)[0]
call(1000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
sound = call(frames)
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
print(grown - sound.nbytes)
"""


def test_memory_does_not_grow_with_the_utterance_beyond_mel_and_sound() -> None:
    """120,000 frames: the conditioning of all frames and layers would be 58 MB, the standardised mel 2.4 MB."""
    assert int(python(MEMORY)) < 1_500_000


SHIM = r"""
#include <stddef.h>
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
static int (*counting)(void);
static __thread int inside;
long allocations;
void arm(int (*f)(void)) { counting = f; }
static void count(void) {
  if (!counting || inside) return;
  inside = 1;
  if (counting()) __atomic_fetch_add(&allocations, 1, __ATOMIC_RELAXED);
  inside = 0;
}
void *malloc(size_t n) { count(); return __libc_malloc(n); }
void *calloc(size_t n, size_t m) { count(); return __libc_calloc(n, m); }
void *realloc(void *p, size_t n) { count(); return __libc_realloc(p, n); }
void *aligned_alloc(size_t a, size_t n) { count(); return __libc_memalign(a, n); }
void *memalign(size_t a, size_t n) { count(); return __libc_memalign(a, n); }
int always(void) { return 1; }
"""

COUNT = """
import ctypes
import numpy as np
from engine_models import MODELS, random_mel, random_weights, speaker_vectors
from wavenet_fast import _engine
from wavenet_fast.backends.cpu import CpuEngine, isas_possible
shim, engine_library = ctypes.CDLL(SHIM), ctypes.CDLL(_engine.__file__)
allocations = ctypes.c_long.in_dll(shim, "allocations")
def work():
    for name, config in MODELS.items():
        for isa in isas_possible():
            for threads in (1, 2):
                engine = CpuEngine(config, random_weights(config), "bf16" if threads == 1 else "fp32", isa)
                state = engine.start(np.zeros(3, np.uint64), speaker_vectors(config, 3))
                mel = random_mel(config, 4, 3)
                engine.advance(state, mel, np.array([4, 4, 2]), np.ones(3, bool), 1.0, threads=threads)
shim.arm(shim.always)
work()
outside = allocations.value
shim.arm(engine_library.wavenet_fast_in_sample_loop)
allocations.value = 0
work()
print(outside, allocations.value)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts through glibc's malloc, which is Linux's")
def test_no_heap_allocation_in_the_sample_loop(tmp_path: Path) -> None:
    source, shim = tmp_path / "shim.c", tmp_path / "shim.so"
    source.write_text(SHIM)
    compiler = os.environ.get("CXX", "g++")  # the interpreter under test may be another architecture's
    subprocess.run([compiler, "-x", "c", "-O1", "-fPIC", "-shared", str(source), "-o", str(shim)], check=True)
    outside, inside = map(int, python(f"SHIM = {str(shim)!r}\n{COUNT}", LD_PRELOAD=str(shim)).split())
    assert outside > 1000  # the shim does count
    assert inside == 0
