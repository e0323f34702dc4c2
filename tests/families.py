"""Networks with the keys and the arithmetic that three projects document, built without the importers' code.

Each takes what it has heard, (T,) classes or values, oldest first, and a mel (M, F), and tells every stage, (T, ·)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Stages = dict[str, np.ndarray]


def normed(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the way these files were made, for which torch has a newer one
        return nn.utils.weight_norm(layer)


def causal(x: Tensor, conv: nn.Module) -> Tensor:
    """(1, C, T) → (1, C', T): each column from itself and earlier ones, zeros before the first."""
    return conv(F.pad(x, ((conv.kernel_size[0] - 1) * conv.dilation[0], 0)))


def kept(stages: dict[str, Tensor]) -> Stages:
    return {name: value[0].T.detach().numpy().copy() for name, value in stages.items()}


def free_running(
    network: Any, mel: np.ndarray, samples: int, draw: Callable[[int, Any], Any], past: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """(draws, logits) of a network that starts at `network.start`, which it has heard `past` times more before."""
    heard, made, logits = [network.start] * (past + 1), [], []
    for t in range(samples):
        logits.append(network(np.array(heard), mel, past)["logits"][-1])
        made.append(draw(t, logits[-1]))
        heard.append(made[-1])
    return np.array(made), np.array(logits)


class NewR9y9(nn.Module):
    """r9y9/wavenet_vocoder from v0.2 on: scales √½ after each residual and √(1/L) of the skips; the mel, of which
    `pad` frames are added at both ends, through a convolution, then repeated and smoothed stage by stage."""

    def __init__(
        self, inputs: int, outputs: int, scales: tuple[int, ...] = (2, 3), pad: int = 1, speakers: int = 0,
        activation: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        R, G, S, M, self.cycle = 10, 16, 12, 7, 3
        self.start = 0.0 if inputs == 1 else 127
        self.pad, self.scales = pad, scales
        self.first_conv = normed(nn.Conv1d(inputs, R, 1))
        self.conv_layers = nn.ModuleList()
        for i in range(6):
            layer = nn.Module()
            layer.conv = normed(nn.Conv1d(R, G, 3, dilation=1 << i % self.cycle))
            layer.conv1x1c = normed(nn.Conv1d(M, G, 1, bias=False))
            if speakers:
                layer.conv1x1g = normed(nn.Conv1d(speakers, G, 1, bias=False))
            layer.conv1x1_out, layer.conv1x1_skip = normed(nn.Conv1d(G // 2, R, 1)), normed(nn.Conv1d(G // 2, S, 1))
            self.conv_layers.append(layer)
        last = normed(nn.Conv1d(S, S, 1)), normed(nn.Conv1d(S, outputs, 1))
        self.last_conv_layers = nn.ModuleList([nn.ReLU(), last[0], nn.ReLU(), last[1]])
        last[1].weight_g.data *= 3
        if outputs == 256:
            last[1].weight_g.data *= 4
        self.upsample_net = nn.Module()
        self.upsample_net.conv_in = nn.Conv1d(M, M, 2 * pad + 1, bias=False)
        self.upsample_net.upsample = nn.Module()
        steps: list[nn.Module] = []
        for s in scales:
            conv = normed(nn.Conv2d(1, 1, (3, 2 * s + 1), padding=(1, s), bias=False))
            steps += [nn.Identity(), conv] + ([getattr(nn, activation)()] if activation else [])
        self.upsample_net.upsample.up_layers = nn.ModuleList(steps)

    def upsampled(self, mel: Tensor) -> Tensor:
        """(1, M, F) → (1, M, F·hop)."""
        c = self.upsample_net.conv_in(F.pad(mel, (self.pad, self.pad), mode="replicate"))[:, None]
        scales = iter(self.scales)
        for step in self.upsample_net.upsample.up_layers:
            if isinstance(step, nn.Conv2d):
                c = c.repeat_interleave(next(scales), dim=-1)
            c = step(c)
        return c[:, 0]

    @torch.inference_mode()
    def forward(self, heard: np.ndarray, mel: np.ndarray, past: int = 0, speaker: np.ndarray | None = None) -> Stages:
        given = torch.tensor(heard)
        if self.first_conv.in_channels == 1:
            x = given.to(torch.float32)[None, None]
        else:
            x = F.one_hot(given, self.first_conv.in_channels).T[None].float()
        c = self.upsampled(torch.tensor(mel)[None])[..., : len(heard)]
        x = self.first_conv(x)
        seen, skips = {"embed": x}, torch.zeros(())
        for i, layer in enumerate(self.conv_layers):
            z = causal(x, layer.conv) + layer.conv1x1c(c)
            if speaker is not None:
                z = z + layer.conv1x1g(torch.tensor(speaker)[None, :, None])
            a, b = z.chunk(2, dim=1)
            gate = torch.tanh(a) * torch.sigmoid(b)
            skips = skips + layer.conv1x1_skip(gate)
            x = (x + layer.conv1x1_out(gate)) * 0.5**0.5
            seen |= {f"gate.{i}": gate, f"x.{i}": x}
        del seen[f"x.{len(self.conv_layers) - 1}"]
        seen["skip"] = skips * (1 / len(self.conv_layers)) ** 0.5
        seen["hidden"] = self.last_conv_layers[1](torch.relu(seen["skip"]))
        seen["logits"] = self.last_conv_layers[3](torch.relu(seen["hidden"]))
        return kept(seen)


class Wrapped(nn.Module):
    """A convolution one level down, as two of the projects hold theirs."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv


class KanBayashi(nn.Module):
    """kan-bayashi/PytorchWaveNetVocoder: a causal convolution over classes, tanh and sigmoid with weights of their own,
    plain sums, and a picture's transposed convolution from frames to samples."""

    def __init__(self, taps: int = 2, factor: int = 6) -> None:
        super().__init__()
        R, S, M, Q, L = 9, 11, 7, 64, 6
        self.start, self.depth, self.repeat, self.taps, self.factor, self.classes = Q // 2, 3, 2, taps, factor, Q
        self.causal = Wrapped(nn.Conv1d(Q, R, taps))
        if factor:
            self.upsampling = Wrapped(nn.ConvTranspose2d(1, 1, (1, factor), stride=(1, factor)))
        for i in range(L):
            for name in ("dil_sigmoid", "dil_tanh"):
                self.listed(name).append(Wrapped(nn.Conv1d(R, R, taps, dilation=1 << i % self.depth)))
            for name, (out, width) in {
                "aux_1x1_sigmoid": (R, M), "aux_1x1_tanh": (R, M), "skip_1x1": (S, R), "res_1x1": (R, R),
            }.items():  # fmt: skip
                self.listed(name).append(nn.Conv1d(width, out, 1))
        self.conv_post_1, self.conv_post_2 = nn.Conv1d(S, S, 1), nn.Conv1d(S, Q, 1)
        for name, weight in self.named_parameters():  # as made, they are too small for anything to matter
            weight.data *= 6 if name.startswith("conv_post_2") else 2
        self.causal.conv.weight.data *= 4

    def listed(self, name: str) -> nn.ModuleList:
        if not hasattr(self, name):
            setattr(self, name, nn.ModuleList())
        return getattr(self, name)

    @property
    def receptive_field(self) -> int:
        return (self.taps - 1) * self.repeat * ((1 << self.depth) - 1) + 1

    def conf(self) -> dict[str, Any]:
        return {
            "n_quantize": self.classes, "n_aux": 7, "n_resch": 9, "n_skipch": 11, "dilation_depth": self.depth,
            "dilation_repeat": self.repeat, "kernel_size": self.taps, "upsampling_factor": self.factor or 6,
            "use_upsampling_layer": bool(self.factor), "feature_type": "melspc", "use_speaker_code": 0,
        }  # fmt: skip

    @torch.inference_mode()
    def forward(self, heard: np.ndarray, mel: np.ndarray, past: int = 0) -> Stages:
        """The first `past` of `heard` come before the mel, with the first column of it over and over."""
        h = torch.tensor(mel)[None]
        h = self.upsampling.conv(h[:, None])[:, 0] if self.factor else h.repeat_interleave(6, dim=-1)
        h = F.pad(h, (past, 0), mode="replicate")[..., : len(heard)]
        x = causal(F.one_hot(torch.tensor(heard), self.classes).T[None].float(), self.causal.conv)
        seen, skips = {"embed": x}, torch.zeros(())
        for i in range(len(self.res_1x1)):
            s = causal(x, self.dil_sigmoid[i].conv) + self.aux_1x1_sigmoid[i](h)
            t = causal(x, self.dil_tanh[i].conv) + self.aux_1x1_tanh[i](h)
            gate = torch.sigmoid(s) * torch.tanh(t)
            skips, x = skips + self.skip_1x1[i](gate), x + self.res_1x1[i](gate)
            seen |= {f"gate.{i}": gate, f"x.{i}": x}
        del seen[f"x.{len(self.res_1x1) - 1}"]
        seen["skip"], seen["hidden"] = skips, self.conv_post_1(torch.relu(skips))
        seen["logits"] = self.conv_post_2(torch.relu(seen["hidden"]))
        return kept(seen)


class NvWaveNet(nn.Module):
    """NVIDIA/nv-wavenet's PyTorch model: an embedding, conditioning projected for all layers at once, plain sums, a
    head without biases."""

    def __init__(self, window: int = 15, stride: int = 6) -> None:
        super().__init__()
        R, S, M, A, L = 10, 12, 7, 32, 5
        self.start, self.max_dilation, self.stride, self.layers = A // 2, 4, stride, L
        self.upsample = nn.ConvTranspose1d(M, M, window, stride)
        self.cond_layers = Wrapped(nn.Conv1d(M, 2 * R * L, 1))
        self.dilate_layers = nn.ModuleList(
            [Wrapped(nn.Conv1d(R, 2 * R, 2, dilation=(1, 2, 4)[i % 3])) for i in range(L)]
        )
        self.res_layers = nn.ModuleList([Wrapped(nn.Conv1d(R, R, 1)) for _ in range(L - 1)])
        self.skip_layers = nn.ModuleList([Wrapped(nn.Conv1d(R, S, 1)) for _ in range(L)])
        self.embed = nn.Embedding(A, R)
        self.conv_out, self.conv_end = Wrapped(nn.Conv1d(S, A, 1, bias=False)), Wrapped(nn.Conv1d(A, A, 1, bias=False))
        for weight in (self.upsample.weight, self.conv_end.conv.weight):
            weight.data *= 4

    def exported(self) -> dict[str, Any]:
        """What its `export_weights()` gives."""

        def of(layers: nn.ModuleList, kind: str) -> list[Tensor]:
            return [getattr(layer.conv, kind).data for layer in layers]

        lists = {"dilate": self.dilate_layers, "res": self.res_layers, "skip": self.skip_layers}
        return {
            "embedding_prev": torch.zeros_like(self.embed.weight.data), "embedding_curr": self.embed.weight.data,
            "conv_out_weight": self.conv_out.conv.weight.data, "conv_end_weight": self.conv_end.conv.weight.data,
            **{f"{name}_weights": of(layers, "weight") for name, layers in lists.items()},
            **{f"{name}_biases": of(layers, "bias") for name, layers in lists.items()},
            "max_dilation": self.max_dilation, "use_embed_tanh": False,
        }  # fmt: skip

    @torch.inference_mode()
    def forward(self, heard: np.ndarray, mel: np.ndarray, past: int = 0) -> Stages:
        c = self.upsample(torch.tensor(mel)[None])
        c = c[..., : mel.shape[1] * self.stride][..., : len(heard)]
        c = self.cond_layers.conv(c).reshape(1, self.layers, -1, c.shape[-1])
        x = self.embed(torch.tensor(heard)).T[None]
        seen, skips = {"embed": x}, torch.zeros(())
        for i in range(self.layers):
            z = causal(x, self.dilate_layers[i].conv) + c[:, i]
            half = z.shape[1] // 2
            gate = torch.tanh(z[:, :half]) * torch.sigmoid(z[:, half:])
            skips = skips + self.skip_layers[i].conv(gate)
            seen[f"gate.{i}"] = gate
            if i + 1 < self.layers:
                x = seen[f"x.{i}"] = x + self.res_layers[i].conv(gate)
        seen["skip"], seen["hidden"] = skips, self.conv_out.conv(torch.relu(skips))
        seen["logits"] = self.conv_end.conv(torch.relu(seen["hidden"]))
        return kept(seen)
