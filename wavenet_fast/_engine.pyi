"""The compiled engine; wavenet_fast.backends.cpu wraps it."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

def isas() -> list[dict[str, Any]]:
    """Instruction sets compiled in, best last: name, layouts, available, automatic, needs. Layouts: number format →
    (lanes, accumulators, run, pack)."""

def second_cache() -> int:
    """Bytes of one core's second cache."""

def zeros(bytes: int) -> NDArray[np.uint8]:
    """Memory as the engine likes it: on a cache line and, where it is large, on huge pages. Raises `MemoryError`."""

def plan(weight_bytes: int, streams: int, threads: int, split: str, ahead: int = 0) -> tuple[int, int, int, int]:
    """How a call would use its threads: (teams, threads of a team, streams that a team makes side by side, samples for
    which it multiplies older taps at once). `ahead` is the last number as far as possible; 0 leaves it to the plan."""

class Model:
    def __init__(self, config: dict[str, Any], dtype: str, isa: str, arrays: dict[str, NDArray[Any]]) -> None: ...
    @property
    def streamed_bytes(self) -> int: ...
    @property
    def lookahead_frames(self) -> int: ...
    @property
    def context_frames(self) -> int: ...
    @property
    def ring_channels(self) -> int: ...

class State:
    def __init__(
        self,
        *,
        rings: NDArray[Any],
        ring_scales: NDArray[np.float32],
        inputs: NDArray[np.float32],
        filters: NDArray[np.float32],
        positions: NDArray[np.int64],
        seeds: NDArray[np.uint64],
        speakers: NDArray[np.float32],
        received: NDArray[np.int64],
        pending: NDArray[np.float32],
        pending_counts: NDArray[np.int64],
    ) -> None: ...

def generate(
    *,
    model: Model,
    state: State,
    mel: NDArray[np.float32],
    frames: NDArray[np.int64],
    ended: NDArray[np.bool_],
    counts: NDArray[np.int64],
    temperature: float,
    threads: int,
    split: str,
    ahead: int,
    forced: NDArray[np.float32] | None,
    audio: NDArray[np.float32] | None,
    raw: NDArray[np.float32] | None,
    logits: NDArray[np.float32] | None,
    trace: dict[str, NDArray[np.float32]] | None,
    progress: Callable[[int, int], None] | None,
) -> bool: ...
def gate(isa: str, a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]: ...
def exponential(isa: str, x: NDArray[np.float32]) -> NDArray[np.float32]: ...

class Stages:
    """Activations of a few streams of a model, made up, on which one stage of a sample can run by itself."""

    def __init__(self, model: Model, streams: int) -> None: ...
    def run(self, stage: str, times: int) -> None:
        """ "dilated", "gate", "residual+skip", "head" or "sample", of `times` samples, every layer in turn."""
    def row(self, name: str, stream: int) -> NDArray[np.float32]:
        """What one stream has: x, z, gate, residual, skip, hidden, logits, all of the last layer, rows padded, or
        draw."""

class ReadProbe:
    """A block of memory laid out like a model's weights, which threads read over and over, each its own part."""

    def __init__(self, bytes: int, threads: int) -> None: ...
    def run(self, isa: str, kind: str, times: int) -> tuple[float, int]:
        """The block read `times` times over by all threads together: seconds, and the sum of what was read."""

def read_loops() -> list[tuple[str, str]]:
    """(instruction set, "vector" or "tile") of every reading loop that this processor can run."""

def spin(count: int, threads: int) -> None:
    """Count to `count` on each of `threads` threads."""
