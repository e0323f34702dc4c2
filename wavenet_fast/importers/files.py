"""Files of other projects, read so that nothing in them runs here: tensors by name, and the plain values beside."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError
from ..strict_json import parse
from ..tensors import unpack, widen
from .child import FOUND, MAX_BYTES, MORE_THAN_TENSORS, TENSORS
from .common import Array

NEEDS_TORCH = (2, 10)
"""Older ones have holes in the reader of pickles itself (CVE-2025-32434, CVE-2026-24747)."""
MODULE_HINT = ". If it is a whole pickled module, and you trust where it is from, give --i-trust-this-file"
MAX_JSON_BYTES = 1 << 20
MOST_AXES = 8


@dataclass(frozen=True)
class Raw:
    """What is in a file: tensors by name, and what is no tensor."""

    tensors: Mapping[str, Array]
    data: dict[str, Any] = field(default_factory=dict)


@contextmanager
def reading(path: Path, trusted: bool = False) -> Iterator[Raw]:
    """The tensors of a PyTorch file or a safetensors file, as long as the block lasts.

    A pickle is read in a process of its own, with limits on memory and time. `trusted` also reads a whole pickled
    module. Raises `CheckpointError` for whatever cannot be read."""
    size = _checked_size(path)
    with open(path, "rb") as file:
        head = file.read(512)
    if _is_safetensors(head):
        tensors, metadata = unpack(path.read_bytes(), str(path))
        for name, tensor in tensors.items():
            if len(tensor["shape"]) > MOST_AXES:
                raise CheckpointError(f"{path}: {name!a} has {len(tensor['shape'])} axes; at most {MOST_AXES}")
        arrays = {name: widen(tensor).reshape(tensor["shape"]) for name, tensor in tensors.items()}
        yield Raw(arrays, dict(metadata))
        return
    if path.suffix == ".safetensors":
        raise CheckpointError(
            f"{path}: is no safetensors file, whatever its name says; it begins with {head[:8]!r}. If it is a file of"
            " torch.save, name it .pth"
        )
    if head[257:262] == b"ustar":
        raise CheckpointError(
            f"{path}: is a tar file, as torch wrote before 0.1.10; load it with the torch that wrote it, and save its"
            " state_dict() again"
        )
    if head[:4] != b"PK\x03\x04" and head[:1] != b"\x80":
        raise CheckpointError(
            f"{path}: is no checkpoint: neither a file of torch.save (.pth, .pt, .pkl) nor safetensors; it begins with"
            f" {head[:8]!r}"
        )
    _check_torch(path)
    with tempfile.TemporaryDirectory(prefix="wavenet-fast-") as folder:
        request = {"job": "tensors", "path": str(path.resolve()), "trusted": trusted}
        found = _child(request, Path(folder), size, path, MODULE_HINT)
        yield Raw(_mapped(Path(folder, TENSORS), found["tensors"], path), found["data"])


def plain_values(path: Path) -> dict[str, Any]:
    """What a JSON file, or a pickled `argparse.Namespace` or dictionary of plain values, holds."""
    _checked_size(path)
    with open(path, "rb") as file:
        pickled = file.read(4)[:1] in (b"\x80", b"P")
    if pickled:
        with _values(path, "tensors") as data:
            return data
    if path.stat().st_size > MAX_JSON_BYTES:
        raise CheckpointError(f"{path}: has {path.stat().st_size} bytes; hparams take at most {MAX_JSON_BYTES}")
    values = parse(path.read_bytes(), str(path))
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: is no JSON object, so no hparams")
    return values


def statistics_of(path: Path, feature: str = "") -> dict[str, Any]:
    """{"mean": (M,), "scale": (M,)} of a .npz file, a pickled scikit-learn scaler (`meanvar.joblib`) or an HDF5 file
    (`stats.h5`, of the features of type `feature`); and "mlsa" where that holds a noise-shaping filter."""
    _checked_size(path)
    with open(path, "rb") as file:
        head = file.read(8)
    if head[:4] == b"PK\x03\x04":
        found = _arrays(path)
    else:
        with _values(path, "hdf5" if head == b"\x89HDF\r\n\x1a\n" else "scaler") as found:
            pass
    told: dict[str, Any] = {}
    if "mlsa/coef" in found and "mlsa/alpha" in found:
        told["mlsa"] = {"coef": found["mlsa/coef"], "alpha": found["mlsa/alpha"]}
    for prefix in (f"{feature}/", ""):
        if f"{prefix}mean" in found and f"{prefix}scale" in found:
            return told | {name: found[f"{prefix}{name}"] for name in ("mean", "scale")}
    raise CheckpointError(f"{path}: holds {', '.join(sorted(found)[:10]) or 'nothing'}; mean and scale were looked for")


def _arrays(path: Path) -> dict[str, Any]:
    """Arrays of at most a mebibyte in a .npz file."""
    found = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.filename.endswith(".npy") and member.file_size <= 1 << 20:
                    with archive.open(member) as file:
                        found[member.filename.removesuffix(".npy")] = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, OSError, MemoryError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise CheckpointError(f"{path}: cannot be read as a .npz file: {error}") from None
    return found


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _checked_size(path: Path) -> int:
    if not path.exists():
        raise CheckpointError(f"{path}: is not there")
    if not path.is_file():
        raise CheckpointError(f"{path}: is not a regular file; name a checkpoint file")
    size = path.stat().st_size
    if not size:
        raise CheckpointError(f"{path}: is empty (0 bytes); copy it again")
    if size > 4 * MAX_BYTES:
        raise CheckpointError(f"{path}: has {size} bytes; at most {4 * MAX_BYTES} are read")
    return size


def _is_safetensors(head: bytes) -> bool:
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32


def _check_torch(path: Path) -> None:
    """Raises `CheckpointError` unless a torch is installed whose reader of pickles can be relied on."""
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        raise CheckpointError(
            f'{path}: is a pickle, which only PyTorch reads; pip install "wavenet-fast[torch]", or save its tensors as'
            " safetensors where PyTorch is"
        ) from None
    if tuple(int(part) for part in version.split("+")[0].split(".")[:2]) < NEEDS_TORCH:
        wanted = ".".join(map(str, NEEDS_TORCH))
        raise CheckpointError(
            f"{path}: is a pickle, and torch {version} has known holes in its reader of them; install torch {wanted} or"
            " newer"
        )


@contextmanager
def _values(path: Path, job: str) -> Iterator[dict[str, Any]]:
    size = _checked_size(path)
    if job == "tensors":
        _check_torch(path)
    with tempfile.TemporaryDirectory(prefix="wavenet-fast-") as folder:
        yield _child({"job": job, "path": str(path.resolve())}, Path(folder), size, path)["data"]


def _child(request: Mapping[str, Any], folder: Path, size: int, path: Path, hint: str = "") -> dict[str, Any]:
    """What the reading process found. It starts in `folder`, where nothing lies that it could import. `hint` ends the
    sentence about a file that holds more than tensors."""
    command = [sys.executable, "-m", f"{__package__}.child", json.dumps({**request, "folder": str(folder)})]
    process = subprocess.Popen(
        command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": ""},
    )  # fmt: skip
    try:
        _, said = process.communicate(timeout=180 + size // 5_000_000)
    except subprocess.TimeoutExpired:
        raise CheckpointError(f"{path}: takes longer to read than a file of its size may; it may be damaged") from None
    finally:
        process.kill()
        process.wait()
    try:
        found: dict[str, Any] = json.loads((folder / FOUND).read_bytes())
    except (OSError, ValueError):
        last = said.decode(errors="replace").strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
        raise CheckpointError(
            f"{path}: the process that reads it stopped, for want of memory, of time, or because the file is damaged"
            f" ({last[0][:200]})"
        ) from None
    if "error" in found:
        raise CheckpointError(f"{path}: {found['error']}{hint if MORE_THAN_TENSORS in found['error'] else ''}")
    return found


def _mapped(file: Path, places: Mapping[str, Any], path: Path) -> dict[str, Array]:
    """The tensors that the child wrote, mapped from its file; what it says of them is not taken on trust."""
    count = file.stat().st_size // 4 if file.exists() else 0
    numbers = np.memmap(file, np.float32, "r", shape=(count,)) if count else np.zeros(0, np.float32)
    found: dict[str, Array] = {}
    for name, (first, shape) in places.items():
        size = 1
        for length in shape:
            size *= int(length)
        if first < 0 or size < 0 or first + size > count:
            raise CheckpointError(f"{path}: tensor {name!r} was not read whole; try again")
        found[name] = np.asarray(numbers[first : first + size]).reshape(shape)
    return found
