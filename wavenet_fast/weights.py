"""The named tensors of a model: one list from which checkpoint, reference, trainer and packing all work."""

import math

from .config import RepeatStage, Stages, WaveNetConfig


def weight_shapes(config: WaveNetConfig) -> dict[str, tuple[int, ...]]:
    """Name → shape of every tensor, in the order in which sound passes through them.

    Convolutions are stored as PyTorch does, (out, in, taps) with the newest sample at tap −1; 1×1 convolutions as
    (out, in); transposed stages as (in, out, taps); picture stages as (frequency taps, time taps). Rows 0 … G/2−1 of
    `dilated`, `conditioning` and `speaker` feed the tanh, the rest the sigmoid. The last layer has no `residual`:
    nothing would read it.
    """
    c, b = config, config.biases
    half, P = c.gate_channels // 2, c.speakers.channels
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, shape: tuple[int, ...], bias: bool, out: int | None = None) -> None:
        shapes[f"{name}.weight"] = shape
        if bias:
            shapes[f"{name}.bias"] = (shape[0] if out is None else out,)

    if c.conditioning.standardise:
        shapes["mel.mean"] = shapes["mel.scale"] = (c.n_mels,)
    width = c.n_mels
    for i, conv in enumerate(c.conditioning.network):
        linear(f"conditioning.network.{i}", (conv.channels, width, conv.kernel_size), conv.bias)
        width = conv.channels
    if isinstance(c.conditioning.upsampling, Stages):
        for i, stage in enumerate(c.conditioning.upsampling.stages):
            name, out = f"conditioning.stages.{i}", stage.channels or width
            if stage.image:
                linear(name, (stage.freq_kernel_size, stage.kernel_size), stage.bias, out=1)
            elif isinstance(stage, RepeatStage):
                linear(name, (out, width, stage.kernel_size), stage.bias)
            else:
                linear(name, (width, out, stage.kernel_size), stage.bias, out=out)
            width = out
    if c.speakers.count:
        shapes["speakers.weight"] = (c.speakers.count, P)
    linear("input", (c.residual_channels, c.in_channels, c.input.kernel_size), b.input)
    for i in range(c.n_layers):
        layer = f"layers.{i}"
        linear(f"{layer}.dilated", (c.gate_channels, c.residual_channels, c.kernel_size), b.dilated)
        linear(f"{layer}.conditioning", (c.gate_channels, width), b.conditioning)
        if P:
            linear(f"{layer}.speaker", (c.gate_channels, P), b.speaker)
        if i + 1 < c.n_layers:
            linear(f"{layer}.residual", (c.residual_channels, half), b.residual)
        linear(f"{layer}.skip", (c.skip_channels, half), b.skip)
    linear("head.hidden", (c.head_channels, c.skip_channels), b.head_hidden)
    linear("head.out", (c.out_channels, c.head_channels), b.head_out)
    return shapes


def weight_count(config: WaveNetConfig) -> int:
    """Number of parameters, from the shapes alone."""
    return sum(math.prod(shape) for shape in weight_shapes(config).values())
