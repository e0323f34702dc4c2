"""`residual_block`: one layer over all samples at once, where the history is known: for scoring and priming.

A program makes N neighbouring samples of one utterance: dilated convolution, conditioning, gate, residual and skip,
with nothing but x and the skip sum in memory before and after. The sums are those of generate.py in the same order, so
a stream that was primed here goes on with the same bits as one that went sample by sample.
"""

import triton
import triton.language as tl

from .stages import column_of_sample, gate, hear, matrix, operand, product, tap_matrix


# One compiled kernel for all layers and for every number of samples: strides are multiples of 16 elements, as the JIT
# sees, which lets it move several at a time.
@triton.jit(do_not_specialize=["dilation"])
def residual_block(
    # x (B, (K−1)·dilation + T, R) fp32: first what was before, oldest first, then the samples; x_next (B, T, R), rows
    # of x_next_stride; skip (B, T, S) fp32, changed in place.
    x, x_next, skip, x_stride, x_next_stride, skip_stride,
    # samples of each utterance (B,) int32; conditioning as in generate.py, columns `column_stride` apart
    counts, projected, first_q, last_column, fraction, shift, projected_stride, column_stride,
    # (K, R, 2·HALF), (2·HALF,), (HALF, R), (R,), (HALF, S), (S,) of this layer
    w_dilated, b_dilated, w_residual, b_residual, w_skip, b_skip,
    dilation, residual_scale, skip_scale,
    K: tl.constexpr, R: tl.constexpr, HALF: tl.constexpr, S: tl.constexpr, HOP: tl.constexpr,
    UPSAMPLING: tl.constexpr, OP: tl.constexpr, UPCAST: tl.constexpr, RESIDUAL: tl.constexpr, BIASED_SKIP: tl.constexpr,
    N: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_GATE: tl.constexpr,
):  # fmt: skip
    """RESIDUAL: whether there is a next layer. BIASED_SKIP: skip' = (skip + g·W + bias)·skip_scale, else skip + g·W."""
    b = tl.program_id(0).to(tl.int64)
    t = tl.program_id(1) * N + tl.arange(0, N)
    valid = t < tl.load(counts + b)
    r, s, rr = tl.arange(0, R), tl.arange(0, S), tl.arange(0, BLOCK_R)
    j, jj = tl.arange(0, BLOCK_GATE), tl.arange(0, 2 * BLOCK_GATE)

    q, last = t + tl.load(first_q + b), tl.zeros((N,), tl.int32) + tl.load(last_column + b)
    left, right, weight = column_of_sample(q, last, fraction, shift, valid, HOP, UPSAMPLING)
    columns = projected + b * projected_stride
    left_row, right_row = columns + left.to(tl.int64) * column_stride, columns + right.to(tl.int64) * column_stride

    newest_row = x + b * x_stride + (t + (K - 1) * dilation).to(tl.int64) * R
    newest = tl.load(newest_row[:, None] + r[None, :], mask=valid[:, None], other=0.0)
    update = tl.zeros((N, R), tl.float32) + tl.load(b_residual + r)[None, :]
    skip_row = skip + b * skip_stride + t.to(tl.int64) * S
    total = tl.load(skip_row[:, None] + s[None, :], mask=valid[:, None], other=0.0)

    for first in range(0, HALF, BLOCK_GATE):
        # dilated
        g, gg = first + j, 2 * first + jj
        z = hear(left_row, right_row, weight, gg, valid, UPSAMPLING) + tl.load(b_dilated + gg)[None, :]
        for k in tl.static_range(K):
            for c in range(0, R, BLOCK_R):
                row = newest_row + (c - (K - 1 - k) * dilation * R)
                x_then = tl.load(row[:, None] + rr[None, :], mask=valid[:, None], other=0.0)
                panel = tl.load(tap_matrix(w_dilated, k, c + rr, gg, R, HALF))
                z = product(operand(x_then, OP, UPCAST), panel, z, UPCAST)

        # gate, residual, skip
        gated = operand(gate(z, N, BLOCK_GATE), OP, UPCAST)
        if RESIDUAL:
            update = product(gated, tl.load(matrix(w_residual, g, r, R)), update, UPCAST)
        total = product(gated, tl.load(matrix(w_skip, g, s, S)), total, UPCAST)

    if BIASED_SKIP:
        total = (total + tl.load(b_skip + s)[None, :]) * skip_scale
    tl.store(skip_row[:, None] + s[None, :], total, mask=valid[:, None])
    if RESIDUAL:
        next_row = x_next + b * x_next_stride + t.to(tl.int64) * R
        tl.store(next_row[:, None] + r[None, :], (newest + update) * residual_scale, mask=valid[:, None])
