"""Runs in a process of its own, with limits on memory and time, and reads what must not be read anywhere else: pickles,
and files of formats whose parsers are large. What it finds it leaves in a folder as plain numbers:

    tensors.bin  float32, one tensor after the other
    found.json   {"tensors": {name: [first number, shape]}, "data": what is no tensor} or {"error": a sentence}

    python -m wavenet_fast.importers.child '{"job": "tensors", "path": …, "folder": …, "trusted": false}'
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import pickle
import re
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .inert import INERT, Refused, ScalerReader, Something

TENSORS, FOUND = "tensors.bin", "found.json"
MAX_TENSORS, MAX_BYTES = 1 << 16, 4 << 30
MORE_THAN_TENSORS = "holds more than tensors"
DAMAGED = "is damaged or not whole, or no file of torch.save; copy it again from where it was made"
STATES = ("state_dict", "model", "model_state_dict", "generator", "net")
"""Under which of its keys a checkpoint may hold the network."""


# --- limits -----------------------------------------------------------------------------------------------------


def limit(size: int) -> None:
    """From here on: four times the file and a gibibyte more memory than now, a minute and a second per 20 MB of
    processor time, files of `MAX_BYTES`, no core dump. Raises `Refused` where the system has no such limits."""
    try:
        import resource
    except ImportError:
        raise Refused("this system cannot limit a process that reads a pickle; convert it on Linux or macOS") from None
    with contextlib.suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _lower(resource.RLIMIT_AS, pages * resource.getpagesize() + 4 * size + (1 << 30))
    used = resource.getrusage(resource.RUSAGE_SELF)
    _lower(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + 60 + size // 20_000_000)
    _lower(resource.RLIMIT_FSIZE, MAX_BYTES)
    _lower(resource.RLIMIT_CORE, 0)


def _lower(which: int, to: int) -> None:
    import resource

    _, hard = resource.getrlimit(which)
    most = to if hard == resource.RLIM_INFINITY else min(to, hard)
    resource.setrlimit(which, (most, most))


# --- torch files ------------------------------------------------------------------------------------------------


def tensors(path: Path, folder: Path, trusted: bool) -> dict[str, Any]:
    """The network in a file of `torch.save`, and the plain values beside it. Without `trusted` torch reads it with
    `weights_only=True`; with it, so that a whole pickled module can be read, by `Inert`."""
    import torch

    size = path.stat().st_size
    limit(size)
    with open(path, "rb") as file:
        mapped = file.read(4) == b"PK\x03\x04"
    records = _records(path) if mapped else None
    options: dict[str, Any] = {"map_location": "cpu", "mmap": mapped}
    if trusted:
        loaded = torch.load(path, weights_only=False, pickle_module=INERT, **options)
    else:
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(path, weights_only=True, **options)
    data: dict[str, Any] = {}
    state = dict(_named_tensors(_state(loaded, data), data))
    if isinstance(loaded, argparse.Namespace):
        return {"tensors": {}, "data": _plain(vars(loaded))}
    if not state:
        keys = ", ".join(map(str, loaded)) if isinstance(loaded, Mapping) else type(loaded).__name__
        raise Refused(f"holds no tensors ({keys[:200]})")
    return {"tensors": _written(state, folder, size, records), "data": data}


def _records(path: Path) -> Counter[int]:
    """How many records of each size an archive has. Raises `Refused` where one is compressed: torch maps the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except zipfile.BadZipFile:
        raise Refused(DAMAGED) from None
    if any(member.compress_type != zipfile.ZIP_STORED for member in members if "/code/" not in member.filename):
        raise Refused(
            "is a compressed archive, as torch.save writes none; load it where you trust it and save it again"
        )
    return Counter(member.file_size for member in members)


def _check_whole(state: Mapping[str, Any], records: Counter[int]) -> None:
    """Raises `Refused` where a tensor claims another number of bytes than any record has left: mapped, it would be
    filled up with what lies behind its own."""
    storages = [tensor.untyped_storage() for tensor in state.values()]
    claimed = Counter({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    del claimed[0]
    if claimed - records:
        raise Refused(DAMAGED)


def _state(loaded: Any, data: dict[str, Any]) -> Any:
    """The part of a checkpoint that holds the network; the plain values beside it go into `data`."""
    if not isinstance(loaded, Mapping):
        return loaded
    data |= _plain(loaded)
    for key in STATES:
        if isinstance(loaded.get(key), (Mapping, Something)):
            return _state(loaded[key], data)
    return loaded


def _named_tensors(state: Any, data: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Tensors by name: of a state dictionary, of lists in it (`name.0`, `name.1` …), or of a module."""
    import torch

    if isinstance(state, Something):
        held = vars(state)
        told = {f"{prefix}{name}": value for name, value in _plain(held).items() if not name.startswith("_")}
        data.setdefault("attributes", {}).update(told)
        for part in ("_parameters", "_buffers"):
            yield from _named_tensors(held.get(part), data, prefix)
        for name, module in (held.get("_modules") or {}).items():
            yield from _named_tensors(module, data, f"{prefix}{name}.")
    elif isinstance(state, Mapping):
        for name, value in state.items():
            if isinstance(value, torch.Tensor):
                yield f"{prefix}{name}", value
            elif isinstance(value, (list, tuple)):
                yield from ((f"{prefix}{name}.{i}", v) for i, v in enumerate(value) if isinstance(v, torch.Tensor))


def _written(state: Mapping[str, Any], folder: Path, size: int, records: Counter[int] | None) -> dict[str, Any]:
    """Writes every tensor, one by one, and says where. Pages of a mapped file, which has `records`, are let go behind
    it."""
    import torch

    claimed = sum(t.numel() for t in state.values()) * 4
    if len(state) > MAX_TENSORS or claimed > min(MAX_BYTES, 4 * size + (1 << 20)):
        raise Refused(f"claims {len(state)} tensors of {claimed} bytes in a file of {size}: it is damaged, or a bomb")
    for name, tensor in state.items():
        if tensor.is_complex() or tensor.is_quantized or tensor.layout != torch.strided or tensor.is_meta:
            told = f"{ascii(name)[1:-1][:200]}, a tensor of {tensor.dtype}, {tensor.layout}, on {tensor.device}"
            raise Refused(f"holds {told}; weights are plain numbers")
    if records is not None:
        _check_whole(state, records)
    places, first = {}, 0
    try:
        with open(folder / TENSORS, "wb") as file:
            for name, tensor in state.items():
                tensor.detach().to(torch.float32).contiguous().numpy().tofile(file)
                places[name] = [first, list(tensor.shape)]
                first += tensor.numel()
                if records is not None and sys.platform == "linux":
                    _let_go(tensor.data_ptr(), tensor.numel() * tensor.element_size())
    except OSError as error:
        raise Refused(
            f"its tensors take {claimed} bytes for a while in {folder.parent}, where they cannot be written ({error});"
            " make room there, or name another folder in the environment variable TMPDIR"
        ) from None
    return places


def _let_go(address: int, size: int) -> None:
    """The whole pages among these bytes of a mapped file need not stay in memory: they can be read again."""
    page, dont_need = 4096, 4
    first, last = -(-address // page) * page, (address + size) // page * page
    if first < last:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), dont_need)


def _plain(values: Mapping[Any, Any], depth: int = 0) -> dict[str, Any]:
    """What of a dictionary can be said in JSON: numbers, texts, short lists of them, and dictionaries of those."""
    kept: dict[str, Any] = {}
    for name, value in list(values.items())[:1000]:
        key = str(name)[:200]
        if value is None or isinstance(value, (bool, int, float)):
            kept[key] = value
        elif isinstance(value, str):
            kept[key] = value[:1000]
        elif isinstance(value, (list, tuple)) and len(value) <= 100:
            if all(isinstance(v, (bool, int, float)) for v in value):
                kept[key] = list(value)
        elif type(value) is dict and depth < 3:
            kept[key] = _plain(value, depth + 1)
    return kept


# --- statistics -------------------------------------------------------------------------------------------------


def hdf5(path: Path, folder: Path) -> dict[str, Any]:
    """Every small array in an HDF5 file, by its path, as lists."""
    try:
        import h5py
    except ImportError:
        raise Refused(
            "is an HDF5 file, which h5py reads: pip install h5py, or save mean and scale as arrays of a .npz file"
        ) from None
    limit(path.stat().st_size)
    found: dict[str, Any] = {}

    def keep(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.size <= 1 << 16 and item.dtype.kind in "fiu":
            found[name] = [float(value) for value in item[()].reshape(-1)]

    with h5py.File(path, "r") as file:
        file.visititems(keep)
    return {"tensors": {}, "data": found}


def scaler(path: Path, folder: Path) -> dict[str, Any]:
    """mean and scale of a pickled scikit-learn StandardScaler."""
    limit(path.stat().st_size)
    with open(path, "rb") as file:
        if file.read(1) != b"\x80":
            raise Refused("is neither a .npz, a HDF5 nor a plain joblib file; save mean and scale with numpy.savez")
        file.seek(0)
        held = ScalerReader(file).load()
    told = held if isinstance(held, Mapping) else vars(held) if isinstance(held, Something) else {}
    found = {name.rstrip("_"): told[name] for name in ("mean_", "scale_", "mean", "scale") if name in told}
    if any(isinstance(value, Something) for value in found.values()):
        raise Refused("was not written by joblib; save mean and scale with numpy.savez")
    return {"tensors": {}, "data": {name: [float(v) for v in value] for name, value in found.items()}}


# --- the process ------------------------------------------------------------------------------------------------


def _sentence(error: BaseException) -> str:
    """What went wrong, for whoever converts."""
    if isinstance(error, Refused):
        return str(error)
    if isinstance(error, MemoryError):
        return "needs more memory than a file of its size may: it is damaged, or a bomb"
    text = str(error)
    refused = re.search(r"(?:GLOBAL|global) ([\w.]+)", text)
    if isinstance(error, pickle.UnpicklingError) and refused:
        return f"{MORE_THAN_TENSORS}: it names {refused[1]}, which could run code when it is read"
    if "TorchScript" in text:
        return "is a TorchScript archive, which holds code; export the state_dict() of the module it was made from"
    if "miniz" in text or "weights_only" in text:  # torch's own advice is not ours
        return DAMAGED
    first = text.strip().splitlines()[0][:300] if text.strip() else type(error).__name__
    return f"cannot be read: {first}"


def found(request: Mapping[str, Any]) -> dict[str, Any]:
    """What is in the file, or why it cannot be told."""
    path, folder, trusted = Path(request["path"]), Path(request["folder"]), bool(request.get("trusted"))
    try:
        if request["job"] == "tensors":
            return tensors(path, folder, trusted)
        return {"hdf5": hdf5, "scaler": scaler}[request["job"]](path, folder)
    except Exception as error:
        return {"error": _sentence(error)}


def main(request: Mapping[str, Any]) -> None:
    told = json.dumps(found(request))
    Path(request["folder"], FOUND).write_text(told)
    os._exit(0)  # a library's own end has nothing to say any more


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
