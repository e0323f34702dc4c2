"""`generate`: T samples of every stream in one launch, all stages inside.

One program makes a tile of N streams and never hands control back between samples. What it carries from layer to layer
(the residual x, the skip sum, the operands of both) never goes to global memory. A layer's middle dimension, its G/2
gates, is worked through in blocks of BLOCK_GATE, so that of each matrix only a panel is held at a time. For each block:

    z = conditioning + Σ_taps past·W + x·W;  g = tanh·σ;  x' += g·W_residual;  skip += g·W_skip

and the head likewise, in blocks of BLOCK_HIDDEN of its hidden layer. Only the past goes through memory: every layer has
a ring per stream, whose slots are the first power of two above (K−1)·D: sample t lies at slot t mod slots, and no step
overwrites a past that it reads. One barrier per sample orders what a step wrote before what the next reads; within the
loop over layers there is none of ours in 16 bit, so that the compiler may copy the next layer's weights while this one
works. In fp32 a thread holds the operands of a product in registers, BLOCK_R or BLOCK_S inputs at a time; these come
from memory again, the newest behind a barrier.

Letters and their padding: R, HALF (= G/2), S, H, A are channels padded to powers of two, LAYERS and K are as they are;
`CLASSES` and `COMPONENTS` count what is drawn. See stages.py for the order of sums.
"""

import triton
import triton.language as tl

from .stages import (
    add_input,
    at,
    choose,
    clipped,
    column_of_sample,
    draw_value,
    gate,
    hear,
    matrix,
    operand,
    philox,
    prefix_sums,
    product,
    relu,
    sound_of,
    tangent,
    tap_matrix,
    uniform,
    weights_of,
)


@triton.jit
def embed_next(
    newest, inputs_row, t, w_input, b_input, r, active,
    A_ROWS: tl.constexpr, IN_TAPS: tl.constexpr, IN_DEPTH: tl.constexpr, R: tl.constexpr,
    ONE_HOT: tl.constexpr, TANH: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """The last IN_TAPS inputs → x (N, R). `newest` (N,) is x[t−1]; older ones lie in a ring of IN_DEPTH per stream."""
    x = tl.zeros((N, R), tl.float32) + tl.load(b_input + r)[None, :]
    for k in tl.static_range(IN_TAPS):
        value = newest
        if k + 1 < IN_TAPS:
            slot = ((t - (IN_TAPS - k)) & (IN_DEPTH - 1)).to(tl.int32)
            value = tl.load(inputs_row + slot, mask=active, other=0.0)
        x = add_input(x, value, active, w_input + k * A_ROWS * R, r, R, ONE_HOT)
    if TANH:
        x = tangent(x)
    return x


@triton.jit
def hidden_to_logits(
    x, x_row, w_hidden, b_hidden, w_out, b_out, columns, hidden_trace, out, active,
    S: tl.constexpr, H: tl.constexpr, A: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_HIDDEN: tl.constexpr,
    OP: tl.constexpr, UPCAST: tl.constexpr, TRACE: tl.constexpr, N: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """1×1, ReLU, 1×1: operands x (N, S), or rows of them in memory where BLOCK_S < S → logits (N, C) of the classes
    `columns` (C,). Where classes come in several blocks, the hidden layer is made again for each."""
    s, h = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_HIDDEN)
    logits = tl.zeros((N, C), tl.float32) + tl.load(b_out + columns)[None, :]
    for first in range(0, H, BLOCK_HIDDEN):
        hidden = tl.zeros((N, BLOCK_HIDDEN), tl.float32) + tl.load(b_hidden + first + h)[None, :]
        if BLOCK_S == S:
            hidden = product(x, tl.load(matrix(w_hidden, s, first + h, H)), hidden, UPCAST)
        else:
            for c in range(0, S, BLOCK_S):
                part = tl.load(x_row[:, None] + (c + s)[None, :], mask=active[:, None], other=0.0)
                hidden = product(part, tl.load(matrix(w_hidden, c + s, first + h, H)), hidden, UPCAST)
        if TRACE:
            tl.store((hidden_trace + out * H)[:, None] + (first + h)[None, :], hidden, mask=active[:, None])
        w = tl.load(matrix(w_out, first + h, columns, A))
        logits = product(operand(relu(hidden), OP, UPCAST), w, logits, UPCAST)
    return logits


@triton.jit
def choose_in_blocks(
    logits_row, u, highest, temperature, valid, width,
    CLASSES: tl.constexpr, A: tl.constexpr, N: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """`stages.choose` for more classes than registers hold: C at a time of the `width` logits in memory."""
    column = tl.arange(0, C)
    last = tl.full((N,), C - 1, tl.int32)
    total = tl.zeros((N,), tl.float32)
    for first in range(0, A, C):
        inside = valid[:, None] & (first + column < width)[None, :]
        x = tl.load(logits_row[:, None] + (first + column)[None, :], mask=inside, other=0.0)
        sums = prefix_sums(weights_of(x, highest, temperature, first + column, CLASSES), N, C)
        total += at(sums, column, last)
    chosen = tl.zeros((N,), tl.int32)
    before = tl.zeros((N,), tl.float32)
    for first in range(0, A, C):
        inside = valid[:, None] & (first + column < width)[None, :]
        x = tl.load(logits_row[:, None] + (first + column)[None, :], mask=inside, other=0.0)
        sums = prefix_sums(weights_of(x, highest, temperature, first + column, CLASSES), N, C)
        below = (first + column < CLASSES - 1)[None, :] & (before[:, None] + sums <= (u * total)[:, None])
        chosen += tl.sum(below.to(tl.int32), axis=1)
        before += at(sums, column, last)
    return chosen


# One compiled kernel for every number of streams and samples, and for outputs that begin anywhere.
@triton.jit(
    do_not_specialize=["stride", "logits_width", "n_columns", "batch", "steps", "LAYERS"],
    do_not_specialize_on_alignment=["audio", "draws", "logits_out", "forced"],
)
def generate(
    # State, changed in place. rings (B, SLOTS, R) operands; inputs (B, IN_DEPTH); filters (B,): last de-emphasised
    # value.
    rings, inputs, filters,
    # Streams: position t and seed (B,) int64; samples to make (B,) int32.
    positions, seeds, counts,
    # Conditioning: projected (B, n_columns, LAYERS, 2·HALF) fp32; first sample's q and last column (B,) int32
    # (`stages.column_of_sample`); tables over the samples of a hop (HOP,).
    projected, first_q, last_column, fraction, shift, n_columns,
    # Weights: (IN_TAPS, classes or 1, R) and (R,) fp32; (LAYERS, K, R, 2·HALF) and (LAYERS, 2·HALF);
    # (LAYERS, HALF, R) and (LAYERS, R); (LAYERS, HALF, S) and (LAYERS or 1, S); (S, H) and (H,); (H, A) and (A,).
    # Biases fp32.
    w_input, b_input, w_dilated, b_dilated, w_residual, b_residual, w_skip, b_skip, w_hidden, b_hidden, w_out, b_out,
    # Per layer (LAYERS, 3) int32: dilation, first slot of its ring, slots (a power of two).
    layers,
    # Classes → linear sound and → what a scalar input is fed, (CLASSES,).
    sound, feedback,
    # Out: audio and draws (B, stride) fp32; logits (B, stride, logits_width) where LOGITS. In: forced (B, stride) where
    # FORCED: what the history is fed instead of the draws.
    audio, draws, logits_out, forced, stride, logits_width,
    # Where TRACE, every stage: (B, stride, …) of (LAYERS, 2·HALF) (R) (LAYERS, HALF) (LAYERS, R) (S) (H).
    conditioning_trace, embed_trace, gate_trace, x_trace, skip_trace, hidden_trace,
    # Room for logits (B, A) where A > BLOCK_CLASSES, and for operands of the head (B, S) where S > BLOCK_S.
    logits_room, skip_room,
    batch, steps, LAYERS, temperature, log_scale_min, preemphasis, gain, mu, residual_scale, skip_scale,
    K: tl.constexpr, R: tl.constexpr, HALF: tl.constexpr, S: tl.constexpr, H: tl.constexpr,
    A: tl.constexpr, SLOTS: tl.constexpr, CLASSES: tl.constexpr, COMPONENTS: tl.constexpr, HEAD: tl.constexpr,
    IN_TAPS: tl.constexpr, IN_DEPTH: tl.constexpr, ONE_HOT: tl.constexpr, TANH: tl.constexpr,
    COMPANDED: tl.constexpr, RUNNING: tl.constexpr, HOP: tl.constexpr, UPSAMPLING: tl.constexpr,
    OP: tl.constexpr, UPCAST: tl.constexpr, FORCED: tl.constexpr, LOGITS: tl.constexpr, TRACE: tl.constexpr,
    N: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_GATE: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_HIDDEN: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
):  # fmt: skip
    """HEAD 0: categorical, 1: mixture of logistics, 2: of Gaussians. UPSAMPLING: `stages.column_of_sample`."""
    b = tl.program_id(0) * N + tl.arange(0, N)
    valid = b < batch
    r, s, rr = tl.arange(0, R), tl.arange(0, S), tl.arange(0, BLOCK_R)
    j, jj = tl.arange(0, BLOCK_GATE), tl.arange(0, 2 * BLOCK_GATE)

    # Rows of this tile's streams; 64-bit, because all streams together may have 2^31 elements of something or more. One
    # stream, and the weights, have not: `model.check_size`.
    row = b.to(tl.int64)
    rings_row = rings + row * (SLOTS * R)
    inputs_row = inputs + row * IN_DEPTH
    out_row = row * stride
    projected_row = projected + row * (n_columns.to(tl.int64) * (LAYERS * 2 * HALF))

    position = tl.load(positions + b, mask=valid, other=0)
    seed = tl.load(seeds + b, mask=valid, other=0)
    count = tl.load(counts + b, mask=valid, other=0)
    q = tl.load(first_q + b, mask=valid, other=0)
    last = tl.load(last_column + b, mask=valid, other=0)
    memory = tl.load(filters + b, mask=valid, other=0.0)
    newest = tl.load(inputs_row + ((position - 1) & (IN_DEPTH - 1)), mask=valid, other=0.0)

    # What a loop needs is made where it is needed: taken out of the loops it would not fit the registers.
    for i in tl.range(0, steps, disable_licm=True):
        active = i < count
        t = position + i
        now = t.to(tl.int32)  # its low bits are all that a ring asks for
        out = out_row + i

        # embed
        x = embed_next(
            newest, inputs_row, t, w_input, b_input, r, active,
            CLASSES if ONE_HOT else 1, IN_TAPS, IN_DEPTH, R, ONE_HOT, TANH, N,
        )  # fmt: skip
        if TRACE:
            tl.store((embed_trace + out * R)[:, None] + r[None, :], x, mask=active[:, None])

        left, right, weight = column_of_sample(q + i, last, fraction, shift, active, HOP, UPSAMPLING)
        left_row = projected_row + left * (LAYERS * 2 * HALF)
        right_row = projected_row + right * (LAYERS * 2 * HALF)
        skip = tl.zeros((N, S), tl.float32)
        if not RUNNING:
            skip += tl.load(b_skip + s)[None, :]

        for layer in tl.range(0, LAYERS, disable_licm=True):
            dilation, first_slot = tl.load(layers + layer * 3), tl.load(layers + layer * 3 + 1)
            around = tl.load(layers + layer * 3 + 2) - 1
            ring = rings_row + first_slot * R
            x_operand = operand(x, OP, UPCAST)
            tl.store((ring + (now & around) * R)[:, None] + r[None, :], x_operand, mask=active[:, None])
            if BLOCK_R < R:
                tl.debug_barrier()  # the newest input, too, is read from the ring
            update = tl.zeros((N, R), tl.float32) + tl.load(b_residual + layer * R + r)[None, :]

            for first in range(0, HALF, BLOCK_GATE):
                # dilated: conditioning and bias, the past from its rings, the newest tap last
                g, gg = first + j, 2 * first + jj
                offset = layer * (2 * HALF)
                z = hear(left_row + offset, right_row + offset, weight, gg, active, UPSAMPLING)
                if TRACE:
                    traced = conditioning_trace + (out * LAYERS + layer) * (2 * HALF)
                    tl.store(traced[:, None] + gg[None, :], z, mask=active[:, None])
                z += tl.load(b_dilated + offset + gg)[None, :]
                w_layer = w_dilated + layer * (K * R * 2 * HALF)
                for k in tl.static_range(K):
                    slot = (now - (K - 1 - k) * dilation) & around
                    for first_r in range(0, R, BLOCK_R):
                        if BLOCK_R == R and k + 1 == K:
                            x_then = x_operand
                        else:
                            part = ring + (slot * R + first_r)
                            x_then = tl.load(part[:, None] + rr[None, :], mask=active[:, None], other=0.0)
                        z = product(x_then, tl.load(tap_matrix(w_layer, k, first_r + rr, gg, R, HALF)), z, UPCAST)

                # gate
                gated = gate(z, N, BLOCK_GATE)
                if TRACE:
                    traced = gate_trace + (out * LAYERS + layer) * HALF
                    tl.store(traced[:, None] + g[None, :], gated, mask=active[:, None])
                gated = operand(gated, OP, UPCAST)

                # residual, skip
                update = product(gated, tl.load(matrix(w_residual + layer * HALF * R, g, r, R)), update, UPCAST)
                skip = product(gated, tl.load(matrix(w_skip + layer * HALF * S, g, s, S)), skip, UPCAST)

            x = (x + update) * residual_scale
            if RUNNING:
                skip += tl.load(b_skip + layer * S + s)[None, :]
                skip *= tl.where(layer > 0, skip_scale, 1.0)
            if TRACE:
                tl.store((x_trace + (out * LAYERS + layer) * R)[:, None] + r[None, :], x, mask=active[:, None])

        # head and sample
        if not RUNNING:
            skip *= skip_scale
        if TRACE:
            tl.store((skip_trace + out * S)[:, None] + s[None, :], skip, mask=active[:, None])
        skip_operand = operand(relu(skip), OP, UPCAST)
        skip_row = out_row
        if BLOCK_S < S:
            skip_row = skip_room + row * S
            tl.store(skip_row[:, None] + s[None, :], skip_operand, mask=active[:, None])
            tl.debug_barrier()  # other threads read these operands
        word0, word1 = philox(seed, t)
        u0 = uniform(word0)
        c = tl.arange(0, BLOCK_CLASSES)
        if A == BLOCK_CLASSES:
            logits = hidden_to_logits(
                skip_operand, skip_row, w_hidden, b_hidden, w_out, b_out, c, hidden_trace, out, active,
                S, H, A, BLOCK_S, BLOCK_HIDDEN, OP, UPCAST, TRACE, N, BLOCK_CLASSES,
            )  # fmt: skip
            if LOGITS:
                to = logits_out + out * logits_width
                tl.store(to[:, None] + c[None, :], logits, mask=active[:, None] & (c < logits_width)[None, :])
            if HEAD == 0:
                drawn = choose(logits, u0, temperature, CLASSES, N, BLOCK_CLASSES).to(tl.float32)
            else:
                drawn = draw_value(
                    logits, u0, uniform(word1), temperature, log_scale_min, COMPONENTS, HEAD == 2, N, BLOCK_CLASSES
                )
        else:
            room = logits_room + row * A
            highest = tl.full((N,), -float("inf"), tl.float32)
            for first in range(0, A, BLOCK_CLASSES):
                logits = hidden_to_logits(
                    skip_operand, skip_row, w_hidden, b_hidden, w_out, b_out, first + c, hidden_trace, out, active,
                    S, H, A, BLOCK_S, BLOCK_HIDDEN, OP, UPCAST, TRACE, N, BLOCK_CLASSES,
                )  # fmt: skip
                inside = first + c < CLASSES
                highest = tl.maximum(highest, tl.max(tl.where(inside[None, :], logits, -float("inf")), axis=1))
                tl.store(room[:, None] + (first + c)[None, :], logits, mask=active[:, None])
                if LOGITS:
                    to = (logits_out + out * logits_width)[:, None] + (first + c)[None, :]
                    tl.store(to, logits, mask=active[:, None] & (first + c < logits_width)[None, :])
            tl.debug_barrier()  # other threads read these logits
            drawn = choose_in_blocks(
                room, u0, highest, temperature, active, A, CLASSES, A, N, BLOCK_CLASSES
            ).to(tl.float32)  # fmt: skip

        # The draw becomes sound and, unless the history is forced, the newest input.
        emphasised = sound_of(drawn, sound, memory, active, preemphasis, mu, HEAD == 0, COMPANDED)
        tl.store(audio + out, clipped(emphasised / gain), mask=active)
        tl.store(draws + out, drawn, mask=active)
        heard = drawn
        if FORCED:
            heard = tl.load(forced + out, mask=active, other=0.0)
            emphasised = sound_of(heard, sound, memory, active, preemphasis, mu, ONE_HOT, COMPANDED)
        elif HEAD == 0 and not ONE_HOT:
            heard = tl.load(feedback + drawn.to(tl.int32), mask=active, other=0.0)
        memory = tl.where(active, emphasised, memory)
        newest = tl.where(active, heard, newest)
        tl.store(inputs_row + (t & (IN_DEPTH - 1)), newest, mask=active)
        tl.debug_barrier()  # what this step wrote is read by other threads in the next

    tl.store(filters + b, memory, mask=valid)
