"""Parts of gpu_check.py that execute the CUDA kernels' PTX on the CPU: against the reference, cut in every way, under
sanitizers, and with every barrier, flag, fence and wait broken in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
from gpu_parts import TARGETS, Finding, Level, laws_of, stages_of, tried
from tqdm import tqdm

from wavenet_fast.backends import gpu

DTYPES = ("fp32", "fp16", "bf16", "int8")


def _why_not() -> str | None:
    return gpu.why_not_emulated_cuda_kernels()


def executed(level: Level) -> Iterator[Finding]:
    """Stages and draws of every model in all number formats, cut in turn in every way that the tests know; every law
    for some of them."""
    if (why := _why_not()) is not None:
        yield Finding("the CUDA kernels", "skipped", reason=why)
        return
    from cuda_launches import Cut, HostileDevice, laid
    from engine_models import MODELS, random_weights
    from test_cuda_emulated import CUTS, OTHERS

    from wavenet_fast.backends.cuda import CudaEngine

    models = MODELS | OTHERS
    ways = [(Cut(), 80), *CUTS]
    everything = list(product(models, DTYPES, ways))
    turns = everything[:: len(ways) + 2]
    chosen = {"full": everything, "usual": turns, "quick": [("tiny", "bf16", ways[-1])]}[level]
    for name, dtype, (cut, capability) in tqdm(chosen, "execute", disable=None):
        config, what = models[name], f"{name} {dtype} sm_{capability} {cut}"
        if cut.teams - cut.alone > config.n_layers:
            continue
        weights = random_weights(config)
        engine = laid(CudaEngine(config, weights, dtype, HostileDevice(config, capability)), cut)
        yield tried(f"{what}: stages", lambda e=engine, w=weights, t=what: stages_of(e, w, f"{t}: stages"))
        if level != "quick":
            yield from laws_of(engine, what, (name, dtype, (cut, capability)) in turns)


def cuts(level: Level) -> Iterator[Finding]:
    """Every cut says the same, bit for bit, in every number format, whatever the order of threads."""
    if (why := _why_not()) is not None:
        yield Finding("the CUDA kernels", "skipped", reason=why)
        return
    from test_cuda_emulated import CUTS, of_many, same_as

    names = {"full": ("panels", "logistic", "gaussian", "odd"), "usual": ("panels",), "quick": ("tiny",)}[level]
    formats = DTYPES if level == "full" else ("bf16",)
    chosen = CUTS[:1] if level == "quick" else CUTS
    for name, dtype, (cut, capability) in tqdm(list(product(names, formats, chosen)), "cuts", disable=None):
        for seed in range(3 if level == "full" else 1):

            def check(
                name: str = name, dtype: str = dtype, cut: Any = cut, cap: int = capability, s: int = seed
            ) -> None:
                same_as(of_many(name, dtype), name, dtype, cut, cap, s)

            yield tried(f"{name} {dtype} sm_{capability} {cut}, order {seed}", check)


def sanitized(level: Level) -> Iterator[Finding]:
    """ThreadSanitizer and AddressSanitizer report nothing, and the results are those of the plain run."""
    if (why := _why_not()) is not None:
        yield Finding("the CUDA kernels", "skipped", reason=why)
        return
    from cuda_launches import FEW, FEW_CUTS, say_few
    from engine_models import random_weights
    from wavenet_fast.kernels.cuda.emulated_device import EmulatedDevice

    from wavenet_fast.backends.cuda import CudaEngine

    def fits(name: str, dtype: str, target: int) -> bool:
        device = EmulatedDevice(target)
        layout = FEW_CUTS[name][0].layout(CudaEngine(FEW, random_weights(FEW), dtype, device))
        return layout.shared <= device.properties.shared_per_block and (target >= 90 or not layout.cluster)

    everything = list(product(("thread", "address"), FEW_CUTS, DTYPES, TARGETS, (0, 1)))
    possible = {which for which in product(FEW_CUTS, DTYPES, TARGETS) if fits(*which)}
    everything = [run for run in everything if run[1:4] in possible]
    chosen = {"full": everything, "usual": everything[::7], "quick": everything[:1]}[level]
    for mode, name, dtype, target, seed in tqdm(chosen, "sanitize", disable=None):

        def check(mode: Any = mode, name: str = name, dtype: str = dtype, target: int = target, s: int = seed) -> None:
            cut = FEW_CUTS[name][0]
            found = say_few(EmulatedDevice(target, mode, s), cut, dtype)
            np.testing.assert_array_equal(found[1], say_few(EmulatedDevice(target), cut, dtype)[1])

        yield tried(f"{mode} {name} {dtype} sm_{target}, order {seed}", check)


def mutated(level: Level) -> Iterator[Finding]:
    """Every barrier, fence, flag, order and wait of both kernels, broken one at a time: nine streams of a few samples
    must notice."""
    if (why := _why_not()) is not None:
        yield Finding("the CUDA kernels", "skipped", reason=why)
        return
    from cuda_launches import FEW_CUTS

    full = [
        *product(FEW_CUTS, ("bf16",), (None,)), ("streaming_weights", "fp32", 120), ("cluster", "int8", 100),
        ("streaming_weights", "int8", 90), ("teams", "int8", 120),
    ]  # fmt: skip
    chosen = {"full": full, "usual": full[:4], "quick": full[1:2]}[level]
    for name, dtype, target in chosen:
        what = f"{name} {dtype} sm_{target or FEW_CUTS[name][1]}"
        yield tried(what, lambda n=name, d=dtype, t=target, w=what: _survivors(level, w, n, d, t))


def _survivors(level: Level, what: str, name: str, dtype: str, target: int | None) -> Finding:
    from cuda_launches import FEW_CUTS, Recorder, say_few

    from wavenet_fast.emulated.mutate import mutants, survivors

    cut, capability = FEW_CUTS[name]
    device = Recorder(target or capability)
    say_few(device, cut, dtype)
    launch = device.launches["resident" if cut.teams else "streaming_weights"]
    every, reached = mutants(launch.ptx), launch.reached()
    step = {"full": 1, "usual": 7, "quick": len(every)}[level]
    sites = [m.site for m in every if m.line in reached][::step]
    report = survivors(launch.ptx, launch.run_orders, sites=sites)
    told = report.as_dict()
    unexplained = 0
    for mutant in told["survived"]:
        mutant["reason"] = why_unnoticed(launch.ptx, mutant["line"], mutant["kind"])
        unexplained += mutant["reason"] is None
    dead = sorted({m.line for m in every} - reached)
    reason = f"{len(report.survived)} of {told['mutants']} go unnoticed, {unexplained} of them for no known reason"
    return Finding(
        what, "failed" if unexplained else "passed", reason=reason if report.survived else None,
        details={"sites": len(every), "lines_not_reached": dead, **told},
    )  # fmt: skip


def why_unnoticed(ptx: str, line: int, kind: str = "delete") -> str | None:
    """The list of sites, by their line, whose mutants may go unnoticed."""
    lines = ptx.splitlines()
    if lines[line - 1].split() == ["cp.async.wait_group", "0;"] and _is_last(lines, line, "cp.async"):
        return (
            "the wait behind the last sample: nothing reads what is copied then. It keeps a copy from landing in shared"
            " memory that the block has given back, which is not emulated"
        )
    if ".entry streaming_weights" in ptx and kind == "loosen" and lines[line - 1].split()[-1] == "0;":
        return (
            "the wait behind the head, for a warp that uses fewer fragments there than the ring is deep: the past that"
            " it waits for is older than the group of any fragment that it used. A warp without any needs it as it is"
        )
    if "barrier.cluster.arrive" in lines[line - 1] and _is_last(lines, line, "bar.sync"):
        return (
            "the barrier at a cluster's end keeps a block that gave up from leaving while others write into its"
            " memory; where nobody gives up nobody does. See test_cuda_races.py, where somebody does"
        )
    return None


def _is_last(lines: list[str], line: int, what: str) -> bool:
    return not any(what in later for later in lines[line:])


PARTS: dict[str, Callable[[Level], Iterator[Finding]]] = {
    "cuda-executor": executed,
    "cuda-cuts": cuts,
    "cuda-sanitizers": sanitized,
    "cuda-mutants": mutated,
}
