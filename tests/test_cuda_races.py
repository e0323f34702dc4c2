"""The CUDA kernels' PTX under ThreadSanitizer and AddressSanitizer, with blocks that wait in vain, and without
barriers, flags and waits."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ptx_text import need_compiler

pytest.importorskip("torch", reason="the engines' conditioning network needs PyTorch")
pytest.importorskip("cuda.bindings", reason='cuda-bindings is not installed: pip install "wavenet-fast[cuda]"')

from cuda_launches import FEW, FEW_CUTS, Recorder, laid, say_few
from engine_models import random_mel, random_weights
from gpu_checks import same_states
from wavenet_fast.kernels.cuda.compile import SOURCES, why_not_kernels
from wavenet_fast.kernels.cuda.emulated_device import EmulatedDevice

from wavenet_fast.backends.cuda import CudaEngine
from wavenet_fast.emulated.mutate import mutants, survivors
from wavenet_fast.errors import BackendError

if why_not_kernels() is not None:
    pytest.skip(str(why_not_kernels()), allow_module_level=True)
need_compiler()


# --- sanitizers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["thread", "address"])
@pytest.mark.parametrize("name", FEW_CUTS)
def test_sanitizers_find_nothing(name: str, mode: Any) -> None:
    cut, capability = FEW_CUTS[name]
    expected = say_few(EmulatedDevice(capability), cut)
    found = say_few(EmulatedDevice(capability, mode), cut)
    np.testing.assert_array_equal(found[1], expected[1])
    same_states(found[2], expected[2])


@pytest.mark.parametrize("name", ["streaming_weights", "grid"])
def test_no_race_in_fp32(name: str) -> None:
    """Lanes read each other's weights there."""
    cut, capability = FEW_CUTS[name]
    found = say_few(EmulatedDevice(capability, "thread"), cut, "fp32", 1)
    np.testing.assert_array_equal(found[1], say_few(EmulatedDevice(capability), cut, "fp32", 1)[1])


# --- waiting in vain --------------------------------------------------------------------------------------------

NEXT_X = "post.send(block + 1, kX, tile);"
SKIPS = "post.send(last ? plan::BLOCKS - 1 : block + 1, last ? kHead : kSkip, tile);"
DRAWN = "if (more) post.send(0, kX, tile);"
LOOP = "i < longest && !stopped; ++i"
# What is done to the kernel, and who is told to have waited for what.
STUCK = {
    "x is not handed on": (NEXT_X, "if (block != 0 || tile != 1 || i != 2) " + NEXT_X, r"block 1 .* for x of tile 1"),
    "skip sums are not": (SKIPS, "if (block != 0 || tile != 0 || i != 1) " + SKIPS, r"block 1 .* for the skip sums of t.* 0"),
    "nor the last ones": (SKIPS, "if (!last || tile != 1) " + SKIPS, r"block 2 .* for the skip sums of all layers of t.* 1"),
    "by one warp": (SKIPS, "if (!last || warp != 3) " + SKIPS, r"block 2 .* for the skip sums of all layers of tile 0"),
    "the head is silent": (DRAWN, "if (more && tile != 0) post.send(0, kX, tile);", r"block 0 .* for x of tile 0"),
    "the first block does not begin": (LOOP, LOOP.replace("longest", "(block == 0 ? 0 : longest)"), r"block 1 .* for x of tile 0"),
    "a block does not begin": (LOOP, LOOP.replace("longest", "(block == 1 ? 0 : longest)"), r"block 2 .* for the skip sums of all"),
    "the head does not begin": (LOOP, LOOP.replace("longest", "(head ? 0 : longest)"), r"block 0 .* for x of tile 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", ["cluster", "grid"])
@pytest.mark.parametrize("fault", STUCK)
def test_who_waits_in_vain_gives_up_and_says_for_what(fault: str, name: str, tmp_path: Path) -> None:
    """The launch ends, with all its blocks, and the streams are where they were."""
    right, wrong, told = STUCK[fault]
    text = (SOURCES / "resident.cuh").read_text(encoding="utf-8")
    assert text.count(right) == 1
    for path in SOURCES.glob("*.cuh"):
        shutil.copy(path, tmp_path)
    (tmp_path / "resident.cuh").write_text(text.replace(right, wrong), encoding="utf-8")
    cut, capability = FEW_CUTS[name]
    device = EmulatedDevice(capability, sources=tmp_path)
    engine = laid(CudaEngine(FEW, random_weights(FEW), "bf16", device), cut, patience=3_000_000)
    state, before = (engine.start(np.arange(9, dtype=np.uint64), None) for _ in range(2))
    with pytest.raises(BackendError, match=rf"gave up: {told}"):
        engine.advance(state, random_mel(FEW, 2, 9), np.full(9, 2), np.ones(9, bool), 1.0)
    same_states(state, before)


@pytest.mark.parametrize("name", ["cluster", "grid"])
def test_who_waits_long_enough_is_served(name: str) -> None:
    """A patience that is too short only for a GPU which is stopped: the same bits as without a bound that matters."""
    cut, capability = FEW_CUTS[name]
    expected = say_few(EmulatedDevice(capability), cut)
    np.testing.assert_array_equal(say_few(EmulatedDevice(capability), cut, patience=100_000_000)[1], expected[1])


# --- mutants ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FEW_CUTS)
def test_a_missing_barrier_is_noticed(name: str) -> None:
    """Of the sites every some; gpu_check.py runs all."""
    cut, capability = FEW_CUTS[name]
    device = Recorder(capability)
    say_few(device, cut)
    launch = device.launches["resident" if cut.blocks else "streaming_weights"]
    sites = range(1, len(mutants(launch.ptx)), 17)
    report = survivors(launch.ptx, launch.run, sites=sites, workers=1)
    for caught in report.caught:
        print(caught.mutant.line, caught.mutant.description, caught.mode, caught.by)
    assert len(report.caught) > 3 and not report.survived
