"""The kernels with a program's own arrays, on the emulated device: what is taken where it lies, what is refused, and a
launch that is repeated."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from engine_models import MODELS, random_mel, random_weights, small

from wavenet_fast.backends import gpu
from wavenet_fast.config import Conditioning, GaussianHead, Linear, ScalarInput
from wavenet_fast.errors import BackendError, InputError, ShapeError

pytestmark = pytest.mark.skipif(
    gpu.why_not_emulated_cuda_kernels() is not None, reason=str(gpu.why_not_emulated_cuda_kernels())
)

# Whole columns: the first sample of a window is the first of its first column.
ONE_HOT = MODELS["tiny"]
SCALAR = small(input=ScalarInput(), head=GaussianHead(), conditioning=Conditioning(upsampling=Linear()))
B, FRAMES = 3, 2


def the_model(config, dtype="fp32"):
    from wavenet_fast.kernels.cuda.emulated_device import EmulatedDevice
    from wavenet_fast.kernels.cuda.model import Model

    return Model(config, random_weights(config), dtype, EmulatedDevice(90))


@pytest.fixture(scope="module", params=["one hot", "scalar"])
def model(request):
    return the_model(ONE_HOT if request.param == "one hot" else SCALAR)


def beginning(model, steps=6):
    """Arrays of NumPy for B streams at their beginning, and room for `steps` samples."""
    s, rng = model.shape, np.random.default_rng(5)
    inputs = np.zeros((B, s.IN_DEPTH), np.float32)
    if s.ONE_HOT:
        inputs[:] = -1
    inputs[:, -1] = model.config.start
    return {
        "rings": np.zeros((B, s.SLOTS, model.ring_row), model.operand), "inputs": inputs,
        "filters": np.zeros(B, np.float32), "positions": np.zeros(B, np.int64), "seeds": np.arange(B).astype(np.uint64),
        "projected": rng.standard_normal((B, FRAMES, s.LAYERS, s.HALF, 2)).astype(np.float32),
        "first_q": np.zeros(B, np.int32), "last_column": np.full(B, FRAMES - 1, np.int32),
        "audio": np.full((B, steps), np.nan, np.float32), "draws": np.full((B, steps), np.nan, np.float32),
    }  # fmt: skip


def ready(model, arrays, counts, **options):
    from wavenet_fast.kernels.cuda.launches import Heard, Made, Streams
    from wavenet_fast.kernels.cuda.layout import Layout

    parts = [
        kind(**{field.name: arrays.get(field.name) for field in dataclasses.fields(kind)})
        for kind in (Streams, Heard, Made)
    ]
    cut = Layout(model.shape, model.dtype, "streaming_weights", 8, 1, 1, stages=4)
    return model.ready(cut, 1, parts[0], counts, *parts[1:], **options)


# --- what is taken ----------------------------------------------------------------------------------------------


def test_arrays_are_used_where_they_lie(model):
    arrays = beginning(model)
    launch = ready(model, arrays, [6, 0, 4])
    launch.launch()
    launch.check()
    assert np.isfinite(arrays["audio"][0]).all() and np.isfinite(arrays["draws"][2, :4]).all()
    assert np.isnan(arrays["audio"][1]).all() and np.isnan(arrays["draws"][2, 4:]).all()
    assert arrays["rings"][0].any() and not arrays["rings"][1].any() and not arrays["positions"].any()


def test_arrays_of_other_libraries_give_the_same_samples(model):
    torch = pytest.importorskip("torch", reason="shares memory with NumPy")

    class Dlpack:
        def __init__(self, array):
            self.__dlpack__, self.__dlpack_device__ = array.__dlpack__, array.__dlpack_device__

    arrays = [beginning(model) for _ in range(3)]
    wrapped = [lambda name, a: a]
    # int64 stands for uint64, which torch hardly has.
    wrapped.append(lambda name, a: torch.from_numpy(a.view(np.int64) if name == "seeds" else a))
    wrapped.append(lambda name, a: Dlpack(a))
    forced = np.zeros((B, 6), np.float32)
    logits = [np.zeros((B, 6, model.config.out_channels), np.float32) for _ in range(3)]
    for own, wrap, out in zip(arrays, wrapped, logits, strict=True):
        given = {name: wrap(name, a) for name, a in {**own, "logits": out}.items()}
        counts = wrap("counts", np.array([6, 5, 6], np.int32)) if wrap is not wrapped[2] else (6, 5, 6)
        ready(model, given, counts, forced=wrap("forced", forced)).launch()
    for other, out in zip(arrays[1:], logits[1:], strict=True):
        np.testing.assert_array_equal(out, logits[0])
        for name in ("audio", "rings", "inputs", "filters"):
            np.testing.assert_array_equal(other[name], arrays[0][name])
    assert logits[0].any()


def test_a_torch_tensor_of_bfloat16_is_a_ring():
    torch = pytest.importorskip("torch", reason="has bfloat16")
    model = the_model(ONE_HOT, "bf16")
    arrays = beginning(model)
    rings = arrays["rings"] = torch.zeros(arrays["rings"].shape, dtype=torch.bfloat16)
    ready(model, arrays, [6, 6, 6]).launch()
    assert rings.float().abs().sum() > 0


def test_counts_on_the_device_are_read_there(model):
    device, arrays = model.device, beginning(model)
    ready(model, arrays, device.upload(np.array([6, 0, 4], np.int32))).launch()
    expected = beginning(model)
    ready(model, expected, np.array([6, 0, 4])).launch()
    np.testing.assert_array_equal(arrays["audio"], expected["audio"])


# --- what is refused --------------------------------------------------------------------------------------------

# (what is changed, the error, what it says)
REFUSED = [
    ({"rings": lambda a: a[:, 1:].copy()}, ShapeError, r"rings has shape .*; it must be \(3, "),
    ({"rings": lambda a: a.astype(np.float64)}, InputError, "rings is float64; it must be float32"),
    ({"rings": lambda a: np.asfortranarray(a)}, InputError, "rings: the array is not contiguous"),
    ({"rings": lambda a: a.tolist()}, InputError, "rings: list is no array"),
    ({"inputs": lambda a: a[:2]}, ShapeError, r"inputs has shape \(2, .*it must be \(3, "),
    ({"filters": lambda a: a[:, None]}, ShapeError, r"filters has shape \(3, 1\); it must be \(3,\)"),
    ({"positions": lambda a: a.astype(np.int32)}, InputError, "positions is int32; it must be int64"),
    ({"positions": lambda a: a - 1}, InputError, r"positions is -1 at \(0,\); possible are 0 … "),
    ({"projected": lambda a: a[..., :1].copy()}, ShapeError, r"projected has shape .*it must be \(3, F, "),
    ({"projected": lambda a: a[:, :0]}, ShapeError, "projected has shape .* at least one column"),
    ({"first_q": lambda a: a - (2**31 - 1)}, InputError, "first_q is -2147483647"),
    ({"last_column": lambda a: a + np.array([0, 0, 1], np.int32)}, InputError,
     r"last_column is 2 at \(2,\); possible are 0 … 1"),
    ({"last_column": lambda a: a - 2}, InputError, "last_column is -1"),
    ({"audio": lambda a: a[:, :5].copy()}, ShapeError, r"audio has shape \(3, 5\); counts ask for 6 samples"),
    ({"draws": lambda a: a[:, :5].copy()}, ShapeError, r"draws has shape \(3, 5\); it must be \(3, 6\)"),
    ({"logits": lambda a: np.zeros((3, 6, 1), np.float64)}, InputError, "logits is float64"),
    ({"logits": lambda a: np.zeros((3, 6, 99), np.float32)}, ShapeError, "logits has shape"),
    ({"trace": lambda a: {}}, InputError, "trace has nothing; needed are conditioning, embed, gate"),
]  # fmt: skip


@pytest.mark.parametrize("row", range(len(REFUSED)))
def test_what_does_not_fit_is_named_before_anything_is_written(model, row):
    changes, kind, told = REFUSED[row]
    arrays = beginning(model)
    given = {**arrays, **{name: change(arrays.get(name)) for name, change in changes.items()}}
    with pytest.raises(kind, match=told):
        ready(model, given, [6, 6, 6])
    assert np.isnan(arrays["audio"]).all() and not arrays["rings"].any()


def test_read_only_memory_is_not_written(model):
    for name in ("rings", "inputs", "filters", "audio", "draws"):
        arrays = beginning(model)
        arrays[name].flags.writeable = False
        with pytest.raises(InputError, match=f"{name} is read-only, and a launch writes it"):
            ready(model, arrays, [6, 6, 6])


@pytest.mark.parametrize(
    ("counts", "kind", "told"),
    [
        ([6, -1, 6], InputError, r"counts lie in -1 … 6; possible are 0 … "),
        ([6, 2**31, 6], InputError, "counts lie in 6 … 2147483648"),
        ([6.0, 6.0], ShapeError, r"counts are float64 \(2,\); give integers \(B,\)"),
        ([[6]], ShapeError, r"counts are int64 \(1, 1\)"),
        ([], ShapeError, "counts are"),
        ([6, 6], ShapeError, r"rings has shape \(3, .*; it must be \(2, "),
    ],
)
def test_counts_that_cannot_be(model, counts, kind, told):
    with pytest.raises(kind, match=told):
        ready(model, beginning(model), counts)


def test_classes_that_no_table_has():
    model = the_model(ONE_HOT)
    classes = model.config.out_channels
    for value in (classes, -2, np.nan):
        arrays = beginning(model)
        arrays["inputs"][1, 0] = value
        with pytest.raises(InputError, match=rf"inputs is .* at \(1, 0\); possible are -1 … {classes - 1}"):
            ready(model, arrays, [6, 6, 6])
        ready(model, arrays, [6, 6, 6], trusted=True)
    forced = np.zeros((B, 6), np.float32)
    forced[2, 5] = classes
    with pytest.raises(InputError, match=rf"forced is {classes}.* at \(2, 5\); possible are 0 … {classes - 1}"):
        ready(model, beginning(model), [6, 6, 6], forced=forced)


@pytest.mark.parametrize("name, unit", [("rings", 16), ("projected", 8)])
def test_views_that_begin_where_no_kernel_reads(model, name, unit):
    """On a GPU they would end in an error that costs the process the GPU."""
    arrays = beginning(model)
    given = arrays[name]
    room = np.zeros(given.nbytes + 2 * unit, np.uint8)
    begin = -room.ctypes.data % unit
    arrays[name] = room[begin + 4 : begin + 4 + given.nbytes].view(given.dtype).reshape(given.shape)
    with pytest.raises(InputError, match=f"{name} begins 4 bytes behind a multiple of {unit}"):
        ready(model, arrays, [6, 6, 6])
    arrays[name] = room[begin : begin + given.nbytes].view(given.dtype).reshape(given.shape)
    ready(model, arrays, [6, 6, 6])


def test_an_array_on_a_gpu_is_not_the_emulated_devices(model):
    class OnGpu:
        __cuda_array_interface__ = {"shape": (B,), "typestr": "<f4", "data": (4096, False), "version": 3}  # noqa: RUF012

    with pytest.raises(BackendError, match="filters: the array lies on a GPU"):
        ready(model, {**beginning(model), "filters": OnGpu()}, [6, 6, 6])


@pytest.mark.parametrize("patience", [0, -1, 2**63, 1.5, None])
def test_a_patience_that_is_none(model, patience):
    with pytest.raises(InputError, match=r"patience is .*; give clock cycles"):
        ready(model, beginning(model), [6, 6, 6], patience=patience)


# --- again and again --------------------------------------------------------------------------------------------


def test_a_launch_that_goes_on_is_one_long_launch(model):
    """As a CUDA graph would replay it: the same addresses and numbers, with other conditioning put in place."""
    s, hop = model.shape, model.config.hop_length
    whole = beginning(model, 2 * hop)
    ready(model, whole, [2 * hop] * B).launch()
    arrays = beginning(model, hop)
    heard = arrays["projected"].copy()
    launch, made = ready(model, arrays, [hop] * B), []
    for frame in range(2):
        if s.UPSAMPLING == 1:  # interpolated: what lies ahead is heard too, and what lies behind
            arrays["first_q"][:] = frame * hop
        else:
            arrays["projected"][:, 0] = heard[:, frame]
            arrays["last_column"][:] = 0
        launch.launch()
        launch.go_on()
        launch.check()
        made.append(arrays["audio"].copy())
        assert (arrays["positions"] == (frame + 1) * hop).all()
    np.testing.assert_array_equal(np.concatenate(made, 1), whole["audio"])
    np.testing.assert_array_equal(arrays["rings"], whole["rings"])


def test_more_streams_than_places_follow_after_others(model):
    from wavenet_fast.kernels.cuda.launches import Heard, Made, Streams
    from wavenet_fast.kernels.cuda.layout import Layout

    s, device = model.shape, model.device
    arrays, n = beginning(model), 20
    many = {name: np.ascontiguousarray(np.resize(a, (n, *a.shape[1:]))) for name, a in arrays.items()}
    many["seeds"] = np.arange(n).astype(np.uint64)
    parts = [
        kind(**{field.name: many.get(field.name) for field in dataclasses.fields(kind)})
        for kind in (Streams, Heard, Made)
    ]
    cut = Layout(s, "fp32", "resident", 8, 1, 1, residual=1, first_layers=(0, 2, s.LAYERS))  # a grid: with mailboxes
    launch = model.ready(cut, 1, parts[0], np.full(n, 6), *parts[1:])
    assert len(launch.calls) == 3 and len({id(call["mailboxes"]) for call in launch.calls}) == 1
    assert launch.calls[0]["mailboxes"] is not None
    launch.launch()
    launch.check()
    few = beginning(model)
    ready(model, few, [6] * B).launch()
    np.testing.assert_array_equal(many["audio"][:B], few["audio"])
    assert np.isfinite(many["audio"]).all() and device.download(launch.abort)[0] == 0


def test_the_example_of_the_page(make_checkpoint):
    """On the emulated device instead of a GPU; with the second block, the one for CUDA graphs, without its capture."""
    pytest.importorskip("torch", reason="the example's arrays are torch's")
    text = (Path(__file__).parents[1] / "docs" / "gpu-ops.md").read_text(encoding="utf-8")
    page = text.partition("## The CUDA kernels with your own arrays")[2]
    first, second = (block.partition("```")[0] for block in page.split("```python\n")[1:])
    code = first.replace("cuda.cuda_device import CudaDevice", "cuda.emulated_device import EmulatedDevice")
    code = code.replace('CudaDevice(0), "cuda:0"', 'EmulatedDevice(90), "cpu"').replace('"my-voice"', "voice_path")
    captured = "graph = torch.cuda.CUDAGraph()\nwith torch.cuda.graph(graph):\n"
    assert code != first and captured in second and "graph.replay()" in second
    replayed = second.replace(captured, "if False:\n").replace("graph.replay()", "ready.launch(), ready.go_on()")
    checkpoint = make_checkpoint()
    names = {"load_checkpoint": lambda path: checkpoint, "voice_path": None}
    exec(compile(code.replace("from wavenet_fast import load_checkpoint\n", ""), "docs/gpu-ops.md", "exec"), names)
    assert np.isfinite(names["audio"].numpy()).all() and names["audio"].any()
    first_audio = names["audio"].clone()
    exec(compile(replayed, "docs/gpu-ops.md", "exec"), names)
    hop = checkpoint.config.hop_length
    assert (names["positions"] == (names["n"] + len(names["windows"]) * names["n"]) * hop).all()
    assert not (first_audio == names["audio"]).all()


# --- the engine -------------------------------------------------------------------------------------------------


def test_patience_is_configured_in_seconds(monkeypatch):
    from wavenet_fast.backends.cuda import CudaEngine

    def patience(**options):
        engine = CudaEngine(ONE_HOT, random_weights(ONE_HOT), "fp32", "emulated", **options)
        return engine.patience / engine.model.device.clock

    assert patience() > 30 and patience(patience=2.5) == 2.5
    for wrong in (0, -1, float("nan"), float("inf"), "soon"):
        with pytest.raises(InputError, match=r"patience is .*give the seconds"):
            patience(patience=wrong)
    monkeypatch.setenv("WAVENET_FAST_GPU_PATIENCE", "7")
    assert patience() == 7 and patience(patience=2) == 2
    monkeypatch.setenv("WAVENET_FAST_GPU_PATIENCE", "for ever")
    with pytest.raises(BackendError, match=r"WAVENET_FAST_GPU_PATIENCE is 'for ever'; give the seconds"):
        patience()


def test_ctrl_c_leaves_streams_as_they_were(monkeypatch):
    from wavenet_fast.kernels.cuda import emulated_device

    from wavenet_fast.backends import gpu_engine
    from wavenet_fast.backends.cuda import CudaEngine

    monkeypatch.setattr(gpu_engine, "_LAUNCH_PRODUCTS", 1)  # windows of a frame
    engine = CudaEngine(SCALAR, random_weights(SCALAR), "fp32", "emulated")
    mel, ended = random_mel(SCALAR, 5, 2), np.ones(2, bool)

    def speak(state):
        return engine.advance(state, mel, np.full(2, 5), ended, 1.0)[0]

    state = engine.start(np.arange(2, dtype=np.uint64), None)
    expected, waits = speak(engine.start(np.arange(2, dtype=np.uint64), None)), []
    before, wait = state.state_dict(), emulated_device._Done.wait

    def interrupted(self):
        waits.append(self)
        if len(waits) == 5:
            raise KeyboardInterrupt
        return wait(self)

    monkeypatch.setattr(emulated_device._Done, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        speak(state)
    after = state.state_dict()
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)
    np.testing.assert_array_equal(speak(state), expected)
