"""Arrays of other libraries as a device's own, without copies."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from wavenet_fast.backends import gpu
from wavenet_fast.errors import BackendError, InputError

from .arrays import CudaArray, HostArray, Shape

# What kernels take; bf16 travels as words.
KINDS = {"f4", "f2", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"}
_WRONG = (
    BufferError, RuntimeError, TypeError, ValueError, LookupError, AttributeError, OverflowError, AssertionError,
)  # fmt: skip
"""What NumPy and cuda-core raise where a foreign array says nonsense about itself."""
_DLPACK_CUDA = (2, 13)  # memory of a GPU, and managed memory
_OFFERS = "a torch tensor or an array with DLPack or `__cuda_array_interface__`"


def shape_of(shape: Sequence[int]) -> Shape:
    try:
        sizes = tuple(operator.index(size) for size in shape)
    except TypeError:
        sizes = (-1,)
    if min(sizes, default=0) < 0:
        raise InputError(f"shape is {shape!r}; possible: whole numbers from 0")
    return sizes


def torch_dtype(tensor: Any) -> np.dtype[Any]:
    """The NumPy type of a torch tensor, whose numbers are words where NumPy has none."""
    name = str(tensor.dtype).removeprefix("torch.")
    return np.dtype(np.uint16) if name == "bfloat16" else dtype_of(name)


def dtype_of(name: Any) -> np.dtype[Any]:
    try:
        kind: np.dtype[Any] | None = np.dtype(name)
    except TypeError:
        kind = None
    if kind is None or kind.str[1:] not in KINDS or not kind.isnative:
        raise InputError(f"an array of {name} was given; possible: floats and integers of 1 to 8 bytes, and bfloat16")
    return kind


def is_torch(obj: Any) -> bool:
    return hasattr(obj, "data_ptr") and hasattr(obj, "is_contiguous")


def from_torch(tensor: Any, device: tuple[str, int | None], kind: type[Any]) -> Any:
    """A torch tensor on this device, e.g. ("cuda", 0) or ("cpu", None), as an array of `kind`.

    Raises `BackendError` where it lies elsewhere, `InputError` where it is not contiguous or of another type."""
    where = tensor.device
    if (where.type, where.index if device[1] is not None else None) != device:
        name = device[0] if device[1] is None else f"{device[0]}:{device[1]}"
        raise BackendError(f"the tensor lies on {where}, and the kernels run on {name}; give its .to({name!r})")
    if not tensor.is_contiguous():
        raise InputError("the tensor is not contiguous; give its .contiguous()")
    return kind(tensor.data_ptr(), tuple(tensor.shape), torch_dtype(tensor), tensor)


def host_view(obj: Any) -> HostArray:
    """NumPy's, torch's or a DLPack array in this machine's memory.

    Raises `BackendError` where it lies elsewhere, `InputError` where it is none, or not contiguous."""
    if is_torch(obj):
        array: HostArray = from_torch(obj, ("cpu", None), HostArray)
        return array
    if hasattr(obj, "__cuda_array_interface__"):
        raise BackendError("the array lies on a GPU, and the emulated device takes arrays in this machine's memory")
    try:
        if hasattr(obj, "__array_interface__"):
            viewed = np.asarray(obj)
        elif hasattr(obj, "__dlpack__"):
            viewed = np.from_dlpack(obj)
        else:
            raise InputError(f"{type(obj).__name__} is no array; give NumPy's, {_OFFERS}")
    except InputError:
        raise
    except _WRONG as error:
        raise BackendError(f"the array cannot be used without a copy ({error}); give a NumPy array") from None
    if not viewed.flags.c_contiguous:
        raise InputError("the array is not contiguous; give np.ascontiguousarray of it")
    return HostArray(
        viewed.ctypes.data, viewed.shape, dtype_of(viewed.dtype), (obj, viewed), not viewed.flags.writeable
    )


def cuda_view(obj: Any, index: int, stream: int) -> CudaArray:
    """An array on GPU `index`; what its library still does to it comes first on `stream`. Raises as `host_view`."""
    if is_torch(obj):
        array: CudaArray = from_torch(obj, ("cuda", index), CudaArray)
        return array
    if not hasattr(obj, "__cuda_array_interface__") and not hasattr(obj, "__dlpack__"):
        raise InputError(f"{type(obj).__name__} is no array on a GPU; give {_OFFERS}, or use `upload`")
    try:
        here = not hasattr(obj, "__cuda_array_interface__") and obj.__dlpack_device__()[0] not in _DLPACK_CUDA
    except _WRONG as error:
        raise BackendError(f"the array cannot be used without a copy ({error}); copy it with `upload`") from None
    if here:
        raise BackendError(f"the array lies in this machine's memory; `upload` it to GPU {index}")
    try:
        from cuda.core.utils import StridedMemoryView
    except ImportError as error:  # also where it does not go with the cuda-bindings that are installed
        raise BackendError(f"cuda-core cannot be loaded ({error}); {gpu.INSTALL_CUDA}") from None

    try:
        seen = StridedMemoryView.from_any_interface(obj, stream_ptr=stream)
        kind = seen.dtype
    except NotImplementedError:
        raise InputError("an array of bfloat16 was given; give its words as uint16, or a torch tensor") from None
    except _WRONG as error:
        raise BackendError(f"the array cannot be used without a copy ({error}); copy it with `upload`") from None
    if seen.device_id != index:
        raise BackendError(f"the array lies on GPU {seen.device_id}, and the kernels run on GPU {index}; copy it there")
    shape = tuple(seen.shape)
    if not _contiguous(shape, seen.strides):
        raise InputError("the array is not contiguous; give a contiguous copy of it")
    return CudaArray(seen.ptr, shape, dtype_of(kind), (obj, seen), bool(seen.readonly))


def _contiguous(shape: Shape, strides: Sequence[int] | None) -> bool:
    """Strides in elements, of axes that have more than one."""
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides or ()), strict=False):
        if size > 1 and stride != step:
            return False
        step *= size
    return True
