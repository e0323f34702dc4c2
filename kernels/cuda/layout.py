"""A plan as a kernel sees it: how many warps do what, where everything lies in shared memory, and the header
"shape.cuh" that says so to the compiler. All sizes in bytes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass

from .shapes import FRAGMENT_BYTES, OPERAND_BYTES, PANEL, Shape, steps

FORMATS = {"fp32": 0, "bf16": 1, "fp16": 2, "int8": 3}
"""Number format → `Format` of numbers.cuh."""

_STREAM, _HEARING, _RING, _WORD = 32, 24, 12, 8  # see stages.cuh and handover.cuh
_ALIGNMENT = 128
MOST_LOGITS = 48 << 10
"""Of a tile's logits that stay in shared memory; more (thousands of classes) go through global memory."""
MOST_AHEAD = 8
"""Fragments of a matrix of a layer that a chain thread of `resident` reads from shared memory before the barrier behind
which it needs them, into 32 registers; more of them it reads behind the barrier. See `Home` of resident.cuh."""
MOST_PLACES = 4
"""Layers whose gates and inputs a block of `resident` keeps until the skip warps have seen them."""
MOST_CARRIED = 16
"""Registers of a thread that hold x between layers in `streaming_weights`, and as many for the skip sums; more lie in
global memory, where only the warp that needs them reads and writes. With more in registers wide tiles spill."""


def used_of(dtype: str, tile: int, batch: int) -> int:
    """`Layout.used` for so many streams. Tensor cores multiply all streams of an eight at once, so that other formats
    have one kernel for every batch; in fp32 each stream's products take their own time. A power of two, so that few
    kernels are compiled."""
    places = 1 << (batch - 1).bit_length()
    return places if dtype == "fp32" and places < tile else 0


@dataclass(frozen=True)
class Layout:
    """A kernel's cut of a model.

    tile          N, streams that are multiplied together: 8, 16 or 32
    chain, skip   warps of a block: for gates and, in `streaming_weights`, the residual; for skip sums and rings
    residual      further warps of a block of `resident`, for the residual
    tiles         under way at once in a pipeline
    first_layers  of each team of a pipeline, and LAYERS at the end; () for `streaming_weights`
    team          blocks that share the rows of each of their layers: 1, or in a grid more, where a layer does not fit
                  one block; the head is then a team of its own, of one block
    cluster       whether blocks reach into each other's shared memory
    newest_in_registers, residual_in_registers  whether these weights lie in registers
    head_in_l2    whether the head's weights are read from the second-level cache
    out_in_l2     where not, how many steps of its second matrix are, the last ones
    input_shared  whether the newest input's table lies in shared memory, beside the head
    stages        fragments of a warp's ring, a power of two; `streaming_weights` only
    used          streams of a tile for which products are made, the first ones; 0 for all. See `used_of`
    """

    shape: Shape
    dtype: str
    variant: str
    tile: int
    chain: int
    skip: int
    tiles: int = 1
    first_layers: tuple[int, ...] = ()
    team: int = 1
    cluster: bool = False
    newest_in_registers: bool = False
    residual_in_registers: bool = False
    head_in_l2: bool = False
    input_shared: bool = False
    stages: int = 0
    residual: int = 0
    used: int = 0
    out_in_l2: int = 0

    @property
    def resident(self) -> bool:
        return self.variant == "resident"

    @property
    def teams(self) -> int:
        """Of a pipeline."""
        return len(self.first_layers) - 1 if self.resident else 1

    @property
    def blocks(self) -> int:
        """Of a pipeline."""
        return self.teams if self.team == 1 else (self.teams - 1) * self.team + 1

    @property
    def taken(self) -> int:
        """Places of a tile in which streams may be: the first ones."""
        return self.used or self.tile

    @property
    def places(self) -> int:
        """For x and gates of so many layers, by turns: as many as a block of `resident` has layers, so that the chain
        waits for no skip warp, up to what named barriers there are for and what is cheap."""
        return min(max(2, max(self.own, default=0)), MOST_PLACES)

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * (self.chain + self.residual + self.skip)

    @property
    def own(self) -> tuple[int, ...]:
        """Layers of each team."""
        return tuple(b - a for a, b in zip(self.first_layers, self.first_layers[1:], strict=False))

    # --- sizes ----------------------------------------------------------------------------------------------------

    def rows(self, channels: int) -> int:
        """A tile's operands in shared memory; see `Rows` of products.cuh."""
        return self.tile * (channels * OPERAND_BYTES[self.dtype] + 16)

    def sums(self, channels: int) -> int:
        return channels * self.tile * 4

    def mailed(self, channels: int) -> int:
        """A word for each number."""
        return _aligned(channels * self.tile * _WORD)

    def numbers(self, *channels: int) -> int:
        """Numbers of a vector of any of these sizes that wait for their largest: int8 only. See `Target`."""
        return self.tile * (max(channels) + 4) * 4 if self.dtype == "int8" else 0

    @functools.cached_property
    def panels(self) -> tuple[int, int, int]:
        """Of dilated, residual and skip, in the block that has most of a layer."""
        s = self.shape
        dilated, residual, skip = (-(-n // self.team) for n in (s.HALF // 8, s.R // PANEL, s.S // PANEL))
        return dilated, residual, skip

    @functools.cached_property
    def layer_fragments(self) -> dict[str, int]:
        """Fragments of each matrix of a layer, in the block that has most of it."""
        s, (dilated, residual, skip) = self.shape, self.panels
        of_x, of_gates = steps(s.R, self.dtype), steps(s.HALF, self.dtype)
        return {
            "past": dilated * (s.K - 1) * of_x, "newest": dilated * of_x, "residual": residual * of_gates,
            "skip": skip * of_gates,
        }  # fmt: skip

    @property
    def layer_bytes(self) -> int:
        """Of a layer's weights, wherever they live, in the block that has most of it."""
        return FRAGMENT_BYTES * sum(self.layer_fragments.values())

    @property
    def layer_weights(self) -> int:
        """Of a layer, in the shared memory of a block: all but what registers hold."""
        fragments = self.layer_fragments
        return FRAGMENT_BYTES * (fragments["past"] + fragments["skip"]) + self.chain_bytes

    @property
    def chain_bytes(self) -> int:
        """Of a layer's weights, what the chain reads from shared memory between a layer's x and the next."""
        fragments = self.layer_fragments
        newest = 0 if self.newest_in_registers else fragments["newest"]
        return FRAGMENT_BYTES * (newest + (0 if self.residual_in_registers else fragments["residual"]))

    @property
    def thread_fragments(self) -> tuple[int, int]:
        """Of a layer's newest tap and of its residual, those that one thread multiplies."""
        s, (dilated, residual, _) = self.shape, self.panels
        return (
            -(-dilated // self.chain) * steps(s.R, self.dtype),
            -(-residual // self.residual) * steps(s.HALF, self.dtype),
        )  # fmt: skip

    @property
    def head_alone(self) -> bool:
        """Whether the block with the head has no layer."""
        return self.resident and self.own[-1:] == (0,)

    @property
    def hidden_fragments(self) -> int:
        """Of the head's first matrix, those that one thread multiplies."""
        return -(-(self.shape.H // PANEL) // (self.threads // 32)) * steps(self.shape.S, self.dtype)

    def hidden_in_registers(self, alone: bool) -> bool:
        """Whether the head's first matrix lies in registers: in a block of its own, where no layer needs them, if it is
        small enough. In fp32, whose heads are twice as large, more of it does while few streams need registers."""
        most = 2 * MOST_AHEAD if self.dtype == "fp32" and self.taken <= 2 else MOST_AHEAD
        return alone and not self.head_in_l2 and self.hidden_fragments <= most

    @property
    def head_fragments(self) -> tuple[int, int]:
        """Of the head's two matrices."""
        s = self.shape
        return s.H // PANEL * steps(s.S, self.dtype), s.A // PANEL * steps(s.H, self.dtype)

    @property
    def head_weights(self) -> int:
        return FRAGMENT_BYTES * sum(self.head_fragments)

    @property
    def head_from_l2(self) -> int:
        """Of these, what is read from there for every sample."""
        of_out = FRAGMENT_BYTES * self.shape.A // PANEL * self.out_in_l2
        return self.head_weights if self.head_in_l2 else of_out

    @property
    def model_weights(self) -> int:
        """All that a sample passes, wherever it lies; in a block's share of it, where a team has several."""
        return self.shape.LAYERS * FRAGMENT_BYTES * sum(self.layer_fragments.values()) + self.head_weights

    def weight_registers(self, own: int) -> tuple[int, int]:
        """Registers that hold weights in a block of so many layers: of a thread for gates, and of one for x."""
        newest, residual = self.thread_fragments
        return (
            4 * own * newest if self.newest_in_registers else 0, 4 * own * residual if self.residual_in_registers else 0
        )  # fmt: skip

    def carried(self, channels: int, warps: int) -> int:
        """Registers of a thread that hold sums of so many channels shared by so many warps."""
        return -(-channels // PANEL // warps) * self.tile // 8 * 4

    @property
    def x_in_registers(self) -> bool:
        """Whether x stays in registers from layer to layer; `resident` always does."""
        return self.resident or self.carried(self.shape.R, self.chain) <= MOST_CARRIED

    @property
    def skip_in_registers(self) -> bool:
        return self.resident or self.carried(self.shape.S, self.skip) <= MOST_CARRIED

    @property
    def pairs_ahead(self) -> int:
        """Pairs of steps of a product that are loaded ahead of it, into registers that wide tiles, fp32 and blocks with
        weights in registers need for other things, and those of teams most of."""
        held = self.newest_in_registers or self.residual_in_registers
        return 1 if held or self.tile > 8 or self.dtype == "fp32" else 8 if self.team == 1 else 2

    @property
    def logits_shared(self) -> bool:
        return self._logits <= MOST_LOGITS

    @property
    def _logits(self) -> int:
        return self.tile * (self.shape.A + 4) * 4

    # --- what lies in shared memory, in order ---------------------------------------------------------------------

    def common_parts(self) -> dict[str, int]:
        """Of every block of `resident`."""
        tiles = self.tiles
        return {"streams": tiles * self.tile * _STREAM, "steps": tiles * 4}

    def layer_parts(self, own: int) -> dict[str, int]:
        """Of a block with so many layers, beside what is common."""
        s, pasts = self.shape, 2 if self.tiles > 1 else 1  # of the tile at hand, and of the next
        return {
            "mail": self.tiles * self.mailbox["all_skips"] if self.cluster else 0, "hearing": self.tile * _HEARING,
            "ring_table": s.LAYERS * _RING, "x": self.places * self.rows(s.R),
            "gates": self.places * self.rows(s.HALF), "numbers": self.numbers(s.R, s.HALF),
            "weights": own * self.layer_weights, "past": pasts * own * (s.K - 1) * self.rows(s.R),
            "residual_biases": own * s.R * 4,
        }  # fmt: skip

    def head_parts(self, alone: bool) -> dict[str, int]:
        """Of the block with the head, beside what is common; `alone`: without layers."""
        s, tiles, held = self.shape, self.tiles, int(self.hidden_in_registers(alone))
        return {
            "head_mail": tiles * self.mailed(s.S) if self.cluster else 0,
            "inputs": tiles * self.tile * s.IN_DEPTH * 4, "filters": tiles * self.tile * 4,
            "head_biases": (s.H + s.A) * 4, "hidden": self.rows(s.H),
            "logits": self._logits if self.logits_shared else 0, "head_numbers": self.numbers(s.S, s.H),
            "head_in": self.rows(s.S),
            "head_weights": self._head_shared(held),
            "input_table": s.INPUT_ROWS * s.R * 4 if self.input_shared else 0,
        }  # fmt: skip

    def _head_shared(self, held: int) -> int:
        """Of the head's weights, where so many matrices are in registers."""
        return 0 if self.head_in_l2 else FRAGMENT_BYTES * sum(self.head_fragments[held:]) - self.head_from_l2

    def block_parts(self, own: int, head: bool) -> dict[str, int]:
        """All shared memory of one block by name, each aligned."""
        parts = (
            self.common_parts() | (self.layer_parts(own) if own else {}) | (self.head_parts(own == 0) if head else {})
        )
        return {name: _aligned(size) for name, size in parts.items() if size}

    def streaming_parts(self) -> dict[str, int]:
        """All shared memory of a block of `streaming_weights` by name, each aligned."""
        s, tile = self.shape, self.tile
        parts = {
            "streams": tile * _STREAM, "ring_table": s.LAYERS * _RING, "hearing": tile * _HEARING,
            "inputs": tile * s.IN_DEPTH * 4, "filters": tile * 4,
            "x": self.places * self.rows(s.R), "gates": self.places * self.rows(s.HALF),
            "past": 2 * (s.K - 1) * self.rows(s.R), "head_in": self.rows(s.S), "hidden": self.rows(s.H),
            "logits": self._logits if self.logits_shared else 0, "x_sums": self.sums(s.R),
            "numbers": self.numbers(s.R, s.HALF), "skip_numbers": self.numbers(s.S, s.H),
            "rings": (self.chain + self.skip) * self.stages * FRAGMENT_BYTES,
        }  # fmt: skip
        return {name: _aligned(size) for name, size in parts.items()}

    @functools.cached_property
    def mailbox(self) -> dict[str, int]:
        """Offsets in a team's mailbox; `all_skips` is the head's, and in a cluster lies apart. See handover.cuh."""
        s = self.shape
        gates = self.mailed(s.HALF) if self.team > 1 else 0
        at, end = _offsets({"x": self.mailed(s.R), "skips": self.mailed(s.S), "gates": gates})
        return {**at, "all_skips": end, "bytes": end + self.mailed(s.S)}

    @functools.cached_property
    def shared(self) -> int:
        """Of a launch: what its largest block needs."""
        return self._map["total"]

    @functools.cached_property
    def _map(self) -> dict[str, int]:
        """Offsets of `namespace at`."""
        if not self.resident:
            at, total = _offsets(self.streaming_parts())
            return at | {"total": total}
        own, last = max(self.own), self.own[-1]
        common, begin = _offsets(self.common_parts())
        layers, end = _offsets(self.layer_parts(own), begin)
        behind = _offsets(self.layer_parts(last), begin)[1] if last else begin
        head, head_end = _offsets(self.head_parts(last == 0), behind)
        for name in ("past", "residual_biases"):  # behind the weights of as many layers as a block has
            layers.pop(name)
        return common | layers | head | {"total": max(end, head_end)}

    # --- the header -----------------------------------------------------------------------------------------------

    def header(self, forced: bool = False, logits: bool = False, trace: bool = False) -> str:
        """The text of "shape.cuh"."""
        plan: dict[str, int | bool] = {
            "FORMAT": FORMATS[self.dtype], "N": self.tile, "USED": self.taken,
            "CHAIN": self.chain, "RESIDUAL": self.residual, "SKIP": self.skip,
            "TILES": self.tiles, "PLACES": self.places, "BLOCKS": self.blocks, "TEAMS": self.teams, "TEAM": self.team,
            "OWN": max(self.own, default=0), "CLUSTER": self.cluster,
            "NEWEST_IN_REGISTERS": self.newest_in_registers, "RESIDUAL_IN_REGISTERS": self.residual_in_registers,
            "AHEAD": self.pairs_ahead, "MOST_AHEAD": MOST_AHEAD, "HEAD_IN_L2": self.head_in_l2,
            "OUT_IN_L2": self.out_in_l2, "INPUT_SHARED": self.input_shared, "HEAD_ALONE": self.head_alone,
            "HIDDEN_IN_REGISTERS": self.hidden_in_registers(self.head_alone),
            "STAGES": max(self.stages, 2),
            "LOGITS_SHARED": self.logits_shared, "X_IN_REGISTERS": self.x_in_registers,
            "SKIP_IN_REGISTERS": self.skip_in_registers, "FORCED": forced, "LOGITS": logits, "TRACE": trace,
        }  # fmt: skip
        spaces = {"shape": dataclasses.asdict(self.shape), "plan": plan, "at": self._map}
        return header_text(spaces | ({"mail": self.mailbox} if self.resident else {}))


def header_text(spaces: Mapping[str, Mapping[str, int | bool]]) -> str:
    """A header of constants: namespace → name → value."""

    def constant(name: str, value: int | bool) -> str:
        return f"constexpr {'bool' if isinstance(value, bool) else 'int'} {name} = {str(value).lower()};\n"

    bodies = {name: "".join(constant(*pair) for pair in values.items()) for name, values in spaces.items()}
    return "#pragma once\n" + "".join(f"namespace {name} {{\n{body}}}\n" for name, body in bodies.items())


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _offsets(parts: Mapping[str, int], begin: int = 0) -> tuple[dict[str, int], int]:
    """Where each part begins, one behind the other, and where the last one ends."""
    at = {}
    for name, size in parts.items():
        at[name] = begin
        begin += _aligned(size)
    return at, begin
