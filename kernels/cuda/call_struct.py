"""`struct Call` of call.cuh, read from its text: every argument of a launch by name, in C's order and alignment."""

from __future__ import annotations

import operator
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wavenet_fast.emulated import Struct
from wavenet_fast.errors import BackendError, InputError

from .arrays import Array

_NUMBERS: dict[str, tuple[str, type[np.generic]]] = {
    "int": ("i", np.int32),
    "unsigned": ("I", np.uint32),
    "unsigned int": ("I", np.uint32),
    "u32": ("I", np.uint32),
    "u64": ("Q", np.uint64),
    "long long": ("q", np.int64),
    "unsigned long long": ("Q", np.uint64),
    "float": ("f", np.float32),
}
_POINTED = {name: np.dtype(kind) for name, (_, kind) in _NUMBERS.items()} | {
    "unsigned short": np.dtype(np.uint16),
    "u16": np.dtype(np.uint16),
    "unsigned char": np.dtype(np.uint8),
    "u8": np.dtype(np.uint8),
}
_FIELD = re.compile(
    r"(?:const\s+)?(?P<type>[A-Za-z]\w*(?:\s+[a-z]+)*?)\s*(?P<star>\*)?\s*(?:__restrict__\s+)?(?P<name>\w+)\s*;"
)


@dataclass(frozen=True)
class Field:
    """`code`: of `struct`, "P" for a pointer; `dtype` of the number, or of what is pointed to, None where any array may
    be (void, uint4, a type of the kernel's own); `offset` in bytes."""

    name: str
    code: str
    dtype: np.dtype[Any] | None
    offset: int

    @property
    def is_pointer(self) -> bool:
        return self.code == "P"


@dataclass(frozen=True)
class CallStruct:
    """`size` in bytes, the padding at the end included."""

    fields: tuple[Field, ...]
    size: int

    @classmethod
    def of_kernel(cls, name: str, headers: Mapping[str, str], sources: Path) -> CallStruct:
        """That of NAME.cuh, or of call.cuh where it has none of its own; `headers` go before files of `sources`."""
        for file in (f"{name}.cuh", "call.cuh"):
            text = headers.get(file)
            if text is None and (sources / file).exists():
                text = (sources / file).read_text(encoding="utf-8")
            if text is not None and "struct Call {" in text:
                return cls.parse(text)
        raise BackendError(f"neither {name}.cuh nor call.cuh has a `struct Call {{ … }};`; install wavenet-fast anew")

    @classmethod
    def parse(cls, text: str) -> CallStruct:
        """Reads `struct Call { … };`: one field a line, a pointer to anything or a number of 32 or 64 bits.

        Raises `BackendError` where something else stands there."""
        plain = re.sub(r"//[^\n]*|/\*.*?\*/", " ", text, flags=re.S)
        body = re.search(r"struct\s+Call\s*\{(.*?)\}\s*;", plain, re.S)
        if body is None:
            raise BackendError("call.cuh has no `struct Call { … };`; install wavenet-fast anew")
        fields: list[Field] = []
        end, widest = 0, 1
        for line in filter(None, map(str.strip, body[1].splitlines())):
            name, code, dtype = _field(line)
            if any(field.name == name for field in fields):
                raise BackendError(f"struct Call has two fields {name!r}")
            width = struct.calcsize(code)
            end += -end % width
            fields.append(Field(name, code, dtype, end))
            end, widest = end + width, max(widest, width)
        if not fields:
            raise BackendError("struct Call has no field")
        return cls(tuple(fields), end + -end % widest)

    def pack(self, call: Mapping[str, Any]) -> bytes:
        """The struct's bytes, pointers as addresses.

        Raises `InputError` for a name that is missing or unknown, or a value that its field cannot hold."""
        raw = bytearray(self.size)
        for field, value in self._values(call):
            packed = value.pointer if isinstance(value, Array) else value or 0
            struct.pack_into("<Q" if field.is_pointer else f"<{field.code}", raw, field.offset, packed)
        return bytes(raw)

    def for_emulator(self, call: Mapping[str, Any]) -> Struct:
        """The struct with the arrays themselves, whose bounds the emulator checks. Raises as `pack`."""
        pieces: list[Any] = []
        for field, value in self._values(call):
            if isinstance(value, Array):
                pieces.append(np.asarray(value))
            else:
                pieces.append(value if field.is_pointer or field.dtype is None else field.dtype.type(value))
        return Struct(*pieces)

    def _values(self, call: Mapping[str, Any]) -> list[tuple[Field, Any]]:
        names = {field.name for field in self.fields}
        if problem := (names ^ call.keys()):
            missing, unknown = sorted(problem & names), sorted(problem - names)
            told = [
                f"{', '.join(group)} {what}" for group, what in ((missing, "missing"), (unknown, "unknown")) if group
            ]
            raise InputError(f"arguments of a launch: {'; '.join(told)}; struct Call has {', '.join(sorted(names))}")
        return [(field, _checked(field, call[field.name])) for field in self.fields]


def _field(line: str) -> tuple[str, str, np.dtype[Any] | None]:
    """Name, code and type of a field's line."""
    match = _FIELD.fullmatch(line)
    kind = re.sub(r"\s+", " ", match["type"]) if match else ""
    if match and match["star"]:
        return match["name"], "P", _POINTED.get(kind)
    if match and not match["star"] and kind in _NUMBERS:
        code, number = _NUMBERS[kind]
        return match["name"], code, np.dtype(number)
    raise BackendError(
        f"struct Call: `{line}` is no field that can be filled; possible, one a line: a pointer, or a number of type "
        f"{', '.join(_NUMBERS)}"
    )


def _checked(field: Field, value: Any) -> Any:
    """An `Array` or None for a pointer, else a Python number."""
    if field.is_pointer:
        if value is not None and not isinstance(value, Array):
            raise InputError(f"argument {field.name} is a pointer, not {value!r}; give a device's array, or None")
        if value is not None and field.dtype is not None and value.dtype != field.dtype:
            raise InputError(f"argument {field.name} points to {field.dtype}, and an array of {value.dtype} was given")
        return value
    try:
        if field.code == "f":
            real = float(value)
            struct.pack("<f", real)
            return real
        number = operator.index(value)
        struct.pack(f"<{field.code}", number)
        return number
    except (TypeError, ValueError, OverflowError, struct.error):
        raise InputError(f"argument {field.name} is of type {field.dtype}, which {value!r} does not fit") from None
