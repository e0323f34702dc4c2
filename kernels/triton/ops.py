"""The kernels as ops for PyTorch programs: `sample`, `residual_block`, and a whole model's `project` and `generate`.

    from wavenet_fast import ops
    classes = ops.sample(logits, uniforms, CategoricalHead(256))

Tensors lie on one CUDA device, contiguous, and the op is queued on torch's current stream there. With `emulated=True`
they are CPU tensors, and the code compiled for a GPU (sm_90, or what is named: `emulated=120`) is executed on the CPU:
for proof, and slow. Every op is registered with `torch.library` in the namespace `wavenet_fast`, with a fake
implementation, so that `torch.compile` and `torch.export` take it. There are no gradients.

Errors, raised before anything runs: `ShapeError` for a shape, `InputError` for a value, type of numbers or layout,
`BackendError` for a device, `ConfigError` for a head or configuration that cannot be.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wavenet_fast.config import (
    MAX_CHANNELS,
    MAX_DILATION,
    MAX_TAPS,
    CategoricalHead,
    GaussianHead,
    LogisticHead,
    decode,
)
from wavenet_fast.errors import InputError, ShapeError
from wavenet_fast.sampling import Head, check_temperature, out_channels

from . import calls, checks
from .block import by_gates, pack_block, padded_to, residual_block_reference
from .checks import INT32_MAX, Sizes
from .model_ops import Ready, Streams, generate, prepare, project, start
from .shapes import BlockShape, padded

__all__ = [
    "Ready", "Streams", "generate", "prepare", "project", "residual_block", "residual_block_reference", "sample",
    "start",
]  # fmt: skip

_WEIGHTS = ("w_dilated", "b_dilated", "w_residual", "b_residual", "w_skip", "b_skip")
_MAX_SAMPLES = 16 * 65535  # tiles of a grid along y


# --- sample -------------------------------------------------------------------------------------------------------


def sample(
    logits: Tensor, uniforms: Tensor, head: Head, temperature: float = 1.0, *, emulated: bool | int = False
) -> Tensor:
    """The next sample of every stream: `wavenet_fast.sampling.sample` on a GPU.

    logits       float32 (..., A): classes, or [component logits | means | log scales]
    uniforms     float32 (..., 4) in [0, 1): word 0 chooses the class or component, word 1 the value inside it
    head         of the model's configuration: what the logits mean
    temperature  above 0: divides class and component logits and multiplies scales
    returns      int64 (...) classes for a categorical head, else float32 (...) values in −1 … 1

    What the tensors hold is not looked at, because that would wait for the GPU: from NaN comes class 0, or −1.
    """
    checks.tensors(logits=logits, uniforms=uniforms)
    kind, size, floor = _described(head)
    check_temperature(temperature)
    drawn: Tensor = _sample(logits, uniforms, kind, size, floor, float(temperature), checks.target(emulated))
    return drawn


@torch.library.custom_op(
    "wavenet_fast::sample", mutates_args=(),
    schema="(Tensor logits, Tensor uniforms, str kind, int size, float? log_scale_min, float temperature, "
    "int emulated=0) -> Tensor",
)  # fmt: skip
def _sample(
    logits: Tensor, uniforms: Tensor, kind: str, size: int, log_scale_min: float | None, temperature: float,
    emulated: int = 0,
) -> Tensor:  # fmt: skip
    head, home = _fit_sample(logits, uniforms, kind, size, log_scale_min, temperature, emulated)
    shape, dtype = logits.shape[:-1], _drawn_type(head)
    if not shape.numel():
        return torch.empty(shape, dtype=dtype, device=home)
    flat = logits.view(-1, logits.shape[-1])
    drawn = calls.draw(checks.launcher(home, emulated), head, flat, uniforms.view(-1, 4), calls.clamped(temperature))
    return drawn.to(dtype).view(shape)


@_sample.register_fake
def _(logits, uniforms, kind, size, log_scale_min, temperature, emulated=0):  # type: ignore[no-untyped-def]
    head, _ = _fit_sample(logits, uniforms, kind, size, log_scale_min, temperature, emulated)
    return logits.new_empty(logits.shape[:-1], dtype=_drawn_type(head))


def _fit_sample(
    logits: Tensor, uniforms: Tensor, kind: str, size: int, floor: float | None, temperature: float, emulated: int
) -> tuple[Head, torch.device]:
    check_temperature(temperature)
    head = _head(kind, size, floor)
    home = checks.device({"logits": logits, "uniforms": uniforms}, emulated)
    if not logits.ndim:
        raise ShapeError("logits have shape (); they must be (..., A)")
    rows = " ".join(f"n{i}" for i in range(logits.ndim - 1))
    sizes = Sizes({"A": out_channels(head), "4": 4})
    sizes.fit("logits", logits, f"{rows} A")
    sizes.fit("uniforms", uniforms, f"{rows} 4")
    return head, home


def _described(head: Head) -> tuple[str, int, float | None]:
    """A head as an op's arguments: kind, classes or components, log_scale_min."""
    if isinstance(head, CategoricalHead):
        return "categorical", checks.whole("classes of the head", head.classes, 2, INT32_MAX), None
    if isinstance(head, (LogisticHead, GaussianHead)):
        kind = "logistic" if isinstance(head, LogisticHead) else "gaussian"
        components = checks.whole("components of the head", head.components, 1, INT32_MAX)
        floor = head.log_scale_min
        return kind, components, None if floor is None else checks.finite("log_scale_min of the head", floor)
    raise InputError(f"head is a {type(head).__name__}; give a CategoricalHead, LogisticHead or GaussianHead")


def _head(kind: str, size: int, log_scale_min: float | None) -> Head:
    """The head again; raises `ConfigError` where there is no such one."""
    if kind == "categorical":
        return decode(CategoricalHead, {"kind": kind, "classes": size}, "head")
    fields = {"kind": kind, "components": size, "log_scale_min": log_scale_min}
    return decode(LogisticHead, fields, "head") if kind == "logistic" else decode(GaussianHead, fields, "head")


def _drawn_type(head: Head) -> torch.dtype:
    return torch.int64 if isinstance(head, CategoricalHead) else torch.float32


# --- residual_block -----------------------------------------------------------------------------------------------


def residual_block(
    x: Tensor,
    skip: Tensor,
    conditioning: Tensor,
    w_dilated: Tensor,
    b_dilated: Tensor | None,
    w_residual: Tensor | None,
    b_residual: Tensor | None,
    w_skip: Tensor,
    b_skip: Tensor | None,
    dilation: int = 1,
    residual_scale: float = 1.0,
    dtype: str = "fp32",
    *,
    emulated: bool | int = False,
) -> tuple[Tensor | None, Tensor]:
    """One gated residual block over all samples, where the history is known. All tensors are float32, with weights as
    PyTorch's convolutions hold them; they are packed here, at every call.

    x               (B, reach + T, R), where reach = (K−1)·dilation: what was before, oldest first, then the samples
    skip            (B, T, S): sum of the layers before
    conditioning    (B, T, G): added before the gate
    w_dilated       (G, R, K), b_dilated (G,): the newest tap last; the first G/2 rows feed the tanh
    w_residual      (R, G/2), b_residual (R,); None for the last layer, which nothing follows
    w_skip          (S, G/2), b_skip (S,)
    dilation        samples between taps
    residual_scale  x' = (x + residual) · residual_scale
    dtype           "fp32" (IEEE), "fp16" or "bf16": of weights and of what meets them; products are summed in fp32. In
                    fp16 both end at ±65504
    returns         x' (B, T, R), or None for the last layer, and skip' (B, T, S)

    Biases may be None. `residual_block_reference` is the same in PyTorch.
    """
    weights = (w_dilated, b_dilated, w_residual, b_residual, w_skip, b_skip)
    checks.tensors(x=x, skip=skip, conditioning=conditioning, **dict(zip(_WEIGHTS, weights, strict=True)))
    whole = checks.whole("dilation", dilation, 1, MAX_DILATION)
    scale = checks.finite("residual_scale", residual_scale)
    x_next, total = _residual_block(
        x, skip, conditioning, *weights, whole, scale, checks.number_format(dtype), checks.target(emulated)
    )
    return (None if w_residual is None else x_next), total


@torch.library.custom_op(
    "wavenet_fast::residual_block", mutates_args=(),
    schema="(Tensor x, Tensor skip, Tensor conditioning, Tensor w_dilated, Tensor? b_dilated, Tensor? w_residual, "
    "Tensor? b_residual, Tensor w_skip, Tensor? b_skip, int dilation, float residual_scale, str dtype, "
    "int emulated=0) -> (Tensor, Tensor)",
)  # fmt: skip
def _residual_block(
    x: Tensor, skip: Tensor, conditioning: Tensor, w_dilated: Tensor, b_dilated: Tensor | None,
    w_residual: Tensor | None, b_residual: Tensor | None, w_skip: Tensor, b_skip: Tensor | None, dilation: int,
    residual_scale: float, dtype: str, emulated: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    weights = (w_dilated, b_dilated, w_residual, b_residual, w_skip, b_skip)
    home = _fit_block(x, skip, conditioning, weights, dilation, residual_scale, dtype, emulated)
    (B, T, S), R, G, last = skip.shape, x.shape[2], conditioning.shape[2], w_residual is None
    shape = BlockShape.of(w_dilated.shape[2], R, G, S)
    if not B * T:
        return x.new_empty(B, 0 if last else T, R), skip.clone()
    total = padded_to(skip, shape.S)
    total = total.clone() if total is skip else total
    x_next = None if last else x.new_empty(B, T, shape.R)
    heard = by_gates(conditioning, shape.HALF)
    counts, first_q, last_column = (torch.full((B,), value, dtype=torch.int32, device=home) for value in (T, 0, T - 1))
    columns = calls.Columns(heard, first_q, last_column, x.new_zeros(1), counts, hop=1, upsampling=2)
    packed = pack_block(shape, dtype, *weights)
    calls.residual_block(
        checks.launcher(home, emulated), shape, dtype, padded_to(x, shape.R), x_next, total, counts, columns, packed,
        dilation, residual_scale,
    )  # fmt: skip
    return x.new_empty(B, 0, R) if x_next is None else x_next[..., :R].contiguous(), total[..., :S].contiguous()


@_residual_block.register_fake
def _(  # type: ignore[no-untyped-def]
    x, skip, conditioning, w_dilated, b_dilated, w_residual, b_residual, w_skip, b_skip, dilation, residual_scale,
    dtype, emulated=0,
):  # fmt: skip
    weights = (w_dilated, b_dilated, w_residual, b_residual, w_skip, b_skip)
    _fit_block(x, skip, conditioning, weights, dilation, residual_scale, dtype, emulated)
    (B, T, _), R = skip.shape, x.shape[2]
    return x.new_empty(B, 0 if w_residual is None else T, R), torch.empty_like(skip)


def _fit_block(
    x: Tensor, skip: Tensor, conditioning: Tensor, weights: tuple[Tensor | None, ...], dilation: int,
    residual_scale: float, dtype: str, emulated: int,
) -> torch.device:  # fmt: skip
    checks.whole("dilation", dilation, 1, MAX_DILATION)
    checks.finite("residual_scale", residual_scale)
    checks.number_format(dtype)
    named = dict(zip(_WEIGHTS, weights, strict=True))
    home = checks.device({"x": x, "skip": skip, "conditioning": conditioning, **named}, emulated)
    sizes = Sizes()
    sizes.fit("w_dilated", named["w_dilated"], "G R K")
    sizes.fit("skip", skip, "B T S")
    for letter, low, high in (("G", 2, MAX_CHANNELS), ("R", 1, MAX_CHANNELS), ("K", 2, MAX_TAPS)):
        checks.whole(f"{letter} of w_dilated, (G, R, K),", sizes[letter], low, high)
    for letter, low, high in (("B", 0, INT32_MAX), ("T", 0, _MAX_SAMPLES), ("S", 1, MAX_CHANNELS)):
        checks.whole(f"{letter} of skip, (B, T, S),", sizes[letter], low, high)
    if sizes["G"] % 2:
        raise ShapeError(f"w_dilated has G = {sizes['G']} rows; it must have as many for the tanh as for the sigmoid")
    reach = (sizes["K"] - 1) * dilation
    checks.whole("(K−1)·dilation·R, R padded to a power of two,", reach * padded(sizes["R"]), 0, INT32_MAX)
    sizes["reach+T"], sizes["G/2"] = reach + sizes["T"], sizes["G"] // 2
    sizes.fit("x", x, "B reach+T R")
    sizes.fit("conditioning", conditioning, "B T G")
    letters = ("G R K", "G", "R G/2", "R", "S G/2", "S")
    for (name, tensor), words in zip(named.items(), letters, strict=True):
        sizes.fit(name, tensor, words)
    if named["w_residual"] is None and named["b_residual"] is not None:
        raise InputError("b_residual is given and w_residual is not; give both, or neither for the last layer")
    return home
