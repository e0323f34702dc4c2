"""What the importers share: tensors by name, weight norm, and what an import gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..config import MelSpec, WaveNetConfig, decode, encode
from ..errors import CheckpointError, InputError
from ..tensors import check_values, compare_shapes
from ..weights import weight_shapes

Array = NDArray[np.float32]
Shapes = dict[str, tuple[int, ...]]
MOST_NAMED = 10
"""Tensors listed by name in an error, of each kind."""

# How a weight-normed convolution names direction and length: torch.nn.utils.weight_norm, and its parametrization.
_WEIGHT_NORM = (("weight_v", "weight_g"), ("parametrizations.weight.original1", "parametrizations.weight.original0"))


@dataclass(frozen=True)
class Imported:
    """A checkpoint of another project as one of ours.

    weights     those of `weight_shapes(config)`, and mel.mean and mel.scale (M,) where the statistics were given
    mel         the recipe of its mels; None where nothing given says which
    notes       sentences for whoever converts: what was left out, and what differs
    provenance  where it comes from, as plain data for `config.json`
    """

    config: WaveNetConfig
    weights: dict[str, Array]
    mel: MelSpec | None = None
    notes: list[str] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)


def plain_tensors(state: Mapping[str, Any], where: str) -> dict[str, Array]:
    """Every tensor as float32 under its plain name: weight norm multiplied out, `module.` of DataParallel taken off.

    w = g · v/‖v‖, the norm over all axes but the first (Salimans & Kingma, 2016), in float64."""
    named = {str(name): array_of(name, value, where) for name, value in state.items()}
    if named and all(name.startswith("module.") for name in named):
        named = {name.removeprefix("module."): value for name, value in named.items()}
    plain: dict[str, Array] = {}
    for name, value in named.items():
        for direction, length in _WEIGHT_NORM:
            stem = name.removesuffix(direction)
            if stem != name and stem + length in named:
                plain[f"{stem}weight"] = _weight_of(stem, value, named[stem + length], where)
                break
            if name.endswith(f".{length}") and name.removesuffix(length) + direction in named:
                break
        else:
            plain[name] = value
    return plain


def array_of(name: str, value: ArrayLike, where: str) -> Array:
    """`value` as float32, without a copy where it is that already. Raises `CheckpointError`."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise CheckpointError(f"{where}: {name} is {array.dtype}; a weight is a tensor of floating-point numbers")
    made: Array = array.astype(np.float32, copy=False)
    return made


def _weight_of(stem: str, direction: Array, length: Array, where: str) -> Array:
    rows = direction.shape[0] if direction.ndim else 0
    if not rows or length.size != rows:
        raise CheckpointError(
            f"{where}: the weight norm of {stem.rstrip('.')} has lengths of shape {length.shape} for directions of"
            f" shape {direction.shape}; there must be one length for each row"
        )
    flat = direction.reshape(rows, -1)
    norms = np.sqrt(np.einsum("ij,ij->i", flat, flat, dtype=np.float64))
    if not (norms > 0).all():
        raise CheckpointError(
            f"{where}: the weight norm of {stem.rstrip('.')} has a row of zeros, which has no direction"
        )
    factors = (length.reshape(rows).astype(np.float64) / norms).astype(np.float32)
    weight: Array = (flat * factors[:, None]).reshape(direction.shape)
    return weight


def need(given: Mapping[str, Array], wanted: Shapes, where: str) -> None:
    """Raises `CheckpointError` that lists the tensors missing, left over and mis-shaped."""
    compare_shapes({name: value.shape for name, value in given.items()}, wanted, where, MOST_NAMED)


def need_axes(given: Mapping[str, Array], axes: Mapping[str, int], where: str) -> None:
    """Raises `CheckpointError` unless these tensors, as far as they are there, have so many axes and no empty one."""
    for name, count in axes.items():
        if name in given and (given[name].ndim != count or not given[name].size):
            raise CheckpointError(f"{where}: {name} has shape {given[name].shape[:8]}; it must have {count} axes")


def finished(config: WaveNetConfig, weights: Mapping[str, Array], where: str) -> dict[str, Array]:
    """Contiguous, finite and exactly the tensors of `config`, in its order. Raises `ConfigError` where what was said
    makes no network that is allowed."""
    decode(WaveNetConfig, encode(config), f"{where}: the network")
    shapes = weight_shapes(config)
    extra = {name: value for name, value in weights.items() if name in ("mel.mean", "mel.scale")}
    made = {name: np.ascontiguousarray(weights[name]).reshape(shape) for name, shape in shapes.items()}
    made |= {name: np.array(value, np.float32) for name, value in extra.items()}
    check_values(made, where)
    return made


def statistics(stats: Mapping[str, ArrayLike] | None, bands: int) -> dict[str, Array]:
    """mel.mean and mel.scale out of `{"mean": (M,), "scale": (M,)}`, or nothing. Raises `InputError`."""
    if stats is None:
        return {}
    found = {}
    for name in ("mean", "scale"):
        if name not in stats:
            raise InputError(f"the statistics lack {name!r}; give mean and scale, the standard deviation per band")
        given = np.asarray(stats[name])
        if given.dtype.kind not in "fiu":
            raise InputError(f"the statistics hold {given.dtype} as {name}; they are plain numbers, one per band")
        with np.errstate(over="ignore"):
            value = given.astype(np.float32).reshape(-1)
        if value.shape != (bands,):
            raise InputError(f"the statistics hold {value.size} values of {name}; this network hears {bands} bands")
        found[f"mel.{name}"] = value
    if not (np.isfinite(found["mel.mean"]).all() and (found["mel.scale"] > 0).all()):
        raise InputError("the statistics need finite means, and scales above 0, because mels are divided by them")
    return found


def made_elsewhere(config: WaveNetConfig) -> MelSpec:
    """A recipe for features that no recipe here makes."""
    size = max(config.hop_length, 2)
    return MelSpec(
        sample_rate=config.sample_rate, n_fft=size, hop_length=config.hop_length, win_length=size,
        n_mels=config.n_mels, fmax=config.sample_rate / 2, normalize="elsewhere",
    )  # fmt: skip


def numbered(names: Mapping[str, Any], prefix: str, suffix: str) -> int:
    """How many of prefix.0suffix, prefix.1suffix … there are without a gap."""
    count = 0
    while f"{prefix}.{count}{suffix}" in names:
        count += 1
    return count
