"""benchmarks/gpu_chain.py: the chain follows from the layout, and holds to what the executed PTX counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chain_parts import (
    BARRIER,
    FP32,
    HALF2,
    L2,
    LATENCIES,
    LEFT_OUT,
    POLLED,
    PRODUCT,
    QUEUED,
    WORDS,
    clocks,
    total,
)
from gpu_chain import CASES, PLANNED, beside_a_gpu, layout_of, nv_wavenet_chain, resident_chain, results
from wavenet_fast.kernels.cuda.shapes import Shape, steps

from wavenet_fast.cases import case

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
DOCS = Path(__file__).parent.parent / "docs"


def read(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def test_the_recorded_chain_is_this_one() -> None:
    assert json.loads(json.dumps(results())) == read("cuda-chain.json"), "run python benchmarks/gpu_chain.py"


def counted(shape: str) -> Any:
    rows = read("cuda-counts.json")["cases"]
    return next(
        r for r in rows if (r["shape"], r["dtype"], r["variant"], r["streams"]) == (shape, "bf16", "resident", 1)
    )


@pytest.mark.parametrize("shape", CASES)
def test_barriers_products_and_words_are_those_that_were_executed(shape: str) -> None:
    """Of the first block with most layers, which is not the last, and of the head: barriers that a role waits at.
    Before x arrives a chain warp meets two; all meet one at the end of the sample."""
    layout, row = layout_of(shape), counted(shape)
    assert row["plan"]["own"] == list(layout.own) and row["plan"]["tiles"] == 1 and layout.head_alone
    s, own, found = layout.shape, max(layout.own), row["sample_of_a_tile"]
    chain = {part.name: part for part in resident_chain(layout)}
    roles = {role: counts["barriers of a block"] for role, counts in found["roles"].items()}
    of_gates, of_x = (chain[name].operations[BARRIER] for name in ("newest tap and gate", "residual"))
    of_skip, late = chain["skip product of the last layer"].operations[BARRIER], max(own - layout.places, 0)
    of_head = sum(part.operations.get(BARRIER, 0) for name, part in chain.items() if name in HEAD)
    assert roles["chain"] == 2 + own * of_gates + 1 and roles["residual"] == own * of_x + late + 1
    assert roles["skip"] == own * of_skip + 1 and roles["head"] == of_head + 1

    dilated, residual, skip = layout.panels
    x_steps, gate_steps = steps(s.R, "bf16"), steps(s.HALF, "bf16")
    executed = {
        "chain": own * dilated * s.K * x_steps / layout.chain,
        "residual": own * residual * gate_steps / layout.residual,
        "skip": own * skip * gate_steps / layout.skip,
        "head": (s.H // 16 * steps(s.S, "bf16") + s.A // 16 * steps(s.H, "bf16")) / (layout.threads // 32),
    }  # fmt: skip
    assert {role: found["roles"][role]["products"] for role in executed} == pytest.approx(executed)
    owners, eights = sum(count > 0 for count in layout.own), layout.tile // 8
    everything = s.LAYERS * (dilated * s.K * x_steps + skip * gate_steps) + (s.LAYERS - 1) * residual * gate_steps
    everything += s.H // 16 * steps(s.S, "bf16") + s.A // 16 * steps(s.H, "bf16")
    assert found["tensor_products"] == everything * eights
    # Every block with layers is sent an x, and sends its sums of skips on.
    assert found["words"] == owners * (s.R + s.S) * layout.tile
    assert total(resident_chain(layout))[WORDS] == owners + 1


HEAD = ("skip sums become operands", "hidden", "outputs", "draw", "the next input")


@pytest.mark.parametrize("shape", CASES)
def test_every_layer_is_handed_on_once(shape: str) -> None:
    layout = layout_of(shape)
    chain = {part.name: part for part in resident_chain(layout)}
    handed = ("x to the next layer of the block", "x to the next block")
    assert sum(chain[name].times for name in handed) == layout.shape.LAYERS - 1 == chain["residual"].times


def test_products_of_the_chain_follow_from_the_sizes() -> None:
    layout = layout_of("nv-medium")
    s = layout.shape
    assert (layout.chain, layout.residual, layout.skip, s.R, s.HALF, s.LAYERS) == (8, 4, 4, 64, 64, 20)
    found = total(resident_chain(layout))
    # Four steps onto four sums, two panels of skips a warp; 8 and 16 steps in the head, a panel a warp.
    assert found[PRODUCT] == 20 + 19 + 2 + 2 + 4
    assert found[QUEUED] == (20 + 19 + 2 + 1 + 1) * 3


def test_the_estimate_stands_beside_a_gpu() -> None:
    """It is a lower bound: what it leaves out takes time."""
    for name, row in beside_a_gpu(resident_chain(layout_of("nv-medium"))).items():
        assert 0 < row["estimate"][0] <= row["estimate"][1] < row["on a GPU"], name


def test_nv_wavenet_hops_once_a_layer_and_nine_times_outside() -> None:
    s = Shape.of(case("nv-medium"))
    full, half = (total(nv_wavenet_chain(s, half)) for half in (False, True))
    assert full[POLLED] == half[POLLED] == 20 + 9
    assert full[L2] == 3 and HALF2 not in full
    # A row in fp32: half of R multiply-adds and one sum, twice a layer (the last layer's residual is nobody's).
    assert full[FP32] > (2 * 20 - 1) * (64 / 2 + 1) and half[HALF2] < full[FP32]


def test_an_estimate_takes_only_what_has_a_latency() -> None:
    assert not set(LEFT_OUT) & set(LATENCIES)
    low, high = LATENCIES[PRODUCT][:2]
    assert clocks({PRODUCT: 2, BARRIER: 5}) == (2 * low, 2 * high)
    assert all(low <= high and source for low, high, source in LATENCIES.values())


def test_the_page_draws_the_conclusion_that_the_counts_allow() -> None:
    assert "by this estimate it is met" in (DOCS / "gpu-cuda.md").read_text(encoding="utf-8")
    row = read("cuda-chain.json")["cases"][PLANNED]
    slowest = max(work["clocks"][1] for work in row["blocks_work"].values())
    assert 8 * (row["resident"]["clocks"][1] // slowest) >= 16, "the page says that the goal is met"
