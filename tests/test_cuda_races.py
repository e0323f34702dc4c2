"""The CUDA kernels' PTX under ThreadSanitizer and AddressSanitizer, with blocks that wait in vain, and without
barriers, flags and waits."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ptx_text import need_compiler

pytest.importorskip("torch", reason="the engines' conditioning network needs PyTorch")
pytest.importorskip("cuda.bindings", reason='cuda-bindings is not installed: pip install "wavenet-fast[cuda]"')

from cuda_launches import FEW, FEW_CUTS, Recorder, laid, say_few
from engine_models import random_mel, random_weights, small
from gpu_checks import same_states
from gpu_cuda import why_unnoticed
from wavenet_fast.kernels.cuda.compile import SOURCES, why_not_kernels
from wavenet_fast.kernels.cuda.emulated_device import EmulatedDevice

from wavenet_fast.backends.cuda import CudaEngine
from wavenet_fast.config import CategoricalHead
from wavenet_fast.emulated.mutate import mutants, survivors
from wavenet_fast.errors import BackendError

if why_not_kernels() is not None:
    pytest.skip(str(why_not_kernels()), allow_module_level=True)
need_compiler()


# --- sanitizers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, mode", [*((name, "thread") for name in FEW_CUTS), ("streaming_weights", "address"), ("teams", "address")]
)
def test_sanitizers_find_nothing(name: str, mode: Any) -> None:
    cut, capability = FEW_CUTS[name]
    expected = say_few(EmulatedDevice(capability), cut)
    found = say_few(EmulatedDevice(capability, mode), cut)
    np.testing.assert_array_equal(found[1], expected[1])
    same_states(found[2], expected[2])


@pytest.mark.parametrize("name", ["streaming_weights", "cluster"])
def test_no_race_in_fp32(name: str) -> None:
    """Lanes copy the weights that they multiply themselves, or hold them, and exchange sums."""
    cut, capability = FEW_CUTS[name]
    cut = replace(cut, in_registers=cut.teams > 0, out_in_l2=cut.teams and 1)
    found = say_few(EmulatedDevice(capability, "thread"), cut, "fp32", 1)
    np.testing.assert_array_equal(found[1], say_few(EmulatedDevice(capability), cut, "fp32", 1)[1])


# --- waiting in vain --------------------------------------------------------------------------------------------

PATIENCE = 3_000_000
NEXT_X = "if (send) post.send_sums(next_x"
SKIPS = "post.send_sums(to, m, skip[k], of_sample(i));"
DRAWN = "table, to, i + 1 < steps[tile], warp);"
LOOP = "for (int tile = 0; tile < plan::TILES; ++tile) longest = max(longest, steps[tile]);"
# What is done to the kernel; the blocks that then wait in vain, any of which may be the first to give up, and the tile.
STUCK = {
    "x is not handed on": (
        NEXT_X, NEXT_X.replace("send)", "send && (team != 0 || tile != 1 || i != 2))"), "012", 1, "cluster"
    ),
    "skip sums are not": (SKIPS, "if (team != 0 || tile != 0 || i != 1) " + SKIPS, "012", 0, "grid"),
    "nor the last ones": (SKIPS, "if (!last || tile != 1) " + SKIPS, "012", 1, "grid"),
    "by one warp": (SKIPS, "if (!last || skip_warp != 1) " + SKIPS, "012", 0, "cluster"),
    "the head is silent": (DRAWN, DRAWN.replace("steps[tile]", "steps[tile] && tile != 0"), "012", 0, "grid"),
    "the first block does not begin": (LOOP, LOOP + " if (team == 0) longest = 0;", "12", 0, "grid"),
    "a block does not begin": (LOOP, LOOP + " if (team == 1) longest = 0;", "02", 0, "cluster"),
    "the head does not begin": (LOOP, LOOP + " if (head) longest = 0;", "01", 0, "cluster"),
}  # fmt: skip
WAITED_FOR = {"0": "x", "1": "x|the skip sums", "2": "the skip sums of all layers"}


def spoilt(fault: str, folder: Path) -> Path:
    """The kernels' sources with this fault."""
    right, wrong, *_ = STUCK[fault]
    text = (SOURCES / "resident.cuh").read_text(encoding="utf-8")
    assert text.count(right) == 1
    for path in SOURCES.glob("*.cuh"):
        shutil.copy(path, folder)
    (folder / "resident.cuh").write_text(text.replace(right, wrong), encoding="utf-8")
    return folder


@pytest.mark.parametrize("fault", STUCK)
def test_who_waits_in_vain_gives_up_and_says_for_what(fault: str, tmp_path: Path) -> None:
    """The launch ends, with all its blocks, and the streams are where they were."""
    _, _, waiting, tile, name = STUCK[fault]
    cut, capability = FEW_CUTS[name]
    device = EmulatedDevice(capability, sources=spoilt(fault, tmp_path))
    engine = laid(CudaEngine(FEW, random_weights(FEW), "bf16", device), cut, patience=PATIENCE)
    state, before = (engine.start(np.arange(10, dtype=np.uint64), None) for _ in range(2))
    for seed in (0, 1, 2):
        device.seed = seed
        with pytest.raises(BackendError) as told:
            engine.advance(state, random_mel(FEW, 2, 10), np.full(10, 2), np.ones(10, bool), 1.0)
        said = re.search(
            rf"gave up: block (\d) of pipeline 0 waited more than {PATIENCE:,} clock cycles for (.+) of tile (\d)\.",
            str(told.value),
        )
        print(told.value)
        assert said is not None and said[1] in waiting and said[3] == str(tile)
        assert re.fullmatch(WAITED_FOR[said[1]], said[2])
        same_states(state, before)


def test_a_block_that_gives_up_stays_until_nobody_writes_into_its_memory(tmp_path: Path) -> None:
    """Without the barrier at the end of a cluster it would leave while others do."""
    cut, capability = FEW_CUTS["cluster"]
    device = Recorder(capability, sources=spoilt("a block does not begin", tmp_path))
    with pytest.raises(BackendError, match="gave up"):
        say_few(device, cut, patience=PATIENCE)
    launch = device.launches["resident"]
    last = [m for m in mutants(launch.ptx) if m.description == "cluster barrier deleted"][-1]
    report = survivors(launch.ptx, launch.run, modes=["plain"], sites=[last.site], workers=1)
    (caught,) = report.caught
    assert "block" in caught.by and caught.by != "the results differ", caught.by


@pytest.mark.parametrize("name", ["cluster", "grid"])
def test_who_waits_long_enough_is_served(name: str) -> None:
    """A patience that is too short only for a GPU which is stopped: the same bits as without a bound that matters."""
    cut, capability = FEW_CUTS[name]
    expected = say_few(EmulatedDevice(capability), cut)
    np.testing.assert_array_equal(say_few(EmulatedDevice(capability), cut, patience=100_000_000)[1], expected[1])


# --- mutants ----------------------------------------------------------------------------------------------------


def test_a_missing_barrier_is_noticed() -> None:
    """Of the sites every some; gpu_check.py runs all, of both kernels."""
    cut, capability = FEW_CUTS["cluster"]
    device = Recorder(capability)
    say_few(device, cut)
    launch = device.launches["resident" if cut.teams else "streaming_weights"]
    chosen = [m.site for m in mutants(launch.ptx) if why_unnoticed(launch.ptx, m.line) is None]
    report = survivors(launch.ptx, launch.run_orders, sites=chosen[1::12], workers=1)
    for caught in report.caught:
        print(caught.mutant.line, caught.mutant.description, caught.mode, caught.by)
    reached = launch.reached() if report.survived else set()
    assert len(report.caught) > 2 and not [m for m in report.survived if m.line in reached]


# --- warps without a share --------------------------------------------------------------------------------------


@pytest.mark.parametrize("head_channels", [32, 16])
def test_the_past_arrives_by_warps_that_have_no_panel(head_channels: int) -> None:
    """More panels of residual than of dilated or of the head, so that some chain warps meet no fragment between their
    copies of the past and its use."""
    config = small(
        dilations=(1, 2, 1), kernel_size=3, residual_channels=64, gate_channels=32, skip_channels=16,
        head_channels=head_channels, head=CategoricalHead(classes=16),
    )  # fmt: skip
    said = []
    for device in (EmulatedDevice(90, "thread"), EmulatedDevice(90)):
        engine = CudaEngine(config, random_weights(config), "bf16", device, variant="streaming_weights")
        assert engine.explain(1, 1).details["chain_warps"] > engine.model.shape.HALF // 8
        state = engine.start(np.arange(1, dtype=np.uint64), None)
        mel = random_mel(config, 1)[None]
        said.append(engine.advance(state, mel, np.array([1]), np.array([True]), 1.0, raw=True)[0])
    np.testing.assert_array_equal(said[0], said[1])
