"""The backend `triton`: the kernels of kernels/triton behind the contract of `base.Engine`, on a GPU or emulated.

Who does what: the conditioning network runs on the host, frame by frame, as in the reference; its output is projected
to all layers on the device; the sample loop is one launch for each window of frames. Where the history is known
(`forced`), all samples of a window are made at once instead, layer by layer, and the same bits come out.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config import WaveNetConfig
from ..errors import BackendError, InputError
from ..kernels.triton.launch import CudaLauncher, EmulatedLauncher, Launcher
from ..kernels.triton.model import Heard, Model, trace_shapes
from ..kernels.triton.tuning import for_generate
from ..rng import uniforms
from .base import Plan
from .gpu import cuda_index
from .gpu_engine import DTYPES, GpuEngine, Rows, Window
from .host_engine import Call
from .host_state import HostState

_STATE_FORMAT = "triton 1"


def launcher_for(device: str) -> Launcher:
    """ "cuda", "cuda:N", "emulated" (as compiled for sm_90) or "emulated:sm_N"."""
    if (emulated := re.fullmatch(r"emulated(?::sm_(\d+))?", device)) is not None:
        return EmulatedLauncher(int(emulated[1] or 90))
    return CudaLauncher(torch.device("cuda", cuda_index(device)))


class TritonState(HostState):
    """`rings` (B, slots, R padded), on the device: for each layer in turn as many slots as the first power
    of two above (K−1)·D; slot t mod slots is the layer's input at sample t, an operand in the model's number format."""

    engine: TritonEngine

    def __init__(self, engine: TritonEngine, seeds: NDArray[np.uint64], speakers: NDArray[np.float32]) -> None:
        model, batch = engine.model, len(seeds)
        shape = (batch, model.shape.SLOTS, model.shape.R)
        try:
            self.rings = torch.zeros(shape, dtype=model.operand, device=model.launcher.device)
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
            size = np.prod(shape, dtype=float) * model.operand.itemsize / 2**30
            raise InputError(f"{batch} streams need {size:.1f} GiB of history, which is not there; use fewer") from None
        super().__init__(engine, seeds, speakers)

    def _zero_rings(self, mask: NDArray[np.bool_]) -> None:
        self.rings[torch.from_numpy(mask).to(self.rings.device)] = 0

    def _saved_rings(self) -> dict[str, NDArray[Any]]:
        rings = self.rings[..., : self.engine.config.residual_channels].cpu().contiguous()
        if rings.dtype == torch.bfloat16:
            return {"rings": rings.view(torch.int16).numpy().view(np.uint16).copy()}
        return {"rings": rings.numpy().copy()}

    def _load_rings(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        rings = self.engine.model.tensor(arrays["rings"])
        self.rings[..., : rings.shape[-1]] = rings

    def _copied_rings(self) -> Tensor:
        return self.rings.clone()

    def _put_back_rings(self, copied: Tensor) -> None:
        self.rings.copy_(copied)


def _out_of_memory(error: RuntimeError) -> bool:
    """Whether torch says so, of a GPU or of this machine."""
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)


class TritonEngine(GpuEngine[TritonState]):
    """A model made ready for a GPU, or for its emulation; immutable. Implements `base.Engine`.

    dtype     "fp32" (IEEE), "fp16" or "bf16": of weights and of the activations that meet them
    device    "cuda", "cuda:N", "emulated" or "emulated:sm_N"
    launcher  another way to run the kernels, for tests

    Raises `BackendError` for weights that do not fit the number format, and where the kernels do not fit the GPU.
    """

    name = "triton"
    all_at_once = True

    def __init__(
        self,
        config: WaveNetConfig,
        weights: Mapping[str, NDArray[np.float32]],
        dtype: str = "bf16",
        device: str = "cuda",
        launcher: Launcher | None = None,
    ) -> None:
        if dtype not in DTYPES:
            raise BackendError(f"dtype is {dtype!r}; the triton backend offers {', '.join(DTYPES)}")
        super().__init__(config, weights, dtype, _STATE_FORMAT)
        launcher = launcher_for(device) if launcher is None else launcher
        self.model = Model.from_weights(config, weights, dtype, launcher)
        self.shape = self.model.shape
        self.isa = f"sm_{launcher.capability}" + ("" if device.startswith("cuda") else f", {device.partition(':')[0]}")
        if launcher.device.type == "cuda":
            self.model.load()

    @property
    def weight_bytes(self) -> int:
        """Of the packed matrices that every sample passes, padding included."""
        return int(self.model.weight_bytes)

    def explain(self, streams: int, threads: int) -> Plan:
        options = for_generate(self.model.shape, self.dtype, self.model.launcher.capability)
        blocks = -(-streams // options.tile)
        return Plan(
            f"triton, {self.dtype}, {self.isa}: one launch of {blocks} block{'s' * (blocks > 1)} of {options.warps} "
            f"warps, each with up to {options.tile} streams",
            {"blocks": blocks} | dataclasses.asdict(options),
        )

    def _new_state(self, seeds: NDArray[np.uint64], speakers: NDArray[np.float32]) -> TritonState:
        return TritonState(self, seeds, speakers)

    # --- one call -----------------------------------------------------------------------------------------------

    def _advance(self, state: TritonState, *arguments: Any) -> tuple[NDArray[Any], NDArray[np.int64]]:
        try:
            return super()._advance(state, *arguments)
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
            raise InputError(
                f"{state.batch} streams at once need more memory than {self.model.launcher.device} has left (a copy of"
                " their histories is kept while a call runs, so that a failure can undo it); use fewer"
            ) from None

    def _run(self, state: TritonState, call: Call) -> None:
        self._presume(state, call)
        starts = self.model.starts(self.model.tensor(state.speakers))
        total, made = int(call.counts.sum()), 0
        for window in self._windows(state, call):
            heard = self._heard(self._window_features(state, call, window), starts)
            if call.forced is not None and call.stages is None:
                self._score(state, call, window, heard)
            else:
                self._generate(state, call, window, heard)
            made += int(window.counts.sum())
            if call.progress is not None and made < total:
                call.progress(made, total)

    def _heard(self, features: Rows, starts: Tensor) -> Heard:
        tensor = self.model.tensor
        projected = self.model.project(tensor(features.rows), starts)
        return Heard(projected, tensor(features.first_q), tensor(features.last_column))

    # --- sample by sample ---------------------------------------------------------------------------------------

    def _generate(self, state: TritonState, call: Call, window: Window, heard: Heard) -> None:
        model, n = self.model, window.steps
        positions = state.positions + window.done
        inputs = model.tensor(self._rolled(state.inputs, positions))
        filters = model.tensor(state.filters)
        piece = slice(window.done, window.done + n)
        forced = None if call.forced is None else model.tensor(call.forced[:, piece])
        trace = None
        if call.stages is not None:
            trace = {name: model.empty(state.batch, n, *shape) for name, shape in trace_shapes(model.shape).items()}
        made = model.generate(
            state.rings, inputs, filters, model.tensor(positions), model.tensor(state.seeds.view(np.int64)),
            model.tensor(window.counts.astype(np.int32)), heard, n, call.temperature, forced,
            call.logits is not None, trace,
        )  # fmt: skip
        state.inputs[:] = self._unrolled(inputs.cpu().numpy(), positions + window.counts)
        state.filters[:] = filters.cpu().numpy()
        logits = None if made.logits is None else made.logits.cpu()
        self._give(call, window, made.audio.cpu().numpy(), made.draws.cpu().numpy(), logits)
        if trace is not None and call.stages is not None:
            call.stages.update(self._unpadded({name: stage[0].cpu().numpy() for name, stage in trace.items()}))

    @staticmethod
    def _give(
        call: Call, window: Window, audio: NDArray[np.float32], draws: NDArray[np.float32], logits: Tensor | None
    ) -> None:
        """A window's results (B, steps, …) to where the call wants them, up to each stream's count."""
        for b, count in enumerate(window.counts):
            to = slice(window.done, window.done + int(count))
            if call.audio is not None:
                call.audio[b, to] = audio[b, :count]
            if call.raw is not None:
                call.raw[b, to] = draws[b, :count]
            if call.logits is not None and logits is not None:
                call.logits[b, to] = logits[b, :count].numpy()

    # --- all samples at once ------------------------------------------------------------------------------------

    def _score(self, state: TritonState, call: Call, window: Window, heard: Heard) -> None:
        model, c, n = self.model, self.config, window.steps
        assert call.forced is not None
        positions = state.positions + window.done
        past = call.forced[:, window.done : window.done + n]
        history = np.concatenate([state.inputs, past], axis=1)
        logits = model.score(
            state.rings, model.tensor(history), positions, window.counts, heard
        )  # fmt: skip
        u = uniforms(state.seeds[:, None], positions[:, None] + np.arange(n)[None])
        flat = logits.view(-1, logits.shape[-1])
        draws = model.draw(flat, model.tensor(u.reshape(-1, 4)), call.temperature).view(-1, n)
        filters = model.tensor(state.filters)
        audio = model.decode(draws, model.tensor(past), filters, model.tensor(window.counts.astype(np.int32)))
        state.filters[:] = filters.cpu().numpy()
        taps = np.arange(state.inputs.shape[1])
        for b, count in enumerate(window.counts):
            state.inputs[b] = history[b, count + taps]
        wanted = None if call.logits is None else logits[..., : c.out_channels].cpu()
        self._give(call, window, audio.cpu().numpy(), draws.cpu().numpy(), wanted)
