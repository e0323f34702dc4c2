"""`embed`: past inputs → x, for all samples at once where the history is known."""

import triton
import triton.language as tl

from .stages import add_input, tangent


@triton.jit(do_not_specialize=["heard_stride"])
def embed(
    # heard (B, IN_TAPS + T): x[t−1] of the sample t = 0 at column IN_TAPS − 1, older ones before it; classes as numbers
    # and −1 for none. x: (B, T, R) fp32, rows of x_stride an utterance.
    heard, x, heard_stride, x_stride, counts, w_input, b_input,
    A_ROWS: tl.constexpr, IN_TAPS: tl.constexpr, R: tl.constexpr, ONE_HOT: tl.constexpr, TANH: tl.constexpr,
    N: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    t = tl.program_id(1) * N + tl.arange(0, N)
    valid = t < tl.load(counts + b)
    r = tl.arange(0, R)
    total = tl.zeros((N, R), tl.float32) + tl.load(b_input + r)[None, :]
    for k in tl.static_range(IN_TAPS):
        value = tl.load(heard + b * heard_stride + t + k, mask=valid, other=0.0)
        total = add_input(total, value, valid, w_input + k * A_ROWS * R, r, R, ONE_HOT)
    if TANH:
        total = tangent(total)
    tl.store((x + b * x_stride + t.to(tl.int64) * R)[:, None] + r[None, :], total, mask=valid[:, None])
