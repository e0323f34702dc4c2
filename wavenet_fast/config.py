"""What a voice is, as data: `WaveNetConfig` (the network) and `MelSpec` (the spectrogram it listens to).

Letters (one vocabulary everywhere): L layers, K taps, R residual, G gate, S skip, H head hidden, A head outputs,
M mel bands, C conditioning channels, P speaker channels.
"""

import hashlib
import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from .errors import ConfigError
from .validation import explain

# Ceilings that keep a hostile or mistyped file from asking for absurd memory. They are far above any published
# WaveNet; a model that needs more is refused with the field's name, never clamped.
MAX_LAYERS, MAX_CHANNELS, MAX_TAPS, MAX_DILATION, MAX_RECEPTIVE_FIELD = 256, 4096, 16, 1 << 20, 1 << 24
MAX_RING_BYTES = 2 << 30
MIN_RATE, MAX_RATE = 1000, 384_000
"""Sample rates, Hz."""

Channels = Annotated[int, Meta(ge=1, le=MAX_CHANNELS)]
Taps = Annotated[int, Meta(ge=1, le=MAX_TAPS)]
FrameTaps = Annotated[int, Meta(ge=1, le=64)]
Scale = Annotated[float, Meta(gt=0, le=16)]
Activation = Literal["none", "relu", "leaky_relu", "tanh"]


class Record(Struct, frozen=True, forbid_unknown_fields=True):
    """Immutable, compared by value, refuses unknown fields and numbers that are not finite."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"{name}: is {value}; it must be a finite number")


# --- input and head ---------------------------------------------------------------------------------------------


class OneHotInput(Record, frozen=True, tag="onehot", tag_field="kind"):
    """The previous class, embedded: a convolution of `kernel_size` taps over one-hot vectors of A classes."""

    kernel_size: Taps = 1
    tanh: bool = False
    start: Annotated[int, Meta(ge=0)] | None = None
    """Class fed before the first sample; A // 2 where None."""


class ScalarInput(Record, frozen=True, tag="scalar", tag_field="kind"):
    """The previous sample as one number, through a convolution of `kernel_size` taps."""

    kernel_size: Taps = 1
    tanh: bool = False
    start: Annotated[float, Meta(ge=-1, le=1)] = 0.0


class CategoricalHead(Record, frozen=True, tag="categorical", tag_field="kind"):
    """A softmax over µ-law classes. class = ⌊(f(x)+1)/2·µ + encode_offset⌋, x = f⁻¹(2·(class − decode_offset)/µ − 1),
    µ = classes − 1, f the µ-law companding. The offsets cover the variants that other projects trained with."""

    classes: Annotated[int, Meta(ge=2, le=65536)] = 256
    encode_offset: Annotated[float, Meta(ge=0, lt=1)] = 0.5
    decode_offset: Annotated[float, Meta(ge=0, lt=1)] = 0.0


class LogisticHead(Record, frozen=True, tag="logistic", tag_field="kind"):
    """A mixture of logistics. A = 3·components as [component logits | means | log scales]; 2 for one component."""

    components: Annotated[int, Meta(ge=1, le=256)] = 10
    log_scale_min: Annotated[float, Meta(ge=-100, le=10)] | None = None
    """Floor of the log scales, or None for no floor."""


class GaussianHead(Record, frozen=True, tag="gaussian", tag_field="kind"):
    """A Gaussian or a mixture of them; the outputs are laid out as for `LogisticHead`."""

    components: Annotated[int, Meta(ge=1, le=256)] = 1
    log_scale_min: Annotated[float, Meta(ge=-100, le=10)] | None = None


class Signal(Record, frozen=True):
    """What the model's numbers mean as sound.

    A scalar input (and a mixture head) works on x itself or on its companded value f(x). After generation the
    pre-emphasis y[t] = x[t] − preemphasis·x[t−1] is undone, then the gain."""

    domain: Literal["linear", "mulaw"] = "linear"
    mu: Annotated[int, Meta(ge=1, le=65535)] = 255
    """Companding constant of a scalar signal; a categorical head uses classes − 1."""
    preemphasis: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    gain: Annotated[float, Meta(gt=0, le=1000)] = 1.0
    levels: Annotated[int, Meta(ge=2, le=1 << 24)] = 65536
    """Quantisation levels of the recordings, for the likelihood of continuous heads."""


# --- conditioning -----------------------------------------------------------------------------------------------


class FrameConv(Record, frozen=True):
    """One convolution at frame rate: (C_in, F) → (channels, F). `padding` says what lies beyond the ends."""

    channels: Channels
    kernel_size: FrameTaps = 1
    activation: Activation = "none"
    padding: Literal["replicate", "zero"] = "replicate"
    bias: bool = True
    slope: float = 0.01
    """Slope of leaky_relu below zero."""


class Hold(Record, frozen=True, tag="hold", tag_field="kind"):
    """Sample t hears frame ⌊t/hop⌋."""


class Linear(Record, frozen=True, tag="linear", tag_field="kind"):
    """Sample t hears position t/hop − frame_centre, interpolated between the two frames around it."""

    frame_centre: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """0 for centred mels, ½ for mels whose frame f covers samples f·hop … (f+1)·hop."""


class TransposedStage(Record, frozen=True, tag="transposed", tag_field="kind"):
    """Transposed convolution by `scale` in time: y[scale·n + j − crop] += w[j]·x[n]; exactly scale·len outputs.

    `image` treats (C, len) as a one-channel picture with a `freq_kernel_size` × `kernel_size` kernel; otherwise the
    kernel mixes all channels."""

    scale: Annotated[int, Meta(ge=1, le=8192)]
    kernel_size: Annotated[int, Meta(ge=1, le=65536)]
    crop: Annotated[int, Meta(ge=0, le=65536)] = 0
    image: bool = False
    freq_kernel_size: Annotated[int, Meta(ge=1, le=63)] = 1
    channels: Channels | None = None
    """Output channels where not `image`; as many as came in where None."""
    activation: Activation = "none"
    bias: bool = True
    slope: float = 0.01


class RepeatStage(Record, frozen=True, tag="repeat", tag_field="kind"):
    """Every column repeated `scale` times, then an odd convolution with zero padding, so scale·len outputs."""

    scale: Annotated[int, Meta(ge=1, le=8192)]
    kernel_size: Annotated[int, Meta(ge=1, le=65535)]
    image: bool = False
    freq_kernel_size: Annotated[int, Meta(ge=1, le=63)] = 1
    channels: Channels | None = None
    activation: Activation = "none"
    bias: bool = True
    slope: float = 0.01


class Stages(Record, frozen=True, tag="stages", tag_field="kind"):
    """A learned upsampling network; the product of the scales is the hop."""

    stages: Annotated[tuple[TransposedStage | RepeatStage, ...], Meta(min_length=1, max_length=16)]


class Conditioning(Record, frozen=True):
    """mel → (standardise) → convolutions at frame rate → upsampling → per-layer 1×1 projections."""

    standardise: bool = False
    """First subtract `mel.mean` and divide by `mel.scale` of the checkpoint, per band."""
    network: Annotated[tuple[FrameConv, ...], Meta(max_length=64)] = ()
    upsampling: Hold | Linear | Stages = Hold()
    offset: Literal[0, -1] = 0
    """Sample t hears the conditioning of t + offset (not before 0)."""


class Speakers(Record, frozen=True):
    """Global conditioning: a vector of `channels` per utterance, from a table of `count` rows where count > 0."""

    channels: Annotated[int, Meta(ge=0, le=MAX_CHANNELS)] = 0
    count: Annotated[int, Meta(ge=0, le=1_000_000)] = 0


class Biases(Record, frozen=True):
    """Which of the network's convolutions carry a bias."""

    input: bool = True
    dilated: bool = True
    conditioning: bool = False
    speaker: bool = False
    residual: bool = True
    skip: bool = True
    head_hidden: bool = True
    head_out: bool = True


class WaveNetConfig(Record, frozen=True, kw_only=True):
    """The network. Raises `ConfigError` with the path of the bad field when the parts do not fit together."""

    sample_rate: Annotated[int, Meta(ge=MIN_RATE, le=MAX_RATE)]
    hop_length: Annotated[int, Meta(ge=1, le=8192)]
    n_mels: Annotated[int, Meta(ge=1, le=512)]
    dilations: Annotated[
        tuple[Annotated[int, Meta(ge=1, le=MAX_DILATION)], ...], Meta(min_length=1, max_length=MAX_LAYERS)
    ]
    kernel_size: Annotated[int, Meta(ge=2, le=MAX_TAPS)]
    residual_channels: Channels
    gate_channels: Annotated[int, Meta(ge=2, le=MAX_CHANNELS, multiple_of=2)]
    skip_channels: Channels
    head_channels: Channels
    residual_scale: Scale = 1.0
    skip_scale: Scale = 1.0
    skip_rule: Literal["sum", "running"] = "sum"
    """sum: skip_scale · Σ skips. running: total = (total + skip)·skip_scale at every layer after the first."""
    input: OneHotInput | ScalarInput = OneHotInput()
    head: CategoricalHead | LogisticHead | GaussianHead = CategoricalHead()
    past: Literal["zero", "steady"] = "zero"
    """What the network remembers before its first sample. zero: zero vectors. steady: what it would hold had it heard
    `input.start` and the first sample's conditioning for ever."""
    signal: Signal = Signal()
    conditioning: Conditioning = Conditioning()
    speakers: Speakers = Speakers()
    biases: Biases = Biases()

    def __post_init__(self) -> None:
        super().__post_init__()
        for path, problem in self._problems():
            # ValueError here becomes msgspec's ValidationError with the outer path when decoding.
            raise ConfigError(f"{path}: {problem}")

    def _problems(self) -> Iterator[tuple[str, str]]:
        if isinstance(self.input, OneHotInput):
            if not isinstance(self.head, CategoricalHead):
                yield "input.kind", 'is "onehot", which needs head.kind "categorical"; use input.kind "scalar"'
            elif self.input.start is not None and self.input.start >= self.head.classes:
                yield "input.start", f"is {self.input.start}; the head has classes 0 … {self.head.classes - 1}"
            elif self.signal.domain != "linear":
                yield "signal.domain", 'is for scalar inputs; a one-hot input always uses µ-law classes: use "linear"'
        if self.receptive_field > MAX_RECEPTIVE_FIELD:
            yield "dilations", f"reach {self.receptive_field} samples back; at most {MAX_RECEPTIVE_FIELD} are allowed"
        rings = (self.kernel_size - 1) * sum(self.dilations) * self.residual_channels * 4
        if rings > MAX_RING_BYTES:
            need = f"need {rings / 2**30:.1f} GiB of past per stream at residual_channels {self.residual_channels}"
            yield "dilations", f"{need}; at most {MAX_RING_BYTES / 2**30:g} GiB are allowed"
        if self.speakers.count and not self.speakers.channels:
            yield "speakers.channels", f"is 0 though speakers.count is {self.speakers.count}; give the vectors a width"
        yield from self._stage_problems()

    def _stage_problems(self) -> Iterator[tuple[str, str]]:
        up = self.conditioning.upsampling
        if not isinstance(up, Stages):
            return
        total = math.prod(stage.scale for stage in up.stages)
        if total != self.hop_length:
            yield (
                "conditioning.upsampling.stages",
                f"multiply to {total}; their product must be hop_length {self.hop_length}",
            )
        for i, stage in enumerate(up.stages):
            path = f"conditioning.upsampling.stages[{i}]"
            if stage.image and stage.channels is not None:
                yield f"{path}.channels", "must be left out where image is true: the picture keeps its height"
            if stage.freq_kernel_size % 2 == 0 or (not stage.image and stage.freq_kernel_size != 1):
                yield f"{path}.freq_kernel_size", "must be odd, and 1 where image is false"
            if isinstance(stage, RepeatStage) and stage.kernel_size % 2 == 0:
                yield f"{path}.kernel_size", f"is {stage.kernel_size}; must be odd, so that the length is kept"
            if isinstance(stage, TransposedStage) and not stage.scale <= stage.kernel_size - stage.crop:
                yield f"{path}.kernel_size", f"minus crop must be at least scale {stage.scale}, or samples stay empty"

    # Derived sizes, by the README's letters.
    @property
    def n_layers(self) -> int:
        """L."""
        return len(self.dilations)

    @property
    def out_channels(self) -> int:
        """A: classes, or distribution parameters."""
        if isinstance(self.head, CategoricalHead):
            return self.head.classes
        return 3 * self.head.components if self.head.components > 1 else 2

    @property
    def in_channels(self) -> int:
        """A for a one-hot input, 1 for a scalar."""
        return self.out_channels if isinstance(self.input, OneHotInput) else 1

    @property
    def start(self) -> float:
        """What is fed before the first sample: a class, or a value in the model's domain."""
        if isinstance(self.input, OneHotInput):
            return self.out_channels // 2 if self.input.start is None else self.input.start
        return self.input.start

    @property
    def conditioning_channels(self) -> int:
        """C: width of the conditioning where the per-layer projections read it."""
        channels = self.n_mels
        for conv in self.conditioning.network:
            channels = conv.channels
        if isinstance(self.conditioning.upsampling, Stages):
            for stage in self.conditioning.upsampling.stages:
                channels = stage.channels or channels
        return channels

    @property
    def receptive_field(self) -> int:
        """Samples of input that one output depends on."""
        return (self.kernel_size - 1) * sum(self.dilations) + self.input.kernel_size


class MelSpec(Record, frozen=True, kw_only=True):
    """How a waveform becomes the mel spectrogram a voice expects: the part that users get wrong, so it travels with
    checkpoints and mel files as a fingerprint."""

    sample_rate: Annotated[int, Meta(ge=MIN_RATE, le=MAX_RATE)]
    n_fft: Annotated[int, Meta(ge=2, le=1 << 16)]
    hop_length: Annotated[int, Meta(ge=1, le=8192)]
    win_length: Annotated[int, Meta(ge=2, le=1 << 16)]
    n_mels: Annotated[int, Meta(ge=1, le=512)]
    fmin: Annotated[float, Meta(ge=0)] = 0.0
    fmax: Annotated[float, Meta(gt=0)]
    window: Literal["hann"] = "hann"
    center: bool = True
    """True: frame f is centred on sample f·hop, n_fft/2 padded at both ends. False: (n_fft − hop)/2 padded."""
    pad_mode: Literal["reflect", "constant"] = "reflect"
    mel_scale: Literal["slaney", "htk"] = "slaney"
    mel_norm: Literal["slaney", "none"] = "slaney"
    epsilon: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """Added to the squared magnitude before its root is taken (HiFi-GAN and BigVGAN: 1e-9)."""
    power: Literal[1, 2] = 1
    log: Literal["ln", "log10", "db"] = "ln"
    """db is 20·log10 of a magnitude (power 1), 10·log10 of a power (power 2)."""
    floor: Annotated[float, Meta(gt=0, lt=1)] = 1e-5
    """The mel is not allowed below this before the logarithm."""
    ref_db: float = 0.0
    """Subtracted after the logarithm where log is db."""
    min_db: Annotated[float, Meta(lt=0)] = -100.0
    """minmax01 maps min_db … 0 to 0 … 1 and clips."""
    normalize: Literal["none", "minmax01", "meanvar", "elsewhere"] = "none"
    """meanvar subtracts the checkpoint's mel.mean and divides by mel.scale. elsewhere: what the voice hears is made
    elsewhere, and no recipe here makes it."""
    preemphasis: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """Pre-emphasis of the waveform before the spectrum."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.win_length > self.n_fft:
            raise ConfigError(f"win_length: is {self.win_length}; at most n_fft = {self.n_fft}")
        if not self.fmin < self.fmax <= self.sample_rate / 2:
            raise ConfigError(
                f"fmax: is {self.fmax}; must lie above fmin {self.fmin} and not above half the sample rate,"
                f" {self.sample_rate / 2}"
            )
        if self.hop_length > self.n_fft:
            raise ConfigError(f"hop_length: is {self.hop_length}; at most n_fft = {self.n_fft}, or samples are skipped")
        if self.normalize == "minmax01" and self.log != "db":
            raise ConfigError('normalize: is "minmax01", which is defined for log "db" only')

    @property
    def fingerprint(self) -> str:
        """12 hexadecimal digits that differ whenever any field does. Fields at their default are left out, so that
        a field added later changes no recipe's fingerprint."""
        chosen = {}
        for field in msgspec.structs.fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                # 7600 and 7600.0 are the same recipe.
                chosen[field.name] = float(value) if type(value) is int else value
        return hashlib.sha256(msgspec.json.encode(chosen, order="sorted")).hexdigest()[:12]


T = TypeVar("T", bound=Struct)


def decode(kind: type[T], data: Any, where: str) -> T:
    """`data` (parsed JSON) as a `kind`; raises `ConfigError` that begins with `where` and the path of the bad field."""
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {explain(error, kind, data)}") from None


def encode(record: Struct) -> Any:
    """The record as plain dictionaries, lists and numbers, ready for `json`."""
    return msgspec.to_builtins(record)
