"""Mel files: `.npy` with the mel alone, `.npz` with the arrays `mel` and `melspec_json` (the recipe it was made by).

Read without `numpy.load`: that would unpickle, believe any shape, and unpack any archive.
"""

from __future__ import annotations

import io
import json
import lzma
import math
import os
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .config import MelSpec, decode, encode
from .errors import AudioError, ConfigError, ShapeError
from .fileio import Opened, Source, opened, replacing
from .strict_json import parse

Array = NDArray[Any]

MAX_VALUES = 1 << 30
"""Of one mel: ten million frames of 80 bands; 4 GiB in memory."""

_MAX_HEADER_BYTES = 1 << 16
_MOST_EXPANSION, _SMALL_BYTES = 200, 1 << 24
"""An archive may hold 200 times its size; deflate can do 1000 times with zeros, but no mel is that empty. Under 16 MiB
it may hold anything."""
_KIND = "a mel file (.npz or .npy)"
_BROKEN_ZIP = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError, struct.error,
    ValueError,
)  # fmt: skip


@dataclass(frozen=True)
class MelFile:
    """mel: (M, F) float32. spec: the recipe it was made by, where the file says."""

    mel: NDArray[np.float32]
    spec: MelSpec | None


def read_mel(source: Source) -> MelFile:
    """The mel in a `.npy` or `.npz` file, known by its content; floating point of any width and byte order.

    source: path or binary file object. Raises `AudioError`: neither kind of file, Python objects, other types or
    ranks, a header that promises other than what is there, an archive that expands beyond reason, NaN or infinity, a
    recipe that is none.
    """
    with opened(source, _KIND) as found:
        magic = found.file.read(4)
        found.file.seek(0)
        if magic == b"\x93NUM":
            return MelFile(_as_mel(_read_array(found, "f"), found.name), None)
        if magic[:2] == b"PK":
            try:
                return _read_archive(found)
            except _BROKEN_ZIP as error:
                if isinstance(error, AudioError):
                    raise
                raise AudioError(f"{found.name}: is a damaged archive: {error}; write it again") from None
        what = "is empty (0 bytes)" if not found.size else f"begins with {magic!r}, which is no NumPy file"
        if magic in (b"RIFF", b"fLaC", b"OggS"):
            what = "is a sound file; take its mel first (`wavenet-fast mel`)"
        raise AudioError(f"{found.name}: {what}; give {_KIND}")


def read_vector(source: Source) -> Array:
    """The one array of floating point in a `.npy` file. Raises `AudioError`."""
    with opened(source, "a .npy file") as found:
        magic = found.file.read(4)
        found.file.seek(0)
        if magic != b"\x93NUM":
            raise AudioError(
                f"{found.name}: begins with {magic!r}, which is no .npy file; save a vector with numpy.save"
            )
        return _read_array(found, "f")


def write_mel(path: str | os.PathLike[str], mel: Array, spec: MelSpec | None = None) -> None:
    """Write a mel, (M, F), as float32; `.npz` with its recipe, `.npy` without. The file appears whole or not at all.

    Raises `AudioError` where the suffix is another or writing fails, `ShapeError` for another rank."""
    mel = np.ascontiguousarray(mel, np.float32)
    if mel.ndim != 2:
        raise ShapeError(f"the mel has shape {mel.shape}; give (bands, frames)")
    suffix = Path(path).suffix.lower()
    if suffix not in (".npz", ".npy"):
        raise AudioError(f"{os.fspath(path)}: mel files end in .npz (with the recipe) or .npy")
    with replacing(path) as file:
        if suffix == ".npy":
            np.save(file, mel)
        else:
            recipe = {} if spec is None else {"melspec_json": np.array(json.dumps(encode(spec), sort_keys=True))}
            arrays: dict[str, Any] = {"mel": mel, **recipe}
            np.savez(file, **arrays)


def _read_archive(found: Opened) -> MelFile:
    with zipfile.ZipFile(found.file) as archive:
        names = archive.namelist()
        if "mel.npy" not in names:
            listed = ", ".join(ascii(name)[:60] for name in names[:5]) or "nothing"
            raise AudioError(
                f"{found.name}: holds {listed}, but no array named mel; write it with np.savez(…, mel=mel)"
            )
        mel = _as_mel(_read_member(archive, "mel.npy", "f", found), found.name)
        spec = None
        if "melspec_json.npy" in names:
            text = _read_member(archive, "melspec_json.npy", "U", found)
            spec = _recipe(text, f"{found.name}: melspec_json")
    if spec is not None and len(mel) != spec.n_mels:
        raise AudioError(f"{found.name}: has {len(mel)} bands, though its recipe (melspec_json) says {spec.n_mels}")
    return MelFile(mel, spec)


def _read_member(archive: zipfile.ZipFile, member: str, kind: str, found: Opened) -> Array:
    """One array of an archive. Its size is what the archive's directory says; reading stops there."""
    info = archive.getinfo(member)
    if info.file_size > max(_SMALL_BYTES, _MOST_EXPANSION * found.size):
        raise AudioError(
            f"{found.name}: {member} would expand to {info.file_size} bytes from a file of {found.size};"
            " write it without compression (np.savez), or in pieces"
        )
    with archive.open(info) as file:
        return _read_array(Opened(file, f"{found.name}: {member}", info.file_size), kind)  # type: ignore[arg-type]


def _read_array(found: Opened, kind: str) -> Array:
    """The array of a .npy file or member, of the dtype kind "f" (floating point) or "U" (text). The header is held
    against the size before memory is taken."""
    file, name, size = found
    shape, fortran, dtype, header = _read_header(file, name)
    if dtype.hasobject:
        raise AudioError(f"{name}: holds Python objects (a pickle), which are never loaded; save numbers")
    if dtype.kind != kind:
        raise AudioError(f"{name}: holds {dtype}; {'text' if kind == 'U' else 'floating point'} is wanted here")
    promised = math.prod(shape) * dtype.itemsize
    if promised != size - header:
        raise AudioError(
            f"{name}: is cut short or damaged: its header promises {shape} values of {dtype}, {promised} bytes, and"
            f" {size - header} bytes follow"
        )
    if math.prod(shape) > MAX_VALUES:
        raise AudioError(f"{name}: holds {math.prod(shape)} values; at most {MAX_VALUES} can be read at once")
    values = np.empty(promised, np.uint8)
    filled = 0
    while filled < promised:
        part = file.read(min(1 << 24, promised - filled))
        if not part:
            raise AudioError(f"{name}: ends after {filled} of {promised} bytes")
        values[filled : filled + len(part)] = np.frombuffer(part, np.uint8)
        filled += len(part)
    return values.view(dtype).reshape(shape, order="F" if fortran else "C")


def _read_header(file: BinaryIO, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """(shape, whether in Fortran order, dtype, length of the header in bytes). Format 3.0 is for named fields only."""
    start = file.read(8)
    version = tuple(start[6:8])
    if start[:6] != b"\x93NUMPY" or version not in ((1, 0), (2, 0)):
        raise AudioError(f"{name}: is no NumPy array of format 1.0 or 2.0; write it with np.save")
    width, form = (2, "<H") if version == (1, 0) else (4, "<I")
    digits = file.read(width)
    length = struct.unpack(form, digits)[0] if len(digits) == width else 0
    if not 0 < length <= _MAX_HEADER_BYTES:
        raise AudioError(f"{name}: has a NumPy header of {length} bytes, which cannot be; write it again")
    text = file.read(length)
    header = io.BytesIO(digits + text)
    parse_header = np.lib.format.read_array_header_1_0 if width == 2 else np.lib.format.read_array_header_2_0
    try:
        shape, fortran, dtype = parse_header(header)
    except Exception as error:  # what a damaged header raises is not specified
        raise AudioError(f"{name}: its NumPy header cannot be read ({type(error).__name__}); write it again") from None
    if len(shape) > 8 or any(not 0 <= n < 1 << 31 for n in shape):
        raise AudioError(f"{name}: its header claims the shape {shape}, which cannot be")
    return tuple(int(n) for n in shape), bool(fortran), dtype, 8 + width + length


def _as_mel(values: Array, name: str) -> NDArray[np.float32]:
    if values.ndim != 2:
        advice = "save one utterance, mel[0]" if values.ndim == 3 else "give (bands, frames)"
        raise AudioError(f"{name}: has shape {values.shape}; a mel has two dimensions: {advice}")
    with np.errstate(over="ignore"):
        mel = np.ascontiguousarray(values, np.float32)
    finite = np.isfinite(mel)
    if not finite.all():
        frame, band = np.argwhere(~finite.T)[0]
        raise AudioError(f"{name}: is NaN or infinite at frame {frame}, band {band}; a mel must be finite in float32")
    return mel


def _recipe(value: Array, where: str) -> MelSpec:
    if value.size != 1:
        raise AudioError(f"{where}: holds {value.size} texts; one is wanted")
    try:
        data = str(value.item()).encode(errors="surrogatepass")
        return decode(MelSpec, parse(data, where), where)
    except ConfigError as error:
        raise AudioError(str(error)) from None
