"""What NVRTC and nvcc make of the CUDA kernels for each GPU, without one: benchmarks/gpu_compile_cuda.py, of which this
compiles a part (`sample_of_cases` says which), and its table."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

pytest.importorskip("cuda.bindings", reason='cuda-bindings is not installed: pip install "wavenet-fast[cuda]"')

from compile_table import TARGETS, differences
from gpu_compile_cuda import (
    DTYPES,
    FORMS,
    TABLE,
    Case,
    cases,
    compiled,
    compiler,
    faults,
    reader,
    sample_of_cases,
    why_no_nvcc,
)
from wavenet_fast.kernels.cuda.compile import why_not_kernels

from wavenet_fast.errors import BackendError

if why_not_kernels() is not None:
    pytest.skip(str(why_not_kernels()), allow_module_level=True)
try:
    reader("nvdisasm"), reader("cuobjdump")
except BackendError as error:
    pytest.skip(str(error), allow_module_level=True)

each = pytest.mark.parametrize("case", sample_of_cases(), ids=str)


@cache
def row_of(case: Case) -> dict[str, Any]:
    if case.by == "nvcc" and (why := why_no_nvcc()) is not None:
        pytest.skip(why)
    return compiled(case)


@each
def test_the_kernel_fits_does_not_spill_and_multiplies_where_it_should(case: Case) -> None:
    assert not faults(row_of(case))


@each
def test_the_kernel_is_the_recorded_one(case: Case) -> None:
    row, (by, rows) = row_of(case), TABLE.recorded()
    if by[case.by] != compiler()[case.by]:
        pytest.skip(f"the table was made with {case.by} {by[case.by]}; here is {compiler()[case.by]}")
    assert not differences(row, rows[case]), "see CONTRIBUTING.md for how the table is made anew"


def test_the_table_is_complete_and_within_the_limits() -> None:
    by, rows = TABLE.recorded()
    assert list(rows) == cases() and by["nvrtc"] and by["nvcc"]
    for case, row in rows.items():
        assert not faults(row), case
        assert 0 < row["registers"] <= 65536 // row["threads"] and row["registers"] <= 255, case
        assert row["instructions"] > row["barriers"], case


def test_nvcc_and_nvrtc_agree() -> None:
    """The same compiler behind both: what one spills, the other spills."""
    rows = TABLE.recorded()[1]
    pairs = [(row, rows[Case(**{**vars(case), "by": "nvrtc"})]) for case, row in rows.items() if case.by == "nvcc"]
    assert len(pairs) >= 18
    for ours, theirs in pairs:
        assert ours["tensor"] == theirs["tensor"] and ours["shared_bytes"] == theirs["shared_bytes"]


def test_the_sample_has_one_of_everything() -> None:
    sample = sample_of_cases()
    assert {c.target for c in sample} == set(TARGETS) and {c.dtype for c in sample} == set(DTYPES)
    assert {c.form for c in sample} == set(FORMS) and {c.by for c in sample} == {"nvrtc", "nvcc"}


def test_faults_are_found() -> None:
    rows = TABLE.recorded()[1]
    row = next(r for c, r in rows.items() if (c.form, c.shape, c.dtype) == ("streaming_weights", "voice", "bf16"))
    assert "shared memory" in faults(row | {"shared_bytes": row["shared_limit"] + 1})[0]
    for spilled in ({"spill_stores": 1}, {"spill_loads": 1}):
        assert "spilled" in faults(row | spilled)[0]
    assert "registers" in faults(row | {"registers": row["register_limit"] + 1})[0]
    assert "HMMA" in faults(row | {"tensor": {}})[0] and "IMMA" in faults(row | {"dtype": "int8"})[0]
    assert "round fp32" in faults(row | {"dtype": "fp32"})[0]
