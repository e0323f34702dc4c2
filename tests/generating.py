"""The networks of `families` with the methods by which their projects generate, so that they can be patched: slow, and
with our sampler."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from families import KanBayashi, NewR9y9
from torch import Tensor, nn

from wavenet_fast.config import CategoricalHead, GaussianHead, LogisticHead
from wavenet_fast.rng import uniforms
from wavenet_fast.sampling import sample

SEED = 11


def drawn(logits: np.ndarray, head: Any, b: int, t: int) -> Any:
    """What stream b draws as its sample t, where the seed is `SEED`."""
    return sample(np.asarray(logits, np.float32), uniforms(np.uint64(SEED + b), np.array(t)), head)


def sample_from_discretized_mix_logistic(
    y: np.ndarray, b: int, t: int, log_scale_min: float = -7.0, clamp_log_scale: bool = False
) -> float:
    """By the name, and the argument that is off, which the newer code has."""
    floor = log_scale_min if clamp_log_scale else None
    return float(drawn(y, LogisticHead(components=len(y) // 3, log_scale_min=floor), b, t))


def sample_from_mix_gaussian(y: np.ndarray, b: int, t: int, log_scale_min: float = -7.0) -> float:
    return float(drawn(y, GaussianHead(components=max(1, len(y) // 3)), b, t))


class GeneratingR9y9(NewR9y9):
    """`incremental_forward` takes mels that are padded already, as r9y9's upsampling does."""

    def __init__(self, *arguments: Any, distribution: str = "Logistic", **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.scalar_input = self.first_conv.in_channels == 1
        self.out_channels, self.output_distribution = self.last_conv_layers[3].out_channels, distribution
        self.embed_speakers = None
        self.upsample_net.forward = self.upsampled

    def upsampled(self, mel: Tensor) -> Tensor:
        c = self.upsample_net.conv_in(mel)[:, None]
        scales = iter(self.scales)
        for step in self.upsample_net.upsample.up_layers:
            c = step(c.repeat_interleave(next(scales), dim=-1) if isinstance(step, nn.Conv2d) else c)
        return c[:, 0]

    def incremental_forward(
        self, initial_input: Any = None, c: Any = None, g: Any = None, T: int = 100, test_inputs: Any = None,
        tqdm: Callable[[Iterable[int]], Any] = lambda x: x, softmax: bool = True, quantize: bool = True,
        log_scale_min: float = -50.0,
    ) -> Tensor:  # fmt: skip
        assert self.upsample_net(c).shape[-1] == T
        out = torch.zeros(len(c), 1 if self.scalar_input else self.out_channels, T)
        for b in range(len(c)):
            heard = [self.start]
            for t in range(T):
                kind = np.float32 if self.scalar_input else np.int64
                vector = None if g is None else g[b].numpy()
                logits = self(np.array(heard, kind), c[b].numpy(), speaker=vector)["logits"][-1]
                if not self.scalar_input:
                    heard.append(drawn(logits, CategoricalHead(classes=self.out_channels), b, t))
                    out[b, heard[-1], t] = 1
                    continue
                draw = {"Logistic": sample_from_discretized_mix_logistic, "Normal": sample_from_mix_gaussian}
                logits = logits[1:] if len(logits) == 3 else logits  # one component, whose logit changes nothing
                heard.append(float(draw[self.output_distribution](logits, b, t, log_scale_min)))
                out[b, 0, t] = heard[-1]
        return out


class GeneratingKanBayashi(KanBayashi):
    """x and h as its methods take them; `factor` 0 is a network whose h comes at sample rate, here held for 6."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.n_quantize, self.n_aux, self.upsampling_factor = self.classes, 7, self.factor
        self.dilation_depth, self.dilation_repeat = self.depth, self.repeat
        if self.factor:
            self.upsampling.forward = lambda h: self.upsampling.conv(h[:, None])[:, 0]

    def fast_generate(
        self, x: Tensor, h: Tensor, n_samples: int, intervals: int | None = None, mode: str = "sampling", b: int = 0
    ) -> np.ndarray:
        missing = max(0, self.receptive_field - x.shape[1])
        heard = [self.start] * missing + x[0].tolist()
        first, mel = len(heard), (h if self.factor else h[:, :, ::6])[0].numpy()
        for t in range(n_samples):
            logits = self(np.array(heard), mel, missing)["logits"][-1]
            head = CategoricalHead(classes=self.classes)
            heard.append(int(logits.argmax() if mode == "argmax" else drawn(logits, head, b, first - 1 + t)))
        return np.array(heard[first:])

    generate = fast_generate

    def batch_fast_generate(
        self, x: Tensor, h: Tensor, n_samples_list: list[int], intervals: int | None = None, mode: str = "sampling"
    ) -> list[np.ndarray]:
        made = [
            self.fast_generate(x[b : b + 1], h[b : b + 1], n, intervals, mode, b) for b, n in enumerate(n_samples_list)
        ]
        return sorted(made, key=len)


class GeneratingEspnet(GeneratingKanBayashi):
    """ESPnet's copy: one method, x (T,), h (F, M). What h says of the last sample goes on where it ends too early; here
    for `factor` 0 alone."""

    fast_generate = batch_fast_generate = None  # type: ignore[assignment]

    def generate(
        self, x: Tensor, h: Tensor, n_samples: int, interval: int | None = None, mode: str = "sampling"
    ) -> np.ndarray:
        more = 0 if self.factor else -(-max(0, n_samples - len(h)) // 6) * 6
        h = torch.cat([h, h[-1:].expand(more, -1)])
        return GeneratingKanBayashi.fast_generate(self, x[None], h.T[None], n_samples, interval, mode)
