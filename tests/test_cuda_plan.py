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
BARRIERS = 4
"""Named barriers of a block: all warps, and three more that the kernels number."""

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
    assert p.registers <= p.register_limit <= 255 and p.weight_registers <= p.registers - 70
    assert occupancy(device, p.threads, p.register_limit, p.shared_bytes, BARRIERS).blocks >= 1

    # What the kernel is told is what was planned.
    layout = p.layout(s)
    assert (layout.shared, layout.threads, layout.blocks) == (p.shared_bytes, p.threads, p.blocks)
    if layout.resident:
        parts = [layout.block_parts(len(p.layers_of(team)), team + 1 == p.teams) for team in range(p.teams)]
        assert parts == list(p.shared)
        assert layout.cluster == (p.hop != "grid" and device.capability >= 90)
        assert layout.chain_registers(max(layout.own)) == p.weight_registers

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
        assert sum(block.get("head_weights", 0) for block in p.shared) == head * (p.homes["head"] == "shared")
    in_registers = [name for name, home in p.homes.items() if home == "registers"]
    assert set(in_registers) <= {"newest", "residual"} and bool(in_registers) == (p.weight_registers > 0)
    assert p.dtype != "fp32" or not in_registers
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

    # A warp for each panel of the block's share, up to 8 and 4; or 4 and 4 where registers are short.
    chain = max(-(-s.HALF // 8 // p.team), -(-(s.R // 16 if s.LAYERS > 1 else 0) // p.team))
    assert p.chain_warps in (min(8, chain), min(4, chain)) and p.skip_warps == min(4, -(-s.S // 16 // p.team))
    assert p.threads == 32 * (p.chain_warps + p.skip_warps)
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
            assert "the resident kernel does not fit" in str(error) and "streaming_weights runs any model" in str(error)
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


# Arithmetic by hand. An operand row has 16 bytes behind it: 8 streams of 64 channels in 16 bit are 8·(2·64 + 16) =
# 1,152 bytes. Of 12 warps each has at most 65,536 / 12 = 5,461, in units of 256 then 5,376 registers, 168 a thread.
# For a tile of 8, 94 of them are set aside, in int8 20 more, in fp32 72. A layer's sums take 4 a panel, its biases 2.
# Weights of which a thread has at most 8 fragments a layer are read in time from shared memory: registers gain nothing
# but room.
#
# In every block: 32 bytes a stream, 4 and 24 a tile.
STARTS_8 = up(8 * 32) + up(4) + up(24)
HEARING_8 = up(8 * 24)
HAND = [
    # Everything fits one block. 2 taps 32·16·2, residual 16·16·2, skip 32·16·2 = 3,584 a layer; head 32·32·2 + 256·32·2
    # = 18,432. A cluster of one, so mailboxes in shared memory: x 8·(32 + 16), its sums 8·16·4, those of skip 8·32·4.
    # The table of rings has 12 bytes a layer. 2 + 2 warps; 6 layers and x have 4 registers, biases 12.
    (("tiny", "H100", "bf16", 1), ("resident", "none", 8, 1, 1, 1, 1, (0,)), "sss",
     STARTS_8 + 384 + 512 + 1_024 + HEARING_8 + up(6 * 12) + 2 * 384 + 2 * 384 + 6 * 3_584 + 6 * 384
     + 8 * (64 + 16) + up(8 * 2 * 4) + up(8 * 4) + 8 * (64 + 16) + 8 * (256 + 4) * 4 + 18_432, 94 + 6 * 4 + 4 + 12),
    # 9 streams are two tiles of 8: two pipelines of one block. All bytes of weights double, operands too: 8·(4·16 + 16)
    # = 640, 8·(4·32 + 16) = 1,152. No clusters, so mailboxes in global memory, and room for x and for skips instead.
    (("tiny", "A100", "fp32", 9), ("resident", "none", 8, 1, 2, 1, 1, (0,)), "sss",
     STARTS_8 + HEARING_8 + up(6 * 12) + 2 * 640 + 2 * 640 + 640 + 6 * 7_168 + 6 * 640
     + up(8 * 2 * 4) + up(8 * 4) + 1_152 + 8 * (256 + 4) * 4 + 1_152 + 36_864, 94 + 72 + 6 * 4 + 4 + 12),
    # A layer: 2 taps 128·64·2 = 16,384 each, residual 8,192, skip 16,384: 57,344. 1 panel × 4 steps a thread of the
    # newest tap and as many of residual: read in time. Of 227 KiB = 232,448, 4 layers would take 229,376 and their past
    # 4,608 more, so 3 a block: 20 layers in 7. The head, 128·256·2 + 256·256·2 = 196,608, leaves no room for a layer:
    # an 8th, and that is the fullest; from L2, beside the last 2, it would save a hop of 500 and cost 196,608 / 128.
    (("nv-medium", "H100", "bf16", 1), ("resident", "cluster", 8, 1, 1, 1, 1, (0, 2, 5, 8, 11, 14, 17, 20)), "sss",
     STARTS_8 + 8 * (256 + 16) + 128 + 128
     + 8 * (512 + 16) + 8 * 260 * 4 + 196_608, 94 + 3 * (4 + 2) + 4),
    # 13 tiles. A block with 3 layers has mailboxes of x 1,152, its sums 8·64·4 = 2,048 and those of skip 8·128·4 =
    # 4,096, and with several tiles in flight 2 pasts a layer: 172,032 + 6,912 and, with 6 tiles, 43,776 + 6,912 of all
    # else are 229,632 of 232,448; with 7 they are more. 13 tiles are 3 pipelines of 5; the head's block is fuller.
    (("nv-medium", "H100", "bf16", 100), ("resident", "cluster", 8, 5, 3, 1, 1, (0, 2, 5, 8, 11, 14, 17, 20)), "sss",
     5 * 256 + 128 + up(5 * 24) + 5 * 8 * (256 + 16) + up(5 * 64) + up(5 * 32)
     + 8 * (512 + 16) + 8 * 260 * 4 + 196_608, 94 + 3 * (4 + 2) + 4),
    # 163 KiB a block = 166,912 and no clusters. 3 layers of 57,344 are too many; with residual in registers, 1 panel ×
    # 4 steps × 4 = 16 a layer, they are 3·49,152, and 7 blocks do for 10. The head's 192 KiB come from L2, and then the
    # last 2 layers have room beside it. The fullest has 3 layers and 3 pasts.
    (("nv-medium", "A100", "bf16", 1), ("resident", "grid", 8, 1, 1, 1, 1, (0, 3, 6, 9, 12, 15, 18)), "srl",
     STARTS_8 + HEARING_8 + up(20 * 12) + 2 * 1_152 + 2 * 1_152 + 1_152 + 3 * 49_152 + 3 * 1_152,
     94 + 3 * (16 + 4 + 2) + 4),
    # 99 KiB a block = 101,376: 2 layers only with the newest tap in registers, 2·40,960 bytes; 2·49,152 and the buffers
    # are too many, and both in registers, 2·(16 + 16 + 4 + 2) + 4, more than 74. So 10 blocks, and the head's buffers
    # do not fit beside the last two layers.
    (("nv-medium", "RTX 5090", "bf16", 8), ("resident", "grid", 8, 1, 1, 1, 1, (*range(0, 20, 2), 20)), "rsl",
     STARTS_8 + HEARING_8 + up(20 * 12) + 2 * 1_152 + 2 * 1_152 + 1_152 + 2 * 40_960 + 2 * 1_152,
     94 + 2 * (16 + 4 + 2) + 4),
    # int8: steps of 32 inputs, so half the bytes, 28,672 a layer. Operands 8·(64 + 16) = 640, of 128 channels 1,152, of
    # 256 2,176; numbers that wait for their largest 8·(64 + 4)·4 = 2,176, 4,224, 8,320. 5 layers fit a block: 143,360
    # and 13,696 of all else; beside the head's 98,304 and its buffers 1, and that is the fullest.
    (("nv-medium", "A100", "int8", 1), ("resident", "grid", 8, 1, 1, 1, 1, (0, 4, 9, 14, 19)), "sss",
     STARTS_8 + HEARING_8 + up(20 * 12) + 5 * 640 + 2_176 + 4_224 + 28_672 + 640
     + 128 + 128 + 2_176 + 8_320 + 8_320 + 1_152 + 98_304, 94 + 20 + 5 * (4 + 2) + 4),
    # A layer is 224 KiB, 192 of them beside the 32 of residual in registers: 1 panel × 8 steps × 4. The newest tap's
    # two panels, 16 fragments, are waited for; in registers they would take 64, and with 2·4 sums, x and biases 4 + 2
    # more than 74. The head is 256 KiB, so from L2, and without one a hop: beside the last layer.
    (("nv-large", "H100", "bf16", 1), ("resident", "grid", 8, 1, 1, 1, 1, tuple(range(30))), "srl",
     STARTS_8 + HEARING_8 + up(30 * 12) + 5 * 8 * (256 + 16) + 196_608 + 8 * (256 + 16)
     + 128 + 128 + 8 * (512 + 16) + 8 * 260 * 4 + 8 * (512 + 16), 94 + 32 + 2 * 4 + 4 + 2),
    # 99 KiB hold no layer, so two blocks share one: 8 of 16 panels of dilated, 4 of 8 of residual, 8 of 16 of skip. In
    # shared memory the older tap 8·8·512 = 32,768, residual 16,384 and skip 32,768. The newest tap's 32,768 would be
    # too much with them, and residual in its place would leave 98,304 and the buffers, so it lies in 1·8·4 registers.
    # Where blocks exchange gates and x 4 more are set aside.
    (("nv-large", "RTX 4090", "bf16", 1), ("resident", "grid", 8, 1, 1, 1, 2, tuple(range(31))), "rsl",
     STARTS_8 + HEARING_8 + up(30 * 12) + 5 * 8 * (256 + 16) + 81_920 + 8 * (256 + 16), 94 + 4 + 32 + 4 + 4 + 2),
    # 256 streams are 32 tiles of 8, and a pipeline of 2 · 30 + 1 of 108 has 31 teams: so 16 tiles of 16. A share of a
    # layer fits 163 KiB, with two pasts. Of 8 warps' 255 registers 162 are set aside and 46 for teams; the newest tap's
    # 2 panels × 8 steps × 4 are more than is left.
    (("nv-large", "A100", "bf16", 256), ("resident", "grid", 16, 16, 1, 1, 2, tuple(range(31))), "ssl",
     16 * 16 * 32 + up(16 * 4) + 16 * 24 + 16 * 24 + up(30 * 12) + 5 * 16 * (256 + 16) + 114_688 + 2 * 16 * (256 + 16),
     162 + 46 + 2 * 8 + 8 + 2),
    # In int8 a layer is 112 KiB: older tap 32,768, newest 32,768, residual 16,384, skip 32,768. Only without the two
    # of the chain it fits, and not in 12 warps' registers: 114 + 2·4·4 + 4·4 + 2·4 + 4 + 2 are 176. Of 4 chain warps
    # each has 4 panels × 4 steps and 2 × 4: 64 + 32 of 255, and sums, x and biases for 4 and 2 panels.
    (("nv-large", "RTX 4090", "int8", 1), ("resident", "grid", 8, 1, 1, 1, 1, tuple(range(31))), "rrl",
     STARTS_8 + HEARING_8 + up(30 * 12) + 5 * 8 * (128 + 16) + 8 * (128 + 4) * 4 + 8 * (256 + 4) * 4 + 65_536
     + 8 * (128 + 16), 94 + 20 + 64 + 32 + 4 * 4 + 2 * 4 + 2 * 2),
    # 24 layers of 960 KiB. A layer in each team: of at most 5 blocks, of 4 each with 3·65,536 + 32,768 + 16,384 bytes
    # too many, or 128 registers for 2 panels of the newest tap: 94 + 20 + 4 + 128 + 8 + 8 + 4 are more than 255; of 5
    # much the same. Two: of at most 10 blocks, 2·122,880. Three: of 16 blocks, 129 of 132. A share has 2 of 32 panels
    # of dilated, × 16 steps × 512 = 16,384 a tap, 2 of residual × 8 and 1 of skip: 4,096. 2 chain warps with a panel
    # each. 3·61,440 and 68,096 of all else are too many, so residual lies in 8·4 registers a layer.
    (("r9y9-512", "H100", "int8", 1), ("resident", "grid", 8, 1, 1, 1, 16, (*range(0, 24, 3), 24)), "srs",
     STARTS_8 + HEARING_8 + up(24 * 12) + 2 * 8 * 528 + 2 * 8 * 272 + 8 * 528 + 8 * 516 * 4 + 8 * 260 * 4
     + 3 * (3 * 16_384 + 4_096) + 3 * 2 * 8 * 528, 94 + 20 + 4 + 3 * (32 + 4 + 2) + 4),
    # Streaming: streams, the table of all rings, hearing, memories, two x, two gates, twice two pasts, skips, hidden,
    # logits, x as sums, and rings. In fp32 94 + 72 registers are set aside, with a panel's 4 sums, x's and skips' more
    # than 12 warps have; 8 warps have 255, and room for rings of 16 fragments. Each of 4 chain warps has 8 panels of x,
    # 32 sums, too many to be carried in registers; each skip warp 4 panels, 16 sums.
    (("r9y9-512", "B200", "fp32", 1), ("streaming_weights", "none", 8, 1, 1, 1, 1, (0,)), "lll",
     256 + up(24 * 12) + HEARING_8 + 128 + 128 + 2 * 8 * (2_048 + 16) + 2 * 8 * (1_024 + 16) + 4 * 8 * (2_048 + 16)
     + 2 * 8 * (1_024 + 16)
     + 8 * (32 + 4) * 4 + 8 * 512 * 4 + 8 * 16 * 512, 94 + 72 + 16),
    # 1,000 streams are 125 tiles, and clusters take at most 15 of 8 blocks × 8 of them, or of the 63 of 16 streams 8 of
    # 11 × 7: there is no room for more mailboxes. A grid, with mailboxes in global memory, takes 132 / 8 = 16 pipelines
    # × 8. The head's block is the fullest.
    (("nv-medium", "H100", "bf16", 1000), ("resident", "grid", 8, 8, 16, 1, 1, (0, 2, 5, 8, 11, 14, 17, 20)), "sss",
     8 * 256 + 128 + up(8 * 24) + up(8 * 64) + up(8 * 32) + 8 * (512 + 16) + 8 * 260 * 4 + 8 * (256 + 16) + 196_608,
     94 + 3 * (4 + 2) + 4),
    # In int8 tiles of 16, 63 of them: 8 pipelines with 8 in flight. 162 + 16 registers are set aside, not of 12 warps'
    # 168, but of 8 warps' 255; 2·8 sums of 2 panels, 2 for biases, and for x 8: 3 layers, where 4 would take 258. A
    # mailbox has x 16·(64 + 16) = 1,280, its sums 16·64·4, those of skip 16·128·4; two pasts of each layer.
    (("nv-medium", "H100", "int8", 1000), ("resident", "cluster", 16, 8, 8, 1, 1, (0, 2, 5, 8, 11, 14, 17, 20)), "sss",
     8 * 16 * 32 + 128 + up(8 * 24) + 8 * (1_280 + 4_096 + 8_192) + 16 * 24 + up(20 * 12) + 4 * 1_280
     + 16 * (64 + 4) * 4 + 16 * (128 + 4) * 4 + 3 * 28_672 + 2 * 3 * 1_280, 162 + 16 + 3 * (2 * 8 + 2) + 8),
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


def test_what_is_read_ahead_costs_no_waiting() -> None:
    """Up to 8 fragments of a matrix a thread: here as many as there are steps of 16 channels, and not in fp32."""
    for dtype, channels, waited in (
        ("bf16", 128, 0), ("bf16", 144, 128 * 144 * 2), ("fp32", 16, 128 * 16 * 4 + 16 * 64 * 4)
    ):  # fmt: skip
        layout = Layout(replace(SHAPES["nv-medium", dtype], R=channels), dtype, "resident", 8, 8, 4)
        assert layout.waited_bytes == waited
        assert layout.chain_bytes == (128 * channels + channels * 64) * (4 if dtype == "fp32" else 2)
        held = replace(layout, newest_in_registers=True, residual_in_registers=True)
        assert (held.waited_bytes, held.chain_bytes) == (0, 0)


COMPILED = [
    ("nv-medium", "H100", "bf16", 100), ("nv-medium", "H100", "bf16", 5000), ("nv-medium", "A100", "int8", 1),
    ("nv-large", "H100", "bf16", 1), ("voice", "B200", "bf16", 5000), ("r9y9-512", "H100", "int8", 1),
    ("r9y9-512", "RTX 4090", "bf16", 1), ("nv-medium", "RTX 5090", "fp32", 1),
    ("nv-large", "A100", "bf16", 100), ("nv-large", "H100", "bf16", 5000, "streaming_weights"),
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
        ("nv-medium", "H100", "bf16", 1, "resident on a cluster: taken, 8 blocks a pipeline hold the weights"),
        ("nv-medium", "H100", "bf16", 1, "that 15 of 8 blocks fit at once is an assumption about H100"),
        ("nv-medium", "H100", "bf16", 1, "of residual: in shared memory, read before the chain needs them."),
        ("nv-medium", "A100", "bf16", 1, "residual's in registers, 48 a thread, which saves blocks; the other's in"),
        # 20 layers × 400, the head's 196,608 / 128, and 8 hops of 500, or 1,100.
        ("nv-medium", "H100", "bf16", 1, "8 hops a sample; about 13,536 clock cycles a sample by count."),
        ("nv-medium", "H100", "bf16", 1, "resident on a co-resident grid: passed over, about 18,336 clock cycles"),
        # 1,312 KiB / 64 + 20 × 400.
        ("nv-medium", "H100", "bf16", 1, "streaming_weights: passed over, about 28,992 clock cycles a sample"),
        ("nv-medium", "H100", "fp32", 1, "in shared memory, fp32 is multiplied without tensor cores"),
        # 20 layers × ((32,768 + 16,384) / 128 + 400), the head's 393,216 from L2 / 64, and 20 hops of 1,100.
        ("nv-medium", "H100", "fp32", 1, "on a co-resident grid: taken, 20 blocks a pipeline hold the weights"),
        ("nv-medium", "H100", "fp32", 1, "20 hops a sample; about 43,824 clock cycles a sample by count."),
        ("nv-medium", "RTX 5090", "int8", 1, "how many clusters fit sm_120 only the driver knows"),
        ("nv-large", "H100", "bf16", 1, "need 30 blocks and a cluster has at most 16"),
        ("nv-large", "H100", "bf16", 1, "weights of the head: 256 KiB, read from L2"),
        ("nv-large", "RTX 4090", "bf16", 1, "resident on one block: passed over, a single layer needs"),
        ("nv-large", "RTX 4090", "bf16", 1, "teams of 2: a layer has 224 KiB of weights, more than a block holds"),
        ("r9y9-512", "H100", "int8", 1, "8 teams of 16 blocks and one block with the head, 1 tile in flight and 49"),
        ("r9y9-512", "H100", "bf16", 1, "132 multiprocessors are too few to share each among several"),
        ("nv-medium", "H100", "int8", 1000, "chain warps: 4, so that each has the registers"),
        ("nv-medium", "H100", "bf16", 5000, "so the rest waits for a next launch."),
        # 4 chain warps read 16 fragments of the newest tap each: 30 × 32,768 / 128, the head's 131,072 / 128, 16 hops.
        ("nv-large", "H100", "int8", 1, "the chain waits about 16,704 clock cycles a sample for weights and hops"),
        # With 8 chain warps and two blocks a layer they read 8 of residual.
        ("nv-large", "RTX 4090", "bf16", 1, "32 a thread, which saves blocks; the other's in shared memory, read"),
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
    told = plan(s, 100, "bf16", h100, clusters=dict.fromkeys(range(2, 17), 1))
    assert (told.hop, told.pipelines, told.clusters_assumed) == ("cluster", 1, False)

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
    device = Told({8: 3})
    model = Model(config, weights, "bf16", device)
    assert model.assumed_plan(100).clusters_assumed and not device.asked
    p = model.plan(100)
    # 13 tiles, at most 6 of them in flight in a pipeline.
    assert (p.hop, p.blocks, p.pipelines, p.clusters_assumed) == ("cluster", 8, 3, False)
    assert model.plan(9).blocks == 8 and device.asked == [8]

    device = Told({})
    model = Model(config, weights, "bf16", device)
    p = model.plan(9)
    assert p.hop == "grid" and sorted(set(device.asked)) == sorted(device.asked) and 8 in device.asked

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
            if (tile, variant) == (32, "resident"):
                continue
            p = plan(s, 1000, "bf16", h100, tile=tile, variant=variant)
            check(p, s, h100)
            assert (p.tile, p.variant) == (tile, variant)
            assert f"tile of {tile}: asked for" in explain(p)
    # Of 255 registers 224 are set aside, and one panel's sums, x and biases take 4·4 + 4·4 + 2 more.
    with pytest.raises(BackendError, match="a thread has too few registers for its sums and weights"):
        plan(s, 1000, "bf16", h100, tile=32, variant="resident")
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
    with pytest.raises(BackendError, match=r"single layer needs 1,226 KiB.*streaming_weights runs any model"):
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
