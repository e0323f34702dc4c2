"""The kernels' PTX under ThreadSanitizer and AddressSanitizer, in other orders of threads, and without barriers."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import msgspec
import numpy as np
import pytest
from engine_models import random_weights, small

pytest.importorskip("torch", reason="the Triton engine needs PyTorch")
pytest.importorskip("triton", reason="its compiler writes the PTX")

import torch
from gpu_checks import check_known_history, speak
from triton_launches import Launch, Recorder, own_barriers
from wavenet_fast.kernels.triton import tuning
from wavenet_fast.kernels.triton.launch import KERNELS

from wavenet_fast.backends import gpu
from wavenet_fast.backends.triton import TritonEngine
from wavenet_fast.config import CategoricalHead, Conditioning, Linear, OneHotInput
from wavenet_fast.emulated import Program
from wavenet_fast.emulated.mutate import mutants, same, survivors

pytestmark = [
    pytest.mark.skipif(gpu.why_not_emulated() is not None, reason=str(gpu.why_not_emulated())),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1: nothing is compiled"),
]

# A few samples, the last of which hear the first ones through a ring.
FEW = small(
    hop_length=3, dilations=(1, 2), kernel_size=2, residual_channels=16, skip_channels=16, head_channels=16,
    input=OneHotInput(kernel_size=2), head=CategoricalHead(classes=21), conditioning=Conditioning(upsampling=Linear()),
)  # fmt: skip
MANY = small(
    hop_length=2, dilations=(1,), kernel_size=2, residual_channels=16, skip_channels=16, head_channels=16,
    input=OneHotInput(kernel_size=2), head=CategoricalHead(classes=700),
)  # fmt: skip


def engine_of(config: Any, dtype: str, capability: int, mode: str, seed: int = 0) -> tuple[TritonEngine, Recorder]:
    launcher = Recorder(capability, mode, seed)
    return TritonEngine(config, random_weights(config), dtype, "emulated", launcher), launcher


@cache
def recorded(many: bool) -> Launch:
    """A launch of `generate` for three streams. Two frames of `FEW`: with one, both columns that are interpolated are
    the same, and so is what a missing barrier mixes up."""
    engine, launcher = engine_of(MANY if many else FEW, "bf16", 90, "plain")
    speak(engine, 1 if many else 2)
    return launcher.launches["generate"]


@pytest.mark.parametrize("mode, dtype, capability", [("thread", "bf16", 90), ("address", "fp32", 80)])
def test_sanitizers_find_nothing_in_any_kernel(mode: str, dtype: str, capability: int) -> None:
    engine, launcher = engine_of(FEW, dtype, capability, mode)
    draws, logits, state = speak(engine, 1)
    check_known_history(engine, 1, draws, logits, state)
    assert launcher.launches.keys() == KERNELS.keys()
    plain = speak(engine_of(FEW, dtype, capability, "plain")[0], 1)
    np.testing.assert_array_equal(logits, plain[1])


def test_no_race_where_logits_go_through_memory() -> None:
    launch = recorded(many=True)
    assert launch.arguments["logits_room"] is not None
    assert same(launch.run(Program(launch.ptx, "thread")), launch.run(Program(launch.ptx)))


def test_no_race_where_inputs_of_products_go_through_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in fp32, where threads cannot hold all inputs of a wide product."""
    options = tuning.Options(16, 8, 1, block_r=16, block_gate=16, block_s=16, block_hidden=16)
    wide = msgspec.structs.replace(FEW, residual_channels=32, skip_channels=32)
    expected = speak(engine_of(wide, "fp32", 80, "plain")[0], 1)
    monkeypatch.setattr(tuning, "for_generate", lambda *given: options)
    engine, launcher = engine_of(wide, "fp32", 80, "thread")
    found = speak(engine, 1)
    assert launcher.launches["generate"].arguments["skip_room"] is not None
    np.testing.assert_array_equal(found[1], expected[1])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_bit_depends_on_the_order_in_which_threads_run(seed: int) -> None:
    expected = speak(engine_of(FEW, "bf16", 90, "plain")[0], 3)
    found = speak(engine_of(FEW, "bf16", 90, "plain", seed)[0], 3)
    np.testing.assert_array_equal(found[1], expected[1])
    assert torch.equal(found[2].rings, expected[2].rings)


def test_a_missing_barrier_is_noticed() -> None:
    """The kernel's own, and of those that the compiler added every fifth; gpu_check.py runs all."""
    launch = recorded(many=False)
    everything, own = mutants(launch.ptx), own_barriers(launch.ptx)
    assert [m.line for m in everything if m.line in own] == own and len(own) == 1
    barriers = [m.site for m in everything if m.description == "barrier deleted"]
    chosen = {m.site for m in everything if m.line in own} | set(barriers[::5])
    report = survivors(launch.ptx, launch.run, sites=sorted(chosen), workers=1)
    for caught in report.caught:
        print(caught.mutant.line, caught.mode, caught.by)
    assert not report.survived and not report.equivalent
