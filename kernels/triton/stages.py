"""The stages of one sample as Triton functions, shared by the kernels of this package.

A tile is (N, channels): N streams in `generate`, N samples in `residual_block`. Channels are padded with zeros to a
power of two, because Triton's tiles are; weights of padded channels are zero, so padded activations stay zero.

Same order everywhere. Every sum over channels is a `tl.dot`, which takes its inner dimension in order, in steps of as
many terms as the instruction has, whatever N is, and each row on its own. Hence no bit depends on N, on the row that a
stream has in its tile, or on how threads share a tile: shown by executing the PTX, and so on a chip as long as the
compiler takes the same instruction.
`tl.sum` and `tl.cumsum` add as the layout of a tile happens to suggest; they are used only where at most one term is
not zero, or for integers.

Number formats. `OP` is that of operands: what meets a weight is rounded to it, products are summed in fp32. float32
means IEEE (`input_precision="ieee"`; Triton's default would be tf32). `UPCAST` is for bf16 in Triton's interpreter
alone, which cannot calculate with it: the same rounded numbers are then multiplied in fp32.
"""

import triton
import triton.language as tl

FP16_MAX = tl.constexpr(65504.0)
FLOAT_MAX = tl.constexpr(3.4028234663852886e38)
LOG2_E = tl.constexpr(1.4426950408889634)


# --- numbers ----------------------------------------------------------------------------------------------------


@triton.jit
def nearest_bf16(x):
    """fp32 → the nearest bf16, ties to even, in fp32: the interpreter's own conversion cuts off instead."""
    bits = x.to(tl.uint32, bitcast=True)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).to(tl.float32, bitcast=True)


@triton.jit
def operand(x, OP: tl.constexpr, UPCAST: tl.constexpr):
    """fp32 → the format in which activations meet weights. In half precision what is too large stays finite."""
    if OP == tl.float16:
        x = tl.clamp(x, -FP16_MAX, FP16_MAX)
    if UPCAST:
        x = nearest_bf16(x)
    return x.to(OP)


@triton.jit
def product(a, w, acc, UPCAST: tl.constexpr):
    """acc + a·w: (N, k) · (k, n) onto fp32 (N, n)."""
    if UPCAST:
        a, w = a.to(tl.float32), w.to(tl.float32)
    return tl.dot(a, w, acc, input_precision="ieee")


@triton.jit
def clipped(x):
    """To −1 … 1; a NaN becomes −1."""
    return tl.minimum(tl.maximum(x, -1.0), 1.0)


@triton.jit
def relu(x):
    return tl.maximum(x, 0.0)


@triton.jit
def tangent(a):
    """tanh(a) = (1 − e^−2a) / (1 + e^−2a). The clamp loses nothing in fp32: tanh 10 = 1 − 4e-9. It ends a NaN."""
    e = tl.exp2(tl.clamp(a, -10.0, 10.0) * (-2.0 * LOG2_E))
    return (1.0 - e) / (1.0 + e)


@triton.jit
def gate(z, N: tl.constexpr, GATES: tl.constexpr):
    """z (N, 2·GATES) → tanh(a)·σ(b) (N, GATES), where columns 2j and 2j + 1 of z are a and b of gate j: a thread of a
    product holds both, so that they meet without an exchange.

    (1 − e^−2a) / ((1 + e^−2a)(1 + e^−b)): one division. The clamps keep the denominator finite and end a
    NaN, as in csrc/math.inl."""
    a, b = tl.split(tl.reshape(z, (N, GATES, 2)))
    ea = tl.exp2(tl.clamp(a, -10.0, 10.0) * (-2.0 * LOG2_E))
    eb = tl.exp2(tl.clamp(b, -60.0, 60.0) * -LOG2_E)
    return (1.0 - ea) / ((1.0 + ea) * (1.0 + eb))


# --- embed ------------------------------------------------------------------------------------------------------


@triton.jit
def add_input(x, value, valid, w_tap, r, R: tl.constexpr, ONE_HOT: tl.constexpr):
    """x (N, R) and one tap of the input convolution: a row of the table (classes, R), or value (N,) times a vector.

    Class −1 is no input: there was none yet."""
    if ONE_HOT:
        rows = w_tap + value.to(tl.int32) * R
        x += tl.load(rows[:, None] + r[None, :], mask=(valid & (value >= 0.0))[:, None], other=0.0)
    else:
        x += value[:, None] * tl.load(w_tap + r)[None, :]
    return x


# --- addresses: one function per tensor -------------------------------------------------------------------------


@triton.jit
def matrix(ptr, rows, columns, width):
    """Pointers to an (len(rows), len(columns)) part of a matrix whose rows are `width` long."""
    return ptr + rows[:, None] * width + columns[None, :]


@triton.jit
def tap_matrix(ptr, tap, rows, columns, R: tl.constexpr, HALF: tl.constexpr):
    """dilated weights of one layer, (K, R, 2·HALF): inputs `rows` of one tap to outputs `columns`."""
    return matrix(ptr + tap * (R * 2 * HALF), rows, columns, 2 * HALF)


# --- conditioning -----------------------------------------------------------------------------------------------


@triton.jit
def column_of_sample(q, last, fraction_ptr, shift_ptr, valid, HOP: tl.constexpr, UPSAMPLING: tl.constexpr):
    """Which projected columns a sample hears: (left, right, weight of the right one).

    q     (N,) samples since the first column of the stream began; −1, where there is nothing earlier, counts as 0
    last  (N,) the last column that there is

    UPSAMPLING 0: hold, column ⌊q/HOP⌋. 1: linear, position q/HOP − frame_centre, whose fraction and whose shift by
    0 or −1 column are tables over q mod HOP. 2: columns are at sample rate already."""
    q = tl.maximum(q, 0)
    weight = tl.zeros_like(q).to(tl.float32)
    left = q if UPSAMPLING == 2 else q // HOP
    right = left + 1
    if UPSAMPLING == 1:
        within = q - left * HOP
        weight = tl.load(fraction_ptr + within, mask=valid, other=0.0)
        left += tl.load(shift_ptr + within, mask=valid, other=0)
        right = left + 1
    return tl.minimum(tl.maximum(left, 0), last), tl.minimum(tl.maximum(right, 0), last), weight


@triton.jit
def hear(left_ptr, right_ptr, weight, columns, valid, UPSAMPLING: tl.constexpr):
    """Conditioning (N, len(columns)) from row pointers (N,) to the projections of two columns."""
    a = tl.load(left_ptr[:, None] + columns[None, :], mask=valid[:, None], other=0.0)
    if UPSAMPLING == 1:
        b = tl.load(right_ptr[:, None] + columns[None, :], mask=valid[:, None], other=0.0)
        a += weight[:, None] * (b - a)
    return a


# --- drawing ----------------------------------------------------------------------------------------------------


@triton.jit
def philox(seed, t):
    """Words 0 and 1 of Philox4x32-10 with key (seed low, high) and counter (t low, t high, 0, 0): `rng.philox`.

    seed, t  int64 (N,), as bit patterns  →  two uint32 (N,)"""
    k0, k1 = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    c0, c1 = t.to(tl.uint32), (t >> 32).to(tl.uint32)
    c2, c3 = tl.zeros_like(c0), tl.zeros_like(c0)
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(c0, 0xD2511F53), c0 * 0xD2511F53
        high2, low2 = tl.umulhi(c2, 0xCD9E8D57), c2 * 0xCD9E8D57
        c0, c1, c2, c3 = high2 ^ c1 ^ k0, low2, high0 ^ c3 ^ k1, low0
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1


@triton.jit
def uniform(word):
    """A uint32 as a float in [0, 1): as int32, negative ones mapped to −x − 1, times a little less than 2^-31."""
    x = word.to(tl.int32, bitcast=True)
    return tl.where(x < 0, -x - 1, x).to(tl.float32) * 4.6566127342e-10


@triton.jit
def at(x, column, index):
    """x[n, index[n]] of x (N, C), whose columns are numbered `column` (C,). Exact: all other terms are zero."""
    return tl.sum(tl.where(column[None, :] == index[:, None], x, 0.0), axis=1)


@triton.jit
def prefix_sums(e, N: tl.constexpr, C: tl.constexpr):
    """Sums over e[n, 0 … c], (N, C), for every c, in fp32.

    Products with a triangle of ones add in the order of the classes, which a scan would not promise. Above 64 classes
    within groups of 16 first, and over groups then."""
    if C <= 64:
        i = tl.arange(0, C)
        sums = tl.dot(e, (i[:, None] <= i[None, :]).to(tl.float32), input_precision="ieee")
    else:
        GROUPS: tl.constexpr = C // 16
        i = tl.arange(0, 16)
        ones = (i[:, None] <= i[None, :]).to(tl.float32)
        within = tl.dot(tl.reshape(e, (N * GROUPS, 16)), ones, input_precision="ieee")
        totals = tl.sum(tl.where(i[None, :] == 15, within, 0.0), axis=1)
        g = tl.arange(0, GROUPS)
        earlier = (g[:, None] < g[None, :]).to(tl.float32)
        before = tl.dot(tl.reshape(totals, (N, GROUPS)), earlier, input_precision="ieee")
        sums = tl.reshape(tl.reshape(within, (N, GROUPS, 16)) + before[:, :, None], (N, C))
    return sums


@triton.jit
def weights_of(logits, highest, temperature, column, CLASSES: tl.constexpr):
    """e^((l − highest)/temperature) of the classes below CLASSES, and zero for what pads them."""
    return tl.where((column < CLASSES)[None, :], tl.exp((logits - highest[:, None]) / temperature), 0.0)


@triton.jit
def choose(logits, u, temperature, CLASSES: tl.constexpr, N: tl.constexpr, C: tl.constexpr):
    """Number of classes below the last whose prefix sum is at most u · total, (N,), of the first CLASSES of (N, C)."""
    column = tl.arange(0, C)
    highest = tl.max(tl.where(column[None, :] < CLASSES, logits, -float("inf")), axis=1)
    sums = prefix_sums(weights_of(logits, highest, temperature, column, CLASSES), N, C)
    total = at(sums, column, tl.full((N,), C - 1, tl.int32))
    below = (column[None, :] < CLASSES - 1) & (sums <= (u * total)[:, None])
    return tl.sum(below.to(tl.int32), axis=1)


@triton.jit
def normal_quantile(v):
    """Φ⁻¹(v) = √2 · erfinv(2v − 1) by Giles' polynomials: `sampling.normal_quantile`."""
    w = -tl.log(4.0 * v * (1.0 - v))
    x = w - 2.5
    centre = 2.81022636e-08 * x + 3.43273939e-07
    centre = centre * x - 3.5233877e-06
    centre = centre * x - 4.39150654e-06
    centre = centre * x + 0.00021858087
    centre = centre * x - 0.00125372503
    centre = centre * x - 0.00417768164
    centre = centre * x + 0.246640727
    centre = centre * x + 1.50140941
    x = tl.sqrt(tl.maximum(w, 0.0)) - 3.0
    tail = -0.000200214257 * x + 0.000100950558
    tail = tail * x + 0.00134934322
    tail = tail * x - 0.00367342844
    tail = tail * x + 0.00573950773
    tail = tail * x - 0.0076224613
    tail = tail * x + 0.00943887047
    tail = tail * x + 1.00167406
    tail = tail * x + 2.83297682
    return 1.4142135623730951 * tl.where(w < 5.0, centre, tail) * (2.0 * v - 1.0)


@triton.jit
def draw_value(
    logits, u0, u1, temperature, log_scale_min,
    COMPONENTS: tl.constexpr, GAUSSIAN: tl.constexpr, N: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """A mixture's draw in −1 … 1, (N,). Outputs are laid out [component logits | means | log scales], without the
    first where there is one component."""
    column = tl.arange(0, C)
    first: tl.constexpr = 0 if COMPONENTS == 1 else COMPONENTS
    chosen = tl.zeros((N,), tl.int32)
    if COMPONENTS > 1:
        chosen = choose(logits, u0, temperature, COMPONENTS, N, C)
    mean = at(logits, column, chosen + first)
    log_scale = tl.maximum(at(logits, column, chosen + (first + COMPONENTS)), log_scale_min)
    # The largest float instead of infinity: infinity times a quantile of exactly 0 would be NaN.
    scale = tl.minimum(tl.exp(log_scale) * temperature, FLOAT_MAX)
    v = tl.clamp(u1, 1e-5, 1.0 - 1e-5)
    quantile = normal_quantile(v) if GAUSSIAN else tl.log(v) - tl.log(1.0 - v)
    return clipped(mean + scale * quantile)


@triton.jit
def expand(y, mu):
    """Inverse of µ-law companding: sign(y)·((1 + µ)^|y| − 1)/µ."""
    size = (tl.exp2(tl.abs(y) * tl.log2(1.0 + mu)) - 1.0) / mu
    return tl.where(y < 0.0, -size, size)


# --- sound ------------------------------------------------------------------------------------------------------


@triton.jit
def sound_of(
    value, table, memory, valid, preemphasis, mu, CLASSES: tl.constexpr, COMPANDED: tl.constexpr
):  # fmt: skip
    """Classes or values (N,) → what they sound like on top of the filter's `memory` (N,), before the gain."""
    if CLASSES:
        y = tl.load(table + value.to(tl.int32), mask=valid, other=0.0)
    elif COMPANDED:
        y = expand(value, mu)
    else:
        y = value
    # Fused by name: left to the compiler, one kernel might round the product and another not.
    return tl.fma(memory, preemphasis, y)
