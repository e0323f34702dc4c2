"""kan-bayashi/PytorchWaveNetVocoder, which ESPnet's softmax recipes use too, as a `WaveNetConfig` and its weights. No
torch, no files.

Its n-th sample is predicted from sample n−1 and the features of n−1, and what it returns leaves sample 0 out, the class
of silence that it was given: the t-th sample it returns hears the features of t, as ours does. Before that it has
heard silence, with the first features, for as long as its receptive field.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import ArrayLike

from ..config import (
    Biases,
    CategoricalHead,
    Conditioning,
    Hold,
    MelSpec,
    OneHotInput,
    Stages,
    TransposedStage,
    WaveNetConfig,
    decode,
    encode,
)
from ..errors import CheckpointError, ConfigError, InputError
from ..shaping import FILTER, MAX_TAPS
from .common import Array, Imported, Shapes, finished, need, need_axes, numbered, plain_tensors, statistics

FAMILY = "kan-bayashi"
WHERE = "the kan-bayashi checkpoint"

_Size = Annotated[int, Meta(ge=1, le=1 << 20)]


class Conf(Struct, frozen=True, kw_only=True):
    """What is read of `model.conf`. The tensors say the sizes of layers; `fs` is not in the file of the project."""

    dilation_depth: Annotated[int, Meta(ge=1, le=24)]
    dilation_repeat: _Size
    upsampling_factor: _Size = 80
    use_upsampling_layer: bool = True
    use_speaker_code: bool = False
    feature_type: str = "world"
    fs: int | None = None


def from_state(
    state: Mapping[str, ArrayLike],
    conf: Mapping[str, Any],
    *,
    stats: Mapping[str, Any] | None = None,
    mel: MelSpec | None = None,
    sample_rate: int | None = None,
) -> Imported:
    """A state dictionary and the contents of `model.conf`.

    stats        mean and scale (M,) of what it hears, out of `stats.h5`, and where that has a noise-shaping filter
                 "mlsa": {"coef": (n,), "alpha": number}, which becomes the voice's sound.filter
    mel          the recipe of its mels, which `model.conf` does not say
    sample_rate  Hz, which `model.conf` does not say either

    Raises `CheckpointError` for tensors that are missing, left over or of another shape, `ConfigError` for a conf that
    cannot be used, and `InputError` where an option is needed."""
    told = decode(Conf, {**conf, "use_upsampling_layer": bool(conf.get("use_upsampling_layer", True)),
                         "use_speaker_code": bool(conf.get("use_speaker_code", False))}, "model.conf")  # fmt: skip
    rate = told.fs if sample_rate is None else sample_rate
    if rate is None:
        raise InputError(
            "kan-bayashi's model.conf does not say the sample rate of its sound; give --sample-rate, in Hz"
        )
    tensors = plain_tensors(state, WHERE)
    layers = numbered(tensors, "dil_tanh", ".conv.weight")
    if told.dilation_depth * told.dilation_repeat != layers:
        raise ConfigError(
            f"model.conf: dilation_depth {told.dilation_depth} · dilation_repeat {told.dilation_repeat} is not the"
            f" file's {layers} layers: is it the conf of this file?"
        )
    need(tensors, _wanted(tensors, layers), WHERE)
    config = _config(told, tensors, rate)
    weights = finished(config, {**_fused(tensors, config), **statistics(stats, config.n_mels)}, WHERE)
    if stats is not None and "mlsa" in stats:
        weights[FILTER] = mlsa_response(stats["mlsa"]["coef"], stats["mlsa"]["alpha"])
    notes = _notes(told, config, stats, mel)
    provenance = {"family": "kan-bayashi/PytorchWaveNetVocoder", "model.conf": encode(told)}
    return Imported(config, weights, mel, notes, provenance)


def _wanted(tensors: Mapping[str, Array], layers: int) -> Shapes:
    """Name → shape of every tensor that such a network has."""
    known = ("causal.conv.weight", "aux_1x1_tanh.0.weight", "skip_1x1.0.weight")
    need_axes(tensors, {name: 3 for name in known} | {"upsampling.conv.weight": 4}, WHERE)
    missing = [name for name in known if name not in tensors]
    if missing:
        raise CheckpointError(f"{WHERE}: has no convolution {', '.join(missing)}, which every such WaveNet has")
    (R, Q, K), M, S = tensors[known[0]].shape, tensors[known[1]].shape[1], tensors[known[2]].shape[0]
    shapes: Shapes = {"causal.conv.weight": (R, Q, K), "causal.conv.bias": (R,)}
    if any(name.startswith("upsampling.") for name in tensors):
        taps = tensors["upsampling.conv.weight"].shape[-1] if "upsampling.conv.weight" in tensors else 1
        shapes |= {"upsampling.conv.weight": (1, 1, 1, taps), "upsampling.conv.bias": (1,)}
    for i in range(layers):
        for name, shape in (
            (f"dil_tanh.{i}.conv", (R, R, K)), (f"dil_sigmoid.{i}.conv", (R, R, K)),
            (f"aux_1x1_tanh.{i}", (R, M, 1)), (f"aux_1x1_sigmoid.{i}", (R, M, 1)),
            (f"res_1x1.{i}", (R, R, 1)), (f"skip_1x1.{i}", (S, R, 1)),
        ):  # fmt: skip
            shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name, width in (("conv_post_1", S), ("conv_post_2", Q)):
        shapes |= {f"{name}.weight": (width, S, 1), f"{name}.bias": (width,)}
    return shapes


def _config(told: Conf, tensors: Mapping[str, Array], rate: int) -> WaveNetConfig:
    (R, Q, K), S = tensors["causal.conv.weight"].shape, tensors["skip_1x1.0.weight"].shape[0]
    hop, upsampling = told.upsampling_factor, tensors.get("upsampling.conv.weight")
    if told.use_upsampling_layer != (upsampling is not None):
        has = "an upsampling layer" if upsampling is not None else "no upsampling layer"
        raise ConfigError(f"model.conf: use_upsampling_layer is {told.use_upsampling_layer}, and the file has {has}")
    if upsampling is not None and upsampling.shape[-1] != hop:
        raise ConfigError(
            f"model.conf: upsampling_factor is {hop}, and the file's layer makes {upsampling.shape[-1]} samples"
        )
    learned = Stages(stages=(TransposedStage(scale=hop, kernel_size=hop, image=True),))
    return WaveNetConfig(
        sample_rate=rate, hop_length=hop, n_mels=tensors["aux_1x1_tanh.0.weight"].shape[1],
        dilations=tuple(1 << i for i in range(told.dilation_depth)) * told.dilation_repeat, kernel_size=K,
        residual_channels=R, gate_channels=2 * R, skip_channels=S, head_channels=S,
        input=OneHotInput(kernel_size=K, start=Q // 2), head=CategoricalHead(classes=Q, decode_offset=0.5),
        past="steady", conditioning=Conditioning(upsampling=Hold() if upsampling is None else learned),
        biases=Biases(conditioning=True),
    )  # fmt: skip


def _fused(tensors: Mapping[str, Array], config: WaveNetConfig) -> dict[str, Array]:
    """By this project's names: the tanh and sigmoid convolutions as the halves of one. The last layer's residual is
    left out: nothing hears it."""
    weights: dict[str, Array] = {}
    for kind in ("weight", "bias"):
        weights[f"input.{kind}"] = tensors[f"causal.conv.{kind}"]
        for i in range(config.n_layers):
            layer = f"layers.{i}"
            for ours, tanh, sigmoid in (
                ("dilated", f"dil_tanh.{i}.conv", f"dil_sigmoid.{i}.conv"),
                ("conditioning", f"aux_1x1_tanh.{i}", f"aux_1x1_sigmoid.{i}"),
            ):
                weights[f"{layer}.{ours}.{kind}"] = np.concatenate(
                    [tensors[f"{tanh}.{kind}"], tensors[f"{sigmoid}.{kind}"]]
                )
            weights[f"{layer}.residual.{kind}"] = tensors[f"res_1x1.{i}.{kind}"]
            weights[f"{layer}.skip.{kind}"] = tensors[f"skip_1x1.{i}.{kind}"]
        weights[f"head.hidden.{kind}"] = tensors[f"conv_post_1.{kind}"]
        weights[f"head.out.{kind}"] = tensors[f"conv_post_2.{kind}"]
        if "upsampling.conv.weight" in tensors:
            weights[f"conditioning.stages.0.{kind}"] = tensors[f"upsampling.conv.{kind}"]
    return weights


def _notes(told: Conf, config: WaveNetConfig, stats: Mapping[str, Any] | None, mel: MelSpec | None) -> list[str]:
    notes = []
    if told.feature_type != "melspc":
        notes.append(f"It hears {config.n_mels} features of type {told.feature_type!r}, not a mel.")
    elif mel is None:
        notes.append("model.conf does not say how its mels were made.")
    if told.use_speaker_code:
        notes.append("Its features end with a speaker code, which goes into every frame.")
    if stats is not None and "mlsa" in stats:
        notes.append("Its statistics hold a noise-shaping filter, which its sound now goes through.")
    return notes


def mlsa_response(coef: ArrayLike, alpha: ArrayLike) -> Array:
    """The impulse response (N,) of the mel log spectrum approximation filter with these coefficients: of
    H(z) = exp Σ c[m]·z̃⁻ᵐ, z̃⁻¹ = (z⁻¹ − α)/(1 − α·z⁻¹), c[m] = b[m] + α·b[m+1] (S. Imai, 1983; b as SPTK's mc2b makes
    it), until less than a millionth of it is left. Raises `InputError`."""
    b, a = np.asarray(coef, np.float64).reshape(-1), float(np.asarray(alpha).reshape(-1)[0])
    if not (1 <= len(b) <= 256 and np.isfinite(b).all() and abs(a) < 1):
        raise InputError(f"the noise-shaping filter has {len(b)} coefficients and alpha {a}; it cannot be used")
    c = b + a * np.append(b[1:], 0.0)
    back = np.exp(-2j * np.pi * np.fft.rfftfreq(8 * MAX_TAPS))
    warped = (back - a) / (1 - a * back)
    with np.errstate(over="ignore", invalid="ignore"):
        response = np.fft.irfft(np.exp(np.polynomial.polynomial.polyval(warped, c)))
        left = np.cumsum(np.abs(response[::-1]))[::-1]
    taps = int(np.argmax(left <= 1e-6 * left[0]))
    if not 0 < taps <= MAX_TAPS:
        raise InputError(f"the noise-shaping filter rings for more than {MAX_TAPS} samples; it cannot be used")
    return response[:taps].astype(np.float32)
