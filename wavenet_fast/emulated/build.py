"""Compiles generated C++ with the machine's compiler, and keeps what it made on disk.

The cache lies in `$XDG_CACHE_HOME/wavenet_fast/emulated` (or `~/.cache/…`); its key holds the source, the runtime, the
flags, the compiler's version and the processor. A file appears there by rename: two processes may build at once.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from wavenet_fast.errors import EmulationError

RUNTIME = Path(__file__).parent / "runtime"
PARTS = ("switch", "simt", "polls", "order", "report", "sync", "address", "warp")
# -ffp-contract=off: a product and a sum are fused where the PTX says so. No strict aliasing: memory has no types.
COMMON = [
    "-std=c++17",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-fno-math-errno",
    "-w",
]
# Seconds that a compiler may take.
TIMEOUT = 900
# The end of a file that is whole; what loads or links it does not mind.
SEAL = b"wavenet_fast"
# Files that the cache holds, of some 100 KB each.
KEPT = 1000
# -Og: half the time of -O1 to compile, and as fast for the few steps that a kernel is run.
MODES = {
    "plain": ["-Og"],
    "thread": ["-Og", "-g1", "-fsanitize=thread"],
    "address": ["-Og", "-g1", "-fsanitize=address"],
}
# Stack variables of generated code are registers: nothing of the kernel's could reach beyond them.
NO_STACK = {"gcc": ["--param", "asan-stack=0"], "clang": ["-mllvm", "-asan-stack=0"]}


@functools.cache
def _version(compiler: tuple[str, ...]) -> str:
    return subprocess.run([*compiler, "--version"], capture_output=True, text=True).stdout


def compiler() -> list[str]:
    """The C++ compiler: `$CXX`, or the first of g++, c++ and clang++ that is there.

    Raises:
        EmulationError: there is none.
    """
    if os.environ.get("CXX"):
        with contextlib.suppress(ValueError):  # quotes that do not close
            command = shlex.split(os.environ["CXX"])
            if command and shutil.which(command[0]):
                return command
        raise EmulationError(f"CXX is `{os.environ['CXX']}`, which is not there: unset it or name a C++ compiler")
    for name in ("g++", "c++", "clang++"):
        if shutil.which(name):
            return [name]
    raise EmulationError(
        "emulating a GPU needs a C++ compiler, and none of g++, c++ and clang++ was found: "
        "install one (Debian: apt-get install g++) or name it in CXX"
    )


def cache_directory() -> Path:
    """Raises:
    EmulationError: there is no home to keep it in.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # also where it is empty; the XDG specification asks for this
        try:
            base = Path.home() / ".cache"
        except RuntimeError as error:
            raise EmulationError(
                f"there is no folder for compiled code ({error}): set XDG_CACHE_HOME to one that can be written"
            ) from None
    return base / "wavenet_fast" / "emulated"


@functools.cache
def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    facts = [line for line in lines if line.startswith(("flags", "Features", "model name"))]
    return "\n".join([platform.machine(), *facts[:2]])


@functools.cache
def _runtime_text() -> bytes:
    return b"".join(path.name.encode() + path.read_bytes() for path in sorted(RUNTIME.iterdir()) if path.is_file())


def _run(command: list[str], what: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise EmulationError(
            f"{command[0]} has not compiled {what} after {TIMEOUT} s: give a shorter kernel"
        ) from error
    if match := re.search(r"^kernel\.ptx:(\d+):(?:\d+:)? error: (.*)", done.stderr, re.M):
        raise EmulationError(f"line {match[1]}: the instruction is not understood ({match[2]})", int(match[1]))
    if match := re.search(r"cannot find .*?(?:lib|-l|rt\.)(tsan|asan)", done.stderr):
        raise EmulationError(
            f"{command[0]} has no lib{match[1]}, which this mode needs: install it (Debian: g++ brings it), or name "
            "another compiler in CXX"
        )
    if done.returncode:
        raise EmulationError(f"{command[0]} cannot compile {what}: {(done.stderr or done.stdout).strip()[-2000:]}")


def _cached(key: str, name: str, make: list[list[str]], what: str, directory: Path) -> Path:
    """`directory/name`, made by the commands unless it is there; `OUT` in a command is where to write."""
    path = directory / f"{key[:32]}-{name}"
    try:
        if _is_whole(path):
            with contextlib.suppress(OSError):  # a cache that others own is read all the same
                os.utime(path)
            return path
        directory.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=directory, suffix=f"-{name}")
    except OSError as error:
        raise _unusable(directory, error) from error
    os.close(handle)
    try:
        for command in make:
            _run([temporary if word == "OUT" else word for word in command], what)
        if not os.path.getsize(temporary):
            raise EmulationError(f"{make[0][0]} has compiled {what} to nothing: is it a C++ compiler?")
        _keep(temporary, path)
        _prune(directory)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path


def _keep(temporary: str, path: Path) -> None:
    try:
        with open(temporary, "ab") as file:
            file.write(SEAL)
        os.chmod(temporary, 0o755)
        os.replace(temporary, path)
    except OSError as error:  # the disk is full, or a folder lies where the file should
        raise _unusable(path.parent, error) from error


def _unusable(directory: Path, error: OSError) -> EmulationError:
    return EmulationError(f"cannot use {directory}: {error}; set XDG_CACHE_HOME to a folder that can be written")


def _is_whole(path: Path) -> bool:
    """Whether a file is there that was written to its end."""
    try:
        if not path.is_file():  # a pipe would be waited for without end
            return False
        with path.open("rb") as file:
            file.seek(-len(SEAL), os.SEEK_END)
            return file.read() == SEAL
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno == errno.EINVAL:  # shorter than the seal
            return False
        raise


def _prune(directory: Path) -> None:
    """Deletes what has not been used for longest."""
    with contextlib.suppress(OSError):  # another process may do the same
        files = sorted(directory.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in files[KEPT:]:
            path.unlink()


def _key(*pieces: str) -> str:
    digest = hashlib.sha256(_runtime_text())
    for piece in pieces:
        digest.update(b"\0" + piece.encode())
    return digest.hexdigest()


def build(source: str, mode: str) -> Path:
    """A shared library (mode `plain`) or a program (`thread`, `address`) of generated C++.

    Raises:
        EmulationError: no compiler, or it fails.
    """
    command = compiler()
    directory = cache_directory()
    native = [] if platform.machine() not in ("x86_64", "aarch64") else ["-march=native"]
    clang = "clang" in _version(tuple(command))
    flags = [*COMMON, *native, *([] if clang else ["-fno-gnu-unique"])]
    identity = (*command, _version(tuple(command)), _processor(), *flags)
    objects = []
    for name in (*PARTS, *(["main"] if mode != "plain" else [])):
        make = [*command, *flags, "-O2", "-c", str(RUNTIME / f"{name}.cpp"), "-o", "OUT"]
        objects.append(str(_cached(_key(*identity, name), f"{name}.o", [make], "the runtime", directory)))
    own = [*MODES[mode], *(NO_STACK["clang" if clang else "gcc"] if mode == "address" else [])]
    with tempfile.TemporaryDirectory() as room:
        text = Path(room) / "kernel.cpp"
        text.write_text(source)
        link = ["-shared"] if mode == "plain" else ["-pie"]
        make = [*command, *flags, *own, *link, f"-I{RUNTIME}", str(text), *objects, "-o", "OUT"]
        suffix = "so" if mode == "plain" else "exe"
        return _cached(_key(*identity, mode, *own, source), suffix, [make], "the translated kernel", directory)
