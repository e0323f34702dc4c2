"""What a block of the CUDA kernels needs: bytes of weights, shared memory by name, registers. All sizes in bytes.

These are the rules of the planner. They are reasoned, not measured: each has its reason beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from .occupancy import WARP


class Sizes(Protocol):
    """The letters of a model, channels padded to multiples of 16. HALF is half of the gate width (G/2)."""

    @property
    def LAYERS(self) -> int: ...
    @property
    def K(self) -> int: ...
    @property
    def R(self) -> int: ...
    @property
    def HALF(self) -> int: ...
    @property
    def S(self) -> int: ...
    @property
    def H(self) -> int: ...
    @property
    def A(self) -> int: ...


@dataclass(frozen=True)
class Format:
    """A number format: bytes of a weight and of an operand (an activation as a product takes it), and how many inputs
    one product instruction takes (k of m16n8k16, m16n8k32; fp32 is multiplied without tensor cores)."""

    name: str
    weight: int
    operand: int
    k_step: int


FORMATS = {
    "fp32": Format("fp32", 4, 4, 16),
    "bf16": Format("bf16", 2, 2, 16),
    "fp16": Format("fp16", 2, 2, 16),
    "int8": Format("int8", 1, 1, 32),
}

TILES = (8, 16, 32)
"""Streams of a tile: 8 are one product instruction wide, and one stream costs what eight cost."""
ROWS = 16
"""Of an m-tile."""

CHAIN_WARPS = 8
"""At most, for dilated, gate and residual. An nv-medium layer has 8 m-tiles in `dilated`: one each. More warps wait for
each other longer at every barrier, and leave fewer registers to each."""
SKIP_WARPS = 4
"""At most, for skip products and ring writes, which the chain does not wait for: one in each quarter of a
multiprocessor."""

BASE_REGISTERS = 64
"""Registers of a thread for addresses, loops and activation fragments: an assumption until a kernel is compiled."""
MOST_ACCUMULATORS = 64
"""Registers of a thread for sums; a product with more rows a warp is made in passes."""
MOST_WEIGHT_REGISTERS = 128
"""Registers of a thread for weights: half of what a thread can have at all."""
MOST_UNROLLED_LAYERS = 4
"""Layers of a block whose weights may live in registers: registers have no index, so each layer is its own code."""

MOST_LOGITS = 48 * 1024
"""Logits of a tile in shared memory; larger ones (thousands of classes) go through global memory."""
PANEL = 1024
"""Bytes that one warp copies in one stage of the cp.async ring: two 16-bit fragments of an m-tile (16 × 16)."""
STAGES = (2, 8)
"""Fewest and most stages of the ring. Two: one is used while the next arrives. Eight panels a warp are more than the
weights of one product of most layers."""
SIGNALS = 1024
"""Bytes for mbarriers, the abort word and counters."""


def m_tiles(rows: int) -> int:
    return -(-rows // ROWS)


def chain_warps(s: Sizes) -> int:
    """One a m-tile of `dilated`, whose m-tiles hold 8 tanh and the matching 8 sigmoid rows."""
    return min(CHAIN_WARPS, m_tiles(2 * s.HALF))


def skip_warps(s: Sizes) -> int:
    return min(SKIP_WARPS, m_tiles(s.S))


def threads(s: Sizes) -> int:
    return WARP * (chain_warps(s) + skip_warps(s))


def matrix(rows: int, inputs: int, fmt: Format) -> int:
    """Bytes of a matrix as a tape: whole m-tiles, whole steps of the product."""
    return m_tiles(rows) * ROWS * _up(inputs, fmt.k_step) * fmt.weight


def layer_weights(s: Sizes, fmt: Format) -> dict[str, int]:
    """Bytes of a layer's matrices: the newest tap of `dilated`, the past ones, `residual`, `skip`."""
    tap = matrix(2 * s.HALF, s.R, fmt)
    return {
        "newest": tap,
        "past": (s.K - 1) * tap,
        "residual": matrix(s.R, s.HALF, fmt),
        "skip": matrix(s.S, s.HALF, fmt),
    }


def head_weights(s: Sizes, fmt: Format) -> int:
    return matrix(s.H, s.S, fmt) + matrix(s.A, s.H, fmt)


def model_weights(s: Sizes, fmt: Format) -> int:
    return s.LAYERS * sum(layer_weights(s, fmt).values()) + head_weights(s, fmt)


def stage_costs(s: Sizes) -> list[int]:
    """Multiply-adds of a stream in each layer and, last, in the head: what the cut over blocks balances."""
    layer = s.K * s.R * 2 * s.HALF + s.HALF * s.R + s.HALF * s.S
    return [layer] * s.LAYERS + [s.S * s.H + s.H * s.A]


def ring(s: Sizes, stages: int) -> int:
    """Bytes of a cp.async ring: one panel a warp and stage."""
    return stages * (threads(s) // WARP) * PANEL


def operand(channels: int, tile: int, fmt: Format) -> int:
    """Bytes of a tile's activations as a product takes them. A row ends in 16 bytes of nothing, so that the rows that
    ldmatrix reads at once lie in different banks."""
    return tile * (_up(channels, fmt.k_step) * fmt.operand + 16)


def buffers(s: Sizes, fmt: Format, tile: int, tiles: int, layers: int, head: bool) -> dict[str, int]:
    """Shared memory, without weights, of a resident block that owns so many layers and perhaps the head, with so many
    tiles in flight. A block with the head alone takes no x, and hears the skip sums as an operand."""
    owns = layers > 0
    logits = tile * s.A * 4
    needs = {
        # One of each tile that may arrive while another is worked on.
        "x_in": owns * tiles * operand(s.R, tile, fmt),
        "x_in_fp32": owns * tiles * tile * s.R * 4,
        "skip_in": owns * tiles * tile * s.S * 4,
        "skip_operand": head * (1 if owns else tiles) * operand(s.S, tile, fmt),
        # One of each, for the tile that is worked on. Two of the gates, because skip products lag behind the chain.
        "x": layers * operand(s.R, tile, fmt),
        "gates": owns * 2 * operand(s.HALF, tile, fmt),
        "past": layers * (s.K - 1) * operand(s.R, tile, fmt),
        "hidden": head * operand(s.H, tile, fmt),
        "logits": head * logits * (logits <= MOST_LOGITS),
        "biases": 4 * (layers * s.R + head * (s.S + s.H + s.A)),
        "scales": _scales(s, fmt, layers, head),
        "signals": SIGNALS,
    }
    return {name: size for name, size in needs.items() if size}


def block_shared(
    s: Sizes, fmt: Format, tile: int, tiles: int, layers: int, head: bool, in_registers: bool, head_in_l2: bool
) -> dict[str, int]:
    """All shared memory of a resident block, weights first."""
    weights = layer_weights(s, fmt)
    kept = sum(weights.values()) - in_registers * (weights["newest"] + weights["residual"])
    needs = {
        "layer_tapes": layers * kept,
        "head_tape": 0 if head_in_l2 else head * head_weights(s, fmt),
        "head_ring": ring(s, STAGES[0]) if head and head_in_l2 else 0,
    }
    return {name: size for name, size in needs.items() if size} | buffers(s, fmt, tile, tiles, layers, head)


def streaming_shared(s: Sizes, fmt: Format, tile: int) -> dict[str, int]:
    """Shared memory of a streaming block, without the ring. What the head needs lies where the layers' activations
    were, since both are never needed together; of the taps, one arrives while another is multiplied."""
    logits = tile * s.A * 4
    in_layers = tile * s.R * 4 + 2 * operand(s.R, tile, fmt) + 2 * operand(s.HALF, tile, fmt)
    in_head = operand(s.S, tile, fmt) + operand(s.H, tile, fmt) + logits * (logits <= MOST_LOGITS)
    return {"activations": max(in_layers, in_head), "skip_sums": tile * s.S * 4, "signals": SIGNALS}


def weight_registers(s: Sizes, fmt: Format, layers: int) -> int:
    """Registers of a chain thread that hold the newest taps and the residuals of so many layers: 4 for each m-tile of
    its warp and step of the product."""
    warps = chain_warps(s)
    newest = -(-m_tiles(2 * s.HALF) // warps) * (-(-s.R // fmt.k_step))
    residual = -(-m_tiles(s.R) // warps) * (-(-s.HALF // fmt.k_step))
    return 4 * layers * (newest + residual)


def registers(s: Sizes, tile: int, weights: int) -> int:
    """Estimate of a thread's registers, of the busiest warp: all threads of a block get the same number."""
    chain, skip = chain_warps(s), skip_warps(s)
    chained = max(-(-m_tiles(rows) // chain) for rows in (2 * s.HALF, s.R))
    others = max(-(-m_tiles(s.S) // skip), -(-m_tiles(max(s.H, s.A)) // (chain + skip)))
    return BASE_REGISTERS + max(weights + _sums(chained, tile), _sums(others, tile))


def _sums(tiles: int, streams: int) -> int:
    """Registers of the sums of so many m-tiles: 4 for each 8 streams."""
    return min(MOST_ACCUMULATORS, 4 * tiles * streams // 8)


def _scales(s: Sizes, fmt: Format, layers: int, head: bool) -> int:
    """int8: a factor for each row of the weights."""
    return 4 * (layers * (2 * s.HALF + s.R + s.S) + head * (s.H + s.A)) if fmt.name == "int8" else 0


def _up(n: int, unit: int) -> int:
    return -(-n // unit) * unit
