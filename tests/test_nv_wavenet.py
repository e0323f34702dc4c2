"""nv-wavenet's interface: its draws against plain PyTorch, written here from the documented arithmetic alone."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tolerances import NV_WAVENET

torch = pytest.importorskip("torch", reason="the interface takes and gives torch tensors")
pytest.importorskip("cuda.bindings.nvrtc", reason="the kernels are compiled by NVRTC: pip install wavenet-fast[cuda]")

from wavenet_fast.kernels.cuda.emulated_device import EmulatedDevice  # noqa: E402
from wavenet_fast.kernels.cuda.model import Model  # noqa: E402

from wavenet_fast.compat import nv_wavenet  # noqa: E402
from wavenet_fast.errors import BackendError, InputError, ShapeError  # noqa: E402
from wavenet_fast.rng import uniforms  # noqa: E402

Impl = nv_wavenet.Impl
SEEDS = [11, 7, 2**64 - 1]
DEVICE = EmulatedDevice()  # shared, so that a kernel is compiled once


def network(
    A: int = 30, R: int = 20, S: int = 24, L: int = 5, max_dilation: int = 4, G: int = 0, H: int = 0, K: int = 2
) -> dict[str, Any]:
    """What `export_weights` gives, with weights so large that the softmax is far from flat."""
    g, G, H = torch.Generator().manual_seed(A + R), G or 2 * R, H or A

    def normal(*shape: int, scale: float = 1.0) -> Any:
        return scale * torch.randn(*shape, generator=g)

    return {
        "embedding_prev": normal(A, R), "embedding_curr": normal(A, R),
        "conv_out_weight": normal(H, S, 1, scale=1.5 * S**-0.5), "conv_end_weight": normal(A, H, 1, scale=4 * H**-0.5),
        "dilate_weights": [normal(G, R, K, scale=(K * R) ** -0.5) for _ in range(L)],
        "dilate_biases": [normal(G, scale=0.3) for _ in range(L)], "max_dilation": max_dilation,
        "res_weights": [normal(R, G // 2, 1, scale=R**-0.5) for _ in range(L - 1)],
        "res_biases": [normal(R, scale=0.3) for _ in range(L - 1)],
        "skip_weights": [normal(S, G // 2, 1, scale=R**-0.5) for _ in range(L)],
        "skip_biases": [normal(S, scale=0.3) for _ in range(L)], "use_embed_tanh": True,
    }  # fmt: skip


def conditioning(net: dict[str, Any], batch: int, samples: int) -> Any:
    """(2R, B, L, T), as `get_cond_input` leaves it: permuted, not contiguous."""
    G, L = len(net["dilate_biases"][0]), len(net["dilate_weights"])
    return torch.randn(batch, L, G, samples, generator=torch.Generator().manual_seed(samples)).permute(2, 0, 1, 3)


def logits(
    net: dict[str, Any], cond: Any, classes: Any, start: int, dilations: Any, out_bias: Any = 0, end_bias: Any = 0
) -> Any:
    """(B, T, A) in float64 of a network that has heard `classes` (B, T)."""
    classes = classes.long()
    silence = torch.full((len(classes), 2), start)
    heard = torch.cat([silence, classes], 1)[:, :-1]
    x = net["embedding_prev"].double()[heard[:, :-1]] + net["embedding_curr"].double()[heard[:, 1:]]
    x = torch.tanh(x) if net["use_embed_tanh"] else x
    skip = 0
    for i, dilation in enumerate(dilations):
        taps = net["dilate_weights"][i].double().unbind(2)
        z = net["dilate_biases"][i].double() + cond[:, :, i].permute(1, 2, 0).double()
        for back, weight in zip(range(len(taps) - 1, -1, -1), taps, strict=True):
            past = torch.nn.functional.pad(x, (0, 0, back * dilation, 0))[:, : x.shape[1]]
            z = z + past @ weight.T
        half = z.shape[2] // 2
        gated = torch.tanh(z[..., :half]) * torch.sigmoid(z[..., half:])
        skip = skip + gated @ net["skip_weights"][i][..., 0].double().T + net["skip_biases"][i].double()
        if i + 1 < len(dilations):
            x = x + gated @ net["res_weights"][i][..., 0].double().T + net["res_biases"][i].double()
    hidden = torch.relu(skip) @ net["conv_out_weight"][..., 0].double().T + out_bias
    return torch.relu(hidden) @ net["conv_end_weight"][..., 0].double().T + end_bias


def beside(given: Any, classes: Any, seeds: Any, temperature: float = 1.0, first: int = 0) -> Any:
    """How far each uniform lies outside its class's part of the distribution: (B, T)."""
    shares = torch.softmax(given / temperature, -1)
    assert shares.max(-1).values.median() > 3 / given.shape[-1], "a softmax so flat would hide faults"
    upto = shares.cumsum(-1).gather(2, classes.long()[..., None])[..., 0]
    own = shares.gather(2, classes.long()[..., None])[..., 0]
    t = np.arange(first, first + classes.shape[1])
    u = torch.from_numpy(uniforms(np.array(seeds, np.uint64)[:, None], t)[..., 0]).double()
    return torch.maximum(upto - own - u, u - upto).clamp(min=0)


def wavenet(net: dict[str, Any], **more: Any) -> Any:
    return nv_wavenet.NVWaveNet(**net, **{"device": DEVICE, **more})


def windows_of(monkeypatch: pytest.MonkeyPatch, samples: int) -> list[int]:
    """Makes windows so short, for three streams of `network()`, and tells the bytes of each. What pads its 20 gates has
    to be zero: in int8 it counts towards a vector's largest."""
    monkeypatch.setattr(nv_wavenet, "WINDOW_BYTES", 4 * 3 * 5 * 32 * 2 * samples + 3)
    seen: list[int] = []
    whole = Model.generate

    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        projected = args[4].projected
        assert not np.asarray(projected)[..., 20:, :].any()
        seen.append(projected.nbytes)
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(Model, "generate", generate)
    return seen


# --- arithmetic -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_draws_follow_the_documented_arithmetic(temperature: float) -> None:
    net = network()
    cond = conditioning(net, 3, 60)
    kept = cond.clone()
    samples = wavenet(net).infer(cond, Impl.AUTO, seed=SEEDS, temperature=temperature)
    assert samples.shape == (3, 60) and samples.dtype == torch.int32 and samples.device == cond.device
    assert torch.equal(cond, kept)
    given = logits(net, cond, samples, 15, (1, 2, 4, 1, 2))
    assert beside(given, samples, SEEDS, temperature).max() <= NV_WAVENET["fp32"]
    assert len(samples.unique()) > 10


@pytest.mark.parametrize("wrong", ["start", "dilations", "tanh", "taps", "halves", "embeddings"])
def test_another_arithmetic_would_be_noticed(wrong: str) -> None:
    net = network()
    cond = conditioning(net, 3, 60)
    samples = wavenet(net).infer(cond, seed=SEEDS)
    other, start, dilations = dict(net), 15, (1, 2, 4, 1, 2)
    if wrong == "start":
        start = 14
    elif wrong == "dilations":
        dilations = (1, 2, 4, 8, 16)
    elif wrong == "tanh":
        other["use_embed_tanh"] = False
    elif wrong == "taps":
        other["dilate_weights"] = [w.flip(2) for w in net["dilate_weights"]]
    elif wrong == "halves":
        cond = cond.roll(20, 0)
    else:
        other["embedding_prev"], other["embedding_curr"] = net["embedding_curr"], net["embedding_prev"]
    given = logits(other, cond, samples, start, dilations)
    assert beside(given, samples, SEEDS).max() > 100 * NV_WAVENET["fp32"]


def test_a_script_for_nv_wavenet_changes_one_import() -> None:
    """The calls of its inference script: exported weights, conditioning as a permuted view, an implementation."""
    net = network(A=256, R=16, S=32, L=4, max_dilation=2) | {"use_embed_tanh": False}
    net["embedding_prev"] = torch.zeros(256, 16)
    cond = conditioning(net, 2, 30)
    model = nv_wavenet.NVWaveNet(**net, device=DEVICE)
    audio = model.infer(cond, nv_wavenet.Impl.PERSISTENT)
    assert audio[1, :].cpu().numpy().shape == (30,) and 0 <= int(audio.min()) <= int(audio.max()) <= 255
    assert (model.R, model.S, model.A, model.num_layers) == (16, 32, 256, 4)
    again = model.infer(cond, 3, seed=SEEDS[:2])
    given = logits(net, cond, again, 128, (1, 2, 1, 2))
    assert beside(given, again, SEEDS[:2]).max() <= NV_WAVENET["fp32"]


def test_beyond_nv_wavenet_any_shape() -> None:
    """Three taps, other dilations, gates and a head of their own widths, biases of the head, another start."""
    net = network(A=37, R=20, S=24, L=3, G=28, H=18, K=3)
    out_bias, end_bias = torch.linspace(-1, 1, 18), torch.linspace(-2, 2, 37)
    more = {"dilations": [3, 1, 5], "conv_out_bias": out_bias, "conv_end_bias": end_bias, "start": 3}
    cond = conditioning(net, 3, 40)
    samples = wavenet(net, **more).infer(cond, seed=SEEDS)
    given = logits(net, cond, samples, 3, (3, 1, 5), out_bias, end_bias)
    assert beside(given, samples, SEEDS).max() <= NV_WAVENET["fp32"]


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "int8"])
def test_fewer_bits_from_python(dtype: str) -> None:
    net = network()
    cond = conditioning(net, 3, 60)
    samples = wavenet(net, dtype=dtype).infer(cond, seed=SEEDS)
    far = beside(logits(net, cond, samples, 15, (1, 2, 4, 1, 2)), samples, SEEDS)
    assert far.max() <= NV_WAVENET[dtype]


def test_negative_zeros_are_numbers() -> None:
    net = {
        name: [torch.zeros_like(t) for t in value] if isinstance(value, list) else value
        for name, value in network().items()
    }
    net["conv_end_weight"] = torch.zeros(30, 30)
    cond = torch.full((40, 3, 5, 12), -0.0)
    samples = wavenet(net).infer(cond, seed=SEEDS)
    u = uniforms(np.array(SEEDS, np.uint64)[:, None], np.arange(12))[..., 0]
    np.testing.assert_array_equal(samples.numpy(), np.floor(u * 30))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU and a PyTorch built for CUDA")
@pytest.mark.parametrize("implementation", list(Impl))
def test_on_a_gpu(implementation: int) -> None:
    """On a stream of the caller's, with conditioning that is still being made there."""
    net = network()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        cond = conditioning(net, 3, 60).pin_memory().cuda(non_blocking=True)
        samples = nv_wavenet.NVWaveNet(**net).infer(cond, implementation, seed=SEEDS)
        assert samples.device == cond.device
        classes = samples.cpu()
    given = logits(net, cond.cpu(), classes, 15, (1, 2, 4, 1, 2))
    assert beside(given, classes, SEEDS).max() <= NV_WAVENET["fp32"]


# --- what changes no sample -------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [1, 7, 60])
def test_windows_change_nothing_and_bound_memory(monkeypatch: pytest.MonkeyPatch, samples: int) -> None:
    net = network()
    cond = conditioning(net, 3, 23)
    model = wavenet(net)
    whole = model.infer(cond, seed=SEEDS)
    seen = windows_of(monkeypatch, samples)
    told: list[tuple[int, int]] = []
    in_windows = model.infer(cond, seed=SEEDS, progress=lambda *at: told.append(at))
    assert torch.equal(in_windows, whole)
    assert len(seen) == -(-23 // samples) and max(seen) <= nv_wavenet.WINDOW_BYTES
    assert told[-1] == (69, 69) and told == sorted(told) and len(told) == len(seen)


def test_pieces_change_nothing() -> None:
    net = network()
    cond = conditioning(net, 3, 23)
    model = wavenet(net)
    whole = model.infer(cond, seed=SEEDS)
    stream = model.stream(seed=SEEDS)
    pieces = [stream(piece) for piece in cond.split([1, 9, 2, 11], dim=3)]
    assert torch.equal(torch.cat(pieces, 1), whole) and stream.positions == 23


def test_defaults_of_torch_change_nothing() -> None:
    """A script may have made the GPU, or another type, what torch makes tensors of."""
    net = network()
    cond = conditioning(net, 3, 5)
    expected = wavenet(net).infer(cond, seed=SEEDS)
    for set_default, other, usual in (
        (torch.set_default_dtype, torch.float64, torch.float32), (torch.set_default_device, "meta", None),
    ):  # fmt: skip
        set_default(other)
        try:
            made = wavenet(net)
            assert torch.equal(made.infer(cond, seed=SEEDS), expected)
            assert made.infer(cond).shape == expected.shape  # seeds are drawn
        finally:
            set_default(usual)


def test_numpy_weights_are_taken_as_they_lie() -> None:
    net = network()
    cond = conditioning(net, 1, 4)
    curr = net["embedding_curr"].numpy()
    expected = wavenet(net).infer(cond, seed=1)
    for same in (curr.astype(">f4"), curr[::-1].copy()[::-1], np.asfortranarray(curr)):
        same.flags.writeable = False
        assert torch.equal(wavenet({**net, "embedding_curr": same}).infer(cond, seed=1), expected)


def test_implementations_change_nothing() -> None:
    net = network()
    cond = conditioning(net, 3, 23)
    model = wavenet(net)
    variants = {impl: nv_wavenet._plan(model.model(cond), 3, impl) for impl in Impl}
    assert variants[Impl.SINGLE_BLOCK].variant == "streaming_weights"
    assert variants[Impl.PERSISTENT].variant == variants[Impl.DUAL_BLOCK].variant == "resident"
    assert variants[Impl.DUAL_BLOCK].blocks == 2
    made = [model.infer(cond, impl, seed=SEEDS) for impl in Impl]
    assert all(torch.equal(one, made[0]) for one in made)


def test_an_implementation_that_does_not_fit_is_the_planners_choice() -> None:
    """Of nv-wavenet's largest, in fp32, two blocks hold a small part."""
    net = network(A=256, R=128, S=256, L=30, max_dilation=512)
    model = wavenet(net).model(conditioning(net, 1, 1))
    assert nv_wavenet._plan(model, 1, Impl.DUAL_BLOCK) == model.plan(1)


def test_layouts_change_nothing() -> None:
    net = network()
    cond = conditioning(net, 3, 23)
    model = wavenet(net)
    samples = model.infer(cond, seed=SEEDS)
    assert torch.equal(model.infer(cond.contiguous(), seed=SEEDS), samples)
    wide = torch.full((40, 6, 5, 46), torch.nan)
    wide[:, ::2, :, 1::2] = cond
    assert torch.equal(model.infer(wide[:, ::2, :, 1::2].requires_grad_(), seed=SEEDS), samples)
    half = cond.bfloat16()
    assert torch.equal(model.infer(half, seed=SEEDS), model.infer(half.float(), seed=SEEDS))


def test_streams_have_seeds_of_their_own() -> None:
    net = network()
    cond = conditioning(net, 3, 23)
    model = wavenet(net)
    together = model.infer(cond, seed=5)
    assert torch.equal(model.infer(cond[:, 1:2], seed=6), together[1:2])
    assert torch.equal(model.infer(cond, seed=[5, 6, 7]), together)
    assert not torch.equal(model.infer(cond), model.infer(cond))
    repeated = []
    for _ in range(2):
        torch.manual_seed(3)
        repeated.append(model.infer(cond))
    assert torch.equal(*repeated)


def test_weights_are_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network()
    cond = conditioning(net, 3, 5)
    model = wavenet(net)
    first = model.infer(cond, seed=SEEDS)
    for tensor in (net["embedding_curr"], *net["dilate_weights"]):
        tensor.fill_(torch.nan)  # they were copied

    def again(*_: Any) -> None:
        raise AssertionError("packed again")

    monkeypatch.setattr(Model, "__init__", again)
    assert torch.equal(model.infer(cond, seed=SEEDS), first)


def test_each_gpu_has_its_own_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def device_for(name: str) -> EmulatedDevice:
        opened.append(name)
        return DEVICE

    monkeypatch.setattr(nv_wavenet, "device_for", device_for)
    model = wavenet(network(), device=None)
    on = [SimpleNamespace(is_cuda=True, device=SimpleNamespace(index=index)) for index in (0, 1, 0)]
    first, second, third = (model.model(tensor) for tensor in on)
    assert opened == ["cuda:0", "cuda:1"] and first is third and first is not second


# --- the page ---------------------------------------------------------------------------------------------------


def test_what_the_page_says_is_shown_by_tests_that_exist() -> None:
    root = Path(__file__).parent.parent
    named = re.findall(r"`tests/(\w+\.py)::(\w+)`", (root / "docs/nv-wavenet.md").read_text())
    assert len(named) > 10
    missing = [name for name in named if f"def {name[1]}(" not in (root / "tests" / name[0]).read_text()]
    assert not missing


# --- bad input --------------------------------------------------------------------------------------------------


def test_what_is_no_conditioning_is_refused_in_a_sentence() -> None:
    net = network()
    cond = conditioning(net, 3, 5)
    model = wavenet(net)
    with pytest.raises(BackendError, match=r"lies on cpu, .* give its \.cuda\(\)"):
        wavenet(net, device=None).infer(cond)
    with pytest.raises(BackendError, match=r"runs on cuda:1; give its \.to\('cuda:1'\)"):
        wavenet(net, device=SimpleNamespace(index=1, upload=None)).infer(cond)
    for bad in (cond[:, :, :, :0], cond[:, :0], cond[:, :, :4], cond[:39], cond[:, 0]):
        with pytest.raises(ShapeError, match=r"cond_input has shape .*\(40, streams, 5, samples\)"):
            model.infer(bad)
    with pytest.raises(InputError, match=r"float64; give float32 \(\.float\(\)\)"):
        model.infer(cond.double())
    with pytest.raises(InputError, match="ndarray; give a torch tensor"):
        model.infer(cond.numpy())
    with pytest.raises(BackendError, match="lies on meta, and this NVWaveNet runs on cpu"):
        model.infer(cond.to("meta"))
    for value in (torch.nan, torch.inf):
        broken = cond.clone()
        broken[39, 2, 4, 4] = value
        with pytest.raises(InputError, match="NaN or infinity"):
            model.infer(broken)
    nested = torch.nested.as_nested_tensor([cond[0, 0]] * 2, layout=torch.jagged)
    for bad, layout in ((cond.to_sparse(), "sparse_coo"), (nested, "nested")):
        with pytest.raises(InputError, match=f"layout {layout}; give a dense tensor"):
            model.infer(bad)
    for implementation in (4, None, "persistent"):
        with pytest.raises(InputError, match=r"possible are Impl\.AUTO"):
            model.infer(cond, implementation)
    with pytest.raises(InputError, match="temperature"):
        model.infer(cond, temperature=0)
    with pytest.raises(InputError, match="got 2 seeds for 3"):
        model.infer(cond, seed=[1, 2])
    stream = model.stream(seed=1)
    stream(cond)
    with pytest.raises(ShapeError, match="this piece is for 2 streams"):
        stream(cond[:, :2])


@pytest.mark.parametrize(
    "change, told",
    [
        ({"embedding_curr": torch.zeros(30)}, r"embedding_curr has shape \(30,\)"),
        ({"embedding_prev": torch.zeros(30, 19)}, r"embedding_prev has shape \(30, 19\)"),
        ({"conv_end_weight": torch.zeros(29, 30)}, r"conv_end_weight has shape \(29, 30\)"),
        ({"conv_out_weight": torch.zeros(30, 25)}, r"conv_out_weight has shape \(30, 25\)"),
        ({"dilate_weights": [torch.zeros(40, 20)] * 5}, r"need \(2R, 20, 2\)"),
        ({"dilate_weights": [torch.zeros(40, 20, 1)] * 5}, "kernel_size"),
        ({"dilate_biases": [torch.zeros(40)] * 4}, "dilate_biases 4"),
        ({"dilate_biases": [torch.zeros(39)] * 5}, r"dilate_biases\[0\] has shape \(39,\)"),
        ({"res_weights": [torch.zeros(20, 20)] * 5}, "one fewer in res_weights"),
        ({"skip_weights": []}, "skip_weights 0"),
        ({"skip_biases": [torch.full((24,), torch.nan)] * 5}, r"skip_biases\[0\] holds NaN"),
        ({"embedding_curr": torch.zeros(30, 20, dtype=torch.int64)}, "int64; give a tensor of floating-point"),
        ({"embedding_curr": None}, "NoneType; give a tensor"),
        ({"max_dilation": 0}, "max_dilation is 0"),
        ({"dilations": [1, 2]}, "dilations has 2 entries for 5 layers"),
        ({"start": 30}, r"classes 0 … 29"),
        ({"dtype": "fp8"}, "offer fp32"),
        ({"dtype": [torch.float16]}, "offer fp32"),
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"device": torch.device("cpu")}, "device is 'cpu'"),
        ({"device": 0}, "device is 0"),
        ({"device": f"cuda:{'9' * 5000}"}, "device is 'cuda:999"),
        ({"embedding_prev": torch.zeros(30, 20).to_sparse()}, "embedding_prev is a tensor of layout sparse_coo"),
        ({"embedding_prev": torch.zeros(30, 20, device="meta")}, "embedding_prev lies on meta"),
        ({"embedding_prev": np.zeros((30, 20), object)}, "embedding_prev is object; give a tensor of floating-point"),
        ({"res_weights": None}, "res_weights is of type NoneType; give a list"),
        ({"dilations": 5}, "dilations is 5; give a list of whole numbers"),
        ({"use_embed_tanh": "no"}, "use_embed_tanh is 'no'; give True or False"),
    ],
)
def test_weights_that_do_not_fit_are_refused_in_a_sentence(change: dict[str, Any], told: str) -> None:
    with pytest.raises((ValueError, BackendError), match=told) as error:
        nv_wavenet.NVWaveNet(**{**network(), "device": DEVICE, **change})
    assert type(error.value).__module__ == "wavenet_fast.errors"


def test_weights_too_large_for_fp16_are_refused() -> None:
    net = network()
    net["skip_weights"][1][0] = 1e6
    with pytest.raises(BackendError, match="fp16"):
        wavenet(net, dtype="fp16").infer(conditioning(net, 1, 1))
