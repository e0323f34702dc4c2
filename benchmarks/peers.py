"""How fast are others? Ways to run one WaveNet, r9y9's own, and HiFi-GAN, side by side in one run.

    pip install ".[bench]"
    python benchmarks/peers.py --json FILE --plot PICTURE

Where the architecture allows, a peer runs exactly our weights, and the gate runs before the stopwatch: its logits under
a forced history must be the reference's. Then all make samples from the same noise mels in turn, once a round, and the
medians over the rounds are reported. A second part does the same with 1, 2, 4 … 64 streams at once for those that can.
Everything runs on one thread unless --threads says otherwise. A peer that is not there is named, with the reason.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import interleaved, machine, medians, model_of, standard_mel, versions
from peer_systems import BUILDERS, PACKAGES, Model, Run, System, build
from tqdm import tqdm

OURS = "wavenet_fast"


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    rounds: int
    batch_rounds: int
    seconds: float
    """Aimed at for each system and round."""
    frames: int
    """At most so many mel frames an utterance."""
    utterance: int
    """Mel frames for systems that make a whole utterance at once; with B streams the B-th part, but at least 8."""
    batches: tuple[int, ...]


FULL = Effort(rounds=7, batch_rounds=3, seconds=0.5, frames=160, utterance=80, batches=(1, 2, 4, 8, 16, 32, 64))
QUICK = Effort(rounds=1, batch_rounds=1, seconds=0.01, frames=2, utterance=2, batches=(1, 2))


def frames_for(system: System, run: Run, model: Model, batch: int, effort: Effort) -> int:
    """Mel frames of one timed run: about `effort.seconds` of work, found by a warm-up run."""
    if system.parallel:
        # Their work grows with samples alone; shorter utterances keep large batches within minutes.
        return max(effort.utterance // batch, min(8, effort.utterance))
    mel = standard_mel(model.config, model.weights, 1, batch)
    run(mel)
    began = time.perf_counter()
    run(mel)
    return min(max(1, round(effort.seconds / (time.perf_counter() - began))), effort.frames)


def measure(systems: list[System], model: Model, batch: int, rounds: int, effort: Effort) -> dict[str, dict[str, Any]]:
    """name → samples a second in all: every round's, their median, and the frames of an utterance."""
    runs, frames = {}, {}
    for system in systems:
        run = system.prepare(batch)
        frames[system.name] = frames_for(system, run, model, batch, effort)
        mel = standard_mel(model.config, model.weights, frames[system.name], batch)
        if system.parallel:
            run(mel)
        runs[system.name] = partial(run, mel)
    speeds = interleaved(runs, rounds, f"batch {batch}")
    typical = medians(speeds)
    return {
        name: {"median_samples_per_second": typical[name], "samples_per_second": speeds[name], "frames": frames[name]}
        for name in runs
    }


def made_ready(model: Model, without: list[str]) -> tuple[list[System], dict[str, str]]:
    """The systems that run here, and why each other does not."""
    systems, left_out = [], {}
    for name, found in tqdm(build(model, without), total=len(BUILDERS), desc="making ready", disable=None):
        if isinstance(found, System):
            systems.append(found)
        else:
            left_out[name] = found
    return systems, left_out


def table(result: dict[str, Any]) -> str:
    """The figures as text: one line a system, then the batch curve, then what each system is."""
    rate, single = result["about"]["sample_rate"], result["one_stream"]
    speeds = {name: row["median_samples_per_second"] for name, row in single.items()}
    best = max((name for name in speeds if name.startswith(OURS)), key=speeds.__getitem__, default=None)
    title = f"{result['about']['model']}, one stream, {result['about']['threads']} thread(s)"
    lines = [f"{title:34s}{'samples/s':>12s}{'× real time':>13s}" + (f"{'that of ' + best:>28s}" if best else "")]
    for name, speed in speeds.items():
        ratio = f"{_times(speeds[best] / speed):>28s}" if best else ""
        lines.append(f"{name:34s}{speed:12,.0f}{speed / rate:13.3f}{ratio}")
    curve = result["batches"]
    if curve:
        counts = next(iter(curve.values())).keys()
        lines += ["", f"{'samples/s in all, by streams':34s}" + "".join(f"{b:>11s}" for b in counts)]
        for name, row in curve.items():
            lines.append(f"{name:34s}" + "".join(f"{p['median_samples_per_second']:11,.0f}" for p in row.values()))
    lines += ["", "What ran"]
    for name, told in result["systems"].items():
        error = told["gate_error"]
        lines.append(f"  {name}: {told['what']}" + ("" if error is None else f"; logits within {error:.1e} std"))
    lines += [f"  {name}: left out. {reason}" for name, reason in result["left_out"].items()]
    return "\n".join(lines)


def _times(ratio: float) -> str:
    return f"{ratio:.0f} ×" if ratio >= 10 else f"{ratio:.2f} ×"


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--case", default="nv-medium", help="a case, a bundled voice or a checkpoint directory")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=None, help=f"of the first part; {FULL.rounds} where not given")
    parser.add_argument("--without", nargs="+", choices=list(BUILDERS), default=[], metavar="SYSTEM",
                        help="leave out: " + ", ".join(BUILDERS))  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="only see that everything runs; the figures mean nothing")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--plot", type=Path, default=None, help="a picture, .png or .svg")
    return parser.parse_args()


def main() -> None:
    args = options()
    effort = QUICK if args.quick else FULL
    torch.set_num_threads(args.threads)
    model = Model(*model_of(args.case), args.threads)
    systems, left_out = made_ready(model, args.without)
    single = measure(systems, model, 1, args.rounds or effort.rounds, effort)
    many = [system for system in systems if system.batches]
    curve: dict[str, dict[str, Any]] = {system.name: {} for system in many}
    for batch in effort.batches:
        for name, row in measure(many, model, batch, effort.batch_rounds, effort).items():
            curve[name][str(batch)] = row
    about = {
        "model": Path(args.case).name,
        "sample_rate": model.config.sample_rate,
        "hop_length": model.config.hop_length,
        "threads": args.threads,
        "quick": args.quick,
        "command": shlex.join(["python", "benchmarks/peers.py", *sys.argv[1:]]),
        "machine": machine(),
        "versions": {"python": sys.version.split()[0], **versions(*PACKAGES)},
    }
    told = {s.name: {"what": s.what, "gate_error": s.gate_error} for s in systems}
    result = {"about": about, "systems": told, "left_out": left_out, "one_stream": single, "batches": curve}
    print(table(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if args.plot:
        from peers_plot import draw

        draw(result, args.plot)


if __name__ == "__main__":
    main()
