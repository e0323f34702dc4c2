"""Named weights → the layout of the native engine, and back.

Order of the packed arrays, as sound passes through them:

    mel.mean, mel.scale                      (M)
    conditioning.network.i, .stages.i        matrix; a picture's kernel as it is, (frequency taps, time taps)
    speakers                                 the table as it is, for looking up vectors
    conditioning, speaker                    matrix of all layers: L · G rows
    input                                    (taps, A or 1, R padded to 16)
    layers.l.dilated, layers.l.residual      one matrix per layer
    skip                                     one matrix: S rows, one segment per layer
    head.hidden, head.out                    matrix

each with a bias (zeros where the model has none); those of dilated, residual and skip hold one row per layer.

A matrix has rows, segments (taps, or layers) and k inputs per segment. Rows are padded with zeros to whole vectors of
`lanes`, the tanh and the sigmoid half of a gate each on its own; vectors are grouped into blocks of `accumulators`.
Then the order is block, segment, k, vector of the block, lane: the order in which the engine reads. In bf16, k is
padded to even and two neighbours in k share a 32-bit word, the lower one in its low half.

In bf16 the matrices dilated, residual, skip, head.hidden and head.out are rounded to 16 bits (nearest, ties to even),
and so are the activations that meet them; everything else stays fp32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .config import Stages, TransposedStage, WaveNetConfig
from .errors import BackendError
from .weights import weight_shapes

Array = NDArray[Any]
Packed = dict[str, Array]
Weights = Mapping[str, NDArray[np.float32]]

CHANNEL_PAD = 16
"""Channels of the input table are padded to as many on every instruction set."""


@dataclass(frozen=True)
class Layout:
    """How an instruction set wants its matrices."""

    lanes: int
    accumulators: int


def to_bf16(x: Array) -> NDArray[np.uint16]:
    """The upper halves of finite float32 numbers, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(x: Array) -> NDArray[np.float32]:
    """The float32 numbers that bf16 words stand for."""
    return (x.astype(np.uint32) << 16).view(np.float32)


def pack(config: WaveNetConfig, weights: Weights, layout: Layout, dtype: str) -> Packed:
    """All arrays of the model in the engine's layout. Raises `BackendError` unless `weights` holds exactly the tensors
    of `weight_shapes(config)`, each of its shape."""
    shapes = weight_shapes(config)
    if wrong := sorted(shapes.keys() ^ weights.keys()):
        raise BackendError(f"cannot pack the model: tensors {wrong} are missing or belong to another configuration")
    for name, shape in shapes.items():
        if weights[name].shape != shape:
            raise BackendError(f"cannot pack {name}: it has shape {weights[name].shape}, the model needs {shape}")
    return {entry.name: entry.pack(weights, layout, dtype) for entry in _entries(config)}


def streamed_bytes(packed: Packed) -> int:
    """Bytes that are read for every sample: the matrices dilated, residual, skip and head, padding included."""
    streamed = (name for name in packed if name.startswith(("layers.", "skip.", "head.")))
    return sum(packed[name].nbytes for name in streamed if not name.endswith(".bias"))


def unpack(config: WaveNetConfig, packed: Packed, layout: Layout, dtype: str) -> dict[str, NDArray[np.float32]]:
    """The named weights again: what `pack` was given, rounded to bf16 where it rounds."""
    found: dict[str, NDArray[np.float32]] = {}
    for entry in _entries(config):
        found |= entry.unpack(packed[entry.name], layout, dtype)
    return {name: found[name] for name in weight_shapes(config)}


# --- kinds of packed arrays -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plain:
    """A tensor as it is."""

    name: str

    def pack(self, weights: Weights, layout: Layout, dtype: str) -> Array:
        return np.ascontiguousarray(weights[self.name], np.float32)

    def unpack(self, array: Array, layout: Layout, dtype: str) -> dict[str, Array]:
        return {self.name: array.copy()}


@dataclass(frozen=True)
class _Input:
    """(R, A or 1, taps) ⇄ (taps, A or 1, R padded)."""

    name: str
    channels: int

    def pack(self, weights: Weights, layout: Layout, dtype: str) -> Array:
        return np.ascontiguousarray(_pad(weights[self.name].astype(np.float32).transpose(2, 1, 0), -1, CHANNEL_PAD))

    def unpack(self, array: Array, layout: Layout, dtype: str) -> dict[str, Array]:
        return {self.name: array[..., : self.channels].transpose(2, 1, 0).copy()}


@dataclass(frozen=True)
class _Bias:
    """The biases of one or more layers, `groups` padded pieces each; zeros for a bias that the model does not have."""

    name: str
    tensors: tuple[str | None, ...]
    width: int
    groups: int = 1
    multiple: int | None = None
    """Padding where it is not the layout's lanes."""

    def pack(self, weights: Weights, layout: Layout, dtype: str) -> Array:
        rows = [np.zeros(self.width, np.float32) if t is None else weights[t].astype(np.float32) for t in self.tensors]
        stacked = np.array(rows, np.float32).reshape(len(rows) * self.groups, self.width // self.groups)
        return _pad(stacked, -1, self.multiple or layout.lanes).ravel()

    def unpack(self, array: Array, layout: Layout, dtype: str) -> dict[str, Array]:
        per_group = self.width // self.groups
        if not self.tensors:
            return {}
        rows = array.reshape(len(self.tensors) * self.groups, -1)[:, :per_group].reshape(len(self.tensors), -1)
        return {t: row.copy() for t, row in zip(self.tensors, rows, strict=True) if t is not None}


@dataclass(frozen=True)
class _Matrix:
    """One matrix of one or more tensors, stacked along its rows or along its segments.

    `order` transposes a tensor's axes to (rows, segments, k); 1×1 convolutions, (rows, k), have order None."""

    name: str
    tensors: tuple[str, ...]
    shape: tuple[int, int, int]
    """(rows, segments, k) of one tensor."""
    order: tuple[int, int, int] | None = None
    stack: Literal["rows", "segments"] = "rows"
    groups: int = 1
    narrow: bool = False
    """16 bits in the number format bf16."""

    def pack(self, weights: Weights, layout: Layout, dtype: str) -> Array:
        pieces = []
        for name in self.tensors:
            tensor = weights[name].astype(np.float32)
            piece = tensor[:, None, :] if self.order is None else tensor.transpose(self.order)
            rows, segments, k = piece.shape
            piece = _pad(piece.reshape(self.groups, rows // self.groups, segments, k), 1, layout.lanes)
            pieces.append(piece.reshape(-1, segments, k))
        matrix: Array = np.concatenate(pieces, axis=0 if self.stack == "rows" else 1)
        paired = self.narrow and dtype == "bf16"
        if paired:
            matrix = to_bf16(_pad(matrix, 2, 2))
        blocks = [self._pack_block(block, layout, paired) for block in _blocks(matrix, layout)]
        return np.concatenate(blocks)

    @staticmethod
    def _pack_block(block: Array, layout: Layout, paired: bool) -> Array:
        """(rows of the block, segments, k) → flat."""
        rows, segments, k = block.shape
        vectors = block.reshape(rows // layout.lanes, layout.lanes, segments, k)
        if not paired:
            return vectors.transpose(2, 3, 0, 1).ravel()
        pairs = vectors.reshape(rows // layout.lanes, layout.lanes, segments, k // 2, 2)
        return pairs.transpose(2, 3, 0, 1, 4).ravel()

    def unpack(self, array: Array, layout: Layout, dtype: str) -> dict[str, Array]:
        paired = self.narrow and dtype == "bf16"
        rows, segments, k = self.shape
        count, stored_k = len(self.tensors), k + k % 2 if paired else k
        group_rows = -(-rows // self.groups // layout.lanes) * layout.lanes
        total_rows, total_segments = group_rows * self.groups, segments
        if self.stack == "rows":
            total_rows *= count
        else:
            total_segments *= count
        matrix = np.empty((total_rows, total_segments, stored_k), array.dtype)
        used = 0
        for block in _blocks(matrix, layout):
            vectors = block.shape[0] // layout.lanes
            flat, used = array[used : used + block.size], used + block.size
            if paired:
                pairs = flat.reshape(total_segments, stored_k // 2, vectors, layout.lanes, 2)
                block[:] = pairs.transpose(2, 3, 0, 1, 4).reshape(block.shape)
            else:
                whole = flat.reshape(total_segments, stored_k, vectors, layout.lanes)
                block[:] = whole.transpose(2, 3, 0, 1).reshape(block.shape)
        if paired:
            matrix = from_bf16(matrix)
        pieces = np.split(matrix, count, axis=0 if self.stack == "rows" else 1)
        return {name: self._tensor(piece) for name, piece in zip(self.tensors, pieces, strict=True)}

    def _tensor(self, piece: Array) -> Array:
        """A padded piece (rows, segments, k) → the tensor in its own axes."""
        rows, segments, k = self.shape
        grouped = piece.reshape(self.groups, -1, segments, piece.shape[-1])[:, : rows // self.groups, :, :k]
        whole = grouped.reshape(rows, segments, k)
        if self.order is None:
            return whole[:, 0, :].copy()
        return whole.transpose(tuple(np.argsort(self.order))).copy()


_Entry = _Plain | _Input | _Bias | _Matrix


def _blocks(matrix: Array, layout: Layout) -> list[Array]:
    """Views of the rows that one pass of the engine's accumulators covers."""
    step = layout.lanes * layout.accumulators
    return [matrix[row : row + step] for row in range(0, len(matrix), step)]


def _pad(x: Array, axis: int, multiple: int) -> Array:
    """Zeros appended along an axis up to a multiple."""
    missing = -x.shape[axis] % multiple
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, missing)
    return np.pad(x, widths)


# --- what a model packs into ------------------------------------------------------------------------------------


def _entries(config: WaveNetConfig) -> Iterator[_Entry]:
    """The packed arrays of a model, in the order of the module's docstring."""
    c, b = config, config.biases
    layers, half, P = range(c.n_layers), c.gate_channels // 2, c.speakers.channels
    yield from _conditioning_entries(c)

    def each(part: str, present: bool = True, count: int = c.n_layers) -> tuple[Any, ...]:
        return tuple(f"layers.{i}.{part}" if present else None for i in range(count))

    G, C = c.gate_channels, c.conditioning_channels
    yield _Matrix("conditioning.weight", each("conditioning.weight"), (G, 1, C), groups=2)
    yield _Bias("conditioning.bias", each("conditioning.bias", b.conditioning), G, groups=2)
    if P:
        yield _Matrix("speaker.weight", each("speaker.weight"), (G, 1, P), groups=2)
        yield _Bias("speaker.bias", each("speaker.bias", b.speaker), G, groups=2)
    R, S, H, A = c.residual_channels, c.skip_channels, c.head_channels, c.out_channels
    yield _Input("input.weight", R)
    yield _Bias("input.bias", ("input.bias" if b.input else None,), R, multiple=CHANNEL_PAD)
    for i in layers:
        name = f"layers.{i}.dilated.weight"
        yield _Matrix(name, (name,), (G, c.kernel_size, R), (0, 2, 1), groups=2, narrow=True)
        name = f"layers.{i}.residual.weight"
        if i + 1 < c.n_layers:
            yield _Matrix(name, (name,), (R, 1, half), narrow=True)
    yield _Bias("dilated.bias", each("dilated.bias", b.dilated), G, groups=2)
    yield _Bias("residual.bias", each("residual.bias", b.residual, c.n_layers - 1), R)
    yield _Matrix("skip.weight", each("skip.weight"), (S, 1, half), stack="segments", narrow=True)
    yield _Bias("skip.bias", each("skip.bias", b.skip), S)
    yield _Matrix("head.hidden.weight", ("head.hidden.weight",), (H, 1, S), narrow=True)
    yield _Bias("head.hidden.bias", ("head.hidden.bias" if b.head_hidden else None,), H)
    yield _Matrix("head.out.weight", ("head.out.weight",), (A, 1, H), narrow=True)
    yield _Bias("head.out.bias", ("head.out.bias" if b.head_out else None,), A)


def _conditioning_entries(config: WaveNetConfig) -> Iterator[_Entry]:
    """Statistics, the conditioning network, and the speakers' table."""
    conditioning, width = config.conditioning, config.n_mels
    if conditioning.standardise:
        yield _Plain("mel.mean")
        yield _Plain("mel.scale")
    for i, conv in enumerate(conditioning.network):
        name = f"conditioning.network.{i}"
        shape = (conv.channels, conv.kernel_size, width)
        yield _Matrix(f"{name}.weight", (f"{name}.weight",), shape, (0, 2, 1))
        yield _Bias(f"{name}.bias", (f"{name}.bias" if conv.bias else None,), conv.channels)
        width = conv.channels
    if isinstance(conditioning.upsampling, Stages):
        for i, stage in enumerate(conditioning.upsampling.stages):
            name, out = f"conditioning.stages.{i}", stage.channels or width
            bias = f"{name}.bias" if stage.bias else None
            if stage.image:
                yield _Plain(f"{name}.weight")
                yield _Bias(f"{name}.bias", (bias,), 1, multiple=1)
            else:
                order = (1, 2, 0) if isinstance(stage, TransposedStage) else (0, 2, 1)
                shape = (out, stage.kernel_size, width)
                yield _Matrix(f"{name}.weight", (f"{name}.weight",), shape, order)
                yield _Bias(f"{name}.bias", (bias,), out)
            width = out
    if config.speakers.count:
        yield _Plain("speakers.weight")
