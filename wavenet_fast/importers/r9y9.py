"""r9y9/wavenet_vocoder, both generations, as a `WaveNetConfig` and its weights. No torch, no files.

    old   up to v0.1.1 (AutoVC, SpeechSplit, the published LJSpeech and CMU Arctic files): `upsample_conv`, biases in
          the conditioning projections, the skip sum scaled layer by layer (`legacy`) or not at all
    new   v0.2 and later, ESPnet's mol recipes: `upsample_net` with a convolution over frames, skips scaled by √(1/L)

Both pair the previous sample with the conditioning of the sample that is made, whatever they paired in training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from msgspec import Meta, Struct
from numpy.typing import ArrayLike

from ..config import (
    Activation,
    Biases,
    CategoricalHead,
    Conditioning,
    FrameConv,
    GaussianHead,
    Hold,
    LogisticHead,
    MelSpec,
    OneHotInput,
    RepeatStage,
    ScalarInput,
    Signal,
    Speakers,
    Stages,
    TransposedStage,
    WaveNetConfig,
    decode,
    encode,
)
from ..errors import CheckpointError, ConfigError, InputError
from .common import Array, Imported, finished, need, plain_tensors, statistics
from .r9y9_tensors import WHERE, Sizes, check_numbers, renamed, sizes, stage_names, wanted

FAMILY = "r9y9"
SkipRule = Literal["running", "sum"]
ROOT_HALF = math.sqrt(0.5)

_Size = Annotated[int, Meta(ge=1, le=1 << 20)]
_Milliseconds = Annotated[float, Meta(gt=0, le=1e6)]
_ACTIVATIONS: dict[str, Activation] = {"none": "none", "ReLU": "relu", "LeakyReLU": "leaky_relu", "Tanh": "tanh"}


class UpsampleParams(Struct, frozen=True):
    """`upsample_params` of the new generation."""

    upsample_scales: Annotated[tuple[_Size, ...], Meta(max_length=16)] = ()
    upsample_activation: str = "none"
    upsample_activation_params: dict[str, Any] = {}
    mode: str = "nearest"


class Hparams(Struct, frozen=True, kw_only=True):
    """What is read of `hparams.json`; anything else in it does not bear on the sound. Sizes of layers are not among
    them: the tensors say those."""

    sample_rate: _Size
    stacks: _Size
    input_type: Literal["raw", "mulaw", "mulaw-quantize"] = "raw"
    quantize_channels: Annotated[int, Meta(ge=2, le=65536)] = 65536
    output_distribution: Literal["Logistic", "Normal"] = "Logistic"
    log_scale_min: float | None = None
    legacy: bool | None = None
    hop_size: int | None = None
    frame_shift_ms: _Milliseconds | None = None
    upsample_conditional_features: bool = True
    upsample_scales: Annotated[tuple[_Size, ...], Meta(max_length=16)] = ()
    upsample_params: UpsampleParams = UpsampleParams()
    preprocess: str | None = ""
    postprocess: str | None = ""
    global_gain_scale: float = 1.0
    num_mels: int | None = None
    fmin: float | None = None
    fmax: float | None = None
    fft_size: int | None = None
    win_length: int | None = None
    win_length_ms: Annotated[float, Meta(le=1e6)] | None = None
    window: str = "hann"


# AutoVC and SpeechSplit publish one file, and its hparams as Python code: these are its values.
PRESETS: dict[str, dict[str, Any]] = {
    "autovc": {
        "sample_rate": 16000, "hop_size": 256, "input_type": "raw", "quantize_channels": 65536, "stacks": 4,
        "log_scale_min": -32.23619130191664, "legacy": True, "upsample_conditional_features": True,
        "upsample_scales": [4, 4, 4, 4], "num_mels": 80, "fmin": 125, "fmax": 7600, "fft_size": 1024,
    },
}  # fmt: skip
"""Name → hparams of files that are spread without their `hparams.json`."""

OLD_MU = (
    "r9y9's scripts of 2018 companded with µ = quantize_channels and began with the class of 0, 128 of 256; later ones,"
    " and this voice, with one less and 127. Its sound differs by less than a class."
)
PREEMPHASIS = 0.85
"""Of `preemphasis` and `inv_preemphasis` in the new generation's audio.py."""


def from_state(
    state: Mapping[str, ArrayLike],
    hparams: Mapping[str, Any],
    *,
    skip_rule: SkipRule | None = None,
    mel: MelSpec | None = None,
    stats: Mapping[str, ArrayLike] | None = None,
) -> Imported:
    """A state dictionary, with or without weight norm, and the contents of `hparams.json`.

    skip_rule  of an old file whose hparams do not say `legacy`: "running" where it is True (its default), "sum"
    mel        the recipe of its mels, where it is not the family's own
    stats      mean and scale (M,) of `meanvar.joblib`

    Raises `CheckpointError` for tensors that are missing, left over or of another shape, `ConfigError` for hparams
    that cannot be used, and `InputError` where an option is needed or does not fit."""
    told = decode(Hparams, dict(hparams), "hparams")
    tensors = plain_tensors(state, WHERE)
    old = is_old(tensors)
    n = sizes(tensors)
    need(tensors, wanted(tensors, n, old), WHERE)
    notes: list[str] = []
    config = _config(told, tensors, n, old, _rule(told, skip_rule, old), notes)
    if old and told.input_type != "raw":
        notes.append(OLD_MU)
    weights = finished(config, {**renamed(tensors, config), **statistics(stats, config.n_mels)}, WHERE)
    recipe = mel if mel is not None else _recipe(told, config, old, stats is not None, notes)
    provenance = {
        "family": f"r9y9/wavenet_vocoder, {'old generation (up to v0.1.1)' if old else 'new generation (from v0.2)'}",
        "hparams": {name: value for name, value in encode(told).items() if name in hparams},
    }
    return Imported(config, weights, recipe, notes, provenance)


def is_old(tensors: Mapping[str, Any]) -> bool:
    """Which generation these plain tensor names are of. Both have `conv_layers.0.conv1x1c`."""
    if any(name.startswith("upsample_net.") for name in tensors):
        return False
    return "conv_layers.0.conv1x1c.bias" in tensors or any(name.startswith("upsample_conv.") for name in tensors)


def _rule(told: Hparams, skip_rule: SkipRule | None, old: bool) -> SkipRule:
    if skip_rule is not None and skip_rule not in get_args(SkipRule):
        raise InputError(f"skip_rule is {skip_rule!r}; possible are {', '.join(get_args(SkipRule))}")
    if not old:
        if skip_rule is not None:
            raise InputError("--skip-rule is for r9y9's old generation; this file is of the new one, leave it out")
        return "sum"
    if told.legacy is not None:
        of_file: SkipRule = "running" if told.legacy else "sum"
        if skip_rule not in (None, of_file):
            raise InputError(f"the hparams say legacy {told.legacy}, which is --skip-rule {of_file}; leave it out")
        return of_file
    if skip_rule is None:
        raise InputError(
            "an old r9y9 file does not say how its skip connections are summed, and its hparams have no `legacy`: give"
            " --skip-rule running (legacy=True, the default of that code, and the only rule before the hparam existed)"
            " or --skip-rule sum (legacy=False)"
        )
    return skip_rule


# --- configuration ----------------------------------------------------------------------------------------------


def _config(
    told: Hparams, tensors: Mapping[str, Array], n: Sizes, old: bool, rule: SkipRule, notes: list[str]
) -> WaveNetConfig:
    cycle, rest = divmod(n.L, told.stacks)
    if rest:
        raise ConfigError(f"hparams: stacks is {told.stacks}, which does not divide the file's {n.L} layers")
    onehot = told.input_type == "mulaw-quantize"
    if onehot != (n.inputs > 1):
        raise ConfigError(
            f"hparams: input_type is {told.input_type!r}, and the file's first_conv hears {n.inputs} channels: are"
            " these the hparams of this file?"
        )
    stages = _stages(told, tensors, old)
    _check_stages(told, stages, old)
    hop = math.prod(stage.scale for stage in stages) if stages else _hop(told)
    if stages and _hop(told) not in (None, hop):
        raise ConfigError(f"hparams: hop_size is {_hop(told)}, and the upsampling makes {hop} samples of a frame")
    if hop is None:
        raise ConfigError("hparams: lack hop_size (or frame_shift_ms), which a file without learned upsampling needs")
    conv_in = tensors.get("upsample_net.conv_in.weight")
    network = () if conv_in is None else (FrameConv(channels=n.M, kernel_size=conv_in.shape[-1], bias=False),)
    if network and network[0].kernel_size % 2 == 0:
        raise CheckpointError(
            f"{WHERE}: conv_in has {network[0].kernel_size} taps; r9y9's has 2·cin_pad + 1, an odd number"
        )
    table = tensors.get("embed_speakers.weight")
    return WaveNetConfig(
        sample_rate=told.sample_rate, hop_length=hop, n_mels=n.M,
        dilations=tuple(1 << (i % cycle) for i in range(n.L)), kernel_size=n.K,
        residual_channels=n.R, gate_channels=n.G, skip_channels=n.S, head_channels=n.S,
        residual_scale=ROOT_HALF,
        skip_scale=(ROOT_HALF if rule == "running" else 1.0) if old else math.sqrt(1 / n.L),
        skip_rule=rule,
        input=OneHotInput(start=min(127, n.A - 1)) if onehot else ScalarInput(),
        head=_head(told, n, old, notes),
        signal=_signal(told, onehot, notes),
        conditioning=Conditioning(network=network, upsampling=Stages(stages=stages) if stages else Hold()),
        speakers=Speakers(channels=n.P, count=0 if table is None else len(table)),
        biases=Biases(conditioning=old, speaker=old),
    )  # fmt: skip


def _check_stages(told: Hparams, stages: tuple[TransposedStage | RepeatStage, ...], old: bool) -> None:
    """Raises `ConfigError` unless the hparams say the upsampling that the file has."""
    found = tuple(stage.scale for stage in stages)
    said = told.upsample_scales if old else told.upsample_params.upsample_scales
    if told.upsample_conditional_features != bool(found):
        has = f"upsamples by {' · '.join(map(str, found))}" if found else "has no upsampling"
        raise ConfigError(
            f"hparams: upsample_conditional_features is {told.upsample_conditional_features}, and the file {has}"
        )
    if found and said and said != found:
        raise ConfigError(f"hparams: upsample_scales are {list(said)}, and the file has {list(found)}")


def _hop(told: Hparams) -> int | None:
    if told.hop_size is None and told.frame_shift_ms is not None:
        return int(told.frame_shift_ms / 1000 * told.sample_rate)
    return told.hop_size


def _stages(told: Hparams, tensors: Mapping[str, Array], old: bool) -> tuple[TransposedStage | RepeatStage, ...]:
    names = stage_names(tensors, old)
    made: list[TransposedStage | RepeatStage] = []
    if old:
        for name in names:
            rows, taps = tensors[name].shape[2:]
            made.append(
                TransposedStage(scale=taps, kernel_size=taps, image=True, freq_kernel_size=rows, activation="relu")
            )
        return tuple(made)
    up = told.upsample_params
    if names and up.mode != "nearest":
        raise ConfigError(f'hparams: upsample_params.mode is {up.mode!r}; only "nearest" can be imported')
    if up.upsample_activation not in _ACTIVATIONS:
        raise ConfigError(
            f"hparams: upsample_params.upsample_activation is {up.upsample_activation!r}; possible are"
            f" {', '.join(_ACTIVATIONS)}"
        )
    if names and "upsample_net.conv_in.weight" not in tensors:
        raise CheckpointError(f"{WHERE}: its upsample_net has no conv_in; only ConvInUpsampleNetwork can be imported")
    check_numbers(names, up.upsample_activation)
    activation, slope = _ACTIVATIONS[up.upsample_activation], up.upsample_activation_params.get("negative_slope", 0.01)
    for name in names:
        rows, taps = tensors[name].shape[2:]
        made_of: dict[str, Any] = {
            "scale": (taps - 1) // 2,
            "kernel_size": taps,
            "freq_kernel_size": rows,
            "slope": slope,
        }
        made.append(RepeatStage(**made_of, image=True, activation=activation, bias=False))
    return tuple(made)


def _head(told: Hparams, n: Sizes, old: bool, notes: list[str]) -> CategoricalHead | LogisticHead | GaussianHead:
    if told.input_type == "mulaw-quantize":
        if told.quantize_channels != n.A:
            raise ConfigError(f"hparams: quantize_channels is {told.quantize_channels}, and the file has {n.A} classes")
        return CategoricalHead(classes=n.A, encode_offset=0.0)
    if n.A != 2 and n.A % 3:
        raise CheckpointError(f"{WHERE}: has {n.A} outputs; a mixture has 2, or 3 for each component")
    if n.A == 2 and told.output_distribution == "Logistic":
        raise CheckpointError(f"{WHERE}: has 2 outputs, and r9y9's mixture of logistics has 3 for each component")
    if n.A == 3:
        notes.append("The one component's logit changes nothing and was left out.")
    components = max(1, n.A // 3)
    if told.output_distribution == "Normal":
        return GaussianHead(components=components)
    # The old generation floors the scales as it samples, the new one only in its loss.
    return LogisticHead(components=components, log_scale_min=told.log_scale_min if old else None)


def _signal(told: Hparams, onehot: bool, notes: list[str]) -> Signal:
    emphasis, unset = 0.0, (None, "", "none")
    # As r9y9's synthesis.py has it, a gain that is not above 0 is none.
    gain = 1.0 if told.global_gain_scale <= 0 else told.global_gain_scale
    if told.postprocess == "inv_preemphasis":
        emphasis = PREEMPHASIS
    elif told.postprocess not in unset or told.preprocess not in unset:
        raise ConfigError(
            f"hparams: preprocess is {told.preprocess!r} and postprocess {told.postprocess!r}; possible are none, or"
            ' "preemphasis" with "inv_preemphasis"'
        )
    if told.input_type == "mulaw":
        return Signal(domain="mulaw", mu=told.quantize_channels - 1, preemphasis=emphasis, gain=gain)
    return Signal(preemphasis=emphasis, gain=gain)


# --- mel --------------------------------------------------------------------------------------------------------


def _recipe(told: Hparams, config: WaveNetConfig, old: bool, standardised: bool, notes: list[str]) -> MelSpec | None:
    """The family's own recipe by its hparams; None where no `MelSpec` says it."""
    if old:
        notes.append("r9y9's old generation cut frames with lws, whose framing and window no recipe here has.")
        return None
    sizes = (told.fft_size, told.fmin, told.fmax)
    if None in sizes or told.num_mels != config.n_mels or told.window != "hann":
        notes.append("The hparams do not say how its mels were made.")
        return None
    if not standardised:
        notes.append("Its mels are standardised by meanvar.joblib, which was not given (--stats).")
        return None
    window = told.win_length
    if told.win_length_ms is not None and told.win_length_ms > 0:
        window = int(told.win_length_ms / 1000 * told.sample_rate)
    return MelSpec(
        sample_rate=told.sample_rate, n_fft=told.fft_size or 0, hop_length=config.hop_length,
        win_length=window or told.fft_size or 0, n_mels=config.n_mels, fmin=told.fmin or 0.0, fmax=told.fmax or 0.0,
        log="log10", floor=1e-10, normalize="meanvar",
    )  # fmt: skip
