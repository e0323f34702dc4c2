"""What the public ops refuse, each in a sentence: which argument, what was given, what is possible. Every check but
`values` works on fake tensors too."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from wavenet_fast.backends.gpu import MIN_CAPABILITY
from wavenet_fast.errors import BackendError, InputError, ShapeError

from .launch import CudaLauncher, EmulatedLauncher, Launcher
from .packing import DTYPES
from .tuning import SHARED_KIB

EMULATED = 90
"""Compute capability ·10 for which `emulated=True` compiles."""
INT32_MAX = 2**31 - 1
_INTEGERS: Any = (int, torch.SymInt)


# --- numbers and words --------------------------------------------------------------------------------------------


def whole(name: str, value: Any, low: int, high: int) -> int:
    """Raises `InputError` unless it is an integer low … high."""
    if not isinstance(value, _INTEGERS) or isinstance(value, bool) or not low <= value <= high:
        raise InputError(f"{name} is {value!r}; it must be an integer {low} … {high}")
    return value  # type: ignore[no-any-return]


def finite(name: str, value: Any) -> float:
    """Raises `InputError` unless it is a number that fp32 holds."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not -3.4e38 <= value <= 3.4e38:
        raise InputError(f"{name} is {value!r}; it must be a finite number")
    return float(value)


def number_format(dtype: Any) -> str:
    """Raises `InputError` for another word."""
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}; possible are {', '.join(map(repr, DTYPES))}")
    return dtype


def target(emulated: Any) -> int:
    """0 for the GPU itself, else the compute capability ·10 that is emulated."""
    if isinstance(emulated, bool):
        return EMULATED if emulated else 0
    if not isinstance(emulated, int) or (emulated and emulated not in SHARED_KIB):
        possible = ", ".join(map(str, SHARED_KIB))
        raise BackendError(
            f"emulated is {emulated!r}; possible are False (run on the GPU), True (execute on the CPU what is compiled "
            f"for sm_{EMULATED}) and {possible} (for another architecture)"
        )
    return emulated


# --- tensors ------------------------------------------------------------------------------------------------------


def tensors(**given: Any) -> None:
    """Raises `InputError` for what is no tensor, or a nested one; None passes."""
    for name, value in given.items():
        if isinstance(value, Tensor) and value.is_nested:
            raise InputError(f"{name} is a nested tensor; give one with a single size for each dimension")
        if value is not None and not isinstance(value, Tensor):
            raise InputError(f"{name} is a {type(value).__module__}.{type(value).__name__}; give a torch.Tensor")


def device(given: Mapping[str, Tensor | None], emulated: int) -> torch.device:
    """The one that all tensors lie on; raises `BackendError` where there are several, or the op does not run there."""
    there = {name: tensor for name, tensor in given.items() if tensor is not None}
    first = next(iter(there))
    home = there[first].device
    for name, tensor in there.items():
        if tensor.device != home:
            raise BackendError(f"{name} is on {tensor.device} and {first} on {home}; all tensors must be on one device")
    target(emulated)
    if home.type == "meta":  # shapes alone are asked for
        return home
    if emulated and home.type != "cpu":
        raise BackendError(
            f"{first} is on {home}; emulated={emulated} executes the GPU's code on the CPU: give CPU tensors, or leave "
            "emulated out"
        )
    if not emulated and home.type != "cuda":
        raise BackendError(
            f"{first} is on {home}; this op runs on CUDA devices of compute capability "
            f"{'.'.join(map(str, MIN_CAPABILITY))} or newer: move its tensors there; or, for a proof on the CPU, slow, "
            "pass emulated=True"
        )
    return home


def launcher(home: torch.device, emulated: int) -> Launcher:
    """What runs kernels there. Raises `BackendError` for a GPU that is too old."""
    return _emulated(emulated) if emulated else _cuda(home)


@functools.lru_cache
def _emulated(capability: int) -> Launcher:
    return EmulatedLauncher(capability)


@functools.lru_cache
def _cuda(home: torch.device) -> Launcher:
    capability = torch.cuda.get_device_capability(home)
    if capability < MIN_CAPABILITY:
        raise BackendError(
            f"{torch.cuda.get_device_name(home)} has compute capability {capability[0]}.{capability[1]}; this op needs "
            f"{'.'.join(map(str, MIN_CAPABILITY))} or newer"
        )
    return CudaLauncher(home)


class Sizes:
    """Sizes by letter, as the tensors of one call give them. `known` begins with some."""

    def __init__(self, known: Mapping[str, int] | None = None) -> None:
        self._sizes = dict(known or {})

    def __getitem__(self, letter: str) -> int:
        return self._sizes[letter]

    def __setitem__(self, letter: str, size: int) -> None:
        self._sizes[letter] = size

    def fit(self, name: str, tensor: Tensor | None, letters: str, dtype: torch.dtype = torch.float32) -> None:
        """Takes the sizes of letters that are new from this tensor, and holds it to those that are known. None passes.

        letters  of its dimensions, between blanks
        Raises `ShapeError` for another shape, `InputError` for another type of numbers or a layout that is not
        contiguous."""
        if tensor is None:
            return
        words = letters.split()
        given = tuple(tensor.shape)
        known = [self._sizes.get(word) for word in words]
        fits = len(given) == len(words)
        if not fits or any(size is not None and size != g for size, g in zip(known, given, strict=True)):
            want = _tuple(words)
            numbers = _tuple(w if size is None else str(size) for w, size in zip(words, known, strict=True))
            raise ShapeError(f"{name} has shape {given}; it must be {want}" + f" = {numbers}" * (numbers != want))
        self._sizes.update(zip(words, given, strict=True))
        if tensor.dtype != dtype:
            raise InputError(f"{name} is {tensor.dtype}; it must be {dtype}: {name}.to({dtype}) makes it so")
        if tensor.layout != torch.strided:
            raise InputError(f"{name} is {tensor.layout}; give a dense tensor")
        if not tensor.is_contiguous():
            raise InputError(f"{name} is not contiguous; pass {name}.contiguous()")
        if tensor.numel() > INT32_MAX:
            raise InputError(f"{name} has {tensor.numel()} elements; possible are 2^31 − 1: give less at a time")


def values(name: str, fits: Tensor, possible: str) -> None:
    """Raises `InputError` unless all of a boolean tensor are true; waits for the device."""
    if not bool(fits.all()):
        where = tuple(fits.logical_not().nonzero()[0].tolist())
        raise InputError(f"{name} has at {where} a value that cannot be used; {possible}")


def _tuple(words: Any) -> str:
    listed = list(words)
    return f"({listed[0]},)" if len(listed) == 1 else f"({', '.join(listed)})"
