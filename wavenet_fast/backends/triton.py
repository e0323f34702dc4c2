"""The backend `triton`: the kernels of kernels/triton behind the contract of `base.Engine`, on a GPU or emulated.

Who does what: the conditioning network runs on the host, frame by frame, as in the reference; its output is projected
to all layers on the device; the sample loop is one launch for each window of frames. Where the history is known
(`forced`), all samples of a window are made at once instead, layer by layer, and the same bits come out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config import WaveNetConfig
from ..errors import BackendError, InputError
from ..kernels.triton.launch import CudaLauncher, EmulatedLauncher, Launcher
from ..kernels.triton.model import Heard, Model, trace_shapes
from ..rng import uniforms
from .features import Features
from .gpu import cuda_index
from .host_engine import Call, HostEngine
from .host_state import HostState

DTYPES = ("fp32", "fp16", "bf16")
_WINDOW_BYTES = 128 << 20
"""Of what the samples of one window hear, and of their activations where all are made at once; more only where a single
frame of the batch needs it."""
_LAUNCH_PRODUCTS = 1 << 33
"""Multiply-adds of one stream in one launch, about: between launches progress is told and Ctrl-C heard, and a driver
that watches over a display does not lose patience."""
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


@dataclass(frozen=True)
class _Window:
    """Frames that one launch makes: for each stream `counts` samples from `done` on; `steps` is the largest count."""

    first_frames: NDArray[np.int64]
    counts: NDArray[np.int64]
    done: int
    steps: int


class TritonEngine(HostEngine[TritonState]):
    """A model made ready for a GPU, or for its emulation; immutable. Implements `base.Engine`.

    dtype     "fp32" (IEEE), "fp16" or "bf16": of weights and of the activations that meet them
    device    "cuda", "cuda:N", "emulated" or "emulated:sm_N"
    launcher  another way to run the kernels, for tests

    Raises `BackendError` for weights that do not fit the number format, and where the kernels do not fit the GPU.
    """

    name = "triton"

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
        self.isa = f"sm_{launcher.capability}" + ("" if device.startswith("cuda") else f", {device.partition(':')[0]}")
        self._features = Features(config, weights)
        if launcher.device.type == "cuda":
            self.model.load()

    @property
    def weight_bytes(self) -> int:
        """Of the packed matrices that every sample passes, padding included."""
        return int(self.model.weight_bytes)

    def _new_state(self, seeds: NDArray[np.uint64], speakers: NDArray[np.float32]) -> TritonState:
        return TritonState(self, seeds, speakers)

    def trace(
        self, mel: NDArray[np.float32], forced: NDArray[Any], seed: int = 0, speaker: NDArray[np.float32] | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """Every stage of one utterance under forced history, as `cpu.CpuEngine.trace` gives them, made by the sample
        loop itself."""
        T, frames = mel.shape[-1] * self.config.hop_length, mel.shape[-1]
        stages: dict[str, NDArray[np.float32]] = {"logits": np.empty((1, T, self.config.out_channels), np.float32)}
        state = self.start(np.array([seed], np.uint64), None if speaker is None else np.asarray(speaker)[None])
        self._advance(
            state, mel[None], np.array([frames]), np.array([True]), 1.0, 1, np.asarray(forced)[None],
            stages["logits"], True, None, stages,
        )  # fmt: skip
        stages["logits"] = stages["logits"][0]
        return stages

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
        starts = self.model.starts(self.model.tensor(state.speakers))
        total, made = int(call.counts.sum()), 0
        for window in self._windows(state, call):
            heard = self._heard(state, call, window, starts)
            if call.forced is not None and call.stages is None:
                self._score(state, call, window, heard)
            else:
                self._generate(state, call, window, heard)
            made += int(window.counts.sum())
            if call.progress is not None and made < total:
                call.progress(made, total)

    def _windows(self, state: TritonState, call: Call) -> Iterator[_Window]:
        s, hop = self.model.shape, self.config.hop_length
        frame = s.LAYERS * 2 * s.HALF * (hop if s.UPSAMPLING == 2 else 1)
        if call.forced is not None:
            frame += hop * (2 * s.R + 2 * s.S + s.H + 2 * s.A)
        sample = s.LAYERS * s.HALF * (2 * s.K * s.R + s.R + s.S) + s.H * (s.S + s.A)
        frames = max(1, min(_WINDOW_BYTES // (4 * frame * state.batch) - 2, _LAUNCH_PRODUCTS // (sample * hop)))
        if call.stages is not None:
            frames = call.longest // hop
        for done in range(0, call.longest, frames * hop):
            counts = np.clip(call.counts - done, 0, frames * hop)
            yield _Window((state.positions + done) // hop, counts, done, int(counts.max()))

    def _heard(self, state: TritonState, call: Call, window: _Window, starts: Tensor) -> Heard:
        """The conditioning of a window: features on the host, stream by stream, projected on the device."""
        c, hop = self.config, self.config.hop_length
        rows, first_q = [], np.zeros(state.batch, np.int32)
        for b in range(state.batch):
            first = int(window.first_frames[b])
            last = first + int(window.counts[b]) // hop
            mel, begin_mel = self._frames(state, call, b, first, last)
            part, begin = self._features.rows(mel, begin_mel, first, last)
            rows.append(part)
            first_q[b] = 0 if begin is None else first * hop + c.conditioning.offset - begin * hop
        width = max(len(part) for part in rows)
        features = torch.zeros(state.batch, max(width, 1), c.conditioning_channels, dtype=torch.float32)
        for b, part in enumerate(rows):
            features[b, : len(part)] = part
        last_column = np.array([max(len(part) - 1, 0) for part in rows], np.int32)
        projected = self.model.project(features.to(self.model.launcher.device), starts)
        return Heard(projected, self.model.tensor(first_q), self.model.tensor(last_column))

    def _frames(self, state: TritonState, call: Call, b: int, first: int, last: int) -> tuple[NDArray[np.float32], int]:
        """The mel (M, n) that frames first … last − 1 depend on, of what is held and what has come, and its first
        frame."""
        held, known = int(state.mel_frames[b]), int(state.frames[b])
        begin = max(first - self._context, known - held, 0)
        end = min(last + self.kept - self._context, known + int(call.frames[b]))
        old = (
            state.mel[b, held - (known - begin) : held - max(known - end, 0)].T if begin < known else state.mel[b, :0].T
        )
        new = call.mel[b, :, max(begin - known, 0) : max(end - known, 0)]
        return np.concatenate([old, new], axis=1), begin

    # --- sample by sample ---------------------------------------------------------------------------------------

    def _generate(self, state: TritonState, call: Call, window: _Window, heard: Heard) -> None:
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
            call.stages.update(self._unpadded(trace))

    def _rolled(self, inputs: NDArray[np.float32], positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Past inputs (B, taps), oldest first → the ring (B, IN_DEPTH) in which x[t] lies at slot t mod IN_DEPTH."""
        taps, depth = inputs.shape[1], self.model.shape.IN_DEPTH
        ring = np.zeros((len(inputs), depth), np.float32)
        np.put_along_axis(ring, (positions[:, None] - taps + np.arange(taps)) % depth, inputs, axis=1)
        return ring

    def _unrolled(self, ring: NDArray[np.float32], positions: NDArray[np.int64]) -> NDArray[np.float32]:
        taps, depth = self.config.input.kernel_size, self.model.shape.IN_DEPTH
        return np.take_along_axis(ring, (positions[:, None] - taps + np.arange(taps)) % depth, axis=1)

    @staticmethod
    def _give(
        call: Call, window: _Window, audio: NDArray[np.float32], draws: NDArray[np.float32], logits: Tensor | None
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

    def _unpadded(self, trace: Mapping[str, Tensor]) -> dict[str, NDArray[np.float32]]:
        """The stages of one utterance by the names of `reference.Reference`."""
        c, half = self.config, self.config.gate_channels // 2
        a = {name: tensor[0].cpu().numpy() for name, tensor in trace.items()}
        heard = a["conditioning"].reshape(*a["gate"].shape, 2)[:, :, :half]
        stages = {
            "conditioning": heard.swapaxes(2, 3).reshape(*heard.shape[:2], -1),
            "embed": a["embed"][:, : c.residual_channels], "skip": a["skip"][:, : c.skip_channels],
            "hidden": a["hidden"][:, : c.head_channels],
        }  # fmt: skip
        stages |= {f"gate.{i}": a["gate"][:, i, :half] for i in range(c.n_layers)}
        return stages | {f"x.{i}": a["x"][:, i, : c.residual_channels] for i in range(c.n_layers - 1)}

    # --- all samples at once ------------------------------------------------------------------------------------

    def _score(self, state: TritonState, call: Call, window: _Window, heard: Heard) -> None:
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
