"""What the GPU backends share: a call cut into windows of frames, the conditioning network on the host, and the small
arrays of a state as kernels want them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..config import WaveNetConfig
from ..kernels.tables import depths
from .features import Features
from .host_engine import Call, HostEngine
from .host_state import HostState
from .steady import SteadyPast, as_operands

DTYPES = ("fp32", "fp16", "bf16")
_WINDOW_BYTES = 128 << 20
"""Of what the samples of one window hear, and of their activations where all are made at once; more only where a single
frame of the batch needs it."""
_LAUNCH_PRODUCTS = 1 << 33
"""Multiply-adds of one stream in one launch, about: between launches progress is told and Ctrl-C heard, and a driver
that watches over a display does not lose patience."""

S = TypeVar("S", bound=HostState)


class PaddedShape(Protocol):
    """The letters of a model, padded as its kernels want them."""

    @property
    def LAYERS(self) -> int: ...
    @property
    def K(self) -> int: ...
    @property
    def R(self) -> int: ...
    @property
    def HALF(self) -> int: ...
    @property
    def S(self) -> int: ...
    @property
    def H(self) -> int: ...
    @property
    def A(self) -> int: ...
    @property
    def UPSAMPLING(self) -> int: ...
    @property
    def IN_DEPTH(self) -> int: ...


@dataclass(frozen=True)
class Window:
    """Frames that one launch makes: for each stream `counts` samples from `done` on; `steps` is the largest count."""

    first_frames: NDArray[np.int64]
    counts: NDArray[np.int64]
    done: int
    steps: int


@dataclass(frozen=True)
class Rows:
    """Of a window: rows (B, n, C) float32, zero where a stream has fewer; the first sample's place in them, in samples,
    and the last row, (B,) int32."""

    rows: NDArray[np.float32]
    first_q: NDArray[np.int32]
    last_column: NDArray[np.int32]


class GpuEngine(HostEngine[S]):
    """A `HostEngine` that works window by window. A subclass sets `shape` too."""

    shape: PaddedShape
    all_at_once = False
    """Whether a known history is scored all samples at once, which holds their activations in memory."""

    def __init__(
        self, config: WaveNetConfig, weights: Mapping[str, NDArray[np.float32]], dtype: str, state_format: str
    ) -> None:
        super().__init__(config, weights, dtype, state_format)
        self._features = Features(config, weights)
        self._past = SteadyPast(config, weights, dtype) if config.past == "steady" else None

    def _presume(self, state: S, call: Call) -> None:
        """Where the past is steady, the rings of the streams that begin with this call are filled with it."""
        beginning = np.flatnonzero((state.positions == 0) & (call.counts > 0))
        if self._past is None or not len(beginning):
            return
        layer_of_slot = np.repeat(np.arange(self.config.n_layers), depths(self.config))
        rings = state._saved_rings()
        for b in beginning:
            mel, _ = self._frames(state, call, int(b), 0, 1)
            heard = self._past.layer_inputs(mel, state.speakers[b], state.inputs[b])
            operands, units = as_operands(heard, self.dtype)
            rings["rings"][b] = operands[layer_of_slot]
            if units is not None:
                rings["ring_units"][b] = units[layer_of_slot]
        state._load_rings(rings)

    def _windows(self, state: S, call: Call) -> Iterator[Window]:
        s, hop = self.shape, self.config.hop_length
        frame = s.LAYERS * 2 * s.HALF * (hop if s.UPSAMPLING == 2 else 1)
        if call.forced is not None and self.all_at_once:
            frame += hop * (2 * s.R + 2 * s.S + s.H + 2 * s.A)
        sample = s.LAYERS * s.HALF * (2 * s.K * s.R + s.R + s.S) + s.H * (s.S + s.A)
        frames = max(1, min(_WINDOW_BYTES // (4 * frame * state.batch) - 2, _LAUNCH_PRODUCTS // (sample * hop)))
        if call.stages is not None:
            frames = call.longest // hop
        for done in range(0, call.longest, frames * hop):
            counts = np.clip(call.counts - done, 0, frames * hop)
            yield Window((state.positions + done) // hop, counts, done, int(counts.max()))

    def _window_features(self, state: S, call: Call, window: Window) -> Rows:
        """What a window hears before it is projected, stream by stream."""
        c, hop = self.config, self.config.hop_length
        parts, first_q = [], np.zeros(state.batch, np.int32)
        for b in range(state.batch):
            first = int(window.first_frames[b])
            last = first + int(window.counts[b]) // hop
            mel, begin_mel = self._frames(state, call, b, first, last)
            part, begin = self._features.rows(mel, begin_mel, first, last)
            parts.append(part)
            first_q[b] = 0 if begin is None else first * hop + c.conditioning.offset - begin * hop
        rows = np.zeros((state.batch, max(1, *map(len, parts)), c.conditioning_channels), np.float32)
        for b, part in enumerate(parts):
            rows[b, : len(part)] = part
        return Rows(rows, first_q, np.array([max(len(part) - 1, 0) for part in parts], np.int32))

    def _frames(self, state: S, call: Call, b: int, first: int, last: int) -> tuple[NDArray[np.float32], int]:
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

    def _rolled(self, inputs: NDArray[np.float32], positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Past inputs (B, taps), oldest first → the ring (B, IN_DEPTH) in which x[t] lies at slot t mod IN_DEPTH."""
        taps, depth = inputs.shape[1], self.shape.IN_DEPTH
        ring = np.zeros((len(inputs), depth), np.float32)
        np.put_along_axis(ring, (positions[:, None] - taps + np.arange(taps)) % depth, inputs, axis=1)
        return ring

    def _unrolled(self, ring: NDArray[np.float32], positions: NDArray[np.int64]) -> NDArray[np.float32]:
        taps, depth = self.config.input.kernel_size, self.shape.IN_DEPTH
        return np.take_along_axis(ring, (positions[:, None] - taps + np.arange(taps)) % depth, axis=1)

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

    def _unpadded(self, trace: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """The stages (T, …) of one utterance as kernels leave them, by the names of `reference.Reference`."""
        c, half = self.config, self.config.gate_channels // 2
        heard = trace["conditioning"].reshape(*trace["gate"].shape, 2)[:, :, :half]
        stages = {
            "conditioning": heard.swapaxes(2, 3).reshape(*heard.shape[:2], -1),
            "embed": trace["embed"][:, : c.residual_channels], "skip": trace["skip"][:, : c.skip_channels],
            "hidden": trace["hidden"][:, : c.head_channels],
        }  # fmt: skip
        stages |= {f"gate.{i}": trace["gate"][:, i, :half] for i in range(c.n_layers)}
        return stages | {f"x.{i}": trace["x"][:, i, : c.residual_channels] for i in range(c.n_layers - 1)}
