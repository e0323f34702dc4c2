"""CUDA streams: the one that work goes to, and the order between one and the next."""

from __future__ import annotations

import operator
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from numpy.typing import NDArray

from wavenet_fast.errors import BackendError, InputError

from .cuda_driver import CudaError, Driver


def stream_address(stream: Any) -> int:
    """Of a stream of torch, CuPy, cuda-core or Numba, or an address."""
    try:
        address = _address(stream)
    except Exception:  # whatever a foreign object raises
        address = -1
    if not 0 <= address < 2**64:
        raise InputError(
            f"stream is {stream!r}; possible: a CUDA stream of torch, CuPy or cuda-core, its address, or None"
        )
    return address


def _address(stream: Any) -> int:
    for name in ("cuda_stream", "ptr", "handle"):
        value = getattr(stream, name, None)
        if value is not None and not callable(value):
            return operator.index(getattr(value, "value", value) or 0)
    if callable(protocol := getattr(stream, "__cuda_stream__", None)):
        return operator.index(protocol()[1])
    try:
        return operator.index(stream)
    except TypeError:
        return int(stream) if hasattr(stream, "__int__") and not isinstance(stream, float) else -1


def torch_stream(index: int) -> int | None:
    """torch's current stream on this GPU; None where torch is not loaded or has not begun with CUDA."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is None or not cuda.is_available() or not cuda.is_initialized():
        return None
    return int(cuda.current_stream(index).cuda_stream)


class Event:
    """A place in a stream. To be made and used within the device's context."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        flags = int(driver.constant("CUevent_flags", "DISABLE_TIMING"))
        self.handle = driver("cuEventCreate", flags, doing="making an event")
        weakref.finalize(self, driver.api.cuEventDestroy, self.handle).atexit = False

    def record(self, stream: int) -> None:
        self._driver("cuEventRecord", self.handle, self._driver.api.CUstream(stream), doing="marking a stream")

    def hold(self, stream: int) -> None:
        """What is queued on `stream` from now on waits for this place."""
        self._driver("cuStreamWaitEvent", self._driver.api.CUstream(stream), self.handle, 0, doing="ordering streams")

    def wait(self) -> None:
        self._driver("cuEventSynchronize", self.handle, doing="waiting for the GPU")

    def ended(self) -> bool:
        """Whether all before this place has been done."""
        try:
            self._driver("cuEventQuery", self.handle, doing="looking at the GPU")
        except CudaError as error:
            if error.code != "CUDA_ERROR_NOT_READY":
                raise
            return False
        return True


class Queue:
    """Work in the order in which it is asked for, whatever stream and thread each piece comes from."""

    def __init__(self, driver: Driver, index: int) -> None:
        self._driver, self._index = driver, index
        flags = int(driver.constant("CUstream_flags", "NON_BLOCKING"))
        self.own = int(driver("cuStreamCreate", flags, doing="making a stream"))
        self._last: int | None = None
        self._mark = Event(driver)
        self.lock = threading.RLock()
        # A stream that was seen in a capture, and what it was given as, so that it lives as long as it is looked at.
        self._captured: tuple[int, Any] | None = None

    def current(self) -> int:
        """torch's current stream where torch uses CUDA, else one of this device's own."""
        stream = torch_stream(self._index)
        return self.own if stream is None else stream

    @contextmanager
    def stream(self, given: Any, doing: str, in_graph: bool) -> Iterator[int]:
        """Where to queue a piece of work, `given` or the current stream, after all that was asked for before.

        While a CUDA graph is captured there, the order with what came before the capture is the caller's: raises
        `BackendError` unless `in_graph` says that the work can be part of one."""
        with self.lock:
            stream = self.current() if given is None else stream_address(given)
            if self._is_captured(stream):
                self._captured = stream, given
                if not in_graph:
                    raise BackendError(f"{doing}: cannot be part of a CUDA graph; do it before the capture begins")
                yield stream
                return
            if self._last not in (None, stream):
                self._mark.hold(stream)
            yield stream
            self._mark.record(stream)
            self._last = stream

    def capturing(self) -> bool:
        """Whether the current stream is in a capture, or one on which work for a graph was queued."""
        with self.lock:
            if self._captured is not None and not self._is_captured(self._captured[0]):
                self._captured = None
            return self._captured is not None or self._is_captured(self.current())

    def _is_captured(self, stream: int) -> bool:
        status = self._driver("cuStreamIsCapturing", self._driver.api.CUstream(stream), doing="looking at a stream")
        return int(status) != int(self._driver.constant("CUstreamCaptureStatus", "NONE"))


class CudaPending:
    """A copy that has been queued; see `device.Pending`."""

    def __init__(self, device: Any, event: Event, out: NDArray[Any]) -> None:
        self.event = event
        self._device, self._out = device, out

    def wait(self) -> NDArray[Any]:
        with self._device.context():
            self.event.wait()
            self._device.forget_copies()
        return self._out
