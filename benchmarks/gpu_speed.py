"""How fast are the GPU kernels? Samples a second of one stream, and of as many streams as the GPU takes at once, for
the named cases.

    pip install ".[torch,cuda]"
    python benchmarks/gpu_speed.py --json FILE

The gate runs before the stopwatch: each engine must give the reference's logits under forced history. Then all engines
of a case make sound in turn, once a round, and medians over the rounds are reported. What is timed is a call of the
engine: uploading mels, conditioning, all launches, and the samples back in the host's memory. `--device emulated` shows
that everything runs, and times nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import common

from wavenet_fast.backends import BACKENDS
from wavenet_fast.backends.base import Engine
from wavenet_fast.backends.gpu import look
from wavenet_fast.bench_gate import Gate
from wavenet_fast.cases import CASES
from wavenet_fast.errors import BackendError

MOST_STREAMS = 4096


GPU_BACKENDS = tuple(name for name, backend in BACKENDS.items() if "emulated" in backend.devices)


def engines(case: str, dtype: str, device: str, wanted: Sequence[str]) -> Iterator[tuple[str, Engine]]:
    """Of these GPU backends those that work here and hold the case, in this number format."""
    for name in wanted:
        backend = BACKENDS[name]
        if dtype not in backend.dtypes:
            continue
        if (why := backend.why_not(device)) is not None:
            print(f"{name}: {why}", file=sys.stderr)
            continue
        try:
            yield name, backend.make(*common.model_of(case), dtype, device)
        except BackendError as error:
            print(f"{case} in {dtype}, {name}: {error}", file=sys.stderr)


def most_streams(engine: Engine) -> int:
    """How many streams the plan of this engine takes in one round; for backends without plans, a tile of 16 on each
    multiprocessor of an H100."""
    batch = MOST_STREAMS
    while batch > 1 and (plan := engine.explain(batch, 1).details).get("rounds", 1) > 1:
        batch = min(batch - 1, plan["streams_at_once"])
    return batch if engine.name == "cuda" else 16 * 132


def measure(case: str, dtype: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each engine and number of streams."""
    device, streams, seconds = args.device, args.streams, args.seconds
    config, weights = common.model_of(case)
    frames = max(1, round(seconds * config.sample_rate / config.hop_length)) if device != "emulated" else 1
    gate, runs, rows = Gate(config, weights), {}, []
    for name, engine in engines(case, dtype, device, args.backends):
        gated = gate.check(engine)
        for batch in streams or sorted({1, most_streams(engine) if device != "emulated" else 2}):
            mel = common.standard_mel(config, weights, frames, batch)
            key = f"{name} {batch}"
            runs[key] = partial(common.generate, engine, mel)
            plan = engine.explain(batch, 1).details
            rows.append({"case": case, "dtype": dtype, "backend": name, "streams": batch, "gate": gated, "plan": plan})
            runs[key]()
    if device == "emulated":
        return rows
    speeds = common.interleaved(runs, args.rounds, f"{case} {dtype}")
    for row, (key, typical) in zip(rows, common.medians(speeds).items(), strict=True):
        row |= {"samples_per_second": typical, "rounds": speeds[key], "times_real_time": typical / config.sample_rate}
        told = f"{row['backend']:8s}{row['streams']:6d} streams {typical:14,.0f} samples/s"
        print(f"{case:14s}{dtype:6s}{told}{typical / row['streams'] / config.sample_rate:10.2f} × real time each")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("cases", nargs="*", default=list(CASES), help="all named cases where none is given")
    parser.add_argument("--dtypes", nargs="+", default=["bf16", "int8"])
    parser.add_argument("--backends", nargs="+", choices=GPU_BACKENDS, default=GPU_BACKENDS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--streams", nargs="+", type=int, help="one, and as many as the GPU takes, unless given")
    parser.add_argument("--seconds", type=float, default=2.0, help="of sound in one call of each stream")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    driver = look()
    if args.device != "emulated" and isinstance(driver, str):
        raise SystemExit(f"gpu_speed.py: {driver}")
    packages = ("numpy", "torch", "triton", "cuda-bindings", "nvidia-cuda-nvrtc", "wavenet-fast")
    about = {
        "gpu": driver if isinstance(driver, str) else str(driver.gpus[0]), "driver": str(driver),
        "device": args.device, "machine": common.machine(), "seconds": args.seconds,
        "versions": common.versions(*packages), "command": " ".join(sys.argv),
    }  # fmt: skip
    rows: list[dict[str, Any]] = []
    for case, dtype in product(args.cases, args.dtypes):
        rows += measure(case, dtype, args)
        if args.json and rows:  # what is found is written at every step
            args.json.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    if not rows:
        raise SystemExit("gpu_speed.py: no GPU backend works here; `wavenet-fast doctor` tells why")


if __name__ == "__main__":
    main()
