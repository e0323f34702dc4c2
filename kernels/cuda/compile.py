"""NVRTC at run time: the kernels' sources and a model's headers, in memory, become PTX or a cubin, kept on disk."""

from __future__ import annotations

import hashlib
import os
import re
import threading
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import msgspec

from wavenet_fast import __version__
from wavenet_fast.backends import gpu
from wavenet_fast.cachedir import CACHE_VARIABLE, cache_directory
from wavenet_fast.errors import AudioError, BackendError, BackendWarning
from wavenet_fast.fileio import replacing, write_all

Kind = Literal["ptx", "cubin"]

SOURCES = Path(__file__).parent
"""The folder of the kernels' *.cuh."""

# A product and a sum are fused where a kernel says so by name (`__fmaf_rn`) and nowhere else, as in the C++ engine.
OPTIONS = ("--std=c++17", "--fmad=false")
# What ptxas says of each kernel: registers and spills.
CUBIN_OPTIONS = ("--ptxas-options=-v", "--ptxas-options=--warn-on-spills")

_FORMAT = b"wavenet_fast image 1\n"
_KEPT = 500
"""Images that the cache holds, of some 100 KB each."""
_LARGEST = 1 << 26
"""Bytes of an image that is one: many times what the largest kernel has."""
_MESSAGE_LINES = 6


class Image(msgspec.Struct, frozen=True):
    """A compiled kernel.

    code       PTX text in UTF-8, or a cubin
    registers  of a thread; None where ptxas did not run (PTX)
    spills     bytes that a thread stores to and loads from memory for want of registers; None as above
    log        what the compiler said
    """

    name: str
    capability: int
    kind: Kind
    code: bytes
    registers: int | None = None
    spills: int | None = None
    log: str = ""

    @property
    def text(self) -> str:
        """The PTX."""
        return self.code.decode()


def why_not_kernels() -> str | None:
    """Why kernels cannot be compiled here, with the next step; None where they can. Loads nothing."""
    return gpu.why_no_nvrtc()


def compile_kernel(
    name: str,
    headers: Mapping[str, str],
    capability: int,
    kind: Kind = "cubin",
    *,
    sources: str | os.PathLike[str] = SOURCES,
    line_info: bool = False,
) -> Image:
    """The kernel `name` of the file NAME.cuh, compiled for compute capability `capability` (90: sm_90), or what an
    earlier call, of any process, has left in the cache.

    headers    further files by name, {"shape.cuh": text}; they stand in for files of `sources` of that name
    sources    folder whose *.cuh may be included, NAME.cuh among them
    line_info  keep source lines for profilers

    Raises `BackendError` where NVRTC or NVIDIA's packages are missing, or the compiler refuses the source.
    """
    if kind not in ("ptx", "cubin"):
        raise BackendError(f"kind is {kind!r}; there are 'ptx' and 'cubin'")
    files = _files(name, headers, Path(sources))
    target = f"sm_{capability}" if kind == "cubin" else f"compute_{capability}"
    options = (*OPTIONS, f"--gpu-architecture={target}", *(CUBIN_OPTIONS if kind == "cubin" else ()))
    options += ("--generate-line-info",) if line_info else ()
    nvrtc = _Nvrtc.here()
    key = _key(name, files, options, nvrtc.version)
    path = _place(name, capability, kind, key)
    image = _read(path, key) if path else None
    if image is None:
        code, log = nvrtc.compile(name, files, options, kind)
        image = Image(name, capability, kind, code, *_resources(log, name), log)
        if path:
            _write(path, key, image)
    return image


def _files(name: str, headers: Mapping[str, str], sources: Path) -> dict[str, str]:
    """Everything that may be included, by name."""
    try:
        files = {path.name: path.read_text(encoding="utf-8") for path in sorted(sources.glob("*.cuh"))}
    except (OSError, UnicodeDecodeError) as error:
        raise BackendError(f"the kernels' sources cannot be read ({error}); install wavenet-fast anew") from None
    files.update(headers)
    if f"{name}.cuh" not in files:
        there = ", ".join(sorted(file.removesuffix(".cuh") for file in files)) or "nothing"
        raise BackendError(f"there is no kernel {name!r} in {sources}; there is {there}")
    return files


# --- the compiler -----------------------------------------------------------------------------------------------


class _Nvrtc:
    """NVRTC through cuda-bindings, loaded when first asked for."""

    _loaded: _Nvrtc | None = None

    def __init__(self) -> None:
        try:
            from cuda.bindings import nvrtc
        except ImportError as error:
            raise BackendError(gpu.why_no_nvrtc() or f"{error}; {gpu.INSTALL_CUDA}") from None
        self._nvrtc: Any = nvrtc
        try:
            self.version: tuple[int, int] = self._ask("nvrtcVersion")
        except BackendError:
            raise
        except Exception as error:  # whatever cuda-bindings raises where the library is not found
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise BackendError(f"NVRTC cannot be loaded ({first}); {gpu.INSTALL_CUDA}") from None

    @classmethod
    def here(cls) -> _Nvrtc:
        if cls._loaded is None:
            cls._loaded = cls()
        return cls._loaded

    def _ask(self, function: str, *arguments: Any) -> Any:
        """Calls a function; its results without the code, or `BackendError` where the code is not 0."""
        code, *results = getattr(self._nvrtc, function)(*arguments)
        if int(code):
            raise BackendError(f"NVRTC cannot go on: {function} says {getattr(code, 'name', code)}")
        return results[0] if len(results) == 1 else tuple(results)

    def compile(self, name: str, files: Mapping[str, str], options: tuple[str, ...], kind: Kind) -> tuple[bytes, str]:
        """Code and log."""
        texts = [text.encode() for text in files.values()]
        names = [file.encode() for file in files]
        source = f'#include "{name}.cuh"\n'.encode()
        program = self._ask("nvrtcCreateProgram", source, f"{name}.cu".encode(), len(files), texts, names)
        try:
            (code,) = self._nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
            log = self._text("ProgramLog", program).rstrip(b"\0\n ").decode(errors="replace")
            log = "\n".join(line for line in log.splitlines() if "Compile time" not in line)
            if int(code):
                raise BackendError(self._refusal(name, options, getattr(code, "name", str(code)), log))
            compiled = self._text("PTX" if kind == "ptx" else "CUBIN", program)
            return compiled.rstrip(b"\0") if kind == "ptx" else compiled, log
        finally:
            self._ask("nvrtcDestroyProgram", program)

    def _text(self, what: str, program: Any) -> bytes:
        size: int = self._ask(f"nvrtcGet{what}Size", program)
        room = bytes(size + 1)  # written into; Python keeps one object for all bytes of length 1
        self._ask(f"nvrtcGet{what}", program, room)
        return room[:size]

    def _refusal(self, name: str, options: tuple[str, ...], code: str, log: str) -> str:
        target = next(option.partition("=")[2] for option in options if option.startswith("--gpu-architecture"))
        version = ".".join(map(str, self.version))
        if code == "NVRTC_ERROR_INVALID_OPTION":
            there = ", ".join(map(str, self._ask("nvrtcGetSupportedArchs")))
            return (
                f"NVRTC {version} cannot compile the kernel {name!r} for {target} ({log or code}): it knows {there}; "
                f"install a version that knows this GPU: `pip install --upgrade nvidia-cuda-nvrtc`"
            )
        lines = log.splitlines()
        first = next((n for n, line in enumerate(lines) if re.search(r"\b(error|fatal)\b", line)), 0)
        told = "\n".join(lines[first : first + _MESSAGE_LINES]) or code
        return f"NVRTC {version} cannot compile the kernel {name!r} for {target}:\n{told}"


def _resources(log: str, name: str) -> tuple[int | None, int | None]:
    """Registers and bytes of spill stores and loads of the kernel, as ptxas tells them."""
    own = re.search(rf"Compiling entry function '{re.escape(name)}'(.*?)(?=Compiling entry function|\Z)", log, re.S)
    if own is None:
        return None, None
    registers = re.search(r"Used (\d+) registers", own[1])
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", own[1])
    return int(registers[1]) if registers else None, int(spills[1]) + int(spills[2]) if spills else None


# --- the cache --------------------------------------------------------------------------------------------------


def _key(name: str, files: Mapping[str, str], options: tuple[str, ...], version: tuple[int, int]) -> str:
    digest = hashlib.sha256()
    for piece in (
        __version__,
        str(version),
        name,
        *options,
        *(word for file in sorted(files.items()) for word in file),
    ):
        data = piece.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def _place(name: str, capability: int, kind: Kind, key: str) -> Path | None:
    base = cache_directory()
    return base / "cuda" / f"{name}-{capability}-{key[:32]}.{kind}" if base else None


def _sum(key: str, data: bytes) -> bytes:
    """Of an image's bytes and of what it was made from, so that no other image is taken for it."""
    return hashlib.sha256(key.encode() + data).digest()


def _read(path: Path, key: str) -> Image | None:
    """The image in a file of the cache; None where there is none, or none that is whole and this one."""
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST:  # a pipe would be waited for without end
            return None
        data = path.read_bytes()
        head, seal, body = data[: len(_FORMAT)], data[len(_FORMAT) :][:32], data[len(_FORMAT) + 32 :]
        if head != _FORMAT or seal != _sum(key, body):
            return None
        image = msgspec.msgpack.decode(body, type=Image)
    except (OSError, msgspec.MsgspecError):
        return None
    with suppress(OSError):  # a cache that others own is read all the same
        os.utime(path)
    return image


def _write(path: Path, key: str, image: Image) -> None:
    body = msgspec.msgpack.encode(image)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():  # `replacing` writes into a pipe, and waits for who reads it
            path.unlink()
        with replacing(path) as file:
            write_all(file, _FORMAT + _sum(key, body) + body)
        _prune(path.parent)
    except (OSError, AudioError) as error:
        _warn_once(path.parent, error)


_warned: set[Path] = set()
_warning = threading.Lock()


def _warn_once(folder: Path, error: Exception) -> None:
    with _warning:
        if folder in _warned:
            return
        _warned.add(folder)
    warnings.warn(
        f"compiled kernels cannot be kept in {folder} ({error}), so each process compiles them anew; make it writable, "
        f"or name another folder in {CACHE_VARIABLE}",
        BackendWarning,
        stacklevel=4,
    )


def _prune(folder: Path) -> None:
    """Deletes what has not been used for longest."""
    with suppress(OSError):  # another process may do the same
        files = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in files[_KEPT:]:
            path.unlink()
