"""The C interface of the runtime: the structures of simt.h, and a launch inside this process."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wavenet_fast.errors import EmulationError

Dim = ctypes.c_uint32 * 3
POLL = ctypes.CFUNCTYPE(ctypes.c_int)
DONE, FAULT, INTERRUPTED = range(3)


class Region(ctypes.Structure):
    _fields_ = (
        ("base", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("writable", ctypes.c_uint32),
        ("argument", ctypes.c_int32),
    )


class Request(ctypes.Structure):
    _fields_ = (
        ("kernel", ctypes.c_uint32),
        ("grid", Dim),
        ("block", Dim),
        ("cluster", ctypes.c_uint32),
        ("mutant", ctypes.c_int32),
        ("dynamic_shared", ctypes.c_uint64),
        ("seed", ctypes.c_uint64),
        ("max_spins", ctypes.c_uint64),
        ("params", ctypes.c_void_p),
        ("regions", ctypes.c_void_p),
        ("n_regions", ctypes.c_uint64),
        ("counts", ctypes.c_void_p),
        ("n_counters", ctypes.c_uint64),
        ("poll", POLL),
    )


class Report(ctypes.Structure):
    _fields_ = (
        ("switches", ctypes.c_uint64),
        ("barriers", ctypes.c_uint64),
        ("spins", ctypes.c_uint64),
        ("line", ctypes.c_int32),
        ("message", ctypes.c_char * 16384),
        ("stall", ctypes.c_char * 16384),
    )


@dataclass(frozen=True)
class Outcome:
    """How a launch ended: `status` is DONE, FAULT or INTERRUPTED."""

    status: int
    switches: int
    barriers: int
    spins: int
    line: int
    message: str
    stall: str

    @classmethod
    def of(cls, status: int, report: Report) -> Outcome:
        message, stall = (text.decode(errors="replace") for text in (report.message, report.stall))
        return cls(status, report.switches, report.barriers, report.spins, report.line, message, stall)


# A library that is loaded twice is the same one: two programs of one text share its machine.
_LOCKS: dict[str, threading.Lock] = {}


class Library:
    """A compiled module. It has one machine, so launches take turns."""

    def __init__(self, path: Path) -> None:
        # Local binding: the modules of two programs have the same names.
        try:
            self._launch = ctypes.CDLL(str(path), mode=ctypes.RTLD_LOCAL).wavenet_fast_launch
        except (OSError, AttributeError) as error:
            raise EmulationError(f"{path} cannot be loaded ({error}): delete it, and it is made anew") from error
        self._launch.argtypes = (ctypes.POINTER(Request), ctypes.POINTER(Report))
        self._launch.restype = ctypes.c_int
        self._lock = _LOCKS.setdefault(os.path.realpath(path), threading.Lock())

    def launch(self, request: Request, stop: Callable[[], bool]) -> Outcome:
        """Runs to the end, or until `stop`, asked every few thousand switches, says so.

        The launch has a thread of its own, because a signal handler (Ctrl-C) runs only where the main thread executes
        Python: an exception that arrives meanwhile ends the launch and is raised here.
        """
        report, ended = Report(), threading.Event()
        request.poll = POLL(lambda: int(ended.is_set() or stop()))
        status: list[int] = []
        worker = threading.Thread(
            target=lambda: status.append(self._launch(ctypes.byref(request), ctypes.byref(report))), daemon=True
        )
        with self._lock:
            worker.start()
            try:
                worker.join()
            except BaseException:
                ended.set()
                worker.join()
                raise
        return Outcome.of(status[0], report)


def pointers(buffers: list[Any]) -> Any:
    """A C array of the addresses of ctypes buffers."""
    return (ctypes.c_void_p * max(len(buffers), 1))(*(ctypes.addressof(buffer) for buffer in buffers))
