"""What is checked of copies between a device and NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wavenet_fast.errors import InputError, ShapeError

from .arrays import Array


def check_same_bytes(target: Array, source: Array | NDArray[Any]) -> None:
    if target.nbytes != source.nbytes or target.dtype.itemsize != source.dtype.itemsize:
        raise ShapeError(
            f"{source.shape} of {source.dtype} was given, which does not fill {target.shape} of {target.dtype}"
        )
    if target.readonly:
        raise InputError("the memory to be written is read-only; give an array that may be written")


def checked_out(array: Array, out: NDArray[Any] | None) -> NDArray[Any]:
    """Where to download to."""
    if out is None:
        return np.empty(array.shape, array.dtype)
    if out.shape != array.shape or out.dtype != array.dtype:
        raise ShapeError(f"out is {out.shape} of {out.dtype}; needed: {array.shape} of {array.dtype}")
    if not out.flags.c_contiguous or not out.flags.writeable:
        raise InputError("out is not contiguous or cannot be written; give np.empty of the array's shape and type")
    return out
