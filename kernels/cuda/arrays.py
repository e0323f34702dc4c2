"""Arrays in a device's memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from wavenet_fast.errors import ShapeError

_Any = TypeVar("_Any", bound="Array")
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Array:
    """Contiguous numbers in a device's memory; bf16 are uint16 words.

    pointer  address of the first byte
    owner    what keeps the memory; it is freed when nothing refers to it
    """

    pointer: int
    shape: Shape
    dtype: np.dtype[Any]
    owner: Any = field(default=None, repr=False, compare=False)
    readonly: bool = False

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def reshape(self: _Any, *shape: int) -> _Any:
        """The same memory in another shape of as many elements."""
        if math.prod(shape) != self.size or min(shape, default=0) < 0:
            raise ShapeError(f"an array of shape {self.shape} has no view of shape {shape}")
        return replace(self, shape=shape)

    def prefix(self: _Any, *shape: int) -> _Any:
        """The first elements of the memory in another shape. Raises `ShapeError` where there are not so many."""
        if math.prod(shape) > self.size or min(shape, default=0) < 0:
            raise ShapeError(f"an array of shape {self.shape} has no prefix of shape {shape}")
        return replace(self, shape=shape)

    def part(self: _Any, first: int, last: int) -> _Any:
        """Rows first … last − 1 along the first axis."""
        if not 0 <= first <= last <= self.shape[0]:
            raise ShapeError(f"an array of shape {self.shape} has no rows {first} … {last - 1}")
        row = self.nbytes // self.shape[0] if self.shape[0] else 0
        return replace(self, pointer=self.pointer + first * row, shape=(last - first, *self.shape[1:]))

    def viewed(self: _Any, dtype: Any) -> _Any:
        """The same bytes as another type of as many bytes."""
        kind = np.dtype(dtype)
        if kind.itemsize != self.dtype.itemsize:
            raise ShapeError(f"an array of {self.dtype} has no view of {kind}; both must have as many bytes")
        return replace(self, dtype=kind)

    def _interface(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer, self.readonly),
            "strides": None,
            "version": 3,
        }


class HostArray(Array):
    """Of the emulated device: NumPy takes it without a copy."""

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return self._interface()


class CudaArray(Array):
    """Of a GPU: torch, CuPy and Numba take it without a copy. What they do with it has to wait for the device's work:
    `Device.synchronize`, or the same CUDA stream."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self._interface()
