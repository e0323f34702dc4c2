"""A model made ready for the op `generate`, and the streams that it carries on: tensors and nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wavenet_fast.backends import gpu
from wavenet_fast.config import OneHotInput, Stages, WaveNetConfig, decode
from wavenet_fast.errors import BackendError, InputError
from wavenet_fast.tensors import compare_shapes
from wavenet_fast.weights import weight_shapes

from . import checks
from .block import FORMATS
from .model import packed_tensors
from .shapes import Shape


@dataclass(frozen=True)
class Ready:
    """`config` as JSON; `dtype` "fp32", "fp16" or "bf16"; `packed`, the tensors of `packing.pack` in its order;
    `first_q`, the very first sample's place in the hop of its first column: the configuration's offset, but 0 where
    there is a column for each sample."""

    config: str
    dtype: str
    packed: list[Tensor]
    first_q: int


@dataclass
class Streams:
    """What B streams remember, changed in place by `generate`.

    rings      (B, slots, R padded) in the number format: past inputs of every layer
    inputs     (B, taps rounded up) fp32: x[t] at t mod its length, classes as numbers and −1 for none
    filters    (B,) fp32: last output of the de-emphasis filter
    positions  (B,) int64: samples made
    seeds      (B,) int64: bit patterns of the unsigned seeds
    """

    rings: Tensor
    inputs: Tensor
    filters: Tensor
    positions: Tensor
    seeds: Tensor


def prepare(
    config: WaveNetConfig,
    weights: Mapping[str, NDArray[np.float32]],
    dtype: str = "bf16",
    device: str | torch.device = "cuda",
) -> Ready:
    """Packs a checkpoint's weights (`Checkpoint.weights`) on a device: "cpu" for emulation.

    Raises `CheckpointError` for tensors that are missing or of another shape, `BackendError` for a device that is not
    there, for a weight that is too large for fp16 and for a model with a steady past, which streams of `start` lack."""
    if config.past != "zero":
        raise BackendError(f"the model's past is {config.past!r}; the ops begin with zero vectors, use a Vocoder")
    wanted = weight_shapes(config)
    compare_shapes({n: tuple(w.shape) for n, w in weights.items() if n in wanted}, wanted, "weights")
    if str(device) != "cpu":
        found = re.fullmatch(r"cuda(:\d+)?", str(device))
        why = gpu.why_not_cuda(str(device)) if found else "possible are 'cuda', 'cuda:N' and 'cpu'"
        if why is not None:
            hint = "; for a proof on the CPU, slow, give 'cpu' here and emulated=True to the ops"
            raise BackendError(f"device is '{device}': {why}" + hint * bool(found))
    packed = packed_tensors(config, weights, checks.number_format(dtype), torch.device(device))
    hears = config.conditioning
    first_q = 0 if isinstance(hears.upsampling, Stages) else hears.offset
    return Ready(msgspec.json.encode(config).decode(), dtype, list(packed.values()), first_q)


def start(model: Ready, seeds: Sequence[int]) -> Streams:
    """Fresh streams on the model's device, one for each seed 0 … 2^64 − 1."""
    for i, seed in enumerate(seeds):
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= int(seed) < 1 << 64:
            raise InputError(f"seeds[{i}] is {seed!r}; it must be an integer 0 … 2^64 − 1")
    config = decode(WaveNetConfig, msgspec.json.decode(model.config), "config")
    shape, device, B = Shape.of(config), model.packed[0].device, len(seeds)
    inputs = torch.zeros(B, shape.IN_DEPTH, dtype=torch.float32, device=device)
    for tap in range(2, shape.IN_TAPS + 1):
        inputs[:, -tap] = -1.0 if isinstance(config.input, OneHotInput) else 0.0
    inputs[:, -1] = float(config.start)
    return Streams(
        torch.zeros(B, shape.SLOTS, shape.R, dtype=FORMATS[model.dtype], device=device),
        inputs,
        torch.zeros(B, dtype=torch.float32, device=device),
        torch.zeros(B, dtype=torch.int64, device=device),
        torch.from_numpy(np.array(seeds, np.uint64).view(np.int64)).to(device),
    )
