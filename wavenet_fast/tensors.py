"""The tensors of a safetensors file: checked, listed by name, widened to float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray

from .errors import CheckpointError, ConfigError
from .strict_json import parse

MAX_HEADER_BYTES = 1 << 20
"""Of the safetensors header; the largest model the configuration allows needs a third of it."""

# float32 is stored as it is; the others are widened on loading. BF16 is the upper half of a float32.
_WIDEN: dict[str, Callable[[bytes], NDArray[np.float32]]] = {
    "F32": lambda raw: np.frombuffer(raw, "<f4").astype(np.float32, copy=False),
    "F16": lambda raw: np.frombuffer(raw, "<f2").astype(np.float32),
    "BF16": lambda raw: (np.frombuffer(raw, "<u2").astype(np.uint32) << np.uint32(16)).view(np.float32),
}


def unpack(data: bytes, where: str) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """name → {"shape", "dtype", "data"}, and the metadata, of a safetensors file.

    Raises `CheckpointError` for anything else, and for number formats that are not F32, F16 or BF16."""
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > min(len(data) - 8, MAX_HEADER_BYTES):
        if data[:1] == b"\x80" or data[:4] == b"PK\x03\x04" or data[257:262] == b"ustar":
            raise CheckpointError(
                f"{where}: is a pickle (a PyTorch .pt file) by another name; pickles can run code and are never"
                " opened. Load it where you trust it and save the tensors as safetensors"
            )
        raise CheckpointError(
            f"{where}: is not a whole safetensors file: {len(data)} bytes that announce a header of {size}, of which"
            f" at most {MAX_HEADER_BYTES} are allowed; copy it again"
        )
    try:
        tensors = dict(safetensors.deserialize(data))  # type: ignore[no-untyped-call]
    except (safetensors.SafetensorError, ValueError, KeyError, OverflowError, MemoryError) as error:
        raise CheckpointError(f"{where}: is not a valid safetensors file: {error}") from None
    for name, tensor in tensors.items():
        if tensor["dtype"] not in _WIDEN:
            raise CheckpointError(
                f"{where}: tensor {name!r} has number format {tensor['dtype']}; possible are {', '.join(_WIDEN)}"
            )
    try:
        header = parse(data[8 : 8 + size], f"{where}: the header")  # refuses the duplicate keys that pass above
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    return tensors, header.get("__metadata__") or {}


def widen(tensor: Mapping[str, Any]) -> NDArray[np.float32]:
    """The values of one entry of `unpack`, flat."""
    return _WIDEN[tensor["dtype"]](tensor["data"])


def compare_shapes(
    given: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], where: str, most: int = 6
) -> None:
    """Raises `CheckpointError` that lists the tensors missing, left over and mis-shaped, by name, `most` of each."""
    wrong = [n for n in wanted if n in given and given[n] != wanted[n]]
    problems = [
        ("missing", [n for n in wanted if n not in given]),
        ("not part of this model", sorted(n for n in given if n not in wanted)),
        ("of another shape", [f"{n} {given[n][:8]} instead of {wanted[n]}" for n in wrong]),
    ]
    told = [f"{len(names)} {what}: {_some(names, most)}" for what, names in problems if names]
    if told:
        raise CheckpointError(f"{where}: does not fit the configuration; tensors {'; '.join(told)}")


def check_values(weights: Mapping[str, NDArray[Any]], where: str) -> None:
    """All finite, scales positive; makes the arrays read-only."""
    bad = [name for name, weight in weights.items() if not np.isfinite(weight).all()]
    if bad:
        raise CheckpointError(f"{where}: NaN or infinite values in {_some(bad)}; weights must be finite numbers")
    if "mel.scale" in weights and not (weights["mel.scale"] > 0).all():
        raise CheckpointError(f"{where}: mel.scale must be above 0 in every band, because mels are divided by it")
    for weight in weights.values():
        weight.flags.writeable = False


def _some(names: list[str], most: int = 6) -> str:
    shown = ", ".join(ascii(n)[1:-1][:120] for n in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
