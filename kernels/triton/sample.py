"""`sample`: logits and uniforms → the next sample, on its own; the same functions as inside `generate`."""

import triton
import triton.language as tl

from .generate import choose_in_blocks
from .stages import choose, draw_value


@triton.jit(do_not_specialize=["n", "logits_stride", "width"])
def sample(
    # (n, logits_stride) fp32, (n, 4) fp32 → (n,) fp32: classes, or values in −1 … 1
    logits, uniforms, draws, n, logits_stride, width, temperature, log_scale_min,
    CLASSES: tl.constexpr, COMPONENTS: tl.constexpr, HEAD: tl.constexpr, A: tl.constexpr,
    N: tl.constexpr, BLOCK_CLASSES: tl.constexpr,
):  # fmt: skip
    """HEAD 0: categorical, 1: mixture of logistics, 2: of Gaussians. Only the first `width` logits are read."""
    i = tl.program_id(0) * N + tl.arange(0, N)
    valid = i < n
    row = i.to(tl.int64)
    u0 = tl.load(uniforms + row * 4, mask=valid, other=0.0)
    c = tl.arange(0, BLOCK_CLASSES)
    logits_row = logits + row * logits_stride
    if A == BLOCK_CLASSES:
        x = tl.load(logits_row[:, None] + c[None, :], mask=valid[:, None] & (c < width)[None, :], other=0.0)
        if HEAD == 0:
            drawn = choose(x, u0, temperature, CLASSES, N, BLOCK_CLASSES).to(tl.float32)
        else:
            u1 = tl.load(uniforms + row * 4 + 1, mask=valid, other=0.0)
            drawn = draw_value(x, u0, u1, temperature, log_scale_min, COMPONENTS, HEAD == 2, N, BLOCK_CLASSES)
    else:
        highest_each = tl.full((N, BLOCK_CLASSES), -float("inf"), tl.float32)
        for first in range(0, A, BLOCK_CLASSES):
            inside = first + c < width
            to = logits_row[:, None] + (first + c)[None, :]
            x = tl.load(to, mask=valid[:, None] & inside[None, :], other=-float("inf"))
            highest_each = tl.maximum(highest_each, x)
        # One reduction, after the loop: Triton 3.7 fails to compile one within it.
        highest = tl.max(highest_each, axis=1)
        drawn = choose_in_blocks(
            logits_row, u0, highest, temperature, valid, width, CLASSES, A, N, BLOCK_CLASSES
        ).to(tl.float32)  # fmt: skip
    tl.store(draws + row, drawn, mask=valid)
