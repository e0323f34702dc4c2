"""benchmarks/gpu_check.py runs, what it writes is whole, and what is wrong is found."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the kernels need PyTorch")
pytest.importorskip("triton", reason="its compiler and its interpreter are asked")

from gpu_check import PARTS, Report
from gpu_parts import Finding, tried
from gpu_races import source_of, why_unnoticed

from wavenet_fast.backends import gpu

pytestmark = [
    pytest.mark.skipif(gpu.why_not_emulated() is not None, reason=str(gpu.why_not_emulated())),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1: nothing is compiled"),
]
SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu_check.py"


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("check") / "check.json"
    command = [sys.executable, str(SCRIPT), "--quick", "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all passed" in done.stdout
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result


def test_a_quick_run_asks_every_part(told: dict[str, Any]) -> None:
    assert told["complete"] and told["passed"] and set(told["levels"].values()) == {"quick"}
    assert told["counts"].keys() == PARTS.keys()
    for part, counts in told["counts"].items():
        assert sum(counts.values()) == sum(finding["part"] == part for finding in told["findings"]) > 0
        assert not counts["failed"]


def test_a_quick_run_tells_what_it_ran_with_and_how_near(told: dict[str, Any]) -> None:
    about = told["about"]
    assert about["processor"] and about["triton"] and about["compiler"]["ptxas"] and about["torch"] and about["gpu"]
    compared = [finding for finding in told["findings"] if finding["part"] in ("interpreter", "executor")]
    assert compared and all(0 < finding["error"] <= finding["limit"] for finding in compared)
    (mutants,) = (finding for finding in told["findings"] if finding["part"] == "mutants")
    assert len(mutants["details"]["caught"]) == mutants["details"]["mutants"] == 1
    if isinstance(about["gpu"], str):
        assert not told["benchmarks"] and told["counts"]["device"]["skipped"]


def test_without_a_pass_there_is_no_pass(tmp_path: Path) -> None:
    report = Report(tmp_path / "r.json", "quick")
    report.add("compile", tried("right", lambda: None))
    report.add("compile", Finding("not asked", "skipped", reason="no GPU"))
    report.end()
    assert json.loads((tmp_path / "r.json").read_text())["passed"]

    def wrong() -> None:
        raise AssertionError("stage is off")

    report.add("executor", tried("wrong", wrong))
    report.end()
    told = json.loads((tmp_path / "r.json").read_text())
    assert not told["passed"] and told["counts"]["executor"]["failed"] == 1
    assert told["findings"][-1]["reason"] == "AssertionError: stage is off"


@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C is sent as a signal")
def test_an_interrupted_run_leaves_what_it_found(tmp_path: Path) -> None:
    path = tmp_path / "check.json"
    command = [sys.executable, str(SCRIPT), "--full", "--parts", "compile", "--json", str(path)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as child:
        for _ in range(1200):
            if path.exists():
                break
            time.sleep(0.1)
        child.send_signal(signal.SIGINT)
        assert child.wait(60) == 130
    told = json.loads(path.read_text(encoding="utf-8"))
    assert told["findings"] and not told["complete"] and not told["passed"]


def test_a_mutant_may_survive_only_where_it_is_listed() -> None:
    listed = {"description": "wait for copies deleted", "source": "generate.py: for layer in tl.range(0, LAYERS):"}
    assert why_unnoticed(listed)
    assert why_unnoticed(listed | {"description": "barrier deleted"}) is None
    assert why_unnoticed(listed | {"source": "generate.py: tl.debug_barrier()"}) is None
    ptx = '.file 1 "/somewhere/kernels/triton" "x.py"\n.file 2 "/k/generate.py"\n.loc 2 1 0\nbar.sync 0;\n'
    assert (source_of(ptx, 4) or "").startswith("generate.py: ")
    assert source_of(ptx.replace(".loc 2 1 0", ".loc 1 1 0"), 4) is None
