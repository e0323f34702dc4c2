"""Named weights → the arrays that the kernels of this package read, and back.

Order, as sound passes through them, with the letters of `shapes.Shape` (padded channels are zero):

    project       (C, LAYERS·2·HALF), b_project (LAYERS·2·HALF)   mel features → what all layers hear
    speaker       (P, LAYERS·2·HALF), fp32                        only where the model has speakers
    w_input       (IN_TAPS, classes or 1, R), b_input (R), fp32
    w_dilated     (LAYERS, K, R, 2·HALF), b_dilated (LAYERS, 2·HALF)
    w_residual    (LAYERS, HALF, R), b_residual (LAYERS, R)       the last layer's are zeros: nothing follows it
    w_skip        (LAYERS, HALF, S), b_skip (LAYERS, S)           or (1, S), summed, where skips are simply added
    w_hidden      (S, H), b_hidden (H)
    w_out         (H, A), b_out (A)

Matrices are (inputs, outputs), so that a tile of activations (N, inputs) meets them as a·w. Of the 2·HALF columns of a
layer, 2j and 2j + 1 belong to gate j: the one that tanh takes and the one that σ takes. w_dilated, w_residual,
w_skip, w_hidden and w_out are in the number format asked for (bf16 as its upper 16 bits), `project` in that of
`wavenet_fast.packing.hearing_format`; biases are fp32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wavenet_fast.config import WaveNetConfig
from wavenet_fast.packing import from_bf16, hearing_format, to_bf16, to_fp16
from wavenet_fast.weights import weight_shapes

from .shapes import Shape, padded

Array = NDArray[Any]
DTYPES = ("fp32", "bf16", "fp16")


def pack(config: WaveNetConfig, weights: Mapping[str, Array], dtype: str) -> dict[str, Array]:
    """The arrays of the module's docstring. Raises `KeyError` for a missing tensor, `BackendError` where a weight is
    too large for fp16."""
    c, s, w = config, Shape.of(config), weights
    layers = range(c.n_layers)
    half = c.gate_channels // 2

    def bias(name: str, shape: tuple[int, ...]) -> Array:
        return w[name].astype(np.float32) if name in weight_shapes(c) else np.zeros(shape, np.float32)

    def gates(rows: Array) -> Array:
        """(G, …) → (2·HALF, …): the tanh and the sigmoid half, each padded, by turns."""
        halves = _pad(rows.reshape(2, half, *rows.shape[1:]), 1, s.HALF)
        return halves.swapaxes(0, 1).reshape(2 * s.HALF, *rows.shape[1:])

    def heard(part: str, present: bool) -> list[Array]:
        return [gates(w[f"layers.{i}.{part}.weight"]) for i in layers] if present else []

    P, last = c.speakers.channels, c.n_layers - 1
    speaker_bias = [bias(f"layers.{i}.speaker.bias", (c.gate_channels,)) for i in layers]
    hears = [bias(f"layers.{i}.conditioning.bias", (c.gate_channels,)) for i in layers]
    packed = {
        "project": _format("project", np.concatenate(heard("conditioning", True)).T, hearing_format(dtype)),
        "b_project": np.concatenate([gates(b) for b in hears]),
    }
    if P:
        packed["speaker"] = np.ascontiguousarray(np.concatenate(heard("speaker", True)).T, np.float32)
        packed["b_speaker"] = np.concatenate([gates(b) for b in speaker_bias])
    packed["w_input"] = _pad(w["input.weight"].transpose(2, 1, 0), 2, s.R)
    packed["b_input"] = _pad(bias("input.bias", (c.residual_channels,)), 0, s.R)
    dilated = [_pad(gates(w[f"layers.{i}.dilated.weight"]).transpose(2, 1, 0), 1, s.R) for i in layers]
    packed["w_dilated"] = np.stack(dilated)
    packed["b_dilated"] = np.stack([gates(bias(f"layers.{i}.dilated.bias", (c.gate_channels,))) for i in layers])
    residual = [_matrix(w[f"layers.{i}.residual.weight"], s.HALF, s.R) for i in range(last)]
    packed["w_residual"] = np.stack([*residual, np.zeros((s.HALF, s.R), np.float32)])
    residual = [_pad(bias(f"layers.{i}.residual.bias", (c.residual_channels,)), 0, s.R) for i in range(last)]
    packed["b_residual"] = np.stack([*residual, np.zeros(s.R, np.float32)])
    packed["w_skip"] = np.stack([_matrix(w[f"layers.{i}.skip.weight"], s.HALF, s.S) for i in layers])
    skip = np.stack([_pad(bias(f"layers.{i}.skip.bias", (c.skip_channels,)), 0, s.S) for i in layers])
    packed["b_skip"] = skip if s.RUNNING else skip.sum(axis=0, keepdims=True, dtype=np.float32)
    packed["w_hidden"] = _matrix(w["head.hidden.weight"], s.S, s.H)
    packed["b_hidden"] = _pad(bias("head.hidden.bias", (c.head_channels,)), 0, s.H)
    packed["w_out"] = _matrix(w["head.out.weight"], s.H, s.A)
    packed["b_out"] = _pad(bias("head.out.bias", (c.out_channels,)), 0, s.A)
    for name in STREAMED:
        packed[name] = _format(name, packed[name], dtype)
    return {name: np.ascontiguousarray(array) for name, array in packed.items()}


def packed_layout(config: WaveNetConfig, dtype: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name → shape and number format of the arrays of `pack`, in its order."""
    c, s = config, Shape.of(config)
    wide, P = s.LAYERS * 2 * s.HALF, c.speakers.channels
    shapes: dict[str, tuple[int, ...]] = {"project": (c.conditioning_channels, wide), "b_project": (wide,)}
    if P:
        shapes |= {"speaker": (P, wide), "b_speaker": (wide,)}
    shapes |= {
        "w_input": (s.IN_TAPS, c.in_channels, s.R), "b_input": (s.R,),
        "w_dilated": (s.LAYERS, s.K, s.R, 2 * s.HALF), "b_dilated": (s.LAYERS, 2 * s.HALF),
        "w_residual": (s.LAYERS, s.HALF, s.R), "b_residual": (s.LAYERS, s.R),
        "w_skip": (s.LAYERS, s.HALF, s.S), "b_skip": (s.LAYERS if s.RUNNING else 1, s.S),
        "w_hidden": (s.S, s.H), "b_hidden": (s.H,), "w_out": (s.H, s.A), "b_out": (s.A,),
    }  # fmt: skip
    formats = dict.fromkeys(STREAMED, dtype) | {"project": hearing_format(dtype)}
    return {name: (shape, formats.get(name, "fp32")) for name, shape in shapes.items()}


STREAMED = ("w_dilated", "w_residual", "w_skip", "w_hidden", "w_out")


def unpack(config: WaveNetConfig, packed: Mapping[str, Array], dtype: str) -> dict[str, Array]:
    """The matrices of `pack` by their own names again, float32, as rounded: what `wavenet_fast.packing.rounded` gives.
    Biases and the input are left out where packing added them up or changed nothing but their padding."""
    c = config
    R, S, H, A, half = c.residual_channels, c.skip_channels, c.head_channels, c.out_channels, c.gate_channels // 2
    p = {name: _as_float32(packed[name], dtype) for name in STREAMED}
    project = _as_float32(packed["project"], hearing_format(dtype)).reshape(-1, c.n_layers, padded(half), 2)
    found: dict[str, Array] = {}
    for i in range(c.n_layers):
        found[f"layers.{i}.conditioning.weight"] = project[:, i, :half].transpose(2, 1, 0).reshape(2 * half, -1)
        dilated = p["w_dilated"][i][:, :R].reshape(c.kernel_size, R, padded(half), 2)[:, :, :half]
        found[f"layers.{i}.dilated.weight"] = dilated.transpose(3, 2, 1, 0).reshape(2 * half, R, c.kernel_size)
        if i + 1 < c.n_layers:
            found[f"layers.{i}.residual.weight"] = p["w_residual"][i, :half, :R].T
        found[f"layers.{i}.skip.weight"] = p["w_skip"][i, :half, :S].T
    found["head.hidden.weight"], found["head.out.weight"] = p["w_hidden"][:S, :H].T, p["w_out"][:H, :A].T
    return found


def _matrix(weight: Array, inputs: int, outputs: int) -> Array:
    """A 1×1 convolution (out, in) → (inputs, outputs), padded."""
    return _pad(_pad(weight.T, 0, inputs), 1, outputs)


def _pad(x: Array, axis: int, size: int) -> Array:
    """Zeros appended along an axis up to `size`."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, size - x.shape[axis])
    return np.pad(x.astype(np.float32), widths)


def _format(name: str, x: Array, dtype: str) -> Array:
    return to_bf16(x) if dtype == "bf16" else to_fp16(name, x) if dtype == "fp16" else x.astype(np.float32)


def _as_float32(x: Array, dtype: str) -> Array:
    return from_bf16(x) if dtype == "bf16" else x.astype(np.float32)
