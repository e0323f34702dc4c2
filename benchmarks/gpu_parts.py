"""The parts of gpu_check.py: each is a generator of `Finding`s. What is asked of an engine is what the tests ask, from
tests/gpu_checks.py; here it is asked of more models, number formats and targets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from wavenet_fast.backends import BACKENDS, gpu
from wavenet_fast.errors import WavenetFastError

TESTS = Path(__file__).parent.parent / "tests"
sys.path.insert(0, str(TESTS))

Level = Literal["quick", "usual", "full"]
TARGETS = (80, 90, 120)
DTYPES = ("fp32", "fp16", "bf16")
DEVICE_SHAPES = ("tiny", "voice", "nv-medium", "r9y9-mol")


@dataclass
class Finding:
    """One comparison. `error` is the largest, in the unit that `limit` has; `details` go to the file as they are."""

    what: str
    verdict: Literal["passed", "failed", "skipped"] = "passed"
    error: float | None = None
    limit: float | None = None
    reason: str | None = None
    details: dict[str, Any] = field(default_factory=dict)


def tried(what: str, check: Callable[[], Finding | None]) -> Finding:
    """The finding of a check, or what it raised. Whatever a kernel does, the others are checked too."""
    try:
        return check() or Finding(what)
    except Exception as error:
        return Finding(what, "failed", reason=f"{type(error).__name__}: {str(error)[:2000]}")


# --- compiling --------------------------------------------------------------------------------------------------


def compiles(level: Level) -> Iterator[Finding]:
    """Every kernel of Triton and of CUDA for every target: within the limits, and the recorded code where this is the
    recorded compiler."""
    import gpu_compile

    yield from compiled_as_recorded(gpu_compile, level)
    if (why := gpu.why_no_nvrtc()) is not None:
        yield Finding("the CUDA kernels", "skipped", reason=why)
        return
    import gpu_compile_cuda

    without = gpu_compile_cuda.why_no_nvcc()
    if without is not None:
        yield Finding("the CUDA kernels by nvcc", "skipped", reason=without)
    yield from compiled_as_recorded(gpu_compile_cuda, level, lambda case: case.by != "nvcc" or without is None)


def compiled_as_recorded(
    what: Any, level: Level, wanted: Callable[[Any], bool] = lambda case: True
) -> Iterator[Finding]:
    """`what`: gpu_compile or gpu_compile_cuda."""
    from compile_table import differences

    by, rows = what.TABLE.recorded()
    sample = what.sample_of_cases()
    chosen = {"full": what.cases(), "usual": sample, "quick": sample[:2]}[level]
    for case in tqdm([case for case in chosen if wanted(case)], "compile", disable=None):

        def check(case: Any = case) -> Finding:
            row = what.compiled(case)
            wrong = what.faults(row)
            if what.compiler() == by and case in rows:
                wrong += differences(row, rows[case])
            return Finding(str(case), "failed" if wrong else "passed", reason="; ".join(wrong) or None, details=row)

        yield tried(str(case), check)


# --- against the reference --------------------------------------------------------------------------------------


def stages_of(engine: Any, weights: Any, what: str) -> Finding:
    """Every stage under forced history; the error is that of the worst stage."""
    from gpu_checks import check_stages
    from tolerances import TRACE_MAX, of_depth

    errors = check_stages(engine, weights)
    worst = max(errors, key=lambda stage: errors[stage][0])
    details = {"worst_stage": worst, "stages": {stage: {"max": m, "rms": r} for stage, (m, r) in errors.items()}}
    return Finding(
        what,
        error=errors[worst][0],
        limit=TRACE_MAX[engine.name, engine.dtype] * of_depth(engine.config.n_layers),
        details=details,
    )


def laws_of(engine: Any, name: str, all_of_them: bool = True) -> Iterator[Finding]:
    """Draws, and the laws of backends/base.py bit for bit, for at least 64 samples and past every dilation."""
    from gpu_checks import (
        check_batches,
        check_chunks,
        check_draws,
        check_known_history,
        check_sound,
        frames_past_every_dilation,
        speak,
    )  # fmt: skip
    from tolerances import UNIFORM

    frames = max(3, frames_past_every_dilation(engine.config))
    made: list[Any] = []
    yield tried(f"{name}: speaks", lambda: made.append(speak(engine, frames)))
    if not made:
        return
    draws, logits, state = made[0]

    def drawn() -> Finding:
        differ, far = check_draws(engine.config, draws, logits)
        return Finding(f"{name}: draws", error=far, limit=UNIFORM, details={"of": draws.size, "differ": differ})

    yield tried(f"{name}: draws", drawn)
    if not all_of_them:
        return
    checks = {
        "a known history": lambda: check_known_history(engine, frames, draws, logits, state),
        "chunks": lambda: check_chunks(engine, frames, [1, 0, frames - 2], draws, logits, state),
        "batches": lambda: check_batches(engine, 2),
        "sound": lambda: check_sound(engine, frames, draws),
    }
    for law, check in checks.items():

        def held(check: Callable[[], Any] = check) -> None:
            check()

        yield tried(f"{name}: {law}", held)


def interpreted(level: Level) -> Iterator[Finding]:
    """Triton's interpreter against the reference; it is chosen when triton is imported, so in a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name("gpu_check.py")), "--interpreted", level]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"TRITON_INTERPRET": "1"}
    ) as child:
        assert child.stdout is not None
        try:
            for line in child.stdout:
                if line.startswith("{"):
                    yield Finding(**json.loads(line))
        except BaseException:
            child.kill()
            raise
    if child.returncode:
        yield Finding("the interpreter's process", "failed", reason=f"it ended with {child.returncode}")


def interpreted_here(level: Level) -> Iterator[Finding]:
    """What that process finds."""
    from engine_models import MODELS, random_weights
    from triton_launches import InterpretedLauncher

    from wavenet_fast.backends.triton import TritonEngine

    chosen = list(product(MODELS, DTYPES)) if level == "full" else [(name, "fp32") for name in MODELS]
    chosen = [("tiny", "fp32")] if level == "quick" else chosen
    for name, dtype in tqdm(chosen, "interpret", disable=None):
        weights, what = random_weights(MODELS[name]), f"{name} {dtype}: stages"

        def check(name: str = name, dtype: str = dtype, weights: Any = weights, what: str = what) -> Finding:
            engine = TritonEngine(MODELS[name], weights, dtype, "interpreted", InterpretedLauncher())
            return stages_of(engine, weights, what)

        yield tried(what, check)


def emulated(level: Level) -> Iterator[Finding]:
    """The compiled PTX on the CPU: stages and draws of all models in all number formats for all targets, every law for
    some of them, by turns; by default only these."""
    from engine_models import MODELS, random_weights

    from wavenet_fast.backends.triton import TritonEngine

    everything = list(product(MODELS, DTYPES, TARGETS))
    # Of nine combinations every fourth, so that each model, format and target has its turn.
    turns = everything[::4]
    chosen = {"full": everything, "usual": turns, "quick": [("tiny", "bf16", 90)]}[level]
    for name, dtype, target in tqdm(chosen, "execute", disable=None):
        what, weights = f"{name} {dtype} sm_{target}", random_weights(MODELS[name])
        try:
            engine = TritonEngine(MODELS[name], weights, dtype, f"emulated:sm_{target}")
        except WavenetFastError as error:
            yield Finding(what, "failed", reason=str(error))
            continue
        yield tried(f"{what}: stages", lambda e=engine, w=weights, t=what: stages_of(e, w, f"{t}: stages"))
        if level != "quick":
            yield from laws_of(engine, what, (name, dtype, target) in turns)


# --- a GPU ------------------------------------------------------------------------------------------------------


def gpu_backends() -> Iterator[tuple[Any, str | None]]:
    """Every backend that runs on a GPU, and why it does not here."""
    for backend in BACKENDS.values():
        if "cuda" in backend.devices:
            yield backend, backend.why_not("cuda")


def on_device(level: Level) -> Iterator[Finding]:
    """The same comparisons, on the GPU itself, for every backend that has one."""
    from engine_models import MODELS, random_weights

    from wavenet_fast.backends.agreement import check_agreement
    from wavenet_fast.cases import case

    for backend, why in gpu_backends():
        if why is not None:
            yield Finding(f"{backend.name} on a GPU", "skipped", reason=why)
            continue
        models = MODELS | {name: case(name) for name in DEVICE_SHAPES}
        chosen = models if level != "quick" else ["tiny"]
        for name, dtype in tqdm(list(product(chosen, backend.dtypes)), f"{backend.name} on the GPU", disable=None):
            what, config = f"{backend.name}, {name} {dtype}", models[name]
            weights = random_weights(config)
            try:
                engine = backend.make(config, weights, dtype, "cuda")
            except WavenetFastError as error:
                yield Finding(what, "failed", reason=str(error))
                continue
            if hasattr(engine, "trace"):
                yield tried(f"{what}: stages", lambda e=engine, w=weights, t=what: stages_of(e, w, f"{t}: stages"))
            yield tried(f"{what}: agrees with cpu", lambda e=engine, w=weights: check_agreement(e, w))
            if level == "full" and name in MODELS:
                yield from laws_of(engine, what)


def measured(level: Level) -> Iterator[dict[str, Any]]:
    """What `wavenet_fast.bench.measure` tells of every GPU backend that works here."""
    from wavenet_fast.bench import case_subject, measure

    shapes = {"quick": ["tiny"], "usual": ["nv-medium"], "full": ["voice", "nv-medium", "r9y9-mol"]}[level]
    batches = {"quick": [1], "usual": [1, 64], "full": [1, 16, 64, 256, 1024, 4096]}[level]
    working = [backend for backend, why in gpu_backends() if why is None]
    points = [(b, s, d, n) for b in working for s in shapes for d in b.dtypes for n in batches]
    for backend, shape, dtype, batch in tqdm(points, "measure", disable=None):
        seconds = 0.5 if level == "quick" else 3.0
        yield measure(case_subject(shape), backend.name, "cuda", dtype, batch=batch, seconds=seconds)


def why_nothing_is_executed() -> str | None:
    return gpu.why_not_emulated()
