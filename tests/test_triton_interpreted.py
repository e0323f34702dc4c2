"""Runs tests/interpreted in a process in which triton is imported as its interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.timeout(900)
def test_the_kernels_as_triton_interprets_them() -> None:
    pytest.importorskip("torch", reason="the Triton engine needs PyTorch")
    pytest.importorskip("triton", reason="the interpreter is Triton's")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--durations=5", "-p", "no:cacheprovider", "interpreted"], cwd=HERE,
        env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    print(done.stdout[-20000:], done.stderr[-5000:])
    assert done.returncode == 0 and " passed" in done.stdout
    assert "skipped" not in done.stdout.splitlines()[-1]
