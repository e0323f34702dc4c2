"""The WaveNet in PyTorch, written to be read: the truth that every other backend is tested against.

`Reference.forward` runs over time with the true history (teacher forcing); `Reference.step` makes one sample from an
explicit `State`. Both can hand out every stage's activations. Everything is time-major, (B, T, channels), so that each
convolution is a matrix product over shifted rows; that is also how it trains fastest on a CPU.

Shapes use the letters of `config.py`. Nothing here needs the compiled extension.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .config import FrameConv, Linear, OneHotInput, RepeatStage, Stages, TransposedStage, WaveNetConfig
from .errors import InputError
from .packing import hearing_format, rounded
from .weights import weight_shapes

Trace = dict[str, Tensor]


_PLAIN: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
"""Whatever a program has made torch's defaults."""


def round_to_bf16(x: Tensor) -> Tensor:
    """The nearest bfloat16, kept in float32: what a kernel with 16-bit operands and 32-bit sums multiplies."""
    return x.to(torch.bfloat16).to(torch.float32)


def quantise_int8(x: Tensor) -> Tensor:
    """(…, n) rounded to 255 levels by each vector's own largest value: what a kernel with int8 operands multiplies."""
    largest = x.abs().amax(dim=-1, keepdim=True)
    factor = torch.where(largest > 1e-30, 127 / largest, torch.zeros_like(largest))
    return torch.round(x * factor) * (largest / 127)


def round_to_fp16(x: Tensor) -> Tensor:
    """The nearest half precision number, the largest finite one where x is beyond it, kept in float32."""
    return x.clamp(-65504, 65504).to(torch.float16).to(torch.float32)


OPERANDS = {"fp32": lambda x: x, "fp16": round_to_fp16, "bf16": round_to_bf16, "int8": quantise_int8}
"""Format of operands → what becomes of an activation before it meets a weight."""


@dataclass
class State:
    """What one step needs of the past. `rings[l]` (B, (K−1)·D, R): row t mod depth holds layer l's input at time t;
    `inputs` (B, K_in−1): the inputs before the newest, oldest first; where there was none, class −1 or the value 0, or
    the start value where the past is "steady"."""

    t: int
    rings: list[Tensor]
    inputs: Tensor


class Reference:
    """A configuration and its weights.

    `dtype` other than "fp32" rounds the weights and the activations of each product as the kernels of that number
    format do (see packing.py). `operands` names the format of the activations where it is not that of the weights: in
    fp16 the backend `cpu` leaves them in fp32, which is the default here, and GPUs round them too ("fp16"). `weights`
    maps the names of `weights.weight_shapes` to arrays or tensors; in fp32, tensors that require gradients keep them.
    """

    def __init__(
        self,
        config: WaveNetConfig,
        weights: Mapping[str, np.ndarray | Tensor],
        dtype: str = "fp32",
        operands: str | None = None,
    ) -> None:
        self.config = config
        given = {name: weights[name] for name in weight_shapes(config)}
        self.weights = {name: w if isinstance(w, Tensor) else torch.from_numpy(w) for name, w in given.items()}
        if dtype != "fp32":
            whole = {name: w.numpy() for name, w in self.weights.items()}
            self.weights = {name: torch.from_numpy(w) for name, w in rounded(whole, dtype).items()}
        self._operand = OPERANDS[operands or ("fp32" if dtype == "fp16" else dtype)]
        self._hearing = hearing_format(dtype)

    # --- mel → conditioning -------------------------------------------------------------------------------------

    def features(self, mel: Tensor) -> Tensor:
        """(B, M, F) → (B, C, F) at frame rate, or (B, C, F·hop) where learned stages upsample."""
        cond, w = self.config.conditioning, self.weights
        x = mel
        if cond.standardise:
            x = (x - w["mel.mean"][:, None]) / w["mel.scale"][:, None]
        for i, conv in enumerate(cond.network):
            x = _frame_conv(x, conv, w[f"conditioning.network.{i}.weight"], w.get(f"conditioning.network.{i}.bias"))
        if isinstance(cond.upsampling, Stages):
            for i, stage in enumerate(cond.upsampling.stages):
                x = _stage(x, stage, w[f"conditioning.stages.{i}.weight"], w.get(f"conditioning.stages.{i}.bias"))
        return x

    def conditioning(
        self, mel: Tensor, speaker: Tensor | None = None, start: int = 0, stop: int | None = None
    ) -> Tensor:
        """What samples start … stop−1 hear: (B, M, F) → (B, T, L, G), everything that `dilated` is added to.

        `speaker` (B, P) where the model has speakers. The projections run at frame rate, and are then held or
        interpolated; after learned stages they run at sample rate. What is interpolated in bf16 is rounded to it, and
        the weights to 256ths, which bf16 holds exactly."""
        c = self.config
        hop, up = c.hop_length, c.conditioning.upsampling
        n_frames = mel.shape[-1]
        stop = n_frames * hop if stop is None else stop
        t = (torch.arange(start, stop, device="cpu") + c.conditioning.offset).clamp_min(0)
        rows = self.features(mel).transpose(1, 2)
        if isinstance(up, Stages):
            return self._project(rows[:, t], speaker)
        projected = self._project(rows, speaker)
        if not isinstance(up, Linear):
            return projected[:, t // hop]
        position = t.to(torch.float64) / hop - up.frame_centre
        left = position.floor()
        weight = (position - left).to(torch.float32)[:, None, None]
        a = projected[:, left.long().clamp(0, n_frames - 1)]
        b = projected[:, (left.long() + 1).clamp(0, n_frames - 1)]
        if self._hearing == "bf16":
            a, b, weight = round_to_bf16(a), round_to_bf16(b), (weight * 256 + 0.5).floor() / 256
        return a + weight * (b - a)

    def _project(self, rows: Tensor, speaker: Tensor | None) -> Tensor:
        """(B, N, C) → (B, N, L, G): the per-layer 1×1 convolutions, with the speaker's share added."""
        layers = range(self.config.n_layers)
        rows = OPERANDS[self._hearing](rows)
        out = torch.stack([self._linear(rows, f"layers.{i}.conditioning") for i in layers], dim=2)
        if self.config.speakers.channels:
            if speaker is None:
                raise InputError("this voice has speakers: give a speaker id or a vector of width P")
            out = out + torch.stack([self._linear(speaker, f"layers.{i}.speaker") for i in layers], dim=1)[:, None]
        return out

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def _product(self, x: Tensor, name: str) -> Tensor:
        """A 1×1 convolution in the model's number format."""
        weight, bias = self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")
        return F.linear(self._operand(x), weight, bias)

    # --- all samples at once ------------------------------------------------------------------------------------

    def forward(self, history: Tensor, conditioning: Tensor, trace: Trace | None = None) -> Tensor:
        """Teacher-forced logits (B, T, A).

        `history` (B, T): what sample t hears as the newest past sample, that is x[t−1], with `config.start` at t = 0;
        classes (int64) or values in the model's domain (float32). `conditioning` (B, T, L, G).
        """
        c = self.config
        x = self._embed_all(history)
        _keep(trace, "conditioning", conditioning)
        _keep(trace, "embed", x)
        total = torch.zeros((), **_PLAIN)
        for i, dilation in enumerate(c.dilations):
            taps = self.weights[f"layers.{i}.dilated.weight"]
            z = conditioning[:, :, i]
            for k in range(c.kernel_size):
                z = z + _delayed(self._operand(x), (c.kernel_size - 1 - k) * dilation, c.past) @ taps[:, :, k].T
            x, total = self._finish_layer(i, x, z, total, trace)
        return self._head(total, trace)

    def _embed_all(self, history: Tensor) -> Tensor:
        """(B, T) → (B, T, R); inputs before the first are zero vectors."""
        c, weight = self.config, self.weights["input.weight"]
        x = torch.zeros((), **_PLAIN)
        for k in range(c.input.kernel_size):
            if isinstance(c.input, OneHotInput):
                tap = F.embedding(history, weight[:, :, k].T)
            else:
                tap = history[:, :, None] * weight[:, 0, k]
            x = x + _delayed(tap, c.input.kernel_size - 1 - k, c.past)
        return self._finish_embed(x)

    # --- one sample ---------------------------------------------------------------------------------------------

    def initial_state(self, batch: int) -> State:
        """Silence before the first sample: rings of zero vectors, no inputs yet."""
        c = self.config
        rings = [torch.zeros(batch, (c.kernel_size - 1) * d, c.residual_channels, **_PLAIN) for d in c.dilations]
        if isinstance(c.input, OneHotInput):
            before = int(c.start) if c.past == "steady" else -1
            inputs = torch.full((batch, c.input.kernel_size - 1), before, dtype=torch.int64, device="cpu")
        else:
            value = float(c.start) if c.past == "steady" else 0.0
            inputs = torch.full((batch, c.input.kernel_size - 1), value, **_PLAIN)
        return State(0, rings, inputs)

    def step(self, state: State, newest: Tensor, conditioning: Tensor, trace: Trace | None = None) -> Tensor:
        """Logits (B, A) of the next sample; advances `state`.

        `newest` (B,): x[t−1], `config.start` at t = 0. `conditioning` (B, L, G). Equals column t of `forward`."""
        c = self.config
        window = torch.cat([state.inputs, newest[:, None]], dim=1)
        state.inputs = window[:, 1:]
        x = self._embed_one(window)
        _keep(trace, "conditioning", conditioning)
        _keep(trace, "embed", x)
        total = torch.zeros((), **_PLAIN)
        for i, dilation in enumerate(c.dilations):
            ring = state.rings[i]
            depth = ring.shape[1]
            if c.past == "steady" and state.t == 0:
                ring[:] = x[:, None]  # a constant input makes every layer constant
            taps = self.weights[f"layers.{i}.dilated.weight"]
            z = conditioning[:, i]
            for k in range(c.kernel_size):
                back = (c.kernel_size - 1 - k) * dilation
                past = ring[:, (state.t - back) % depth] if back else x
                z = z + self._operand(past) @ taps[:, :, k].T
            ring[:, state.t % depth] = x
            x, total = self._finish_layer(i, x, z, total, trace)
        state.t += 1
        return self._head(total, trace)

    def _embed_one(self, window: Tensor) -> Tensor:
        """(B, K_in) → (B, R)."""
        c, weight = self.config, self.weights["input.weight"]
        x = torch.zeros((), **_PLAIN)
        for k in range(c.input.kernel_size):
            if isinstance(c.input, OneHotInput):
                known = (window[:, k] >= 0)[:, None]
                tap = F.embedding(window[:, k].clamp_min(0), weight[:, :, k].T) * known
            else:
                tap = window[:, k, None] * weight[:, 0, k]
            x = x + tap
        return self._finish_embed(x)

    # --- shared by both -----------------------------------------------------------------------------------------

    def _finish_embed(self, x: Tensor) -> Tensor:
        bias = self.weights.get("input.bias")
        x = x if bias is None else x + bias
        return torch.tanh(x) if self.config.input.tanh else x

    def _finish_layer(self, i: int, x: Tensor, z: Tensor, total: Tensor, trace: Trace | None) -> tuple[Tensor, Tensor]:
        """Gate, skip and residual of layer i: (…, R), (…, G), (…, S) → the next layer's input and the skip sum."""
        c = self.config
        bias = self.weights.get(f"layers.{i}.dilated.bias")
        z = z if bias is None else z + bias
        a, b = z.chunk(2, dim=-1)
        gate = torch.tanh(a) * torch.sigmoid(b)
        _keep(trace, f"gate.{i}", gate)
        skip = self._product(gate, f"layers.{i}.skip")
        total = total + skip
        if c.skip_rule == "running" and i > 0:
            total = total * c.skip_scale
        if i + 1 < c.n_layers:
            x = (x + self._product(gate, f"layers.{i}.residual")) * c.residual_scale
            _keep(trace, f"x.{i}", x)
        return x, total

    def _head(self, total: Tensor, trace: Trace | None) -> Tensor:
        """ReLU, 1×1, ReLU, 1×1: (…, S) → (…, A)."""
        skip = total * self.config.skip_scale if self.config.skip_rule == "sum" else total
        hidden = self._product(F.relu(skip), "head.hidden")
        logits = self._product(F.relu(hidden), "head.out")
        _keep(trace, "skip", skip)
        _keep(trace, "hidden", hidden)
        _keep(trace, "logits", logits)
        return logits


def _keep(trace: Trace | None, name: str, value: Tensor) -> None:
    if trace is not None:
        trace[name] = value


def _delayed(x: Tensor, samples: int, past: str = "zero") -> Tensor:
    """(B, T, N) seen `samples` ago; before the beginning zero vectors, or the first one where the past is "steady"."""
    if samples == 0:
        return x
    if past == "steady":
        return torch.cat([x[:, :1].expand(-1, samples, -1), x], dim=1)[:, : x.shape[1]]
    return F.pad(x, (0, 0, samples, 0))[:, : x.shape[1]]


def _activate(x: Tensor, layer: FrameConv | TransposedStage | RepeatStage) -> Tensor:
    if layer.activation == "relu":
        return F.relu(x)
    if layer.activation == "leaky_relu":
        return F.leaky_relu(x, layer.slope)
    return torch.tanh(x) if layer.activation == "tanh" else x


def _frame_conv(x: Tensor, conv: FrameConv, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(B, C_in, F) → (B, channels, F); an even kernel looks one frame further back than ahead."""
    before, after = conv.kernel_size // 2, (conv.kernel_size - 1) // 2
    x = F.pad(x, (before, after), mode="replicate") if conv.padding == "replicate" else F.pad(x, (before, after))
    return _activate(F.conv1d(x, weight, bias), conv)


def _stage(x: Tensor, stage: TransposedStage | RepeatStage, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(B, C, N) → (B, C', scale·N)."""
    length = x.shape[-1] * stage.scale
    rows = (stage.freq_kernel_size - 1) // 2
    if isinstance(stage, RepeatStage):
        x = x.repeat_interleave(stage.scale, dim=-1)
        columns = (stage.kernel_size - 1) // 2
        if stage.image:
            y = F.conv2d(x[:, None], weight[None, None], bias, padding=(rows, columns))[:, 0]
        else:
            y = F.conv1d(x, weight, bias, padding=columns)
    else:
        if stage.image:
            stride, padding = (1, stage.scale), (rows, 0)
            y = F.conv_transpose2d(x[:, None], weight[None, None], bias, stride, padding)[:, 0]
        else:
            y = F.conv_transpose1d(x, weight, bias, stride=stage.scale)
        y = y[..., stage.crop : stage.crop + length]
    return _activate(y, stage)
