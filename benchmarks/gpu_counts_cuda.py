"""What does one sample cost in the CUDA kernels? Counts, from executing their PTX.

    pip install ".[test]"
    python benchmarks/gpu_counts_cuda.py --json benchmarks/results/cuda-counts.json

No GPU is needed, and no time is measured. The PTX that NVRTC compiles for sm_90 is executed on the CPU, as the planner
lays the model over an H100, every line of it counted for every thread; what two runs of different lengths differ by is
what a sample of one tile costs. How often a thread looks in vain for what another block sends depends on the order of
threads, so the loops of waits are left out; everything else several orders must count alike. What is waited for is
counted where it is sent. gpu_page.py makes the tables of docs/gpu-cuda.md of it; the dependent chain is
gpu_chain.py's.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ptx_counts import FAMILIES, bytes_of, family, instructions_of, waits
from tqdm import tqdm
from wavenet_fast.kernels.cuda.compile import compile_kernel
from wavenet_fast.kernels.cuda.devices import DEVICES
from wavenet_fast.kernels.cuda.emulated_device import EmulatedDevice
from wavenet_fast.kernels.cuda.layout import Layout
from wavenet_fast.kernels.cuda.model import Heard, Made, Model, Streams
from wavenet_fast.kernels.cuda.shapes import FRAGMENT_BYTES

from wavenet_fast.backends.selftest import sources_hash
from wavenet_fast.bench_gate import macs_per_sample
from wavenet_fast.cases import case, random_weights
from wavenet_fast.errors import WavenetFastError

DEVICE = "H100"
CASES = [
    ("voice", "bf16"), ("nv-medium", "bf16"), ("r9y9-mol", "bf16"), ("nv-medium", "int8"), ("nv-medium", "fp32"),
]  # fmt: skip
VARIANTS = ("resident", "streaming_weights")
MANY_OF = ("nv-medium", "bf16")
ONE, MANY = 1, 256
STEPS = (2, 4)
ORDERS = (0, 1)
"""Seeds of the order of threads."""
LOOKS = ("ld.relaxed", "ld.acquire")
"""At what another block sends, and at the abort word: what waits have in their loops."""

CUDA_FAMILIES = {
    "products": r"mma",
    "copies ahead": r"cp\.async\.c[ag]",
    "words to other blocks": r"st\.relaxed",
    "barriers, flags and waits": r"bar|fence|red\.|atom|cp\.async|nanosleep|(ld|st)\.(relaxed|acquire|release)",
    "global memory": r"(ld|st)\.global",
    "shared memory": r"(ld|st)\.shared|ldmatrix|stmatrix",
    "generic addresses": r"(ld|st)\.(v\d\.)?[bfus]\d+",
    **{
        name: pattern
        for name, pattern in FAMILIES.items()
        if name not in ("products", "global memory", "shared memory")
    },
}
del CUDA_FAMILIES["barriers and waits"]


class Counted(Model):
    """A model on an emulated H100 that counts."""

    def __init__(self, shape: str, dtype: str) -> None:
        self.counting = EmulatedDevice(90, count="lines", properties=DEVICES[DEVICE])
        super().__init__(case(shape), random_weights(case(shape)), dtype, self.counting)

    def lines(self, layout: Layout, steps: int, seed: int) -> dict[str, NDArray[np.int64]]:
        """Line of the PTX → executions by each thread of one pipeline whose places are all taken."""
        config, s, device = self.config, self.shape, self.counting
        batch = layout.tiles * layout.taken
        device.seed = seed
        projected = np.random.default_rng(0).standard_normal((batch, steps, s.LAYERS, s.HALF, 2)).astype(np.float32)
        inputs = np.full((batch, s.IN_DEPTH), -1 if s.ONE_HOT else 0, np.float32)
        inputs[:, -1 % s.IN_DEPTH] = config.start
        streams = Streams(
            device.zeros((batch, s.SLOTS, self.ring_row), self.operand), device.upload(inputs),
            device.zeros((batch,), np.float32), device.zeros((batch,), np.int64),
            device.upload(np.arange(batch, dtype=np.uint64)),
        )  # fmt: skip
        heard = Heard(
            device.upload(projected), device.zeros((batch,), np.int32),
            device.upload(np.full(batch, steps - 1, np.int32)),
        )  # fmt: skip
        made = Made(device.empty((batch, steps), np.float32), device.empty((batch, steps), np.float32))
        self.generate(layout, 1, streams, np.full(batch, steps, np.int32), heard, made).check()
        assert device.last is not None
        return {line: counts.astype(np.int64) for line, counts in device.last.per_thread.items()}

    def step(self, layout: Layout, waiting: set[str]) -> dict[str, NDArray[np.float64]]:
        """Line → executions by each thread for one sample of one tile, but for the lines `waiting`."""
        runs = [[self.lines(layout, steps, seed) for seed in ORDERS] for steps in STEPS]
        found = {}
        for line in runs[0][0]:
            if line in waiting:
                continue
            few, many = (np.stack([run[line] for run in orders]) for orders in runs)
            if (few != few[0]).any() or (many != many[0]).any():
                raise SystemExit(f"line {line} of the PTX is executed more or less often in another order of threads")
            found[line] = (many[0] - few[0]) / ((STEPS[1] - STEPS[0]) * layout.tiles)
        return found


# --- what is told -----------------------------------------------------------------------------------------------


def groups(layout: Layout) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Who works on what: the threads of a pipeline by role. Warps of the block with most layers by what they do, and
    all threads of the block with the head, where that is another one."""
    threads = np.arange(layout.blocks * layout.threads)
    block, warp = threads // layout.threads, threads % layout.threads // 32
    most = int(np.argmax(layout.own)) * layout.team if layout.resident else 0
    first = 0
    for role, warps in (("chain", layout.chain), ("residual", layout.residual), ("skip", layout.skip)):
        if warps:
            yield role, (block == most) & (first <= warp) & (warp < first + warps)
        first += warps
    if layout.blocks > 1:
        yield "head", block == layout.blocks - 1


def told(layout: Layout, counted: Mapping[str, NDArray[np.float64]], ptx: str) -> dict[str, Any]:
    """Of one sample of one tile: instructions of a thread by role and family; of all threads together products of
    tensor cores, bytes by way, words to other blocks."""
    lines = instructions_of(ptx, layout.variant)
    roles: dict[str, dict[str, float]] = {}
    for role, who in groups(layout):
        per_thread: Counter[str] = Counter(dict.fromkeys(CUDA_FAMILIES, 0.0))  # type: ignore[arg-type]
        for line, executions in counted.items():
            per_thread[family(lines[line], CUDA_FAMILIES)] += executions[who].mean()
        roles[role] = {name: round(float(count), 2) for name, count in per_thread.items()}
        barriers = sum(
            c[who].mean() for line, c in counted.items() if lines[line].opcode.startswith(("bar.sync", "bar.red"))
        )
        roles[role]["barriers of a block"] = round(float(barriers), 2)
    moved: Counter[str] = Counter()
    tensor = words = 0.0
    for line, executions in counted.items():
        total, opcode = float(executions.sum()), lines[line].opcode
        for way, size in bytes_of(lines[line]).items():
            moved[way] += round(size * total)
        tensor += total / 32 if opcode.startswith("mma") else 0
        words += total * (2 if ".v2" in opcode else 1) if opcode.startswith("st.relaxed") else 0
    busiest = max((sum(float(c[who].sum()) for c in counted.values()) for _, who in blocks_of(layout)), default=0.0)
    return {
        "roles": roles,
        "tensor_products": round(tensor),
        "bytes": dict(moved) | {"registers, weights held": held_bytes(layout)},
        "words": round(words),
        "warp_instructions_of_the_busiest_block": round(busiest / 32),
    }


def blocks_of(layout: Layout) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    block = np.arange(layout.blocks * layout.threads) // layout.threads
    for b in range(layout.blocks):
        yield b, block == b


def held_bytes(layout: Layout) -> int:
    """Of weights that products take from registers, for one sample of one tile."""
    fragments = layout.layer_fragments
    held = fragments["newest"] * layout.newest_in_registers + fragments["residual"] * layout.residual_in_registers
    hidden = layout.head_fragments[0] if layout.hidden_in_registers(layout.head_alone) else 0
    return (held * layout.team * layout.shape.LAYERS + hidden) * FRAGMENT_BYTES


def counted(shape: str, dtype: str, variant: str, streams: int) -> dict[str, Any] | None:
    """One row of the results; None where the planner has no room for the variant."""
    model = Counted(shape, dtype)
    try:
        plan = model.plan(streams, variant=variant)
    except WavenetFastError:
        return None
    layout = plan.layout(model.shape)
    ptx = compile_kernel(variant, {"shape.cuh": layout.header()}, 90, "ptx").text
    return {
        "shape": shape, "dtype": dtype, "variant": variant, "streams": streams,
        "plan": {
            "hop": plan.hop, "tile": layout.tile, "tiles": layout.tiles, "pipelines": plan.pipelines,
            "blocks": layout.blocks, "own": list(layout.own), "team": layout.team, "chain": layout.chain,
            "residual": layout.residual, "skip": layout.skip, "places": layout.places, "homes": plan.homes,
            "shared_bytes": layout.shared, "stages": layout.stages,
        },
        "weight_bytes": model.weight_bytes, "macs_per_stream": macs_per_sample(model.config),
        "sample_of_a_tile": told(layout, model.step(layout, waits(ptx, variant, LOOKS)), ptx),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--json", type=Path, help="where the counts go; what it holds of these kernels is not counted again"
    )
    parser.add_argument("--shapes", nargs="+", default=[shape for shape, _ in CASES])
    args = parser.parse_args()
    wanted = [(*case, variant, ONE) for case in CASES for variant in VARIANTS] + [(*MANY_OF, "resident", MANY)]
    rows: list[dict[str, Any]] = []
    if args.json and args.json.exists():
        before = json.loads(args.json.read_text(encoding="utf-8"))
        rows = before["cases"] if before.get("sources") == sources_hash() else []
    known = [(row["shape"], row["dtype"], row["variant"], row["streams"]) for row in rows]
    for one in tqdm([one for one in wanted if one[0] in args.shapes and one not in known], "count", disable=None):
        row = counted(*one)
        if row is None:
            tqdm.write(f"{one}: the planner has no room for it")
            continue
        rows.append(row)
        rows.sort(key=lambda r: wanted.index((r["shape"], r["dtype"], r["variant"], r["streams"])))
        if args.json:
            told = {"device": DEVICE, "sources": sources_hash(), "cases": rows}
            args.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        print(f"{row['shape']} {row['dtype']} {row['variant']}: {json.dumps(row['sample_of_a_tile'])}")


if __name__ == "__main__":
    try:
        main()
    except WavenetFastError as error:
        raise SystemExit(str(error)) from None
