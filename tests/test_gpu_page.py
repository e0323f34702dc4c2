"""docs/gpu.md and docs/gpu-cuda.md say what the results say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from gpu_page import CUDA_PAGE, PAGE, PAGES, RESULTS, count_tables, cuda_mutants, tables, written
from gpu_page_cuda import PEAKS, chain_tables, verdict
from gpu_page_speed import estimate_beside, goal, price, speed_tables, versus_tables
from page_table import table

TEXT = PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tables_are_those_of_the_results(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert written(text, PAGES[page]()) == text, "run python benchmarks/gpu_page.py"


def test_another_result_makes_another_page() -> None:
    told = json.loads((RESULTS / "triton-counts.json").read_text(encoding="utf-8"))
    assert count_tables(told)["chain"] in TEXT
    told["cases"][0]["step"]["barriers"] += 1
    assert count_tables(told)["chain"] not in TEXT
    with pytest.raises(ValueError, match="marks"):
        written(TEXT.replace("<!-- chain: end -->", ""), tables())


def test_another_chain_makes_another_page() -> None:
    told = json.loads((RESULTS / "cuda-chain.json").read_text(encoding="utf-8"))
    text = CUDA_PAGE.read_text(encoding="utf-8")
    assert chain_tables(told)["cuda-chain-totals"] in text
    told["cases"]["nv-medium"]["resident"]["clocks"][0] += 1
    assert chain_tables(told)["cuda-chain-totals"] not in text


def test_the_page_of_triton_says_what_ci_can_do() -> None:
    assert "it measures no GPU speed" in TEXT


def test_a_table_has_a_row_for_every_line() -> None:
    assert table(["a"], {"x": ["1"]}).splitlines() == ["|  | a |", "| --- | --- |", "| x | 1 |"]


def test_the_rates_in_the_text_are_those_that_were_counted_with() -> None:
    told = json.loads((RESULTS / "triton-counts.json").read_text(encoding="utf-8"))
    h = told["h100_sxm"]
    assert f"÷ (2 · 128 lanes · {h['multiprocessors']} multiprocessors) = {told['clock_hz'] / 1e9:.2f} GHz" in TEXT
    assert f"÷ {h['memory_bytes_per_s'] / 1e12:g} TB/s" in TEXT and f"{h['fp32_flop_per_s'] / 1e12:g} TFLOPS ÷" in TEXT


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_speeds_are_told_by_results_alone(page: Path) -> None:
    """Nobody writes a speed by hand: all of them stand between marks."""
    text = page.read_text(encoding="utf-8")
    prose = re.sub(r"<!-- ([\w-]+): begin -->.*?<!-- \1: end -->", "", text, flags=re.S)
    assert prose != text and not re.search(r"samples?/s|samples a second|real[- ]time|times as fast", prose)


def told_row(system: str, dtype: str, streams: int, speed: float | str, **more: object) -> dict[str, object]:
    row: dict[str, object] = {"case": "nv-medium", "system": system, "dtype": dtype, "streams": streams, **more}
    if isinstance(speed, str):
        return row | {"error": speed}
    return row | {"samples_per_second": speed, "times_real_time": speed / streams / 16000}


PLAN = {"variant": "resident", "pipelines": 1, "blocks": 8, "tiles_in_flight": 2, "tile": 8}
ABOUT = {"gpu": "a GPU", "driver": "1.2, for CUDA up to 13.0", "versions": {"numpy": "1", "torch": None}}


def test_what_was_not_measured_says_so() -> None:
    nothing = versus_tables(None) | speed_tables(None)["cuda"] | speed_tables(None)["triton"]
    assert all("ot measured" in text for text in nothing.values())


def test_speeds_beside_nv_wavenet() -> None:
    rows = [
        told_row("nv-wavenet single block", "fp16", 1, 50_000.0),
        told_row("nv-wavenet persistent", "fp16", 1, 40_000.0),
        told_row("nv-wavenet single block", "fp32", 1, "no room\nfor it"),
        told_row("nv-wavenet persistent", "fp32", 1, 30_000.0),
        told_row("wavenet_fast cuda", "bf16", 1, 80_000.0, plan=PLAN),
        told_row("wavenet_fast cuda", "fp32", 1, "not compiled"),
        told_row("wavenet_fast cuda", "bf16", 16, 960_000.0, plan=PLAN),
    ]
    found = versus_tables({"about": ABOUT, "rows": rows})
    assert (
        "| nv-medium bf16, 1 stream | 80,000 | 5.00 | 50,000 (single block) | 1.60 | 40,000 | 2.00 |" in found["versus"]
    )
    none = "not measured"
    assert f"| nv-medium fp32, 1 stream | {none} | {none} | 30,000 (persistent) | {none} | 30,000 |" in found["versus"]
    assert f"| nv-medium bf16, 16 streams | 960,000 | 3.75 | {none} | {none} | {none} |" in found["versus"]
    assert found["versus-about"] == "On a GPU; driver 1.2, for CUDA up to 13.0; numpy 1."
    assert found["versus-left-out"].splitlines() == [
        "- nv-medium, nv-wavenet single block in fp32: no room (1 streams).",
        "- nv-medium, wavenet_fast cuda in fp32: not compiled (1 streams).",
    ]
    assert "| 16 streams | resident | 1 of 8 blocks | 16 | 60,000 | 0.75 |" in found["price"]
    assert "12.50 µs" in found["goal"] and "25.00 µs in fp16 (ours takes 0.50 of it)" in found["goal"]
    assert "not reached" in found["goal"]
    rows[4] = told_row("wavenet_fast cuda", "bf16", 1, 120_000.0, plan=PLAN)
    assert "is reached" in goal(rows)
    assert "not measured" in goal(rows[:4]) and price(rows[:4]) == "Not measured."


def test_speeds_of_both_backends() -> None:
    rows = [
        told_row("", "bf16", 16, 160_000.0, backend="cuda", plan=PLAN),
        told_row("", "bf16", 2112, 3e6, backend="triton", plan={"programs": 132}),
    ]
    for row in rows:
        row["times_real_time"] = row["samples_per_second"] / 16000  # type: ignore[operator]  # of all streams
    found = speed_tables({"about": ABOUT, "rows": rows})
    cuda, triton = found["cuda"]["speed-cuda"], found["triton"]["speed-triton"]
    assert "| nv-medium bf16, 16 streams | 160,000 | 0.62 | resident, 1 × 8 blocks, 2 × 8 streams each |" in cuda
    assert "| nv-medium bf16, 2,112 streams | 3,000,000 | 0.09 | – |" in triton and "2,112" not in cuda


def test_mutants_of_the_cuda_kernels_are_told_where_they_were_run() -> None:
    survived = [{"line": line, "description": "wait deleted", "reason": "nobody reads it"} for line in (3, 5)]
    details = {"mutants": 9, "caught": [{}] * 6, "equivalent": [{}], "survived": survived}
    told = {"counts": {"mutants": {}}, "findings": []}
    assert cuda_mutants(told).startswith("Not in the last run")
    told = {
        "counts": {"cuda-mutants": {}}, "findings": [{"part": "cuda-mutants", "what": "grid bf16", "details": details}],
    }  # fmt: skip
    table_of, reason = cuda_mutants(told).split("\n\n")
    assert "| grid bf16 | 9 | 6 | 1 | 2 |" in table_of
    assert reason == "- nobody reads it: grid bf16 line 3, wait deleted; grid bf16 line 5, wait deleted."


def test_an_estimate_stands_beside_what_was_measured() -> None:
    names = ("resident", "nv-wavenet, fp32", "nv-wavenet, fp16")
    chain = {"cases": {"nv-medium": {name: {"clocks": [1983, 3966]} for name in names}}}
    rows = [
        told_row("wavenet_fast cuda", "bf16", 1, 125_000.0),
        told_row("wavenet_fast cuda", "bf16", 16, 1_000_000.0),
        told_row("nv-wavenet persistent", "fp32", 1, 100_000.0),
        told_row("nv-wavenet persistent", "fp16", 1, "hangs"),
    ]
    found = estimate_beside(chain, {"rows": rows}).splitlines()[2:]
    assert found[0] == "| resident | 1.00 – 2.00 | 8.00 | 4.0 – 8.0 |"
    assert found[1] == "| nv-wavenet, fp32 | 1.00 – 2.00 | 10.00 | 5.0 – 10.0 |"
    assert found[2] == "| nv-wavenet, fp16 | 1.00 – 2.00 | not measured | not measured |"
    assert estimate_beside(chain, None).count("not measured") == 2 * len(names)


def test_the_estimate_speaks_of_the_goal() -> None:
    peers = {"theirs, fp32": {"clocks": [300, 600]}, "theirs, fp16": {"clocks": [200, 600]}}
    said = verdict({"clocks": [100, 200]}, peers)
    assert "reached against theirs, fp32 (0.333 to 0.333)" in said and "missed against theirs, fp16" in said


def test_every_assumed_latency_is_told_with_its_source() -> None:
    told = json.loads((RESULTS / "cuda-chain.json").read_text(encoding="utf-8"))
    text = CUDA_PAGE.read_text(encoding="utf-8")
    assert all(given["source"] in text for given in told["latencies"].values())
    assert all(name in text for name in told["left_out"]) and all(name in text for name in PEAKS)


def test_what_was_run_for_the_page_is_complete_and_right() -> None:
    told = json.loads((RESULTS / "gpu-check.json").read_text(encoding="utf-8"))
    assert told["complete"] and told["passed"]
    assert {told["levels"][part] for part in ("sanitizers", "mutants")} == {"full"}
    parts = {"compile", "interpreter", "executor", "sanitizers", "mutants", "device"}
    assert set(told["counts"]) in (parts, parts | {"cuda-executor", "cuda-cuts", "cuda-sanitizers", "cuda-mutants"})
    for finding in told["findings"]:
        for mutant in finding.get("details", {}).get("survived", []):
            assert mutant["reason"]
        if finding["part"] == "mutants" and finding["verdict"] != "skipped":  # a kernel without a barrier
            assert len(finding["details"]["survived"]) <= 0.05 * finding["details"]["mutants"]
