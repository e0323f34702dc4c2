"""The registry: which executions of a model there are, which of them work here, and why the others do not.

`auto` decides by what is there, never by timing: the same voice on the same machine always gives the same samples. The
backend is the first of the table below that works; the number format is that backend's own choice, which for `cpu` is
int8 where the voice records (`wavenet-fast check --write`) that this costs at most `INT8_COST_LIMIT`, else bf16 where
the processor has bf16 instructions, else fp32.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..config import WaveNetConfig
from ..errors import BackendError
from ..packing import DTYPES

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
    dtypes: tuple[str, ...]
    why_not: Callable[[], str | None]
    """One line that says why it does not work here, or None where it does."""
    auto_dtype: Callable[[Costs], str]
    """The number format chosen where none is asked for."""
    make: Callable[[WaveNetConfig, Weights, str], Engine]
    """(config, weights, dtype) → the model made ready."""


def _cpu_why_not() -> str | None:
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


def _make_cpu(config: WaveNetConfig, weights: Weights, dtype: str) -> Engine:
    from .cpu import CpuEngine

    return CpuEngine(config, weights, dtype)


def _reference_why_not() -> str | None:
    if importlib.util.find_spec("torch") is None:
        return 'PyTorch is not installed; `pip install "wavenet-fast[torch]"` adds it'
    return None


def _make_reference(config: WaveNetConfig, weights: Weights, dtype: str) -> Engine:
    from .reference import ReferenceEngine

    return ReferenceEngine(config, weights, dtype)


BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
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
    """Backend name → None where it works on this machine, else one line that says why not."""
    return {name: backend.why_not() for name, backend in BACKENDS.items()}


def choose(
    backend: str = "auto", device: str = "auto", dtype: str = "auto", costs: Costs | None = None
) -> tuple[Backend, str, str]:
    """What the three words stand for on this machine, for a voice that records these costs: (backend, device, dtype).

    Raises `BackendError` for unknown words, for a backend that does not work here (with the reason), and for a device
    or number format that the backend does not have."""
    if backend == "auto":
        chosen = _first_available()
    elif backend in BACKENDS:
        chosen = BACKENDS[backend]
        if (why := chosen.why_not()) is not None:
            raise BackendError(f"backend {backend!r} is not available here: {why}. {_possible()}")
    else:
        raise BackendError(f"backend is {backend!r}; there are {', '.join(map(repr, BACKENDS))} and 'auto'")
    if device != "auto" and device not in chosen.devices:
        raise BackendError(_wrong("device", device, chosen.devices, chosen))
    if dtype != "auto" and dtype not in chosen.dtypes:
        raise BackendError(_wrong("dtype", dtype, chosen.dtypes, chosen))
    device = chosen.devices[0] if device == "auto" else device
    return chosen, device, chosen.auto_dtype(costs or {}) if dtype == "auto" else dtype


def _first_available() -> Backend:
    reasons = []
    for backend in BACKENDS.values():
        if (why := backend.why_not()) is None:
            return backend
        reasons.append(f"{backend.name}: {why}")
    raise BackendError("no backend is available here. " + ". ".join(reasons))


def _possible() -> str:
    works = [name for name, why in availability().items() if why is None]
    return f"Available: {', '.join(works)}" if works else "None is available"


def _wrong(what: str, given: str, possible: tuple[str, ...], backend: Backend) -> str:
    words = ", ".join(map(repr, possible))
    return f"{what} is {given!r}; backend {backend.name!r} offers {words} and 'auto'"
