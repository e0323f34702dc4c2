"""A GPU: memory, transfers and launches through the CUDA driver, in the context that torch uses too."""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from wavenet_fast.backends import gpu
from wavenet_fast.errors import BackendError, InputError

from .arrays import Array, CudaArray
from .call_struct import CallStruct
from .compile import SOURCES, compile_kernel
from .cuda_driver import CudaError, Driver
from .cuda_streams import CudaPending, Event, Queue
from .device import Kernel, check_launch, largest_cluster, sizes
from .devices import DeviceProperties, properties_of
from .foreign import cuda_view, shape_of
from .transfers import check_same_bytes, checked_out


class _Loaded(NamedTuple):
    function: Any
    module: Any


class _Memory:
    """Bytes on the GPU, freed when nothing refers to them."""

    def __init__(self, device: CudaDevice, size: int) -> None:
        doing = f"taking {size / 2**20:,.1f} MiB on {device.properties.name}"
        with device.context():
            self.pointer = int(device.driver("cuMemAlloc", size, doing=doing))
        weakref.finalize(self, device.release, "cuMemFree", self.pointer).atexit = False


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
        self._context = self.driver("cuDevicePrimaryCtxRetain", device, doing=f"starting CUDA on GPU {index}")
        self._kernels: dict[tuple[str, tuple[tuple[str, str], ...]], Kernel] = {}
        with self.context():
            self._queue = Queue(self.driver, index)
            flags = int(self.driver.constant("CUstream_flags", "NON_BLOCKING"))
            self._copies = int(self.driver("cuStreamCreate", flags, doing="making a stream"))

    @contextmanager
    def context(self) -> Iterator[None]:
        """Calls of the driver inside are for this GPU; the thread's own choice stays what it was."""
        self.driver("cuCtxPushCurrent", self._context, doing=f"using GPU {self.index}")
        try:
            yield
        finally:
            self.driver("cuCtxPopCurrent", doing=f"using GPU {self.index}")

    def release(self, function: str, pointer: int) -> None:
        """Frees memory; what fails here failed before, and has been told."""
        with suppress(Exception), self.context():
            self.driver(function, pointer, doing="freeing memory")

    @contextmanager
    def _stream(self, doing: str, given: Any = None, in_graph: bool = False) -> Iterator[Any]:
        with self.context(), self._queue.stream(given, doing, in_graph) as stream:
            yield self.driver.api.CUstream(stream)

    # --- memory -------------------------------------------------------------------------------------------------

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
        # A copy in pageable memory: the driver has read all of it when the call returns, so that the caller may write
        # over its own.
        own = np.array(array, order="C")
        target: Array = self.empty(own.shape, own.dtype) if out is None else out
        check_same_bytes(target, own)
        if own.nbytes:
            doing = "copying to the GPU"
            with self._stream(doing) as stream:
                self.driver("cuMemcpyHtoDAsync", target.pointer, own.ctypes.data, own.nbytes, stream, doing=doing)
        return target

    def download(self, array: Array, out: NDArray[Any] | None = None) -> NDArray[Any]:
        result, doing = checked_out(array, out), "copying from the GPU"
        if array.nbytes:
            with self._stream(doing) as stream:
                self.driver("cuMemcpyDtoHAsync", result.ctypes.data, array.pointer, array.nbytes, stream, doing=doing)
                self.driver("cuStreamSynchronize", stream, doing=doing)
        return result

    def fill_zero(self, array: Array) -> None:
        doing = "filling memory"
        if array.nbytes:
            with self._stream(doing, in_graph=True) as stream:
                self.driver("cuMemsetD8Async", array.pointer, 0, array.nbytes, stream, doing=doing)

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
            pointer = int(self.driver("cuMemHostAlloc", size, 0, doing=f"taking {size:,} bytes of pinned memory"))
        buffer = (ctypes.c_char * size).from_address(pointer)
        weakref.finalize(buffer, self.release, "cuMemFreeHost", pointer).atexit = False
        array: NDArray[Any] = np.ctypeslib.as_array(buffer).view(kind).reshape(sides)
        array[...] = 0
        return array

    def start_download(self, array: Array, out: NDArray[Any]) -> CudaPending:
        checked_out(array, out)
        doing, api = "copying from the GPU", self.driver.api
        with self._stream(doing) as stream:
            event = Event(self.driver)
            event.record(int(stream))
            event.hold(self._copies)
            if array.nbytes:
                copies = api.CUstream(self._copies)
                self.driver("cuMemcpyDtoHAsync", out.ctypes.data, array.pointer, array.nbytes, copies, doing=doing)
            event.record(self._copies)
        return CudaPending(self, event, out, array)

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
            doing = f"loading the kernel {name!r}"
            with self.context():
                module = self.driver("cuModuleLoadData", image.code, doing=doing)
                function = self.driver("cuModuleGetFunction", module, name.encode(), doing=doing)
                shared, registers = (
                    self._attribute(function, "SHARED_SIZE_BYTES"),
                    self._attribute(function, "NUM_REGS"),
                )
                self._allow(function, "MAX_DYNAMIC_SHARED_SIZE_BYTES", self.properties.shared_per_block - shared)
                if self.properties.max_cluster > 8:  # what is portable needs no leave
                    self._allow(function, "NON_PORTABLE_CLUSTER_SIZE_ALLOWED", 1)
            self._kernels[key] = Kernel(name, call, shared, registers, _Loaded(function, module))
        return self._kernels[key]

    def _attribute(self, function: Any, name: str) -> int:
        which = self.driver.constant("CUfunction_attribute", name)
        return int(self.driver("cuFuncGetAttribute", which, function, doing="asking about a kernel"))

    def _allow(self, function: Any, name: str, value: int) -> None:
        which = self.driver.constant("CUfunction_attribute", name)
        self.driver("cuFuncSetAttribute", function, which, value, doing="preparing a kernel")

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
            config = self._config(grid, block, shared, cluster, cooperative)
            config.hStream = queued
            self.driver(
                "cuLaunchKernelEx", config, kernel.handle.function, ctypes.addressof(arguments), 0, doing=doing
            )  # fmt: skip

    def _config(
        self, grid: Sequence[int], block: Sequence[int], shared: int, cluster: int | None, cooperative: bool = False
    ) -> Any:
        config = self.driver.api.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = sizes("grid", grid)
        config.blockDimX, config.blockDimY, config.blockDimZ = sizes("block", block)
        config.sharedMemBytes = shared
        attributes = []
        if cluster is not None:
            attributes.append(self._launch_attribute("CLUSTER_DIMENSION"))
            size = attributes[-1].value.clusterDim
            size.x, size.y, size.z = cluster, 1, 1
        if cooperative:
            attributes.append(self._launch_attribute("COOPERATIVE"))
            attributes[-1].value.cooperative = 1
        config.attrs, config.numAttrs = attributes, len(attributes)
        return config

    def _launch_attribute(self, name: str) -> Any:
        attribute = self.driver.api.CUlaunchAttribute()
        attribute.id = self.driver.constant("CUlaunchAttributeID", name)
        return attribute

    def largest_grid(self, kernel: Kernel, block: Sequence[int], shared: int) -> int:
        function, threads = "cuOccupancyMaxActiveBlocksPerMultiprocessor", math.prod(sizes("block", block))
        with self.context():
            blocks = self.driver(function, kernel.handle.function, threads, shared, doing="asking what fits")
        return int(blocks) * self.properties.multiprocessors

    def clusters(self, kernel: Kernel, block: Sequence[int], shared: int, cluster: int) -> int:
        if cluster > self.properties.max_cluster:
            return 0
        config = self._config((cluster,), block, shared, cluster)
        with self.context():
            try:
                fit = self.driver(
                    "cuOccupancyMaxActiveClusters", kernel.handle.function, config, doing="asking what fits"
                )  # fmt: skip
            except CudaError as error:
                if error.code == "CUDA_ERROR_INVALID_CLUSTER_SIZE":
                    return 0
                raise
        return int(fit)


def _properties(driver: Driver, device: Any) -> DeviceProperties:
    def number(name: str) -> int:
        which = driver.constant("CUdevice_attribute", name)
        return int(driver("cuDeviceGetAttribute", which, device, doing="asking about the GPU"))

    name = driver("cuDeviceGetName", 256, device, doing="asking about the GPU").split(b"\0")[0].decode(errors="replace")
    capability = 10 * number("COMPUTE_CAPABILITY_MAJOR") + number("COMPUTE_CAPABILITY_MINOR")
    multiprocessors = number("MULTIPROCESSOR_COUNT")
    return DeviceProperties(
        name,
        capability,
        multiprocessors,
        number("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN"),
        number("MAX_SHARED_MEMORY_PER_MULTIPROCESSOR"),
        number("MAX_REGISTERS_PER_MULTIPROCESSOR"),
        number("MAX_THREADS_PER_MULTIPROCESSOR"),
        number("MAX_BLOCKS_PER_MULTIPROCESSOR"),
        largest_cluster(capability),
        # Which no driver tells: what a plan begins with, before it asks how many clusters fit.
        properties_of(capability, multiprocessors).gpcs,
    )
