"""How fast is one stream on one core? Every instruction set and number format of this processor beside the reference.

    pip install ".[torch]"
    python benchmarks/engine_speed.py VOICE --json FILE

VOICE is a checkpoint directory, a bundled voice's name, or a shape of wavenet_fast/cases.py (`voice`, `nv-medium` …)
with random weights. The gate runs before the stopwatch: each engine must give the
reference's logits under forced history. Then all of them make sound in turn, once a round, on one thread, and the
medians over the rounds are reported, so that a change of the machine's mood falls on all alike.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

import common
import torch

from wavenet_fast.backends.base import Engine
from wavenet_fast.backends.cpu import DTYPES, CpuEngine, isas_possible
from wavenet_fast.backends.reference import ReferenceEngine
from wavenet_fast.bench_gate import Gate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("voice")
    parser.add_argument("--frames", type=int, default=160, help="mel frames for each engine and round")
    parser.add_argument("--reference-frames", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = config, weights = common.model_of(args.voice)
    mel = common.standard_mel(config, weights, max(args.frames, args.reference_frames))
    reference = "reference fp32"
    engines: dict[str, Engine] = {reference: ReferenceEngine(*model, "fp32")}
    for isa in isas_possible():
        if isa != "portable16":  # the wide logic without wide instructions, for tests only
            engines |= {f"cpu {isa} {dtype}": CpuEngine(*model, dtype, isa) for dtype in DTYPES}
    gate = Gate(*model)
    for name, engine in engines.items():
        if name != reference:
            gate.check(engine)
        common.generate(engine, mel[:, :, :2])
    runs = {
        name: partial(common.generate, engine, mel[:, :, : args.reference_frames if name == reference else args.frames])
        for name, engine in engines.items()
    }
    speeds = common.interleaved(runs, args.rounds)
    typical = common.medians(speeds)
    print(f"{'one stream, one thread':26s}{'samples/s':>12s}{'× real time':>13s}{'× reference':>13s}")
    for name, speed in typical.items():
        print(f"{name:26s}{speed:12,.0f}{speed / config.sample_rate:13.2f}{speed / typical[reference]:13.1f}")
    if args.json:
        about = {
            "voice": Path(args.voice).name,
            "sample_rate": config.sample_rate,
            "frames": args.frames,
            "reference_frames": args.reference_frames,
            "machine": common.machine(),
            "versions": common.versions("numpy", "torch", "wavenet-fast"),
        }
        result = {"about": about, "median_samples_per_second": typical, "samples_per_second": speeds}
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
