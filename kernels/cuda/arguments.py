"""What `Model.ready` is given, as the device's arrays: looked at where they lie, and refused by name where something
does not fit, before any kernel is asked for."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wavenet_fast.conditioning import MAX_STREAM_SAMPLES
from wavenet_fast.errors import BackendError, InputError, ShapeError

from .arrays import Array
from .device import Device
from .foreign import is_torch
from .launches import Heard, Made, Streams, trace_shapes

if TYPE_CHECKING:
    from .model import Model

_INT32_MAX = 2**31 - 1
_ALIGNED = {"rings": 16, "projected": 8}
"""Bytes that a kernel moves at once, where they are more than one number: on a GPU an address that is no multiple of
them ends in an error after which the process cannot use the GPU any more."""


@dataclass(frozen=True)
class Given:
    """All of it as arrays of the device."""

    streams: Streams
    heard: Heard
    made: Made
    forced: Array | None


def counted(device: Device, counts: Any) -> tuple[NDArray[np.int32], Array]:
    """Counts (B,) as numbers here and as int32 on the device, where they may lie already.

    Raises `ShapeError` for another shape, `InputError` for what is no count."""
    there = isinstance(counts, Array) or hasattr(counts, "__cuda_array_interface__")
    if there or (is_torch(counts) and counts.device.type != "cpu"):
        lying = _viewed(device, "counts", counts, None, np.int32)
        numbers = device.download(lying)
    else:
        lying, numbers = None, np.asarray(counts)
    if numbers.ndim != 1 or not numbers.size or numbers.dtype.kind not in "iu":
        raise ShapeError(f"counts are {numbers.dtype} {numbers.shape}; give integers (B,), one for each stream")
    if int(numbers.min()) < 0 or int(numbers.max()) > _INT32_MAX:
        raise InputError(f"counts lie in {numbers.min()} … {numbers.max()}; possible are 0 … {_INT32_MAX}")
    numbers = numbers.astype(np.int32)
    return numbers, device.upload(numbers) if lying is None else lying


def check_patience(patience: Any) -> None:
    """Raises `InputError` unless it is a number of clock cycles."""
    try:
        fits = 1 <= operator.index(patience) < 2**63
    except TypeError:
        fits = False
    if not fits:
        raise InputError(f"patience is {patience!r}; give clock cycles, an integer from 1 to 2^63 − 1")


def checked(model: Model, streams: Streams, counts: NDArray[np.int32], heard: Heard, made: Made, forced: Any) -> Given:
    """Types and shapes for these counts (B,); nothing is read. Raises as `Model.ready`."""
    s, B, steps = model.shape, len(counts), int(counts.max())

    def fit(name: str, obj: Any, shape: Sequence[int | str], dtype: Any, written: bool = False) -> Array:
        return _viewed(model.device, name, obj, shape, dtype, written)

    streams = Streams(
        fit("rings", streams.rings, (B, s.SLOTS, model.ring_row), model.operand, True),
        fit("inputs", streams.inputs, (B, s.IN_DEPTH), np.float32, True),
        fit("filters", streams.filters, (B,), np.float32, True),
        fit("positions", streams.positions, (B,), np.int64),
        fit("seeds", streams.seeds, (B,), np.uint64),
    )
    heard = Heard(
        fit("projected", heard.projected, (B, "F", s.LAYERS, s.HALF, 2), np.float32),
        fit("first_q", heard.first_q, (B,), np.int32),
        fit("last_column", heard.last_column, (B,), np.int32),
    )
    if not heard.projected.shape[1]:
        raise ShapeError(f"projected has shape {heard.projected.shape}; it must have at least one column")
    audio = fit("audio", made.audio, (B, "T"), np.float32, True)
    T = audio.shape[1]
    if steps > T:
        raise ShapeError(f"audio has shape {audio.shape}; counts ask for {steps} samples of a stream")
    optional: dict[str, Array | None] = {"logits": None, "forced": None}
    if made.logits is not None:
        optional["logits"] = fit("logits", made.logits, (B, T, model.config.out_channels), np.float32, True)
    if forced is not None:
        optional["forced"] = fit("forced", forced, (B, T), np.float32)
    trace = None
    if made.trace is not None:
        shapes = trace_shapes(s)
        if made.trace.keys() != shapes.keys():
            raise InputError(f"trace has {', '.join(made.trace) or 'nothing'}; needed are {', '.join(shapes)}")
        trace = {
            name: fit(f"trace[{name!r}]", made.trace[name], (B, T, *rest), np.float32, True)
            for name, rest in shapes.items()
        }
    draws = fit("draws", made.draws, (B, T), np.float32, True)
    return Given(streams, heard, Made(audio, draws, optional["logits"], trace), optional["forced"])


def _viewed(
    device: Device, name: str, obj: Any, shape: Sequence[int | str] | None, dtype: Any, written: bool = False
) -> Array:
    """`obj` on the device. Letters stand for any size."""
    try:
        array = device.view(obj)
    except (BackendError, InputError) as error:
        kind = InputError if isinstance(error, InputError) else BackendError
        raise kind(f"{name}: {error}") from None
    wanted = np.dtype(dtype)
    if array.dtype != wanted and wanted.kind == "u" and array.dtype == np.dtype(f"i{wanted.itemsize}"):
        array = array.viewed(wanted)  # the same bits; not every library has unsigned numbers
    if array.dtype != wanted:
        more = ", the words of bf16" if wanted == np.uint16 else ""
        raise InputError(f"{name} is {array.dtype}; it must be {wanted}{more}")
    if shape is not None:
        sizes = zip(array.shape, shape, strict=False)
        if len(array.shape) != len(shape) or any(want not in (size, str(want)) for size, want in sizes):
            letters = f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"
            raise ShapeError(f"{name} has shape {array.shape}; it must be {letters}")
    unit = _ALIGNED.get(name, wanted.itemsize)
    if array.nbytes and array.pointer % unit:
        raise InputError(
            f"{name} begins {array.pointer % unit} bytes behind a multiple of {unit}, and the kernels read {unit} "
            "bytes at once; give an array of its own, such as a copy, instead of a view into another"
        )
    if written and array.readonly:
        raise InputError(f"{name} is read-only, and a launch writes it; give an array that may be written")
    return array


def check_values(model: Model, given: Given) -> None:
    """Reads from the device what would lead a kernel out of its tables: columns, positions, classes. Raises
    `InputError`. Seeds may be anything; of rings, filters and `projected` no address depends."""
    streams, heard, one_hot = given.streams, given.heard, model.shape.ONE_HOT
    columns, classes = heard.projected.shape[1], model.config.out_channels
    _within(model.device, "positions", streams.positions, 0, MAX_STREAM_SAMPLES)
    _within(model.device, "first_q", heard.first_q, -(2**30), 2**30)
    _within(model.device, "last_column", heard.last_column, 0, columns - 1)
    if one_hot:
        _within(model.device, "inputs", streams.inputs, -1, classes - 1)
    if given.forced is not None and one_hot:
        _within(model.device, "forced", given.forced, 0, classes - 1)


def _within(device: Device, name: str, array: Array, low: int, high: int) -> None:
    values = device.download(array)
    wrong = ~((values >= low) & (values <= high))  # NaN too
    if wrong.any():
        where = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise InputError(f"{name} is {values[where]} at {where}; possible are {low} … {high}")
