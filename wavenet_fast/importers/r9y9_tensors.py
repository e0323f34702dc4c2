"""The tensors of r9y9's networks: what their sizes are, which there must be, and what we call them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from msgspec import Struct

from ..config import WaveNetConfig
from ..errors import CheckpointError, ConfigError
from .common import Array, Shapes, need_axes, numbered

WHERE = "the r9y9 checkpoint"
_OTHERS = ("conv_layers.0.conv1x1c.weight", "conv_layers.0.conv1x1g.weight", "upsample_net.conv_in.weight")


class Sizes(Struct, frozen=True):
    """By the README's letters; M is the width of the mel, A that of the output in the file."""

    L: int
    K: int
    R: int
    G: int
    S: int
    A: int
    M: int
    P: int
    inputs: int


def sizes(tensors: Mapping[str, Array]) -> Sizes:
    """Raises `CheckpointError` where they cannot be told."""
    layers = numbered(tensors, "conv_layers", ".conv.weight")
    named = ("first_conv.weight", "conv_layers.0.conv.weight", "conv_layers.0.conv1x1_skip.weight",
             "last_conv_layers.3.weight")  # fmt: skip
    need_axes(tensors, {name: 3 for name in (*named, *_OTHERS)} | {"embed_speakers.weight": 2}, WHERE)
    missing = [name for name in named if name not in tensors]
    if missing:
        raise CheckpointError(f"{WHERE}: has no convolution {', '.join(missing)}, which every r9y9 WaveNet has")
    if "conv_layers.0.conv1x1c.weight" not in tensors:
        raise CheckpointError(
            f"{WHERE}: has no conv_layers.0.conv1x1c: it was trained without a mel (cin_channels below 0), and a"
            " vocoder needs one"
        )
    first, conv, skip, out = (tensors[name].shape for name in named)
    speaker = tensors.get("conv_layers.0.conv1x1g.weight")
    return Sizes(
        L=layers, K=conv[2], R=conv[1], G=conv[0], S=skip[0], A=out[0], inputs=first[1],
        M=tensors["conv_layers.0.conv1x1c.weight"].shape[1], P=0 if speaker is None else speaker.shape[1],
    )  # fmt: skip


def wanted(tensors: Mapping[str, Array], n: Sizes, old: bool) -> Shapes:
    """Name → shape of every tensor that such a network has."""
    half = n.G // 2
    shapes: Shapes = {"first_conv.weight": (n.R, n.inputs, 1), "first_conv.bias": (n.R,)}
    for i in range(n.L):
        layer = f"conv_layers.{i}"
        shapes |= {f"{layer}.conv.weight": (n.G, n.R, n.K), f"{layer}.conv.bias": (n.G,)}
        for name, width in (("conv1x1c", n.M), ("conv1x1g", n.P)):
            if width:
                shapes[f"{layer}.{name}.weight"] = (n.G, width, 1)
                if old:
                    shapes[f"{layer}.{name}.bias"] = (n.G,)
        for name, width in (("conv1x1_out", n.R), ("conv1x1_skip", n.S)):
            shapes |= {f"{layer}.{name}.weight": (width, half, 1), f"{layer}.{name}.bias": (width,)}
    for i, width in ((1, n.S), (3, n.A)):
        shapes |= {f"last_conv_layers.{i}.weight": (width, n.S, 1), f"last_conv_layers.{i}.bias": (width,)}
    if "embed_speakers.weight" in tensors:
        shapes["embed_speakers.weight"] = (tensors["embed_speakers.weight"].shape[0], n.P)
    if "upsample_net.conv_in.weight" in tensors:
        shapes["upsample_net.conv_in.weight"] = (n.M, n.M, tensors["upsample_net.conv_in.weight"].shape[-1])
    for name in stage_names(tensors, old):
        found = tensors[name].shape
        shapes[name] = (1, 1, *found[2:]) if len(found) == 4 else (1, 1, 3, 9)
        if old:
            shapes[name.replace("weight", "bias")] = (1,)
    return shapes


def stage_names(tensors: Mapping[str, Any], old: bool) -> list[str]:
    """The weights of the upsampling, in order. Activations between them take numbers and have no tensors."""
    stems = ("upsample_conv.",) if old else ("upsample_net.upsample.up_layers.", "upsample_net.up_layers.")
    found = {}
    for name in tensors:
        for stem in stems:
            number = name.removeprefix(stem).removesuffix(".weight")
            if name == f"{stem}{number}.weight" and number.isdecimal():
                found[int(number)] = name
    return [found[number] for number in sorted(found)]


def check_numbers(names: list[str], activation: str) -> None:
    """Raises `ConfigError` where the numbers of the new generation's stages leave no place for the activation, or one
    too many: a stage is a stretching, a convolution and, if there is one, an activation."""
    numbers = [int(name.split(".")[-2]) for name in names]
    step = 2 if activation == "none" else 3
    if any(after - before != step for before, after in pairwise(numbers)):
        raise ConfigError(
            f"hparams: upsample_params.upsample_activation is {activation!r}, and the file's upsampling layers have the"
            f" numbers {numbers}, which must then be {step} apart: are these the hparams of this file?"
        )


def renamed(tensors: Mapping[str, Array], config: WaveNetConfig) -> dict[str, Array]:
    """By this project's names. The last layer's residual is left out: nothing hears it."""
    weights: dict[str, Array] = {}

    def copy(ours: str, theirs: str) -> None:
        for kind in ("weight", "bias"):
            if f"{theirs}.{kind}" in tensors:
                weights[f"{ours}.{kind}"] = tensors[f"{theirs}.{kind}"]

    copy("input", "first_conv")
    pairs = {
        "dilated": "conv", "conditioning": "conv1x1c", "speaker": "conv1x1g", "residual": "conv1x1_out",
        "skip": "conv1x1_skip",
    }  # fmt: skip
    for i in range(config.n_layers):
        for ours, theirs in pairs.items():
            copy(f"layers.{i}.{ours}", f"conv_layers.{i}.{theirs}")
    copy("head.hidden", "last_conv_layers.1")
    copy("head.out", "last_conv_layers.3")
    if len(weights["head.out.weight"]) == 3 and config.out_channels == 2:
        # One component: its weight is 1 whatever its logit is.
        weights["head.out.weight"], weights["head.out.bias"] = (
            weights["head.out.weight"][1:],
            weights["head.out.bias"][1:],
        )
    if config.speakers.count:
        weights["speakers.weight"] = tensors["embed_speakers.weight"]
    if config.conditioning.network:
        weights["conditioning.network.0.weight"] = tensors["upsample_net.conv_in.weight"]
    for i, name in enumerate(stage_names(tensors, old=config.biases.conditioning)):
        copy(f"conditioning.stages.{i}", name.removesuffix(".weight"))
    return weights
