"""How a kernel is cut for a GPU: streams a program, threads, and how much of a matrix is held at a time.

No bit of any result depends on what is chosen here (see stages.py). Nothing here was timed: no GPU was at hand. Each
number follows from what can be counted without one, and `gpu_check.py` records what comes of it: registers, spills,
shared memory, instructions.
"""

from __future__ import annotations

from dataclasses import dataclass

from .shapes import MIN_CHANNELS, BlockShape, Shape

SHARED_KIB = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227, 110: 227, 120: 99, 121: 99}
"""Shared memory that one block may use, by compute capability ·10 (CUDA C++ Programming Guide, "Technical
Specifications per Compute Capability")."""

ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Options:
    """Of one launch. `tile`: rows of activations a program works on, streams or samples. `warps` of 32 threads.
    `stages`: 2 copies the next block of weights to shared memory while this one is used, 1 does not."""

    tile: int
    warps: int
    stages: int
    block_r: int = MIN_CHANNELS
    block_gate: int = MIN_CHANNELS
    block_s: int = MIN_CHANNELS
    block_hidden: int = MIN_CHANNELS


def shared_limit(capability: int) -> int:
    """Bytes of shared memory a block may use; of the nearest older capability where one is not in the table."""
    return SHARED_KIB[max((c for c in SHARED_KIB if c <= capability), default=80)] * 1024


def for_generate(shape: Shape, dtype: str, capability: int) -> Options:
    """16 streams a program, the fewest rows that `tl.dot` has tensor cores for: with 32 the compiler spills registers
    of several shapes. 8 warps: with 4 the draw and the panels of weights do not fit 255 registers a thread."""
    gate, stages = _block_gate(shape.block, dtype, capability)
    hidden = _block_hidden(shape, dtype, capability)
    r, s = _inputs(shape.R, dtype, capability), _inputs(shape.S, dtype, capability)
    return Options(16, 8, stages, r, gate, s, hidden)


def for_residual_block(shape: BlockShape, dtype: str, capability: int) -> Options:
    """16 samples a program: utterances are long enough to fill a GPU with such programs, and N = 16 keeps what a thread
    holds as small as in `generate`."""
    gate, stages = _block_gate(shape, dtype, capability)
    return Options(16, 8, stages, _inputs(shape.R, dtype, capability), gate)


def for_sample() -> Options:
    return Options(16, 8, 1)


def for_embed() -> Options:
    return Options(16, 4, 1)


def for_decode() -> Options:
    """One warp: there is a chain of a few steps per sample, and nothing else."""
    return Options(16, 1, 1)


def for_dense() -> Options:
    """Tiles of 16 × 64 outputs over 32 inputs at a time."""
    return Options(16, 4, 1)


def _inputs(channels: int, dtype: str, capability: int) -> int:
    """Inputs that a product takes at a time. In 16 bit all, from registers. In fp32 a thread holds whole rows and
    columns of a product's operands: more than 64 inputs, 32 on sm_80, would spill."""
    return min(channels, 32 if capability < 86 else 64) if dtype == "fp32" else channels


def _panel(shape: BlockShape, gates: int) -> int:
    """Elements of all matrices of a layer that belong to so many gates."""
    return gates * (2 * shape.K * shape.R + shape.R + shape.S)


def _block_gate(shape: BlockShape, dtype: str, capability: int) -> tuple[int, int]:
    """(gates worked on at a time, stages).

    In 16 bit as many as leave room in shared memory for one copy of their weights, for the taps' operands and for 16
    KiB of what the compiler moves between layouts, and at most 8192 weights of a tap, 4096 on sm_80, which spills
    beyond. In fp32 a thread's registers hold the operands of 16 gates, and nothing is copied ahead."""
    if dtype == "fp32":
        return MIN_CHANNELS, 1
    size = ELEMENT_BYTES[dtype]
    room = shared_limit(capability) - 16 * 1024 - 16 * shape.K * shape.R * size
    gates = shape.HALF
    most = 4096 if capability < 86 else 8192
    while gates > MIN_CHANNELS and (_panel(shape, gates) * size > room or shape.R * gates > most):
        gates //= 2
    return gates, 2 if _panel(shape, gates) * size <= room else 1


def _block_hidden(shape: Shape, dtype: str, capability: int) -> int:
    """Hidden channels of the head at a time. In 16 bit as many as have 32768 weights of its second matrix where the
    compiler had registers for them, half or a quarter of that on older and on small GPUs. In fp32 32, 16 on sm_80
    and where there are fewer than 64."""
    if dtype == "fp32":
        return MIN_CHANNELS if capability < 86 or shape.H < 64 else 32
    elements = 8192 if shared_limit(capability) < 128 * 1024 else 32768 if capability >= 90 else 16384
    return max(MIN_CHANNELS, min(shape.H, elements // max(shape.BLOCK_CLASSES, shape.S)))
