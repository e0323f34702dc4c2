"""The named shapes that tests and benchmarks share, and random weights for them that sound like nothing but behave like
a trained network: every stage keeps its variance, and the distributions over samples are peaked and differ."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .config import (
    CategoricalHead,
    Conditioning,
    FrameConv,
    LogisticHead,
    ScalarInput,
    Signal,
    Stages,
    TransposedStage,
    WaveNetConfig,
)
from .errors import ConfigError
from .weights import weight_shapes


def _cycles(count: int, layers: int) -> tuple[int, ...]:
    """`count` times the dilations 1, 2, 4 … of a cycle of `layers`."""
    return tuple(1 << i for _ in range(count) for i in range(layers))


def _case(
    dilations: tuple[int, ...], kernel_size: int, channels: tuple[int, int, int, int], **changes: Any
) -> WaveNetConfig:
    R, G, S, H = channels
    fields: dict[str, Any] = {"sample_rate": 16000, "hop_length": 200, "n_mels": 80}
    return WaveNetConfig(
        dilations=dilations, kernel_size=kernel_size, residual_channels=R, gate_channels=G, skip_channels=S,
        head_channels=H, **fields | changes,
    )  # fmt: skip


def _r9y9(channels: tuple[int, int, int, int]) -> WaveNetConfig:
    """r9y9/wavenet_vocoder: 22.05 kHz, mixture of 10 logistics, learned upsampling of the mel as a picture."""
    scales = (4, 4, 4, 4)
    stages = tuple(
        TransposedStage(scale=s, kernel_size=s, image=True, freq_kernel_size=3, activation="relu") for s in scales
    )
    return _case(
        _cycles(4, 6), 3, channels, sample_rate=22050, hop_length=256, residual_scale=0.5**0.5,
        skip_scale=(1 / 24) ** 0.5, input=ScalarInput(), head=LogisticHead(components=10, log_scale_min=-16.0),
        conditioning=Conditioning(upsampling=Stages(stages=stages)), signal=Signal(),
    )  # fmt: skip


CASES: dict[str, WaveNetConfig] = {
    "tiny": _case(_cycles(2, 3), 2, (16, 32, 32, 32), hop_length=16, n_mels=8),
    "odd": _case(
        (1, 3, 7, 2, 5), 3, (24, 40, 36, 28), hop_length=11, n_mels=13, head=CategoricalHead(classes=200),
        conditioning=Conditioning(network=(FrameConv(channels=17, kernel_size=3, activation="relu"),)),
    ),
    "voice": _case(_cycles(2, 6), 3, (64, 128, 128, 256)),
    "nv-small": _case(_cycles(2, 10), 2, (32, 64, 128, 256)),
    "nv-medium": _case(_cycles(2, 10), 2, (64, 128, 128, 256)),
    "nv-large": _case(_cycles(3, 10), 2, (128, 256, 256, 256)),
    "r9y9-mol": _r9y9((128, 256, 128, 128)),
    "r9y9-512": _r9y9((512, 512, 256, 256)),
    "wavenet-2016": _case(_cycles(3, 10), 2, (512, 512, 256, 256)),
}  # fmt: skip


def case(name: str) -> WaveNetConfig:
    """The configuration of a named case. Raises `ConfigError` that lists the names."""
    if name not in CASES:
        raise ConfigError(f"case {name!r} is unknown; there are {', '.join(CASES)}")
    return CASES[name]


def random_weights(config: WaveNetConfig, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Every tensor of `weight_shapes(config)`, float32, the same for the same seed.

    Gains are chosen so that gates leave their linear range, the skip sum stays of order one, and logits differ by
    several nats: a network whose softmax is flat hides errors."""
    rng = np.random.default_rng(seed)
    weights: dict[str, NDArray[np.float32]] = {}
    for name, shape in weight_shapes(config).items():
        weights[name] = (rng.standard_normal(shape) * _spread(config, name, shape)).astype(np.float32)
        if name == "mel.scale":
            weights[name] = np.abs(weights[name]) + np.float32(0.5)
    if not isinstance(config.head, CategoricalHead) and config.biases.head_out:
        # Narrow components, so that most samples lie between the clamps at ±1.
        weights["head.out.bias"][-config.head.components :] -= np.float32(3)
    return weights


def _spread(config: WaveNetConfig, name: str, shape: tuple[int, ...]) -> float:
    """Standard deviation of a tensor's entries."""
    if name.endswith("bias"):
        return 0.1
    if name in ("mel.mean", "mel.scale", "speakers.weight", "input.weight"):
        return 1.0
    fan_in = float(math.prod(shape[1:]))
    if name.startswith("conditioning.stages"):
        fan_in = _stage_fan_in(config, name, shape)
    if name == "head.out.weight":
        # Mixture heads put out means, which want to stay near zero.
        return (6.0 if isinstance(config.head, CategoricalHead) else 1.5) / math.sqrt(fan_in)
    if ".skip." in name:
        # A gate's mean square is about a quarter, and L of them are added.
        return 2.0 / math.sqrt(fan_in * (config.n_layers if config.skip_rule == "sum" else 1)) / config.skip_scale
    return {"residual": 0.7, "dilated": 1.2}.get(name.split(".")[-2], 1.0) / math.sqrt(fan_in)


def _stage_fan_in(config: WaveNetConfig, name: str, shape: tuple[int, ...]) -> float:
    """Inputs that meet in one output of an upsampling stage: a transposed stage spreads its taps over scale outputs."""
    assert isinstance(config.conditioning.upsampling, Stages)
    stage = config.conditioning.upsampling.stages[int(name.split(".")[2])]
    if not isinstance(stage, TransposedStage):
        return float(math.prod(shape if stage.image else shape[1:]))
    taps = max(1.0, stage.kernel_size / stage.scale)
    return taps * (stage.freq_kernel_size if stage.image else shape[0])
