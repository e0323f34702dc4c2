"""What do the Triton kernels become for each GPU: registers, spills, shared memory, instructions?

    pip install ".[test]"
    python benchmarks/gpu_compile.py --json benchmarks/results/triton-compiled.json

No GPU is needed. Every kernel is compiled with the arguments that the engine launches it with, as Triton's JIT
specialises it, and the machine code is read with the disassembler that comes with Triton. Compiling is deterministic:
tests/test_triton_compiled.py compares a part of the table exactly, where the compiler is the one that wrote it.

`instructions` are those that stand in the machine code, whether or not they are executed.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton
from compile_table import TARGETS, Table, code_counts, code_faults, told_by
from tqdm import tqdm
from triton import knobs
from wavenet_fast.kernels.triton.calls import TYPES
from wavenet_fast.kernels.triton.launch import KERNELS, compile_for
from wavenet_fast.kernels.triton.tuning import Options, shared_limit

from wavenet_fast.backends import usable_cores
from wavenet_fast.backends.triton import DTYPES, TritonEngine
from wavenet_fast.bench_gate import forced_history
from wavenet_fast.cases import case, random_weights
from wavenet_fast.errors import WavenetFastError

SHAPES = ("tiny", "voice", "nv-medium", "r9y9-mol")
FRAMES = 2

PRODUCTS = ("generate", "residual_block", "dense")


@dataclass(frozen=True)
class Case:
    """One kernel to compile."""

    kernel: str
    shape: str
    dtype: str
    target: int

    def __str__(self) -> str:
        return f"{self.kernel} of {self.shape} in {self.dtype} for sm_{self.target}"


@dataclass(frozen=True)
class Recorded:
    """A launch as the engine asked for it."""

    grid: tuple[int, ...]
    arguments: Mapping[str, Any]
    options: Options


class RecordingLauncher:
    """Runs nothing and keeps of every kernel the first launch whose operands have the model's number format: where
    that is fp16, conditioning is projected in fp32."""

    device = torch.device("cpu")
    upcast = False

    def __init__(self, dtype: str, capability: int) -> None:
        self.format, self.capability = TYPES[dtype], capability
        self.launches: dict[str, Recorded] = {}

    def run(self, name: str, grid: tuple[int, ...], arguments: Mapping[str, Any], options: Options) -> None:
        """See `launch.Launcher`."""
        if arguments.get("OP", self.format) == self.format:
            self.launches.setdefault(name, Recorded(grid, dict(arguments), options))
        for output in {"draws", "out"} & arguments.keys():
            arguments[output].zero_()  # the host and other kernels look at it


def cases() -> list[Case]:
    """All of the table."""
    return [
        Case(kernel, shape, dtype, target)
        for shape in SHAPES
        for dtype in DTYPES
        for target in TARGETS
        for kernel in KERNELS
    ]


@lru_cache(maxsize=1)
def weights_of(shape: str) -> Mapping[str, Any]:
    return random_weights(case(shape))


@lru_cache(maxsize=2)
def launches_of(shape: str, dtype: str, target: int, streams: int = 3) -> Mapping[str, Recorded]:
    """Kernel → its launch when so many streams speak, and then are told what they said."""
    launcher = RecordingLauncher(dtype, target)
    engine = TritonEngine(case(shape), weights_of(shape), dtype, "recorded", launcher)
    config, batch = engine.config, streams
    samples = FRAMES * config.hop_length
    mel = np.zeros((batch, config.n_mels, FRAMES), np.float32)
    for forced in (None, forced_history(config, samples).repeat(batch, 0)):
        state = engine.start(np.arange(batch, dtype=np.uint64))
        engine.advance(state, mel, np.full(batch, FRAMES), np.ones(batch, bool), 1.0, forced=forced)
    return launcher.launches


# --- compiling and reading --------------------------------------------------------------------------------------


def compiled(case: Case) -> dict[str, Any]:
    """One row of the table."""
    launch = launches_of(case.shape, case.dtype, case.target)[case.kernel]
    kernel = compile_for(case.kernel, launch.arguments, launch.options, case.target)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = told_by(knobs.nvidia.cuobjdump.path, "-res-usage", file.name)
        code = told_by(knobs.nvidia.nvdisasm.path, "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise SystemExit(f"cuobjdump tells no registers of {case}; it wrote:\n{usage}")
    return {
        **asdict(case),
        "options": asdict(launch.options),
        "registers": int(found[1]),
        "stack": int(found[2]),
        "shared_bytes": int(kernel.metadata.shared),
        "shared_limit": shared_limit(case.target),
        **code_counts(code),
    }


def compiler() -> dict[str, str]:
    """Everything that the machine code depends on besides the kernels."""
    return {
        "triton": triton.__version__,
        "ptxas": str(knobs.nvidia.ptxas.version),
        "ptxas for sm_100 and later": str(knobs.nvidia.ptxas_blackwell.version),
    }


# --- limits -----------------------------------------------------------------------------------------------------


def faults(row: Mapping[str, Any]) -> list[str]:
    """What of a row no version of the compiler may do."""
    found = code_faults(row)
    if row["dtype"] != "fp32" and row["kernel"] in PRODUCTS and not row["tensor"].get("HMMA"):
        found.append("no tensor-core instructions (HMMA)")
    return found


def sample_of_cases() -> list[Case]:
    """What a test has time for: `generate` in bf16 of the bundled voice's shape for every target, every shape in every
    number format for one target, so that each target has two, and every other kernel for one or two targets a shape."""
    chosen = [Case("generate", "voice", "bf16", target) for target in TARGETS]
    for i, (shape, dtype) in enumerate(product(SHAPES, DTYPES)):
        chosen.append(Case("generate", shape, dtype, TARGETS[i % len(TARGETS)]))
    for i, (shape, kernel) in enumerate(product(SHAPES, [name for name in KERNELS if name != "generate"])):
        chosen.append(Case(kernel, shape, DTYPES[i % len(DTYPES)], TARGETS[i % len(TARGETS)]))
    return list(dict.fromkeys(chosen))


TABLE = Table(Path(__file__).parent / "results" / "triton-compiled.json", Case, cases, compiled, compiler)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", type=Path, help="where the table goes; what it already holds is not compiled again")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=SHAPES)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--kernels", nargs="+", choices=list(KERNELS), default=list(KERNELS))
    parser.add_argument("--targets", nargs="+", type=int, choices=TARGETS, default=TARGETS)
    parser.add_argument("--jobs", type=int, default=usable_cores(), help="processes")
    args = parser.parse_args()
    chosen = [
        c for c in cases()
        if c.shape in args.shapes and c.dtype in args.dtypes and c.kernel in args.kernels and c.target in args.targets
    ]  # fmt: skip
    wrong = 0
    for row in TABLE.rows(chosen, args.json, args.jobs):
        for fault in faults(row):
            wrong += 1
            tqdm.write(f"{row['kernel']} {row['shape']} {row['dtype']} sm_{row['target']}: {fault}")
    print(f"{len(chosen)} kernels, {wrong} faults")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    try:
        main()
    except WavenetFastError as error:
        raise SystemExit(str(error)) from None
