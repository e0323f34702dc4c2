"""The ops of a whole model, `project` and `generate`: `model.Model` over tensors that the caller holds.

model = prepare(checkpoint.config, checkpoint.weights, "bf16")
streams = start(model, seeds=[1, 2])
projected = project(model, features)                      # (B, n, C) → what every layer hears
audio, draws, _ = generate(model, streams, projected, steps=n * config.hop_length)
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import msgspec
import torch
from torch import Tensor

from wavenet_fast.conditioning import MAX_STREAM_SAMPLES
from wavenet_fast.config import CategoricalHead, OneHotInput, WaveNetConfig, decode
from wavenet_fast.errors import InputError, ShapeError
from wavenet_fast.sampling import check_temperature

from . import calls, checks
from .block import FORMATS
from .checks import INT32_MAX, Sizes
from .launch import Launcher
from .model import Heard, Model
from .packing import packed_layout
from .ready import Ready, Streams, prepare, start
from .shapes import Shape

__all__ = ["Ready", "Streams", "generate", "prepare", "project", "start"]


Tensors = dict[str, Tensor | None]


# --- project ------------------------------------------------------------------------------------------------------


def project(model: Ready, features: Tensor, speakers: Tensor | None = None, *, emulated: bool | int = False) -> Tensor:
    """Conditioning features to what every layer hears, biases and speakers included.

    features  float32 (B, n, C): what the conditioning network gives (`reference.Reference.features`, transposed), one
              column a frame, or a sample where it has learned stages
    speakers  float32 (B, P), where the model has speakers
    returns   float32 (B, n, L, G padded), the two inputs of every gate side by side
    """
    checks.tensors(features=features, speakers=speakers)
    projected: Tensor = _project(features, speakers, model.packed, model.config, model.dtype, checks.target(emulated))
    return projected


@torch.library.custom_op(
    "wavenet_fast::project", mutates_args=(),
    schema="(Tensor features, Tensor? speakers, Tensor[] packed, str config, str dtype, int emulated=0) -> Tensor",
)  # fmt: skip
def _project(
    features: Tensor, speakers: Tensor | None, packed: Sequence[Tensor], config: str, dtype: str, emulated: int = 0
) -> Tensor:
    c, home = _fit_project(features, speakers, packed, config, dtype, emulated)
    B, n, _ = features.shape
    if not B * n:
        return _projected_like(features, c)
    model = _model(c, packed, dtype, checks.launcher(home, emulated))
    return model.project(features, model.starts(features.new_empty(B, 0) if speakers is None else speakers))


@_project.register_fake
def _(features, speakers, packed, config, dtype, emulated=0):  # type: ignore[no-untyped-def]
    c, _ = _fit_project(features, speakers, packed, config, dtype, emulated)
    return _projected_like(features, c)


def _projected_like(features: Tensor, config: WaveNetConfig) -> Tensor:
    s = Shape.of(config)
    return features.new_empty(*features.shape[:2], s.LAYERS, 2 * s.HALF)


def _fit_project(
    features: Tensor, speakers: Tensor | None, packed: Sequence[Tensor], config: str, dtype: str, emulated: int
) -> tuple[WaveNetConfig, torch.device]:
    c, home = _fit_packed({"features": features, "speakers": speakers}, packed, config, dtype, emulated)
    sizes = Sizes({"C": c.conditioning_channels, "P": c.speakers.channels})
    sizes.fit("features", features, "B n C")
    if (speakers is None) != (c.speakers.channels == 0):
        had = (
            "has no speakers; leave them out" if speakers is not None else f"needs speakers (B, {c.speakers.channels})"
        )
        raise InputError(f"this model {had}")
    sizes.fit("speakers", speakers, "B P")
    _held(sizes["n"], c)
    return c, home


def _held(n: int, config: WaveNetConfig) -> None:
    s = Shape.of(config)
    checks.whole("the number of columns n", n, 0, INT32_MAX // (s.LAYERS * 2 * s.HALF))


# --- generate -----------------------------------------------------------------------------------------------------


def generate(
    model: Ready,
    streams: Streams,
    projected: Tensor,
    steps: int,
    temperature: float = 1.0,
    *,
    counts: Tensor | None = None,
    first_q: Tensor | None = None,
    last_column: Tensor | None = None,
    forced: Tensor | None = None,
    logits: bool = False,
    emulated: bool | int = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The next samples of every stream in one launch; `streams` go on, in place.

    projected    float32 (B, n, L, G padded): see `project`
    steps        most samples of a stream
    temperature  above 0: divides class and component logits and multiplies scales
    counts       int32 (B,), samples of each stream; `steps` unless given
    first_q      int32 (B,): samples from the beginning of the first column's hop to the stream's next sample, with the
                 configuration's offset. Unless given, column 0 is that of the stream's very first frame (of its first
                 sample, after learned stages)
    last_column  int32 (B,): the last column that counts; the last there is unless given
    forced       float32 (B, steps): what the history is fed instead of the draws, classes as numbers or values
    logits       whether they are given back
    returns      audio float32 (B, steps) in −1 … 1; draws, int64 classes or float32 values, (B, steps); and the logits,
                 float32 (B, steps, A), or None. Beyond a stream's count all are zero

    Waits for the device, to look at what would lead a kernel out of its tables: positions, counts, columns and
    classes. Raises `InputError` for those.
    """
    s = streams
    checks.tensors(rings=s.rings, inputs=s.inputs, filters=s.filters, positions=s.positions, seeds=s.seeds)
    checks.tensors(projected=projected, counts=counts, first_q=first_q, last_column=last_column, forced=forced)
    check_temperature(temperature)
    steps = checks.whole("steps", steps, 0, INT32_MAX)
    B = s.positions.shape[0] if s.positions.ndim else 0

    def everywhere(value: int) -> Tensor:
        return torch.full((B,), value, dtype=torch.int32, device=s.positions.device)

    counts = everywhere(steps) if counts is None else counts
    if last_column is None:
        last_column = everywhere(projected.shape[1] - 1 if projected.ndim > 1 else 0)
    if first_q is None:
        first_q = (s.positions + model.first_q).clamp(-1, INT32_MAX).to(torch.int32)
    audio, draws, made = _generate(
        s.rings, s.inputs, s.filters, s.positions, s.seeds, counts, projected, first_q, last_column, forced,
        model.packed, model.config, model.dtype, steps, float(temperature), bool(logits), checks.target(emulated),
    )  # fmt: skip
    return audio, draws, made if logits else None


@torch.library.custom_op(
    "wavenet_fast::generate", mutates_args=("rings", "inputs", "filters", "positions"),
    schema="(Tensor(a!) rings, Tensor(b!) inputs, Tensor(c!) filters, Tensor(d!) positions, Tensor seeds, "
    "Tensor counts, Tensor projected, Tensor first_q, Tensor last_column, Tensor? forced, Tensor[] packed, str config, "
    "str dtype, int steps, float temperature, bool logits, int emulated=0) -> (Tensor, Tensor, Tensor)",
)  # fmt: skip
def _generate(
    rings: Tensor, inputs: Tensor, filters: Tensor, positions: Tensor, seeds: Tensor, counts: Tensor,
    projected: Tensor, first_q: Tensor, last_column: Tensor, forced: Tensor | None, packed: Sequence[Tensor],
    config: str, dtype: str, steps: int, temperature: float, logits: bool, emulated: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    state: Tensors = {"rings": rings, "inputs": inputs, "filters": filters, "positions": positions, "seeds": seeds}
    call = {"counts": counts, "projected": projected, "first_q": first_q, "last_column": last_column, "forced": forced}
    c, home = _fit_generate(state, call, packed, config, dtype, steps, temperature, emulated)
    if not len(rings) * steps:
        return _made_like(filters, c, steps, logits)
    _check_values(c, inputs, positions, counts, first_q, last_column, forced, steps, projected.shape[1])
    model = _model(c, packed, dtype, checks.launcher(home, emulated))
    heard = Heard(projected, first_q, last_column)
    made = model.generate(
        rings, inputs, filters, positions, seeds, counts, heard, steps, calls.clamped(temperature), forced, logits
    )
    positions += counts
    none = _made_like(filters, c, steps, False)[2]
    return made.audio, made.draws.to(_draws_type(c)), none if made.logits is None else made.logits


@_generate.register_fake
def _(  # type: ignore[no-untyped-def]
    rings, inputs, filters, positions, seeds, counts, projected, first_q, last_column, forced, packed, config, dtype,
    steps, temperature, logits, emulated=0,
):  # fmt: skip
    state: Tensors = {"rings": rings, "inputs": inputs, "filters": filters, "positions": positions, "seeds": seeds}
    call = {"counts": counts, "projected": projected, "first_q": first_q, "last_column": last_column, "forced": forced}
    c, _ = _fit_generate(state, call, packed, config, dtype, steps, temperature, emulated)
    return _made_like(filters, c, steps, logits)


def _made_like(filters: Tensor, config: WaveNetConfig, steps: int, logits: bool) -> tuple[Tensor, Tensor, Tensor]:
    B, A = filters.shape[0], config.out_channels
    audio, draws = filters.new_empty(B, steps), filters.new_empty(B, steps, dtype=_draws_type(config))
    return audio, draws, filters.new_empty(B, steps if logits else 0, A)


def _draws_type(config: WaveNetConfig) -> torch.dtype:
    return torch.int64 if isinstance(config.head, CategoricalHead) else torch.float32


def _fit_generate(
    state: Tensors, call: Tensors, packed: Sequence[Tensor], config: str, dtype: str,
    steps: int, temperature: float, emulated: int,
) -> tuple[WaveNetConfig, torch.device]:  # fmt: skip
    checks.whole("steps", steps, 0, INT32_MAX)
    check_temperature(temperature)
    c, home = _fit_packed(state | call, packed, config, dtype, emulated)
    s = Shape.of(c)
    sizes = Sizes({"slots": s.SLOTS, "R": s.R, "taps": s.IN_DEPTH, "L": s.LAYERS, "2·HALF": 2 * s.HALF, "steps": steps})
    sizes.fit("positions", state["positions"], "B", torch.int64)
    sizes.fit("rings", state["rings"], "B slots R", FORMATS[dtype])
    sizes.fit("inputs", state["inputs"], "B taps")
    sizes.fit("filters", state["filters"], "B")
    sizes.fit("seeds", state["seeds"], "B", torch.int64)
    sizes.fit("counts", call["counts"], "B", torch.int32)
    sizes.fit("projected", call["projected"], "B n L 2·HALF")
    sizes.fit("first_q", call["first_q"], "B", torch.int32)
    sizes.fit("last_column", call["last_column"], "B", torch.int32)
    sizes.fit("forced", call["forced"], "B steps")
    _held(sizes["n"], c)
    return c, home


def _check_values(
    config: WaveNetConfig, inputs: Tensor, positions: Tensor, counts: Tensor, first_q: Tensor, last_column: Tensor,
    forced: Tensor | None, steps: int, n: int,
) -> None:  # fmt: skip
    """What a kernel uses as an address."""
    checks.values("counts", (counts >= 0) & (counts <= steps), f"possible are 0 … steps, {steps}")
    most = MAX_STREAM_SAMPLES - steps
    checks.values("positions", (positions >= 0) & (positions <= most), f"possible are 0 … {most}")
    most = INT32_MAX - steps
    far = f"possible are up to {most}; for a stream beyond, give first_q and the columns from its place on"
    checks.values("first_q", first_q <= most, far)
    checks.values("last_column", (last_column >= 0) & (last_column < n), f"possible are 0 … n − 1, {n - 1}")
    if isinstance(config.input, OneHotInput):
        for name, classes, least in (("inputs", inputs, -1), ("forced", forced, 0)):
            if classes is not None:
                fits = (classes >= least) & (classes < config.out_channels) & (classes == classes.floor())
                checks.values(name, fits, f"possible are whole classes {least} … {config.out_channels - 1}")


# --- a model ------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _config(text: str) -> WaveNetConfig:
    try:
        data = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise InputError(f"config is no JSON: {error}; give Ready.config, or msgspec.json.encode(config)") from None
    return decode(WaveNetConfig, data, "config")


def _fit_packed(
    others: Tensors, packed: Sequence[Tensor], config: str, dtype: str, emulated: int
) -> tuple[WaveNetConfig, torch.device]:
    """Holds `packed` to `packing.packed_layout`, and all tensors to one device."""
    layout = packed_layout(c := _config(config), checks.number_format(dtype))
    if len(packed) != len(layout):
        raise ShapeError(f"packed holds {len(packed)} tensors; this model has {len(layout)}: {', '.join(layout)}")
    named = {f"packed {name}": tensor for name, tensor in zip(layout, packed, strict=True)}
    home = checks.device(others | named, emulated)
    for (name, tensor), (shape, numbers) in zip(named.items(), layout.values(), strict=True):
        Sizes({str(size): size for size in shape}).fit(name, tensor, " ".join(map(str, shape)), FORMATS[numbers])
    return c, home


def _model(config: WaveNetConfig, packed: Sequence[Tensor], dtype: str, launcher: Launcher) -> Model:
    return Model(config, dict(zip(packed_layout(config, dtype), packed, strict=True)), dtype, launcher)
