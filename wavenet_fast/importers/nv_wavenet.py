"""NVIDIA/nv-wavenet's PyTorch model, or what its `export_weights()` gives, as a `WaveNetConfig` and its weights. No
torch, no files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from msgspec import Meta, Struct

from ..config import (
    Biases,
    CategoricalHead,
    Conditioning,
    MelSpec,
    OneHotInput,
    Stages,
    TransposedStage,
    WaveNetConfig,
    decode,
    encode,
)
from ..errors import CheckpointError, InputError
from ..mel import MEL_PRESETS
from .common import Array, Imported, Shapes, finished, need, need_axes, numbered, plain_tensors

FAMILY = "nv-wavenet"
WHERE = "the nv-wavenet checkpoint"
LISTS = {
    "dilate_weights": "dilate_layers.{}.conv.weight", "dilate_biases": "dilate_layers.{}.conv.bias",
    "res_weights": "res_layers.{}.conv.weight", "res_biases": "res_layers.{}.conv.bias",
    "skip_weights": "skip_layers.{}.conv.weight", "skip_biases": "skip_layers.{}.conv.bias",
}  # fmt: skip
"""Lists of an exported dictionary → the module's names for their entries."""

_SINGLES = {
    "embedding_prev": "embed_prev.weight", "embedding_curr": "embed.weight", "conv_out_weight": "conv_out.conv.weight",
    "conv_end_weight": "conv_end.conv.weight", "conv_out_bias": "conv_out.conv.bias",
    "conv_end_bias": "conv_end.conv.bias",
}  # fmt: skip
_CONDITIONING = ("upsample.weight", "upsample.bias", "cond_layers.conv.weight", "cond_layers.conv.bias")
_Size = Annotated[int, Meta(ge=1, le=1 << 20)]


class Config(Struct, frozen=True, kw_only=True):
    """What is read of nv-wavenet's `config.json`, from its parts `wavenet_config` and `data_config`."""

    max_dilation: _Size | None = None
    upsamp_stride: _Size | None = None
    sampling_rate: int = 16000
    use_embed_tanh: bool = False


def from_state(
    state: Mapping[str, Any],
    config: Mapping[str, Any] | None = None,
    *,
    conditioning: Mapping[str, Any] | None = None,
    mel: MelSpec | None = None,
) -> Imported:
    """The module's state dictionary, or the dictionary of `export_weights()`.

    config        contents of its `config.json`: max_dilation (which an exported dictionary holds itself) and
                  upsamp_stride are not in the tensors
    conditioning  an exported dictionary comes without the network from mel to conditioning: a state dictionary that
                  has its `upsample` and `cond_layers`
    mel           the recipe of its mels, where it is not the project's own

    Raises `CheckpointError` for tensors that are missing, left over or of another shape, `ConfigError` and
    `InputError` for what is not said or cannot be used."""
    flat = dict(config or {})
    for part in ("wavenet_config", "data_config"):
        within = flat.get(part)
        flat |= within if isinstance(within, Mapping) else {}
    exported = is_exported(state)
    if exported:
        flat |= {name: state[name] for name in ("max_dilation", "use_embed_tanh") if name in state}
        state = {**_module_names(state), **_conditioning_of(conditioning)}
    told = decode(
        Config, {name: flat[name] for name in Config.__struct_fields__ if name in flat}, "nv-wavenet's config"
    )
    tensors = plain_tensors(state, WHERE)
    need(tensors, _wanted(tensors), WHERE)
    network = _config(told, tensors)
    weights = finished(network, _renamed(tensors, network), WHERE)
    notes: list[str] = []
    if mel is None:
        mel = MEL_PRESETS["nv-wavenet-16k"]
        if (mel.sample_rate, mel.hop_length, mel.n_mels) != (network.sample_rate, network.hop_length, network.n_mels):
            mel = None
            notes.append("Its sample rate, hop or bands are not those of the recipe in its repository.")
    what = "the dictionary of export_weights()" if exported else "a module's state"
    return Imported(network, weights, mel, notes, {"family": f"NVIDIA/nv-wavenet, {what}", "config": encode(told)})


def is_exported(state: Mapping[str, Any]) -> bool:
    return "embedding_curr" in state and "dilate_weights" in state


def _module_names(exported: Mapping[str, Any]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for name, pattern in LISTS.items():
        entries = exported.get(name, ())
        if not isinstance(entries, Sequence) or isinstance(entries, (str, bytes)):
            raise CheckpointError(f"{WHERE}: {name} is no list of tensors")
        named |= {pattern.format(i): entry for i, entry in enumerate(entries)}
    named |= {theirs: exported[name] for name, theirs in _SINGLES.items() if exported.get(name) is not None}
    if "embed_prev.weight" in named and not np.asarray(named["embed_prev.weight"]).any():
        del named["embed_prev.weight"]  # as nv-wavenet's own PyTorch model exports it
    return named


def _conditioning_of(state: Mapping[str, Any] | None) -> dict[str, Any]:
    if state is None:
        raise InputError(
            "what export_weights() gives has no network from mel to conditioning (upsample, cond_layers): give the file"
            " of the whole model, or one with that network as --conditioning. To run it on conditioning that you have,"
            " use wavenet_fast.compat.nv_wavenet"
        )
    return {name: state[name] for name in _CONDITIONING if name in state}


def _wanted(tensors: Mapping[str, Array]) -> Shapes:
    """Name → shape of every tensor that such a network has."""
    layers = numbered(tensors, "dilate_layers", ".conv.weight")
    known = {"embed.weight": 2, "dilate_layers.0.conv.weight": 3, "skip_layers.0.conv.weight": 3,
             "conv_out.conv.weight": 3, "upsample.weight": 3}  # fmt: skip
    need_axes(tensors, known, WHERE)
    missing = [name for name in known if name not in tensors]
    if missing:
        raise CheckpointError(f"{WHERE}: has no {', '.join(missing)}, which every nv-wavenet model has")
    (A, R), (G, _, K) = tensors["embed.weight"].shape, tensors["dilate_layers.0.conv.weight"].shape
    S, H = tensors["skip_layers.0.conv.weight"].shape[0], tensors["conv_out.conv.weight"].shape[0]
    M, _, window = tensors["upsample.weight"].shape
    shapes: Shapes = {
        "upsample.weight": (M, M, window), "upsample.bias": (M,),
        "cond_layers.conv.weight": (G * layers, M, 1), "cond_layers.conv.bias": (G * layers,), "embed.weight": (A, R),
        "conv_out.conv.weight": (H, S, 1), "conv_end.conv.weight": (A, H, 1),
    }  # fmt: skip
    optional = {"embed_prev.weight": (A, R), "conv_out.conv.bias": (H,), "conv_end.conv.bias": (A,)}
    shapes |= {name: shape for name, shape in optional.items() if name in tensors}
    for i in range(layers):
        named = [(f"dilate_layers.{i}", (G, R, K)), (f"skip_layers.{i}", (S, G // 2, 1))]
        if i + 1 < layers:
            named.append((f"res_layers.{i}", (R, G // 2, 1)))
        for name, shape in named:
            shapes |= {f"{name}.conv.weight": shape, f"{name}.conv.bias": shape[:1]}
    return shapes


def _config(told: Config, tensors: Mapping[str, Array]) -> WaveNetConfig:
    if told.max_dilation is None or told.upsamp_stride is None:
        lacking = "max_dilation" if told.max_dilation is None else "upsamp_stride"
        raise InputError(f"the tensors do not say {lacking}; give nv-wavenet's config.json as --hparams")
    layers = numbered(tensors, "dilate_layers", ".conv.weight")
    (A, R), (G, _, K) = tensors["embed.weight"].shape, tensors["dilate_layers.0.conv.weight"].shape
    H, S, _ = tensors["conv_out.conv.weight"].shape
    M, _, window = tensors["upsample.weight"].shape
    cycle = told.max_dilation.bit_length()
    return WaveNetConfig(
        sample_rate=told.sampling_rate, hop_length=told.upsamp_stride, n_mels=M,
        dilations=tuple(1 << (i % cycle) for i in range(layers)), kernel_size=K,
        residual_channels=R, gate_channels=G, skip_channels=S, head_channels=H,
        input=OneHotInput(kernel_size=2 if "embed_prev.weight" in tensors else 1, tanh=told.use_embed_tanh),
        head=CategoricalHead(classes=A),
        conditioning=Conditioning(
            upsampling=Stages(stages=(TransposedStage(scale=told.upsamp_stride, kernel_size=window),))
        ),
        biases=Biases(
            input=False, conditioning=True, head_hidden="conv_out.conv.bias" in tensors,
            head_out="conv_end.conv.bias" in tensors,
        ),
    )  # fmt: skip


def _renamed(tensors: Mapping[str, Array], config: WaveNetConfig) -> dict[str, Array]:
    """By this project's names."""
    taps = [tensors[name].T for name in ("embed_prev.weight", "embed.weight") if name in tensors]
    weights = {"input.weight": np.stack(taps, axis=2)}
    G = config.gate_channels
    for kind in ("weight", "bias"):
        weights[f"conditioning.stages.0.{kind}"] = tensors[f"upsample.{kind}"]
        for i in range(config.n_layers):
            layer = f"layers.{i}"
            weights[f"{layer}.conditioning.{kind}"] = tensors[f"cond_layers.conv.{kind}"][i * G : (i + 1) * G]
            weights[f"{layer}.dilated.{kind}"] = tensors[f"dilate_layers.{i}.conv.{kind}"]
            weights[f"{layer}.skip.{kind}"] = tensors[f"skip_layers.{i}.conv.{kind}"]
            if i + 1 < config.n_layers:
                weights[f"{layer}.residual.{kind}"] = tensors[f"res_layers.{i}.conv.{kind}"]
        for ours, theirs in (("hidden", "conv_out"), ("out", "conv_end")):
            if f"{theirs}.conv.{kind}" in tensors:
                weights[f"head.{ours}.{kind}"] = tensors[f"{theirs}.conv.{kind}"]
    return weights
