"""What does one sample cost in the Triton kernel `generate`? Counts, from its compiled code and from executing that.

    pip install ".[test]"
    python benchmarks/gpu_counts.py --json benchmarks/results/triton-counts.json

No GPU is needed, and no time is measured. The PTX that Triton compiles for sm_90 is executed on the CPU, which counts
every line; what two runs of different lengths differ by is what a sample costs, and what two runs of different numbers
of layers differ by is what a layer costs. One program makes one sample of each of its 16 streams at a time (a step).
gpu_page.py makes the tables of docs/gpu.md of it.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from gpu_compile import Recorded, compiler, launches_of
from ptx_counts import FAMILIES, bytes_of, family, instructions_of
from tqdm import tqdm
from wavenet_fast.kernels.triton.launch import EmulatedLauncher, compile_for
from wavenet_fast.kernels.triton.shapes import Shape
from wavenet_fast.kernels.triton.tuning import ELEMENT_BYTES, Options

from wavenet_fast.bench_gate import macs_per_sample
from wavenet_fast.cases import case
from wavenet_fast.config import WaveNetConfig
from wavenet_fast.emulated import Program, Stats
from wavenet_fast.errors import WavenetFastError

CASES = [(shape, dtype) for dtype in ("bf16", "fp32") for shape in ("voice", "nv-medium", "r9y9-mol")]
TARGET = 90
STEPS = (2, 5)
STREAMS = 16
WAYS = ("global loads", "global stores", "shared loads", "shared stores")

# Of an H100 SXM, as NVIDIA publishes them; BF16 is half of what the data sheet tells "with sparsity".
H100 = {
    "multiprocessors": 132, "memory_bytes_per_s": 3.35e12, "bf16_flop_per_s": 989e12, "fp32_flop_per_s": 67e12,
    "l2_bytes": 50e6,
}  # fmt: skip
LANES, SCHEDULERS, BANK_BYTES = 128, 4, 128
"""Of one multiprocessor: fp32 multiply-adds, instructions of warps, and bytes of shared memory per clock."""
CLOCK = H100["fp32_flop_per_s"] / (2 * LANES * H100["multiprocessors"])
"""Hz at which the published peak in fp32 is reached."""


# --- counting ---------------------------------------------------------------------------------------------------


class CountedProgram(Program):
    """Keeps the counts of its last launch, line of the PTX → executions by all threads together."""

    def launch(self, *args: Any, **options: Any) -> Stats:
        stats = super().launch(*args, **options)
        self.last = stats.instructions
        return stats


class Subject:
    """The kernel `generate` of one model, ready to be counted."""

    def __init__(self, launch: Recorded) -> None:
        self.launch = launch
        ptx = compile_for("generate", launch.arguments, launch.options, TARGET).asm["ptx"]
        self.instructions = instructions_of(ptx, "generate")
        self.program = CountedProgram(ptx, count="lines")
        self.launcher = EmulatedLauncher(TARGET)
        self.launcher._programs[ptx] = self.program

    def step(self, layers: int) -> Counter[str]:
        """Line → executions in one step, by all threads together."""
        few, many = (self._run(steps, layers) for steps in STEPS)
        found: Counter[str] = Counter()
        for line, count in many.items():
            found[line], rest = divmod(count - few[line], STEPS[1] - STEPS[0])
            if rest:
                raise SystemExit(f"line {line} of the PTX is not executed equally often in every step")
        return found

    def _run(self, steps: int, layers: int) -> dict[str, int]:
        given = self.launch.arguments
        a = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in given.items()}
        a["counts"].fill_(steps)
        self.launcher.run("generate", self.launch.grid, a | {"steps": steps, "LAYERS": layers}, self.launch.options)
        return self.program.last

    def told(self, counts: Mapping[str, int]) -> dict[str, Any]:
        """Of counts by line: instructions of a thread, by family; bytes by way; barriers."""
        threads = 32 * self.launch.options.warps
        families: Counter[str] = Counter(dict.fromkeys(FAMILIES, 0))
        moved: Counter[str] = Counter(
            dict.fromkeys(("global loads", "global stores", "shared loads", "shared stores"), 0)
        )
        barriers = 0
        for line, count in counts.items():
            instruction = self.instructions[line]
            families[family(instruction)] += count
            for way, size in bytes_of(instruction).items():
                moved[way] += size * count
            if instruction.parts[0] in ("bar", "barrier"):
                barriers += count
        return {
            "instructions_per_thread": {name: round(count / threads, 2) for name, count in families.items()},
            "bytes_moved": dict(moved),
            "barriers": barriers // threads,
        }


# --- what must be done at least ---------------------------------------------------------------------------------


def needed(config: WaveNetConfig, dtype: str, options: Options, weight_bytes: int) -> dict[str, Any]:
    """Bytes and multiply-adds of a step, from sizes; padding included, since it is read and multiplied too."""
    s, size = Shape.of(config), ELEMENT_BYTES[dtype]
    row = s.R * size
    columns = 2 if s.UPSAMPLING == 1 else 1
    per_layer = s.K * s.R * 2 * s.HALF + s.HALF * s.R + s.HALF * s.S
    from_rings = s.K if options.block_r < s.R else s.K - 1
    return {
        "weight_bytes_per_step": weight_bytes,
        "conditioning_bytes_per_stream": s.LAYERS * 2 * s.HALF * 4 * columns,
        "ring_read_bytes_per_stream": s.LAYERS * from_rings * row,
        "ring_write_bytes_per_stream": s.LAYERS * row,
        "ring_bytes_held_per_stream": s.SLOTS * row,
        "macs_per_stream": macs_per_sample(config),
        "macs_per_step": options.tile * (s.LAYERS * per_layer + s.S * s.H + s.H * s.A),
    }


def bounds(row: Mapping[str, Any]) -> dict[str, float]:
    """Microseconds: what is counted, over the rate at which an H100 can do it at most. The first line is of one stream,
    the others are of a step, which one program makes on one multiprocessor."""
    need, moved = row["needed"], row["step"]["bytes_moved"]
    rate = H100["bf16_flop_per_s" if row["dtype"] == "bf16" else "fp32_flop_per_s"] / H100["multiprocessors"]
    issued = sum(row["step"]["instructions_per_thread"].values()) * row["options"]["warps"]
    shared = moved["shared loads"] + moved["shared stores"]
    return {
        "multiply-adds of the model, on the whole GPU": 2e6 * need["macs_per_stream"] / rate / H100["multiprocessors"],
        "multiply-adds of the tile, on one multiprocessor": 2e6 * need["macs_per_step"] / rate,
        "weights from memory, were they not in L2": 1e6 * need["weight_bytes_per_step"] / H100["memory_bytes_per_s"],
        "instructions of the PTX, issued": 1e6 * issued / SCHEDULERS / CLOCK,
        "bytes through shared memory, none of them shared by threads": 1e6 * shared / BANK_BYTES / CLOCK,
    }


def counted(shape: str, dtype: str) -> dict[str, Any]:
    """One row of the results."""
    config, launch = case(shape), launches_of(shape, dtype, TARGET, streams=STREAMS)["generate"]
    subject, layers = Subject(launch), case(shape).n_layers
    step = subject.step(layers)
    layer = Counter(step)
    layer.subtract(subject.step(layers - 1))
    weights = [launch.arguments[name] for name in ("w_dilated", "w_residual", "w_skip", "w_hidden", "w_out")]
    size = sum(w.numel() * w.element_size() for w in weights)
    row: dict[str, Any] = {
        "shape": shape, "dtype": dtype, "target": TARGET, "layers": layers, "options": asdict(launch.options),
        "needed": needed(config, dtype, launch.options, size), "step": subject.told(step), "layer": subject.told(layer),
    }  # fmt: skip
    return row | {"bounds_us_per_step": bounds(row)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", type=Path, help="where the counts go")
    args = parser.parse_args()
    rows = [counted(*one) for one in tqdm(CASES, "count", disable=None)]
    told = {"compiler": compiler(), "target": f"sm_{TARGET}", "h100_sxm": H100, "clock_hz": CLOCK, "cases": rows}
    if args.json:
        args.json.write_text(json.dumps(told, indent=1) + "\n")
    for row in rows:
        print(f"{row['shape']} {row['dtype']}: {json.dumps(row['step'])}")


if __name__ == "__main__":
    try:
        main()
    except WavenetFastError as error:
        raise SystemExit(str(error)) from None
