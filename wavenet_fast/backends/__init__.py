"""The registry: which executions of a model there are, which of them work here, and why the others do not.

`auto` decides by what is there, never by timing: the same voice on the same machine always gives the same samples. The
backend is the first of the table below that works; one for a GPU must also have passed its self-test (`selftest`) for
the model's shape on that GPU, and hold the model. The number format is that backend's own choice, which for `cpu` is
int8 where the voice records (`wavenet-fast check --write`) that this costs at most `INT8_COST_LIMIT`, else bf16 where
the processor has bf16 instructions, else fp32; and for `cuda` and `triton` bf16, which every GPU that they run on
multiplies.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..config import WaveNetConfig
from ..errors import BackendError, BackendWarning
from ..packing import DTYPES
from . import gpu

if TYPE_CHECKING:
    from .base import Engine

Weights = Mapping[str, NDArray[np.float32]]
Costs = Mapping[str, float]
"""Number format → what it costs a voice in bits per sample, as far as the voice records it."""

INT8_COST_LIMIT = 0.02
"""Bits per sample that int8 may cost a voice for `auto` to choose it."""


@dataclass(frozen=True)
class Backend:
    """One way to run a model."""

    name: str
    summary: str
    devices: tuple[str, ...]
    """Where it runs; "auto" is the first."""
    dtypes: tuple[str, ...]
    why_not: Callable[[str], str | None]
    """Device → one line that says why it does not work there, with the next step, or None where it does."""
    auto_dtype: Callable[[Costs], str]
    """The number format chosen where none is asked for."""
    make: Callable[[WaveNetConfig, Weights, str, str], Engine]
    """(config, weights, dtype, device) → the model made ready. Raises `BackendError` where it does not fit."""
    tested: tuple[str, ...] = ()
    """Devices on which `auto` takes it only after its self-test."""


class Choice(NamedTuple):
    """What the words that were given stand for."""

    backend: Backend
    device: str
    dtype: str

    def make(self, config: WaveNetConfig, weights: Weights) -> Engine:
        return self.backend.make(config, weights, self.dtype, self.device)

    @property
    def wants_test(self) -> bool:
        return device_kind(self.device) in self.backend.tested


@dataclass(frozen=True)
class Prepared:
    """An engine, where it runs, and a sentence on each backend that `auto` passed over for it."""

    engine: Engine
    device: str
    notes: tuple[str, ...] = ()


def device_kind(device: str) -> str:
    """ "cuda" for "cuda:0" and its like, else the word itself."""
    return "cuda" if re.fullmatch(r"cuda:\d{1,4}", device) else device


def _cuda_why_not(device: str) -> str | None:
    return gpu.why_not_emulated_cuda_kernels() if device == "emulated" else gpu.why_not_cuda_kernels(device)


def _make_cuda(config: WaveNetConfig, weights: Weights, dtype: str, device: str) -> Engine:
    # By name: NVIDIA's packages and the kernels are not needed before somebody asks for this backend.
    module: Any = importlib.import_module(".cuda", __name__)
    engine: Engine = module.CudaEngine(config, weights, dtype, device)
    return engine


def _triton_why_not(device: str) -> str | None:
    return gpu.why_not_emulated() if device == "emulated" else gpu.why_not_cuda(device)


def _make_triton(config: WaveNetConfig, weights: Weights, dtype: str, device: str) -> Engine:
    # By name: neither torch nor triton, nor their types, are needed before somebody asks for this backend.
    module: Any = importlib.import_module(".triton", __name__)
    engine: Engine = module.TritonEngine(config, weights, dtype, device)
    return engine


def _cpu_why_not(device: str) -> str | None:
    try:
        importlib.import_module("wavenet_fast._engine")
    except ImportError as error:
        return f"its compiled extension cannot be loaded ({error}); `pip install .` builds it with a C++17 compiler"
    return None


def _cpu_auto_dtype(costs: Costs) -> str:
    from .cpu import isa_in_use

    isa = isa_in_use()
    # The portable sets have no way of their own to multiply bytes: int8 would be slower than fp32 there.
    if costs.get("int8", math.inf) <= INT8_COST_LIMIT and not isa.startswith("portable"):
        return "int8"

    # Where the processor multiplies bf16 itself it is the natural format. Elsewhere it is faster too, being half the
    # weights to stream, but it is for the asking: samples are then those of the weights as they are.
    return "bf16" if isa in ("avx512bf16", "amx") else "fp32"


def _make_cpu(config: WaveNetConfig, weights: Weights, dtype: str, device: str) -> Engine:
    from .cpu import CpuEngine

    return CpuEngine(config, weights, dtype)


def _reference_why_not(device: str) -> str | None:
    if importlib.util.find_spec("torch") is None:
        return 'PyTorch is not installed; `pip install "wavenet-fast[torch]"` adds it'
    return None


def _make_reference(config: WaveNetConfig, weights: Weights, dtype: str, device: str) -> Engine:
    from .reference import ReferenceEngine

    return ReferenceEngine(config, weights, dtype)


BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend(
            "cuda", "CUDA kernels on an NVIDIA GPU", ("cuda", "emulated"), DTYPES, _cuda_why_not,
            lambda costs: "bf16", _make_cuda, tested=("cuda",),
        ),
        Backend(
            "triton", "Triton kernels on an NVIDIA GPU", ("cuda", "emulated"), ("fp32", "fp16", "bf16"),
            _triton_why_not, lambda costs: "bf16", _make_triton, tested=("cuda",),
        ),
        Backend(
            "cpu", "native code with SIMD", ("cpu",), DTYPES, _cpu_why_not, _cpu_auto_dtype, _make_cpu
        ),
        Backend(
            "reference", "PyTorch, slow, the truth that the others are tested against", ("cpu",), DTYPES,
            _reference_why_not, lambda costs: "fp32", _make_reference,
        ),
    )
}  # fmt: skip


def usable_cores() -> int:
    """Cores this process may run on, which containers and `taskset` make fewer than the machine has. OMP_NUM_THREADS
    and its like have no say."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def availability() -> dict[str, str | None]:
    """Backend name → None where it works on this machine, else one line that says why not. A backend with several
    devices is asked about the one that "auto" stands for."""
    return {name: backend.why_not(backend.devices[0]) for name, backend in BACKENDS.items()}


def prepare(
    config: WaveNetConfig,
    weights: Weights,
    backend: str = "auto",
    device: str = "auto",
    dtype: str = "auto",
    costs: Costs | None = None,
) -> Prepared:
    """The model made ready as the three words say.

    "auto" passes over a GPU backend that fails its self-test for this shape or does not hold the model, and says so
    with a `BackendWarning`. The self-test runs at the first use of a shape on a GPU and may take a minute or two.

    Raises what `choose` raises, and `BackendError` where a backend asked for by name does not hold the model."""
    if backend != "auto":
        choice = choose(backend, device, dtype, costs)
        return Prepared(choice.make(config, weights), choice.device)
    notes: list[str] = []
    for choice in _candidates(device, dtype, costs or {}, notes):
        if not choice.wants_test:
            return Prepared(choice.make(config, weights), choice.device, tuple(notes))
        try:
            _require_pass(config, choice)
            return Prepared(choice.make(config, weights), choice.device, tuple(notes))
        except BackendError as error:
            notes.append(f"{choice.backend.name}: {error}")
            _warn_once(f"backend {choice.backend.name!r} is passed over on device {choice.device!r}: {error}")
    raise _none_available(notes)


def choose(backend: str = "auto", device: str = "auto", dtype: str = "auto", costs: Costs | None = None) -> Choice:
    """What the three words stand for on this machine, for a voice that records these costs: (backend, device, dtype).
    "auto" is then the first backend that needs no self-test; `prepare`, which knows the model, may choose a GPU.

    Raises `BackendError` for unknown words, for a backend that does not work here (with the reason), and for a device
    or number format that the backend does not have."""
    if backend == "auto":
        notes: list[str] = []
        for choice in _candidates(device, dtype, costs or {}, notes):
            if not choice.wants_test:
                return choice
            notes.append(f"{choice.backend.name}: taken only after a self-test with a model")
        raise _none_available(notes)
    if backend not in BACKENDS:
        raise BackendError(f"backend is {backend!r}; there are {_words(BACKENDS)}")
    chosen = BACKENDS[backend]
    here = chosen.devices[0] if device == "auto" else device
    if device_kind(here) not in chosen.devices:
        raise BackendError(f"device is {device!r}; backend {backend!r} offers {_words(chosen.devices)}")
    if (why := chosen.why_not(here)) is not None:
        where = f" on device {here!r}" if len(chosen.devices) > 1 else ""
        raise BackendError(f"backend {backend!r} is not available here{where}: {why}. {_possible()}")
    if dtype not in ("auto", *chosen.dtypes):
        raise BackendError(f"dtype is {dtype!r}; backend {backend!r} offers {_words(chosen.dtypes)}")
    return Choice(chosen, here, chosen.auto_dtype(costs or {}) if dtype == "auto" else dtype)


def _candidates(device: str, dtype: str, costs: Costs, notes: list[str]) -> Iterator[Choice]:
    """What backend "auto" may stand for, best first; `notes` gains a sentence on each passed over on the way."""
    devices = dict.fromkeys(d for backend in BACKENDS.values() for d in backend.devices)
    dtypes = dict.fromkeys(d for backend in BACKENDS.values() for d in backend.dtypes)
    if device == "emulated":
        names = [name for name, backend in BACKENDS.items() if device in backend.devices]
        raise BackendError(
            f"device 'emulated' executes GPU kernels on the CPU, for proof and slowly, and is never chosen for you; "
            f"name the backend too: {', '.join(map(repr, names))}"
        )
    if device_kind(device) not in (*devices, "auto"):
        raise BackendError(f"device is {device!r}; there are {_words(devices)}")
    if dtype not in (*dtypes, "auto"):
        raise BackendError(f"dtype is {dtype!r}; there are {_words(dtypes)}")
    for name, backend in BACKENDS.items():
        here = backend.devices[0] if device == "auto" else device
        if device_kind(here) not in backend.devices:
            notes.append(f"{name}: it does not run on {device!r}")
        elif dtype not in ("auto", *backend.dtypes):
            notes.append(f"{name}: it has no number format {dtype!r}")
        elif (why := backend.why_not(here)) is not None:
            notes.append(f"{name}: {why}")
        else:
            yield Choice(backend, here, backend.auto_dtype(costs) if dtype == "auto" else dtype)


def _require_pass(config: WaveNetConfig, choice: Choice) -> None:
    """Raises `BackendError` unless the choice passes its self-test, now or earlier."""
    from .selftest import verdict

    told = verdict(config, choice.backend.name, choice.device, choice.dtype)
    if not told.passed:
        raise BackendError(
            f"its self-test for this shape in {choice.dtype} failed, {told.reason}; `wavenet-fast doctor --selftest` "
            "runs it again, and so does a change of driver or packages"
        )


_warned: set[str] = set()


def _warn_once(sentence: str) -> None:
    if sentence not in _warned:
        _warned.add(sentence)
        warnings.warn(f"{sentence}. Naming a backend silences this", BackendWarning, stacklevel=4)


def _none_available(notes: list[str]) -> BackendError:
    return BackendError("no backend is available here. " + ". ".join(notes))


def _possible() -> str:
    works = [name for name, why in availability().items() if why is None]
    return f"Available: {', '.join(works)}" if works else "None is available"


def _words(possible: Iterable[str]) -> str:
    return f"{', '.join(map(repr, possible))} and 'auto'"
