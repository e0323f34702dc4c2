"""The public ops: against the definitions in wavenet_fast.sampling, the block's reference and the engine, on the PTX
executor, and on a GPU where one is; what PyTorch asks of a registered op; and everything they refuse."""

from __future__ import annotations

import json
import re
import sys

import numpy as np
import pytest
from engine_models import MODELS, random_history, random_mel, random_weights, small, speaker_vectors
from tolerances import BLOCK, UNIFORM, VALUE

from wavenet_fast import sampling
from wavenet_fast.backends import gpu
from wavenet_fast.config import CategoricalHead, GaussianHead, LogisticHead, OneHotInput, WaveNetConfig, decode
from wavenet_fast.errors import BackendError, CheckpointError, ConfigError, InputError, ShapeError

torch = pytest.importorskip("torch", reason="ops are PyTorch's")
if (why := gpu.why_not_emulated()) is not None:
    pytest.skip(f"the executor is off: {why}", allow_module_level=True)

from torch.library import opcheck  # noqa: E402
from wavenet_fast.kernels.triton import model_ops, packing  # noqa: E402
from wavenet_fast.kernels.triton import ops as registered  # noqa: E402

from wavenet_fast import ops  # noqa: E402

CLASSES = CategoricalHead(classes=30)
TARGETS = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
]


@pytest.fixture(params=TARGETS)
def device(request):
    return request.param


@pytest.fixture
def emulated(device):
    return device == "cpu"


def draws(shape, seed=0, low=0.0, high=1.0, device="cpu"):
    """Uniform numbers amid a larger, poisoned allocation: what lies around must not be read."""
    count = int(np.prod(shape))
    buffer = torch.full((count + 64,), torch.nan)
    buffer[32 : 32 + count] = torch.from_numpy(np.random.default_rng(seed).uniform(low, high, count).astype(np.float32))
    return buffer.to(device)[32 : 32 + count].view(shape)


# --- sample -------------------------------------------------------------------------------------------------------

HEADS = {
    "classes": CLASSES, "many-classes": CategoricalHead(classes=700), "logistic": LogisticHead(components=3),
    "floored": LogisticHead(components=3, log_scale_min=-1.0), "gaussian": GaussianHead(components=3),
    "one-gaussian": GaussianHead(components=1),
}  # fmt: skip


@pytest.mark.parametrize("head", HEADS)
def test_sample_is_the_definition(head, device, emulated):
    head = HEADS[head]
    for shape, temperature in (((3, 7), 0.7), ((5,), 1), ((), 1.3)):
        logits = draws((*shape, sampling.out_channels(head)), 1, -4.0, 1.0, device)
        uniforms = draws((*shape, 4), 2, device=device)
        given = ops.sample(logits, uniforms, head, temperature, emulated=emulated)
        x, u = logits.cpu().numpy(), uniforms.cpu().numpy()
        wanted = sampling.sample(x, u, head, temperature)
        assert given.shape == shape and given.device == logits.device
        if isinstance(head, CategoricalHead):
            assert given.dtype == torch.int64
            edges = sampling.cdf_edge_distance(x, u[..., 0], temperature, (given.cpu().numpy(), wanted))
            assert (edges <= UNIFORM).all()
        else:
            assert given.dtype == torch.float32
            np.testing.assert_allclose(given.cpu().numpy(), wanted, atol=VALUE, rtol=0)


def test_sample_draws_more_than_one_thing():
    given = ops.sample(draws((64, 30), 3), draws((64, 4), 4), CLASSES, emulated=True)
    assert len(given.unique()) > 15


def test_sample_of_nothing_and_of_what_is_no_number():
    assert ops.sample(torch.empty(0, 30), torch.empty(0, 4), CLASSES, emulated=True).shape == (0,)
    logits = torch.tensor([torch.nan, torch.inf, -torch.inf, 3e38])[:, None].expand(4, 30).contiguous()
    given = ops.sample(logits, torch.full((4, 4), torch.nan), CLASSES, 1e-300, emulated=True)
    assert ((given >= 0) & (given < 30)).all()


# --- residual_block -----------------------------------------------------------------------------------------------


def block(B=3, T=21, R=11, G=26, S=14, K=3, dilation=5, last=False, biased=True, device="cpu", seed=0):
    """Arguments of `residual_block` up to the dilation."""
    shapes = {
        "x": (B, (K - 1) * dilation + T, R), "skip": (B, T, S), "conditioning": (B, T, G), "w_dilated": (G, R, K),
        "b_dilated": (G,), "w_residual": (R, G // 2), "b_residual": (R,), "w_skip": (S, G // 2), "b_skip": (S,),
    }  # fmt: skip
    given = {name: draws(shape, seed + i, -1.0, 1.0, device) for i, (name, shape) in enumerate(shapes.items())}
    without = ["b_dilated", "b_residual", "b_skip"] * (not biased) + ["w_residual", "b_residual"] * last
    return {**given, **dict.fromkeys(without), "dilation": dilation}


def assert_close(given, wanted, limits):
    difference = (given.double() - wanted.double()) / wanted.double().std()
    assert difference.abs().max() <= limits[0] and difference.square().mean().sqrt() <= limits[1]


WEIGHTS = ("dilated.weight", "dilated.bias", "residual.weight", "residual.bias", "skip.weight", "skip.bias")
CASES = {
    "plain": {}, "two-taps": {"K": 2, "dilation": 1}, "last": {"last": True}, "without-biases": {"biased": False},
    "whole-tiles": {"R": 16, "G": 32, "S": 16, "T": 32}, "one-sample": {"T": 1, "B": 1},
    "wide": {"R": 40, "G": 66, "S": 21, "dilation": 2},
}  # fmt: skip
HALF_CASES = [(case, dtype) for case in ("plain", "last", "wide") for dtype in ("fp16", "bf16")]


@pytest.mark.parametrize(("case", "dtype"), [*((case, "fp32") for case in CASES), *HALF_CASES])
def test_a_block_is_its_reference(case, dtype, device, emulated):
    arguments = block(**CASES[case], device=device)
    before = {name: value.clone() for name, value in arguments.items() if isinstance(value, torch.Tensor)}
    x, skip = ops.residual_block(**arguments, residual_scale=0.7, dtype=dtype, emulated=emulated)
    arguments = {n: v.double() if isinstance(v, torch.Tensor) else v for n, v in arguments.items()}
    wanted_x, wanted_skip = ops.residual_block_reference(**arguments, residual_scale=0.7, dtype=dtype)
    assert_close(skip, wanted_skip, BLOCK[dtype])
    assert (x is None) == (wanted_x is None) == CASES[case].get("last", False)
    if x is not None:
        assert_close(x, wanted_x, BLOCK[dtype])
    assert all(torch.equal(before[name], arguments[name].float()) for name in before)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_blocks_one_after_the_other_are_the_network(dtype):
    from wavenet_fast.reference import Reference

    config = MODELS["odd"]
    network = Reference(config, random_weights(config, seed=1), dtype, dtype)
    heard = network.conditioning(torch.from_numpy(random_mel(config, 4))[None])
    history = torch.from_numpy(random_history(config, heard.shape[1]))[None]
    trace = {}
    network.forward(history, heard, trace)
    x, skip = trace["embed"], torch.zeros(*trace["embed"].shape[:2], config.skip_channels)
    for i, dilation in enumerate(config.dilations):
        w = {name: network.weights.get(f"layers.{i}.{name}") for name in WEIGHTS}
        past = torch.nn.functional.pad(x, (0, 0, (config.kernel_size - 1) * dilation, 0))
        x, skip = ops.residual_block_reference(
            past, skip, heard[:, :, i], *w.values(), dilation, config.residual_scale, dtype
        )
        if i + 1 < config.n_layers:
            torch.testing.assert_close(x, trace[f"x.{i}"], atol=1e-5, rtol=0)
            x = trace[f"x.{i}"]
    assert config.skip_rule == "sum" and x is None
    torch.testing.assert_close(skip * config.skip_scale, trace["skip"], atol=1e-5, rtol=0)


def test_a_block_of_nothing():
    x, skip = ops.residual_block(**block(T=0), emulated=True)
    assert x.shape == (3, 0, 11) and skip.shape == (3, 0, 14)
    assert ops.residual_block(**block(B=0), emulated=True)[1].shape == (0, 21, 14)


# --- project and generate -----------------------------------------------------------------------------------------

# Features are the mel itself, so that the engine projects the same numbers.
PLAIN = small(input=OneHotInput(kernel_size=2), head=CategoricalHead(classes=21), dilations=(1, 3), kernel_size=2)
B, FRAMES = 3, 5
T, TEMPERATURE = FRAMES * PLAIN.hop_length, 3.0


@pytest.fixture(scope="module")
def made():
    """config, weights → the engine's (audio, draws, logits, state) and what the ops begin with."""
    from wavenet_fast.backends.triton import TritonEngine

    weights = random_weights(PLAIN, seed=1)
    engine = TritonEngine(PLAIN, weights, "bf16", "emulated")
    mel, logits = random_mel(PLAIN, FRAMES, B), np.zeros((B, T, PLAIN.out_channels), np.float32)
    state = engine.start(np.array([3, 4, 2**64 - 1], np.uint64))
    call = state, mel, np.array([FRAMES, FRAMES, 2]), np.ones(B, bool), TEMPERATURE
    classes, counts = engine.advance(*call, logits=logits, raw=True)
    model = ops.prepare(PLAIN, weights, "bf16", "cpu")
    features = torch.from_numpy(mel).mT.contiguous()
    return {
        "model": model, "features": features, "counts": torch.tensor(counts, dtype=torch.int32), "classes": classes,
        "logits": logits, "state": state, "projected": ops.project(model, features, emulated=True),
    }  # fmt: skip


def test_generate_is_the_engine_bit_for_bit_in_any_pieces(made):
    streams, parts = ops.start(made["model"], [3, 4, 2**64 - 1]), []
    left = made["counts"].clone()
    last = torch.tensor([FRAMES - 1, FRAMES - 1, 1], dtype=torch.int32)
    for steps in (7, 1, T - 8):
        counts = left.clamp(max=steps)
        left -= counts
        parts.append(
            ops.generate(
                made["model"], streams, made["projected"], steps, TEMPERATURE, counts=counts, last_column=last,
                logits=True, emulated=True,
            )
        )  # fmt: skip
    audio, drawn, logits = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
    assert drawn.dtype == torch.int64 and torch.equal(streams.positions, made["counts"].long())
    assert audio.abs().max() <= 1 and len(drawn.unique()) > 5
    for b, count in enumerate(made["counts"].tolist()):
        np.testing.assert_array_equal(drawn[b, :count].numpy(), made["classes"][b, :count])
        np.testing.assert_array_equal(logits[b, :count].numpy(), made["logits"][b, :count])
    assert torch.equal(streams.rings, made["state"].rings)
    np.testing.assert_array_equal(streams.filters.numpy(), made["state"].filters)


def test_what_lies_beyond_a_stream_s_count_is_zero(made):
    counts = torch.tensor([4, 0, 2], dtype=torch.int32)
    streams = ops.start(made["model"], [3, 4, 5])
    audio, drawn, _ = ops.generate(made["model"], streams, made["projected"], 4, counts=counts, emulated=True)
    for b, count in enumerate(counts.tolist()):
        assert not audio[b, count:].any() and not drawn[b, count:].any()
    assert audio[0].any() and torch.equal(streams.positions, counts.long())
    assert not streams.rings[1].any()


def test_a_forced_history_is_heard(made):
    own = ops.start(made["model"], [3, 4, 5])
    call = {"logits": True, "emulated": True}
    _, drawn, logits = ops.generate(made["model"], own, made["projected"], 9, **call)
    forced = ops.start(made["model"], [3, 4, 5])
    again = ops.generate(made["model"], forced, made["projected"], 9, forced=drawn.float(), **call)
    assert torch.equal(again[1], drawn) and torch.equal(again[2], logits) and torch.equal(own.rings, forced.rings)
    other = ops.start(made["model"], [3, 4, 5])
    changed = ops.generate(made["model"], other, made["projected"], 9, forced=(drawn.float() + 1) % 21, **call)
    assert torch.equal(changed[2][:, 0], logits[:, 0]) and not torch.equal(changed[2][:, 1], logits[:, 1])


def test_speakers_and_values(made):
    """A mixture, whose draws are values, with a vector for each utterance."""
    config = MODELS["gaussian-mixture"]
    model = ops.prepare(config, random_weights(config, seed=1), "fp32", "cpu")
    features = draws((2, 12, config.conditioning_channels), 1, -1.0, 1.0)
    vectors = torch.from_numpy(speaker_vectors(config, 2))
    projected = ops.project(model, features, vectors, emulated=True)
    assert not torch.equal(projected[0], ops.project(model, features, vectors.flip(0), emulated=True)[0])
    streams = ops.start(model, [1, 2])
    audio, drawn, logits = ops.generate(model, streams, projected, 6, emulated=True)
    assert drawn.dtype == torch.float32 and logits is None and audio.shape == drawn.shape == (2, 6)
    assert len(drawn.unique()) > 6
    assert ops.generate(model, streams, projected, 0, emulated=True)[0].shape == (2, 0)
    with pytest.raises(InputError, match=r"needs speakers \(B, 2\)"):
        ops.project(model, features, emulated=True)


@pytest.mark.parametrize("dtype", packing.DTYPES)
@pytest.mark.parametrize("name", MODELS)
def test_the_layout_is_what_packing_makes(name, dtype):
    config = MODELS[name]
    packed = packing.pack(config, random_weights(config, seed=1), dtype)
    numbers = {"float32": "fp32", "float16": "fp16", "uint16": "bf16"}
    made = {name: (array.shape, numbers[str(array.dtype)]) for name, array in packed.items()}
    assert list(made.items()) == list(packing.packed_layout(config, dtype).items())


# --- what PyTorch asks of an op -----------------------------------------------------------------------------------


def generate_arguments(made, forced=None, logits=True):
    s, n = ops.start(made["model"], [3, 4, 5]), torch.zeros(B, dtype=torch.int32)
    model = made["model"]
    return (
        s.rings, s.inputs, s.filters, s.positions, s.seeds, n + 5, made["projected"], n, n + FRAMES - 1, forced,
        model.packed, model.config, model.dtype, 5, 1.0, logits, 90,
    )  # fmt: skip


def test_opcheck_sample():
    opcheck(registered._sample, (draws((3, 7, 30)), draws((3, 7, 4)), "categorical", 30, None, 0.9, 90))
    opcheck(registered._sample, (draws((21, 9)), draws((21, 4)), "logistic", 3, -1.0, 1.0, 90))


@pytest.mark.parametrize("case", ["plain", "last", "without-biases"])
def test_opcheck_residual_block(case):
    opcheck(registered._residual_block, (*block(**CASES[case]).values(), 0.7, "fp32", 90))


def test_opcheck_project_and_generate(made):
    model = made["model"]
    opcheck(model_ops._project, (made["features"], None, model.packed, model.config, model.dtype, 90))
    opcheck(model_ops._generate, generate_arguments(made))
    opcheck(model_ops._generate, generate_arguments(made, torch.zeros(B, 5), logits=False))


def test_fakes_have_the_layout_of_what_is_made(made):
    from torch._subclasses.fake_tensor import FakeTensorMode

    calls = [
        (registered._sample, (draws((3, 7, 30)), draws((3, 7, 4)), "categorical", 30, None, 0.9, 90)),
        (registered._residual_block, (*block().values(), 0.7, "bf16", 90)),
        (model_ops._generate, generate_arguments(made)),
    ]
    for op, arguments in calls:
        real = op(*arguments)
        with FakeTensorMode(allow_non_fake_inputs=True):
            fake = op(*arguments)
        pairs = zip(*((x if isinstance(x, tuple) else (x,)) for x in (real, fake)), strict=True)
        for a, b in pairs:
            assert (a.shape, a.dtype, a.stride(), a.device) == (b.shape, b.dtype, b.stride(), b.device)


def test_compiled_programs_hold_the_ops(made):
    def program(logits, uniforms, rings, inputs, filters, positions, seeds):
        streams = ops.Streams(rings, inputs, filters, positions, seeds)
        audio, *_ = ops.generate(made["model"], streams, made["projected"], 5, emulated=True)
        return ops.sample(logits * 2, uniforms, CLASSES, 0.9, emulated=True) + 1, audio

    compiled = torch.compile(program, fullgraph=True, backend="aot_eager")
    logits, uniforms = draws((21, 30)), draws((21, 4))
    states = [ops.start(made["model"], [3, 4, 5]) for _ in range(2)]
    wanted, given = (
        f(logits, uniforms, s.rings, s.inputs, s.filters, s.positions, s.seeds)
        for f, s in zip((program, compiled), states, strict=True)
    )
    assert all(torch.equal(a, b) for a, b in zip(wanted, given, strict=True))
    assert torch.equal(states[0].rings, states[1].rings) and states[1].positions.tolist() == [5] * B


def test_exported_programs_take_any_number_of_rows():
    class Drawer(torch.nn.Module):
        def forward(self, logits, uniforms):
            return ops.sample(logits, uniforms, CLASSES, 0.9, emulated=True)

    rows = torch.export.Dim("rows", min=2, max=1000)
    exported = torch.export.export(Drawer(), (draws((5, 30)), draws((5, 4))), dynamic_shapes=({0: rows}, {0: rows}))
    logits, uniforms = draws((21, 30)), draws((21, 4))
    assert torch.equal(exported.module()(logits, uniforms), Drawer()(logits, uniforms))


def test_there_are_no_gradients():
    logits = draws((4, 30)).requires_grad_()
    given = ops.sample(logits, draws((4, 4)), LogisticHead(components=10), emulated=True)
    with pytest.raises(RuntimeError, match="grad"):
        given.sum().backward()


# --- refusals -----------------------------------------------------------------------------------------------------


def changed(change):
    return {**block(), "emulated": True, **change}


BLOCK_REFUSALS = {
    "cpu": ({"emulated": False}, BackendError, r"x is on cpu; this op runs on CUDA .* pass emulated=True"),
    "odd-one-out": ({"skip": torch.empty(3, 21, 14, device="meta")}, BackendError, r"skip is on meta and x on cpu"),
    "target": ({"emulated": 70}, BackendError, r"emulated is 70; possible are False .* True .* 80, "),
    "no-tensor": ({"skip": np.zeros((3, 21, 14))}, InputError, r"skip is a numpy.ndarray; give a torch.Tensor"),
    "type": ({"x": draws((3, 31, 11)).half()}, InputError, r"x is torch.float16; it must be torch.float32"),
    "layout": ({"skip": draws((3, 14, 21)).mT}, InputError, r"skip is not contiguous; pass skip.contiguous\(\)"),
    "rank": (
        {"x": draws((31, 11))},
        ShapeError,
        r"x has shape \(31, 11\); it must be \(B, reach\+T, R\) = \(3, 31, 11\)",
    ),
    "reach": ({"x": draws((3, 21, 11))}, ShapeError, r"x has shape \(3, 21, 11\)"),
    "letters": ({"w_skip": draws((14, 12))}, ShapeError, r"w_skip has shape .*\(S, G/2\) = \(14, 13\)"),
    "bias": ({"b_skip": draws((15,))}, ShapeError, r"b_skip has shape \(15,\); it must be \(S,\) = \(14,\)"),
    "odd-gate": ({"w_dilated": draws((25, 11, 3))}, ShapeError, r"w_dilated has G = 25 rows"),
    "one-tap": (
        {"w_dilated": draws((26, 11, 1))},
        InputError,
        r"K of w_dilated, .* is 1; it must be an integer 2 … 16",
    ),
    "no-rows": ({"w_dilated": draws((0, 11, 3))}, InputError, r"G of w_dilated, .* is 0"),
    "half-a-layer": ({"w_residual": None}, InputError, r"b_residual is given and w_residual is not"),
    "dilation": ({"dilation": 0}, InputError, r"dilation is 0; it must be an integer 1 … "),
    "far": ({"dilation": 1 << 20, "w_dilated": draws((26, 200, 9))}, InputError, r"K−1.·dilation·R, .* is "),
    "fraction": ({"dilation": 1.5}, InputError, r"dilation is 1\.5"),
    "scale": ({"residual_scale": float("nan")}, InputError, r"residual_scale is nan; it must be a finite number"),
    "word": ({"dtype": "int8"}, InputError, r"dtype is 'int8'; possible are 'fp32', 'bf16', 'fp16'"),
}


@pytest.mark.parametrize("case", BLOCK_REFUSALS)
def test_refusals_of_a_block(case):
    change, kind, sentence = BLOCK_REFUSALS[case]
    with pytest.raises(kind, match=sentence):
        ops.residual_block(**changed(change))


SAMPLE_REFUSALS = {
    "uniforms": (
        {"uniforms": draws((5, 3))},
        ShapeError,
        r"uniforms has shape \(5, 3\); it must be \(n0, 4\) = \(5, 4\)",
    ),
    "outputs": ({"logits": draws((5, 31))}, ShapeError, r"logits has shape \(5, 31\); it must be \(n0, A\) = "),
    "no-rows": ({"logits": torch.tensor(1.0)}, ShapeError, r"logits have shape \(\); they must be \(\.\.\., A\)"),
    "temperature": ({"temperature": 0}, InputError, r"temperature is 0; it must be a positive finite number"),
    "infinite": ({"temperature": float("inf")}, InputError, r"temperature is inf"),
    "head": ({"head": "categorical"}, InputError, r"head is a str; give a CategoricalHead"),
    "classes": (
        {"head": CategoricalHead(classes=1)},
        InputError,
        r"classes of the head is 1; it must be an integer 2 … ",
    ),
    "no-classes": ({"head": CategoricalHead(classes="a")}, InputError, r"classes of the head is 'a'"),
    "no-floor": ({"head": LogisticHead(log_scale_min="a")}, InputError, r"log_scale_min of the head is 'a'"),
    "sparse": (
        {"logits": torch.eye(5, 30).to_sparse()},
        InputError,
        r"logits is torch.sparse_coo; give a dense tensor",
    ),
    "cpu": ({"emulated": False}, BackendError, r"logits is on cpu; this op runs on CUDA"),
}


@pytest.mark.parametrize("case", SAMPLE_REFUSALS)
def test_refusals_of_sample(case):
    change, kind, sentence = SAMPLE_REFUSALS[case]
    given = {"logits": draws((5, 30)), "uniforms": draws((5, 4)), "head": CLASSES, "emulated": True}
    with pytest.raises(kind, match=sentence):
        ops.sample(**given | change)


def test_registered_ops_refuse_by_themselves(made):
    with pytest.raises(InputError, match="temperature is -1"):
        torch.ops.wavenet_fast.sample(draws((5, 30)), draws((5, 4)), "categorical", 30, None, -1.0, 90)
    with pytest.raises(ConfigError, match="kind"):
        torch.ops.wavenet_fast.sample(draws((5, 30)), draws((5, 4)), "poisson", 30, None, 1.0, 90)
    model = made["model"]
    with pytest.raises(InputError, match="config is no JSON"):
        torch.ops.wavenet_fast.project(made["features"], None, model.packed, "{", "bf16", 90)
    with pytest.raises(ConfigError, match="config: "):
        torch.ops.wavenet_fast.project(made["features"], None, model.packed, "{}", "bf16", 90)


def generate_refusals():
    n = torch.zeros(B, dtype=torch.int32)
    return {
        "counts": ({"counts": n + 6}, InputError, r"counts has at \(0,\) a value .*; possible are 0 … steps, 5"),
        "negative": ({"counts": n - 1}, InputError, r"counts has"),
        "columns": ({"last_column": n + FRAMES}, InputError, r"last_column has at \(0,\) .* 0 … n − 1, 4"),
        "forced": ({"forced": torch.full((B, 5), 21.0)}, InputError, r"forced has .* whole classes 0 … 20"),
        "between": ({"forced": torch.full((B, 5), 0.5)}, InputError, r"forced has"),
        "no-number": ({"forced": torch.full((B, 5), torch.nan)}, InputError, r"forced has"),
        "forced-shape": ({"forced": torch.zeros(B, 4)}, ShapeError, r"forced has shape \(3, 4\); .* = \(3, 5\)"),
        "counts-type": ({"counts": torch.zeros(B)}, InputError, r"counts is torch.float32; it must be torch.int32"),
        "steps": ({"steps": -1}, InputError, r"steps is -1"),
        "temperature": ({"temperature": float("nan")}, InputError, r"temperature is nan"),
        "cpu": ({"emulated": False}, BackendError, r"rings is on cpu"),
        "projected": (
            {"projected": torch.zeros(B, 2, 2, 26)},
            ShapeError,
            r"projected has shape .* \(B, n, L, 2·HALF\)",
        ),
        "no-columns": ({"projected": torch.zeros(B, 0, 2, 32)}, InputError, r"last_column has"),
    }


@pytest.mark.parametrize("case", generate_refusals())
def test_refusals_of_generate(made, case):
    change, kind, sentence = generate_refusals()[case]
    streams = ops.start(made["model"], [3, 4, 5])
    call = {"projected": made["projected"], "steps": 5, "emulated": True, **change}
    with pytest.raises(kind, match=sentence):
        ops.generate(made["model"], streams, **call)
    assert not streams.positions.any() and not streams.rings.any()


def test_refusals_of_streams_and_models(made, monkeypatch):
    model, streams = made["model"], ops.start(made["model"], [3, 4, 5])
    call = {"projected": made["projected"], "steps": 5, "emulated": True}
    for name, value, sentence in (
        ("rings", streams.rings.float(), r"rings is torch.float32; it must be torch.bfloat16"),
        (
            "rings",
            streams.rings[:, 1:].contiguous(),
            r"rings has shape \(3, 5, 16\); it must be \(B, slots, R\) = \(3, 6, 16\)",
        ),
        ("inputs", streams.inputs - 2, r"inputs has .* whole classes -1 … 20"),
        ("positions", streams.positions - 1, r"positions has .* possible are 0 … "),
        ("positions", streams.positions + 2**31, r"first_q has .* possible are up to 2147483642; for a stream beyond"),
        ("seeds", streams.seeds[:2], r"seeds has shape \(2,\); it must be \(B,\) = \(3,\)"),
    ):
        broken = ops.Streams(**{**vars(streams), name: value})
        with pytest.raises((InputError, ShapeError), match=sentence):
            ops.generate(model, broken, **call)
    fewer = ops.Ready(model.config, model.dtype, model.packed[:-1], 0)
    with pytest.raises(ShapeError, match=r"packed holds 13 tensors; this model has 14: project, "):
        ops.generate(fewer, streams, **call)
    other = json.loads(model.config) | {"skip_channels": 40}
    with pytest.raises(ShapeError, match=r"packed w_skip has shape .*; it must be \(2, 16, 64\)"):
        ops.generate(ops.Ready(json.dumps(other), model.dtype, model.packed, 0), streams, **call)
    with pytest.raises(InputError, match=r"seeds\[1\] is -1; it must be an integer 0 … 2\^64 − 1"):
        ops.start(model, [1, -1])
    with pytest.raises(BackendError, match="past is 'steady'"):
        ops.prepare(MODELS["steady"], random_weights(MODELS["steady"]), "fp32", "cpu")
    with pytest.raises(InputError, match=r"dtype is 'int8'"):
        ops.prepare(PLAIN, random_weights(PLAIN), "int8", "cpu")
    weights = random_weights(PLAIN)
    with pytest.raises(CheckpointError, match=r"weights: .* tensors 1 missing: input.weight"):
        ops.prepare(PLAIN, {n: w for n, w in weights.items() if n != "input.weight"}, "fp32", "cpu")
    with pytest.raises(CheckpointError, match=r"1 of another shape: input.weight \(1,\)"):
        ops.prepare(PLAIN, {**weights, "input.weight": np.zeros(1, np.float32)}, "fp32", "cpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(
        BackendError, match=r"device is 'cuda': CUDA_VISIBLE_DEVICES.* give 'cpu' here and emulated=True"
    ):
        ops.prepare(PLAIN, weights)
    with pytest.raises(BackendError, match=r"device is 'tpu': possible are 'cuda', 'cuda:N' and 'cpu'$"):
        ops.prepare(PLAIN, weights, device="tpu")
    assert decode(WaveNetConfig, json.loads(model.config), "config") == PLAIN


def test_a_machine_without_triton_is_told_so(monkeypatch):
    monkeypatch.setattr(gpu, "_installed", lambda package: package != "triton")
    monkeypatch.delitem(sys.modules, "wavenet_fast.ops")
    with pytest.raises(ImportError, match=re.escape("wavenet_fast.ops cannot be used here: triton is not installed")):
        import wavenet_fast.ops  # noqa: F401
