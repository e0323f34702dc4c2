"""What is in a checkpoint, for people and for programs. Needs no torch and runs no network."""

from __future__ import annotations

import json
import math
from typing import Any

from .checkpoint import Checkpoint
from .conditioning import lookahead_frames
from .config import OneHotInput, Stages, TransposedStage, WaveNetConfig, encode
from .format_costs import weights_fingerprint
from .packing import DTYPES
from .shaping import FILTER
from .weights import weight_count, weight_shapes


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Sizes, cost, recipe and origin of a voice, as plain dictionaries ready for JSON. Units are in the keys."""
    c = checkpoint.config
    per_sample, per_frame = multiply_adds(c)
    return {
        "sample_rate_hz": c.sample_rate,
        "hop_length_samples": c.hop_length,
        "frame_ms": 1000 * c.hop_length / c.sample_rate,
        "parameters": weight_count(c),
        "receptive_field_samples": c.receptive_field,
        "receptive_field_ms": 1000 * c.receptive_field / c.sample_rate,
        "lookahead_frames": lookahead_frames(c),
        "multiply_adds_per_sample": per_sample,
        "multiply_adds_per_frame": per_frame,
        "gflops_in_real_time": 2 * (per_sample + per_frame / c.hop_length) * c.sample_rate / 1e9,
        "weight_bytes": weight_bytes(c),
        "state_bytes_per_stream": 4 * (c.kernel_size - 1) * sum(c.dilations) * c.residual_channels,
        "speakers": c.speakers.count,
        "temperature": checkpoint.temperature,
        "mel_fingerprint": checkpoint.mel.fingerprint,
        "mel_statistics": "mel.mean" in checkpoint.weights,
        "sound_filter_taps": len(checkpoint.weights.get(FILTER, ())),
        "number_formats": _number_formats(checkpoint),
        "license": checkpoint.info.get("license", ""),
        "provenance": checkpoint.info.get("provenance", {}),
        "model": encode(c),
        "mel": encode(checkpoint.mel),
    }


def _number_formats(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The recorded costs, and whether they were measured with these weights; None where nothing is recorded."""
    recorded = checkpoint.recorded_costs
    if recorded is None:
        return None
    return {**encode(recorded), "of_these_weights": recorded.weights == weights_fingerprint(checkpoint.weights)}


def multiply_adds(config: WaveNetConfig) -> tuple[int, int]:
    """Multiply-adds for one sample of the loop, and for one frame of the conditioning beside it.

    An embedding is looked up, not multiplied. The per-layer projections of the mel count once per frame, except where
    learned stages bring the conditioning to sample rate: there they count hop times."""
    c, per_sample, per_frame = config, 0, 0
    rate, rates = 1, {}  # columns per frame at the output of each stage
    if isinstance(c.conditioning.upsampling, Stages):
        for i, stage in enumerate(c.conditioning.upsampling.stages):
            # A transposed convolution visits every weight once per column that goes in, the other per column out.
            before, rate = rate, rate * stage.scale
            rates[f"conditioning.stages.{i}.weight"] = before if isinstance(stage, TransposedStage) else rate
    height = _picture_heights(c)
    for name, shape in weight_shapes(c).items():
        size = math.prod(shape)
        if not name.endswith(".weight") or name == "speakers.weight" or name.endswith(".speaker.weight"):
            continue
        if name.startswith("conditioning."):
            per_frame += size * rates.get(name, 1) * height.get(name, 1)
        elif name.endswith(".conditioning.weight"):
            per_frame += size * rate
        elif name != "input.weight" or not isinstance(c.input, OneHotInput):
            per_sample += size
    return per_sample, per_frame


def _picture_heights(config: WaveNetConfig) -> dict[str, int]:
    """Rows over which a picture stage slides its kernel: the channels that came in."""
    heights: dict[str, int] = {}
    width = config.conditioning.network[-1].channels if config.conditioning.network else config.n_mels
    if isinstance(config.conditioning.upsampling, Stages):
        for i, stage in enumerate(config.conditioning.upsampling.stages):
            if stage.image:
                heights[f"conditioning.stages.{i}.weight"] = width
            width = stage.channels or width
    return heights


def weight_bytes(config: WaveNetConfig) -> dict[str, int]:
    """Bytes of all weights by number format: matrices in the format (int8 with a float32 scale per row), vectors in
    float32."""
    shapes = weight_shapes(config).values()
    matrices = sum(math.prod(shape) for shape in shapes if len(shape) > 1)
    vectors = sum(math.prod(shape) for shape in shapes if len(shape) == 1)
    rows = sum(shape[0] for shape in shapes if len(shape) > 1)
    widths = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}
    return {f: matrices * w + vectors * 4 + (rows * 4 if f == "int8" else 0) for f, w in widths.items()}


def format_description(told: dict[str, Any]) -> str:
    """`describe()` as a page of text. What a file says of itself is shown with control characters escaped."""
    model, mel = told["model"], told["mel"]
    bytes_ = told["weight_bytes"]
    rows = [
        (
            "sound",
            f"{told['sample_rate_hz']} Hz, {told['frame_ms']:g} ms frames of {told['hop_length_samples']} samples",
        ),
        ("network", _network(model)),
        ("dilations", _dilations(model["dilations"])),
        ("input", _kind(model["input"])),
        ("head", _kind(model["head"])),
        ("conditioning", _conditioning(model)),
        ("speakers", str(told["speakers"] or "one")),
        ("parameters", f"{told['parameters']:,}"),
        ("weights", ", ".join(f"{_bytes(size)} {name}" for name, size in bytes_.items())),
        ("receptive field", f"{told['receptive_field_samples']:,} samples, {told['receptive_field_ms']:.1f} ms"),
        ("look-ahead", f"{told['lookahead_frames'] * told['frame_ms']:g} ms (frames: {told['lookahead_frames']})"),
        (
            "multiply-adds",
            f"{told['multiply_adds_per_sample']:,} a sample, {told['multiply_adds_per_frame']:,} a frame",
        ),
        ("real time takes", f"{told['gflops_in_real_time']:.1f} GFLOP/s"),
        ("state", f"{_bytes(told['state_bytes_per_stream'])} a stream"),
        ("temperature", f"{told['temperature']:g}"),
        ("number formats", _costs(told["number_formats"])),
        ("mel", _mel(mel)),
        ("mel fingerprint", told["mel_fingerprint"] + (", statistics included" if told["mel_statistics"] else "")),
        ("sound filter", f"{told['sound_filter_taps']} taps" if told["sound_filter_taps"] else "none"),
        ("licence", _plain(told["license"]) or "not said"),
    ]
    rows += [("provenance" if not i else "", line) for i, line in enumerate(_provenance(told["provenance"]))]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}".rstrip() for name, value in rows)


def _network(model: dict[str, Any]) -> str:
    return (
        f"{len(model['dilations'])} layers, kernel {model['kernel_size']}, residual {model['residual_channels']},"
        f" gate {model['gate_channels']}, skip {model['skip_channels']}, head {model['head_channels']}"
    )


def _dilations(dilations: list[int]) -> str:
    """The list, or `2 × (1 2 4 8)` where a cycle repeats."""
    for period in range(1, len(dilations) // 2 + 1):
        cycles, rest = divmod(len(dilations), period)
        if not rest and list(dilations) == list(dilations[:period]) * cycles:
            return f"{cycles} × ({' '.join(map(str, dilations[:period]))})"
    return " ".join(map(str, dilations))


def _kind(part: dict[str, Any]) -> str:
    rest = [f"{name} {value}" for name, value in part.items() if name != "kind" and value is not None]
    return ", ".join([part["kind"], *rest])


def _conditioning(model: dict[str, Any]) -> str:
    cond = model["conditioning"]
    up = cond["upsampling"]
    steps = [f"{model['n_mels']} mel bands"] + (["standardised"] if cond["standardise"] else [])
    steps += [f"conv {conv['channels']}×{conv['kernel_size']} {conv['activation']}" for conv in cond["network"]]
    stages = [f"{stage['kind']} ×{stage['scale']}" for stage in up.get("stages", [])]
    return " → ".join([*steps, *(stages or [up["kind"]])])


def _costs(recorded: dict[str, Any] | None) -> str:
    if recorded is None:
        return "costs not measured; `wavenet-fast check` does"
    if not recorded["of_these_weights"]:
        return "costs recorded for other weights, so not used; `wavenet-fast check --write` measures them again"
    parts = []
    for dtype in DTYPES:
        if cost := recorded.get(dtype):
            error = "" if cost["standard_error"] is None else f" ± {cost['standard_error']:.6f}"
            parts.append(f"{dtype} {cost['cost_bits']:+.6f}{error}")
    about = f"{recorded.get('recordings', 0)} recordings, {recorded.get('seconds', 0):.1f} s"
    measured = f"(bits per sample more than fp32; {about})"
    return f"{', '.join(parts) or 'none but fp32'} {measured}"


def _mel(mel: dict[str, Any]) -> str:
    if mel["normalize"] == "elsewhere":
        return f"{mel['n_mels']} bands, made elsewhere in a way that is not known here"
    return (
        f"{mel['n_mels']} bands {mel['fmin']:g}–{mel['fmax']:g} Hz ({mel['mel_scale']}), n_fft {mel['n_fft']}, window"
        f" {mel['win_length']}, {'centred' if mel['center'] else 'not centred'}, {mel['log']} of power {mel['power']},"
        f" floor {mel['floor']:g}, normalise {mel['normalize']}"
    )


def _provenance(provenance: dict[str, Any]) -> list[str]:
    if not provenance:
        return ["not said"]
    return [f"{_plain(key)}: {_plain(v if isinstance(v, str) else json.dumps(v))}" for key, v in provenance.items()]


def _plain(text: str) -> str:
    """One printable line: escape sequences in a file must not reach the terminal."""
    return "".join(ch if ch.isprintable() else ch.encode("unicode_escape").decode() for ch in text)


def _bytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
