"""A plan as a kernel sees it: how many warps do what, where everything lies in shared memory, and the header
"shape.cuh" that says so to the compiler."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from dataclasses import dataclass

from .shapes import FRAGMENT_BYTES, OPERAND_BYTES, PANEL, Shape, steps

FORMATS = {"fp32": 0, "bf16": 1, "fp16": 2}
"""Number format → `Format` of numbers.cuh."""

_STREAM, _HEARING, _BARRIERS = 32, 24, 3 * 8  # bytes; see stages.cuh and resident.cuh
_ALIGNMENT = 128
_LOGITS_LIMIT = 48 << 10
"""Bytes of a tile's logits that stay in shared memory."""
_CARRIED_LIMIT = 64
"""Registers of a thread that hold x, and as many for the skip sum."""


@dataclass(frozen=True)
class Layout:
    """A kernel's cut of a model.

    tile          N, streams that are multiplied together: 8, 16 or 32
    tiles         under way at once in a pipeline
    first_layers  of each block of a pipeline, and LAYERS at the end; one block for `streaming_weights`
    chain, skip   warps
    cluster       whether blocks reach into each other's shared memory
    in_registers  whether the weights of the newest tap and of residual lie in registers
    stages        fragments of a warp's ring, a power of two; `streaming_weights` only
    """

    shape: Shape
    dtype: str
    variant: str
    tile: int
    chain: int
    skip: int
    tiles: int = 1
    first_layers: tuple[int, ...] = ()
    cluster: bool = False
    in_registers: bool = False
    stages: int = 0

    @property
    def resident(self) -> bool:
        return self.variant == "resident"

    @property
    def blocks(self) -> int:
        """Of a pipeline."""
        return len(self.first_layers) - 1 if self.resident else 1

    @property
    def threads(self) -> int:
        return 32 * (self.chain + self.skip)

    @property
    def own(self) -> int:
        """Layers of the block that has most of them."""
        first = self.first_layers
        return max(b - a for a, b in zip(first, first[1:], strict=False)) if self.resident else 0

    @property
    def head_alone(self) -> bool:
        """Whether the block with the head has no layer."""
        return self.resident and self.first_layers[-2] == self.shape.LAYERS

    # --- sizes in bytes -------------------------------------------------------------------------------------------

    def row(self, channels: int) -> int:
        """One stream's operands in shared memory."""
        return channels * OPERAND_BYTES[self.dtype] + 16

    def rows(self, channels: int) -> int:
        return self.tile * self.row(channels)

    def sums(self, channels: int) -> int:
        return channels * self.tile * 4

    @property
    def layer_weights(self) -> int:
        """Of a layer, in shared memory: all but what registers hold."""
        s = self.shape
        past = s.HALF // 8 * (s.K - 1) * steps(s.R, self.dtype)
        chain = s.HALF // 8 * steps(s.R, self.dtype) + s.R // PANEL * steps(s.HALF, self.dtype)
        skip = s.S // PANEL * steps(s.HALF, self.dtype)
        return FRAGMENT_BYTES * (past + skip + (0 if self.in_registers else chain))

    @property
    def head_weights(self) -> int:
        s = self.shape
        return FRAGMENT_BYTES * (s.H // PANEL * steps(s.S, self.dtype) + s.A // PANEL * steps(s.H, self.dtype))

    @property
    def chain_registers(self) -> int:
        """Registers of a chain thread that hold weights."""
        s = self.shape
        dilated, residual = -(-s.HALF // 8 // self.chain), -(-s.R // PANEL // self.chain)
        words = dilated * steps(s.R, self.dtype) + residual * steps(s.HALF, self.dtype)
        return 4 * self.own * words if self.in_registers else 0

    @property
    def logits_shared(self) -> bool:
        return self.tile * (self.shape.A + 4) * 4 <= _LOGITS_LIMIT

    def carried(self, channels: int, warps: int) -> int:
        """Registers of a thread that hold sums of so many channels shared by so many warps."""
        return -(-channels // PANEL // warps) * self.tile // 8 * 4

    @property
    def carries_in_registers(self) -> bool:
        """Whether x and the skip sums of `streaming_weights` stay in registers."""
        return self._x_in_registers and self._skip_in_registers

    @property
    def _x_in_registers(self) -> bool:
        return self.carried(self.shape.R, self.chain) <= _CARRIED_LIMIT

    @property
    def _skip_in_registers(self) -> bool:
        return self.carried(self.shape.S, self.skip) <= _CARRIED_LIMIT

    # --- where things lie -----------------------------------------------------------------------------------------

    @functools.cached_property
    def mailbox(self) -> dict[str, int]:
        """Offsets in a mailbox of `resident`, and its `bytes`; `head_bytes` where the head is alone in its block."""
        s = self.shape
        parts = [("x", self.rows(s.R)), ("x_sums", self.sums(s.R)), ("skip_sums", self.sums(s.S))]
        skips = [("skips", self.rows(s.S))]
        if self.head_alone and self.cluster:
            at = _offsets(parts)
            return at | {"skips": 0, "bytes": at["total"], "head_bytes": _offsets(skips)["total"]}
        at = _offsets(parts + skips)
        return at | {"bytes": at["total"], "head_bytes": at["total"]}

    @functools.cached_property
    def shared(self) -> dict[str, int]:
        """Offsets of `namespace at` by name; `total` is what a launch asks for."""
        return self._resident() if self.resident else self._streaming()

    def _streaming(self) -> dict[str, int]:
        s, past = self.shape, (self.shape.K - 1) * self.rows(self.shape.R)
        return _offsets([
            ("streams", self.tile * _STREAM), ("hearing", self.tile * _HEARING),
            ("inputs", self.tile * s.IN_DEPTH * 4), ("filters", self.tile * 4),
            ("x", 2 * self.rows(s.R)), ("gates", 2 * self.rows(s.HALF)), ("past", 2 * past),
            ("head_in", self.rows(s.S)), ("hidden", self.rows(s.H)),
            ("logits", self._logits), ("x_sums", self.sums(s.R)),
            ("rings", (self.chain + self.skip) * self.stages * FRAGMENT_BYTES),
        ])  # fmt: skip

    def _resident(self) -> dict[str, int]:
        s, mail = self.shape, self.mailbox
        common = [
            ("streams", self.tiles * self.tile * _STREAM), ("steps", self.tiles * 4),
            ("barriers", self.tiles * _BARRIERS), ("mail", 0),
        ]  # fmt: skip
        own = [
            ("layer_mail", self.tiles * mail["bytes"] if self.cluster else 0),
            ("hearing", self.tile * _HEARING), ("x", 2 * self.rows(s.R)), ("gates", 2 * self.rows(s.HALF)),
            ("past", self.own * (s.K - 1) * self.rows(s.R)), ("x_in", 0 if self.cluster else self.rows(s.R)),
            ("weights", self.own * self.layer_weights),
        ]  # fmt: skip
        head = [
            ("head_mail", self.tiles * mail["head_bytes"] if self.cluster and self.head_alone else 0),
            ("inputs", self.tiles * self.tile * s.IN_DEPTH * 4), ("filters", self.tiles * self.tile * 4),
            ("hidden", self.rows(s.H)), ("logits", self._logits),
            ("head_in", 0 if self.cluster else self.rows(s.S)), ("head_weights", self.head_weights),
        ]  # fmt: skip
        if not self.head_alone:
            return _offsets(common + own + head)
        layers, alone = _offsets(common + own), _offsets(common + head)
        return layers | alone | {"total": max(layers["total"], alone["total"])}

    @property
    def _logits(self) -> int:
        return self.tile * (self.shape.A + 4) * 4 if self.logits_shared else 0

    # --- the header -----------------------------------------------------------------------------------------------

    def header(self, forced: bool = False, logits: bool = False, trace: bool = False) -> str:
        """The text of "shape.cuh"."""
        s = self.shape
        plan: dict[str, int | bool] = {
            "FORMAT": FORMATS[self.dtype], "N": self.tile, "CHAIN": self.chain, "SKIP": self.skip,
            "TILES": self.tiles, "BLOCKS": self.blocks, "OWN": self.own, "CLUSTER": self.cluster,
            "CHAIN_IN_REGISTERS": self.in_registers, "STAGES": max(self.stages, 2),
            "LOGITS_SHARED": self.logits_shared,
            "X_IN_REGISTERS": self._x_in_registers,
            "SKIP_IN_REGISTERS": self._skip_in_registers,
            "FORCED": forced, "LOGITS": logits, "TRACE": trace,
        }  # fmt: skip
        spaces = {"shape": dataclasses.asdict(s), "plan": plan, "at": self.shared}
        if self.resident:
            spaces["mail"] = self.mailbox
        return "#pragma once\n" + "".join(_namespace(name, values) for name, values in spaces.items())


def _offsets(parts: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Of parts of so many bytes, one behind the other, each aligned; `total` bytes."""
    at, end = {}, 0
    for name, size in parts:
        at[name] = end
        end += -(-size // _ALIGNMENT) * _ALIGNMENT
    return at | {"total": end}


def _namespace(name: str, values: dict[str, int | bool]) -> str:
    lines = [
        f"constexpr {'bool' if isinstance(value, bool) else 'int'} {key} = {str(value).lower()};"
        for key, value in values.items()
    ]
    return f"namespace {name} {{\n" + "\n".join(lines) + "\n}\n"
