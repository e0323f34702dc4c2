"""A GPU: memory, transfers and launches through the CUDA driver, in the context that torch uses too.

Nothing here waits for kernels but what says so: `download`, `synchronize`, `Pending.wait`, and taking memory where
there is none. See `cuda_memory`."""

from __future__ import annotations

import ctypes
import math
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from wavenet_fast.backends import gpu
from wavenet_fast.errors import BackendError, InputError

from . import cuda_launch
from .arrays import Array, CudaArray
from .call_struct import CallStruct
from .compile import SOURCES, compile_kernel
from .cuda_driver import CudaError, Driver, OutOfMemory
from .cuda_memory import PIECE, STAGED_BYTES, DriverPool, InFlight, KeptBlocks, PinnedBlocks
from .cuda_streams import CudaPending, Event, Queue
from .device import Kernel, check_launch, sizes
from .devices import DeviceProperties, properties_of
from .foreign import cuda_view, shape_of
from .transfers import check_same_bytes, checked_out

_USUAL_CLOCK = 2_000_000_000


class _Memory:
    """Bytes on the GPU, given back when nothing refers to them."""

    def __init__(self, device: CudaDevice, size: int) -> None:
        self.pointer = device.take(size)
        weakref.finalize(self, device.give, self.pointer, size).atexit = False


class CudaDevice:
    """See `device.Device`. GPU `index` in torch's order; `sources` is the folder of the kernels.

    Work goes to torch's current stream where torch uses CUDA, else to a stream of its own, and is done in the order in
    which it is asked for, also when the stream changes. Launches, `copy` and `fill_zero` can be in a CUDA graph."""

    def __init__(self, index: int = 0, *, sources: str | Path = SOURCES) -> None:
        self.driver, self.index, self._sources = Driver(), index, Path(sources)
        device = self.driver("cuDeviceGet", index, doing=f"opening GPU {index}")
        self.properties = _properties(self.driver, device)
        self.capability = self.properties.capability
        if self.capability < 10 * gpu.MIN_CAPABILITY[0] + gpu.MIN_CAPABILITY[1]:
            raise BackendError(gpu.why_not_cuda_kernels(f"cuda:{index}") or f"{self.properties.name} is too old")
        clock = _number(self.driver, device, "CLOCK_RATE")  # kHz
        self.clock = 1000 * clock if clock > 0 else _USUAL_CLOCK
        self._context = self.driver("cuDevicePrimaryCtxRetain", device, doing=f"starting CUDA on GPU {index}")
        self._kernels: dict[tuple[str, tuple[tuple[str, str], ...]], Kernel] = {}
        # Memory that is nobody's any more, and has not been given back because a CUDA graph was being captured.
        self._left: deque[tuple[int, int]] = deque()
        with self.context():
            self._queue = Queue(self.driver, index)
            self._uploads, self._downloads = InFlight(self._queue.lock), InFlight(self._queue.lock)
            flags = int(self.driver.constant("CUstream_flags", "NON_BLOCKING"))
            self._copies = int(self.driver("cuStreamCreate", flags, doing="making a stream"))
            pools = _number(self.driver, device, "MEMORY_POOLS_SUPPORTED") == 1
            self._pool: DriverPool | KeptBlocks = (
                DriverPool(self.driver, int(device)) if pools else KeptBlocks(self.driver)
            )
            self._pinned = PinnedBlocks(self.driver)
        left = (self._copies, self._queue.own), (self._uploads, self._downloads), self._pool, self._pinned
        weakref.finalize(self, _close, self.driver, self._context, *left).atexit = False

    @contextmanager
    def context(self) -> Iterator[None]:
        """Calls of the driver inside are for this GPU; the thread's own choice stays what it was."""
        self.driver("cuCtxPushCurrent", self._context, doing=f"using GPU {self.index}")
        try:
            yield
        finally:
            self.driver("cuCtxPopCurrent", doing=f"using GPU {self.index}")

    @contextmanager
    def _stream(self, doing: str, given: Any = None, in_graph: bool = False) -> Iterator[Any]:
        with self.context(), self._queue.stream(given, doing, in_graph) as stream:
            yield self.driver.api.CUstream(stream)

    # --- memory -------------------------------------------------------------------------------------------------

    def take(self, size: int) -> int:
        """Address of so many bytes, at least 1, for work that is asked for from now on.

        Raises `OutOfMemory` where they are not there even when all work has ended and nothing is kept idle."""
        doing = f"taking {size / 2**20:,.1f} MiB on {self.properties.name}"
        self._give_back()
        try:
            with self._stream(doing) as stream:
                return self._pool.take(size, stream, doing)
        except OutOfMemory:
            self.synchronize()
            with self.context():
                self._pool.trim()
        with self._stream(doing) as stream:
            return self._pool.take(size, stream, doing)

    def give(self, pointer: int, size: int) -> None:
        """Gives memory back behind all work asked for so far; what fails here failed before, and has been told."""
        self._left.append((pointer, size))
        with suppress(Exception):
            self._give_back()

    def _give_back(self) -> None:
        # What a graph that is being captured would free, it would free at every replay.
        if not self._left or self._queue.capturing():
            return
        with self._stream("freeing memory") as stream:
            while self._left:
                self._pool.give(*self._left.popleft(), stream)

    def empty(self, shape: Sequence[int], dtype: DTypeLike) -> CudaArray:
        sides, kind = shape_of(shape), np.dtype(dtype)
        size = math.prod(sides) * kind.itemsize
        memory = _Memory(self, size) if size else None
        return CudaArray(memory.pointer if memory else 0, sides, kind, memory)

    def zeros(self, shape: Sequence[int], dtype: DTypeLike) -> CudaArray:
        array = self.empty(shape, dtype)
        self.fill_zero(array)
        return array

    def upload(self, array: NDArray[Any], out: Array | None = None) -> Array:
        """See `Device.upload`. Goes through pinned memory, so that it waits for no kernel, but where more than
        `cuda_memory.STAGED_BYTES` are on their way."""
        given = np.asarray(array)
        target: Array = self.empty(given.shape, given.dtype) if out is None else out
        check_same_bytes(target, given)
        raw, doing = np.ascontiguousarray(given).reshape(-1).view(np.uint8), "copying to the GPU"
        for first in range(0, len(raw), PIECE):
            piece = raw[first : first + PIECE]
            if self._queue.capturing():
                raise BackendError(f"{doing}: cannot be part of a CUDA graph; do it before the capture begins")
            with self.context():
                self._uploads.make_room(len(piece), STAGED_BYTES)
                staged = self._pinned.bytes(len(piece))
                staged[:] = piece
            with self._stream(doing) as stream:
                place = target.pointer + first
                self.driver("cuMemcpyHtoDAsync", place, staged.ctypes.data, len(piece), stream, doing=doing)
                event = Event(self.driver)
                event.record(int(stream))
            self._uploads.add(event, len(piece), staged)
        return target

    def download(self, array: Array, out: NDArray[Any] | None = None) -> NDArray[Any]:
        result, doing = checked_out(array, out), "copying from the GPU"
        if array.nbytes:
            with self._stream(doing) as stream:
                self.driver("cuMemcpyDtoHAsync", result.ctypes.data, array.pointer, array.nbytes, stream, doing=doing)
                self.driver("cuStreamSynchronize", stream, doing=doing)
        return result

    def fill_zero(self, array: Array, stream: Any = None) -> None:
        doing = "filling memory"
        if array.nbytes:
            with self._stream(doing, stream, in_graph=True) as queued:
                self.driver("cuMemsetD8Async", array.pointer, 0, array.nbytes, queued, doing=doing)

    def copy(self, target: Array, source: Array) -> None:
        check_same_bytes(target, source)
        doing = "copying on the GPU"
        if source.nbytes:
            with self._stream(doing, in_graph=True) as stream:
                self.driver(
                    "cuMemcpyDtoDAsync", target.pointer, source.pointer, source.nbytes, stream, doing=doing
                )  # fmt: skip

    def view(self, obj: Any) -> Array:
        """See `Device.view`."""
        if isinstance(obj, CudaArray):
            return obj
        with self._stream("looking at an array", in_graph=True) as stream:
            return cuda_view(obj, self.index, int(stream))

    def pinned(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        sides, kind = shape_of(shape), np.dtype(dtype)
        size = math.prod(sides) * kind.itemsize
        if not size:
            return np.zeros(sides, kind)
        with self.context():
            self._pinned.trim()
            raw = self._pinned.bytes(size)
        raw[:] = 0
        array: NDArray[Any] = raw.view(kind).reshape(sides)
        return array

    def start_download(self, array: Array, out: NDArray[Any]) -> CudaPending:
        checked_out(array, out)
        doing, api = "copying from the GPU", self.driver.api
        with self._stream(doing) as stream:
            self._downloads.forget()
            event = Event(self.driver)
            event.record(int(stream))
            event.hold(self._copies)
            if array.nbytes:
                copies = api.CUstream(self._copies)
                self.driver("cuMemcpyDtoHAsync", out.ctypes.data, array.pointer, array.nbytes, copies, doing=doing)
            event.record(self._copies)
            # Nobody may wait for it, and both ends must stay.
            self._downloads.add(event, array.nbytes, (array, out))
        return CudaPending(self, event, out)

    def forget_copies(self) -> None:
        """Lets go both ends of copies that have ended; within the device's context."""
        self._downloads.forget()

    def hold(self, pending: Any) -> None:
        with self._stream("ordering streams") as stream:
            pending.event.hold(int(stream))

    def synchronize(self) -> None:
        with self.context():
            self.driver("cuCtxSynchronize", doing="waiting for the GPU")

    # --- kernels ------------------------------------------------------------------------------------------------

    def load(self, name: str, headers: Mapping[str, str]) -> Kernel:
        key = name, tuple(sorted(headers.items()))
        if key not in self._kernels:
            image = compile_kernel(name, headers, self.capability, "cubin", sources=self._sources)
            call = CallStruct.of_kernel(name, headers, self._sources)
            with self.context():
                handle, shared, registers = cuda_launch.load(self.driver, name, image)
            self._kernels[key] = Kernel(name, call, shared, registers, handle)
        return self._kernels[key]

    def _allow(self, kernel: Kernel, shared: int, cluster: int | None) -> None:
        cuda_launch.allow(self.driver, kernel, shared, cluster, self.properties.shared_per_block)

    def launch(
        self,
        kernel: Kernel,
        grid: Sequence[int],
        block: Sequence[int],
        call: Mapping[str, Any],
        *,
        shared: int = 0,
        cluster: int | None = None,
        cooperative: bool = False,
        stream: Any = None,
    ) -> None:
        """See `Device.launch`. What a kernel does wrong is raised by a later call, at the latest by `synchronize`."""
        check_launch(self.properties, kernel, grid, block, shared, cluster)
        if any(isinstance(value, Array) and not isinstance(value, CudaArray) for value in call.values()):
            raise InputError(f"an array of the emulated device was given to {self.properties.name}; `upload` it there")
        raw = ctypes.create_string_buffer(kernel.call.pack(call), kernel.call.size)
        arguments = (ctypes.c_void_p * 1)(ctypes.addressof(raw))
        doing = f"launching the kernel {kernel.name!r}"
        with self._stream(doing, stream, in_graph=True) as queued:
            self._allow(kernel, shared, cluster)
            config = cuda_launch.configuration(self.driver, grid, block, shared, cluster, cooperative)
            config.hStream = queued
            self.driver(
                "cuLaunchKernelEx", config, kernel.handle.function, ctypes.addressof(arguments), 0, doing=doing
            )  # fmt: skip

    def largest_grid(self, kernel: Kernel, block: Sequence[int], shared: int) -> int:
        function, threads = "cuOccupancyMaxActiveBlocksPerMultiprocessor", math.prod(sizes("block", block))
        with self.context():
            self._allow(kernel, shared, None)
            blocks = self.driver(function, kernel.handle.function, threads, shared, doing="asking what fits")
        return int(blocks) * self.properties.multiprocessors

    def clusters(self, kernel: Kernel, block: Sequence[int], shared: int, cluster: int) -> int:
        if cluster > self.properties.max_cluster:
            return 0
        config = cuda_launch.configuration(self.driver, (cluster,), block, shared, cluster)
        with self.context():
            self._allow(kernel, shared, cluster)
            try:
                fit = self.driver(
                    "cuOccupancyMaxActiveClusters", kernel.handle.function, config, doing="asking what fits"
                )  # fmt: skip
            except CudaError as error:
                if error.code == "CUDA_ERROR_INVALID_CLUSTER_SIZE":
                    return 0
                raise
        return int(fit)


def _close(
    driver: Driver,
    context: Any,
    streams: Sequence[int],
    copies: Sequence[InFlight],
    pool: DriverPool | KeptBlocks,
    pinned: PinnedBlocks,
) -> None:
    """What a device leaves when nothing refers to it or to an array of it."""
    doing = "closing a GPU"
    with suppress(Exception):
        driver("cuCtxPushCurrent", context, doing=doing)
        try:
            for some in copies:
                some.make_room(0, -1)
            for stream in streams:
                driver("cuStreamDestroy", driver.api.CUstream(stream), doing=doing)
            pool.close()
            pinned.close()
        finally:
            driver("cuCtxPopCurrent", doing=doing)


def _number(driver: Driver, device: Any, name: str) -> int:
    which = driver.constant("CUdevice_attribute", name)
    return int(driver("cuDeviceGetAttribute", which, device, doing="asking about the GPU"))


def _properties(driver: Driver, device: Any) -> DeviceProperties:
    def number(name: str) -> int:
        return _number(driver, device, name)

    name = driver("cuDeviceGetName", 256, device, doing="asking about the GPU").split(b"\0")[0].decode(errors="replace")
    capability = 10 * number("COMPUTE_CAPABILITY_MAJOR") + number("COMPUTE_CAPABILITY_MINOR")
    multiprocessors = number("MULTIPROCESSOR_COUNT")
    assumed = properties_of(capability, multiprocessors)
    return DeviceProperties(
        name,
        capability,
        multiprocessors,
        number("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN"),
        number("MAX_SHARED_MEMORY_PER_MULTIPROCESSOR"),
        number("MAX_REGISTERS_PER_MULTIPROCESSOR"),
        number("MAX_THREADS_PER_MULTIPROCESSOR"),
        number("MAX_BLOCKS_PER_MULTIPROCESSOR"),
        # Which no driver tells: what a plan begins with, before it asks how many clusters fit.
        assumed.max_cluster,
        assumed.gpcs,
    )
