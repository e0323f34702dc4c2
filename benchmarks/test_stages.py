"""Which stage of a sample takes the time, by instruction set and number format, so that a regression shows its stage?

    pip install ".[test]"
    pytest benchmarks/test_stages.py --benchmark-columns=min,median,iqr --benchmark-sort=name
    pytest benchmarks/test_stages.py --benchmark-save=before    # and after the change, --benchmark-compare

A stage runs for every layer in turn, as it does in a sample, so that weights come from the cache that they come from
there (csrc/stages.h). The sample loop does some of a stage while another waits, so the sum of the stages is more than a
sample. One call is so many samples' worth of that stage; `extra_info` says how many, and its multiply-adds.
The gate comes first: an engine that computes something else is not timed.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest

from wavenet_fast import _engine
from wavenet_fast.backends import BACKENDS
from wavenet_fast.backends.cpu import CpuEngine, isas_possible
from wavenet_fast.bench import Subject, case_subject
from wavenet_fast.bench_gate import Gate

CASE = "nv-medium"
SAMPLES = 200
"""Of every stream in one call: some milliseconds, beside which the call itself is nothing."""
ROUNDS = 15

STAGES = ("dilated", "gate", "residual+skip", "head", "sample")
BATCHES = (1, 16)


def stage_macs(subject: Subject, stage: str) -> int:
    """Multiply-adds of one stage in one sample, all layers together; 0 where it has no matrix."""
    c, half = subject.config, subject.config.gate_channels // 2
    L, R, S, H = c.n_layers, c.residual_channels, c.skip_channels, c.head_channels
    return {
        "dilated": L * c.kernel_size * R * c.gate_channels,
        "residual+skip": (L - 1) * R * half + L * S * half,
        "head": H * S + c.out_channels * H,
    }.get(stage, 0)


@functools.cache
def subject_and_gate() -> tuple[Subject, Gate]:
    subject = case_subject(CASE)
    return subject, Gate(subject.config, subject.weights)


@functools.cache
def gated_engine(isa: str, dtype: str) -> CpuEngine:
    """An engine that has passed the gate."""
    subject, gate = subject_and_gate()
    engine = CpuEngine(subject.config, subject.weights, dtype, isa)
    gate.check(engine)
    return engine


# portable16, the 16-lane logic without wide instructions, is for tests alone.
CHOICES = [(isa, dtype) for isa in isas_possible() if isa != "portable16" for dtype in BACKENDS["cpu"].dtypes]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("isa", "dtype"), CHOICES)
def test_stage(benchmark: Any, isa: str, dtype: str, stage: str, batch: int) -> None:
    subject, _ = subject_and_gate()
    engine = gated_engine(isa, dtype)
    benchmark.group = f"{isa} {dtype}, {batch} stream{'s' * (batch != 1)}"
    benchmark.name = stage
    benchmark.extra_info |= {"samples": SAMPLES * batch, "macs": stage_macs(subject, stage) * SAMPLES * batch}
    stages = _engine.Stages(engine._model, batch)
    benchmark.pedantic(stages.run, (stage, SAMPLES), rounds=ROUNDS, warmup_rounds=2)
