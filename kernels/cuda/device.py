"""Where kernels run, as the code around them sees it: a GPU (`cuda_device`) or the emulated one (`emulated_device`)."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from numpy.typing import DTypeLike, NDArray

from wavenet_fast.errors import BackendError, InputError

from .arrays import Array
from .call_struct import CallStruct
from .devices import DeviceProperties

MAX_THREADS = 1024


@dataclass(frozen=True)
class Kernel:
    """A kernel loaded on a device; `shared` bytes of static shared memory, `registers` of a thread where known,
    `handle` what the device launches."""

    name: str
    call: CallStruct
    shared: int
    registers: int | None
    handle: Any = field(repr=False, compare=False)


class Pending(Protocol):
    """A copy to the host that has been queued."""

    def wait(self) -> NDArray[Any]:
        """The array that was copied into, once it holds everything."""
        ...


class Device(Protocol):
    """Memory and launches. Work is done in the order in which it is asked for; `download` and `synchronize` wait.

    Every method raises `BackendError` where the device refuses or fails, and `InputError` or `ShapeError` for an
    argument that cannot be."""

    capability: int
    """Of the GPU that kernels are compiled for: 90 is sm_90."""
    properties: DeviceProperties
    clock: int
    """Cycles of a second, about, of the clock that kernels wait by."""

    def empty(self, shape: Sequence[int], dtype: DTypeLike) -> Array:
        """An array whose contents are not to be read."""
        ...

    def zeros(self, shape: Sequence[int], dtype: DTypeLike) -> Array: ...

    def upload(self, array: NDArray[Any], out: Array | None = None) -> Array:
        """A copy of a NumPy array, into `out` of as many bytes where it is given."""
        ...

    def download(self, array: Array, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """A NumPy array of what is there, `out` where it is given (same shape and type, contiguous)."""
        ...

    def fill_zero(self, array: Array, stream: Any = None) -> None:
        """`stream` as for `launch`."""
        ...

    def copy(self, target: Array, source: Array) -> None:
        """`source` into `target`, of as many bytes; they do not overlap."""
        ...

    def view(self, obj: Any) -> Array:
        """The memory of a foreign array on this device (`__cuda_array_interface__`, DLPack or a torch tensor;
        `__array_interface__` on the emulated one), without a copy. torch.bfloat16 becomes uint16."""
        ...

    def load(self, name: str, headers: Mapping[str, str]) -> Kernel:
        """The kernel NAME.cuh compiled with these headers for this device; once a process."""
        ...

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
        """Queues a kernel: `grid` in blocks, `block` in threads, `call` the fields of `struct Call` by name, `shared`
        bytes of dynamic shared memory, `cluster` blocks along x, `cooperative` refused unless all blocks are resident
        at once, `stream` a CUDA stream of torch, CuPy or cuda-core, or its address; the current one where None."""
        ...

    def largest_grid(self, kernel: Kernel, block: Sequence[int], shared: int) -> int:
        """How many blocks are resident at once."""
        ...

    def clusters(self, kernel: Kernel, block: Sequence[int], shared: int, cluster: int) -> int:
        """How many clusters of so many blocks are resident at once."""
        ...

    def pinned(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        """A NumPy array, zero, that `start_download` copies into while kernels run."""
        ...

    def start_download(self, array: Array, out: NDArray[Any]) -> Pending:
        """Queues a copy of what `array` holds after all work asked for so far. Kernels launched from now on run
        meanwhile, so they must not write `array` before `hold`."""
        ...

    def hold(self, pending: Pending) -> None:
        """Work asked for from now on begins when the copy has ended; this call does not wait."""
        ...

    def synchronize(self) -> None:
        """Waits for everything. Errors of kernels are raised here at the latest."""
        ...


def sizes(what: str, value: Sequence[int]) -> tuple[int, int, int]:
    """One to three sizes as x, y, z."""
    try:
        given = [operator.index(size) for size in value]
    except TypeError:
        given = []
    if not 1 <= len(given) <= 3 or min(given) < 1:
        raise InputError(f"{what} is {value!r}; possible: one to three sizes of at least 1")
    x, y, z = (*given, 1, 1)[:3]
    return x, y, z


def check_launch(
    properties: DeviceProperties,
    kernel: Kernel,
    grid: Sequence[int],
    block: Sequence[int],
    shared: int,
    cluster: int | None,
) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Grid and block as x, y, z, where this GPU can run them at all.

    Raises `InputError` for sizes that no GPU takes, `BackendError` for what this one has too little of."""
    g, b = sizes("grid", grid), sizes("block", block)
    if math.prod(b) > MAX_THREADS:
        raise InputError(f"a block of {math.prod(b)} threads; possible: up to {MAX_THREADS}")
    if kernel.shared + shared > properties.shared_per_block:
        raise BackendError(
            f"the kernel {kernel.name!r} needs {kernel.shared + shared:,} bytes of shared memory a block; "
            f"{properties.name} has {properties.shared_per_block:,}"
        )
    if cluster is not None:
        if cluster < 1 or g[0] % cluster:
            raise InputError(f"clusters of {cluster} blocks do not divide a grid of {g[0]} along x")
        if cluster > properties.max_cluster:
            raise BackendError(f"clusters of {cluster} blocks; {properties.name} takes up to {properties.max_cluster}")
    return g, b


def not_resident(kernel: Kernel, blocks: int, possible: int, properties: DeviceProperties) -> BackendError:
    """Of a cooperative launch."""
    return BackendError(
        f"{blocks} blocks of the kernel {kernel.name!r} must be resident at once, and {properties.name} holds "
        f"{possible}; launch fewer, or smaller ones"
    )
