"""A model on a device: its packed weights and tables, and every kernel called with them.

B streams, T samples, F columns of conditioning; the letters of padded sizes are those of `shapes.Shape`. Arrays are
`arrays.Array`s of the device.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wavenet_fast.config import WaveNetConfig
from wavenet_fast.errors import BackendError
from wavenet_fast.packing import hearing_format
from wavenet_fast.sampling import check_temperature

from ..tables import log_scale_min, mu_of, tables
from .arguments import check_patience, check_values, checked, counted
from .arrays import Array
from .device import Device, Kernel, not_resident
from .launches import (
    NO_EXTRAS,
    PATIENCE,
    Extras,
    Heard,
    Launch,
    Made,
    Ready,
    Streams,
    places,
    trace_shapes,
)
from .layout import FORMATS, Layout, header_text
from .packing import STREAMED, pack, tapes
from .plan import Plan, plan
from .shapes import PANEL, Shape, padded

OPERANDS: dict[str, np.dtype[Any]] = {
    "fp32": np.dtype(np.float32),
    "bf16": np.dtype(np.uint16),
    "fp16": np.dtype(np.float16),
    "int8": np.dtype(np.int8),
}
"""Number format → how operands lie in arrays; bf16 as its upper 16 bits."""

UNITS = tuple(f"{name}_units" for name in STREAMED)
_PROJECT_WARPS, _PROJECT_ROWS, _PROJECT_CHUNK = 4, 32, 128


class Model:
    """Immutable, but for what it remembers of plans and of the device's answers. `dtype` is the number format: "fp32",
    "bf16", "fp16" or "int8".

    Raises `BackendError` where a weight is too large for fp16, or the model for 32-bit indices."""

    def __init__(
        self, config: WaveNetConfig, weights: Mapping[str, NDArray[np.float32]], dtype: str, device: Device
    ) -> None:
        check_size(config)
        self.config, self.dtype, self.device, self.shape = config, dtype, device, Shape.of(config, dtype)
        self.operand: np.dtype[Any] = OPERANDS[dtype]
        self._plans: dict[Any, Plan] = {}
        self._tapes_made: dict[tuple[int, int], dict[str, Array]] = {}
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
        s = self.shape
        batch, n, channels = features.shape
        outputs = s.LAYERS * s.HALF * 2
        header = project_header(self.config, self.dtype, channels)
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

    def ready(
        self,
        layout: Layout,
        pipelines: int,
        streams: Streams,
        counts: Any,
        heard: Heard,
        made: Made,
        temperature: float = 1.0,
        forced: Any = None,
        patience: int = PATIENCE,
        *,
        trusted: bool = False,
    ) -> Ready:
        """Everything checked, uploaded and allocated for a launch that makes counts (B,) samples of every stream, cut
        as `layout` says over at most so many pipelines; where those have fewer places than there are streams, some
        streams follow after others.

        counts    integers of the host, or (B,) int32 on the device, which is then read once here
        forced    (B, T) fp32, heard in the place of the draws: classes as numbers, or values; or None
        patience  clock cycles that a block waits for another
        trusted   whether numbers on the device are known to be possible; otherwise those that lead a kernel out of its
                  tables are read back and checked, which waits for the work that was asked for

        Arrays are the device's own or whatever `Device.view` takes, and are used where they lie. Raises `ShapeError`
        and `InputError` with the name of what does not fit, `BackendError` for what lies elsewhere."""
        c, s, device = self.config, self.shape, self.device
        numbers, counts_there = counted(device, counts)
        given = checked(self, streams, numbers, heard, made, forced)
        if not trusted:
            check_values(self, given)
        check_patience(patience)
        check_temperature(temperature)
        warmth = min(max(float(temperature), 1e-37), 3e38)
        extras = Extras(given.forced is not None, given.made.logits is not None, bool(given.made.trace))
        kernel = self._kernel(layout, extras)
        rounds = places(layout, pipelines, numbers)
        if layout.resident and not layout.cluster and rounds:
            self._check_resident(kernel, layout, extras, len(rounds[0]) * layout.blocks)
        abort, made, streams, heard = device.zeros((1,), np.uint64), given.made, given.streams, given.heard
        call = {
            "rings": streams.rings, "inputs": streams.inputs, "filters": streams.filters,
            "positions": streams.positions, "seeds": streams.seeds, "counts": counts_there,
            "projected": heard.projected,
            "first_q": heard.first_q, "last_column": heard.last_column, "n_columns": heard.projected.shape[1],
            **self._matrices(layout), **{name: a for name, a in self._weights.items() if name != "project"},
            **self._tables, "first_layers": device.upload(np.array(layout.first_layers or (0,), np.int32)),
            "audio": made.audio, "draws": made.draws, "logits": made.logits, "forced": given.forced,
            "stride": made.audio.shape[1], "logits_width": c.out_channels,
            **{f"{stage}_trace": None if made.trace is None else made.trace[stage] for stage in trace_shapes(s)},
            "temperature": warmth, "sharpness": math.log2(math.e) / warmth, "log_scale_min": log_scale_min(c.head),
            "preemphasis": c.signal.preemphasis, "gain": c.signal.gain, "mu": mu_of(c),
            "residual_scale": c.residual_scale, "skip_scale": c.skip_scale, "abort": abort, "patience": patience,
            **self._rooms(layout, len(rounds[0]) if rounds else 0),
        }  # fmt: skip
        calls = tuple({**call, "places": device.upload(some)} for some in rounds)
        return Ready(device, layout, kernel, calls, call, abort, patience)

    def generate(self, *given: Any, stream: Any = None, **more: Any) -> Launch:
        """Queues what `ready` makes ready; `stream` as for `Device.launch`. `Launch.check` tells whether all went
        well."""
        ready = self.ready(*given, **more)
        ready.launch(stream)
        told = self.device.start_download(ready.abort, self.device.pinned((1,), np.uint64))
        return Launch(ready.layout, told, ready.patience)

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

    def _tapes(self, chain: int, skip: int) -> dict[str, Array]:
        if (chain, skip) not in self._tapes_made:
            tape, starts = tapes(self.shape, self._fragments, chain, skip)
            made = {"tapes": self.device.upload(tape), "tape_starts": self.device.upload(starts)}
            self._tapes_made[chain, skip] = made
        return self._tapes_made[chain, skip]

    def _rooms(self, layout: Layout, pipelines: int) -> dict[str, Array | None]:
        """Memory for what does not fit on the chip, and for what blocks of a grid hand over."""
        s, empty = self.shape, self.device.empty
        grid = layout.resident and not layout.cluster
        boxes = pipelines * layout.teams * layout.tiles
        carried = not layout.resident and not (layout.x_in_registers and layout.skip_in_registers)
        return {
            "logits_room": None if layout.logits_shared else empty((pipelines, layout.tile, s.A + 4), np.float32),
            "carried_room": empty((pipelines, (s.R + s.S) * layout.tile), np.float32) if carried else None,
            "mailboxes": empty((boxes, layout.mailbox["bytes"]), np.uint8)
            if grid
            else None,  # `Ready.launch` empties them
            "flags": empty((boxes,), np.uint32) if layout.team > 1 else None,
        }


def project_header(config: WaveNetConfig, dtype: str, channels: int) -> str:
    """The text of "shape.cuh" for `project`, of a model that hears so many channels."""
    s, hearing = Shape.of(config, dtype), hearing_format(dtype)
    inputs = padded(channels)
    return header_text({
        "plan": {"FORMAT": FORMATS[hearing], "N": _PROJECT_ROWS, "USED": _PROJECT_ROWS, "AHEAD": 1},
        "project_plan": {
            "WARPS": _PROJECT_WARPS, "INPUTS": inputs, "CHUNK": inputs if inputs <= _PROJECT_CHUNK else PANEL,
            "ROUND": s.UPSAMPLING == 1 and hearing == "bf16",
        },
    })  # fmt: skip


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
