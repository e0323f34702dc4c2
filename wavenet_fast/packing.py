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
`lanes`, the tanh and the sigmoid half of a gate each on its own, whose vectors then take turns; vectors are grouped
into blocks of `accumulators`. k is padded with zeros to whole runs of `run`. Then the order is block, segment, run,
vector of the block, word of the run, lane, k within the word: the order in which the engine reads. `pack` neighbours in
k share a 32-bit word, the first in its lowest bits.

The number format is that of the matrices dilated, residual, skip, head.hidden and head.out (the `streamed` ones, which
every sample passes). In bf16 and in int8 the matrix `conditioning` and what it multiplies are bf16. Everything else
stays fp32.

    fp32  as they are
    bf16  rounded to nearest, ties to even, and so are the activations that meet them
    fp16  the same in half precision; activations stay fp32
    int8  round(w / scale) with scale = max|w| / 127 over each row of a segment, in an array of their own, NAME.scale,
          (segments, rows); activations are rounded alike, each vector by its own largest
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


DTYPES = ("fp32", "bf16", "fp16", "int8")
"""Number formats of the streamed matrices."""


@dataclass(frozen=True)
class Layout:
    """How an instruction set wants the matrices of one number format."""

    lanes: int
    accumulators: int
    run: int = 1
    pack: int = 1


def to_bf16(x: Array) -> NDArray[np.uint16]:
    """The upper halves of finite float32 numbers, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(x: Array) -> NDArray[np.float32]:
    """The float32 numbers that bf16 words stand for."""
    return (x.astype(np.uint32) << 16).view(np.float32)


def quantise(rows: Array) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """int8 numbers (…, k) and their scales (…): rows ≈ numbers · scales, each row by its own largest value."""
    scales = np.abs(rows).max(axis=-1, initial=0).astype(np.float32) / np.float32(127)
    numbers = np.rint(rows / np.where(scales > 0, scales, 1)[..., None])
    return np.clip(numbers, -127, 127).astype(np.int8), scales


def rounded(weights: Weights, dtype: str) -> dict[str, NDArray[np.float32]]:
    """The weights that a number format really multiplies: streamed matrices and the projection of the conditioning
    rounded, everything else as it is.

    Raises `BackendError` where a weight is too large for fp16."""
    return {name: _round(name, w, _format_of(name, dtype)) for name, w in weights.items()}


def hearing_format(dtype: str) -> str:
    """In which format conditioning meets its projection, `layers.*.conditioning.weight`."""
    return "bf16" if dtype in ("bf16", "int8") else "fp32"


def is_streamed(name: str) -> bool:
    """Whether a tensor is one of the matrices that every sample passes."""
    return name.endswith(
        (".dilated.weight", ".residual.weight", ".skip.weight", "head.hidden.weight", "head.out.weight")
    )


def _format_of(name: str, dtype: str) -> str:
    if name.endswith(".conditioning.weight"):
        return hearing_format(dtype)
    return dtype if is_streamed(name) else "fp32"


def _round(name: str, weight: Array, dtype: str) -> NDArray[np.float32]:
    if dtype == "bf16":
        return from_bf16(to_bf16(weight))
    if dtype == "fp16":
        return to_fp16(name, weight).astype(np.float32)
    if dtype == "int8":
        rows = np.moveaxis(weight, 1, -1)  # (rows, in) or (rows, taps, in): one scale for each row of a segment
        numbers, scales = quantise(rows)
        return np.ascontiguousarray(np.moveaxis(numbers * scales[..., None], -1, 1), np.float32)
    return weight


def to_fp16(name: str, x: Array) -> NDArray[np.float16]:
    """Rounded to nearest, ties to even. Raises `BackendError` for what fp16 cannot hold."""
    with np.errstate(over="ignore"):
        half = x.astype(np.float16)
    if not np.isfinite(half).all():
        raise BackendError(f"{name} holds {np.abs(x).max():g}; fp16 ends at 65504. Use dtype 'bf16' or 'fp32'")
    return half


def pack(config: WaveNetConfig, weights: Weights, layouts: Mapping[str, Layout], dtype: str) -> Packed:
    """All arrays of the model as an instruction set reads them, given its layout of each number format.

    Raises `BackendError` unless `weights` holds exactly the tensors of `weight_shapes(config)`, each of its shape."""
    shapes = weight_shapes(config)
    if wrong := sorted(shapes.keys() ^ weights.keys()):
        raise BackendError(f"cannot pack the model: tensors {wrong} are missing or belong to another configuration")
    for name, shape in shapes.items():
        if weights[name].shape != shape:
            raise BackendError(f"cannot pack {name}: it has shape {weights[name].shape}, the model needs {shape}")
    packed: Packed = {}
    for entry in _entries(config, dtype):
        packed |= entry.pack(weights, _layout_of(entry, layouts))
    return packed


def unpack(
    config: WaveNetConfig, packed: Packed, layouts: Mapping[str, Layout], dtype: str
) -> dict[str, NDArray[np.float32]]:
    """The named weights again, as `rounded` gives them."""
    found: dict[str, NDArray[np.float32]] = {}
    for entry in _entries(config, dtype):
        found |= entry.unpack(packed, _layout_of(entry, layouts))
    return {name: found[name] for name in weight_shapes(config)}


# --- kinds of packed arrays -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plain:
    """A tensor as it is."""

    name: str

    def pack(self, weights: Weights, layout: Layout) -> Packed:
        return {self.name: np.ascontiguousarray(weights[self.name], np.float32)}

    def unpack(self, packed: Packed, layout: Layout) -> dict[str, Array]:
        return {self.name: packed[self.name].copy()}


@dataclass(frozen=True)
class _Input:
    """(R, A or 1, taps) ⇄ (taps, A or 1, R padded)."""

    name: str
    channels: int

    def pack(self, weights: Weights, layout: Layout) -> Packed:
        table = weights[self.name].astype(np.float32).transpose(2, 1, 0)
        return {self.name: np.ascontiguousarray(_pad(table, -1, CHANNEL_PAD))}

    def unpack(self, packed: Packed, layout: Layout) -> dict[str, Array]:
        return {self.name: packed[self.name][..., : self.channels].transpose(2, 1, 0).copy()}


@dataclass(frozen=True)
class _Bias:
    """The biases of one or more layers; zeros for a bias that the model does not have."""

    name: str
    tensors: tuple[str | None, ...]
    width: int
    halves: int = 1
    """2 for a gate: see `_take_turns`."""
    multiple: int | None = None
    """Padding where it is not the layout's lanes."""

    def pack(self, weights: Weights, layout: Layout) -> Packed:
        rows = [np.zeros(self.width, np.float32) if t is None else weights[t].astype(np.float32) for t in self.tensors]
        stacked = np.array(rows, np.float32).reshape(len(rows), self.width)
        padded = [_take_turns(row, self.halves, self.multiple or layout.lanes) for row in stacked]
        return {self.name: np.concatenate(padded) if padded else np.zeros(0, np.float32)}

    def unpack(self, packed: Packed, layout: Layout) -> dict[str, Array]:
        if not self.tensors:
            return {}
        rows = np.split(packed[self.name], len(self.tensors))
        lanes = self.multiple or layout.lanes
        found = {t: _undo_turns(row, self.halves, lanes, self.width) for t, row in zip(self.tensors, rows, strict=True)}
        return {t: row for t, row in found.items() if t is not None}


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
    halves: int = 1
    dtype: str = "fp32"

    def pack(self, weights: Weights, layout: Layout) -> Packed:
        pieces = []
        for name in self.tensors:
            tensor = weights[name].astype(np.float32)
            piece = tensor[:, None, :] if self.order is None else tensor.transpose(self.order)
            pieces.append(_take_turns(piece, self.halves, layout.lanes))
        matrix: Array = np.concatenate(pieces, axis=0 if self.stack == "rows" else 1)
        packed: Packed = {}
        if self.dtype == "bf16":
            matrix = to_bf16(matrix)
        elif self.dtype == "fp16":
            matrix = to_fp16(self.name, matrix).view(np.uint16)
        elif self.dtype == "int8":
            matrix, scales = quantise(matrix)
            packed[f"{self.name}.scale"] = np.ascontiguousarray(scales.T)
        matrix = _pad(matrix, 2, layout.run)
        packed[self.name] = np.concatenate([_flatten(block, layout) for block in _blocks(matrix, layout)])
        return packed

    def unpack(self, packed: Packed, layout: Layout) -> dict[str, Array]:
        array, count = packed[self.name], len(self.tensors)
        rows, segments, k = self.shape
        total_rows = -(-rows // self.halves // layout.lanes) * layout.lanes * self.halves
        stored_k = -(-k // layout.run) * layout.run
        stacked = (total_rows * count, segments) if self.stack == "rows" else (total_rows, segments * count)
        matrix = np.empty((*stacked, stored_k), array.dtype)
        used = 0
        for block in _blocks(matrix, layout):
            block[:] = _unflatten(array[used : used + block.size], block.shape, layout)
            used += block.size
        if self.dtype == "bf16":
            matrix = from_bf16(matrix)
        elif self.dtype == "fp16":
            matrix = matrix.view(np.float16).astype(np.float32)
        elif self.dtype == "int8":
            matrix = matrix * packed[f"{self.name}.scale"].T[..., None]
        pieces = np.split(matrix, count, axis=0 if self.stack == "rows" else 1)
        return {name: self._tensor(piece, layout) for name, piece in zip(self.tensors, pieces, strict=True)}

    def _tensor(self, piece: Array, layout: Layout) -> Array:
        """A padded piece (rows, segments, k) → the tensor in its own axes."""
        whole = _undo_turns(piece, self.halves, layout.lanes, self.shape[0])[..., : self.shape[2]]
        if self.order is None:
            return whole[:, 0, :].copy()
        return whole.transpose(tuple(np.argsort(self.order))).copy()


_Entry = _Plain | _Input | _Bias | _Matrix


def _layout_of(entry: _Entry, layouts: Mapping[str, Layout]) -> Layout:
    return layouts[entry.dtype if isinstance(entry, _Matrix) else "fp32"]


def _blocks(matrix: Array, layout: Layout) -> list[Array]:
    """Views of the rows that the engine works on together."""
    step = layout.lanes * layout.accumulators
    return [matrix[row : row + step] for row in range(0, len(matrix), step)]


def _flatten(block: Array, layout: Layout) -> Array:
    """(rows of the block, segments, k) → segment, run, vector, word, lane, k within the word."""
    rows, segments, k = block.shape
    words = layout.run // layout.pack
    whole = block.reshape(rows // layout.lanes, layout.lanes, segments, k // layout.run, words, layout.pack)
    return whole.transpose(2, 3, 0, 4, 1, 5).ravel()


def _unflatten(flat: Array, shape: tuple[int, ...], layout: Layout) -> Array:
    rows, segments, k = shape
    words = layout.run // layout.pack
    whole = flat.reshape(segments, k // layout.run, rows // layout.lanes, words, layout.lanes, layout.pack)
    return whole.transpose(2, 4, 0, 1, 3, 5).reshape(shape)


def _take_turns(rows: Array, halves: int, lanes: int) -> Array:
    """Rows (n, …) padded to whole vectors; of two halves, each padded, the vectors take turns."""
    parts = [_pad(part, 0, lanes) for part in np.split(rows, halves)]
    vectors = [part.reshape(-1, lanes, *rows.shape[1:]) for part in parts]
    return np.stack(vectors, axis=1).reshape(-1, *rows.shape[1:])


def _undo_turns(rows: Array, halves: int, lanes: int, count: int) -> Array:
    """The first `count` rows as they were before `_take_turns`."""
    vectors = rows.reshape(-1, halves, lanes, *rows.shape[1:])
    parts = [vectors[:, half].reshape(-1, *rows.shape[1:])[: count // halves] for half in range(halves)]
    return np.concatenate(parts)


def _pad(x: Array, axis: int, multiple: int) -> Array:
    """Zeros appended along an axis up to a multiple."""
    missing = -x.shape[axis] % multiple
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, missing)
    return np.pad(x, widths)


# --- what a model packs into ------------------------------------------------------------------------------------


def _entries(config: WaveNetConfig, dtype: str) -> Iterator[_Entry]:
    """The packed arrays of a model, in the order of the module's docstring."""
    c, b = config, config.biases
    layers, half, P = range(c.n_layers), c.gate_channels // 2, c.speakers.channels
    yield from _conditioning_entries(c)

    def each(part: str, present: bool = True, count: int = c.n_layers) -> tuple[Any, ...]:
        return tuple(f"layers.{i}.{part}" if present else None for i in range(count))

    G, C = c.gate_channels, c.conditioning_channels
    conditioning = each("conditioning.weight")
    yield _Matrix("conditioning.weight", conditioning, (G, 1, C), halves=2, dtype=hearing_format(dtype))
    yield _Bias("conditioning.bias", each("conditioning.bias", b.conditioning), G, halves=2)
    if P:
        yield _Matrix("speaker.weight", each("speaker.weight"), (G, 1, P), halves=2)
        yield _Bias("speaker.bias", each("speaker.bias", b.speaker), G, halves=2)
    R, S, H, A = c.residual_channels, c.skip_channels, c.head_channels, c.out_channels
    yield _Input("input.weight", R)
    yield _Bias("input.bias", ("input.bias" if b.input else None,), R, multiple=CHANNEL_PAD)
    for i in layers:
        name = f"layers.{i}.dilated.weight"
        yield _Matrix(name, (name,), (G, c.kernel_size, R), (0, 2, 1), halves=2, dtype=dtype)
        name = f"layers.{i}.residual.weight"
        if i + 1 < c.n_layers:
            yield _Matrix(name, (name,), (R, 1, half), dtype=dtype)
    yield _Bias("dilated.bias", each("dilated.bias", b.dilated), G, halves=2)
    yield _Bias("residual.bias", each("residual.bias", b.residual, c.n_layers - 1), R)
    yield _Matrix("skip.weight", each("skip.weight"), (S, 1, half), stack="segments", dtype=dtype)
    yield _Bias("skip.bias", each("skip.bias", b.skip), S)
    yield _Matrix("head.hidden.weight", ("head.hidden.weight",), (H, 1, S), dtype=dtype)
    yield _Bias("head.hidden.bias", ("head.hidden.bias" if b.head_hidden else None,), H)
    yield _Matrix("head.out.weight", ("head.out.weight",), (A, 1, H), dtype=dtype)
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
