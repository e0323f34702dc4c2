"""Where kernels run: on a GPU as Triton's JIT launches them, or on the CPU from the PTX that the same JIT compiles."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from wavenet_fast.emulated import Program
from wavenet_fast.emulated.program import Mode
from wavenet_fast.errors import BackendError

from .decode import decode
from .dense import dense
from .embed import embed
from .generate import generate
from .residual_block import residual_block
from .sample import sample
from .tuning import Options, shared_limit

KERNELS = {
    "generate": generate,
    "residual_block": residual_block,
    "sample": sample,
    "decode": decode,
    "dense": dense,
    "embed": embed,
}
Grid = tuple[int, ...]


class Launcher(Protocol):
    """Runs kernels on tensors of `device`."""

    device: torch.device
    capability: int
    """Of the GPU that the kernels are compiled for: 90 is sm_90."""
    upcast: bool
    """Whether products in bf16 must be made in fp32: Triton's interpreter."""

    def run(self, name: str, grid: Grid, arguments: Mapping[str, Any], options: Options) -> None:
        """Launch `KERNELS[name]` with arguments by name."""


class CudaLauncher:
    """The GPU itself. Launches are queued on the current stream of torch."""

    upcast = False

    def __init__(self, device: torch.device) -> None:
        self.device = device
        major, minor = torch.cuda.get_device_capability(device)
        self.capability = major * 10 + minor

    def run(self, name: str, grid: Grid, arguments: Mapping[str, Any], options: Options) -> None:
        """See `Launcher`. Raises `BackendError` where the kernel does not fit this GPU or cannot be compiled for it."""
        try:
            with _compiling, torch.cuda.device(self.device):
                KERNELS[name][grid](**arguments, num_warps=options.warps, num_stages=options.stages)
        except (triton.runtime.errors.TritonError, triton.compiler.errors.CompilationError) as error:
            raise BackendError(
                f"the kernel {name!r} of this model does not fit {torch.cuda.get_device_name(self.device)}: {error}. "
                "Use backend 'cpu', or a model with fewer channels"
            ) from None


class EmulatedLauncher:
    """The PTX that Triton compiles for a GPU, executed on the CPU: for proof, and slow.

    mode, seed  of `emulated.Program` and its `launch`"""

    device = torch.device("cpu")
    upcast = False

    def __init__(self, capability: int = 90, mode: Mode = "plain", seed: int = 0) -> None:
        self.capability, self.mode, self.seed = capability, mode, seed
        self._programs: dict[str, Program] = {}

    def run(self, name: str, grid: Grid, arguments: Mapping[str, Any], options: Options) -> None:
        """See `Launcher`. Raises `EmulationError` for races, accesses out of bounds and barriers that fail."""
        kernel = KERNELS[name]
        compiled = compile_for(name, arguments, options, self.capability)
        check_fits(name, compiled.metadata.shared, self.capability)
        ptx = compiled.asm["ptx"]
        if ptx not in self._programs:
            self._programs[ptx] = Program(ptx, mode=self.mode)
        signature = compiled.src.signature
        passed = [_stretch(arguments[arg]) for arg in kernel.arg_names if signature[arg] != "constexpr"]
        program = self._programs[ptx]
        passed += [None] * (len(program.kernels[name].parameters) - len(passed))  # Triton's own scratch, unused
        program.launch(
            name, grid=(*grid, 1, 1)[:3], block=(32 * options.warps, 1, 1), args=passed,
            shared=compiled.metadata.shared, seed=self.seed,
            timeout=math.inf if self.mode == "plain" else None,  # a long utterance takes its time
        )  # fmt: skip


def _stretch(value: Any) -> Any:
    """A view with gaps as the stretch of memory that it lies in: what the executor lets a kernel touch."""
    if not isinstance(value, torch.Tensor) or value.is_contiguous():
        return value
    reach = sum((n - 1) * step for n, step in zip(value.shape, value.stride(), strict=True))
    return value.as_strided((1 + reach,), (1,))


def check_fits(name: str, shared: int, capability: int) -> None:
    """Raises `BackendError` where a kernel wants more shared memory than the GPU gives a block."""
    if shared > shared_limit(capability):
        raise BackendError(
            f"the kernel {name!r} of this model needs {shared / 1024:.0f} KiB of shared memory; a GPU of compute"
            f" capability {capability / 10:g} has {shared_limit(capability) // 1024}. Use backend 'cpu', or a model"
            " with fewer channels"
        )


# --- compiling without a GPU ------------------------------------------------------------------------------------


class _NoGpu:
    """What Triton's JIT asks of a driver before it compiles. The device it names belongs to no GPU, so that kernels
    compiled here and kernels of a real one do not meet in the JIT's caches."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> str:
        return f"sm_{self._target.arch} without a GPU"

    def get_current_stream(self, device: Any = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def map_python_to_cpp_type(self, type_name: str) -> str:
        return type_name


_compiling = threading.Lock()
"""Held while Triton compiles or launches: `_without_gpu` changes its driver for the whole process."""


@contextmanager
def _without_gpu(capability: int) -> Iterator[None]:
    """Triton's process-wide driver replaced for a moment, under a lock."""
    with _compiling:
        before = driver._active
        driver.set_active(_NoGpu(capability))
        try:
            yield
        finally:
            driver._active = before


def compile_for(name: str, arguments: Mapping[str, Any], options: Options, capability: int) -> Any:
    """The kernel as the JIT specialises it for these arguments, compiled for sm_`capability`; needs no GPU.

    Returns Triton's compiled kernel: `.asm["ptx"]`, `.asm["cubin"]`, `.metadata.shared` in bytes."""
    with _without_gpu(capability):
        compiled = KERNELS[name].warmup(
            **arguments, grid=(1,), num_warps=options.warps, num_stages=options.stages
        )  # fmt: skip
        return compiled.result() if hasattr(compiled, "result") else compiled
