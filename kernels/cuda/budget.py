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
BASE_REGISTERS = {8: 64, 16: 112, 32: 170}
"""By tile: registers of a thread for addresses, loops, operands and what is on its way, beside weights and what it
keeps from layer to layer. Like the next from kernels of the named cases, compiled by NVRTC 13.5: so many that those
which spilled are refused. ptxas follows no formula, so the tests compile what leaves fewest over."""
STREAMING_REGISTERS = {8: 94, 16: 120, 32: 150}
"""The same of `streaming_weights`, which keeps nothing for several layers."""
MORE_IN_INT8 = {8: 24, 16: 16, 32: 16}
"""More of them in int8, whose products have whole numbers for sums besides."""
MORE_IN_TEAMS = {8: 4, 16: 46, 32: 60}
"""More of them where a team's blocks exchange gates and x."""
MORE_IN_FP32 = {8: 60, 16: 60, 32: 60}
"""More of them in fp32, where each lane reads rows and columns of its own."""

STAGES = (16, 8, 4, 2)
"""Fragments of a warp's ring, most first: powers of two, since slots are counted with a mask. 16 fragments, 8 KiB a
warp, are on their way for longer than L2 takes to answer."""

SHARED_PER_CYCLE = 128
"""Bytes that the warps of a multiprocessor read from shared memory in a clock cycle: 32 banks of 4."""
L2_PER_CYCLE = 32
"""Bytes that a multiprocessor reads from L2 in a clock cycle, at most: an estimate, not measured here."""
L2_OF_CHIP = 5120
"""And all multiprocessors together: what NVIDIA states for A100 (white paper), taken for every device."""
HOP_CYCLES = {"none": 0, "cluster": 450, "grid": 1600}
"""Clock cycles from a block's last write to the next block's first read. Estimates of round trips, not measured here:
data, then a flag, then a poll that sees it; about 180 cycles each to another block of the cluster, about 270 to L2
(latencies of H100: Luo et al., arXiv 2402.13499), and as much again in the grid to fetch the data."""

LAYER_CYCLES = 600
"""Clock cycles of a layer that all ways have in common: two products, a gate, two barriers. An estimate."""


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


def registers(layout: Layout, own: int) -> int:
    """Registers that a thread needs in blocks of so many layers: all threads of a launch get the same number. Where the
    device gives more, the compiler takes more; where it gives fewer, threads would spill to memory."""
    eights, (dilated, residual, skip) = layout.tile // 8, layout.panels
    of_panel = 4 * eights  # a panel's sums
    base = (BASE_REGISTERS if layout.resident else STREAMING_REGISTERS)[layout.tile]
    base += MORE_IN_INT8[layout.tile] if layout.dtype == "int8" else 0
    base += MORE_IN_TEAMS[layout.tile] if layout.team > 1 else 0
    base += MORE_IN_FP32[layout.tile] if layout.dtype == "fp32" else 0
    if not layout.resident:
        skips = of_panel * (_share(skip, layout.skip) if layout.skip_in_registers else 1)
        x = of_panel * (_share(residual, layout.chain) if layout.x_in_registers else 1)
        return base + max(of_panel + x, skips)
    newest, added = layout.weight_registers(own)
    gates = own * _share(dilated, layout.chain) * of_panel + newest
    x = _share(residual, layout.residual) * (of_panel + 2) + added
    return base + max(gates, x, of_panel * _share(skip, layout.skip))


def _at_most(limit: int, panels: int, team: int) -> int:
    return min(limit, _share(panels, team))


def _share(panels: int, workers: int) -> int:
    """Of the worker who has most."""
    return -(-panels // workers)
