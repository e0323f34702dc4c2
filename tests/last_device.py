"""Where a test of every backend runs each: no backend needs a GPU on its last device."""

from __future__ import annotations

from wavenet_fast.backends import BACKENDS


def device_of(backend: str) -> str:
    """ "emulated" for a backend whose kernels are for GPUs, else "cpu"."""
    return BACKENDS[backend].devices[-1]
