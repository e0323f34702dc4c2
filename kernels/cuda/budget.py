"""The planner's limits and thresholds, each with its reason. What a choice takes, in bytes and in registers of weights,
`layout.Layout` says."""

from __future__ import annotations

from .layout import Layout
from .shapes import PANEL, Shape

TILES = (8, 16, 32)
"""Streams of a tile: 8 are one product instruction wide, and one stream costs what eight cost."""

WARPS = ((8, 4, 4), (8, 2, 2), (4, 2, 2))
"""Warps of a block of `resident` for gates, residual and skip at most: as many as are useful, then fewer with more
registers each: up to 128, 168 and 255. An nv-medium layer has 8 panels of gates and 4 of `residual`: one for each warp;
more warps would only wait longer for each other and read the same operands once more."""
STREAMING_WARPS = ((8, 4), (4, 4))
"""The same of `streaming_weights`, for gates and residual, and for skip."""

MOST_UNROLLED_LAYERS = 4
"""Layers of a block whose weights may live in registers: registers have no index, so each layer is its own code."""
MOST_LAYERS = 8
"""Layers of a block in any case, since what is summed up before x arrives lies in registers too. 20 layers of nv-small
are 450 KB of machine code, which a multiprocessor would fetch anew for every sample; 10 are 117 KB."""
BASE_REGISTERS = {8: 64, 16: 120, 32: 176}
"""By tile: registers of a thread for addresses, loops, operands and what is on its way, beside weights and what it
keeps from layer to layer. Like the next from kernels of the named cases, compiled by NVRTC 13.5: so many that those
which spilled are refused. ptxas follows no formula, so the tests compile what leaves fewest over."""
FEWER_FOR_ONE_PANEL = 20, 8
"""Fewer of them for gates and for x, where a warp has one panel of theirs, so that it makes no products side by side:
with tiles of 8 in 16 bit, and the head in a block of its own."""
STREAMING_REGISTERS = {8: 94, 16: 120, 32: 150}
"""The same of `streaming_weights`, which keeps nothing for several layers."""
MORE_IN_INT8 = {8: 24, 16: 24, 32: 16}
"""More of them in int8, whose products have whole numbers for sums besides."""
MORE_IN_TEAMS = {8: 29, 16: 46, 32: 60}
"""More of them where a team's blocks exchange gates and x."""
MORE_IN_FP32 = {1: -12, 2: 0, 4: 0, 8: 32, 16: 20, 32: 0}
"""By the streams of a tile that may be taken: in fp32, where a lane has four parts of sums for each of them, eight at a
time, and reads only their operands."""
STREAMING_IN_FP32 = {1: -12, 2: -12, 4: 0, 8: 28, 16: 60, 32: 128}
"""The same of `streaming_weights`, where weights come by once, and there are parts of sums for all: too many of 32.
They would gain nothing, since 16 streams are multiplied for as long as weights take to arrive."""

STAGES = (16, 8, 4, 2)
"""Fragments of a warp's ring, most first: powers of two, since slots are counted with a mask. 16 fragments, 8 KiB a
warp, are on their way for longer than L2 takes to answer."""

SHARED_PER_CYCLE = 128
"""Bytes that the warps of a multiprocessor read from shared memory in a clock cycle: 32 banks of 4."""
L2_PER_CYCLE = 32
"""Bytes that a multiprocessor reads from L2 in a clock cycle: what one block of `streaming_weights` reached on an H200
with the weights of nv-medium in bf16."""
L2_CYCLES = 700
"""Clock cycles until the first of them is there."""
L2_OF_CHIP = 5120
"""And all multiprocessors together: what NVIDIA states for A100 (white paper), taken for every device."""
HOP_CYCLES = {"none": 0, "cluster": 480, "grid": 1600}
"""Clock cycles from a block's last product to the next block's first, as on an H200: nv-medium on a cluster, r9y9-mol
on a grid, both in bf16."""
LAYER_CYCLES = 580
"""Clock cycles from one layer's x to the next within a block, as measured there for nv-medium, whose weights lie in
registers: two products, a gate, two barriers. Weights read from shared memory come on top."""
HEAD_CYCLES = 3700
"""And from all skip sums to the next x."""
BUSY_CYCLES_OF_LAYER, BUSY_CYCLES_OF_HEAD = 1450, 2500
"""Clock cycles that a block has to do with a tile of eight streams for each layer, and for the head, beside reading
weights: what is left of 5,800 and 4,000 as measured there for three layers of nv-medium and its head."""


def warps(shape: Shape, team: int = 1) -> list[tuple[int, int, int]]:
    """For gates, residual and skip of a block of `resident`, in order of preference: at most one for each panel of its
    share."""
    panels = shape.HALF // 8, shape.R // PANEL if shape.LAYERS > 1 else 1, shape.S // PANEL
    counts = ((_at_most(limit, n, team) for limit, n in zip(most, panels, strict=True)) for most in WARPS)
    return list(dict.fromkeys((chain, residual, skip) for chain, residual, skip in counts))


def streaming_warps(shape: Shape) -> list[tuple[int, int]]:
    """For gates and residual, and for skip."""
    residual = shape.R // PANEL if shape.LAYERS > 1 else 0
    chain, skip = max(shape.HALF // 8, residual), shape.S // PANEL
    return list(dict.fromkeys((min(most, chain), min(few, skip)) for most, few in STREAMING_WARPS))


def most_of_a_team(shape: Shape) -> int:
    """Blocks beyond which no block's share gets smaller."""
    return max(shape.HALF // 8, shape.R // PANEL, shape.S // PANEL)


def registers(layout: Layout, own: int, alone: bool = False) -> int:
    """Registers that a thread needs in blocks of so many layers, where the head is `alone` in its block or not: all
    threads of a launch get the same number. Where the device gives more, the compiler takes more; where it gives fewer,
    threads would spill to memory."""
    eights, (dilated, residual, skip) = layout.tile // 8, layout.panels
    of_panel = 4 * eights  # a panel's sums
    base = (BASE_REGISTERS if layout.resident else STREAMING_REGISTERS)[layout.tile]
    base += MORE_IN_INT8[layout.tile] if layout.dtype == "int8" else 0
    base += MORE_IN_TEAMS[layout.tile] if layout.team > 1 else 0
    base += (MORE_IN_FP32 if layout.resident else STREAMING_IN_FP32)[layout.taken] if layout.dtype == "fp32" else 0
    if not layout.resident:
        skips = of_panel * (_share(skip, layout.skip) if layout.skip_in_registers else 1)
        x = of_panel * (_share(residual, layout.chain) if layout.x_in_registers else 1)
        return base + max(of_panel + x, skips)
    newest, added = layout.weight_registers(own)
    gates = own * _share(dilated, layout.chain) * of_panel + newest
    x = _share(residual, layout.residual) * (of_panel + 2) + added
    if alone and may_take_fewer(layout):
        gates -= FEWER_FOR_ONE_PANEL[0] * (_share(dilated, layout.chain) == 1)
        x -= FEWER_FOR_ONE_PANEL[1] * (_share(residual, layout.residual) == 1)
    head = 4 * layout.hidden_fragments if layout.hidden_in_registers(True) else 0
    return base + max(gates, x, of_panel * _share(skip, layout.skip), head)


def may_take_fewer(layout: Layout) -> bool:
    """Whether `FEWER_FOR_ONE_PANEL` may count for it."""
    return layout.tile == 8 and layout.team == 1 and layout.dtype in ("bf16", "fp16")


def _at_most(limit: int, panels: int, team: int) -> int:
    return min(limit, _share(panels, team))


def _share(panels: int, workers: int) -> int:
    """Of the worker who has most."""
    return -(-panels // workers)
