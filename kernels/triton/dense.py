"""`dense`: rows times a matrix, for what is outside the sample loop: the mel's projection to all layers, and the head
where all samples are known."""

import triton
import triton.language as tl

from .stages import nearest_bf16, operand, product, relu


@triton.jit(do_not_specialize=["n", "group"])
def dense(
    # x (n, inputs) fp32, w (inputs, outputs), start (groups, outputs) fp32: row i begins with start[i // group];
    # out (n, outputs) fp32
    x, w, start, out, n, group, inputs, outputs,
    RELU: tl.constexpr, OP: tl.constexpr, UPCAST: tl.constexpr, ROUND: tl.constexpr,
    N: tl.constexpr, BLOCK_INPUTS: tl.constexpr, BLOCK_OUTPUTS: tl.constexpr,
):  # fmt: skip
    """out = start + x·w, or relu(x)·w. ROUND: the result is rounded to bf16 and kept in fp32."""
    i = tl.program_id(0) * N + tl.arange(0, N)
    o = tl.program_id(1) * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    k = tl.arange(0, BLOCK_INPUTS)
    row, rows, columns = i.to(tl.int64), i < n, o < outputs
    begin = start + (row // group) * outputs
    total = tl.load(begin[:, None] + o[None, :], mask=rows[:, None] & columns[None, :], other=0.0)
    for first in range(0, inputs, BLOCK_INPUTS):
        inside = first + k < inputs
        part = tl.load(
            (x + row * inputs)[:, None] + (first + k)[None, :], mask=rows[:, None] & inside[None, :], other=0.0
        )
        if RELU:
            part = relu(part)
        weights = w + (first + k).to(tl.int64)[:, None] * outputs + o[None, :]
        panel = tl.load(weights, mask=inside[:, None] & columns[None, :], other=0.0)
        total = product(operand(part, OP, UPCAST), panel, total, UPCAST)
    if ROUND:
        total = nearest_bf16(total)
    tl.store((out + row * outputs)[:, None] + o[None, :], total, mask=rows[:, None] & columns[None, :])
