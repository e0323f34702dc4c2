"""benchmarks/gpu_chain.py: the chain follows from the layout, and holds to what the executed PTX counts."""

from __future__ import annotations

import json
from math import ceil
from pathlib import Path
from typing import Any

import pytest
from gpu_chain import (
    ARRIVAL,
    BARRIER,
    CASES,
    FP32,
    HALF2,
    L2,
    LATENCIES,
    LEFT_OUT,
    POLLED,
    PRODUCT,
    QUEUED,
    clocks,
    layout_of,
    nv_wavenet_chain,
    resident_chain,
    results,
    total,
)
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
def test_barriers_products_and_arrivals_are_those_that_were_executed(shape: str) -> None:
    """Of the chain warps of the first block with most layers, which is not the last: before x arrives two barriers and
    the products of older taps; one barrier at the end of the sample."""
    layout, row = layout_of(shape), counted(shape)
    assert row["plan"]["own"] == list(layout.own) and row["plan"]["tiles"] == 1
    s, own, found = layout.shape, max(layout.own), row["sample_of_a_tile"]
    chain = {part.name: part for part in resident_chain(layout)}
    layer = chain["newest tap and gate"].operations[BARRIER]
    assert found["roles"]["chain"]["barriers of a block"] == 2 + own * layer + (own - 1) + max(own - 2, 0) + 1
    inside = chain["barrier behind it, inside a block"].times
    assert inside == sum(max(count - 1, 0) for count in layout.own)
    dilated, residual, skip = layout.panels
    of_x, of_gates = steps(s.R, "bf16"), steps(s.HALF, "bf16")
    executed = own * (dilated * s.K * of_x + residual * of_gates) / layout.chain
    assert found["roles"]["chain"]["products"] == pytest.approx(executed)
    owners, eights = sum(count > 0 for count in layout.own), layout.tile // 8
    everything = s.LAYERS * (dilated * s.K * of_x + skip * of_gates) + (s.LAYERS - 1) * residual * of_gates
    everything += s.H // 16 * steps(s.S, "bf16") + s.A // 16 * steps(s.H, "bf16")
    assert found["tensor_products"] == everything * eights
    # Every chain warp sends x on, every skip warp its sums, every warp of the head the next x.
    warps = (owners - 1) * (layout.chain + layout.skip) + layout.skip + layout.chain + layout.skip
    assert found["arrivals"] == warps
    assert total(resident_chain(layout))[ARRIVAL] == owners + 1


def test_products_of_the_chain_follow_from_the_sizes() -> None:
    layout = layout_of("nv-medium")
    s = layout.shape
    assert (layout.chain, s.R, s.HALF, s.LAYERS) == (8, 64, 64, 20)
    found = total(resident_chain(layout))
    # Four steps onto four sums; the skips' one behind the other; 8 and 16 steps in the head, two panels a warp.
    assert found[PRODUCT] == 20 + 19 + ceil(8 / layout.skip) * 4 + 2 * 2 + 2 * 4
    assert found[QUEUED] == (20 + 19 + 2 + 2) * 3


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


def test_the_page_draws_the_conclusions_that_the_counts_allow() -> None:
    case_, text = read("cuda-chain.json")["cases"]["nv-medium"], (DOCS / "gpu-cuda.md").read_text(encoding="utf-8")
    ours = case_["resident"]["clocks"]
    peers = [case_[f"nv-wavenet, {dtype}"]["clocks"] for dtype in ("fp32", "fp16")]
    ratios = [mine / theirs for peer in peers for mine, theirs in zip(ours, peer, strict=True)]
    assert ("By the ratios above it is missed" in text) == (max(ratios) > 1 / 3)
    hops = sum(
        p["times"] * clocks(p["operations"])[0] for p in case_["resident"]["parts"] if ARRIVAL in p["operations"]
    )
    assert ("all hops together are a third of the chain" in text) == (0.28 < hops / ours[0] < 0.38)
    for row in read("cuda-chain.json")["cases"].values():
        slowest = max(work["clocks"][1] for work in row["blocks_work"].values())
        assert 8 * (row["resident"]["clocks"][1] // slowest) >= 16, "the page says that the goal is met"
