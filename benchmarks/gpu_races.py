"""Parts of gpu_check.py that look for races, accesses out of bounds and missing barriers in the kernels' PTX, executed
on the CPU."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from gpu_parts import DTYPES, TARGETS, Finding, Level, tried
from tqdm import tqdm

MOST_SURVIVORS = 0.05


def few() -> Any:
    """A model of a few samples, the last of which hear the first ones through a ring."""
    from engine_models import small

    from wavenet_fast.config import CategoricalHead, Conditioning, Linear, OneHotInput

    return small(
        hop_length=3, dilations=(1, 2), kernel_size=2, residual_channels=16, skip_channels=16, head_channels=16,
        input=OneHotInput(kernel_size=2), head=CategoricalHead(classes=21),
        conditioning=Conditioning(upsampling=Linear()),
    )  # fmt: skip


def spoken(dtype: str, target: int, mode: Any = "plain", seed: int = 0) -> tuple[Any, Any]:
    """`few` says something and hears it again: what came out, and the launch of every kernel. Two frames: with one,
    both columns that are interpolated are the same, and so is what a missing barrier mixes up."""
    from engine_models import random_weights
    from gpu_checks import check_known_history, speak
    from triton_launches import Recorder

    from wavenet_fast.backends.triton import TritonEngine

    launcher = Recorder(target, mode, seed)
    engine = TritonEngine(few(), random_weights(few()), dtype, "emulated", launcher)
    draws, logits, state = speak(engine, 2)
    launches = dict(launcher.launches)
    check_known_history(engine, 2, draws, logits, state)
    return (draws, logits), {**launcher.launches, **launches}


def sanitized(level: Level) -> Iterator[Finding]:
    """ThreadSanitizer, AddressSanitizer and other orders of threads, over every kernel: nothing is reported, and the
    results are those of the plain run."""
    full = list(product(("thread", "address"), DTYPES, TARGETS))
    usual = [("thread", "bf16", 90), ("thread", "fp32", 80), ("address", "fp16", 120), ("address", "fp32", 90)]
    orders = [] if level == "quick" else [("plain", dtype, 90, seed) for dtype in DTYPES for seed in (1, 2, 3)]
    runs = [(*run, 0) for run in (full if level == "full" else usual if level == "usual" else usual[:1])]
    for mode, dtype, target, seed in tqdm(runs + orders, "sanitize", disable=None):
        what = f"{mode} {dtype} sm_{target}, order {seed}"

        def check(mode: str = mode, dtype: str = dtype, target: int = target, seed: int = seed) -> None:
            found, expected = spoken(dtype, target, mode, seed)[0], spoken(dtype, target)[0]
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_array_equal(one, other)

        yield tried(what, check)


def mutated(level: Level) -> Iterator[Finding]:
    """Every barrier, fence, order and wait of the compiled kernels, broken one at a time: the run above must notice."""
    from wavenet_fast.kernels.triton.launch import KERNELS

    from wavenet_fast.emulated.mutate import mutants, survivors

    usual = [("generate", "bf16", 90)]
    full = [(kernel, "bf16", 90) for kernel in KERNELS] + [("generate", "bf16", 80), ("generate", "fp32", 120)]
    for kernel, dtype, target in full if level == "full" else usual:
        what = f"{kernel} {dtype} sm_{target}"

        def check(kernel: str = kernel, dtype: str = dtype, target: int = target, what: str = what) -> Finding:
            launch = spoken(dtype, target)[1][kernel]
            everything = mutants(launch.ptx)
            every = len(everything)
            if not every:
                return Finding(what, "skipped", reason="it has no barrier, no order and no wait to break")
            barriers = [mutant.site for mutant in everything if mutant.description == "barrier deleted"]
            sites = barriers[:1] if level == "quick" else range(0, every, 5 if level == "usual" else 1)
            report = survivors(launch.ptx, launch.run, sites=sites)
            told, unexplained = report.as_dict(), 0
            for mutant in told["survived"]:
                mutant["source"] = source_of(launch.ptx, mutant["line"])
                mutant["reason"] = why_unnoticed(mutant)
                unexplained += mutant["reason"] is None
            few = len(report.survived) <= MOST_SURVIVORS * told["mutants"] or level != "full"
            verdict: Any = "passed" if few and not unexplained else "failed"
            reason = (
                f"{len(report.survived)} of {told['mutants']} go unnoticed, {unexplained} of them for no known reason"
            )
            share = len(report.survived) / told["mutants"]
            details = {"sites": every, **told}
            return Finding(what, verdict, share, MOST_SURVIVORS, reason if report.survived else None, details)

        yield tried(what, check)


def source_of(ptx: str, line: int) -> str | None:
    """The line of a kernel's source that a line of its PTX came from."""
    from wavenet_fast.kernels.triton import generate

    marks = [re.match(r"\s*\.loc\s+(\d+)\s+(\d+)", text) for text in ptx.splitlines()[:line]]
    last = next(mark for mark in reversed(marks) if mark)
    file = re.search(rf'\.file\s+{last[1]}\s+"(?:[^"]*/)?([^"/]+)"', ptx)
    source = Path(generate.__file__).with_name(file[1]) if file else None
    if source is None or not source.exists() or not int(last[2]):
        return None
    return f"{source.name}: {source.read_text(encoding='utf-8').splitlines()[int(last[2]) - 1].strip()}"


def why_unnoticed(mutant: Mapping[str, Any]) -> str | None:
    """The list of mutants that may survive."""
    if mutant["description"].startswith("wait for copies") and "for layer in" in (mutant["source"] or ""):
        return (
            "behind the loop over layers, the copies under way are those begun for a layer after the last: their"
            " source size is 0, so they write zeros. The executor lands a copy at the next wait and no earlier;"
            " by then, in the next step, nothing else lies there. A copy that lands in between is not emulated"
        )
    return None
