"""docs/gpu.md and docs/gpu-cuda.md say what the results say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from gpu_page import CUDA_PAGE, PAGE, PAGES, RESULTS, count_tables, tables, written
from gpu_page_cuda import PEAKS, chain_tables
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
def test_no_speed_is_told(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "No GPU speed has been measured" in text
    assert not re.search(r"samples?/s|samples a second|real[- ]time|times as fast", text)


def test_every_assumed_latency_is_told_with_its_source() -> None:
    told = json.loads((RESULTS / "cuda-chain.json").read_text(encoding="utf-8"))
    text = CUDA_PAGE.read_text(encoding="utf-8")
    assert all(given["source"] in text for given in told["latencies"].values())
    assert all(name in text for name in told["left_out"]) and all(name in text for name in PEAKS)


def test_what_was_run_for_the_page_is_complete_and_right() -> None:
    told = json.loads((RESULTS / "gpu-check.json").read_text(encoding="utf-8"))
    assert told["complete"] and told["passed"]
    assert {told["levels"][part] for part in ("sanitizers", "mutants")} == {"full"}
    assert set(told["counts"]) == {"compile", "interpreter", "executor", "sanitizers", "mutants", "device"}
    for finding in told["findings"]:
        for mutant in finding.get("details", {}).get("survived", []):
            assert mutant["reason"]
        if finding["part"] == "mutants" and finding["verdict"] != "skipped":  # a kernel without a barrier
            assert len(finding["details"]["survived"]) <= 0.05 * finding["details"]["mutants"]
