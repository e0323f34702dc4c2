"""A launch of the sample loop, from what it is given to whether it went well.

B streams, T samples, F columns of conditioning; the letters of padded sizes are those of `shapes.Shape`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wavenet_fast.errors import BackendError

from .arrays import Array
from .device import Device, Kernel, Pending
from .layout import Layout
from .shapes import Shape

PATIENCE = 1 << 36
"""Clock cycles that a block waits for another: about half a minute."""

_GO_ON_THREADS = 128
WAITED_FOR = ("x", "the skip sums", "the skip sums of all layers", "x of the next layer", "the gates", "the rings")
"""By `Mail` of handover.cuh."""


@dataclass(frozen=True)
class Streams:
    """What B streams remember, changed in place by a launch.

    rings      (B, SLOTS, `Model.ring_row`) operands: past inputs of every layer; in int8 their unit, fp32, behind R
    inputs     (B, IN_DEPTH) fp32: x[t] at slot t mod IN_DEPTH, classes as numbers and −1 for none
    filters    (B,) fp32: last output of the de-emphasis filter
    positions  (B,) int64: samples made; changed by `Ready.go_on` alone
    seeds      (B,) uint64
    """

    rings: Array
    inputs: Array
    filters: Array
    positions: Array
    seeds: Array


@dataclass(frozen=True)
class Heard:
    """Conditioning of one call: `projected` (B, F, LAYERS, HALF, 2) fp32; the first sample's place in it, in samples
    since the first column began, and the last column of each stream, (B,) int32."""

    projected: Array
    first_q: Array
    last_column: Array


@dataclass(frozen=True)
class Extras:
    """What a kernel does besides: it takes samples that are given, and writes logits and stages. Each is compiled in
    only where it is asked for."""

    forced: bool = False
    logits: bool = False
    trace: bool = False


NO_EXTRAS = Extras()


@dataclass(frozen=True)
class Made:
    """Where the samples of a call go: `audio` and `draws` (B, T) fp32, draws as classes or values, and `logits`
    (B, T, out_channels) or None. Beyond a stream's count nothing is written. `trace`: stage → (B, T, …), see
    `trace_shapes`."""

    audio: Array
    draws: Array
    logits: Array | None = None
    trace: Mapping[str, Array] | None = None


@dataclass(frozen=True)
class Launch:
    """A launch that has been queued; `told` is its abort word on the way."""

    layout: Layout
    told: Pending
    patience: int

    def check(self) -> None:
        """Waits for the launch. Raises `BackendError` where a block waited in vain for another."""
        check_word(int(self.told.wait()[0]), self.layout, self.patience)


@dataclass(frozen=True)
class Ready:
    """A launch for which everything is there: as often as wanted, also as part of a CUDA graph.

    `launch` queues memsets and kernels alone, with the same addresses and numbers each time, so that it can be captured
    and replayed: work on rings, inputs and filters goes on in place, `audio` and `draws` are written anew. Positions
    are read from the device and stay as they are, because a launch may be repeated; `go_on`, a kernel too, adds the
    counts to them, and a replay without it is wrong: rings, random numbers and positions no longer belong together.
    Counts and places are those of `Model.ready`: a stream that begins or ends in between needs another `Ready`. What is
    heard is read where it lies, and has to be put there before each replay.

    While a graph lives that was captured from it, so must this. `calls`: one for each round of streams."""

    device: Device
    layout: Layout
    kernel: Kernel
    calls: tuple[Mapping[str, Any], ...]
    common: Mapping[str, Any]
    abort: Array
    patience: int

    def launch(self, stream: Any = None) -> None:
        """Queues the launch; `stream` as for `Device.launch`."""
        layout, device = self.layout, self.device
        device.fill_zero(self.abort, stream)
        for call in self.calls:
            for name in ("mailboxes", "flags"):
                if call[name] is not None:
                    device.fill_zero(call[name], stream)
            device.launch(
                self.kernel, (call["places"].shape[0] * layout.blocks,), (layout.threads,), call, shared=layout.shared,
                cluster=layout.blocks if layout.cluster else None, cooperative=layout.resident and not layout.cluster,
                stream=stream,
            )  # fmt: skip

    def go_on(self, stream: Any = None) -> None:
        """Queues the step to the next launch: positions += counts. To be loaded once before a capture: `prepare`."""
        batch = self.common["counts"].shape[0]
        call = {"positions": self.common["positions"], "counts": self.common["counts"], "batch": batch}
        self.device.launch(self.prepare(), (-(-batch // _GO_ON_THREADS),), (_GO_ON_THREADS,), call, stream=stream)

    def prepare(self) -> Kernel:
        """Loads what `go_on` launches: a kernel is compiled, which takes about a second the first time."""
        return self.device.load("go_on", {})

    def check(self) -> None:
        """Waits for the work that this device was asked for, and raises `BackendError` where a block of the last launch
        waited in vain for another. A replay is asked of CUDA and not of this device: wait for its stream first."""
        check_word(int(self.device.download(self.abort)[0]), self.layout, self.patience)


def check_word(word: int, layout: Layout, patience: int) -> None:
    """What a launch left in its abort word; see wait.cuh."""
    if not word:
        return
    block, tile, what = word & 0xFFFFFF, word >> 24 & 0xFFFFFF, word >> 48 & 0xFF
    blocks = layout.blocks
    raise BackendError(
        f"the kernel gave up: block {block % blocks} of pipeline {block // blocks} waited more than "
        f"{patience:,} clock cycles for {WAITED_FOR[what]} of tile {tile}. What was made is not to be used; if the "
        "GPU is not stopped by a debugger or shared with others, please report this; WAVENET_FAST_GPU_PATIENCE "
        "(seconds) lets it wait longer"
    )


def places(layout: Layout, pipelines: int, counts: NDArray[Any]) -> list[NDArray[np.int32]]:
    """Which stream is where, for one launch after the other: (pipelines or fewer, tiles, N), −1 for none.

    Streams that end together share a tile, so that one that ends early soon costs nothing; tiles go round the
    pipelines; streams that make nothing have no place. Of a tile only the first `Layout.taken` places are filled."""
    order = np.argsort(-np.asarray(counts), kind="stable")
    order = order[np.asarray(counts)[order] > 0].astype(np.int32)
    capacity, rounds = pipelines * layout.tiles * layout.taken, []
    for first in range(0, len(order), capacity):
        some = order[first : first + capacity]
        used = min(pipelines, -(-len(some) // layout.taken))
        room = np.full((layout.tiles, used, layout.tile), -1, np.int32)
        filled = np.full(layout.tiles * used * layout.taken, -1, np.int32)
        filled[: len(some)] = some
        room[..., : layout.taken] = filled.reshape(layout.tiles, used, layout.taken)
        rounds.append(np.ascontiguousarray(room.swapaxes(0, 1)))
    return rounds


def trace_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Stage → what the sample loop leaves of it for every sample, padded."""
    s = shape
    return {
        "conditioning": (s.LAYERS, s.HALF, 2), "embed": (s.R,), "gate": (s.LAYERS, s.HALF), "x": (s.LAYERS, s.R),
        "skip": (s.S,), "hidden": (s.H,),
    }  # fmt: skip
