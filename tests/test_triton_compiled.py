"""What Triton and ptxas make of the kernels for each GPU, without one: benchmarks/gpu_compile.py, of which this
compiles a part (`sample_of_cases` says which), and its table."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import pytest

pytest.importorskip("torch", reason="the kernels are launched with tensors of PyTorch")
pytest.importorskip("triton", reason="its compiler is what is looked at")

from compile_table import differences
from gpu_compile import TABLE, Case, cases, compiled, compiler, faults, sample_of_cases

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1: nothing compiles"
)

each = pytest.mark.parametrize("case", sample_of_cases(), ids=str)


@cache
def row_of(case: Case) -> dict[str, Any]:
    return compiled(case)


@each
def test_the_kernel_fits_does_not_spill_and_multiplies_where_it_should(case: Case) -> None:
    assert not faults(row_of(case))


@each
def test_the_kernel_is_the_recorded_one(case: Case) -> None:
    by, rows = TABLE.recorded()
    if by != compiler():
        pytest.skip(f"the table was made with {by}; here is {compiler()}")
    assert not differences(row_of(case), rows[case]), "see CONTRIBUTING.md for how the table is made anew"


def test_the_table_is_complete_and_within_the_limits() -> None:
    by, rows = TABLE.recorded()
    assert list(rows) == cases() and by["triton"] and by["ptxas"]
    for case, row in rows.items():
        assert not faults(row), case
        assert 0 < row["registers"] <= 255 and row["instructions"] > row["barriers"], case


def test_faults_are_found() -> None:
    rows = TABLE.recorded()[1]
    row = next(r for c, r in rows.items() if c == Case("generate", "voice", "bf16", 90))
    assert "shared memory" in faults(row | {"shared_bytes": row["shared_limit"] + 1})[0]
    for spilled in ({"spill_stores": 1}, {"spill_loads": 1}):
        assert "spilled" in faults(row | spilled)[0]
    assert "HMMA" in faults(row | {"tensor": {}})[0] and "HMMA" in faults(row | {"tensor": {"HGMMA": 4}})[0]
    assert "round fp32" in faults(row | {"dtype": "fp32"})[0]
    assert differences(row | {"registers": 1}, row) == [f"registers 1, recorded {row['registers']}"]
