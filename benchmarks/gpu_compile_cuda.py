"""What do the CUDA kernels become for each GPU: registers, spills, shared memory, instructions?

    pip install ".[test]" nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm
    pip install nvidia-cuda-nvcc nvidia-cuda-runtime nvidia-cuda-crt   # for the rows that nvcc compiles
    python benchmarks/gpu_compile_cuda.py --json benchmarks/results/cuda-compiled.json

No GPU is needed. Every kernel is compiled as the planner lays the model over one device of each architecture, for one
stream, and for H100 for many: by NVRTC, as on a user's machine, and in bf16 by nvcc as well. There is no row
where the planner finds no room. Compiling is deterministic: tests/test_cuda_compiled.py compares a part of the table
exactly, where the compiler is the one that wrote it.

`instructions` are those that stand in the machine code, whether or not they are executed.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

from compile_table import TARGETS, Row, Table, code_counts, code_faults, told_by
from tqdm import tqdm
from wavenet_fast.kernels.cuda.compile import OPTIONS, SOURCES, compile_kernel
from wavenet_fast.kernels.cuda.devices import DEVICES
from wavenet_fast.kernels.cuda.layout import Layout
from wavenet_fast.kernels.cuda.model import project_header
from wavenet_fast.kernels.cuda.occupancy import most_registers
from wavenet_fast.kernels.cuda.plan import Plan, plan
from wavenet_fast.kernels.cuda.shapes import Shape

from wavenet_fast.backends import usable_cores
from wavenet_fast.cases import CASES
from wavenet_fast.cases import case as config_of
from wavenet_fast.errors import BackendError, WavenetFastError

DEVICE = {80: "A100", 86: "RTX A6000", 89: "L40S", 90: "H100", 100: "B200", 120: "RTX 5090"}
"""By target: for which device plans are made."""
SHAPES = tuple(CASES)
DTYPES = ("fp32", "bf16", "fp16", "int8")
FORMS = ("streaming_weights", "resident, cluster", "resident, grid", "project")
STREAMS = (1, 256)
"""Many in bf16 for sm_90 only."""
BY_NVCC = "bf16"
"""The number format that nvcc compiles too, for one stream."""
RESERVED = 1024
"""Bytes of each block that CUDA keeps for itself: counted with the kernel's own from sm_90 on, and not part of the
limit that a device tells."""
NO_CLUSTER = dict.fromkeys(range(2, 17), 0)
"""As if the driver had answered that no cluster fits."""


@dataclass(frozen=True)
class Case:
    """One kernel to compile: `form` of FORMS, for so many streams, by "nvrtc" or "nvcc"."""

    form: str
    shape: str
    dtype: str
    target: int
    streams: int
    by: str

    def __str__(self) -> str:
        return f"{self.form} of {self.shape} in {self.dtype}, {self.streams} streams, sm_{self.target}, {self.by}"


# --- what is compiled -------------------------------------------------------------------------------------------


@cache
def plan_of(form: str, shape: str, dtype: str, target: int, streams: int) -> Plan | None:
    """None where the device has no room for that form, or the form would be another one's."""
    asked: dict[str, Any] = {"variant": form.split(",")[0]}
    if form == "resident, grid":
        asked["clusters"] = NO_CLUSTER
    try:
        found = plan(Shape.of(config_of(shape), dtype), streams, dtype, DEVICES[DEVICE[target]], **asked)
    except BackendError:
        return None
    wanted = {"resident, cluster": ("cluster", "none"), "resident, grid": ("grid",)}.get(form, (found.hop,))
    return found if found.hop in wanted else None


def cut_of(case: Case) -> Layout:
    """Raises `KeyError` for a case that does not exist, and for `project`, which is not planned."""
    found = plan_of(case.form, case.shape, case.dtype, case.target, case.streams)
    if found is None:
        raise KeyError(str(case))
    return found.layout(Shape.of(config_of(case.shape), case.dtype))


@cache
def cases() -> list[Case]:
    """All of the table: every named case in every number format; conditioning is projected in two."""
    found = []
    for shape, dtype, target, form in product(SHAPES, DTYPES, TARGETS, FORMS):
        if form == "project" and dtype not in ("fp32", "bf16"):
            continue
        for streams in STREAMS if (dtype, target) == ("bf16", 90) and form != "project" else STREAMS[:1]:
            if form == "project" or plan_of(form, shape, dtype, target, streams) is not None:
                found.append(Case(form, shape, dtype, target, streams, "nvrtc"))
    by_nvcc = [one for one in found if (one.dtype, one.streams) == (BY_NVCC, 1)]
    return found + [Case(**asdict(one) | {"by": "nvcc"}) for one in by_nvcc]


# --- compiling and reading --------------------------------------------------------------------------------------


def compiled(case: Case) -> Row:
    """One row of the table."""
    device = DEVICES[DEVICE[case.target]]
    if case.form == "project":
        threads, shared, what = 128, 0, {}
        header = project_header(config_of(case.shape), case.dtype, config_of(case.shape).conditioning_channels)
    else:
        cut = cut_of(case)
        threads, shared, header = cut.threads, cut.shared, cut.header()
        what = {"tile": cut.tile, "tiles": cut.tiles, "blocks": cut.blocks, "team": cut.team}
    kernel, headers = case.form.split(",")[0], {"shape.cuh": header}
    if case.by == "nvrtc":
        cubin = compile_kernel(kernel, headers, case.target).code
    else:
        cubin = compiled_by_nvcc(kernel, headers, case.target)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = told_by(reader("cuobjdump"), "-res-usage", file.name)
        code = told_by(reader("nvdisasm"), "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", usage)
    if found is None:
        raise SystemExit(f"cuobjdump tells no registers of {case}; it wrote:\n{usage}")
    return {
        **asdict(case), **what, "threads": threads, "registers": int(found[1]),
        "register_limit": most_registers(device, threads), "stack": int(found[2]),
        "shared_bytes": shared + int(found[3]) - (RESERVED if case.target >= 90 else 0),
        "shared_limit": device.shared_per_block, **code_counts(code),
    }  # fmt: skip


def compiled_by_nvcc(kernel: str, headers: Mapping[str, str], target: int) -> bytes:
    """The same sources, as files. Raises `BackendError` with what nvcc says."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for header, text in headers.items():
            (folder / header).write_text(text, encoding="utf-8")
        (folder / "kernel.cu").write_text(f'#include "{kernel}.cuh"\n', encoding="utf-8")
        command = [nvcc(), *OPTIONS, f"-arch=sm_{target}", "-cubin", f"-I{SOURCES}", f"-I{folder}"]
        done = subprocess.run(
            [*command, "-o", str(folder / "kernel.cubin"), str(folder / "kernel.cu")],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise BackendError(f"nvcc cannot compile {kernel} for sm_{target}:\n{done.stderr}")
        return (folder / "kernel.cubin").read_bytes()


def tool(name: str) -> str | None:
    """Of NVIDIA's packages for CUDA 13, or on the path."""
    spec = find_spec("nvidia")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(place) / "cu13" / "bin" / name).exists():
            return str(path)
    return shutil.which(name)


def why_no_nvcc() -> str | None:
    if tool("nvcc") is None:
        return "there is no nvcc: pip install nvidia-cuda-nvcc nvidia-cuda-runtime nvidia-cuda-crt"
    return None


def nvcc() -> str:
    found = tool("nvcc")
    if found is None:
        raise BackendError(str(why_no_nvcc()))
    return found


def reader(name: str) -> str:
    """A tool that reads machine code: NVIDIA's package's, or that which comes with Triton."""
    found = tool(name)
    if found is None and find_spec("triton") is not None:
        from triton import knobs

        found = str(getattr(knobs.nvidia, name).path)
    if found is None:
        raise BackendError(f"there is no {name} to read machine code with: pip install nvidia-cuda-{name}")
    return found


def compiler() -> dict[str, str]:
    """What the machine code depends on besides the kernels."""
    told = {"nvrtc": "nvidia-cuda-nvrtc", "nvcc": "nvidia-cuda-nvcc"}
    found = {}
    for name, package in told.items():
        try:
            found[name] = version(package)
        except PackageNotFoundError:
            found[name] = "another" if name == "nvrtc" or tool("nvcc") else "none"
    return found


# --- limits -----------------------------------------------------------------------------------------------------


def faults(row: Mapping[str, Any]) -> list[str]:
    """What of a row no version of the compiler may do."""
    found = code_faults(row)
    if row["registers"] > row["register_limit"]:
        found.append(
            f"{row['registers']} registers; a block of {row['threads']} threads may have {row['register_limit']}"
        )
    needed = {"bf16": "HMMA", "fp16": "HMMA", "int8": "IMMA"}.get(row["dtype"])
    if needed and not row["tensor"].get(needed):
        found.append(f"no tensor-core instructions ({needed})")
    return found


def sample_of_cases() -> list[Case]:
    """What a test has time for: every form, number format, target and compiler, each at least once."""
    chosen = [
        Case("resident, cluster", "nv-medium", "bf16", 90, 1, "nvrtc"),
        Case("resident, cluster", "nv-medium", "bf16", 100, 1, "nvcc"),
        Case("resident, grid", "nv-medium", "int8", 80, 1, "nvrtc"),
        Case("resident, grid", "voice", "bf16", 120, 1, "nvrtc"),
        Case("streaming_weights", "nv-medium", "fp16", 86, 1, "nvrtc"),
        Case("streaming_weights", "nv-medium", "fp32", 89, 1, "nvrtc"),
        Case("project", "voice", "bf16", 89, 1, "nvrtc"),
    ]
    existing = set(cases())
    return [case for case in chosen if case in existing]


TABLE = Table(Path(__file__).parent / "results" / "cuda-compiled.json", Case, cases, compiled, compiler)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", type=Path, help="where the table goes; what it already holds is not compiled again")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=SHAPES)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS)
    parser.add_argument("--targets", nargs="+", type=int, choices=TARGETS, default=TARGETS)
    parser.add_argument("--by", nargs="+", choices=("nvrtc", "nvcc"), default=("nvrtc", "nvcc"))
    parser.add_argument("--jobs", type=int, default=usable_cores(), help="processes")
    args = parser.parse_args()
    chosen = [
        c for c in cases()
        if c.shape in args.shapes and c.dtype in args.dtypes and c.form in args.forms and c.target in args.targets
        and c.by in args.by
    ]  # fmt: skip
    if (why := why_no_nvcc()) is not None:
        print(f"without the rows of nvcc: {why}")
        chosen = [c for c in chosen if c.by != "nvcc"]
    wrong = 0
    for row in TABLE.rows(chosen, args.json, args.jobs):
        for fault in faults(row):
            wrong += 1
            tqdm.write(f"{Case(**{name: row[name] for name in Case.__dataclass_fields__})}: {fault}")
    print(f"{len(chosen)} kernels, {wrong} faults")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    try:
        main()
    except WavenetFastError as error:
        raise SystemExit(str(error)) from None
