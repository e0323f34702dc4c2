"""How does speed scale: with streams, threads, layers, channels, the model's size and the length of an utterance?

    pip install ".[torch,plot]"
    python benchmarks/scaling.py --json FILE --png FILE

Every point but those of the length is `wavenet_fast.bench.measure`: the gate first, then the engine beside the speed at
which so many threads read as many bytes as the model's matrices have. The picture draws that ceiling into each panel;
larger models can exceed it, for the weights of older taps are read once for several samples.
The base is `nv-medium` (20 layers, R 64); `layers` and `channels` change one thing of it, with G = 2 · R.

A point is measured for `--seconds`; utterances that would take longer than `--longest` to make are left out.
An hour of sound, and the memory it takes beyond its mel and its samples:

    python benchmarks/scaling.py --sweeps length --lengths 3600 --longest 3600 --json FILE
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from tqdm import tqdm

from wavenet_fast.backends import prepare, usable_cores
from wavenet_fast.bench import Subject, about, case_subject, measure
from wavenet_fast.bench_gate import Gate, macs_per_sample
from wavenet_fast.cases import case, random_weights
from wavenet_fast.errors import WavenetFastError
from wavenet_fast.stopwatch import Load

BY_SIZE = ("nv-small", "voice", "nv-medium", "nv-large", "r9y9-mol", "wavenet-2016", "r9y9-512")
MANY_STREAMS = 32
CYCLE = 10
"""Layers after which dilations begin again at 1, as in nv-wavenet."""
LEFT_OUT = ("machine", "versions", "environment", "rounds", "gate", "peak_rss_bytes")
"""Of what `measure` tells: said once for all, or, the peak of memory, true of the whole process alone."""


@dataclass(frozen=True)
class Point:
    """What one point measures; `x` is where it stands in its sweep."""

    x: float
    subject: Subject
    batch: int = 1
    threads: int = 1


def shape(layers: int | None = None, channels: int | None = None, base: str = "nv-medium") -> Subject:
    """The base with so many layers, or so many residual channels, and random weights."""
    config, name = case(base), base
    if layers is not None:
        config = msgspec.structs.replace(config, dilations=tuple(1 << i % CYCLE for i in range(layers)))
        name = f"{base}, L {layers}"
    if channels is not None:
        config = msgspec.structs.replace(config, residual_channels=channels, gate_channels=2 * channels)
        name = f"{base}, R {channels}"
    return Subject(name, "case", config, random_weights(config))


def points_of(sweep: str, quick: bool) -> Iterator[Point]:
    """The points of one sweep. Models are made when their point's turn comes."""
    base = "tiny" if quick else "nv-medium"
    cores = usable_cores()
    threads = sorted({1, cores} | {1 << i for i in range(10) if 1 << i <= cores})
    if sweep == "batch":
        subject = case_subject(base)
        yield from (Point(b, subject, batch=b) for b in ((1, 2) if quick else (1, 2, 4, 8, 16, 32, 64)))
    elif sweep in ("threads", "threads, many streams"):
        subject, batch = case_subject(base), 1 if sweep == "threads" else MANY_STREAMS
        yield from (Point(n, subject, batch=batch, threads=n) for n in threads)
    elif sweep == "layers":
        yield from (Point(n, shape(layers=n, base=base)) for n in ((2, 4) if quick else (5, 10, 20, 30, 40)))
    elif sweep == "channels":
        yield from (Point(n, shape(channels=n, base=base)) for n in ((8, 16) if quick else (16, 32, 64, 128, 256)))
    elif sweep == "size":
        for name in ("tiny", "odd") if quick else BY_SIZE:
            yield Point(macs_per_sample(case(name)), case_subject(name))


SWEEPS = ("batch", "threads", "threads, many streams", "layers", "channels", "size", "length")


def run_sweep(sweep: str, dtype: str, seconds: float, quick: bool) -> list[dict[str, Any]]:
    """What `measure` tells of every point, without `LEFT_OUT`."""
    rows: list[dict[str, Any]] = []
    gate: Gate | None = None
    for point in tqdm(points_of(sweep, quick), desc=sweep, disable=None, unit=" points"):
        subject = point.subject
        if gate is None or gate.weights is not subject.weights:
            gate = Gate(subject.config, subject.weights)
        told = measure(
            subject, dtype=dtype, batch=point.batch, threads=point.threads, seconds=seconds, rounds=5, gate=gate
        )
        rows.append({"x": point.x} | {name: value for name, value in told.items() if name not in LEFT_OUT})
    return rows


# --- the length of an utterance ---------------------------------------------------------------------------------


def run_lengths(lengths: list[float], dtype: str, longest: float, quick: bool) -> list[dict[str, Any]]:
    """One utterance of each length, in seconds of sound, made in one call by one stream."""
    subject = case_subject("tiny" if quick else "nv-medium")
    config = subject.config
    engine = prepare(config, subject.weights, "auto", "auto", dtype).engine
    Gate(config, subject.weights).check(engine)
    load = Load(engine, subject.weights, 1, 1)
    load.advance(load.start(), load.long_mel(20), ended=True)
    rows: list[dict[str, Any]] = []
    for length in tqdm(sorted(lengths), desc="length", disable=None):
        if rows and length * rows[-1]["rtf"] > longest:
            break
        frames = max(1, round(length * config.sample_rate / config.hop_length))
        mel = np.take(load.mel, np.arange(frames) % load.mel.shape[2], axis=2)
        state, resident = load.start(), reset_peak()
        began = time.perf_counter()
        samples = load.advance(state, mel, ended=True)
        taken = time.perf_counter() - began
        sound = samples / config.sample_rate
        extra = None if resident is None else status("VmHWM") - resident - 4 * samples
        rows.append({"x": sound, "seconds": taken, "rtf": taken / sound, "extra_bytes": extra, "dtype": engine.dtype})
    return rows


def status(field: str) -> int:
    """Bytes that Linux counts for this process: VmRSS (resident now), VmHWM (the most since `reset_peak`)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def reset_peak() -> int | None:
    """Begin a new peak of memory; the bytes resident now. None where the system cannot. What the C library keeps of
    freed memory goes back first: a call that found it there would seem to take none."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return status("VmRSS")
    except (OSError, StopIteration):
        return None


# --- the picture ------------------------------------------------------------------------------------------------


def draw(sweeps: dict[str, list[dict[str, Any]]], title: str, path: Path) -> None:
    """One panel per question, the ceiling dashed. Needs matplotlib, and no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7.5), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = iter(figure.subplots(2, 3).flat)
    plot_rates(next(panels), {"all streams": sweeps.get("batch", [])}, "streams")
    threads = {
        "1 stream": sweeps.get("threads", []),
        f"{MANY_STREAMS} streams": sweeps.get("threads, many streams", []),
    }
    plot_rates(next(panels), threads, "threads")
    for sweep, what in (("layers", "layers (L)"), ("channels", "residual channels (R)"), ("size", "multiply-adds")):
        plot_rates(next(panels), {"1 stream": sweeps.get(sweep, [])}, what)
    plot_lengths(next(panels), sweeps.get("length", []))
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    figure.savefig(path)


def plot_rates(axis: Any, lines: dict[str, list[dict[str, Any]]], what: str) -> None:
    """Samples a second of all streams against x. Dashed: what the bandwidth beside each point of the first line would
    allow to one stream."""
    axis.set_xlabel(what)
    axis.set_ylabel("samples/s")
    lines = {label: sorted(rows, key=lambda row: row["x"]) for label, rows in lines.items() if rows}
    if not lines:
        return
    heights: list[float] = []
    for label, rows in lines.items():
        heights += [row["samples_per_s"] for row in rows]
        axis.loglog([row["x"] for row in rows], [row["samples_per_s"] for row in rows], "o-", label=label)
    rows = next(iter(lines.values()))
    x, ceiling = [row["x"] for row in rows], [r["stream_bandwidth_bytes_per_s"] / r["weight_bytes"] for r in rows]
    axis.loglog(x, ceiling, "k--", linewidth=1, label="the weights read once a sample")
    heights += ceiling
    axis.set_ylim(10 ** math.floor(math.log10(min(heights))), 10 ** math.ceil(math.log10(max(heights))))
    if max(x) < 1000:
        axis.set_xticks(x, [f"{n:g}" for n in x])
        axis.minorticks_off()
    else:  # models, by size
        for i, row in enumerate(rows):  # names by turns below and above, for some models are of nearly one size
            side = {"xytext": (4, 4), "ha": "left", "va": "bottom"} if i % 2 else {
                "xytext": (-4, -4), "ha": "right", "va": "top",
            }  # fmt: skip
            axis.annotate(row["case"], (row["x"], row["samples_per_s"]), textcoords="offset points", fontsize=7, **side)
        axis.set_xlim(min(x) / 3, max(x) * 4)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, frameon=False)


def plot_lengths(axis: Any, rows: list[dict[str, Any]]) -> None:
    axis.set_xlabel("sound, s")
    axis.set_ylabel("time to make it, s")
    if not rows:
        return
    x = [row["x"] for row in rows]
    axis.loglog(x, [row["seconds"] for row in rows], "o-", label="time")
    axis.loglog(x, x, "k:", linewidth=1, label="real time")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, frameon=False, loc="upper left")
    if all(row["extra_bytes"] is not None for row in rows):
        memory = axis.twinx()
        extra = [row["extra_bytes"] / 1e6 for row in rows]
        memory.plot(x, extra, "s--", color="tab:red")
        memory.set_ylabel("memory beyond mel and samples, MB", color="tab:red")
        memory.set_ylim(min(0, *extra), 1.2 * max(1, *extra))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--sweeps", nargs="+", choices=SWEEPS, default=SWEEPS, metavar="SWEEP", help=", ".join(SWEEPS))
    parser.add_argument("--seconds", type=float, default=3.0, help="for each point, after its gate")
    parser.add_argument("--lengths", type=float, nargs="+", default=[1, 4, 16, 64, 256], help="seconds of sound")
    parser.add_argument("--longest", type=float, default=60.0, help="seconds that one utterance may take to make")
    parser.add_argument("--quick", action="store_true", help="tiny models and short times: does it run?")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--png", type=Path)
    args = parser.parse_args()
    if args.quick:
        args.seconds, args.lengths = min(args.seconds, 0.1), [0.1, 0.5]
    sweeps = {
        sweep: run_lengths(args.lengths, args.dtype, args.longest, args.quick)
        if sweep == "length"
        else run_sweep(sweep, args.dtype, args.seconds, args.quick)
        for sweep in args.sweeps
    }
    for sweep, rows in sweeps.items():
        print(sweep)
        for row in rows:
            if sweep == "length":
                extra = "unknown" if row["extra_bytes"] is None else f"{row['extra_bytes'] / 1e6:.1f} MB"
                print(
                    f"  {row['x']:>10,.1f} s of sound in {row['seconds']:,.2f} s, memory beyond mel and sound {extra}"
                )
            else:
                print(
                    f"  {row['x']:>12,.0f}{row['samples_per_s']:>14,.0f} samples/s in all, "
                    f"{row['roofline_fraction']:.2f} of the ceiling each"
                )
    told = about()
    machine = told["machine"]
    if args.json:
        args.json.write_text(json.dumps({"about": told, "seconds": args.seconds, "sweeps": sweeps}, indent=1) + "\n")
    if args.png:
        (isa, dtype), *_ = [(r.get("isa", "cpu"), r["dtype"]) for rows in sweeps.values() for r in rows]
        draw(sweeps, f"{isa} {dtype}, {machine['processor']}, {machine['usable_cores']} usable cores", args.png)


if __name__ == "__main__":
    try:
        main()
    except WavenetFastError as error:
        raise SystemExit(str(error)) from None
