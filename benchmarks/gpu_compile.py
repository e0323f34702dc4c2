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
import json
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton
from tqdm import tqdm
from triton import knobs
from wavenet_fast.kernels.triton.calls import TYPES
from wavenet_fast.kernels.triton.launch import KERNELS, compile_for
from wavenet_fast.kernels.triton.tuning import Options, shared_limit

from wavenet_fast.backends import usable_cores
from wavenet_fast.backends.selftest import sources_hash
from wavenet_fast.backends.triton import DTYPES, TritonEngine
from wavenet_fast.bench_gate import forced_history
from wavenet_fast.cases import case, random_weights
from wavenet_fast.errors import WavenetFastError

TABLE = Path(__file__).parent / "results" / "triton-compiled.json"
TARGETS = (80, 86, 89, 90, 100, 120)
SHAPES = ("tiny", "voice", "nv-medium", "r9y9-mol")
FRAMES = 2

PRODUCTS = ("generate", "residual_block", "dense")

# Families of SASS mnemonics. HMMA: mma.sync; the others are the units of sm_90 and sm_100 that take larger tiles.
TENSOR = ("HMMA", "IMMA", "HGMMA", "IGMMA", "UTCHMMA", "UTCQMMA")
INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)", re.MULTILINE)


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
    counts = Counter(INSTRUCTION.findall(code))
    return {
        **asdict(case),
        "options": asdict(launch.options),
        "registers": int(found[1]),
        "stack": int(found[2]),
        "spill_stores": counts["STL"],
        "spill_loads": counts["LDL"],
        "shared_bytes": int(kernel.metadata.shared),
        "shared_limit": shared_limit(case.target),
        "tensor": {name: counts[name] for name in TENSOR if counts[name]},
        "barriers": counts["BAR"],
        "copies_ahead": counts["LDGSTS"],
        "instructions": counts.total() - counts["NOP"],
    }


def told_by(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


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
    found = []
    if row["shared_bytes"] > row["shared_limit"]:
        found.append(f"{row['shared_bytes']} bytes of shared memory; the target has {row['shared_limit']}")
    if spills := row["spill_stores"] + row["spill_loads"]:
        found.append(f"{spills} loads and stores of spilled registers")
    tensor = sum(row["tensor"].values())
    if row["dtype"] == "fp32" and tensor:
        found.append(f"{tensor} tensor-core instructions, which round fp32")
    if row["dtype"] != "fp32" and row["kernel"] in PRODUCTS and not row["tensor"].get("HMMA"):
        found.append("no tensor-core instructions (HMMA)")
    return found


def differences(row: Mapping[str, Any], recorded: Mapping[str, Any]) -> list[str]:
    """Where a row is not the recorded one."""
    return [f"{key} {row[key]}, recorded {recorded[key]}" for key in row if row[key] != recorded[key]]


def recorded_table(path: Path = TABLE) -> tuple[dict[str, str], dict[Case, dict[str, Any]]]:
    """The compiler that the table was made with, and its rows. Raises `FileNotFoundError`."""
    told = json.loads(path.read_text(encoding="utf-8"))
    names = [field.name for field in fields(Case)]
    return told["compiler"], {Case(**{name: row[name] for name in names}): row for row in told["kernels"]}


def sample_of_cases() -> list[Case]:
    """What a test has time for: `generate` in bf16 of the bundled voice's shape for every target, every shape in every
    number format for one target, so that each target has two, and every other kernel for one or two targets a shape."""
    chosen = [Case("generate", "voice", "bf16", target) for target in TARGETS]
    for i, (shape, dtype) in enumerate(product(SHAPES, DTYPES)):
        chosen.append(Case("generate", shape, dtype, TARGETS[i % len(TARGETS)]))
    for i, (shape, kernel) in enumerate(product(SHAPES, [name for name in KERNELS if name != "generate"])):
        chosen.append(Case(kernel, shape, DTYPES[i % len(DTYPES)], TARGETS[i % len(TARGETS)]))
    return list(dict.fromkeys(chosen))


def rows_of(chosen: list[Case], path: Path | None, jobs: int) -> Iterator[dict[str, Any]]:
    """Compiled by so many processes. Rows that the file holds of these very kernels and compilers are taken from it,
    and it is whole after every row, so that a run may be ended and begun again."""
    known: dict[Case, dict[str, Any]] = {}
    if path is not None and path.exists():
        told = json.loads(path.read_text(encoding="utf-8"))
        if (told["compiler"], told.get("sources")) == (compiler(), sources_hash()):
            known = recorded_table(path)[1]
    # Begun afresh, not forked: torch has threads.
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        pending = {case: pool.submit(compiled, case) for case in chosen if case not in known}
        try:
            for case in tqdm(chosen, "compile", disable=None, unit=" kernels"):
                known[case] = known[case] if case in known else pending[case].result()
                if path is not None and case in pending:
                    write(path, known)
                yield known[case]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def write(path: Path, rows: Mapping[Case, dict[str, Any]]) -> None:
    """The table in place of what was there, all at once, a line a row."""
    lines = ",\n".join(json.dumps(rows[case]) for case in cases() if case in rows)
    head = f'"compiler": {json.dumps(compiler())},\n"sources": "{sources_hash()}"'
    beside = path.with_name(path.name + ".new")
    beside.write_text(f'{{{head},\n"kernels": [\n{lines}\n]}}\n', encoding="utf-8")
    os.replace(beside, path)


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
    for row in rows_of(chosen, args.json, args.jobs):
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
