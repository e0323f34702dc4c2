"""`decode`: draws → sound, where the history that was heard instead of them is known; as at the end of `generate`."""

import triton
import triton.language as tl

from .stages import clipped, sound_of


@triton.jit(do_not_specialize=["batch", "steps", "stride"])
def decode(
    # draws, heard → audio, (B, stride) fp32, of each stream counts (B,) int32; filters (B,) fp32, changed in place.
    # sound (classes,): class → linear sound
    draws, heard, audio, filters, counts, sound, batch, steps, stride, preemphasis, gain, mu,
    DRAWS_CLASSES: tl.constexpr, HEARD_CLASSES: tl.constexpr, COMPANDED: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """DRAWS_CLASSES, HEARD_CLASSES: whether these are classes or values in the model's domain."""
    b = tl.program_id(0) * N + tl.arange(0, N)
    valid = b < batch
    row = b.to(tl.int64) * stride
    count = tl.load(counts + b, mask=valid, other=0)
    memory = tl.load(filters + b, mask=valid, other=0.0)
    for i in range(steps):
        active = i < count
        drawn = tl.load(draws + row + i, mask=active, other=0.0)
        past = tl.load(heard + row + i, mask=active, other=0.0)
        emphasised = sound_of(drawn, sound, memory, active, preemphasis, mu, DRAWS_CLASSES, COMPANDED)
        tl.store(audio + row + i, clipped(emphasised / gain), mask=active)
        emphasised = sound_of(past, sound, memory, active, preemphasis, mu, HEARD_CLASSES, COMPANDED)
        memory = tl.where(active, emphasised, memory)
    tl.debug_barrier()  # several threads have read a stream's filter, and one of them writes it
    tl.store(filters + b, memory, mask=valid)
