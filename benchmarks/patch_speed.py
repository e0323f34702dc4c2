"""How much faster does a model in memory speak under `wavenet_fast.patch`? Its own generation and the same call inside
the block, in one run on one thread: r9y9's package wavenet-vocoder 0.1.1 and its `incremental_forward`, or, from a
checkout of github.com/kan-bayashi/PytorchWaveNetVocoder, `fast_generate` and for several streams `batch_fast_generate`.

    pip install ".[bench]"
    python benchmarks/patch_speed.py --json FILE
    python benchmarks/patch_speed.py --kan-bayashi CHECKOUT --json FILE

The models have random weights. r9y9's has the shape of its preset for mixtures of logistics (24 layers, 128 residual,
256 gate and 128 skip channels), or with --wide that of the published LJSpeech and AutoVC files (512, 512, 256);
kan-bayashi's that of its recipe egs/arctic/sd-melspc/run.sh (30 layers of two taps, 512 residual and 256 skip channels,
80 bands, 80 samples a frame, learned upsampling). Before the stopwatch runs, both are given the same past, its sampler
is replaced by ours, and the draws have to agree. Then all make samples in turn, once a round; the medians over the
rounds are told. kan-bayashi's calls hear silence for the receptive field before the first sample: that is timed by
itself, and speeds are of the samples after the first.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import importlib.util
import json
import shlex
import sys
import warnings
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from common import GATE, GateError, interleaved, machine, versions

import wavenet_fast as wf
from wavenet_fast.config import CategoricalHead, LogisticHead
from wavenet_fast.rng import uniforms
from wavenet_fast.sampling import sample

OWN = "its own"
FIRST = ", first sample"
BANDS = 80
SHAPES = {"r9y9-mol": (128, 256, 128), "r9y9-512": (512, 512, 256)}
"""Residual, gate and skip channels."""
MOST_OTHERS = {"fp32": 0.02, "fp16": 0.05, "bf16": 0.15, "int8": 0.25}
"""Share of classes that are drawn otherwise; of unrelated networks nearly all are."""


class R9y9:
    """r9y9's old generation, from PyPI."""

    hop, warms_up, components, floor = 256, False, 10, -32.23619130191664
    limits = GATE

    def __init__(self, name: str, quick: bool) -> None:
        import wavenet_vocoder

        self.name, self.versions = name, versions("wavenet-vocoder")
        self.frames, self.own_frames, self.gate_samples = (1, 1, 64) if quick else (20, 2, 256)
        R, G, S = (8, 16, 8) if quick else SHAPES[name]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.model = wavenet_vocoder.WaveNet(
                out_channels=3 * self.components, layers=24, stacks=4, residual_channels=R, gate_channels=G,
                skip_out_channels=S, kernel_size=3, cin_channels=BANDS, upsample_conditional_features=True,
                upsample_scales=[4, 4, 4, 4], freq_axis_kernel_size=3, scalar_input=True,
            )  # fmt: skip
            bias = self.model.last_conv_layers[3].bias
            bias.data[-self.components :] -= 4  # narrow components, so that draws tell of the means
            self.model.make_generation_fast_()  # weight norm removed, as its synthesis script does

    def speak(self, model: Any, frames: int, streams: int, past: Any = None) -> np.ndarray:
        """(B, T) as its synthesis script calls it. With several streams, the first input is given for each: without it
        the package takes c for one utterance."""
        past = torch.zeros(streams, 1, 1) if past is None else past
        made: np.ndarray = model.incremental_forward(
            c=mel(frames, streams), T=frames * self.hop, test_inputs=past, log_scale_min=self.floor
        )[:, 0].numpy()
        return made

    def gate_draws(self, patched: Callable[[], Any]) -> tuple[np.ndarray, np.ndarray]:
        """Ours and theirs after the same past."""
        frames = -(-self.gate_samples // self.hop)
        past = torch.rand(1, 1, frames * self.hop, generator=torch.Generator().manual_seed(2)) - 0.5
        with patched():
            ours = self.speak(self.model, frames, 1, past)
        draw = our_sampler(LogisticHead(components=self.components, log_scale_min=self.floor), range(frames * self.hop))
        with mock.patch(
            "wavenet_vocoder.wavenet.sample_from_discretized_mix_logistic",
            lambda y, log_scale_min: torch.tensor(draw(y[:, :, 0]))[:, None],
        ):
            return ours, self.speak(self.model, frames, 1, past)

    @staticmethod
    def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
        """Root mean square, in standard deviations."""
        return float(np.sqrt(np.mean((ours - theirs) ** 2)) / theirs.std())


class KanBayashi:
    """kan-bayashi's WaveNet, from a checkout: the package is on no index, and has the name of r9y9's."""

    name, hop, warms_up, classes = "kan-bayashi-melspc", 80, True, 256
    limits = MOST_OTHERS

    def __init__(self, checkout: Path, quick: bool) -> None:
        file = next(checkout.glob("*/nets/wavenet.py"), None)
        spec = importlib.util.spec_from_file_location("kan_bayashi_wavenet", file) if file else None
        if file is None or spec is None or spec.loader is None:
            raise SystemExit(f"{checkout} has no */nets/wavenet.py; give a checkout of PytorchWaveNetVocoder")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.frames, self.own_frames, self.gate_samples = (20, 10, 16) if quick else (20, 4, 64)
        self.versions = {"nets/wavenet.py, sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        R, S, depth, repeat = (8, 8, 3, 2) if quick else (512, 256, 10, 3)
        self.model = module.WaveNet(
            n_quantize=self.classes, n_aux=BANDS, n_resch=R, n_skipch=S, dilation_depth=depth, dilation_repeat=repeat,
            kernel_size=2, upsampling_factor=self.hop,
        )  # fmt: skip
        self.model.apply(module.initialize)
        self.model.conv_post_2.weight.data *= 20  # few classes are likely, so that draws tell of the logits

    def speak(self, model: Any, frames: int, streams: int, samples: int | None = None) -> np.ndarray:
        """(B, T) as its decoding script calls it: one sample less than the frames have, or so many."""
        x = torch.full((streams, 1), self.classes // 2)
        samples = frames * self.hop - 1 if samples is None else samples
        if streams == 1:
            return model.fast_generate(x, mel(frames, 1), samples)[None]
        return np.stack(model.batch_fast_generate(x, mel(frames, streams), [samples] * streams))

    def gate_draws(self, patched: Callable[[], Any]) -> tuple[np.ndarray, np.ndarray]:
        """Ours and theirs after the same past: theirs goes on with what ours has drawn."""
        known, n, theirs = self.model.receptive_field, self.gate_samples, []
        past = torch.randint(0, self.classes, (1, known), generator=torch.Generator().manual_seed(2))
        h = mel(-(-(known + n) // self.hop), 1)
        with patched():
            ours = self.model.fast_generate(past, h, n)
        draw = our_sampler(CategoricalHead(classes=self.classes), range(known - 1, known - 1 + n))

        class Drawn:
            def __init__(self, probabilities: Any) -> None:
                theirs.append(draw(probabilities.log()[None])[0])

            def sample(self) -> Any:
                return torch.tensor(ours[len(theirs) - 1])

        with mock.patch.object(torch.distributions, "Categorical", Drawn):
            self.model.fast_generate(past, h, n)
        return ours, np.array(theirs)

    @staticmethod
    def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
        """The share of other classes: how far apart two classes lie says nothing."""
        return float(np.mean(ours != theirs))


def mel(frames: int, streams: int) -> Any:
    return torch.rand(streams, BANDS, frames, generator=torch.Generator().manual_seed(1))


def our_sampler(head: Any, positions: Iterable[int]) -> Callable[[Any], np.ndarray]:
    """Logits (1, A) of these positions, one after another → the draw (1,) of seed 0."""
    left = iter(positions)
    return lambda logits: sample(logits.numpy(), uniforms(np.zeros(1, np.uint64), next(left)), head)


def gate(family: Any, dtype: str) -> float:
    """How the draws of both differ after the same past, as the family measures it. Raises `GateError` beyond its
    limit."""
    options = {"strict": True, "dtype": dtype, "threads": 1, "backend": "cpu", "seed": 0}
    ours, theirs = family.gate_draws(partial(wf.patch, family.model, **options))
    error = family.difference(ours, theirs)
    if not error <= family.limits[dtype]:
        raise GateError(f"{dtype}: the draws differ by {error:.2g}, more than {family.limits[dtype]}; nothing is timed")
    return error


def measure(family: Any, streams: int, dtypes: list[str], rounds: int, frames: int) -> dict[str, Any]:
    """System → samples a second of all streams together: every round's, and their median; where it warms up, those
    after the first, and the seconds until that."""
    lengths, runs = {OWN: family.own_frames}, {}
    with ExitStack() as blocks:
        models = {OWN: family.model}
        for dtype in dtypes:
            block = wf.patch(copy.deepcopy(family.model), strict=True, dtype=dtype, threads=1, backend="cpu")
            models[f"patched, {dtype}"] = blocks.enter_context(block)
            family.speak(models[f"patched, {dtype}"], 1, streams)  # packs the weights
        for name, model in models.items():
            n = lengths.setdefault(name, frames)
            runs[name] = lambda model=model, n=n: family.speak(model, n, streams).size
            if family.warms_up:
                runs[name + FIRST] = lambda model=model, n=n: family.speak(model, n, streams, 1).size
        speeds = interleaved(runs, rounds, f"{streams} stream(s)")
    rows: dict[str, Any] = {}
    for name in models:
        values, row = speeds[name], {}
        if family.warms_up:
            first = [streams / speed for speed in speeds[name + FIRST]]
            made = streams * (lengths[name] * family.hop - 1)
            values = [(made - streams) / (made / v - s) for v, s in zip(values, first, strict=True)]
            row = {"median_seconds_to_first": float(np.median(first)), "seconds_to_first": first}
        rows[name] = {"median_samples_per_second": float(np.median(values)), "samples_per_second": values, **row}
    for row in rows.values():
        row["times_its_own"] = row["median_samples_per_second"] / rows[OWN]["median_samples_per_second"]
    return rows


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--wide", action="store_true", help="r9y9's with 512/512/256 channels")
    which.add_argument("--kan-bayashi", type=Path, metavar="CHECKOUT", help="kan-bayashi's, from here")
    parser.add_argument("--dtypes", nargs="+", choices=list(GATE), default=["fp32", "bf16", "int8"])
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, help="of one utterance under the patch (20)")
    parser.add_argument("--quick", action="store_true", help="only see that everything runs; the figures mean nothing")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    family: Any
    if args.kan_bayashi:
        family = KanBayashi(args.kan_bayashi, args.quick)
    else:
        family = R9y9("r9y9-512" if args.wide else "r9y9-mol", args.quick)
    family.model.eval()
    rounds, frames = 1 if args.quick else args.rounds, args.frames or family.frames
    told: dict[str, Any] = {
        "about": {
            "model": family.name, "threads": 1, "quick": args.quick, "machine": machine(),
            "command": shlex.join(["python", "benchmarks/patch_speed.py", *sys.argv[1:]]),
            "versions": {"python": sys.version.split()[0], **versions("torch", "numpy"), **family.versions},
        },
        "gate_error": {dtype: gate(family, dtype) for dtype in args.dtypes},
        "streams": {str(n): measure(family, n, args.dtypes, rounds, frames) for n in args.streams},
    }  # fmt: skip
    alone = told["streams"].get("1", {}).get(OWN, {}).get("median_samples_per_second")
    for count, systems in told["streams"].items():
        for system, row in systems.items():
            speed = row["median_samples_per_second"]
            times = f"{row['times_its_own']:.1f} × its own"
            beside = f", {speed / alone:.1f} × that of one" if alone and count != "1" else ""
            first = f", first after {row['median_seconds_to_first']:.2f} s" if family.warms_up else ""
            print(f"{count:>3s} stream(s), {system:16s} {speed:10,.0f} samples/s, {times}{beside}{first}")
    if args.json:
        args.json.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
