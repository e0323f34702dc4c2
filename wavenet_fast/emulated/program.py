"""`Program`: PTX that has been translated and compiled, and how to launch its kernels."""

from __future__ import annotations

import copy
import ctypes
import math
import operator
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from wavenet_fast.emulated import native
from wavenet_fast.emulated.arguments import Packed, pack, regions
from wavenet_fast.emulated.build import MODES, build
from wavenet_fast.emulated.parse import parse
from wavenet_fast.emulated.ptx import Variable
from wavenet_fast.emulated.translate import Options, Site, translate
from wavenet_fast.errors import EmulationError

Mode = Literal["plain", "thread", "address"]
TIMEOUT = 600.0
MAX_THREADS = 1 << 17
# Above bit 24 a shared address holds a block's rank in its cluster.
MAX_SHARED = (1 << 24) - 1
# What `__tsan_create_fiber` can have alive at once is some 8100.
MAX_THREADS_CHECKED = 8000


@dataclass(frozen=True)
class Kernel:
    """What a kernel takes: `shared` bytes of static shared memory, `local` bytes of a thread's local memory; `cluster`
    and `block` sizes where it says so."""

    name: str
    parameters: tuple[Variable, ...]
    shared: int
    local: int
    cluster: int | None
    block: tuple[int, ...] | None


@dataclass(frozen=True)
class Stats:
    """What a launch did. `stall` says who waited where for what when, for the first time, nothing could go on but waits
    that the clock ends; it is empty where that did not happen. `instructions`: executed instructions by family, all
    threads together; `per_thread` holds them by family as arrays [threads]. Both are empty unless the program was made
    with `count`."""

    switches: int
    barriers: int
    spins: int
    stall: str = ""
    instructions: dict[str, int] = field(default_factory=dict)
    per_thread: dict[str, npt.NDArray[np.uint64]] = field(default_factory=dict)


def _whole(what: str, value: Any, low: int, high: int) -> int:
    """`value` as a whole number of this range.

    Raises:
        EmulationError: it is none.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = low - 1
    if not low <= number <= high:
        raise EmulationError(f"{what} is {value!r}; possible: whole numbers from {low} to {high}")
    return number


def _memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class Program:
    """PTX as an executable.

    Args:
        ptx: the text that Triton, nvcc or NVRTC wrote.
        mode: `plain` checks bounds, alignment, barriers, deadlock; `thread` looks for races with ThreadSanitizer as
            well; `address` leaves global memory to AddressSanitizer. The last two run each launch in a child process.
            `plain` does not see an access that leaves one argument and reaches another; `thread` does not see a race
            in which a thread stores what is there already, so give it outputs that hold no likely value.
        count: count executed instructions by family, or each line of the PTX on its own (`"lines"`).
        mutable: compile every site that `mutate` may break with a switch.

    Raises:
        EmulationError: an instruction or modifier is not known (the message names it and its line), or there is no
            C++ compiler.
    """

    def __init__(
        self, ptx: str, mode: Mode = "plain", *, count: bool | Literal["lines"] = False, mutable: bool = False
    ) -> None:
        if mode not in MODES:
            raise EmulationError(f"mode {mode!r} does not exist; possible: {', '.join(MODES)}")
        self.mode = mode
        if not isinstance(ptx, str):
            raise EmulationError(f"PTX is text, and {type(ptx).__name__} was given")
        module = parse(ptx)
        self._lines = module.lines
        translation = translate(module, Options(count=count, mutable=mutable, gap=64 if mode == "address" else 0))
        if not translation.kernels:
            raise EmulationError("the PTX has no kernel (.entry)")
        self.sites: list[Site] = translation.sites
        self.counters = translation.counters
        self.mutant = -1
        self.time_limit: float | None = None
        self.kernels = {
            function.name: Kernel(
                function.name,
                tuple(function.parameters),
                translation.shared[function.name],
                translation.local[function.name],
                function.cluster,
                function.block,
            )
            for function in module.kernels.values()
            if function.defined
        }
        try:
            self.path = build(translation.source, mode)
        except EmulationError as error:
            raise EmulationError(self.explain(str(error), error.line or 0), error.line) from error
        self._library = native.Library(self.path) if mode == "plain" else None

    def with_mutant(self, site: int, time_limit: float | None = None) -> Program:
        """The same program with one site broken, whose launches may take `time_limit` seconds; see `mutate`."""
        other = copy.copy(self)
        other.mutant, other.time_limit = site, time_limit
        return other

    def launch(
        self,
        name: str,
        grid: Sequence[int] = (1,),
        block: Sequence[int] = (1,),
        args: Sequence[Any] = (),
        *,
        shared: int = 0,
        cluster: int | None = None,
        seed: int = 0,
        buffers: Sequence[Any] = (),
        max_spins: int = 200_000,
        timeout: float | None = None,
    ) -> Stats:
        """Runs a kernel to its end; arrays are read and written in place. The module's `.global` variables begin as
        the PTX has them, in every launch.

        Args:
            name: the kernel, as in `kernels`.
            grid, block: sizes in blocks and threads, up to three of each; all blocks are resident.
            args: per parameter an array or CPU tensor, None (null), a number, a `Struct` or bytes.
            shared: bytes of dynamic shared memory; it starts as NaN.
            cluster: blocks per cluster, along x.
            seed: the order in which threads run; 0 is first come, first served.
            buffers: memory that the kernel reaches by pointers inside of bytes.
            max_spins: fruitless polls in a row before the launch counts as livelocked, or 256 for each thread where
                that is more; a thread that computes without polling starts the count anew. Where all threads wait, the
                clock (`%clock64`, `%globaltimer`) goes ahead by twice as much each time that they look: a wait that
                looks at the clock every 100 polls or more often ends by its own bound before, however long that is.
            timeout: seconds, `math.inf` for no limit; ten minutes where nothing is said.

        Raises:
            EmulationError: an argument does not fit, or the kernel did something wrong: the message says what, on
                which line of the PTX, in which block and thread. A race, which only mode "thread" finds, is a
                `RaceError`, and what mode "address" finds out of bounds a `BoundsError`.
        """
        if timeout is not None and not (isinstance(timeout, int | float) and timeout >= 0):
            raise EmulationError(f"timeout is {timeout!r}; possible: seconds, or None")
        timeout = next((limit for limit in (timeout, self.time_limit) if limit is not None), TIMEOUT)
        kernel = self.kernels.get(name)
        if kernel is None:
            raise EmulationError(f"there is no kernel {name!r}; there is: {', '.join(self.kernels)}")
        packed = pack(kernel.parameters, args, buffers)
        request = self._request(kernel, grid, block, shared, cluster or kernel.cluster or 1, seed, max_spins)
        threads = int(np.prod([*request.grid, *request.block], dtype=np.int64))
        counts = np.zeros((threads, len(self.counters)), np.uint64)
        request.n_counters = len(self.counters)
        if self._library is not None:
            outcome = self._launch_here(self._library, request, packed, counts, timeout)
        else:
            from wavenet_fast.emulated.child import launch

            outcome = launch(self.path, request, packed, counts, timeout, self._lines)
        if outcome.status != native.DONE:
            raise EmulationError(self.explain(outcome.message, outcome.line), outcome.line or None)
        per_thread = {counter: counts[:, n] for n, counter in enumerate(self.counters)}
        totals = {counter: int(column.sum()) for counter, column in per_thread.items()}
        stall = outcome.stall.lstrip("\n")
        return Stats(outcome.switches, outcome.barriers, outcome.spins, stall, totals, per_thread)

    def explain(self, message: str, line: int) -> str:
        """The runtime's message with the text of the line it names."""
        if not 0 < line <= len(self._lines):
            return message
        head, *rest = message.split("\n")
        return "\n".join([f"{head}\n  the line is: {self._lines[line - 1].strip()}", *rest])

    def _request(
        self,
        kernel: Kernel,
        grid: Sequence[int],
        block: Sequence[int],
        shared: int,
        cluster: int,
        seed: int,
        max_spins: int,
    ) -> native.Request:
        request = native.Request()
        for what, sizes in (("grid", grid), ("block", block)):
            if not isinstance(sizes, Sequence) or not 1 <= len(sizes) <= 3:
                raise EmulationError(f"{what} is {sizes!r}; possible: one to three sizes of at least 1")
            for size in sizes:
                _whole(f"a size of {what}", size, 1, (1 << 31) - 1)
            setattr(request, what, native.Dim(*map(int, sizes), *[1] * (3 - len(sizes))))
        if kernel.block and (*kernel.block, 1, 1)[:3] != tuple(request.block):
            raise EmulationError(f"{kernel.name} is compiled for blocks of {kernel.block} threads, not {tuple(block)}")
        per_block, blocks = math.prod(request.block), math.prod(request.grid)
        total = per_block * blocks
        if per_block > 1024:
            raise EmulationError(f"a block of {per_block} threads; possible: up to 1024")
        limit = MAX_THREADS if self.mode != "thread" else MAX_THREADS_CHECKED
        if total > limit:
            raise EmulationError(f"{total} threads at once; possible in mode {self.mode}: up to {limit}")
        _whole("cluster", cluster, 1, request.grid[0])
        if request.grid[0] % cluster:
            raise EmulationError(f"clusters of {cluster} blocks do not divide a grid of {request.grid[0]} along x")
        _whole("shared (bytes of dynamic shared memory)", shared, 0, MAX_SHARED - kernel.shared)
        _whole("seed", seed, 0, (1 << 64) - 1)
        _whole("max_spins", max_spins, 0, (1 << 64) - 1)
        needed, limit = blocks * (kernel.shared + shared) + total * kernel.local, _memory() // 2
        if needed > limit:
            raise EmulationError(
                f"{needed} bytes of shared and local memory in {blocks} blocks of {per_block} threads; possible: half "
                f"of this machine's memory, {limit}"
            )
        request.kernel = list(self.kernels).index(kernel.name)
        request.cluster, request.mutant = cluster, self.mutant
        request.dynamic_shared, request.seed, request.max_spins = shared, seed, max_spins
        return request

    @staticmethod
    def _launch_here(
        library: native.Library,
        request: native.Request,
        packed: Packed,
        counts: npt.NDArray[np.uint64],
        timeout: float,
    ) -> native.Outcome:
        merged = regions(packed.memories)
        table = (native.Region * max(len(merged), 1))(*(native.Region(*map(int, region)) for region in merged))
        cells = [(ctypes.c_char * max(len(raw), 1)).from_buffer(raw) for raw in packed.parameters]
        params = native.pointers(cells)
        request.params, request.regions = ctypes.addressof(params), ctypes.addressof(table)
        request.n_regions = len(merged)
        request.counts = counts.ctypes.data if counts.size else None
        end = time.monotonic() + timeout
        outcome = library.launch(request, lambda: time.monotonic() > end)
        if outcome.status == native.INTERRUPTED:
            raise EmulationError(f"the launch was ended after {timeout} s: {outcome.message}")
        return outcome
