"""How much faster does a model in memory speak under `wavenet_fast.patch`? r9y9's package wavenet-vocoder 0.1.1: its
own `incremental_forward` and the same call inside the block, in one run on one thread.

    pip install ".[bench]"
    python benchmarks/patch_speed.py --json FILE

The model has random weights of the shape of r9y9's preset for mixtures of logistics (24 layers, 128 residual, 256 gate
and 128 skip channels), or with --wide that of the published LJSpeech and AutoVC files (512, 512, 256). Before the
stopwatch runs, both are fed the same past, its sampler is replaced by ours, and the draws have to agree. Then all make
samples in turn, once a round; the medians over the rounds are told.
"""

from __future__ import annotations

import argparse
import copy
import json
import shlex
import sys
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from common import GATE, GateError, interleaved, machine, medians, versions

import wavenet_fast as wf
from wavenet_fast.config import LogisticHead
from wavenet_fast.rng import uniforms
from wavenet_fast.sampling import sample

HOP, BANDS, COMPONENTS, FLOOR = 256, 80, 10, -32.23619130191664
SHAPES = {"r9y9-mol": (128, 256, 128), "r9y9-512": (512, 512, 256)}
"""Residual, gate and skip channels."""
OWN = "its own"


def built(shape: tuple[int, int, int]) -> Any:
    """The model, in evaluation, with weight norm removed as its synthesis script does."""
    import wavenet_vocoder

    torch.manual_seed(0)
    R, G, S = shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = wavenet_vocoder.WaveNet(
            out_channels=3 * COMPONENTS, layers=24, stacks=4, residual_channels=R, gate_channels=G, skip_out_channels=S,
            kernel_size=3, cin_channels=BANDS, upsample_conditional_features=True, upsample_scales=[4, 4, 4, 4],
            freq_axis_kernel_size=3, scalar_input=True,
        )  # fmt: skip
        model.last_conv_layers[3].bias.data[-COMPONENTS:] -= 4  # narrow components, so that draws tell of the means
        model.make_generation_fast_()
    return model.eval()


@torch.no_grad()
def speak(model: Any, frames: int, streams: int, past: Any = None) -> np.ndarray:
    """(B, T) as its synthesis script calls it. With several streams, the first input is given for each: without it the
    package takes c for one utterance."""
    c = torch.rand(streams, BANDS, frames, generator=torch.Generator().manual_seed(1))
    past = torch.zeros(streams, 1, 1) if past is None else past
    made: np.ndarray = model.incremental_forward(c=c, T=frames * HOP, test_inputs=past, log_scale_min=FLOOR)[
        :, 0
    ].numpy()
    return made


def gate(model: Any, dtype: str, samples: int) -> float:
    """Root mean square difference of the draws of both after the same past, in standard deviations of them. Raises
    `GateError` beyond the limit of `GATE`."""
    frames = -(-samples // HOP)
    past = torch.rand(1, 1, frames * HOP, generator=torch.Generator().manual_seed(2)) - 0.5
    with wf.patch(model, strict=True, dtype=dtype, threads=1, backend="cpu", seed=0):
        ours = speak(model, frames, 1, past)
    position = iter(range(frames * HOP))
    head = LogisticHead(components=COMPONENTS, log_scale_min=FLOOR)

    def drawn(y: Any, log_scale_min: float) -> Any:
        return torch.tensor(sample(y[:, :, 0].numpy(), uniforms(np.zeros(1, np.uint64), next(position)), head))[:, None]

    with mock.patch("wavenet_vocoder.wavenet.sample_from_discretized_mix_logistic", drawn):
        theirs = speak(model, frames, 1, past)
    error = float(np.sqrt(np.mean((ours - theirs) ** 2)) / theirs.std())
    if not error <= GATE[dtype]:
        raise GateError(f"{dtype}: draws are off by {error:.2g} standard deviations; nothing is timed")
    return error


def measure(model: Any, streams: int, dtypes: list[str], rounds: int, frames: int, own_frames: int) -> dict[str, Any]:
    """System → samples a second of all streams together: every round's, and their median."""
    runs: dict[str, Callable[[], int]] = {OWN: lambda: speak(model, own_frames, streams).size}
    with ExitStack() as blocks:
        for dtype in dtypes:
            patched = blocks.enter_context(
                wf.patch(copy.deepcopy(model), strict=True, dtype=dtype, threads=1, backend="cpu")
            )
            speak(patched, 1, streams)  # packs the weights
            runs[f"patched, {dtype}"] = lambda patched=patched: speak(patched, frames, streams).size
        speeds = interleaved(runs, rounds, f"{streams} stream(s)")
    typical = medians(speeds)
    return {
        name: {
            "median_samples_per_second": typical[name], "samples_per_second": values,
            "times_its_own": typical[name] / typical[OWN],
        }
        for name, values in speeds.items()
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--wide", action="store_true", help="512/512/256 channels")
    parser.add_argument("--dtypes", nargs="+", choices=list(GATE), default=["fp32", "bf16", "int8"])
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=20, help="of 256 samples, of one utterance under the patch")
    parser.add_argument("--quick", action="store_true", help="only see that everything runs; the figures mean nothing")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(1)
    name = "r9y9-512" if args.wide else "r9y9-mol"
    model = built((8, 16, 8) if args.quick else SHAPES[name])
    rounds, frames, own = (1, 1, 1) if args.quick else (args.rounds, args.frames, 2)
    told: dict[str, Any] = {
        "about": {
            "model": name, "threads": 1, "quick": args.quick, "machine": machine(),
            "command": shlex.join(["python", "benchmarks/patch_speed.py", *sys.argv[1:]]),
            "versions": {"python": sys.version.split()[0], **versions("torch", "wavenet-vocoder", "numpy")},
        },
        "gate_error": {dtype: gate(model, dtype, 64 if args.quick else 256) for dtype in args.dtypes},
        "streams": {str(n): measure(model, n, args.dtypes, rounds, frames, own) for n in args.streams},
    }  # fmt: skip
    alone = told["streams"].get("1", {}).get(OWN, {}).get("median_samples_per_second")
    for count, systems in told["streams"].items():
        for system, row in systems.items():
            speed = row["median_samples_per_second"]
            times = f"{row['times_its_own']:.1f} × its own"
            beside = f", {speed / alone:.1f} × that of one" if alone and count != "1" else ""
            print(f"{count:>3s} stream(s), {system:16s} {speed:10,.0f} samples/s, {times}{beside}")
    if args.json:
        args.json.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
