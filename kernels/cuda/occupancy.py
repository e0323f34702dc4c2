"""How many blocks of a kernel a multiprocessor holds at once: the rules that the CUDA C++ Programming Guide and the
occupancy calculator document, for capability 8.0 and newer and with all of the shared memory carved out for blocks.

A test compares every number with NVIDIA's own cuda_occupancy.h. Clusters are not covered: how many of them fit depends
on the chip's GPCs, which only the driver knows.
"""

from __future__ import annotations

from dataclasses import dataclass

from .devices import RESERVED_SHARED, DeviceProperties

WARP = 32
MAX_THREADS = 1024
"""Of a block."""
MAX_REGISTERS = 255
"""Of a thread, in machine code."""
_WARP_REGISTERS = 256
"""Registers are handed out to warps in units of this many, 8 a thread."""
_PARTITIONS = 4
"""Parts of a multiprocessor, each with its own registers."""
_SHARED_UNIT = 128
"""Shared memory is handed out in units of so many bytes."""


@dataclass(frozen=True)
class Occupancy:
    """`blocks` at once on one multiprocessor, the least of what the other fields allow; None where nothing limits."""

    by_threads: int
    by_registers: int | None
    by_shared: int
    by_blocks: int
    by_barriers: int | None

    @property
    def blocks(self) -> int:
        limits: list[int | None] = list(vars(self).values())
        return min(limit for limit in limits if limit is not None)

    @property
    def limits(self) -> tuple[str, ...]:
        """What keeps another block out."""
        return tuple(name.removeprefix("by_") for name, limit in vars(self).items() if limit == self.blocks)


def occupancy(device: DeviceProperties, threads: int, registers: int, shared: int, barriers: int = 1) -> Occupancy:
    """Of a kernel with `threads` a block, `registers` a thread, `shared` bytes a block (static and dynamic together,
    the dynamic limit raised as far as the device allows) and so many named barriers a block."""
    return Occupancy(
        by_threads=_by_threads(device, threads),
        by_registers=_by_registers(device, threads, registers),
        by_shared=_by_shared(device, shared),
        by_blocks=device.blocks_per_multiprocessor,
        by_barriers=_barriers(device) // barriers if barriers and device.capability >= 90 else None,
    )


def most_registers(device: DeviceProperties, threads: int) -> int:
    """Registers a thread may have so that one block of so many threads fits: what `__launch_bounds__` leads to."""
    warps = _up(-(-threads // WARP), _PARTITIONS)
    a_warp = device.registers_per_multiprocessor // warps // _WARP_REGISTERS * _WARP_REGISTERS
    return min(MAX_REGISTERS, a_warp // WARP)


def _up(n: int, unit: int) -> int:
    return -(-n // unit) * unit


def _by_threads(device: DeviceProperties, threads: int) -> int:
    if threads > MAX_THREADS:
        return 0
    return device.threads_per_multiprocessor // WARP // -(-threads // WARP)


def _by_registers(device: DeviceProperties, threads: int, registers: int) -> int | None:
    if registers > MAX_REGISTERS:
        return 0
    if not registers:
        return None
    warps_of_a_partition = device.registers_per_multiprocessor // _PARTITIONS // _up(registers * WARP, _WARP_REGISTERS)
    return warps_of_a_partition * _PARTITIONS // -(-threads // WARP)


def _by_shared(device: DeviceProperties, shared: int) -> int:
    a_block = _up(shared + RESERVED_SHARED, _SHARED_UNIT)
    if a_block > device.shared_per_block + RESERVED_SHARED:
        return 0
    return device.shared_per_multiprocessor // a_block


def _barriers(device: DeviceProperties) -> int:
    """Named barriers of a multiprocessor, counted from capability 9.0 on: two for each block it can hold on H100 and
    B200, one on the others."""
    return device.blocks_per_multiprocessor * (2 if device.capability in (90, 100) else 1)
