"""The planner of the CUDA kernels: every plan fits the device that it is for, and says why it is as it is."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wavenet_fast.kernels.cuda import budget
from wavenet_fast.kernels.cuda.compile import compile_kernel, why_not_kernels
from wavenet_fast.kernels.cuda.cut import cut
from wavenet_fast.kernels.cuda.device import Kernel
from wavenet_fast.kernels.cuda.devices import DEVICES, DeviceProperties, properties_of
from wavenet_fast.kernels.cuda.emulated_device import EmulatedDevice
from wavenet_fast.kernels.cuda.layout import Layout
from wavenet_fast.kernels.cuda.model import Extras, Model
from wavenet_fast.kernels.cuda.occupancy import occupancy
from wavenet_fast.kernels.cuda.plan import Plan, as_dict, explain, plan
from wavenet_fast.kernels.cuda.shapes import Shape, padded

from wavenet_fast.cases import CASES, random_weights
from wavenet_fast.errors import BackendError, InputError

DTYPES = ("fp32", "bf16", "fp16", "int8")
BATCHES = (1, 9, 100, 5000)
VARIANTS = ("auto", "resident", "streaming_weights")
BARRIERS = 13
"""Named barriers of a block: of all warps, and those that head.cuh numbers."""

SHAPES = {(name, dtype): Shape.of(config, dtype) for name, config in CASES.items() for dtype in DTYPES}


def of(name: str, batch: int, dtype: str, device: str, **asked: object) -> Plan:
    return plan(SHAPES[name, dtype], batch, dtype, DEVICES[device], **asked)  # type: ignore[arg-type]


def tape(rows: int, inputs: int, dtype: str) -> int:
    return rows * inputs * {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}[dtype]


def largest_share(rows: int, unit: int, team: int) -> int:
    return -(-rows // unit // team) * unit


def check(p: Plan, s: Shape, device: DeviceProperties, clusters: dict[int, int] | None = None) -> None:
    """What must hold of any plan, counted anew from the plan's own numbers."""
    assert p.shared_bytes <= device.shared_per_block
    assert p.registers <= p.register_limit <= 255 and p.weight_registers <= p.registers - 44
    assert occupancy(device, p.threads, p.register_limit, p.shared_bytes, BARRIERS).blocks >= 1

    # What the kernel is told is what was planned.
    layout = p.layout(s)
    assert (layout.shared, layout.threads, layout.blocks) == (p.shared_bytes, p.threads, p.blocks)
    if layout.resident:
        parts = [layout.block_parts(len(p.layers_of(team)), team + 1 == p.teams) for team in range(p.teams)]
        assert parts == list(p.shared)
        assert layout.cluster == (p.hop != "grid" and device.capability >= 90)
        assert max(layout.weight_registers(max(layout.own))) == p.weight_registers

    # Layers in order, each once; no team without work; the head once, at the end.
    assert [layer for team in range(p.teams) for layer in p.layers_of(team)] == list(range(s.LAYERS))
    assert len(p.first_layers) == len(p.shared) == p.teams and p.head_block == p.blocks - 1
    assert all(p.layers_of(team) for team in range(p.teams - 1))
    assert p.blocks == (p.teams if p.team == 1 else (p.teams - 1) * p.team + 1)
    if p.team > 1:
        assert p.hop == "grid" and not p.layers_of(p.teams - 1)

    # Every weight has a home, and the bytes of the homes add up.
    gates = largest_share(2 * s.HALF, 16, p.team)
    newest, residual = tape(gates, s.R, p.dtype), tape(largest_share(s.R, 16, p.team), s.HALF, p.dtype)
    layer = (s.K - 1) * newest + tape(largest_share(s.S, 16, p.team), s.HALF, p.dtype)
    layer += newest * (p.homes["newest"] == "shared") + residual * (p.homes["residual"] == "shared")
    head = tape(s.H, s.S, p.dtype) + tape(s.A, s.H, p.dtype)
    if p.variant == "resident":
        for team in range(p.teams):
            owned = layer * len(p.layers_of(team))
            assert p.shared[team].get("weights", 0) == -(-owned // 128) * 128
        # The head alone in its block may hold its first matrix in registers.
        head -= tape(s.H, s.S, p.dtype) * layout.hidden_in_registers(not p.layers_of(p.teams - 1))
        head -= 32 * s.A * p.out_in_l2  # bytes of a step
        assert sum(block.get("head_weights", 0) for block in p.shared) == head * (p.homes["head"] != "l2")
        assert (p.out_in_l2 > 0) == (p.homes["head"] == "shared and l2") and layout.out_in_l2 == p.out_in_l2
    # In fp32 products are made for places in which streams may be.
    assert layout.taken == (p.tile if p.dtype != "fp32" else min(p.tile, 1 << (p.batch - 1).bit_length()))
    in_registers = [name for name, home in p.homes.items() if home == "registers"]
    assert set(in_registers) <= {"newest", "residual"} and bool(in_registers) == (p.weight_registers > 0)
    assert p.stages in ((2, 4, 8, 16) if p.variant == "streaming_weights" else (0,))

    # The batch goes through in as many rounds as it takes, all blocks of a launch at once.
    assert p.rounds * p.streams_at_once >= p.batch > (p.rounds - 1) * p.streams_at_once
    assert 1 <= p.tiles_in_flight <= p.teams
    assert p.grid <= device.multiprocessors
    if p.variant == "streaming_weights":
        assert (p.hop, p.blocks, set(p.homes.values())) == ("none", 1, {"l2"})
    elif p.hop == "cluster":
        assert 2 <= p.blocks <= device.max_cluster and device.capability >= 90
        assert p.pipelines <= (clusters or {}).get(p.blocks, device.clusters_at_once(p.blocks))
        assert p.clusters_assumed == (p.blocks not in (clusters or {}))
        assert p.portable_cluster == (p.blocks <= 8)
    else:
        assert (p.hop == "none") == (p.blocks == 1)
    if in_registers:
        assert max(len(p.layers_of(team)) for team in range(p.teams)) <= 4

    # A warp for each panel of the block's share, up to 8, 4 and 4; or fewer where registers are short.
    panels = [-(-n // p.team) for n in (s.HALF // 8, s.R // 16 if s.LAYERS > 1 else 1, s.S // 16)]
    if p.variant == "resident":
        warps, most = (p.chain_warps, p.residual_warps, p.skip_warps), ((8, 4, 4), (8, 2, 2), (4, 2, 2))
    else:
        panels = [max(s.HALF // 8, s.R // 16 if s.LAYERS > 1 else 0), panels[2]]
        warps, most = (p.chain_warps, p.skip_warps), ((8, 4), (4, 4))  # type: ignore[assignment]
        assert p.residual_warps == 0
    assert warps in [tuple(min(few, n) for few, n in zip(each, panels, strict=True)) for each in most]
    assert p.threads == 32 * sum(warps)
    data = as_dict(p)
    assert json.loads(json.dumps(data)) == data
    text = explain(p)
    assert text.count("taken, ") >= 1 and all(sentence in text for sentence in p.why)
    assert all(sentence.endswith(".") for sentence in p.why)


@pytest.mark.parametrize("name", ["A100", "RTX 4090", "H100", "B200", "RTX 5090", "Jetson AGX Orin"])
def test_every_plan_fits(name: str) -> None:
    device = DEVICES[name]
    for ((case, dtype), s), batch, variant in itertools.product(SHAPES.items(), (9, 2000), VARIANTS):
        if dtype == "fp16":
            continue  # planned as bf16 is
        try:
            p = plan(s, batch, dtype, device, variant=variant)
        except BackendError as error:
            if (case, dtype) in TOO_LARGE and device.shared_per_block < 100 << 10:
                assert variant == "resident" or "a block of" in str(error)
                continue
            # Every other case runs on every device; only keeping its weights on the chip may be too much to ask.
            assert variant == "resident", (case, dtype, batch, str(error))
            assert "the resident kernel does not fit" in str(error) and "streaming_weights keeps no weights" in str(
                error
            )
            assert plan(s, batch, dtype, device).variant == "streaming_weights"
            continue
        check(p, s, device)
        assert variant in ("auto", p.variant)


def test_plans_are_the_same_every_time() -> None:
    for dtype, batch in itertools.product(DTYPES, BATCHES):
        p = of("nv-medium", batch, dtype, "H100")
        assert p == of("nv-medium", batch, dtype, "H100")
        if dtype == "fp16":
            assert replace(p, dtype="bf16", why=()) == replace(of("nv-medium", batch, "bf16", "H100"), why=())


TOO_LARGE = {("r9y9-512", "fp32"), ("wavenet-2016", "fp32")}
"""On devices with 99 KiB a block."""


def up(size: int) -> int:
    """What lies in shared memory begins at multiples of 128 bytes."""
    return -(-size // 128) * 128


def aside(tile: int, dtype: str, team: int = 1, *, streaming: bool = False, taken: int = 8) -> int:
    """Registers that are set aside before weights and sums are counted: what was found by compiling."""
    in_fp32 = budget.STREAMING_IN_FP32 if streaming else budget.MORE_IN_FP32
    more = budget.MORE_IN_INT8[tile] * (dtype == "int8") + in_fp32[taken] * (dtype == "fp32")
    base = (budget.STREAMING_REGISTERS if streaming else budget.BASE_REGISTERS)[tile]
    return base + more + budget.MORE_IN_TEAMS[tile] * (team > 1)


# Arithmetic by hand. An operand row has 16 bytes behind it: 8 streams of 64 channels in 16 bit are 8·(2·64 + 16) =
# 1,152 bytes. A mailbox has 8 bytes a number: of 64 channels 4,096. A block keeps x and gates of as many layers as it
# has, at least 2 and at most 4. Of 16 warps (8, 4 and 4) each has 65,536 / 16 / 32 = 128 registers a thread; of 12
# 168, since they come in units of 256; of 8 255. Sums of gates take 4 a panel and layer, x 4 + 2 a panel, weights 4 a
# fragment and layer; what counts is the role that has most. Where warps have one panel of their matrix, and the head is
# alone, 20 or 8 fewer are set aside. In blocks with more than 4 layers none live in registers. The newest input's
# table, classes × channels × 4, lies beside the head where the block has so much left.
# A layer takes 580 clock cycles, the head 3,700, a hop 480 in a cluster and 1,600 in a grid; 128 bytes a cycle come
# from shared memory and 32 from L2, 1,400 cycles late. With many tiles in flight the busiest block counts: 1,450 +
# bytes / 128 for a layer, twice the bytes for tiles of 16, and 2,500 for a head.
#
# In every block: 32 bytes a stream, 4 a tile. Of a block with layers: 24 a stream, and 12 a layer of the model.
STARTS_8 = up(8 * 32) + up(4)
HEARING_8 = up(8 * 24)
# The head of nv-medium and nv-large: inputs, filters, biases of 256 + 256, hidden, logits of 256 classes; its input has
# 128 or 256 channels.
HEAD_8 = up(8 * 2 * 4) + up(8 * 4) + 512 * 4 + 8 * (2 * 256 + 16) + 8 * (256 + 4) * 4
HEAD_8_INT8 = up(8 * 2 * 4) + up(8 * 4) + 512 * 4 + 8 * (256 + 16) + 2 * 8 * (256 + 4) * 4
HAND = [
    # Everything fits one block. 2 taps 32·16·2, residual 16·16·2, skip 32·16·2 = 3,584 a layer; head 32·32·2 + 256·32·2
    # = 18,432. A cluster of one, so mailboxes in shared memory: x 16·8·8, skip 32·8·8, and that again for the head.
    # 2, 1 and 2 warps; 6 layers of one panel. In 7,396 cycles a sample; weights from L2 would take 8,428.
    (("tiny", "H100", "bf16", 1), ("resident", "none", 8, 1, 1, 1, 1, (0,)), "sss",
     STARTS_8 + 1_024 + 2_048 + HEARING_8 + up(6 * 12) + 4 * 384 + 4 * 384 + 6 * 16 * 4 + 6 * 3_584 + 6 * 384
     + 2_048 + up(8 * 2 * 4) + up(8 * 4) + 288 * 4 + 8 * (64 + 16) + 8 * (256 + 4) * 4 + 8 * (64 + 16) + 18_432
     + 256 * 16 * 4, aside(8, "bf16") + 6 * 4),
    # 9 streams are two tiles of 8: two pipelines of one block. All bytes of weights double, operands too: 8·(4·16 + 16)
    # = 640, 8·(4·32 + 16) = 1,152. No clusters, so mailboxes in global memory.
    (("tiny", "A100", "fp32", 9), ("resident", "none", 8, 1, 2, 1, 1, (0,)), "sss",
     STARTS_8 + HEARING_8 + up(6 * 12) + 4 * 640 + 4 * 640 + 6 * 16 * 4 + 6 * 7_168 + 6 * 640
     + up(8 * 2 * 4) + up(8 * 4) + 288 * 4 + 1_152 + 8 * (256 + 4) * 4 + 1_152 + 36_864 + 256 * 16 * 4,
     aside(8, "fp32") + 6 * 4),
    # A layer: 2 taps 128·64·2 = 16,384 each, residual 8,192, skip 16,384. Each of 8 chain warps has a panel of 4 steps
    # of the newest tap, 16 registers, and each of 4 a panel of residual, 16: with both there the 4 layers that a block
    # may have at most. 20 layers in 5. The head, 128·256·2 = 65,536 and 131,072, leaves no room for a layer of 32,768
    # and its mailboxes. Alone it holds the first in registers, 1 panel × 8 steps for each of 16 warps. Its block is the
    # fullest: 256·64·4 = 65,536 of the newest input's table lie there too.
    (("nv-medium", "H100", "bf16", 1), ("resident", "cluster", 8, 1, 1, 1, 1, (0, 4, 8, 12, 16, 20)), "rrs",
     STARTS_8 + 128 * 8 * 8 + HEAD_8 + 8 * (256 + 16) + 131_072 + 65_536, aside(8, "bf16") - 8 + 4 * 16 + 4 + 2),
    # 13 tiles, and 19 pipelines have room: no second tile is in flight in any.
    (("nv-medium", "H100", "bf16", 100), ("resident", "cluster", 8, 1, 13, 1, 1, (0, 4, 8, 12, 16, 20)), "rrs",
     STARTS_8 + 128 * 8 * 8 + HEAD_8 + 8 * (256 + 16) + 131_072 + 65_536, aside(8, "bf16") - 8 + 4 * 16 + 4 + 2),
    # 32 tiles in 19 pipelines are 2 in flight, which 16 take: 2·4·(1,450 + 448) = 15,184 cycles, less than the 19,716
    # of a sample.
    (("nv-medium", "H100", "bf16", 256), ("resident", "cluster", 8, 2, 16, 1, 1, (0, 4, 8, 12, 16, 20)), "rrs",
     2 * 256 + up(2 * 4) + 2 * 128 * 8 * 8 + HEAD_8 + 8 * (256 + 16) + 131_072 + 65_536,
     aside(8, "bf16") - 8 + 4 * 16 + 4 + 2),
    # No clusters, so no mailboxes in shared memory. From L2 the head's 196,608 bytes would take 6,144 + 1,400 cycles,
    # more than the hop of 1,600 that is saved where it lies beside four layers. Its 163 KiB have no room for the table.
    (("nv-medium", "A100", "bf16", 1), ("resident", "grid", 8, 1, 1, 1, 1, (0, 4, 8, 12, 16, 20)), "rrs",
     STARTS_8 + HEAD_8 + 8 * (256 + 16) + 131_072, aside(8, "bf16") - 8 + 4 * 16 + 4 + 2),
    # 99 KiB a block = 101,376: 3 layers of 32,768 would leave 3,072. The head's second matrix alone is more than that.
    # With the first in registers and half of the second in a block of its own, 65,536 / 32 + 700 cycles are for L2 and
    # 131,072 / 128 for shared memory; beside the last two layers it would be a hop less, 1,600, and 6,144 + 1,400.
    # Of the first a thread has 8 fragments, more than of two layers.
    (("nv-medium", "RTX 5090", "bf16", 8), ("resident", "grid", 8, 1, 1, 1, 1, tuple(range(0, 21, 2))), "rrs",
     STARTS_8 + HEAD_8 + 8 * (256 + 16) + 65_536, aside(8, "bf16") + 8 * 4),
    # In fp32 a layer is 112 KiB: taps 32,768 each, residual 16,384, skip 32,768. Without the newest tap and residual,
    # 8 steps × 4 of a panel each, 2 fit a block. The head is 131,072 and 262,144: 16 steps × 4 of the first in
    # registers, 24 of the 32 steps of the second in shared memory.
    (("nv-medium", "H100", "fp32", 1), ("resident", "cluster", 8, 1, 1, 1, 1, tuple(range(0, 21, 2))), "rrs",
     STARTS_8 + 128 * 8 * 8 + up(8 * 2 * 4) + up(8 * 4) + 512 * 4 + 8 * (1_024 + 16) + 8 * (256 + 4) * 4
     + 8 * (512 + 16) + 196_608, aside(8, "fp32", taken=1) + 2 * (32 + 4)),
    # int8: steps of 32 inputs, so half the bytes, 28,672 a layer. Operands 8·(64 + 16) = 640, of 128 channels 1,152, of
    # 256 2,176; numbers that wait for their largest 8·(64 + 4)·4 = 2,176, 8,320 in the head. 5 layers fit a block, 1
    # beside the head: 5 hops and 20·12,288 / 128 cycles are 9,920. With both in registers 3 fit, 7 hops, 11,200; with
    # residual there 4, 6 hops and 20·64.
    (("nv-medium", "A100", "int8", 1), ("resident", "grid", 8, 1, 1, 1, 1, (0, 4, 9, 14, 19)), "sss",
     STARTS_8 + HEARING_8 + up(20 * 12) + 4 * 640 + 4 * 640 + 2_176 + 28_672 + 640 + 64 * 4
     + HEAD_8_INT8 + 1_152 + 98_304, aside(8, "int8") + 5 * 4),
    # A layer is 224 KiB: taps 65,536 each, residual 32,768, skip 65,536; no room for its buffers beside. 8 chain warps
    # have 2 panels × 8 steps of the newest tap, 64 registers: too many beside 2·4 sums for 16 warps, not for 12. Then 2
    # warps would have 4 panels of residual, 128. The head is 256 KiB, and a block of its own
    # holds the first matrix and half of the second: 65,536 / 32 + 700 + 196,608 / 128 + 1,600 cycles; beside the last
    # layer it would take 262,144 / 32 + 1,400.
    (("nv-large", "H100", "bf16", 1), ("resident", "grid", 8, 1, 1, 1, 1, tuple(range(31))), "rss",
     STARTS_8 + HEAD_8 + 8 * (512 + 16) + 196_608, aside(8, "bf16") + 64 + 2 * 4),
    # 99 KiB hold no layer, so two blocks share one: 8 of 16 panels of dilated, 4 of 8 of residual, 8 of 16 of skip. In
    # shared memory lie the older tap, 8·8·512 = 32,768, residual, 4·8·512 = 16,384, and skip, 32,768; in registers 8
    # steps × 4 of a panel of the newest tap and 4 sums, one more than 16 warps have. Of 12 warps, 2 for x have 2 panels
    # of residual each: 2·32 and 2·(4 + 2) would be one more than these have.
    (("nv-large", "RTX 4090", "bf16", 1), ("resident", "grid", 8, 1, 1, 1, 2, tuple(range(31))), "rsl",
     STARTS_8 + HEARING_8 + up(30 * 12) + 4 * 8 * (256 + 16) + 128 * 4 + 81_920 + 8 * (256 + 16),
     aside(8, "bf16", 2) + 32 + 4),
    # 2 pipelines of 61 of 128. With 16 tiles of 8 in flight the head's block would be the busiest, 16·(8,192 + 2,048 +
    # 2,500); 8 of 16 are 8·(8,192 + 4,096 + 2,500), less than a sample takes. For their sums 8 warps of 4, 2 and 2: x
    # has two panels, 2·32 of weights and 2·(8 + 2). Two pasts.
    (("nv-large", "RTX 4090", "bf16", 256), ("resident", "grid", 16, 8, 2, 1, 2, tuple(range(31))), "rrl",
     8 * 16 * 32 + up(8 * 4) + 16 * 24 + up(30 * 12) + 4 * 16 * (256 + 16) + 128 * 4 + 65_536 + 2 * 16 * (256 + 16),
     aside(16, "bf16", 2) + 2 * 32 + 2 * (8 + 2)),
    # In int8 a layer is 112 KiB: taps 32,768 each, residual 16,384, skip 32,768. It fits without the newest tap: 2
    # panels × 4 steps × 4 and 2·4 sums of 128 registers; residual beside would take 2·16 + 2·(4 + 2). The head alone
    # holds 65,536 in registers, 8 fragments for each of 16 warps, and as much in shared memory.
    (("nv-large", "RTX 4090", "int8", 1), ("resident", "grid", 8, 1, 1, 1, 1, tuple(range(31))), "rss",
     STARTS_8 + HEARING_8 + up(30 * 12) + 4 * 8 * (128 + 16) + 8 * (128 + 4) * 4 + 128 * 4 + 81_920 + 8 * (128 + 16),
     aside(8, "int8") + 32 + 2 * 4),
    # The same with more room. Tiles of 16 would ask for 8 warps, which have registers for residual too; one stream does
    # not: no tile of 8 waits for another.
    (("nv-large", "A100", "int8", 1), ("resident", "grid", 8, 1, 1, 1, 1, tuple(range(31))), "rss",
     STARTS_8 + HEARING_8 + up(30 * 12) + 4 * 8 * (128 + 16) + 8 * (128 + 4) * 4 + 128 * 4 + 81_920 + 8 * (128 + 16),
     aside(8, "int8") + 32 + 2 * 4),
    # 24 layers of 960 KiB. Of three blocks each would have 11 panels of dilated, × 16 steps × 512 = 90,112 for each of
    # two older taps, and 24,576 of skip: too many with the buffers even if registers held all else. Of four 8 panels,
    # 65,536 a tap, 32,768 of residual, 16,384 of skip. A panel of the newest tap takes 64 registers, too many for 12
    # warps, and two of them 128, which 8 warps have beside 2·4 sums.
    (("r9y9-512", "H100", "int8", 1), ("resident", "grid", 8, 1, 1, 1, 4, tuple(range(25))), "rss",
     STARTS_8 + HEARING_8 + up(24 * 12) + 2 * 8 * 528 + 2 * 8 * 272 + 8 * 516 * 4 + 512 * 4 + 180_224 + 2 * 8 * 528,
     aside(8, "int8", 4) + 2 * 64 + 2 * 4),
    # Streaming: streams, the table of all rings, hearing, memories, two x, two gates, twice two pasts, skips, hidden,
    # logits, x as sums, and rings of 8 fragments; 16 would be 12·8·512 bytes more than there is room. Each of 8 chain
    # warps has 4 panels of x, 16 sums, and those of a panel that it multiplies.
    (("r9y9-512", "B200", "fp32", 1), ("streaming_weights", "none", 8, 1, 1, 1, 1, (0,)), "lll",
     256 + up(24 * 12) + HEARING_8 + 128 + 128 + 2 * 8 * (2_048 + 16) + 2 * 8 * (1_024 + 16) + 4 * 8 * (2_048 + 16)
     + 2 * 8 * (1_024 + 16)
     + 8 * (32 + 4) * 4 + 8 * 512 * 4 + 12 * 8 * 512, aside(8, "fp32", streaming=True, taken=1) + 16 + 4),
    # 125 tiles of 8, in 16 pipelines of 8 blocks 8 each, would be 8·3·(1,450 + 448) = 45,552 cycles. 63 tiles of 16: 16
    # warps have no registers for the sums of 2 layers, 12 have for 3: a skip warp's 4 panels, 4·8, are most. 16
    # pipelines of 8 blocks with 4 tiles each take 8·1,600 + 20·(580 + 192) + 3,700 + 1,536 = 33,476, more than
    # 4·3·(1,450 + 896) of the layers. Clusters take two rounds. The head's block is the fullest: 12 warps have 2 panels
    # of the first matrix each, 16 fragments, so that lies in shared memory too.
    (("nv-medium", "H100", "bf16", 1000), ("resident", "grid", 16, 4, 16, 1, 1, (0, 2, 5, 8, 11, 14, 17, 20)), "sss",
     4 * 16 * 32 + up(4 * 4) + 4 * 16 * 2 * 4 + 4 * 16 * 4 + 512 * 4 + 16 * (512 + 16) + 16 * 260 * 4 + 16 * (256 + 16)
     + 196_608, aside(16, "bf16") + 4 * 8),
    # In int8 with 8 warps, each 2 panels of 6 layers, 6·2·8: 3 blocks of 6, 2 beside the head, 32 pipelines with 2
    # tiles of 16: 4·1,600 + 20·(580 + 96) + 3,700 + 768 = 24,388. Clusters of 8 take 5·3·(1,450 + 448) = 28,470.
    (("nv-medium", "H100", "int8", 1000), ("resident", "grid", 16, 2, 32, 1, 1, (0, 6, 12, 18)), "sss",
     2 * 16 * 32 + up(2 * 4) + 16 * 24 + up(20 * 12) + 4 * 1_280 + 4 * 1_280 + 16 * (64 + 4) * 4 + 2 * 28_672
     + 2 * 2 * 1_280 + 2 * 64 * 4 + 2 * 16 * 2 * 4 + 2 * 16 * 4 + 512 * 4 + 16 * (256 + 16) + 16 * 260 * 4
     + 16 * (256 + 4) * 4 + 16 * (128 + 16) + 98_304, aside(16, "int8") + 6 * 2 * 8),
]  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "expected", "homes", "shared", "registers"), HAND, ids=[" ".join(map(str, h[0])) for h in HAND]
)
def test_plans_by_hand(
    asked: tuple[str, str, str, int], expected: tuple[object, ...], homes: str, shared: int, registers: int
) -> None:
    name, device, dtype, batch = asked
    p = of(name, batch, dtype, device)
    found = (p.variant, p.hop, p.tile, p.tiles_in_flight, p.pipelines, p.rounds, p.team, p.first_layers)
    assert found == expected
    assert "".join(p.homes[what][0] for what in ("newest", "residual", "head")) == homes
    assert (p.shared_bytes, p.registers) == (shared, registers)


def test_what_registers_hold_the_chain_does_not_read() -> None:
    """Of a layer of nv-medium, 128 × 64 of the newest tap and 64 × 64 of residual."""
    for dtype, size in (("bf16", 2), ("int8", 1), ("fp32", 4)):
        layout = Layout(SHAPES["nv-medium", dtype], dtype, "resident", 8, 8, 4, residual=4)
        newest = replace(layout, newest_in_registers=True)
        both = replace(newest, residual_in_registers=True)
        assert [each.chain_bytes for each in (layout, newest, both)] == [12_288 * size, 4_096 * size, 0]
        assert {each.layer_bytes for each in (layout, newest, both)} == {28_672 * size}


COMPILED = [
    ("nv-medium", "H100", "bf16", 100), ("nv-medium", "A100", "bf16", 1), ("nv-large", "H100", "int8", 1),
    ("nv-large", "A100", "int8", 1), ("r9y9-512", "H100", "int8", 1), ("nv-large", "H100", "fp32", 1),
    ("nv-medium", "H100", "bf16", 1000), ("nv-large", "RTX 4090", "bf16", 256), ("nv-small", "B200", "int8", 1000),
    ("r9y9-mol", "B200", "int8", 1000), ("odd", "H100", "bf16", 5000), ("voice", "H100", "int8", 1000),
    ("nv-medium", "RTX 5090", "fp32", 1000), ("nv-large", "B200", "fp32", 5000),
    ("nv-large", "A100", "int8", 1000, "streaming_weights"), ("nv-small", "A100", "bf16", 1000),
    ("nv-medium", "H100", "fp32", 1), ("nv-medium", "H100", "fp32", 8), ("voice", "H100", "fp32", 300),
    ("voice", "A100", "fp32", 1000, "streaming_weights"), ("nv-large", "H100", "bf16", 1),
    ("nv-medium", "B200", "fp32", 512), ("voice", "B200", "fp32", 1000), ("r9y9-mol", "B200", "fp32", 512),
    ("nv-medium", "A100", "int8", 1000), ("nv-large", "RTX 4090", "bf16", 100), ("r9y9-512", "B200", "int8", 100),
]  # fmt: skip


@pytest.mark.skipif(why_not_kernels() is not None, reason=str(why_not_kernels()))
@pytest.mark.parametrize("asked", COMPILED, ids=lambda asked: " ".join(map(str, asked)))
def test_no_planned_kernel_spills(asked: tuple[object, ...]) -> None:
    """The layouts that leave fewest registers over, of each tile, number format and kind of hop."""
    name, device, dtype, batch, *variant = asked
    p = of(name, batch, dtype, device, variant=variant[0] if variant else "auto")  # type: ignore[arg-type]
    image = compile_kernel(p.variant, {"shape.cuh": p.layout(SHAPES[name, dtype]).header()}, p.capability)  # type: ignore[index]
    assert image.registers is not None and image.registers <= p.register_limit
    assert image.spills == 0, f"{image.spills} bytes"


@pytest.mark.parametrize(
    ("name", "device", "dtype", "batch", "sentence"),
    [
        ("tiny", "H100", "bf16", 1, "resident on one block: taken, the whole model fits it"),
        ("nv-medium", "A100", "bf16", 1, "resident on a cluster: passed over, A100 has no clusters."),
        ("nv-medium", "H100", "bf16", 1, "resident on a cluster: taken, 6 blocks a pipeline hold the weights"),
        ("nv-medium", "H100", "bf16", 1, "that 19 of 6 blocks fit at once is an assumption about H100"),
        # 4 layers a block × 4 fragments × 4.
        ("nv-medium", "H100", "bf16", 1, "of residual: in registers, 64 a thread, so that the chain reads none from"),
        ("nv-medium", "H100", "bf16", 1, "weights of the head: the first matrix in registers"),
        # 20 layers × 580 and 3,700, the head's 196,608 / 128, and 6 hops of 480, or 1,600.
        ("nv-medium", "H100", "bf16", 1, "6 hops a sample; about 19,716 clock cycles a sample by count."),
        ("nv-medium", "H100", "bf16", 1, "resident on a co-resident grid: passed over, about 26,436 clock cycles"),
        # 1,312 KiB / 32 + 20 × 580 + 3,700.
        ("nv-medium", "H100", "bf16", 1, "streaming_weights: passed over, about 57,284 clock cycles a sample"),
        # 5 hops, 20 × 12,288 / 128, and the head's 98,304 / 128.
        ("nv-medium", "A100", "int8", 1, "in shared memory; the chain waits about 10,688 clock cycles a sample"),
        # 4 hops, 12 × 8,192 / 128, and the head's 98,304 / 128.
        ("voice", "A100", "int8", 1, "residual's in registers, 32 a thread; the chain waits about 7,936 clock"),
        # 2 layers a block × 8 fragments × 4.
        ("nv-medium", "H100", "fp32", 1, "of residual: in registers, 64 a thread, so that the chain reads none from"),
        # 20 × 580, 3,700, the head's 65,536 from L2 / 32 + 700, the other 327,680 / 128, and 11 hops.
        ("nv-medium", "H100", "fp32", 1, "on a cluster: taken, 11 blocks a pipeline hold the weights"),
        ("nv-medium", "H100", "fp32", 1, "11 hops a sample; about 25,888 clock cycles a sample by count."),
        (
            "nv-medium",
            "H100",
            "fp32",
            1,
            "in registers, since no layer needs them there; of the second 64 KiB are read",
        ),
        # 32 tiles in 3 pipelines, and the head's block the busiest: 131,072 / 32, 262,144 / 128, and 2,500, 11 times.
        ("nv-large", "A100", "bf16", 256, "11 tiles in flight and 31 hops a sample; about 95,084 clock cycles"),
        ("nv-medium", "RTX 5090", "int8", 1, "how many clusters fit sm_120 only the driver knows"),
        ("nv-large", "H100", "bf16", 1, "need 30 blocks and a cluster has at most 16"),
        ("nv-large", "H100", "bf16", 1, "the first matrix in shared memory; of the second 64 KiB are read from L2"),
        ("nv-large", "RTX 4090", "bf16", 1, "weights of the head: 256 KiB, read from L2"),
        ("nv-large", "RTX 4090", "bf16", 1, "resident on one block: passed over, a single layer needs"),
        ("nv-large", "RTX 4090", "bf16", 1, "teams of 2: a layer has 224 KiB of weights, more than a block holds"),
        ("r9y9-512", "H100", "int8", 1, "24 teams of 4 blocks and one block with the head, 1 tile in flight and 49"),
        ("r9y9-512", "H100", "bf16", 1, "132 multiprocessors are too few to share each among several"),
        ("nv-medium", "H100", "int8", 1000, "warps: 4 for gates, 2 for x, 2 for skip sums, so that each has"),
        (
            "nv-medium",
            "H100",
            "int8",
            1000,
            "tile of 16: taken, with no other tile is the batch of 1000 through sooner",
        ),
        (
            "nv-medium",
            "H100",
            "bf16",
            1000,
            "resident on a cluster: passed over, about 28,470 clock cycles a sample by count in each of 2",
        ),
        ("nv-medium", "H100", "bf16", 5000, "so the rest waits for a next launch."),
        # Of two layers 2 panels × 4 steps × 4: residual's 30 × 16,384 / 128, the head's 131,072 / 128, 16 hops of 480.
        (
            "nv-large",
            "H100",
            "int8",
            1,
            "the newest tap's in registers, 64 a thread; the chain waits about 12,544 clock",
        ),
        ("nv-large", "H100", "int8", 1, "16 blocks are more than the portable 8, an opt-in"),
    ],
)
def test_the_reason_is_named(name: str, device: str, dtype: str, batch: int, sentence: str) -> None:
    assert sentence in explain(of(name, batch, dtype, device))


def test_the_drivers_answer_takes_the_place_of_the_assumption() -> None:
    s, h100 = SHAPES["nv-medium", "bf16"], DEVICES["H100"]
    for clusters in ({8: 3}, {8: 0}, {8: 16, 11: 2}, dict.fromkeys(range(2, 17), 0)):
        for batch in (1, 100, 1000):
            p = plan(s, batch, "bf16", h100, clusters=clusters)
            check(p, s, h100, clusters)
            if p.hop == "cluster":
                assert clusters.get(p.blocks) != 0
    assert plan(s, 1, "bf16", h100, clusters=dict.fromkeys(range(2, 17), 0)).hop == "grid"
    # One cluster takes two tiles in flight while a sample takes 19,716 cycles, 2·7,592; 13 would wait for each other.
    one = dict.fromkeys(range(2, 17), 1)
    told = plan(s, 9, "bf16", h100, clusters=one)
    assert (told.hop, told.pipelines, told.tiles_in_flight, told.clusters_assumed) == ("cluster", 1, 2, False)
    assert plan(s, 100, "bf16", h100, clusters=one).hop == "grid"

    # Asking and planning anew ends: each answer is about a size that was not asked before.
    def driver(blocks: int) -> int:
        return max(0, 9 - blocks)

    answers: dict[int, int] = {}
    while (p := plan(s, 1000, "bf16", h100, clusters=answers)).clusters_assumed:
        answers[p.blocks] = driver(p.blocks)
    assert p.hop != "cluster" or p.pipelines <= driver(p.blocks)

    # sm_120 has clusters, but which fit only the driver knows.
    s, rtx = SHAPES["nv-medium", "int8"], DEVICES["RTX 5090"]
    assert plan(s, 1, "int8", rtx).hop == "grid"
    assert plan(s, 1, "int8", rtx, clusters={}).clusters_assumed
    answers = dict.fromkeys(range(2, 17), 0) | {6: 20}
    told = plan(s, 1, "int8", rtx, clusters=answers)
    check(told, s, rtx, answers)
    assert (told.hop, told.blocks, told.clusters_assumed) == ("cluster", 6, False)


class Told(EmulatedDevice):
    """An H100 that compiles nothing, says what it is told to, and notes what it was asked."""

    def __init__(self, clusters: dict[int, int], resident: int = 132) -> None:
        super().__init__(90, properties=DEVICES["H100"])
        self.answers, self.resident, self.asked = clusters, resident, []

    def load(self, name: str, headers: Any) -> Kernel:
        return Kernel(name, None, 0, None, None)  # type: ignore[arg-type]

    def clusters(self, kernel: Kernel, block: Any, shared: int, cluster: int) -> int:
        self.asked.append(cluster)
        return self.answers.get(cluster, 0)

    def largest_grid(self, kernel: Kernel, block: Any, shared: int) -> int:
        self.asked.append(shared)
        return self.resident


def test_the_device_is_asked_once() -> None:
    config = CASES["nv-medium"]
    weights = random_weights(config)
    device = Told({6: 14})
    model = Model(config, weights, "bf16", device)
    assert model.assumed_plan(100).clusters_assumed and not device.asked
    p = model.plan(100)
    assert (p.hop, p.blocks, p.pipelines, p.tiles_in_flight, p.clusters_assumed) == ("cluster", 6, 13, 1, False)
    assert model.plan(9).blocks == 6 and device.asked == [6]

    # 3 tiles in flight are 3·7,592 cycles: what other sizes might do is asked before, and a grid would take 26,436.
    device = Told({6: 5})
    p = Model(config, weights, "bf16", device).plan(100)
    assert (p.hop, p.blocks, p.pipelines, p.tiles_in_flight, p.clusters_assumed) == ("cluster", 6, 5, 3, False)
    assert sorted(set(device.asked)) == sorted(device.asked) and {6, 7} <= set(device.asked)

    device = Told({})
    model = Model(config, weights, "bf16", device)
    p = model.plan(9)
    assert p.hop == "grid" and sorted(set(device.asked)) == sorted(device.asked) and 6 in device.asked

    layout, extras = p.layout(model.shape), Extras()
    device.asked.clear()
    for _ in range(2):
        model._check_resident(device.load("resident", {}), layout, extras, 132)
        with pytest.raises(BackendError, match="133 blocks of the kernel 'resident' must be resident at once"):
            model._check_resident(device.load("resident", {}), layout, extras, 133)
    assert device.asked == [layout.shared]


def test_a_forced_choice_is_kept() -> None:
    s, h100 = SHAPES["nv-medium", "bf16"], DEVICES["H100"]
    for tile in (8, 16, 32):
        for variant in VARIANTS[1:]:
            p = plan(s, 1000, "bf16", h100, tile=tile, variant=variant)
            check(p, s, h100)
            assert (p.tile, p.variant) == (tile, variant)
            assert f"tile of {tile}: asked for" in explain(p)
    # Of 255 registers of 8 warps 192 are set aside, and 4 panels of a layer's skip sums take 4·4·4.
    with pytest.raises(BackendError, match="a thread has too few registers for its sums and weights"):
        plan(SHAPES["nv-medium", "int8"], 1000, "int8", h100, tile=32, variant="resident")
    with pytest.raises(BackendError, match=r"tile of 32 streams .* has too few registers; possible are a smaller tile"):
        plan(SHAPES["nv-medium", "fp32"], 1000, "fp32", h100, tile=32, variant="streaming_weights")
    for blocks in (8, 9, 12, 16, 17, 20, 21):
        p = plan(s, 9, "bf16", h100, blocks=blocks)
        check(p, s, h100)
        assert (p.blocks, p.hop) == (blocks, "cluster" if blocks <= 16 else "grid")
    for blocks, reason in ((2, "the weights need 5"), (24, "24 blocks were asked for"), (1, "1 blocks were asked for")):
        with pytest.raises(BackendError, match=reason):
            plan(s, 9, "bf16", h100, blocks=blocks)


def test_what_cannot_be_planned_is_told() -> None:
    s, h100 = SHAPES["nv-medium", "bf16"], DEVICES["H100"]
    with pytest.raises(InputError, match="dtype is 'fp8'; possible are fp32, bf16, fp16, int8"):
        plan(s, 1, "fp8", h100)
    with pytest.raises(InputError, match="at least one stream, not for 0"):
        plan(s, 0, "bf16", h100)
    with pytest.raises(InputError, match="tile is 12; possible are auto, 8, 16, 32"):
        plan(s, 1, "bf16", h100, tile=12)
    with pytest.raises(InputError, match="variant is 'fast'; possible are auto, resident and streaming_weights"):
        plan(s, 1, "bf16", h100, variant="fast")
    for blocks in (0, "many"):
        with pytest.raises(InputError, match="blocks is"):
            plan(s, 1, "bf16", h100, blocks=blocks)
    with pytest.raises(InputError, match="leave it out"):
        plan(s, 1, "bf16", h100, variant="streaming_weights", blocks=2)
    with pytest.raises(BackendError, match="T4 is sm_75; the kernels need sm_80 or newer"):
        plan(s, 1, "bf16", properties_of(75, 40, "T4"))
    with pytest.raises(BackendError, match=r"single layer needs 1,244 KiB.*streaming_weights keeps no weights"):
        plan(SHAPES["r9y9-512", "bf16"], 1, "bf16", h100, variant="resident")
    with pytest.raises(BackendError, match=r"tile of 8 streams .* needs .* KiB .* has 99 KiB; possible are a smaller"):
        plan(replace(s, R=1024, HALF=1024), 1, "fp32", DEVICES["RTX 4090"])


def test_more_is_never_less() -> None:
    """A larger batch takes no fewer rounds of the same kernel, a larger chip no more; and no fewer blocks hold more."""
    for name, dtype in itertools.product(("tiny", "nv-medium"), ("bf16", "int8")):
        s = SHAPES[name, dtype]
        for asked in ({"variant": "streaming_weights"}, {"blocks": 1 if name == "tiny" else 20, "tile": 8}):
            rounds = [plan(s, batch, dtype, DEVICES["H100"], **asked).rounds for batch in range(1, 20_000, 1601)]
            assert rounds == sorted(rounds) and rounds[0] == 1 < rounds[-1]
            chips = [properties_of(90, count) for count in range(24, 200, 16)]
            rounds = [plan(s, 20_000, dtype, chip, **asked).rounds for chip in chips]
            assert rounds == sorted(rounds, reverse=True)
        for layers in range(2, s.LAYERS + 1):
            deeper, blocks = replace(s, LAYERS=layers), plan(s, 1, dtype, DEVICES["H100"]).blocks
            assert plan(deeper, 1, dtype, DEVICES["H100"], variant="resident").blocks <= blocks + 1


def channels(most: int) -> st.SearchStrategy[int]:
    return st.integers(1, most)


wide = st.builds(
    lambda letters, **sizes: replace(letters, **sizes), st.just(SHAPES["tiny", "bf16"]), LAYERS=st.integers(1, 48),
    K=st.integers(2, 5), R=channels(640), HALF=channels(512), S=channels(512), H=channels(512), A=channels(2048),
)  # fmt: skip


def pad(s: Shape, dtype: str) -> Shape:
    sizes = {name: padded(getattr(s, name), dtype) for name in ("R", "HALF", "S", "H")}
    return replace(s, A=padded(s.A), **sizes)


@settings(max_examples=120, deadline=None)
@given(
    wide, st.integers(1, 12_000), st.sampled_from(DTYPES), st.sampled_from(list(DEVICES.values())),
    st.sampled_from(VARIANTS), st.sampled_from(("auto", 8, 16, 32)),
    st.dictionaries(st.integers(2, 16), st.integers(0, 9)),
)  # fmt: skip
def test_any_shape(
    unpadded: Shape,
    batch: int,
    dtype: str,
    device: DeviceProperties,
    variant: str,
    tile: int | str,
    clusters: dict[int, int],
) -> None:
    s = pad(unpadded, dtype)
    if device.max_cluster == 1:
        clusters = {}
    try:
        p = plan(s, batch, dtype, device, variant=variant, tile=tile, clusters=clusters)
    except BackendError as error:
        assert str(error)
        if variant != "resident":
            with pytest.raises(BackendError):
                plan(s, batch, dtype, device, variant="streaming_weights", tile=tile)
        return
    check(p, s, device, clusters)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 8), st.integers(1, 25))
def test_cut_is_the_best_of_all(costs: list[int], pieces: int, room: int) -> None:
    def fits(first: int, end: int) -> bool:
        return sum(costs[first:end]) <= room

    def value(first: tuple[int, ...]) -> tuple[int, int, tuple[int, ...]]:
        parts = [sum(costs[a:b]) for a, b in zip(first, (*first[1:], len(costs)), strict=True)]
        return max(parts), sum(part**2 for part in parts), first

    every = {
        count: [(0, *cuts) for cuts in itertools.combinations(range(1, len(costs)), count - 1)]
        for count in range(1, len(costs) + 1)
    }
    fitting = {count: [value(c) for c in cuts if value(c)[0] <= room] for count, cuts in every.items()}
    best = min(fitting.get(pieces, []), default=None)
    assert cut(costs, pieces, fits) == (best[2] if best else None)


def test_the_page_shows_what_the_planner_says() -> None:
    page = (Path(__file__).parents[1] / "docs" / "gpu-plan.md").read_text()
    shown = page.split("```\n")[1].removesuffix("\n")
    assert shown == explain(plan(SHAPES["nv-medium", "bf16"], 9, "bf16", DEVICES["H100"]))
