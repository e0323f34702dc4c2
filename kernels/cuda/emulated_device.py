"""The device that executes kernels on the CPU, from the PTX that NVRTC writes for a GPU: for proof, and slow."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from wavenet_fast.emulated import Program
from wavenet_fast.emulated.program import Mode, Stats
from wavenet_fast.errors import BackendError

from .arrays import Array, HostArray
from .call_struct import CallStruct
from .compile import SOURCES, compile_kernel
from .device import Kernel, check_launch, not_resident, sizes
from .devices import CAPABILITIES, DeviceProperties, properties_of
from .foreign import host_view, shape_of
from .occupancy import occupancy
from .transfers import check_same_bytes, checked_out

_MULTIPROCESSORS = 16


def emulated_properties(capability: int) -> DeviceProperties:
    """A small GPU of this compute capability."""
    if capability not in CAPABILITIES:
        known = ", ".join(map(str, CAPABILITIES))
        raise BackendError(f"no GPU of capability {capability} is known; there are {known}")
    return properties_of(capability, _MULTIPROCESSORS, f"an emulated sm_{capability}")


@lru_cache(maxsize=64)
def _program(ptx: str, mode: Mode, count: bool | Literal["lines"]) -> Program:
    return Program(ptx, mode, count=count)


class _Done:
    """A copy that has been made."""

    def __init__(self, out: NDArray[Any]) -> None:
        self._out = out

    def wait(self) -> NDArray[Any]:
        return self._out


class EmulatedDevice:
    """See `device.Device`. Each launch runs to its end.

    mode, seed   of `emulated.Program` and its `launch`
    properties   of the GPU that is emulated; a small one of `capability` where None
    sources      folder of the kernels
    make         what makes a `Program` of PTX, in the place of mode and count: for a mutation check
    count        of `emulated.Program`
    last         what the last launch counted
    """

    clock = 1_000_000_000

    def __init__(
        self,
        capability: int = 90,
        mode: Mode = "plain",
        seed: int = 0,
        properties: DeviceProperties | None = None,
        *,
        sources: str | Path = SOURCES,
        count: bool | Literal["lines"] = False,
        make: Callable[[str], Program] | None = None,
    ) -> None:
        self.properties = properties or emulated_properties(capability)
        if self.properties.capability != capability:
            raise BackendError(f"capability is {capability}, and the properties are of {self.properties.capability}")
        self.capability, self.mode, self.seed = capability, mode, seed
        self.last: Stats | None = None
        self._sources = Path(sources)
        self._make = make or partial(_program, mode=mode, count=count)
        self._kernels: dict[tuple[str, tuple[tuple[str, str], ...]], Kernel] = {}

    # --- memory -------------------------------------------------------------------------------------------------

    def empty(self, shape: Sequence[int], dtype: DTypeLike) -> HostArray:
        array = np.empty(shape_of(shape), dtype)
        array.reshape(-1).view(np.uint8)[:] = 0xFF  # NaN, so that reading it does not pass unnoticed
        return _on_device(array)

    def zeros(self, shape: Sequence[int], dtype: DTypeLike) -> HostArray:
        return _on_device(np.zeros(shape_of(shape), dtype))

    def upload(self, array: NDArray[Any], out: Array | None = None) -> Array:
        if out is None:
            return _on_device(np.array(array, order="C"))
        check_same_bytes(out, array)
        np.asarray(out).reshape(-1).view(np.uint8)[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return out

    def download(self, array: Array, out: NDArray[Any] | None = None) -> NDArray[Any]:
        result = checked_out(array, out)
        result[...] = np.asarray(array)
        return result

    def fill_zero(self, array: Array, stream: Any = None) -> None:
        np.asarray(array).reshape(-1).view(np.uint8)[:] = 0

    def copy(self, target: Array, source: Array) -> None:
        check_same_bytes(target, source)
        np.asarray(target).reshape(-1).view(np.uint8)[:] = np.asarray(source).reshape(-1).view(np.uint8)

    def view(self, obj: Any) -> Array:
        return obj if isinstance(obj, HostArray) else host_view(obj)

    def pinned(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        return np.zeros(shape_of(shape), dtype)

    def start_download(self, array: Array, out: NDArray[Any]) -> _Done:
        return _Done(self.download(array, out))

    def hold(self, pending: Any) -> None:
        """Every copy has ended."""

    def synchronize(self) -> None:
        """Every launch has ended."""

    # --- kernels ------------------------------------------------------------------------------------------------

    def load(self, name: str, headers: Mapping[str, str]) -> Kernel:
        key = name, tuple(sorted(headers.items()))
        if key not in self._kernels:
            image = compile_kernel(name, headers, self.capability, "ptx", sources=self._sources)
            program = self._make(image.text)
            call = CallStruct.of_kernel(name, headers, self._sources)
            taken = [parameter.size for parameter in program.kernels[name].parameters]
            if taken != [call.size]:
                raise BackendError(f"the kernel {name!r} takes {taken} bytes, and struct Call was read as {call.size}")
            self._kernels[key] = Kernel(name, call, program.kernels[name].shared, None, program)
        return self._kernels[key]

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
        """Refused as a GPU with these properties would. Raises `EmulationError` where the kernel does something
        wrong."""
        g, b = check_launch(self.properties, kernel, grid, block, shared, cluster)
        if cooperative and math.prod(g) > (possible := self.largest_grid(kernel, block, shared)):
            raise not_resident(kernel, math.prod(g), possible, self.properties)
        if cluster is not None and self.clusters(kernel, block, shared, cluster) < 1:
            raise not_resident(kernel, cluster, 0, self.properties)
        self.last = kernel.handle.launch(
            kernel.name, g, b, [kernel.call.for_emulator(call)], shared=shared, cluster=cluster, seed=self.seed
        )

    def largest_grid(self, kernel: Kernel, block: Sequence[int], shared: int) -> int:
        """By the limits of threads, blocks and shared memory; of registers only where the kernel says how many."""
        threads, room = math.prod(sizes("block", block)), kernel.shared + shared
        fits = occupancy(self.properties, threads, kernel.registers or 0, room, barriers=0)
        return self.properties.multiprocessors * fits.blocks

    def clusters(self, kernel: Kernel, block: Sequence[int], shared: int, cluster: int) -> int:
        """As if clusters could lie on any multiprocessors; on a GPU fewer may fit."""
        return self.largest_grid(kernel, block, shared) // cluster if cluster <= self.properties.max_cluster else 0


def _on_device(array: NDArray[Any]) -> HostArray:
    return HostArray(array.ctypes.data, array.shape, array.dtype, array)
