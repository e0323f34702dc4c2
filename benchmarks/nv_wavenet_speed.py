"""How fast is NVIDIA's nv-wavenet on this GPU, and how fast are we beside it, in one run?

    pip install ".[cuda]"
    python benchmarks/nv_wavenet_speed.py --source CHECKOUT --nvcc PATH --build FOLDER --json FILE

nv-wavenet (github.com/NVIDIA/nv-wavenet) is no part of this package: `--source` names a checkout of it, and
nv_wavenet_speed.cu is compiled against it, with the flags of its own Makefile. What is in FOLDER already, and made of
the same sources, is used again; where all is there, neither `--source` nor `--nvcc` is needed.

Its implementations (single block, dual block, persistent) in fp32 and fp16, and our backend `cuda`, make sound in turn,
once a round, and medians over the rounds are reported. Of nv-wavenet, each with the best of its numbers of streams a
block, the kernels alone are timed, on the GPU's clock, conditioning already there. Of ours, a whole call: mels to the
GPU, conditioning, all launches, the samples back. Weights are random on both sides, shapes and streams are the same.
nv-wavenet must answer without an error, with classes that differ; how long each implementation's classes are those of
the single block in the same number format is reported too. Our engines pass the gate first.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import common
import msgspec
import numpy as np
from nv_wavenet_peer import IMPLEMENTATIONS, Binary, Peer, build_all
from tqdm import tqdm

from wavenet_fast.backends import BACKENDS
from wavenet_fast.backends.gpu import look
from wavenet_fast.bench_gate import Gate
from wavenet_fast.cases import case, random_weights
from wavenet_fast.config import WaveNetConfig
from wavenet_fast.errors import BackendError, GateError

SHAPES: dict[str, WaveNetConfig] = {
    "nv-small": case("nv-small"),
    "nv-medium": case("nv-medium"),
    "nv-medium-256": msgspec.structs.replace(case("nv-medium"), skip_channels=256),
    "nv-large": case("nv-large"),
}
"""nv-wavenet's README calls three channel counts tested: R 32 S 128, R 64 S 128, R 64 S 256. Its tests run a fourth,
R 128 S 256, on the persistent kernel; the other two refuse it."""
DTYPES = {"fp32": 32, "fp16": 16, "bf16": 16}
"""Ours → the bits of nv-wavenet's that we are held against."""
PER_BLOCK = (1, 2, 3, 4)
MOST_VALUES = 1 << 30
"""Of conditioning in one run: nv-wavenet counts them in an int."""

Rate = Callable[[], float]
"""Makes sound once; samples a second of all streams together."""


class NotRun(Exception):
    """Why a system has no figure."""


@dataclass
class Entry:
    """A system with a number of streams: what is told of it, and how it is asked."""

    row: dict[str, Any]
    rate: Rate


# --- nv-wavenet ---------------------------------------------------------------------------------------------------


def theirs(
    peer: Peer, bits: int, name: str, config: WaveNetConfig, streams: int, samples: int, single: dict[int, bytes]
) -> Entry:
    """One implementation with as many streams a block as are fastest. `single` keeps the classes of the first, by bits.
    Raises `NotRun`."""
    samples = min(samples, MOST_VALUES // (config.n_layers * config.gate_channels * streams))

    def answer(per_block: int) -> dict[str, Any]:
        told = peer.ask(IMPLEMENTATIONS[name], streams, per_block, samples)
        if (why := fault(told)) is not None:
            raise NotRun(why)
        return told

    answers: dict[int, dict[str, Any]] = {}
    refused = ""
    for per_block in (n for n in PER_BLOCK if streams % n == 0):
        try:
            answers[per_block] = answer(per_block)
        except NotRun as why:
            refused = refused or str(why)
    if not answers:
        raise NotRun(refused)
    best = min(answers, key=lambda n: float(answers[n]["milliseconds"]))
    classes = answers[best]["classes"]
    single.setdefault(bits, classes)
    row = {
        "system": f"nv-wavenet {name}", "dtype": f"fp{bits}", "streams": streams, "streams_per_block": best,
        "samples": samples, "different_classes": answers[best]["different"],
        "host_hidden": answers[best]["host_hidden"], "as_single_block_for": alike(classes, single[bits]),
    }  # fmt: skip
    return Entry(row, lambda: streams * samples / (answer(best)["milliseconds"] / 1e3))


def fault(told: dict[str, Any]) -> str | None:
    """Why an answer of nv-wavenet means nothing; None where it does not."""
    if "error" in told:
        return str(told["error"])
    if told["different"] < 2 or told["lowest"] < 0 or told["highest"] > 255:
        return f"its {told['different']} different classes lie from {told['lowest']} to {told['highest']}"
    return None


def alike(found: bytes, expected: bytes) -> int:
    """Samples before the first that differs."""
    pairs = enumerate(zip(found, expected, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(found), len(expected)))


# --- ours ---------------------------------------------------------------------------------------------------------


class Ours:
    """Our backend `cuda` with one network: engines are made and gated once."""

    def __init__(self, config: WaveNetConfig, device: str) -> None:
        self.config, self.device, self.weights = config, device, random_weights(config)
        self.gate = Gate(config, self.weights)
        self.engines: dict[str, Any] = {}

    def entry(self, dtype: str, streams: int, seconds: float) -> Entry:
        """Raises `NotRun`."""
        try:
            if dtype not in self.engines:
                engine = BACKENDS["cuda"].make(self.config, self.weights, dtype, self.device)
                self.engines[dtype] = engine, self.gate.check(engine)
            engine, gated = self.engines[dtype]
            frames = max(1, round(seconds * self.config.sample_rate / self.config.hop_length))
            mel = common.standard_mel(self.config, self.weights, frames, streams)
            common.generate(engine, mel)
        except (BackendError, GateError) as error:
            raise NotRun(str(error)) from error

        def rate() -> float:
            began = perf_counter()
            samples = common.generate(engine, mel)
            return samples / (perf_counter() - began)

        row = {
            "system": "wavenet_fast cuda", "dtype": dtype, "streams": streams, "gate": gated,
            "samples": frames * self.config.hop_length, "plan": engine.explain(streams, 1).details,
        }  # fmt: skip
        return Entry(row, rate)


# --- both ---------------------------------------------------------------------------------------------------------


def measure(name: str, ours: Ours, peers: dict[int, Peer], streams: int, args: argparse.Namespace) -> list[Any]:
    """A row for each system that makes `streams` streams of this shape at once, and for each that does not."""
    single: dict[int, bytes] = {}
    entries, rows = [], []
    makers: dict[tuple[str, str], Callable[[], Entry]] = {}
    for bits, peer in peers.items():
        for implementation in IMPLEMENTATIONS:
            makers[f"nv-wavenet {implementation}", f"fp{bits}"] = partial(
                theirs, peer, bits, implementation, ours.config, streams, args.samples, single
            )
    for dtype in args.dtypes:
        makers["wavenet_fast cuda", dtype] = partial(ours.entry, dtype, streams, args.seconds)
    for (system, dtype), make in makers.items():
        try:
            entries.append(make())
        except NotRun as why:
            rows.append({"system": system, "dtype": dtype, "streams": streams, "error": str(why)})
            tqdm.write(f"{name}, {streams} streams: {system} in {dtype} is left out: {why}", file=sys.stderr)
    rates: list[list[float]] = [[] for _ in entries]
    for _ in range(args.rounds):
        for entry, found in zip(entries, rates, strict=True):
            try:
                found.append(entry.rate())
            except NotRun as why:
                entry.row["error"] = str(why)
    for entry, found in zip(entries, rates, strict=True):
        if found:
            typical = float(np.median(found))
            entry.row |= {"samples_per_second": typical, "rounds": found}
            entry.row["times_real_time"] = typical / streams / ours.config.sample_rate
    rows = [entry.row for entry in entries] + rows
    compare(rows)
    return [{"case": name} | row for row in rows]


def compare(rows: list[dict[str, Any]]) -> None:
    """Adds to our rows `against`, the fastest nv-wavenet in as many bits, and `ratio`, ours over it."""
    for row in rows:
        if not row["system"].startswith("wavenet_fast") or "samples_per_second" not in row:
            continue
        wanted = f"fp{DTYPES[row['dtype']]}"
        there = [r for r in rows if r["system"].startswith("nv-wavenet") and r["dtype"] == wanted]
        there = [r for r in there if "samples_per_second" in r and "error" not in r]
        if there:
            best = max(there, key=lambda r: float(r["samples_per_second"]))
            row["against"] = f"{best['system']} {best['dtype']}"
            row["ratio"] = row["samples_per_second"] / best["samples_per_second"]


def show(row: dict[str, Any]) -> None:
    if "samples_per_second" not in row:
        return
    text = f"{row['case']:14s}{row['streams']:5d} streams  {row['system']:24s}{row['dtype']:6s}"
    text += f"{row['samples_per_second']:14,.0f} samples/s{row['times_real_time']:9.2f} × real time each"
    tqdm.write(text + (f"{row['ratio']:8.2f} × {row['against']}" if "ratio" in row else ""))


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--source", type=Path, help="a checkout of github.com/NVIDIA/nv-wavenet")
    parser.add_argument("--nvcc", default="nvcc", help="the CUDA compiler")
    parser.add_argument("--build", type=Path, required=True, help="the folder that its programs are kept in")
    parser.add_argument("--arch", help="what they are compiled for, as sm_90; this GPU where not given")
    parser.add_argument("--jobs", type=int, default=None, help="compilers at once; a core each where not given")
    parser.add_argument("--only-build", action="store_true", help="needs no GPU where --arch is given")
    parser.add_argument("--cases", nargs="+", choices=list(SHAPES), default=["nv-medium"], metavar="CASE",
                        help=f"of {', '.join(SHAPES)}; nv-medium where none is given")  # fmt: skip
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 4, 16, 64, 256])
    parser.add_argument("--dtypes", nargs="*", choices=list(DTYPES), default=["bf16", "fp16", "fp32"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=4096, help="of one run of nv-wavenet, each stream")
    parser.add_argument("--seconds", type=float, default=1.0, help="of sound in one call of ours, each stream")
    parser.add_argument("--json", type=Path, default=None)
    return parser.parse_args()


def main() -> None:
    args = options()
    driver = look()
    arch = args.arch
    if arch is None:
        if isinstance(driver, str):
            raise SystemExit(f"nv_wavenet_speed.py: {driver}; to compile nv-wavenet here, give --arch and --only-build")
        arch = "sm_{}{}".format(*driver.gpus[0].capability)
    wanted = {(name, bits): Binary.of(SHAPES[name], bits, arch) for name in args.cases for bits in (32, 16)}
    built = build_all(list(wanted.values()), args.build, args.source, args.nvcc, args.jobs)
    if args.only_build:
        return
    if isinstance(driver, str):
        raise SystemExit(f"nv_wavenet_speed.py: {driver}")
    packages = ("wavenet-fast", "numpy", "torch", "cuda-core", "cuda-bindings", "nvidia-cuda-nvrtc")
    about = {
        "gpu": str(driver.gpus[0]), "driver": str(driver), "machine": common.machine(), "rounds": args.rounds,
        "nv_wavenet": built, "versions": {"python": sys.version.split()[0], **common.versions(*packages)},
    }  # fmt: skip
    rows: list[dict[str, Any]] = []
    with tqdm(total=len(args.cases) * len(args.streams), desc="measuring", disable=None) as bar:
        for name in args.cases:
            config = SHAPES[name]
            ours = Ours(config, "cuda")
            peers = {bits: Peer(args.build / wanted[name, bits].name, config) for bits in (32, 16)}
            for streams in args.streams:
                found = measure(name, ours, peers, streams, args)
                for row in found:
                    show(row)
                rows += found
                if args.json:  # written at every step, so that a run that is cut off leaves what it found
                    text = json.dumps({"about": about, "rows": rows}, indent=1, ensure_ascii=False)
                    args.json.write_text(text + "\n", encoding="utf-8")
                bar.update()
            for peer in peers.values():
                peer.close()


if __name__ == "__main__":
    main()
