"""Python values as kernel arguments: the bytes of each parameter, and the memory that the kernel may touch."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wavenet_fast.emulated.ptx import SIZES, Variable
from wavenet_fast.errors import EmulationError

_REAL = {"f32": "<f", "f64": "<d", "f16": "<e"}


@dataclass(frozen=True)
class Memory:
    """A piece of memory of the caller's: address, bytes, and whether the kernel may write there."""

    address: int
    size: int
    writable: bool
    argument: int


@dataclass
class Packed:
    """Arguments ready for launch. `pointers` says where an address lies: (parameter, byte in it) → memory."""

    parameters: list[bytearray] = field(default_factory=list)
    memories: list[Memory] = field(default_factory=list)
    pointers: dict[tuple[int, int], Memory] = field(default_factory=dict)


class Struct:
    """A parameter passed by value: its fields in C's order and alignment. Arrays and None become pointers, NumPy
    scalars keep their type, a Python int is 32 bits, a float is single precision, bytes lie as they are."""

    def __init__(self, *fields: Any) -> None:
        self.fields = fields


def memory_of(value: Any, argument: int) -> Memory | None:
    """The memory behind an array or tensor; None where it is neither.

    Raises:
        EmulationError: it is not contiguous, or not in this machine's memory.
    """
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            raise EmulationError(f"argument {argument} is an array of Python objects, which no kernel can use")
        if not value.flags.c_contiguous:
            raise EmulationError(f"argument {argument} is not contiguous: pass np.ascontiguousarray of it")
        return Memory(value.ctypes.data, value.nbytes, bool(value.flags.writeable), argument)
    if hasattr(value, "data_ptr"):
        if getattr(getattr(value, "device", None), "type", "cpu") != "cpu":
            raise EmulationError(f"argument {argument} lies on {value.device}: emulated kernels take CPU tensors")
        if not value.is_contiguous():
            raise EmulationError(f"argument {argument} is not contiguous: pass its .contiguous()")
        return Memory(value.data_ptr(), value.numel() * value.element_size(), True, argument)
    return None


def pack(parameters: Sequence[Variable], values: Sequence[Any], buffers: Sequence[Any] = ()) -> Packed:
    """Encodes one value per parameter.

    Raises:
        EmulationError: another number of values, or one that does not fit its parameter.
    """
    if len(values) != len(parameters):
        listed = ", ".join(describe(parameter) for parameter in parameters) or "none"
        raise EmulationError(f"{len(values)} arguments were given; the kernel takes {len(parameters)}: {listed}")
    packed = Packed()
    for position, (parameter, value) in enumerate(zip(parameters, values, strict=True)):
        try:
            packed.parameters.append(_encode(parameter, value, position, packed))
        except (struct.error, OverflowError, ValueError) as error:
            raise EmulationError(f"argument {position} ({describe(parameter)}): {value!r} does not fit") from error
    for buffer in buffers:
        memory = memory_of(buffer, -1)
        if memory is None:
            raise EmulationError(f"buffers must be arrays or tensors, not {type(buffer).__name__}")
        packed.memories.append(memory)
    return packed


def describe(parameter: Variable) -> str:
    """`.u64 name` or `.b8 name[56]`"""
    element = SIZES[parameter.type]
    return f".{parameter.type} {parameter.name}" + (
        f"[{(parameter.size or 0) // element}]" if parameter.size != element else ""
    )


def _encode(parameter: Variable, value: Any, position: int, packed: Packed) -> bytearray:
    size, kind = parameter.size or 0, parameter.type
    where = f"argument {position} ({describe(parameter)})"
    if isinstance(value, Struct):
        raw = _struct(value, position, packed)
    elif isinstance(value, bytes | bytearray):
        raw = bytearray(value)
    elif value is None:
        raw = bytearray(size)
    elif (memory := memory_of(value, position)) is not None:
        if size != 8:
            raise EmulationError(f"{where} is no pointer, and an array was given")
        packed.memories.append(memory)
        packed.pointers[position, 0] = memory
        raw = bytearray(struct.pack("<Q", memory.address))
    elif isinstance(value, np.generic):
        if kind in ("f32", "f64") and value.dtype.kind != "f":
            raise EmulationError(f"{where} is a real number, and {value.dtype} was given: pass a float")
        raw = bytearray(value.tobytes())
    elif kind in _REAL and isinstance(value, int | float):
        raw = bytearray(struct.pack(_REAL[kind], value))
    elif isinstance(value, int) and size in (1, 2, 4, 8):
        if not -(1 << 8 * size - 1) <= value < 1 << 8 * size:
            raise EmulationError(f"{where} has {size} bytes, and {value} does not fit")
        raw = bytearray((value % (1 << 8 * size)).to_bytes(size, "little"))
    elif isinstance(value, float) and size in (4, 8):
        # nvcc and Triton declare some single-precision parameters by their size only.
        raw = bytearray(struct.pack("<f" if size == 4 else "<d", value))
    else:
        raise EmulationError(f"{where} cannot be made from {type(value).__name__}: give an array, a number or bytes")
    if len(raw) < size and isinstance(value, Struct):
        raw.extend(bytes(size - len(raw)))
    if len(raw) != size:
        raise EmulationError(f"{where} has {size} bytes, and {len(raw)} were given")
    return raw


def _struct(value: Struct, position: int, packed: Packed) -> bytearray:
    raw = bytearray()
    for item in value.fields:
        align, memory = 1, memory_of(item, position)
        if item is None or memory is not None:
            piece, align = struct.pack("<Q", memory.address if memory else 0), 8
        elif isinstance(item, bytes):
            piece = item
        elif isinstance(item, np.generic):
            piece, align = item.tobytes(), item.dtype.itemsize
        else:
            piece, align = struct.pack("<f" if isinstance(item, float) else "<i", item), 4
        raw.extend(bytes(-len(raw) % align))
        if memory:
            packed.memories.append(memory)
            packed.pointers[position, len(raw)] = memory
        raw.extend(piece)
    return raw


def regions(memories: Sequence[Memory]) -> list[tuple[int, int, bool, int]]:
    """(address, bytes, writable, argument), sorted, overlapping ones merged; two views of one array are one region."""
    merged: list[tuple[int, int, bool, int]] = []
    for memory in sorted(memories, key=lambda m: (m.address, -m.size)):
        if merged and memory.address < merged[-1][0] + merged[-1][1]:
            address, size, writable, argument = merged[-1]
            end = max(address + size, memory.address + memory.size)
            merged[-1] = (address, end - address, writable or memory.writable, argument)
        elif memory.size:
            merged.append((memory.address, memory.size, memory.writable, memory.argument))
    return merged
