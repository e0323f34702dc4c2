"""The dependent chain of one sample: what must follow what, in `resident` and in nv-wavenet's persistent kernel.

    python benchmarks/gpu_chain.py --json benchmarks/results/cuda-chain.json

Nothing is compiled, executed or measured here. Both chains are read off the sources: each part says which operations
follow each other and how often the part is passed; what runs beside the chain is not in it. The counts of `resident`
follow from the planner's layout; tests/test_gpu_chain.py holds them to what the executed PTX counts. Those of
nv-wavenet are facts about the published source (github.com/NVIDIA/nv-wavenet: nv_wavenet_persistent.cuh,
matrix_math.cuh, softmax.cuh).

The estimate multiplies the counts with latencies that others have measured. Operations for which no published figure
was at hand are counted and left out of it, on both sides, so that a GPU is to be expected to take longer. Beside it
stands what the planner's `budget` has of the same parts from a GPU.
"""

from __future__ import annotations

import argparse
import json
from math import ceil
from pathlib import Path
from typing import Any

from chain_parts import (
    BARRIER,
    CONVERT,
    EXCHANGE,
    FP32,
    HALF2,
    L2,
    LATENCIES,
    LEFT_OUT,
    POLLED,
    PRODUCT,
    QUEUED,
    SHARED,
    SPECIAL,
    WEIGHTS,
    WORDS,
    Operations,
    Part,
    clocks,
    followed,
    total,
)
from wavenet_fast.kernels.cuda.budget import HEAD_CYCLES, HOP_CYCLES, LAYER_CYCLES
from wavenet_fast.kernels.cuda.devices import DEVICES
from wavenet_fast.kernels.cuda.layout import MOST_AHEAD, Layout
from wavenet_fast.kernels.cuda.plan import plan
from wavenet_fast.kernels.cuda.shapes import PANEL, Shape, steps

from wavenet_fast.cases import case

DEVICE = "H100"
CASES = ("voice", "nv-medium")
"""Of those that nv-wavenet's persistent kernel could hold; it knows kernel size 2 and no other."""
LANES = 32
MOST_OLDER = 8
"""Channels that a lane embeds of older inputs before the draw: `kMostOlder` of head.cuh."""

# --- resident -----------------------------------------------------------------------------------------------------

# tanh(a)·σ(b), of math.cuh, both beside each other: bound, factor, 2^x, 1 + e, product, reciprocal, product.
GATE = {FP32: 5, SPECIAL: 2, CONVERT: 1}
HOP = {WORDS: 1, SHARED: 1, EXCHANGE: 1}
"""Words are stored; each lane looks at its own, and the look ends with a vote of the warp."""


def by_turns(inputs: int, dtype: str, panels: int) -> dict[str, float]:
    """Products of so many panels, one after the other: step s goes onto sum s mod 4, and the sums are added up."""
    count = steps(inputs, dtype)
    sums = 4 if count >= 4 else 2 if count >= 2 else 1
    return {
        PRODUCT: panels * ceil(count / sums), QUEUED: panels * (sums - 1), FP32: panels * (sums.bit_length() - 1),
    }  # fmt: skip


def gates_part(layout: Layout) -> Operations:
    """The chain role, from x in shared memory, which all residual warps have put there, to gates there. A warp's panels
    count one after the other; the newest tap's weights are in registers, or come from shared memory beside x."""
    s, panels = layout.shape, ceil(layout.panels[0] / layout.chain)
    return followed({BARRIER: 1, SHARED: 1}, by_turns(s.R, layout.dtype, panels), GATE)


def residual_part(layout: Layout) -> Operations:
    """The residual role, from gates, which all chain warps have put there, to the next x in its registers."""
    s, panels = layout.shape, ceil(layout.panels[1] / layout.residual)
    return followed({BARRIER: 1, SHARED: 1, FP32: int(s.SCALED)}, by_turns(s.HALF, layout.dtype, panels))


PUT: Operations = {CONVERT: 1}
"""A number becomes an operand in shared memory; the barrier behind it is the reader's."""


def skip_part(layout: Layout) -> Operations:
    """The skip role with one layer; on the chain for the last layer only."""
    s, panels = layout.shape, ceil(layout.panels[2] / layout.skip)
    return followed({BARRIER: 1, SHARED: 1}, by_turns(s.HALF, layout.dtype, panels))


def past_part(layout: Layout, own: int) -> Operations:
    """The chain role before x arrives: conditioning, and older taps of all layers of a block. Not on the chain of one
    tile."""
    s, panels = layout.shape, ceil(layout.panels[0] / layout.chain)
    per_tap = panels * steps(s.R, layout.dtype)
    taps = own * (s.K - 1)
    weights = taps * layout.panels[0] * steps(s.R, layout.dtype)
    return {SHARED: taps, WEIGHTS: weights, PRODUCT: taps * per_tap, L2: 1, BARRIER: 2}


def head_parts(layout: Layout) -> list[Part]:
    """From the sum of all skips to the next sample's x on its way to the first block; a categorical head, classes as
    input. By all warps of the last block; each draws for its own streams, one after the other."""
    s, warps, dtype = layout.shape, layout.threads // LANES, layout.dtype
    own, scan = ceil(s.CLASSES / LANES), 5  # classes of a lane; log2 of the lanes
    streams = ceil(layout.tile / warps)
    assert streams * ceil(s.R / LANES) <= MOST_OLDER, "older inputs would be embedded on the chain"
    # Registers of a head alone hold the first matrix where it is small, and of the second so many steps of each panel;
    # the others' fragments are read.
    held_steps = min(steps(s.H, dtype), MOST_AHEAD // ceil(s.A / PANEL / warps) // 4 * 4) if layout.head_alone else 0
    read_of_hidden = 0 if layout.hidden_in_registers(layout.head_alone) else layout.head_fragments[0]
    read_of_out = layout.head_fragments[1] - s.A // PANEL * held_steps
    hidden, outputs = (by_turns(n, dtype, ceil(m / PANEL / warps)) for n, m in ((s.S, s.H), (s.H, s.A)))
    # The largest of a lane's logits, four by turns, and of all; weights and their prefix sums; the sums of the lanes
    # below, and the bound; what is below it compared and counted, four by turns.
    by_four = ceil(own / 4) + 2
    draw = {SHARED: 1, FP32: by_four + 2 + own + scan + 1 + 2 + by_four, SPECIAL: 1, EXCHANGE: scan + 4}
    table = {SHARED: 1} if layout.input_shared else {L2: 1}  # older inputs are in already
    embed = followed(table, {FP32: 1 + 5 * s.TANH, SPECIAL: 2 * s.TANH, CONVERT: 2})
    return [
        Part("skip sums become operands", 1, {FP32: 2, CONVERT: 1}),
        Part("hidden", 1, followed({BARRIER: 1, SHARED: 1, WEIGHTS: read_of_hidden}, hidden, {FP32: 1, CONVERT: 1})),
        Part("outputs", 1, followed({BARRIER: 1, SHARED: 1, WEIGHTS: read_of_out}, outputs, {BARRIER: 1})),
        Part("draw", streams, draw),
        Part("the next input", streams, embed),
    ]  # fmt: skip


def resident_chain(layout: Layout) -> list[Part]:
    """Of one sample of one tile, where blocks are a cluster and weights are in 16 bit."""
    s, owners = layout.shape, sum(own > 0 for own in layout.own)
    inside = s.LAYERS - owners  # layers whose x stays in its block
    return [
        Part("newest tap and gate", s.LAYERS, gates_part(layout)),
        Part("residual", s.LAYERS - 1, residual_part(layout)),
        Part("its place has been read by the skip warps", sum(max(own - layout.places, 0) for own in layout.own),
             {BARRIER: 1}),
        Part("x to the next layer of the block", inside, PUT),
        Part("x to the next block", owners - 1, followed(HOP, PUT)),
        Part("skip product of the last layer", 1, skip_part(layout)),
        Part("skip sums to the head", 1, HOP),
        *head_parts(layout),
        Part("x to the first block", 1, followed(HOP, PUT)),
    ]  # fmt: skip


def block_work(layout: Layout) -> dict[str, Operations]:
    """What a block does for one sample of one tile, one thing after the other: with most layers, and with the head. As
    many tiles as this goes into the chain are made in the time of one."""
    own = max(layout.own)
    layers = total([
        Part("past", 1, past_part(layout, own)), Part("x arrives", 1, followed(HOP, PUT)),
        Part("newest", own, gates_part(layout)), Part("residual", own, residual_part(layout)),
        Part("inside", own - 1, PUT), Part("places", max(own - layout.places, 0), {BARRIER: 1}),
        Part("skips of the last layer", 1, skip_part(layout)), Part("end", 1, {BARRIER: 1}),
    ])  # fmt: skip
    head = total([Part("skips arrive", 1, HOP), *head_parts(layout), Part("end", 1, {BARRIER: 1})])
    return {"with most layers": layers, "with the head": head}


PLANNED = "nv-medium"
"""The case whose parts `budget` has from a GPU."""


def beside_a_gpu(parts: list[Part]) -> dict[str, Any]:
    """What a layer inside a block, a hop and the head take: by the estimate, and as the planner has it from a GPU."""
    by_name = {part.name: part.operations for part in parts}
    hop = by_name["x to the next block"]
    names = [part.name for part in parts]
    head = [p for p in parts[names.index("skip sums to the head") + 1 :] if p.name != "x to the first block"]
    layer = followed(*(by_name[n] for n in ("newest tap and gate", "residual", "x to the next layer of the block")))
    rows = {
        "a layer, x to x": (layer, LAYER_CYCLES), "a hop to the next block": (hop, HOP_CYCLES["cluster"]),
        "the head, from all skip sums to the next x": (total(head), HEAD_CYCLES),
    }  # fmt: skip
    return {
        name: {"estimate": [round(c) for c in clocks(operations)], "on a GPU": cycles}
        for name, (operations, cycles) in rows.items()
    }


# --- nv-wavenet ---------------------------------------------------------------------------------------------------


def nv_wavenet_chain(s: Shape, half: bool) -> list[Part]:
    """Of one sample of one stream in the persistent kernel: one block a layer for x (and one each for the previous tap
    and the skips), thread r of which adds up row r over all inputs, in two sums by turns; weights in registers. In fp16
    (`half`) two inputs at a time in half2, added up in half precision."""
    R, S, A = s.R, s.S, s.H
    math = HALF2 if half else FP32

    def row(inputs: int) -> dict[str, float]:
        """One row of a product: the longer of both sums, and bringing the partial sums together."""
        return {math: inputs / 4 + 2} if half else {math: inputs / 2 + 1}

    poll_and_share: Operations = {POLLED: 1, SHARED: 1, BARRIER: 1}
    return [
        # x is polled and shared; row; previous tap, bias, conditioning; tanh beside σ through shared memory.
        Part("x from the block before, newest tap, tanh and σ", s.LAYERS, followed(
            poll_and_share, row(R), {math: 3}, {FP32: 2, SPECIAL: 2, SHARED: 1, BARRIER: 1, CONVERT: 2 * half},
        )),
        Part("their product, residual", s.LAYERS - 1, followed({math: 1, SHARED: 1, BARRIER: 1}, row(R), {math: 2})),
        Part("gates of the last layer to its skip block", 1, followed({math: 1}, poll_and_share, row(R), {math: 3})),
        Part("hidden layer, inputs in S/R blocks", 1, followed(poll_and_share, row(R), {math: 3})),
        Part("sums of these from block to block", S / R - 1, {POLLED: 1, math: 2}),
        Part("outputs, inputs in A/R blocks", 1, followed(poll_and_share, row(R), {math: 2})),
        Part("sums of these from block to block", A / R - 1, {POLLED: 1, math: 2}),
        # The largest of a thread's rows, of its warp, of all; weights and their sum; the class by a scan over warps,
        # threads, rows: on average half of 32 threads.
        Part("softmax and choice", 1, {
            POLLED: 1, SHARED: 6, BARRIER: 6, FP32: A / (2 * R) + 5 + R / 16 + 3 + A / (2 * R) + 5 + R / 16 + 1
            + R / 16 + 16 + A / (2 * R), SPECIAL: 1, EXCHANGE: 10,
        }),
        Part("the next sample begins: a lock that all blocks poll", 1, {POLLED: 1, BARRIER: 2}),
        # The first layer's block loads the class, then its rows, and polls what it wrote itself.
        Part("embedding", 1, followed({L2: 3, FP32: 2, SPECIAL: 2}, {math: 1})),
    ]  # fmt: skip


# --- what is told -------------------------------------------------------------------------------------------------


def layout_of(shape: str, dtype: str = "bf16", streams: int = 1) -> Layout:
    s = Shape.of(case(shape), dtype)
    return plan(s, streams, dtype, DEVICES[DEVICE], variant="resident").layout(s)


def told(parts: list[Part]) -> dict[str, Any]:
    operations = total(parts)
    low, high = clocks(operations)
    return {
        "parts": [{"name": p.name, "times": p.times, "operations": dict(p.operations)} for p in parts],
        "operations": operations, "clocks": [round(low), round(high)],
        "without_a_latency": {name: operations[name] for name in LEFT_OUT if name in operations},
    }  # fmt: skip


def results() -> dict[str, Any]:
    found: dict[str, Any] = {
        "device": DEVICE,
        "latencies": {name: {"clocks": [low, high], "source": why} for name, (low, high, why) in LATENCIES.items()},
        "left_out": list(LEFT_OUT), "cases": {},
    }  # fmt: skip
    for shape in CASES:
        layout = layout_of(shape)
        if not layout.cluster:
            raise SystemExit(f"{shape} is not planned on a cluster; its chain is not described here")
        row: dict[str, Any] = {
            "blocks": layout.blocks,
            "own": list(layout.own),
            "resident": told(resident_chain(layout)),
        }
        row["blocks_work"] = {
            name: {"operations": dict(work), "clocks": [round(c) for c in clocks(work)]}
            for name, work in block_work(layout).items()
        }
        if shape == PLANNED:
            row["beside_a_gpu"] = beside_a_gpu(resident_chain(layout))
        if layout.shape.K == 2:
            for name, half in (("nv-wavenet, fp32", False), ("nv-wavenet, fp16", True)):
                row[name] = told(nv_wavenet_chain(layout.shape, half))
        found["cases"][shape] = row
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", type=Path, help="where the counts go")
    args = parser.parse_args()
    found = results()
    if args.json:
        args.json.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for shape, row in found["cases"].items():
        for name in ("resident", "nv-wavenet, fp32", "nv-wavenet, fp16"):
            if name in row:
                print(shape, name, row[name]["clocks"], row[name]["operations"])
        print(shape, {name: work["clocks"] for name, work in row["blocks_work"].items()})


if __name__ == "__main__":
    main()
