"""The backend `cuda`: the kernels of kernels/cuda behind the contract of `base.Engine`, on a GPU or emulated.

Who does what: the conditioning network runs on the host, frame by frame, as in the reference; its output is projected
to all layers on the device; the sample loop is one launch for each window of frames, cut for the device and the number
of streams as `plan` says. While one window is made, the one before it is copied to the host. Memory and launches go
through the CUDA driver alone: a PyTorch with CUDA is not needed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import WaveNetConfig
from ..errors import BackendError, InputError
from ..kernels.cuda.arrays import Array
from ..kernels.cuda.device import Device, Pending
from ..kernels.cuda.launches import PATIENCE, Extras, Heard, Launch, Made, Streams, trace_shapes
from ..kernels.cuda.model import Model
from ..kernels.cuda.plan import as_dict, explain
from ..packing import DTYPES
from .base import Plan
from .gpu import cuda_index
from .gpu_engine import GpuEngine, Window
from .host_engine import Call
from .host_state import HostState

PATIENCE_VARIABLE = "WAVENET_FAST_GPU_PATIENCE"
_STATE_FORMAT = "cuda 1"


def device_for(name: str) -> Device:
    """ "cuda", "cuda:N", "emulated" (as compiled for sm_90) or "emulated:sm_N"."""
    if (emulated := re.fullmatch(r"emulated(?::sm_(\d+))?", name)) is not None:
        from ..kernels.cuda.emulated_device import EmulatedDevice

        return EmulatedDevice(int(emulated[1] or 90))
    from ..kernels.cuda.cuda_device import CudaDevice

    return CudaDevice(cuda_index(name))


def patience_cycles(seconds: float | None, device: Device) -> int:
    """Clock cycles that a block waits for another, of seconds or else of the environment variable.

    Raises `InputError` for seconds that are none, `BackendError` where the variable holds none."""
    given = os.environ.get(PATIENCE_VARIABLE, "") if seconds is None else seconds
    if given == "":
        return int(PATIENCE)
    try:
        cycles = float(given) * device.clock
    except (TypeError, ValueError):
        cycles = 0.0
    if not 1 <= cycles < 2**63:
        kind, what = (BackendError, PATIENCE_VARIABLE) if seconds is None else (InputError, "patience")
        raise kind(f"{what} is {given!r}; give the seconds that a block of a kernel may wait for another, such as 30")
    return int(cycles)


class CudaState(HostState):
    """`rings` (B, slots, R padded), on the device: for each layer in turn as many slots as the first power of two above
    (K−1)·D; slot t mod slots is the layer's input at sample t, an operand in the model's number format, in int8 with
    its unit in the four bytes behind it."""

    engine: CudaEngine

    def __init__(self, engine: CudaEngine, seeds: NDArray[np.uint64], speakers: NDArray[np.float32]) -> None:
        model = engine.model
        self.rings = model.device.zeros((len(seeds), model.shape.SLOTS, model.ring_row), model.operand)
        super().__init__(engine, seeds, speakers)

    def _zero_rings(self, mask: NDArray[np.bool_]) -> None:
        for b in np.flatnonzero(mask):
            self.engine.model.device.fill_zero(self.rings.part(int(b), int(b) + 1))

    def _saved_rings(self) -> dict[str, NDArray[Any]]:
        rings, R = self.engine.model.device.download(self.rings), self.engine.model.shape.R
        saved = {"rings": rings[..., : self.engine.config.residual_channels].copy()}
        if self.engine.dtype == "int8":
            saved["ring_units"] = np.ascontiguousarray(rings[..., R : R + 4]).view(np.float32)[..., 0]
        return saved

    def _load_rings(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        rings = np.zeros(self.rings.shape, self.rings.dtype)
        rings[..., : self.engine.config.residual_channels] = arrays["rings"]
        if self.engine.dtype == "int8":
            R = self.engine.model.shape.R
            rings[..., R : R + 4] = arrays["ring_units"][..., None].view(np.int8)
        self.engine.model.device.upload(rings, self.rings)

    def _copied_rings(self) -> Array:
        device = self.engine.model.device
        copied = device.empty(self.rings.shape, self.rings.dtype)
        device.copy(copied, self.rings)
        return copied

    def _put_back_rings(self, copied: Array) -> None:
        self.engine.model.device.copy(self.rings, copied)


@dataclass(frozen=True)
class _OnItsWay:
    """A window that is being made, and copied to the host."""

    window: Window
    launch: Launch
    copies: Mapping[str, Pending]
    made: Made


class CudaEngine(GpuEngine[CudaState]):
    """A model made ready for a GPU, or for its emulation; immutable. Implements `base.Engine`.

    dtype   "fp32" (IEEE), "fp16", "bf16" or "int8": of weights and of the activations that meet them
    device  "cuda", "cuda:N", "emulated" or "emulated:sm_N", or a `kernels.cuda.device.Device`
    patience  seconds that a block of a kernel waits for another before it gives up, about; the environment variable
              WAVENET_FAST_GPU_PATIENCE or half a minute unless given
    asked   `variant`, `tile`, `blocks` of `kernels.cuda.plan.plan`, where the planner is not to choose

    Raises `BackendError` for weights that do not fit the number format, and where the kernels do not fit the GPU.
    """

    name = "cuda"

    def __init__(
        self,
        config: WaveNetConfig,
        weights: Mapping[str, NDArray[np.float32]],
        dtype: str = "bf16",
        device: str | Device = "cuda",
        *,
        patience: float | None = None,
        **asked: Any,
    ) -> None:
        if dtype not in DTYPES:
            raise BackendError(f"dtype is {dtype!r}; the cuda backend offers {', '.join(DTYPES)}")
        super().__init__(config, weights, dtype, _STATE_FORMAT)
        where = device_for(device) if isinstance(device, str) else device
        self.asked, self.patience = asked, patience_cycles(patience, where)
        self.model = Model(config, weights, dtype, where)
        self.shape = self.model.shape
        self.isa = f"sm_{where.capability}" + ("" if str(device).startswith("cuda") else ", emulated")
        self.model.assumed_plan(1, **asked)  # what fits no block is refused now, not when somebody speaks

    @property
    def weight_bytes(self) -> int:
        """Of the packed matrices that every sample passes, padding included."""
        return int(self.model.weight_bytes)

    def explain(self, streams: int, threads: int) -> Plan:
        """What `kernels.cuda.plan` decides, and why; `details` as its `as_dict` gives them."""
        plan = self.model.assumed_plan(streams, **self.asked)
        return Plan(f"cuda, {explain(plan)}", as_dict(plan))

    def _new_state(self, seeds: NDArray[np.uint64], speakers: NDArray[np.float32]) -> CudaState:
        return CudaState(self, seeds, speakers)

    # --- one call -----------------------------------------------------------------------------------------------

    def _run(self, state: CudaState, call: Call) -> None:
        self._presume(state, call)
        model, device = self.model, self.model.device
        starts = model.starts(state.speakers)
        inputs = device.upload(self._rolled(state.inputs, state.positions))
        filters = device.upload(state.filters)
        seeds = device.upload(state.seeds)
        total, done = int(call.counts.sum()), 0
        before: _OnItsWay | None = None
        for window in self._windows(state, call):
            positions = device.upload(state.positions + window.done)
            streams = Streams(state.rings, inputs, filters, positions, seeds)
            now = self._launch(state, call, window, streams, starts)
            if before is not None:
                done += self._finish(call, before)
                if call.progress is not None:
                    call.progress(done, total)
            before = now
        assert before is not None
        self._finish(call, before)
        state.inputs[:] = self._unrolled(device.download(inputs), state.positions + call.counts)
        state.filters[:] = device.download(filters)

    def _launch(
        self, state: CudaState, call: Call, window: Window, streams: Streams, starts: NDArray[np.float32]
    ) -> _OnItsWay:
        model, device, n = self.model, self.model.device, window.steps
        features = self._window_features(state, call, window)
        heard = Heard(
            model.project(features.rows, starts), device.upload(features.first_q), device.upload(features.last_column)
        )
        shape = state.batch, n
        logits = None if call.logits is None else device.empty((*shape, self.config.out_channels), np.float32)
        trace = None
        if call.stages is not None:
            trace = {
                name: device.empty((*shape, *rest), np.float32) for name, rest in trace_shapes(model.shape).items()
            }
        made = Made(device.empty(shape, np.float32), device.empty(shape, np.float32), logits, trace)
        forced = None
        if call.forced is not None:
            forced = device.upload(np.ascontiguousarray(call.forced[:, window.done : window.done + n]))
        extras = Extras(forced is not None, logits is not None, trace is not None)
        plan = model.plan(state.batch, extras, **self.asked)
        launch = model.generate(
            plan.layout(model.shape), plan.pipelines, streams, window.counts, heard, made, call.temperature, forced,
            self.patience, trusted=True,
        )  # fmt: skip
        wanted = {"audio": call.audio, "draws": call.raw, "logits": call.logits}
        copies = {}
        for name, where in wanted.items():
            array = getattr(made, name)
            if where is not None:
                copies[name] = device.start_download(array, device.pinned(array.shape, np.float32))
        return _OnItsWay(window, launch, copies, made)

    def _finish(self, call: Call, it: _OnItsWay) -> int:
        """Waits for a window, gives its results to the call up to each stream's count, and says how many samples."""
        it.launch.check()
        wanted = {"audio": call.audio, "draws": call.raw, "logits": call.logits}
        for name, pending in it.copies.items():
            found, to = pending.wait(), wanted[name]
            assert to is not None
            for b, count in enumerate(it.window.counts):
                to[b, it.window.done : it.window.done + int(count)] = found[b, :count]
        if call.stages is not None and it.made.trace is not None:
            download = self.model.device.download
            call.stages.update(self._unpadded({name: download(stage)[0] for name, stage in it.made.trace.items()}))
        return int(it.window.counts.sum())
