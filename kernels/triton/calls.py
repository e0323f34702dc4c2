"""Launches that a model and the public ops share. Tensors are torch's, on the launcher's device; B utterances, T
samples; the letters of padded sizes are those of shapes.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from wavenet_fast.sampling import Head, out_channels

from ..tables import log_scale_min
from . import tuning
from .launch import Launcher
from .shapes import BlockShape, HeadShape

TYPES = {"fp32": tl.float32, "bf16": tl.bfloat16, "fp16": tl.float16}
"""Number format → that of operands in Triton; `block.FORMATS` are torch's."""


@dataclass(frozen=True)
class Columns:
    """What one layer hears. `projected` (B, n, 2·HALF), rows and columns at any stride; place of the first sample and
    last column of each utterance (B,) int32, tables over the samples of a hop: see `stages.column_of_sample`."""

    projected: Tensor
    first_q: Tensor
    last_column: Tensor
    fraction: Tensor
    shift: Tensor
    hop: int
    upsampling: int


def formats(launcher: Launcher, dtype: str) -> dict[str, Any]:
    """The kernels' arguments OP and UPCAST for a number format."""
    return {"OP": TYPES[dtype], "UPCAST": launcher.upcast and dtype == "bf16"}


def clamped(temperature: float) -> float:
    """To what fp32 can divide by; see `host_engine.Call`."""
    return min(max(float(temperature), 1e-37), 3e38)


def draw(launcher: Launcher, head: Head, logits: Tensor, uniforms: Tensor, temperature: float) -> Tensor:
    """(n, ≥ A) and (n, 4) → (n,) fp32: classes as numbers, or values. n ≥ 1."""
    o, draws = tuning.for_sample(), torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    launcher.run(
        "sample", (-(-len(logits) // o.tile),),
        {
            "logits": logits, "uniforms": uniforms, "draws": draws, "n": len(logits),
            "logits_stride": logits.stride(0), "width": out_channels(head), "temperature": temperature,
            "log_scale_min": log_scale_min(head), **dataclasses.asdict(HeadShape.of(head)), "N": o.tile,
        }, o,
    )  # fmt: skip
    return draws


def residual_block(
    launcher: Launcher,
    shape: BlockShape,
    dtype: str,
    x: Tensor,
    x_next: Tensor | None,
    skip: Tensor,
    counts: Tensor,
    heard: Columns,
    weights: Mapping[str, Tensor],
    dilation: int,
    residual_scale: float,
    skip_scale: float = 1.0,
    biased_skip: bool = True,
) -> None:
    """One layer over (B, (K−1)·dilation + T, R): writes the next layer's x (B, T, R), unless that is None, and changes
    skip (B, T, S). `weights` by the kernel's names; counts (B,) int32: samples of each utterance, at most T."""
    o = tuning.for_residual_block(shape, dtype, launcher.capability)
    batch, T = skip.shape[:2]
    written = x if x_next is None else x_next
    names = ("w_dilated", "b_dilated", "w_residual", "b_residual", "w_skip", "b_skip")
    launcher.run(
        "residual_block", (batch, -(-T // o.tile)),
        {
            "x": x, "x_next": written, "skip": skip, "x_stride": x.stride(0), "x_next_stride": written.stride(0),
            "skip_stride": skip.stride(0), "counts": counts, "projected": heard.projected, "first_q": heard.first_q,
            "last_column": heard.last_column, "fraction": heard.fraction, "shift": heard.shift,
            "projected_stride": heard.projected.stride(0), "column_stride": heard.projected.stride(1),
            **{name: weights[name] for name in names}, "dilation": dilation, "residual_scale": residual_scale,
            "skip_scale": skip_scale, **dataclasses.asdict(shape), "HOP": heard.hop, "UPSAMPLING": heard.upsampling,
            **formats(launcher, dtype), "RESIDUAL": x_next is not None, "BIASED_SKIP": biased_skip,
            "N": o.tile, "BLOCK_R": o.block_r, "BLOCK_GATE": o.block_gate,
        }, o,
    )  # fmt: skip
