"""Named weights → the arrays that the kernels of this folder read, and back.

Order, as sound passes through them, with the letters of `shapes.Shape` (padded channels are zero):

    project       fragments (LAYERS·2·HALF/16, C/step): mel features → what all layers hear; b_project (LAYERS·2·HALF)
    speaker       (P, LAYERS·2·HALF), b_speaker (LAYERS·2·HALF), fp32: only where the model has speakers
    w_input       (IN_TAPS, classes or 1, R), b_input (R), fp32
    dilated       fragments (LAYERS, HALF/8, K, R/step); b_dilated (LAYERS, HALF, 2)
    residual      fragments (LAYERS, R/16, HALF/step), the last layer's zeros; b_residual (LAYERS, R)
    skip          fragments (LAYERS, S/16, HALF/step); b_skip (LAYERS, S), or (S), summed, where skips are simply added
    hidden        fragments (H/16, S/step); b_hidden (H)
    out           fragments (A/16, H/step); b_out (A)

A fragment is 512 bytes, the weights of 16 rows for a step of 32 bytes of inputs, in the order that numbers.cuh tells.
Row j of panel m of `dilated` belongs to gate 8m + j % 8: the tanh half's for j < 8, else the sigmoid half's; rows of
`project` alternate, as a gate's two numbers lie side by side in what is heard. Biases are fp32. In int8 each matrix but
`project`, which is bf16 then, has NAME_units beside it, fp32: what one unit is worth in each of its rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wavenet_fast.config import WaveNetConfig
from wavenet_fast.packing import from_bf16, hearing_format, quantise, to_bf16, to_fp16
from wavenet_fast.weights import weight_shapes

from .shapes import PANEL, Shape, padded, steps

Array = NDArray[Any]
STREAMED = ("dilated", "residual", "skip", "hidden", "out")
"""What every sample passes: in the number format asked for."""


def pack(config: WaveNetConfig, weights: Mapping[str, Array], dtype: str) -> dict[str, Array]:
    """The arrays of the module's docstring; fragments are uint8 (…, 512). Raises `KeyError` for a missing tensor,
    `BackendError` where a weight is too large for fp16."""
    c, s, w = config, Shape.of(config, dtype), weights
    layers, last, half = range(c.n_layers), c.n_layers - 1, c.gate_channels // 2

    def bias(name: str, width: int) -> Array:
        return w[name].astype(np.float32) if name in weight_shapes(c) else np.zeros(width, np.float32)

    def halves(rows: Array) -> Array:
        """(G, …) → (2, HALF, …)"""
        return _pad(rows.reshape(2, half, *rows.shape[1:]), 1, s.HALF)

    def pairs(rows: Array) -> Array:
        """(G, …) → (HALF·2, …), a gate's two side by side."""
        return halves(rows).swapaxes(0, 1).reshape(-1, *rows.shape[1:])

    def panels(rows: Array) -> Array:
        """(G, …) → (2·HALF, …), eight of each half by turns."""
        return halves(rows).reshape(2, s.HALF // 8, 8, *rows.shape[1:]).swapaxes(0, 1).reshape(-1, *rows.shape[1:])

    P, hearing = c.speakers.channels, hearing_format(dtype)
    project = np.concatenate(
        [
            pairs(
                w[f"layers.{i}.conditioning.weight"][:, :, 0]
                if w[f"layers.{i}.conditioning.weight"].ndim == 3
                else w[f"layers.{i}.conditioning.weight"]
            )
            for i in layers
        ]
    )
    packed = {
        "project": fragments("project", _pad(project, 1, padded(c.conditioning_channels)), hearing),
        "b_project": np.concatenate([pairs(bias(f"layers.{i}.conditioning.bias", c.gate_channels)) for i in layers]),
    }
    if P:
        packed["speaker"] = np.concatenate([pairs(w[f"layers.{i}.speaker.weight"]) for i in layers]).T
        packed["b_speaker"] = np.concatenate([pairs(bias(f"layers.{i}.speaker.bias", c.gate_channels)) for i in layers])
    packed["w_input"] = _pad(w["input.weight"].transpose(2, 1, 0), 2, s.R)
    packed["b_input"] = _pad(bias("input.bias", c.residual_channels), 0, s.R)
    dilated = np.stack([panels(w[f"layers.{i}.dilated.weight"]) for i in layers])  # (LAYERS, 2·HALF, R, K)
    dilated = _pad(dilated, 2, s.R).reshape(c.n_layers, s.HALF // 8, PANEL, s.R, s.K).transpose(0, 1, 4, 2, 3)
    _pack_matrix(packed, "dilated", dilated.reshape(s.LAYERS, -1, s.R), dtype)
    packed["dilated"] = packed["dilated"].reshape(s.LAYERS, s.HALF // 8, s.K, steps(s.R, dtype), -1)
    packed["b_dilated"] = np.stack([pairs(bias(f"layers.{i}.dilated.bias", c.gate_channels)) for i in layers])
    residual = [_matrix(w[f"layers.{i}.residual.weight"], s.R, s.HALF) for i in range(last)]
    residual.append(np.zeros((s.R, s.HALF), np.float32))
    _pack_matrix(packed, "residual", np.stack(residual), dtype)
    rows = [_pad(bias(f"layers.{i}.residual.bias", c.residual_channels), 0, s.R) for i in range(last)]
    packed["b_residual"] = np.stack([*rows, np.zeros(s.R, np.float32)])
    _pack_matrix(packed, "skip", np.stack([_matrix(w[f"layers.{i}.skip.weight"], s.S, s.HALF) for i in layers]), dtype)
    skip = np.stack([_pad(bias(f"layers.{i}.skip.bias", c.skip_channels), 0, s.S) for i in layers])
    packed["b_skip"] = skip if s.RUNNING else skip.sum(axis=0, dtype=np.float32)
    _pack_matrix(packed, "hidden", _matrix(w["head.hidden.weight"], s.H, s.S), dtype)
    packed["b_hidden"] = _pad(bias("head.hidden.bias", c.head_channels), 0, s.H)
    _pack_matrix(packed, "out", _matrix(w["head.out.weight"], s.A, s.H), dtype)
    packed["b_out"] = _pad(bias("head.out.bias", c.out_channels), 0, s.A)
    return {name: np.ascontiguousarray(a, None if a.dtype == np.uint8 else np.float32) for name, a in packed.items()}


def fragments(name: str, matrix: Array, dtype: str) -> Array:
    """(rows, inputs), multiples of 16 and of a step → uint8 (rows/16, steps, 512). Numbers in int8 are quantised
    already."""
    rows, inputs = matrix.shape
    n = steps(inputs, dtype)
    if dtype == "fp32":  # row = 8·high + g; lane 4g + t holds (high, two inputs)
        words: Array = matrix.astype(np.float32).reshape(rows // PANEL, 2, 8, n, 4, 2).transpose(0, 3, 2, 4, 1, 5)
    else:
        numbers = to_bf16(matrix) if dtype == "bf16" else to_fp16(name, matrix) if dtype == "fp16" else matrix
        # row = 8·high + g; a step's bytes = 16·later + 4·t + byte of a word; lane 4g + t holds words (later, high).
        split = numbers.reshape(rows // PANEL, 2, 8, n, 2, 4, -1)
        words = split.transpose(0, 3, 2, 5, 4, 1, 6)
    return np.ascontiguousarray(words).view(np.uint8).reshape(rows // PANEL, n, -1)


def matrix_of(packed: Array, dtype: str) -> Array:
    """uint8 (rows/16, steps, 512) → (rows, inputs): `fragments` undone. float32; in int8 the whole numbers."""
    panels, n = packed.shape[:2]
    if dtype == "fp32":
        words: Array = packed.view(np.float32).reshape(panels, n, 8, 4, 2, 2)
        return words.transpose(0, 4, 2, 1, 3, 5).reshape(panels * PANEL, -1)
    numbers = packed.view({"bf16": np.uint16, "fp16": np.float16, "int8": np.int8}[dtype])
    matrix = numbers.reshape(panels, n, 8, 4, 2, 2, -1).transpose(0, 5, 2, 1, 4, 3, 6).reshape(panels * PANEL, -1)
    return from_bf16(matrix) if dtype == "bf16" else matrix.astype(np.float32)


def _pack_matrix(packed: dict[str, Array], name: str, matrix: Array, dtype: str) -> None:
    """Adds (…, rows, inputs) as fragments (…, rows/16, steps, 512), in int8 with `NAME_units` (…, rows) beside them."""
    if dtype == "int8":
        matrix, packed[f"{name}_units"] = quantise(matrix)
    *batch, rows, inputs = matrix.shape
    flat = fragments(name, matrix.reshape(-1, inputs), dtype)
    packed[name] = flat.reshape(*batch, rows // PANEL, *flat.shape[1:])


def _matrix(weight: Array, outputs: int, inputs: int) -> Array:
    """A 1×1 convolution (out, in), padded."""
    return _pad(_pad(weight, 0, outputs), 1, inputs)


def _pad(x: Array, axis: int, size: int) -> Array:
    """Zeros appended along an axis up to `size`."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, size - x.shape[axis])
    return np.pad(x.astype(np.float32), widths)


# --- tapes ------------------------------------------------------------------------------------------------------


def tapes(shape: Shape, packed: Mapping[str, Array], chain: int, skip: int) -> tuple[Array, Array]:
    """All fragments in the order in which each warp of `streaming_weights` meets them in a sample: uint8 (n, 512), and
    the first of each warp, (warps + 1,) int32.

    Chain warps: layer by layer the panels of `dilated` that are theirs, then those of `residual`; skip warps: layer by
    layer their panels of `skip`. Then all warps: their panels of `hidden` and `out`. Panel m is of warp m mod warps."""
    s, parts = shape, []
    for warp in range(chain + skip):
        mine: list[Array] = []
        for layer in range(s.LAYERS):
            if warp < chain:
                mine.append(packed["dilated"][layer, warp::chain])
                if layer + 1 < s.LAYERS:
                    mine.append(packed["residual"][layer, warp::chain])
            else:
                mine.append(packed["skip"][layer, warp - chain :: skip])
        mine += [packed["hidden"][warp :: chain + skip], packed["out"][warp :: chain + skip]]
        parts.append(np.concatenate([part.reshape(-1, 512) for part in mine]))
    starts = np.cumsum([0, *(len(part) for part in parts)]).astype(np.int32)
    return np.concatenate(parts), starts
