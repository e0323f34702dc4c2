"""Memory of a GPU and pinned memory of this machine, taken and given back while kernels run, without waiting for them.

What this is built on, from NVIDIA's documentation: `cuMemFree`, `cuMemHostAlloc` and `cuMemFreeHost` may wait for all
that runs; memory of a pool is taken and freed as work of a stream ("Stream-Ordered Memory Allocator"); a copy from
pageable memory may wait for its stream, one from pinned memory does not ("API synchronization behavior")."""

from __future__ import annotations

import ctypes
import sys
import threading
import weakref
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cuda_driver import Driver
from .cuda_streams import Event

KEPT_BYTES = 256 << 20
"""Of a GPU's memory that stays here when nobody uses it, so that one window after the other finds it."""
PINNED_BYTES = 128 << 20
"""The same of pinned memory."""
STAGED_BYTES = 64 << 20
"""Of pinned memory in which uploads wait for their turn; whoever uploads more waits for the first of them."""
PIECE = 4 << 20
"""Bytes of one copy of an upload."""
_PAGE, _SMALL, _LARGE = 4096, 64 << 10, 1 << 20
_ALIGNMENT = 512


class DriverPool:
    """A memory pool of the driver: taking and giving back are work of a stream like any other."""

    def __init__(self, driver: Driver, device: int) -> None:
        self._driver, api, doing = driver, driver.api, "making a memory pool"
        properties = api.CUmemPoolProps()
        properties.allocType = api.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        properties.location.type = api.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        properties.location.id = device
        self._pool = driver("cuMemPoolCreate", properties, doing=doing)
        kept = api.CUmemPool_attribute.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD
        driver("cuMemPoolSetAttribute", self._pool, kept, api.cuuint64_t(KEPT_BYTES), doing=doing)

    def take(self, size: int, stream: Any, doing: str) -> int:
        """Address of memory for work that is queued on this stream from now on."""
        return int(self._driver("cuMemAllocFromPoolAsync", size, self._pool, stream, doing=doing))

    def give(self, pointer: int, size: int, stream: Any) -> None:
        """Free when all work of this stream so far has ended."""
        self._driver("cuMemFreeAsync", pointer, stream, doing="freeing memory")

    def trim(self) -> None:
        """Lets others have what nobody uses here."""
        self._driver("cuMemPoolTrimTo", self._pool, 0, doing="freeing memory")

    def close(self) -> None:
        self._driver("cuMemPoolDestroy", self._pool, doing="freeing memory")


class KeptBlocks:
    """The same where the driver has no pools. A block that was given back serves again, as it is, for the same size:
    all work of a device is in one order, so that a new owner's comes after an old one's. `cuMemFree`, which waits for
    everything, is called when more than `KEPT_BYTES` lie idle."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._idle: dict[int, list[int]] = {}

    def take(self, size: int, _stream: Any, doing: str) -> int:
        room = _rounded(size, _ALIGNMENT)
        idle = self._idle.get(room)
        return idle.pop() if idle else int(self._driver("cuMemAlloc", room, doing=doing))

    def give(self, pointer: int, size: int, _stream: Any) -> None:
        self._idle.setdefault(_rounded(size, _ALIGNMENT), []).append(pointer)
        if sum(room * len(blocks) for room, blocks in self._idle.items()) > KEPT_BYTES:
            self.trim()

    def trim(self) -> None:
        for blocks in self._idle.values():
            while blocks:
                self._driver("cuMemFree", blocks.pop(), doing="freeing memory")

    close = trim


class PinnedBlocks:
    """Pinned memory that serves again when the arrays in it are gone. Small blocks are parts of a slab, so that few
    calls of the driver bring enough of them for all that is under way at once."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._idle: dict[int, list[int]] = {}
        self._slabs: list[int] = []
        self._lock = threading.Lock()

    def bytes(self, size: int) -> NDArray[np.uint8]:
        """Of any contents; to be called within the device's context."""
        room = max(_PAGE, 1 << (size - 1).bit_length()) if size <= _LARGE else _rounded(size, _LARGE)
        try:
            pointer = self._idle[room].pop()
        except (KeyError, IndexError):
            with self._lock:
                pointer = self._new(room)
        buffer = (ctypes.c_char * size).from_address(pointer)
        weakref.finalize(buffer, self._give, pointer, room).atexit = False
        array: NDArray[np.uint8] = np.ctypeslib.as_array(buffer).view(np.uint8)
        return array

    def _new(self, room: int) -> int:
        whole = _LARGE if room <= _SMALL else room
        pointer = int(self._driver("cuMemHostAlloc", whole, 0, doing=f"taking {whole:,} bytes of pinned memory"))
        if whole > room:
            self._slabs.append(pointer)
            self._idle.setdefault(room, []).extend(range(pointer + room, pointer + whole, room))
        return pointer

    def _give(self, pointer: int, room: int) -> None:
        # No call of the driver: this may happen anywhere, in the middle of a CUDA graph too.
        self._idle.setdefault(room, []).append(pointer)

    def trim(self, most: int = PINNED_BYTES) -> None:
        """Frees large blocks that lie idle where these are more than so many bytes."""
        with self._lock:
            large = [(room, blocks) for room, blocks in list(self._idle.items()) if room > _SMALL]
            if sum(room * len(blocks) for room, blocks in large) > most:
                for _, blocks in large:
                    while blocks:
                        self._driver("cuMemFreeHost", blocks.pop(), doing="freeing memory")

    def close(self) -> None:
        """Frees all but what somebody still has."""
        self.trim(0)
        small = [(block, room) for room, blocks in self._idle.items() for block in blocks]
        for slab in self._slabs:
            if sum(room for block, room in small if slab <= block < slab + _LARGE) == _LARGE:
                self._driver("cuMemFreeHost", slab, doing="freeing memory")


class InFlight:
    """What must stay until the copies that use it have ended, in the order in which they were queued. `lock` is the one
    of the `Queue`, because memory that is let go here may be given back there."""

    def __init__(self, lock: threading.RLock) -> None:
        self._kept: deque[tuple[Event, int, Any]] = deque()
        self._bytes = 0
        self._lock = lock

    def add(self, event: Event, size: int, kept: Any) -> None:
        with self._lock:
            self._kept.append((event, size, kept))
            self._bytes += size

    def forget(self) -> None:
        """Lets go what has ended."""
        self.make_room(0, sys.maxsize)

    def make_room(self, size: int, most: int) -> None:
        """Forgets what has ended, and waits for the first where `size` more would be more than `most` bytes."""
        with self._lock:
            while self._kept:
                event, held, _ = self._kept[0]
                if not event.ended():
                    if self._bytes + size <= most:
                        return
                    event.wait()
                self._kept.popleft()
                self._bytes -= held


def _rounded(size: int, unit: int) -> int:
    return -(-size // unit) * unit
