"""What a GPU has, as far as a plan for it depends on that."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DeviceProperties:
    """`capability` 90 is sm_90; shared memory in bytes, of a block (the most it may ask for) and of a multiprocessor;
    `max_cluster` in blocks, 1 where there are no clusters."""

    name: str
    capability: int
    multiprocessors: int
    shared_per_block: int
    shared_per_multiprocessor: int
    registers_per_multiprocessor: int
    threads_per_multiprocessor: int
    blocks_per_multiprocessor: int
    max_cluster: int
