"""A launch in a child process, for the sanitizers: the request and the outcome travel in files (runtime/main.cpp)."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import re
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wavenet_fast.emulated.arguments import Memory, Packed, regions
from wavenet_fast.emulated.native import Outcome, Report, Request
from wavenet_fast.errors import BoundsError, EmulationError, RaceError

# What a race detector and a bounds checker are told. A mutant is caught by its first finding.
_OPTIONS = {
    "TSAN_OPTIONS": "exitcode=66 report_thread_leaks=0 report_signal_unsafe=0 history_size=4 halt_on_error={halt}",
    "ASAN_OPTIONS": "exitcode=66 detect_leaks=0 detect_stack_use_after_return=0 allocator_may_return_null=1",
}
_LAYOUT = "the sanitizer does not get along with this machine's memory layout"


def _bytes(region: tuple[int, int, bool, int]) -> memoryview:
    """The caller's memory of a region; what lies between two overlapping arrays belongs to one of them."""
    return memoryview((ctypes.c_char * region[1]).from_address(region[0])).cast("B")


def _request(request: Request, packed: Packed, merged: list[tuple[int, int, bool, int]]) -> bytes:
    pointers = []
    for (parameter, at), memory in packed.pointers.items():
        index = _region_of(memory, merged)
        if index is not None:
            pointers.append(struct.pack("<4Q", parameter, at, index, memory.address - merged[index][0]))
    out = [
        struct.pack(
            "<I3I3IIiI6Q",
            request.kernel,
            *request.grid,
            *request.block,
            request.cluster,
            request.mutant,
            len(packed.parameters),
            request.dynamic_shared,
            request.seed,
            request.max_spins,
            len(merged),
            len(pointers),
            request.n_counters,
        )
    ]
    for region in merged:
        address, size, writable, argument = region
        out += [struct.pack("<QQIi", address, size, writable, argument), bytes(_bytes(region))]
    for raw in packed.parameters:
        out += [struct.pack("<Q", len(raw)), bytes(raw)]
    return b"".join([*out, *pointers])


def _region_of(memory: Memory, merged: list[tuple[int, int, bool, int]]) -> int | None:
    for index, (address, size, _, _) in enumerate(merged):
        if address <= memory.address < address + size:
            return index
    return None


def _start(path: Path, room: Path, timeout: float, halt: bool) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ)
    for name, options in _OPTIONS.items():
        environment[name] = options.format(halt=int(halt))
    limit = None if timeout == math.inf else timeout
    command = [str(path), str(room / "request"), str(room / "outcome")]

    def run(command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit, errors="replace")

    done = run(command)
    if "unexpected memory mapping" in done.stderr or "Shadow memory range interleaves" in done.stderr:
        # Too many random bits in the address space for this sanitizer: once more without them.
        fixed = shutil.which("setarch")
        if fixed is None:
            raise EmulationError(f"{_LAYOUT}, and setarch (util-linux) is missing: sysctl vm.mmap_rnd_bits=28 helps")
        done = run([fixed, platform.machine(), "--addr-no-randomize", *command])
    return done


def launch(
    path: Path, request: Request, packed: Packed, counts: npt.NDArray[np.uint64], timeout: float, lines: list[str]
) -> Outcome:
    """Launches, and copies what the kernel wrote back into the caller's memory.

    Raises:
        RaceError, BoundsError: a sanitizer found something; `report` holds its words.
        EmulationError: the child took too long or broke down.
    """
    merged = regions(packed.memories)
    with tempfile.TemporaryDirectory() as name:
        room = Path(name)
        (room / "request").write_bytes(_request(request, packed, merged))
        try:
            done = _start(path, room, timeout, request.mutant >= 0)
        except OSError as error:
            raise EmulationError(f"{path} cannot be run ({error}): make the Program anew") from error
        except subprocess.TimeoutExpired as error:
            raise EmulationError(f"the launch was ended after {timeout} s") from error
        _raise_findings(done.stderr, lines)
        if "Thread limit" in done.stderr:
            raise EmulationError("ThreadSanitizer cannot follow so many threads (some 8000): launch fewer")
        if not (room / "outcome").exists():
            told = done.stderr.strip()[-2000:] or "it said nothing"
            raise EmulationError(f"the child process ended with {done.returncode} before the kernel did: {told}")
        data = (room / "outcome").read_bytes()
    (status,) = struct.unpack_from("<i", data)
    report = Report.from_buffer_copy(data, 4)
    at = 4 + ctypes.sizeof(Report)
    counts.reshape(-1)[:] = np.frombuffer(data, np.uint64, counts.size, at)
    at += counts.nbytes
    for region in merged:
        if region[2]:
            _bytes(region)[:] = data[at : at + region[1]]
        at += region[1]
    return Outcome.of(status, report)


def _raise_findings(text: str, lines: list[str]) -> None:
    """A sanitizer's report as an error that begins with a sentence."""
    if "WARNING: ThreadSanitizer" in text:
        first = text[text.index("WARNING: ThreadSanitizer") :].split("==================")[0]
        accesses = re.findall(
            r"^\s+((?:Previous )?(?:atomic )?(?:read|write) of size \d+)[^\n]*?(?:by ([^\n:]*))?:\n((?:\s+#[^\n]*\n)*)",
            first,
            re.M | re.I,
        )
        told = [f"{what.strip().lower()} {_where(frames, lines)}{_who(by, first)}" for what, by, frames in accesses]
        number = text.count("WARNING: ThreadSanitizer")
        message = f"{number} race{'s' if number > 1 else ''}: nothing orders the {' and the '.join(told[:2])}"
        raise RaceError(message, _line(first), text)
    if "ERROR: AddressSanitizer" in text:
        first = text[text.index("ERROR: AddressSanitizer") :]
        summary = first.split("\n")[0].removeprefix("ERROR: AddressSanitizer: ")
        place = re.search(r"^0x\w+ is located [^\n]*", first, re.M)
        detail = f"; the address is {place[0].split(' is ')[1]}" if place else ""
        message = f"access out of bounds {_where(first, lines)}: {summary.split(' on ')[0]}{detail}"
        raise BoundsError(message, _line(first), text)


def _line(text: str) -> int | None:
    match = re.search(r"kernel\.ptx:(\d+)", text)
    return int(match[1]) if match else None


def _where(frames: str, lines: list[str]) -> str:
    line = _line(frames)
    if line is None or line > len(lines):
        return "in a place without a line"
    return f"in line {line} (`{lines[line - 1].strip()}`)"


def _who(by: str, text: str) -> str:
    """The block and thread of a sanitizer's thread number."""
    if match := re.search(r"'(block \d+ thread \d+)'", by):
        return f" by {match[1]}"
    number = re.search(r"T\d+", by)
    match = re.search(rf"Thread {number[0]} '(block \d+ thread \d+)'", text) if number else None
    return f" by {match[1]}" if match else ""
