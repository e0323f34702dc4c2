"""Mels of one recipe as mels of another, where only the logarithm and what follows it differ.

A recipe's values are an affine function of the logarithm of the linear mel, so one changes exactly into another. What
comes before the logarithm (frames, filters, magnitude or power) cannot be changed afterwards, and is refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from . import inputs
from .config import MelSpec
from .errors import InputError
from .inputs import Layout
from .mel import MEL_PRESETS, checked_statistic

if TYPE_CHECKING:
    from .vocoder import Vocoder

Recipe: TypeAlias = "MelSpec | str | Vocoder"
Statistics: TypeAlias = "tuple[Any, Any] | None"

AFTER_THE_LOGARITHM = ("log", "floor", "ref_db", "min_db", "normalize")
"""Fields of a `MelSpec` that may differ."""

KINDS: dict[str, dict[str, Any]] = {
    "ln": {"log": "ln"},
    "log10": {"log": "log10"},
    "db": {"log": "db"},
    "db-20": {"log": "db", "ref_db": 20.0},
    "unit": {"log": "db", "ref_db": 20.0, "min_db": -100.0, "normalize": "minmax01"},
}
"""Short names: the other recipe with natural logarithms, log10 values, decibels, decibels less a reference of 20 dB, or
those mapped from −100 … 0 dB to 0 … 1 (r9y9's old generation, Tacotron in TensorFlow)."""


def convert_mel(
    mel: Any,
    src: Recipe,
    dst: Recipe,
    src_statistics: Statistics = None,
    dst_statistics: Statistics = None,
    layout: Layout = "ct",
) -> Any:
    """A mel that follows the recipe `src` as the recipe `dst` would have made it of the same sound.

    mel             (M, F) or (B, M, F), NumPy or torch, floating point; the answer is float32 of the same kind, on the
                    same device, with the same axes
    src, dst        a `MelSpec`, the name of a preset, a `Vocoder`, or one of `KINDS` ("ln", "log10", "db", "db-20",
                    "unit") for the other recipe with another logarithm and without statistics
    src_statistics, dst_statistics  the pair (mean, scale), each (M,), of a recipe whose normalize is "meanvar"; those
                    of a `Vocoder` are its own
    layout          "tc" where the mel is (F, M) or (B, F, M)

    Computed in float64. What `src` has lost stays lost: values that its floor, or its clipping to 0 … 1, has cut off
    come out as that limit, where `dst` reaches lower or higher.

    Raises `InputError` where the recipes differ before the logarithm, with the fields that do; `ShapeError` and
    `InputError` for a mel or statistics that cannot be used.
    """
    source, target = _pair(src, dst, src_statistics, dst_statistics)
    check_convertible(source.spec, target.spec)
    values, form = inputs.as_mel(mel, source.spec.n_mels, layout)
    counts = np.full(len(values), values.shape[-1], np.int64)
    linear_log = source.undo(inputs.prepare_mel(values, counts, form.batched).astype(np.float64))
    made = target.follow(linear_log).astype(np.float32)
    return form.give(np.ascontiguousarray(made.swapaxes(-1, -2) if layout == "tc" else made))


def check_convertible(src: MelSpec, dst: MelSpec) -> None:
    """Raises `InputError` with the fields before the logarithm in which the recipes differ."""
    for name, spec in (("src", src), ("dst", dst)):
        if spec.normalize == "elsewhere":
            raise InputError(
                f'{name} has normalize "elsewhere": what its voice hears is made elsewhere, in a way that is not known'
                " here, so nothing can be converted"
            )
    if fields := _earlier_differences(src, dst):
        said = ", ".join(f"{f} is {getattr(src, f)}, wanted {getattr(dst, f)}" for f in fields)
        raise InputError(
            f"this mel cannot be converted: {said}. Only what follows the linear mel can be changed afterwards"
            f" ({', '.join(AFTER_THE_LOGARITHM)}); compute the mel anew from the sound, by the recipe that is wanted"
        )


def same_linear_mel(src: MelSpec, dst: MelSpec) -> bool:
    """Whether the recipes are known and differ in nothing that comes before the logarithm."""
    return not _earlier_differences(src, dst) and "elsewhere" not in (src.normalize, dst.normalize)


def _earlier_differences(src: MelSpec, dst: MelSpec) -> list[str]:
    return [f for f in src.__struct_fields__ if f not in AFTER_THE_LOGARITHM and getattr(src, f) != getattr(dst, f)]


@dataclass(frozen=True)
class _Known:
    """A recipe with its statistics. `log_mel` stands for ln of the linear mel, (B, M, F) float64."""

    spec: MelSpec
    statistics: Statistics

    @property
    def _unit(self) -> float:
        """What ln of the linear mel is multiplied by."""
        per_neper = {"ln": 1.0, "log10": 1 / math.log(10), "db": 20 / self.spec.power / math.log(10)}
        return per_neper[self.spec.log]

    @property
    def _offset(self) -> float:
        return self.spec.ref_db if self.spec.log == "db" else 0.0

    def _moments(self) -> tuple[NDArray[Any], NDArray[Any]]:
        mean, scale = self.statistics or (None, None)
        mean, scale = checked_statistic("mean", mean, self.spec), checked_statistic("scale", scale, self.spec)
        if not (np.isfinite(mean).all() and np.isfinite(scale).all() and (scale > 0).all()):
            raise InputError("mean and scale of a recipe must be finite, and scale positive in every band")
        return mean[:, None], scale[:, None]

    def undo(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values of this recipe → ln of the linear mel."""
        spec = self.spec
        if spec.normalize == "meanvar":
            mean, scale = self._moments()
            values = values * scale + mean
        elif spec.normalize == "minmax01":
            values = np.clip(values, 0, 1) * -spec.min_db + spec.min_db
        return (values + self._offset) / self._unit

    def follow(self, log_mel: NDArray[Any]) -> NDArray[Any]:
        """ln of the linear mel → values of this recipe."""
        spec = self.spec
        values = np.maximum(log_mel, np.log(spec.floor)) * self._unit - self._offset
        if spec.normalize == "meanvar":
            mean, scale = self._moments()
            return np.asarray((values - mean) / scale)
        if spec.normalize == "minmax01":
            return np.asarray(np.clip((values - spec.min_db) / -spec.min_db, 0, 1))
        return np.asarray(values)


def _pair(src: Recipe, dst: Recipe, src_statistics: Statistics, dst_statistics: Statistics) -> tuple[_Known, _Known]:
    """Both recipes; a short name stands for the other one with another logarithm."""
    source = None if _is_kind(src) else _known("src", src, src_statistics)
    target = None if _is_kind(dst) else _known("dst", dst, dst_statistics)
    if source is None:
        if target is None:
            raise InputError(
                f"src is {src!r} and dst is {dst!r}, and neither says anything of the bands; give a MelSpec, a preset"
                " or a Vocoder as one of them"
            )
        return _Known(with_kind(target.spec, str(src)), src_statistics), target
    return source, target or _Known(with_kind(source.spec, str(dst)), dst_statistics)


def _is_kind(recipe: Recipe) -> bool:
    return isinstance(recipe, str) and recipe in KINDS


def _known(name: str, recipe: Any, statistics: Statistics) -> _Known:
    if isinstance(recipe, MelSpec):
        return _Known(recipe, statistics)
    if isinstance(recipe, str):
        if recipe not in MEL_PRESETS:
            possible = ", ".join((*KINDS, *MEL_PRESETS))
            raise InputError(f"{name} is {recipe!r}; give a MelSpec, a Vocoder, or one of {possible}")
        return _Known(MEL_PRESETS[recipe], statistics)
    spec = getattr(recipe, "mel_spec", None)
    if isinstance(spec, MelSpec):
        return _Known(spec, recipe.mel_statistics if statistics is None else statistics)
    raise InputError(f"{name} is {type(recipe).__name__}; give a MelSpec, a Vocoder, or the name of a preset")


def with_kind(spec: MelSpec, kind: str) -> MelSpec:
    """`spec` with the logarithm of one of `KINDS`, and without statistics."""
    plain = {"ref_db": 0.0, "min_db": -100.0, "normalize": "none"}
    return replace(spec, **{**plain, **KINDS[kind]})
