"""A model on a device: its packed weights, its tables, and every kernel called with them.

Tensors are torch's, on the launcher's device. B utterances, T samples; the letters of padded sizes are those of
`shapes.Shape`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wavenet_fast.config import WaveNetConfig
from wavenet_fast.errors import BackendError
from wavenet_fast.packing import hearing_format

from ..tables import log_scale_min, mu_of
from ..tables import tables as shared_tables
from . import calls, tuning
from .block import FORMATS, as_operands
from .launch import Launcher
from .packing import pack
from .shapes import Shape


@dataclass(frozen=True)
class Heard:
    """Conditioning of one call. `projected` (B, n, LAYERS, 2·HALF); the first sample's place in it and the last column
    of each utterance, (B,) int32: see `stages.column_of_sample`."""

    projected: Tensor
    first_q: Tensor
    last_column: Tensor


@dataclass(frozen=True)
class Made:
    """Samples of one call: `audio` and `draws` (B, steps) fp32, draws as classes or values, and `logits`
    (B, steps, out_channels) where they were asked for. Beyond a stream's count they are zero."""

    audio: Tensor
    draws: Tensor
    logits: Tensor | None


class Model:
    """Immutable. `dtype` is the number format, "fp32", "bf16" or "fp16"; `packed` are the tensors of `packing.pack` by
    name, on the launcher's device."""

    def __init__(self, config: WaveNetConfig, packed: Mapping[str, Tensor], dtype: str, launcher: Launcher) -> None:
        check_size(config)
        self.config, self.dtype, self.launcher, self.shape = config, dtype, launcher, Shape.of(config)
        self.operand = FORMATS[dtype]
        self._weights = dict(packed)
        self._tables = tables(config, dtype, launcher.device)
        self.rings = self._tables.rings

    @classmethod
    def from_weights(
        cls, config: WaveNetConfig, weights: Mapping[str, NDArray[np.float32]], dtype: str, launcher: Launcher
    ) -> Model:
        """Raises `BackendError` where a weight is too large for fp16, and what `check_size` raises."""
        check_size(config)
        return cls(config, packed_tensors(config, weights, dtype, launcher.device), dtype, launcher)

    def tensor(self, array: NDArray[Any]) -> Tensor:
        """An array on the device; uint16 are bf16 words."""
        return on_device(array, self.launcher.device)

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.launcher.device)

    def zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float32, device=self.launcher.device)

    @property
    def weight_bytes(self) -> int:
        """Of the matrices that every sample passes, padding included."""
        names = ("w_dilated", "w_residual", "w_skip", "w_hidden", "w_out")
        return sum(self._weights[name].numel() * self._weights[name].element_size() for name in names)

    # --- conditioning -------------------------------------------------------------------------------------------

    def starts(self, speakers: Tensor) -> Tensor:
        """What a projection begins with: biases and the speaker's share. (B, P) → (B, LAYERS·2·HALF)."""
        bias = self._weights["b_project"]
        if "speaker" not in self._weights:
            return bias.expand(len(speakers), -1).contiguous()
        begin = (bias + self._weights["b_speaker"])[None]
        return self._dense(speakers, self._weights["speaker"], begin, len(speakers), "fp32")

    def project(self, features: Tensor, starts: Tensor) -> Tensor:
        """(B, n, C) → (B, n, LAYERS, 2·HALF), rounded to bf16 where the kernels interpolate in bf16."""
        s, hearing = self.shape, hearing_format(self.dtype)
        batch, n, channels = features.shape
        rounded = s.UPSAMPLING == 1 and hearing == "bf16"
        flat = self._dense(
            features.reshape(-1, channels), self._weights["project"], starts, n, hearing, rounded=rounded
        )
        return flat.view(batch, n, s.LAYERS, 2 * s.HALF)

    def _dense(
        self, x: Tensor, w: Tensor, start: Tensor, group: int, dtype: str, relu: bool = False, rounded: bool = False
    ) -> Tensor:
        """x·w on top of a row of `start` (groups, outputs) for every `group` rows of x (n, inputs)."""
        o, (inputs, outputs) = tuning.for_dense(), w.shape
        out = self.empty(len(x), outputs)
        block = 64
        self.launcher.run(
            "dense", (-(-len(x) // o.tile), -(-outputs // block)),
            {
                "x": x, "w": w, "start": start, "out": out, "n": len(x), "group": group, "inputs": inputs,
                "outputs": outputs, "RELU": relu, **calls.formats(self.launcher, dtype), "ROUND": rounded,
                "N": o.tile, "BLOCK_INPUTS": 32, "BLOCK_OUTPUTS": block,
            }, o,
        )  # fmt: skip
        return out

    # --- sample by sample ---------------------------------------------------------------------------------------

    def generate(
        self,
        rings: Tensor,
        inputs: Tensor,
        filters: Tensor,
        positions: Tensor,
        seeds: Tensor,
        counts: Tensor,
        heard: Heard,
        steps: int,
        temperature: float,
        forced: Tensor | None = None,
        logits: bool = False,
        trace: Mapping[str, Tensor] | None = None,
    ) -> Made:
        """At most `steps` samples of every stream, `counts` (B,) int32 of each. Changes rings, inputs and filters in
        place, and not positions (B,) int64. See the arguments of `generate.generate`."""
        c, s, table = self.config, self.shape, self._tables
        batch = len(rings)
        wanted = self.zeros(batch, steps, c.out_channels) if logits else None
        made = Made(self.zeros(batch, steps), self.zeros(batch, steps), wanted)
        o = tuning.for_generate(s, self.dtype, self.launcher.capability)
        logits_room = self.empty(batch, s.A) if s.A > s.BLOCK_CLASSES else None
        skip_room = self.empty(batch, s.S).to(self.operand) if o.block_s < s.S else None
        names = ("w_input", "b_input", "w_dilated", "b_dilated", "w_residual", "b_residual", "w_skip", "b_skip",
                 "w_hidden", "b_hidden", "w_out", "b_out")  # fmt: skip
        traces = {f"{stage}_trace": None if trace is None else trace[stage] for stage in trace_shapes(s)}
        self.launcher.run(
            "generate", (-(-batch // o.tile),),
            {
                "rings": rings, "inputs": inputs, "filters": filters, "positions": positions, "seeds": seeds,
                "counts": counts, "projected": heard.projected, "first_q": heard.first_q,
                "last_column": heard.last_column, "fraction": table.fraction, "shift": table.shift,
                "n_columns": heard.projected.shape[1], **{name: self._weights[name] for name in names},
                "layers": table.layers, "sound": table.sound, "feedback": table.feedback, "audio": made.audio,
                "draws": made.draws, "logits_out": made.logits, "forced": forced,
                "stride": steps, "logits_width": c.out_channels, **traces, "logits_room": logits_room,
                "skip_room": skip_room, "batch": batch, "steps": steps,
                "temperature": temperature, "log_scale_min": log_scale_min(c.head),
                "preemphasis": c.signal.preemphasis, "gain": c.signal.gain, "mu": mu_of(c),
                "residual_scale": c.residual_scale, "skip_scale": c.skip_scale, **s.constexprs(),
                **calls.formats(self.launcher, self.dtype), "FORCED": forced is not None, "LOGITS": logits,
                "TRACE": trace is not None, "N": o.tile, "BLOCK_R": o.block_r, "BLOCK_GATE": o.block_gate,
                "BLOCK_S": o.block_s, "BLOCK_HIDDEN": o.block_hidden,
            }, o,
        )  # fmt: skip
        return made

    def load(self) -> None:
        """Compile the sample loop for this device and run it for no sample. Raises `BackendError` where it does not
        fit."""
        s, device = self.shape, self.launcher.device
        none = torch.zeros(1, dtype=torch.int32, device=device)
        heard = Heard(self.zeros(1, 1, s.LAYERS, 2 * s.HALF), none, none)
        rings = torch.zeros(1, s.SLOTS, s.R, dtype=self.operand, device=device)
        inputs, filters = self.zeros(1, s.IN_DEPTH), self.zeros(1)
        self.generate(rings, inputs, filters, none.long(), none.long(), none, heard, steps=1, temperature=1.0)

    # --- all samples at once ------------------------------------------------------------------------------------

    def score(
        self, rings: Tensor, heard_inputs: Tensor, positions: NDArray[np.int64], counts: NDArray[np.int64], heard: Heard
    ) -> Tensor:
        """Logits (B, T, A padded) under a known history; `rings` go on as if the samples had been made one by one.

        heard_inputs  (B, IN_TAPS + T): see `embed.embed`"""
        s, w = self.shape, self._weights
        batch, T = len(rings), heard_inputs.shape[1] - s.IN_TAPS
        n_samples = self.tensor(counts.astype(np.int32))
        reach = (s.K - 1) * self.config.dilations[0]
        x = self.empty(batch, reach + T, s.R)
        o = tuning.for_embed()
        self.launcher.run(
            "embed", (batch, -(-T // o.tile)),
            {
                "heard": heard_inputs, "x": x[:, reach:], "heard_stride": heard_inputs.stride(0),
                "x_stride": x.stride(0), "counts": n_samples, "w_input": w["w_input"], "b_input": w["b_input"],
                "A_ROWS": self.config.in_channels, "IN_TAPS": s.IN_TAPS, "R": s.R, "ONE_HOT": s.ONE_HOT,
                "TANH": s.TANH, "N": o.tile,
            }, o,
        )  # fmt: skip
        skip = self.zeros(batch, T, s.S)
        if not s.RUNNING:
            skip += w["b_skip"][0]
        for i in range(s.LAYERS):
            x = self._layer(i, x, skip, rings, positions, counts, n_samples, heard)
        if not s.RUNNING:
            skip *= self.config.skip_scale
        hidden = self._dense(skip.view(-1, s.S), w["w_hidden"], w["b_hidden"][None], batch * T, self.dtype, relu=True)
        logits = self._dense(hidden, w["w_out"], w["b_out"][None], batch * T, self.dtype, relu=True)
        return logits.view(batch, T, s.A)

    def _layer(
        self, i: int, x: Tensor, skip: Tensor, rings: Tensor, positions: NDArray[np.int64], counts: NDArray[np.int64],
        n_samples: Tensor, heard: Heard,
    ) -> Tensor:  # fmt: skip
        """One residual block over (B, reach + T, R), whose past is filled in here and whose ring is brought up to date;
        returns the next block's x."""
        c, s, w = self.config, self.shape, self._weights
        dilation, first, depth = self.rings[i]
        batch, reach = len(x), (s.K - 1) * dilation
        T, last = x.shape[1] - reach, i + 1 == s.LAYERS
        b = torch.arange(batch, device=x.device)[:, None]
        before = self.tensor(first + (positions[:, None] + np.arange(-reach, 0)) % depth)
        x[:, :reach] = rings[b, before].float()
        next_reach = 0 if last else (s.K - 1) * c.dilations[i + 1]
        x_next = x if last else self.empty(batch, next_reach + T, s.R)
        block = {name: w[name][i] for name in ("w_dilated", "b_dilated", "w_residual", "b_residual", "w_skip")}
        block["b_skip"] = w["b_skip"][i if s.RUNNING else 0]
        table = self._tables
        hears = calls.Columns(
            heard.projected[:, :, i], heard.first_q, heard.last_column, table.fraction, table.shift, s.HOP, s.UPSAMPLING
        )
        calls.residual_block(
            self.launcher, s.block, self.dtype, x, None if last else x_next[:, next_reach:], skip, n_samples, hears,
            block, dilation, c.residual_scale, c.skip_scale if i else 1.0, s.RUNNING,
        )  # fmt: skip
        # The newest inputs of each utterance go to their slots; of a long call all that the ring holds, of a short one
        # as many as there are.
        ages = counts[:, None] - 1 - np.arange(min(depth, T))
        rows, columns = np.nonzero(ages >= 0)
        made = ages[rows, columns]
        slots = first + (positions[rows] + made) % depth
        kept = x[self.tensor(rows), self.tensor(reach + made)]
        rings[self.tensor(rows), self.tensor(slots)] = as_operands(kept, self.dtype)
        return x_next

    def draw(self, logits: Tensor, uniforms: Tensor, temperature: float) -> Tensor:
        """(n, ≥ A) and (n, 4) → (n,) fp32: classes as numbers, or values."""
        return calls.draw(self.launcher, self.config.head, logits, uniforms, temperature)

    def decode(self, draws: Tensor, heard: Tensor, filters: Tensor, counts: Tensor) -> Tensor:
        """Draws (B, T) as sound, each on top of the past that was heard, (B, T); `filters` (B,) go on from what was
        heard. Of each stream `counts` (B,) int32; beyond them it is zero."""
        c, table, o = self.config, self._tables, tuning.for_decode()
        batch, steps = draws.shape
        audio = torch.zeros_like(draws)
        self.launcher.run(
            "decode", (-(-batch // o.tile),),
            {
                "draws": draws, "heard": heard, "audio": audio, "filters": filters, "counts": counts,
                "sound": table.sound, "batch": batch, "steps": steps, "stride": steps,
                "preemphasis": c.signal.preemphasis, "gain": c.signal.gain, "mu": mu_of(c),
                "DRAWS_CLASSES": self.shape.HEAD == 0, "HEARD_CLASSES": self.shape.ONE_HOT,
                "COMPANDED": self.shape.COMPANDED, "N": o.tile,
            }, o,
        )  # fmt: skip
        return audio


def check_size(config: WaveNetConfig) -> None:
    """Raises `BackendError` where the weights of all layers, or what a stream hears of one frame, have 2^31 elements or
    more when padded: within these, and within the rings of a stream, which `config.MAX_RING_BYTES` keeps below that,
    the kernels count in 32 bits."""
    s = Shape.of(config)
    columns = s.HOP if s.UPSAMPLING == 2 else 3
    sizes = {
        "dilated weights": s.LAYERS * s.K * s.R * 2 * s.HALF,
        "skip weights": s.LAYERS * s.HALF * s.S, "weights of the head": s.H * max(s.S, s.A),
        "projections of a frame": columns * s.LAYERS * 2 * s.HALF,
    }  # fmt: skip
    for name, size in sizes.items():
        if size >= 2**31:
            raise BackendError(
                f"this model has {size:,} {name} when padded to powers of two; the triton kernels take fewer than"
                f" {2**31:,}. Use backend 'cpu'"
            )


def trace_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Stage → what `generate` leaves of it for every sample, padded."""
    s = shape
    return {
        "conditioning": (s.LAYERS, 2 * s.HALF), "embed": (s.R,), "gate": (s.LAYERS, s.HALF), "x": (s.LAYERS, s.R),
        "skip": (s.S,), "hidden": (s.H,),
    }  # fmt: skip


@dataclass(frozen=True)
class Tables:
    """`tables.Tables` on a device. `rings`: of each layer dilation, first slot, slots."""

    rings: tuple[tuple[int, int, int], ...]
    layers: Tensor
    fraction: Tensor
    shift: Tensor
    sound: Tensor
    feedback: Tensor


@lru_cache(maxsize=64)
def tables(config: WaveNetConfig, dtype: str, device: torch.device) -> Tables:
    found = shared_tables(config, dtype)
    rings = tuple((d, first, slots) for d, first, slots in found.layers.tolist())
    return Tables(rings, **{name: on_device(array, device) for name, array in found.named().items()})


def on_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """A copy of an array; uint16 are bf16 words."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if array.dtype == np.uint16:
        tensor = tensor.view(torch.bfloat16)
    return tensor.clone().to(device)


def packed_tensors(
    config: WaveNetConfig, weights: Mapping[str, NDArray[np.float32]], dtype: str, device: torch.device
) -> dict[str, Tensor]:
    """`packing.pack` on a device."""
    return {name: on_device(array, device) for name, array in pack(config, weights, dtype).items()}
