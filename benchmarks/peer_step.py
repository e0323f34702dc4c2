"""A competent PyTorch user's sample loop, and what compilers make of it: the peers that run exactly our weights.

One step is a pure function: past inputs of every layer, conditioning, the newest sample and uniforms in; the next
sample and every layer's input out. The histories are rings outside of it, one tensor for all layers, read and written
once a step. That no tap of the past depends on the present makes their products one batched product for all layers; the
skips are one product over all gates; weights are transposed, and biases and scales folded in, beforehand.

Shapes use the README's letters; P = K − 1 taps of the past.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from common import Weights
from torch import Tensor

import wavenet_fast as wf
from wavenet_fast.conditioning import context_frames, lookahead_frames
from wavenet_fast.config import CategoricalHead, Hold, LogisticHead, OneHotInput
from wavenet_fast.reference import Reference

RingStep = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(ring, rows read, rows written, conditioning, newest, uniforms) → (sample, logits); writes the ring."""


class LeftOut(Exception):
    """A peer that cannot run this model here, and why, in a sentence."""


def check_supported(config: wf.WaveNetConfig) -> None:
    """Raises `LeftOut` for what these loops were not written for."""
    c = config
    classes = isinstance(c.head, CategoricalHead) and isinstance(c.input, OneHotInput)
    known = classes or isinstance(c.head, LogisticHead)
    if not known or c.input.kernel_size != 1 or c.speakers.channels:
        raise LeftOut(
            "the benchmark's PyTorch loop is written for categorical heads over one-hot inputs and for mixtures of"
            " logistics, with an input kernel of one tap and without speakers; choose such a model"
        )


class Step(torch.nn.Module):
    """One sample of B streams."""

    def __init__(self, config: wf.WaveNetConfig, weights: Weights) -> None:
        super().__init__()
        check_supported(config)
        self.config = c = config
        self.layers = c.n_layers

        def tensor(name: str, otherwise: int = 0) -> Tensor:
            return torch.tensor(weights[name]) if name in weights else torch.zeros(otherwise)

        def transposed(name: str, scale: float = 1.0) -> Tensor:
            return (tensor(f"{name}.weight").T * scale).contiguous()

        # Plain attributes, not buffers: looking one up costs a step nothing.
        self.input_bias = tensor("input.bias", c.residual_channels)
        self.embedding = (tensor("input.weight")[:, :, 0].T + self.input_bias).contiguous()
        self.scalar_weight = tensor("input.weight")[:, 0, 0].contiguous()
        dilated = torch.stack([tensor(f"layers.{i}.dilated.weight") for i in range(c.n_layers)])  # (L, G, R, K)
        self.past_weights = list(dilated[..., :-1].permute(3, 0, 2, 1).contiguous())  # P × (L, R, G)
        self.now_weights = list(dilated[..., -1].transpose(1, 2).contiguous())  # L × (R, G)
        residuals = [f"layers.{i}.residual" for i in range(c.n_layers - 1)]
        self.residual_weights = [transposed(name, c.residual_scale) for name in residuals]
        self.residual_biases = [tensor(f"{name}.bias", c.residual_channels) * c.residual_scale for name in residuals]
        scales = [c.skip_scale] * c.n_layers
        if c.skip_rule == "running":
            scales = [c.skip_scale ** (c.n_layers - max(i, 1)) for i in range(c.n_layers)]
        self.skip_weight = torch.cat([transposed(f"layers.{i}.skip", s) for i, s in enumerate(scales)])  # (L·G/2, S)
        self.skip_bias = sum(tensor(f"layers.{i}.skip.bias", c.skip_channels) * s for i, s in enumerate(scales))
        self.hidden_weight, self.hidden_bias = transposed("head.hidden"), tensor("head.hidden.bias", c.head_channels)
        self.out_weight, self.out_bias = transposed("head.out"), tensor("head.out.bias", c.out_channels)

    def forward(self, past: Tensor, conditioning: Tensor, newest: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """past (P·L, B, R), oldest tap first; conditioning (L, B, G) with the biases of `dilated` in it; newest (B,);
        u (B, 2) → the next sample (B,), every layer's input (L, B, R), logits (B, A)."""
        c = self.config
        one_hot = c.in_channels > 1
        x = self.embedding[newest] if one_hot else torch.addcmul(self.input_bias, newest[:, None], self.scalar_weight)
        if c.input.tanh:
            x = torch.tanh(x)
        z = conditioning
        for taps, weight in zip(past.split(self.layers), self.past_weights, strict=True):
            z = torch.baddbmm(z, taps, weight)
        inputs, gates = [x], []
        for i, z_past in enumerate(z.unbind(0)):
            filtered, gate = torch.addmm(z_past, x, self.now_weights[i]).chunk(2, -1)
            gates.append(torch.tanh(filtered) * torch.sigmoid(gate))
            if i + 1 < self.layers:
                residual = torch.addmm(self.residual_biases[i], gates[-1], self.residual_weights[i])
                x = torch.add(residual, x, alpha=c.residual_scale)
                inputs.append(x)
        skip = torch.addmm(self.skip_bias, torch.cat(gates, -1), self.skip_weight)
        hidden = torch.addmm(self.hidden_bias, torch.relu(skip), self.hidden_weight)
        logits = torch.addmm(self.out_bias, torch.relu(hidden), self.out_weight)
        return self._sample(logits, u), torch.stack(inputs), logits

    def _sample(self, logits: Tensor, u: Tensor) -> Tensor:
        head = self.config.head
        if isinstance(head, CategoricalHead):
            return _choose(logits, u[:, 0])
        assert isinstance(head, LogisticHead)
        n = head.components
        means, log_scales = logits[:, -2 * n : -n], logits[:, -n:]
        chosen = _choose(logits[:, :n], u[:, 0])[:, None] if n > 1 else torch.zeros_like(logits[:, :1]).long()
        mean, log_scale = means.gather(1, chosen)[:, 0], log_scales.gather(1, chosen)[:, 0]
        if head.log_scale_min is not None:
            log_scale = log_scale.clamp_min(head.log_scale_min)
        v = u[:, 1].clamp(1e-5, 1 - 1e-5)
        return (mean + log_scale.exp() * (v.log() - (1 - v).log())).clamp(-1, 1)


def _choose(logits: Tensor, u: Tensor) -> Tensor:
    """Classes (B,) by inverting the distribution function at u (B,)."""
    edges = logits.softmax(-1).cumsum(-1)[:, :-1]
    return (edges <= u[:, None]).sum(-1)


def ring_step(step: Step) -> RingStep:
    """The step together with its ring: what eager PyTorch runs, and what `torch.compile` is given."""

    def run(
        ring: Tensor, read: Tensor, write: Tensor, conditioning: Tensor, newest: Tensor, u: Tensor
    ) -> tuple[Tensor, Tensor]:
        sample, inputs, logits = step(ring.index_select(0, read), conditioning, newest, u)
        ring.index_copy_(0, write, inputs)
        return sample, logits

    return run


class Loop:
    """B streams from mel to samples. `step` is a `RingStep`."""

    def __init__(self, config: wf.WaveNetConfig, weights: Weights, step: RingStep, batch: int) -> None:
        self.config, self.step, self.batch = config, step, batch
        # Copies: a checkpoint's arrays are read-only, which torch warns about.
        self.reference = Reference(config, {name: torch.tensor(weight) for name, weight in weights.items()})
        biases = [weights.get(f"layers.{i}.dilated.bias") for i in range(config.n_layers)]
        flat = np.zeros(config.gate_channels, np.float32)
        self.bias = torch.tensor(np.stack([flat if b is None else b for b in biases]))[:, None]  # (L, 1, G)
        self.depths = torch.tensor(config.dilations) * (config.kernel_size - 1)
        self.first_rows = self.depths.cumsum(0) - self.depths
        hold = isinstance(config.conditioning.upsampling, Hold) and config.conditioning.offset == 0
        self.columns = 1 if hold else config.hop_length
        self.context, self.lookahead = context_frames(config), lookahead_frames(config)

    def rows(self, frame: int) -> tuple[Tensor, Tensor]:
        """Rows of the ring that the frame's samples read (hop, P·L), oldest tap first, and write (hop, L)."""
        t = torch.arange(frame * self.config.hop_length, (frame + 1) * self.config.hop_length)[:, None]
        dilations = torch.tensor(self.config.dilations)
        read = [self.first_rows + (t - k * dilations) % self.depths for k in range(self.config.kernel_size - 1, 0, -1)]
        return torch.cat(read, 1), self.first_rows + t % self.depths

    def conditioning(self, mel: Tensor, frame: int) -> Tensor:
        """(hop, L, B, G), or (1, L, B, G) where a frame's samples all hear the same."""
        first = max(0, frame - self.context)
        window = mel[:, :, first : frame + self.lookahead + 1]
        start = (frame - first) * self.config.hop_length
        heard = self.reference.conditioning(window, None, start, start + self.columns)
        return heard.permute(1, 2, 0, 3) + self.bias

    def run(self, mel: np.ndarray, forced: np.ndarray | None = None, logits: np.ndarray | None = None) -> int:
        """Fresh streams over mel (B, M, F); the samples made in all. `forced` (B, T) replaces the draws, and `logits`
        (B, T, A) is filled, where given."""
        c, hop = self.config, self.config.hop_length
        ring = torch.zeros(int(self.depths.sum()), self.batch, c.residual_channels)
        newest = torch.full((self.batch,), c.start, dtype=torch.int64 if c.in_channels > 1 else torch.float32)
        history = None if forced is None else torch.tensor(forced)
        sound = torch.empty(mel.shape[2] * hop, self.batch, dtype=newest.dtype)
        frames = torch.from_numpy(mel)
        for frame in range(mel.shape[2]):
            read, write = self.rows(frame)
            heard, u = self.conditioning(frames, frame), torch.rand(hop, self.batch, 2)
            for i in range(hop):
                t = frame * hop + i
                newest, out = self.step(ring, read[i], write[i], heard[i % self.columns], newest, u[i])
                sound[t] = newest
                if logits is not None:
                    logits[:, t] = out.numpy()
                if history is not None:
                    newest = history[:, t]
        return sound.numel()


def onnx_step(step: Step, batch: int, threads: int) -> RingStep:
    """The step as an ONNX graph in ONNX Runtime, past inputs in and layer inputs out, every buffer bound once."""
    import onnxruntime

    c = step.config
    integers = c.in_channels > 1
    shapes = {
        "past": ((c.kernel_size - 1) * c.n_layers, batch, c.residual_channels),
        "conditioning": (c.n_layers, batch, c.gate_channels), "newest": (batch,), "u": (batch, 2),
    }  # fmt: skip
    results = {
        "sample": (batch,),
        "inputs": (c.n_layers, batch, c.residual_channels),
        "logits": (batch, c.out_channels),
    }
    buffers = {
        name: np.zeros(shape, np.int64 if integers and name in ("newest", "sample") else np.float32)
        for name, shape in (shapes | results).items()
    }
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it tells that torchvision is not installed
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself
        path = Path(folder) / "step.onnx"
        args = tuple(torch.from_numpy(buffers[name]) for name in shapes)
        torch.onnx.export(
            step, args, str(path), input_names=list(shapes), output_names=list(results), dynamo=True, verbose=False,
            external_data=False,
        )  # fmt: skip
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, buffer in buffers.items():
        place: Any = (name, "cpu", 0, buffer.dtype.type, buffer.shape, buffer.ctypes.data)
        binding.bind_input(*place) if name in shapes else binding.bind_output(*place)
    held = {name: torch.from_numpy(buffer) for name, buffer in buffers.items()}

    def run(
        ring: Tensor, read: Tensor, write: Tensor, conditioning: Tensor, newest: Tensor, u: Tensor
    ) -> tuple[Tensor, Tensor]:
        torch.index_select(ring, 0, read, out=held["past"])
        held["conditioning"].copy_(conditioning)
        held["newest"].copy_(newest)
        held["u"].copy_(u)
        session.run_with_iobinding(binding)
        ring.index_copy_(0, write, held["inputs"])
        return held["sample"], held["logits"]

    return run
