"""A residual block with weights as PyTorch checkpoints hold them: its reference, and its weights as the kernel reads
them. Nothing here needs triton.

    (B, T, R) fp32 x → z (B, T, G): K taps of x, `dilation` samples apart, + bias + conditioning
    g = tanh(first half of z) · σ(second half);  skip' = skip + g·W + bias;  x' = (x + g·W + bias) · residual_scale
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .shapes import BlockShape

FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Number format → that of weights and of the activations that meet them."""

_FP16_MAX = 65504.0


def as_operands(x: Tensor, dtype: str) -> Tensor:
    """Rounded to what a number format multiplies: `stages.operand`. In fp16 what is too large stays finite."""
    return (x.clamp(-_FP16_MAX, _FP16_MAX) if dtype == "fp16" else x).to(FORMATS[dtype])


def residual_block_reference(
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
) -> tuple[Tensor | None, Tensor]:
    """`ops.residual_block` in PyTorch, on any device: same arguments, same meaning. Products are summed in fp32, or in
    float64 where all tensors are."""
    T = skip.shape[1]
    # Products of matrices, because a convolution on a GPU would be in tf32.
    x_operands, weights = _rounded(x, dtype), _rounded(w_dilated, dtype)
    z = conditioning if b_dilated is None else conditioning + b_dilated
    for k in range(weights.shape[2]):
        z = z + F.linear(x_operands[:, k * dilation : k * dilation + T], weights[:, :, k])
    a, b = z.chunk(2, dim=-1)
    gate = _rounded(torch.tanh(a) * torch.sigmoid(b), dtype)
    skip = skip + F.linear(gate, _rounded(w_skip, dtype), b_skip)
    if w_residual is None:
        return None, skip
    return (x[:, x.shape[1] - T :] + F.linear(gate, _rounded(w_residual, dtype), b_residual)) * residual_scale, skip


def _rounded(x: Tensor, dtype: str) -> Tensor:
    """To the numbers that a format has, kept in x's own."""
    return x if dtype == "fp32" else as_operands(x, dtype).to(x.dtype)


def pack_block(
    shape: BlockShape,
    dtype: str,
    w_dilated: Tensor,
    b_dilated: Tensor | None,
    w_residual: Tensor | None,
    b_residual: Tensor | None,
    w_skip: Tensor,
    b_skip: Tensor | None,
) -> dict[str, Tensor]:
    """(G, R, K), (G,), (R, G/2), (R,), (S, G/2), (S,) → by the kernel's names (K, R, 2·HALF), (2·HALF,),
    (HALF, R), (R,), (HALF, S), (S,), padded with zeros; matrices in the number format. What is None is zeros."""
    zeros = w_dilated.new_zeros(1)

    def bias(b: Tensor | None, size: int) -> Tensor:
        return zeros.expand(size).contiguous() if b is None else padded_to(b, size)

    def matrix(w: Tensor | None, outputs: int) -> Tensor:
        w = zeros[None] if w is None else w
        return as_operands(padded_to(w.T, shape.HALF, outputs), dtype)

    taps = padded_to(by_gates(w_dilated.permute(2, 1, 0), shape.HALF), shape.R, 2 * shape.HALF)
    return {
        "w_dilated": as_operands(taps, dtype),
        "b_dilated": bias(None, 2 * shape.HALF) if b_dilated is None else by_gates(b_dilated, shape.HALF),
        "w_residual": matrix(w_residual, shape.R), "b_residual": bias(b_residual, shape.R),
        "w_skip": matrix(w_skip, shape.S), "b_skip": bias(b_skip, shape.S),
    }  # fmt: skip


def by_gates(x: Tensor, HALF: int) -> Tensor:
    """(…, G), the tanh's half and the sigmoid's → (…, 2·HALF), padded, where columns 2j and 2j + 1 belong to gate j."""
    halves = padded_to(x.reshape(*x.shape[:-1], 2, x.shape[-1] // 2), HALF)
    return halves.transpose(-1, -2).flatten(-2).contiguous()


def padded_to(x: Tensor, *sizes: int) -> Tensor:
    """Zeros appended to the last dimensions up to `sizes`; contiguous, and x itself where nothing is to be done."""
    widths = [w for size, own in zip(reversed(sizes), reversed(x.shape), strict=False) for w in (0, size - own)]
    return (F.pad(x, widths) if any(widths) else x).contiguous()
