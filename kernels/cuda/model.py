"""A model on a device: its packed weights and tables, and every kernel called with them.

B streams, T samples, F columns of conditioning; the letters of padded sizes are those of `shapes.Shape`. Arrays are
`arrays.Array`s of the device.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wavenet_fast.config import CategoricalHead, WaveNetConfig
from wavenet_fast.errors import BackendError
from wavenet_fast.packing import hearing_format

from ..tables import tables
from .arrays import Array
from .device import Device, Kernel, Pending, not_resident
from .layout import FORMATS, Layout, header_text
from .packing import STREAMED, pack, tapes
from .plan import Plan, plan
from .shapes import PANEL, Shape, padded

OPERANDS = {
    "fp32": np.dtype(np.float32),
    "bf16": np.dtype(np.uint16),
    "fp16": np.dtype(np.float16),
    "int8": np.dtype(np.int8),
}
"""Number format → how operands lie in arrays; bf16 as its upper 16 bits."""

PATIENCE = 1 << 36
"""Clock cycles that a block waits for another: more than half a minute on any GPU."""

UNITS = tuple(f"{name}_units" for name in STREAMED)
_WAITED_FOR = ("x", "the skip sums", "the skip sums of all layers", "x of the next layer", "the gates", "the rings")
"""By `Mail` of handover.cuh."""
_PROJECT_WARPS, _PROJECT_ROWS, _PROJECT_CHUNK = 4, 32, 128


@dataclass(frozen=True)
class Streams:
    """What B streams remember, changed in place by `Model.generate`.

    rings      (B, SLOTS, `Model.ring_row`) operands: past inputs of every layer; in int8 their unit, fp32, behind R
    inputs     (B, IN_DEPTH) fp32: x[t] at slot t mod IN_DEPTH, classes as numbers and −1 for none
    filters    (B,) fp32: last output of the de-emphasis filter
    positions  (B,) int64: samples made; not changed
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
class Made:
    """Where the samples of a call go: `audio` and `draws` (B, T) fp32, draws as classes or values, and `logits`
    (B, T, out_channels) or None. Beyond a stream's count nothing is written. `trace`: stage → (B, T, …), see
    `trace_shapes`."""

    audio: Array
    draws: Array
    logits: Array | None = None
    trace: Mapping[str, Array] | None = None


@dataclass(frozen=True)
class Extras:
    """What a kernel does besides: it takes samples that are given, and writes logits and stages. Each is compiled in
    only where it is asked for."""

    forced: bool = False
    logits: bool = False
    trace: bool = False


NO_EXTRAS = Extras()


class Model:
    """Immutable, but for what it remembers of plans and of the device's answers. `dtype` is the number format: "fp32",
    "bf16", "fp16" or "int8".

    Raises `BackendError` where a weight is too large for fp16, or the model for 32-bit indices."""

    def __init__(
        self, config: WaveNetConfig, weights: Mapping[str, NDArray[np.float32]], dtype: str, device: Device
    ) -> None:
        check_size(config)
        self.config, self.dtype, self.device, self.shape = config, dtype, device, Shape.of(config, dtype)
        self.operand = OPERANDS[dtype]
        self._plans: dict[Any, Plan] = {}
        self._clusters: dict[int, int] = {}
        self._resident: dict[tuple[Layout, Extras], int] = {}
        packed = pack(config, weights, dtype)
        self._speaker = {name: packed.pop(name) for name in ("speaker", "b_speaker") if name in packed}
        self._b_project = packed.pop("b_project")
        self._fragments = {name: packed.pop(name) for name in STREAMED}
        self._weights = {name: device.upload(array) for name, array in packed.items()}
        self._tables = {name: device.upload(array) for name, array in tables(config, dtype).named().items()}

    @property
    def ring_row(self) -> int:
        """Operands of one slot of a ring: R, and in int8 room for their unit."""
        return self.shape.R + (16 if self.dtype == "int8" else 0)

    @property
    def weight_bytes(self) -> int:
        """Of the matrices that every sample passes, padding included."""
        return sum(array.nbytes for array in self._fragments.values())

    # --- conditioning -------------------------------------------------------------------------------------------

    def starts(self, speakers: NDArray[np.float32]) -> NDArray[np.float32]:
        """What a projection begins with: biases and the speaker's share. (B, P) → (B, LAYERS·HALF·2)."""
        starts = np.repeat(self._b_project[None], len(speakers), axis=0)
        if self._speaker:
            for b, vector in enumerate(speakers):  # one by one: no bit depends on who else speaks
                share = vector.astype(np.float64) @ self._speaker["speaker"].astype(np.float64)
                starts[b] += (share + self._speaker["b_speaker"]).astype(np.float32)
        return starts

    def project(self, features: NDArray[np.float32], starts: NDArray[np.float32]) -> Array:
        """(B, F, C) → (B, F, LAYERS, HALF, 2), rounded to bf16 where the kernels interpolate in bf16."""
        s, hearing = self.shape, hearing_format(self.dtype)
        batch, n, channels = features.shape
        outputs = s.LAYERS * s.HALF * 2
        inputs = padded(channels)
        chunk = inputs if inputs <= _PROJECT_CHUNK else PANEL
        header = header_text({
            "plan": {"FORMAT": FORMATS[hearing], "N": _PROJECT_ROWS, "AHEAD": 1},
            "project_plan": {
                "WARPS": _PROJECT_WARPS, "INPUTS": inputs, "CHUNK": chunk,
                "ROUND": s.UPSAMPLING == 1 and hearing == "bf16",
            },
        })  # fmt: skip
        out = self.device.empty((batch, n, s.LAYERS, s.HALF, 2), np.float32)
        self.device.launch(
            self.device.load("project", {"shape.cuh": header}),
            (-(-batch * n // _PROJECT_ROWS), -(-outputs // (PANEL * _PROJECT_WARPS))), (32 * _PROJECT_WARPS,),
            {
                "features": self.device.upload(np.ascontiguousarray(features, np.float32)),
                "project": self._weights["project"], "start": self.device.upload(starts), "out": out,
                "n": batch * n, "group": n, "inputs": channels, "outputs": outputs,
            },
        )  # fmt: skip
        return out

    # --- sample by sample ---------------------------------------------------------------------------------------

    def assumed_plan(self, batch: int, **asked: Any) -> Plan:
        """How so many streams are laid over the device, as far as is known without a compiled kernel; `asked` as in
        `plan.plan`, whose errors it raises."""
        return plan(self.shape, batch, self.dtype, self.device.properties, clusters=self._clusters, **asked)

    def plan(self, batch: int, extras: Extras = NO_EXTRAS, **asked: Any) -> Plan:
        """The same where the device has said, of the kernel with these extras, how many clusters fit. Answers are kept.

        Raises `BackendError` where the device has no room, `InputError` for what cannot be asked."""
        key = batch, tuple(sorted(asked.items()))
        if key not in self._plans:
            self._plans[key] = self._asked_plan(batch, extras, asked)
        return self._plans[key]

    def _asked_plan(self, batch: int, extras: Extras, asked: Mapping[str, Any]) -> Plan:
        device = self.device
        while (found := self.assumed_plan(batch, **asked)).clusters_assumed:  # each time of a size not asked before
            layout = found.layout(self.shape)
            kernel = self._kernel(layout, extras)
            fit = device.clusters(kernel, (layout.threads,), layout.shared, layout.blocks)
            self._clusters[layout.blocks] = fit
        return found

    def generate(
        self,
        layout: Layout,
        pipelines: int,
        streams: Streams,
        counts: NDArray[np.int32],
        heard: Heard,
        made: Made,
        temperature: float = 1.0,
        forced: Array | None = None,
        patience: int = PATIENCE,
        stream: Any = None,
    ) -> Launch:
        """Queues counts (B,) samples of every stream, cut as `layout` says over at most so many pipelines; where those
        have fewer places than there are streams, some streams follow after others. `Launch.check` tells whether all
        went well."""
        c, s, device = self.config, self.shape, self.device
        extras = Extras(forced is not None, made.logits is not None, made.trace is not None)
        kernel = self._kernel(layout, extras)
        abort = device.zeros((1,), np.uint64)
        rounds = places(layout, pipelines, counts)
        call = {
            "rings": streams.rings, "inputs": streams.inputs, "filters": streams.filters,
            "positions": streams.positions, "seeds": streams.seeds, "counts": device.upload(counts.astype(np.int32)),
            "projected": heard.projected,
            "first_q": heard.first_q, "last_column": heard.last_column, "n_columns": heard.projected.shape[1],
            **self._matrices(layout), **{name: a for name, a in self._weights.items() if name != "project"},
            **self._tables, "first_layers": device.upload(np.array(layout.first_layers or (0,), np.int32)),
            "audio": made.audio, "draws": made.draws, "logits": made.logits, "forced": forced,
            "stride": made.audio.shape[1], "logits_width": c.out_channels,
            **{f"{stage}_trace": None if made.trace is None else made.trace[stage] for stage in trace_shapes(s)},
            "temperature": temperature, "log_scale_min": self._log_scale_min,
            "preemphasis": c.signal.preemphasis, "gain": c.signal.gain, "mu": self._mu,
            "residual_scale": c.residual_scale, "skip_scale": c.skip_scale, "abort": abort, "patience": patience,
        }  # fmt: skip
        cooperative = layout.resident and not layout.cluster
        if cooperative and rounds:
            self._check_resident(kernel, layout, extras, max(len(some) for some in rounds) * layout.blocks)
        for some in rounds:
            call |= {"places": device.upload(some), **self._rooms(layout, len(some))}
            device.launch(
                kernel, (len(some) * layout.blocks,), (layout.threads,), call, shared=layout.shared,
                cluster=layout.blocks if layout.cluster else None, cooperative=cooperative,
                stream=stream,
            )  # fmt: skip
        told = device.start_download(abort, device.pinned((1,), np.uint64))
        return Launch(layout, told, patience)

    def _check_resident(self, kernel: Kernel, layout: Layout, extras: Extras, blocks: int) -> None:
        """Raises `BackendError` unless so many blocks are resident at once: they wait for each other."""
        if (layout, extras) not in self._resident:
            self._resident[layout, extras] = self.device.largest_grid(kernel, (layout.threads,), layout.shared)
        if blocks > (possible := self._resident[layout, extras]):
            raise not_resident(kernel, blocks, possible, self.device.properties)

    def _kernel(self, layout: Layout, extras: Extras) -> Kernel:
        return self.device.load(
            layout.variant, {"shape.cuh": layout.header(extras.forced, extras.logits, extras.trace)}
        )

    def _matrices(self, layout: Layout) -> dict[str, Array | None]:
        """Fragments by matrix, or as tapes, whichever the variant reads."""
        names: dict[str, Array | None] = dict.fromkeys((*STREAMED, "tapes", "tape_starts", *UNITS))
        if layout.resident:
            return names | self._on_device
        return names | self._tapes(layout.chain, layout.skip)

    @functools.cached_property
    def _on_device(self) -> dict[str, Array]:
        return {name: self.device.upload(array) for name, array in self._fragments.items()}

    @functools.lru_cache(maxsize=4)  # noqa: B019 - a model lives as long as its voice
    def _tapes(self, chain: int, skip: int) -> dict[str, Array]:
        tape, starts = tapes(self.shape, self._fragments, chain, skip)
        return {"tapes": self.device.upload(tape), "tape_starts": self.device.upload(starts)}

    def _rooms(self, layout: Layout, pipelines: int) -> dict[str, Array | None]:
        """Memory for what does not fit on the chip, and for what blocks of a grid hand over."""
        s, empty = self.shape, self.device.empty
        grid = layout.resident and not layout.cluster
        boxes = pipelines * layout.teams * layout.tiles
        carried = not layout.resident and not (layout.x_in_registers and layout.skip_in_registers)
        return {
            "logits_room": None if layout.logits_shared else empty((pipelines, layout.tile, s.A + 4), np.float32),
            "carried_room": empty((pipelines, (s.R + s.S) * layout.tile), np.float32) if carried else None,
            "mailboxes": empty((boxes, layout.mailbox["bytes"]), np.uint8) if grid else None,
            "flags": self.device.zeros((boxes, len(_WAITED_FOR)), np.uint32) if grid else None,
        }

    @property
    def _mu(self) -> float:
        head = self.config.head
        return float(head.classes - 1 if isinstance(head, CategoricalHead) else self.config.signal.mu)

    @property
    def _log_scale_min(self) -> float:
        head = self.config.head
        floor = None if isinstance(head, CategoricalHead) else head.log_scale_min
        return -float("inf") if floor is None else floor


@dataclass(frozen=True)
class Launch:
    """A launch that has been queued; `told` is its abort word on the way."""

    layout: Layout
    told: Pending
    patience: int

    def check(self) -> None:
        """Waits for the launch. Raises `BackendError` where a block waited in vain for another."""
        word = int(self.told.wait()[0])
        if not word:
            return
        block, tile, what = word & 0xFFFFFF, word >> 24 & 0xFFFFFF, word >> 48 & 0xFF
        blocks = self.layout.blocks
        raise BackendError(
            f"the kernel gave up: block {block % blocks} of pipeline {block // blocks} waited more than "
            f"{self.patience:,} clock cycles for {_WAITED_FOR[what]} of tile {tile}. Nothing was "
            "made; if the GPU is not stopped by a debugger or shared with others, please report this"
        )


def places(layout: Layout, pipelines: int, counts: NDArray[Any]) -> list[NDArray[np.int32]]:
    """Which stream is where, for one launch after the other: (pipelines or fewer, tiles, N), −1 for none.

    Streams that end together share a tile, so that one that ends early soon costs nothing; tiles go round the
    pipelines; streams that make nothing have no place."""
    order = np.argsort(-np.asarray(counts), kind="stable")
    order = order[np.asarray(counts)[order] > 0].astype(np.int32)
    capacity, rounds = pipelines * layout.tiles * layout.tile, []
    for first in range(0, len(order), capacity):
        some = order[first : first + capacity]
        used = min(pipelines, -(-len(some) // layout.tile))
        room = np.full(used * layout.tiles * layout.tile, -1, np.int32)
        room[: len(some)] = some
        rounds.append(np.ascontiguousarray(room.reshape(layout.tiles, used, layout.tile).swapaxes(0, 1)))
    return rounds


def trace_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Stage → what the sample loop leaves of it for every sample, padded."""
    s = shape
    return {
        "conditioning": (s.LAYERS, s.HALF, 2), "embed": (s.R,), "gate": (s.LAYERS, s.HALF), "x": (s.LAYERS, s.R),
        "skip": (s.S,), "hidden": (s.H,),
    }  # fmt: skip


def check_size(config: WaveNetConfig) -> None:
    """Raises `BackendError` where a matrix of the model has 2^31 bytes or more when padded: within that, and within the
    rings of a stream, which `config.MAX_RING_BYTES` keeps below that, the kernels count in 32 bits."""
    s = Shape.of(config)
    columns = s.HOP if s.UPSAMPLING == 2 else 3
    sizes = {
        "dilated weights": s.LAYERS * s.K * s.R * 2 * s.HALF * 4,
        "skip weights": s.LAYERS * s.HALF * s.S * 4, "weights of the head": s.H * max(s.S, s.A) * 4,
        "projections of a frame": columns * s.LAYERS * 2 * s.HALF * 4,
    }  # fmt: skip
    for name, size in sizes.items():
        if size >= 2**31:
            raise BackendError(
                f"the {name} of this model are {size:,} bytes; the cuda kernels take fewer than {2**31:,}. Use backend "
                "'cpu'"
            )
