"""A `plan.Plan` as the layout of a kernel."""

from __future__ import annotations

from .layout import Layout
from .plan import Plan
from .shapes import Shape


def layout_of(plan: Plan, shape: Shape) -> Layout:
    if plan.variant == "streaming_weights":
        stages = max(n for n in (2, 4, 8) if n <= plan.stages)
        return Layout(shape, plan.dtype, plan.variant, plan.tile, plan.chain_warps, plan.skip_warps, stages=stages)
    return Layout(
        shape, plan.dtype, plan.variant, plan.tile, plan.chain_warps, plan.skip_warps, plan.tiles_in_flight,
        (*plan.first_layers, shape.LAYERS), cluster=plan.hop != "grid" and plan.capability >= 90,
        newest_in_registers=plan.homes["newest"] == "registers",
        residual_in_registers=plan.homes["residual"] == "registers", head_in_l2=plan.homes["head"] == "l2",
    )  # fmt: skip
