"""Every tolerance between backends, by backend and number format, with its reason. Two-sided: |a − b| ≤ limit.

`STAGE`: one stage of the engine against float64 arithmetic on that stage's own inputs, relative to the stage's
standard deviation. Only the order of sums and the polynomials differ, so bf16 is as exact as fp32 here: an activation
rounded elsewhere, or not rounded, shows up a thousandfold.

`TRACE_MAX`, `TRACE_RMS`: every stage of a whole network against the reference under forced history, relative to the
stage's standard deviation. In bf16 an activation near a rounding boundary may fall on the other side (2^-9 of its
value) and that spreads through the layers above; measured up to 2.8e-2 (largest) and 3.5e-3 (root mean square).

The GPU kernels round activations to fp16 too, and so does the reference that they are compared with; there it is
2^-11 that an activation may fall on the other side by. Emulated, over 30 networks of 200 samples in each format, the
largest were 2.4e-6 in fp32, 1.1e-2 in bf16, 3.1e-3 in fp16, and root mean square 4.1e-7, 4.2e-4, 1.7e-4. That is for
networks of 4 or 5 layers; roundings of layers add up like noise, so deeper ones are allowed `of_depth` times as much.
On an H200, over as many samples as the longest dilation has, r9y9-mol with 24 layers had 1.4e-5 and 1.3e-6 in fp32, and
nv-medium with 20 root mean squares of 1.2e-3 in bf16 and 4.3e-4 in fp16, by both GPU backends.

`UNIFORM`, `MISMATCHES`: a categorical draw may differ only where the uniform lies so near a CDF edge, and this often.
In bf16 the edges of a peaked distribution move as far as the difference of the step's own logits carries them (measured
on the bundled voice: up to 8e-3); there the limit is computed from those logits, and `TRACE_MAX` bounds them. In int8,
where an activation that falls on the other side of a boundary moves by 1/127 of the vector's largest, the number of
draws that may differ is computed from the logits too: the chance that two distributions answer one uniform differently.

`HEARD_*`: conditioning in bf16 and int8, whose projection and interpolation are in bf16. Engine against reference: all
but a share `HEARD_OTHER_SIDE` of the values within `HEARD`, and those within 2^-7 of the largest: one unit of bf16, an
operand's or a neighbour's, where a sum in another order fell on the other side of a boundary. Reference against
unrounded float64: an error of a few 2^-9, which must be there.
"""

from __future__ import annotations

HEARD, HEARD_OTHER_SIDE, HEARD_UNIT = 1e-5, 0.02, 2**-7
HEARD_ROUNDED, HEARD_ROUNDED_RMS = (1e-4, 0.02), 2**-8

STAGE = {("cpu", "fp32"): 1e-5, ("cpu", "bf16"): 1e-5, ("cpu", "fp16"): 1e-5, ("cpu", "int8"): 1e-5}
TRACE_MAX = {
    ("cpu", "fp32"): 2e-5, ("cpu", "bf16"): 5e-2, ("cpu", "fp16"): 2e-5, ("cpu", "int8"): 1.5e-1,
    ("triton", "fp32"): 6e-6, ("triton", "bf16"): 2.5e-2, ("triton", "fp16"): 8e-3,
    ("cuda", "fp32"): 6e-6, ("cuda", "bf16"): 2.5e-2, ("cuda", "fp16"): 8e-3, ("cuda", "int8"): 1.5e-1,
}  # fmt: skip
TRACE_RMS = {
    ("cpu", "fp32"): 3e-6, ("cpu", "bf16"): 6e-3, ("cpu", "fp16"): 3e-6, ("cpu", "int8"): 2e-2,
    ("triton", "fp32"): 1e-6, ("triton", "bf16"): 1e-3, ("triton", "fp16"): 4e-4,
    ("cuda", "fp32"): 1e-6, ("cuda", "bf16"): 1e-3, ("cuda", "fp16"): 4e-4, ("cuda", "int8"): 2e-2,
}  # fmt: skip


def of_depth(layers: int) -> float:
    """How much more than the GPU backends' `TRACE_MAX` and `TRACE_RMS` a network of so many layers is allowed."""
    return max(1.0, layers / 4) ** 0.5


UNIFORM = 1e-5
MISMATCHES = {"fp32": 1 / 1000, "bf16": 1 / 20, "fp16": 1 / 1000}

# The polynomials of csrc/math.inl: absolute for the gate, relative for the exponential. The documented bounds.
GATE = 3e-7
EXPONENTIAL = 1.5e-7

# A continuous draw from the same logits: fp32 logarithms and exponentials of two libraries.
VALUE = 2e-6

# The executor's approximate functions (ex2, lg2, sin …): libm in single precision, a few units in the last place.
EMULATED_FUNCTION = 1e-6
# Sums of 64 to 136 products of unit variance in fp32, in another order than float64's; in fp16 the sum itself is
# rounded (2^-11 of up to 32) once per 16 products.
EMULATED_DOT = {"c16": 1e-4, "cbf": 1e-4, "ctf": 1e-4, "chalf": 8 * 2**-6}

# One residual block against its reference in the same number format, relative to the output's standard deviation:
# (largest, root mean square). fp32: the order of sums and the gate's polynomials. In 16 bit a gate near a rounding
# boundary may fall on the other side, one unit of its format times one weight.
BLOCK = {"fp32": (1e-5, 1e-6), "fp16": (2e-3, 2e-4), "bf16": (1.5e-2, 1.5e-3)}

# A draw through nv-wavenet's interface against a float64 network that has heard the same: how far its uniform may lie
# outside the chosen class's part of the distribution. Over 18 streams of 60 samples: 0 in fp32, where sums in another
# order move an edge by some 1e-6; 2.1e-4 in fp16, 1.1e-2 in bf16 and 1.7e-2 in int8, where operands are rounded.
NV_WAVENET = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 4e-2, "int8": 6e-2}
