"""The tables of docs/gpu-cuda.md, from the results that lie in benchmarks/results; gpu_page.py writes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from page_table import table

Row = Mapping[str, Any]

# As NVIDIA publishes them; bf16 is half of what the data sheets tell "with sparsity". B200: the HGX board's at 1000 W.
PEAKS = {
    "H100 SXM": {"multiprocessors": 132, "memory": 3.35e12, "bf16": 989e12, "fp32": 67e12},
    "B200": {"multiprocessors": 148, "memory": 8e12, "bf16": 2250e12, "fp32": 80e12},
}
LANES, SCHEDULERS, BANK_BYTES = 128, 4, 128
"""Of one multiprocessor: fp32 multiply-adds, instructions of warps, and bytes of shared memory per clock."""
SHOWN = ("voice", "nv-medium", "r9y9-mol")
NV = ("nv-wavenet, fp32", "nv-wavenet, fp16")


# --- compiled code ----------------------------------------------------------------------------------------------


def compile_tables(told: Row) -> dict[str, str]:
    """Mark → text, of cuda-compiled.json."""
    rows = told["kernels"]

    def cell(row: Row | None) -> str:
        if row is None:
            return "no room"
        tensor = sum(row["tensor"].values())
        return f"{row['registers']}, {round(row['shared_bytes'] / 1024)}, {tensor}, {row['instructions']}"

    def made(forms: Iterable[str]) -> str:
        of = {(r["shape"], r["target"]): r for form in forms for r in rows
              if r["form"] == form and (r["dtype"], r["streams"], r["by"]) == ("bf16", 1, "nvrtc")}  # fmt: skip
        targets = list(dict.fromkeys(r["target"] for r in rows))
        lines = {f"sm_{target}": [cell(of.get((shape, target))) for shape in SHOWN] for target in targets}
        return table([f"{shape} bf16" for shape in SHOWN], lines)

    spilled = [r for r in rows if r["spill_stores"] + r["spill_loads"]]
    both = {}
    for row in rows:
        key = tuple(row[name] for name in ("form", "shape", "dtype", "target", "streams"))
        both.setdefault(key, {})[row["by"]] = row
    pairs = [pair for pair in both.values() if "nvcc" in pair]
    same = sum(pair["nvcc"]["registers"] == pair["nvrtc"]["registers"] for pair in pairs)
    named = [f"{r['form']}, {r['shape']} {r['dtype']}, {r['streams']} streams, sm_{r['target']}" for r in spilled]
    return {
        "cuda-compiler": "; ".join(f"{tool} {version}" for tool, version in told["compiler"].items()),
        "cuda-resident": made(("resident, grid", "resident, cluster")),
        "cuda-streaming": made(("streaming_weights",)),
        "cuda-spills": f"{len(spilled)} of {len(rows)} kernels spill registers"
        f"{' (' + '; '.join(named) + ')' if named else ''}. Of {len(pairs)} kernels that nvcc "
        f"compiles too, {same} have the registers that NVRTC gives them.",
    }


# --- counts -----------------------------------------------------------------------------------------------------


def home(row: Row) -> str:
    """Where the weights are, in few words."""
    if row["variant"] == "streaming_weights":
        return "all in L2"
    homes = row["plan"]["homes"]
    by_place: dict[str, list[str]] = {}
    for matrix, place in homes.items():
        by_place.setdefault(place, []).append(matrix)
    return "; ".join(f"{place}: {', '.join(matrices)}" for place, matrices in by_place.items())


def count_tables(told: Row) -> dict[str, str]:
    """Mark → table, of cuda-counts.json."""
    rows = told["cases"]

    def named(row: Row) -> str:
        return f"{row['shape']} {row['dtype']}"

    def some(variant: str, *streams: int) -> list[Row]:
        return [row for row in rows if row["variant"] == variant and row["streams"] in streams]

    plans = {}
    for row in rows:
        p = row["plan"]
        name = f"{row['variant']}, {named(row)}, {row['streams']} stream{'s' * (row['streams'] > 1)}"
        plans[name] = [
            str(p["blocks"]), p["hop"], f"{p['tiles']} of {p['tile']}", str(p["pipelines"]), home(row),
        ]  # fmt: skip

    def instructions(chosen: list[Row]) -> str:
        columns = [(row, role) for row in chosen for role in row["sample_of_a_tile"]["roles"]]
        names = list(chosen[0]["sample_of_a_tile"]["roles"]["chain"])

        def value(row: Row, role: str, name: str) -> float:
            return float(row["sample_of_a_tile"]["roles"][role][name])

        lines = {name: [format(value(row, role, name), ",.0f") for row, role in columns] for name in names}
        all_of = [
            sum(value(row, role, name) for name in names if name != "barriers of a block") for row, role in columns
        ]
        lines["all"] = [format(count, ",.0f") for count in all_of]
        return table([f"{named(row)}, {role}" for row, role in columns], lines)

    def moved(chosen: list[Row]) -> str:
        def of(get: Callable[[Row], float], form: str = ",.1f") -> list[str]:
            return [format(get(row["sample_of_a_tile"]), form) for row in chosen]

        def way(name: str) -> list[str]:
            return of(lambda s: s["bytes"].get(name, 0) / 1e3)

        return table([f"{named(row)}, {row['plan']['tiles']} of {row['plan']['tile']}" for row in chosen], {
            "tensor-core products, of warps": of(lambda s: s["tensor_products"], ",.0f"),
            "weights from registers, KB": way("registers, weights held"),
            "shared loads, KB": way("shared loads"), "shared stores, KB": way("shared stores"),
            "generic loads, KB": way("generic loads"), "generic stores, KB": way("generic stores"),
            "global loads, KB": way("global loads"), "global stores, KB": way("global stores"),
            "words to other blocks": of(lambda s: s["words"], ",.0f"),
            "instructions of warps in the busiest block":
                of(lambda s: s["warp_instructions_of_the_busiest_block"], ",.0f"),
        })  # fmt: skip

    one = some("resident", 1)
    return {
        "cuda-plans": table(["blocks", "hop", "tiles", "pipelines", "weights"], plans),
        "cuda-instructions": instructions([row for row in one if row["dtype"] == "bf16"]),
        "cuda-formats": instructions([row for row in one if row["dtype"] != "bf16"]),
        "cuda-streamed": instructions([row for row in some("streaming_weights", 1) if row["dtype"] == "bf16"]),
        "cuda-moved": moved(one),
        "cuda-many": moved(some("resident", 256)),
        "cuda-moved-streamed": moved(some("streaming_weights", 1)),
        "cuda-bounds": bounds([row for row in rows if row["streams"] == 1]),
        "cuda-peaks": table(list(PEAKS), {
            "multiprocessors": [f"{p['multiprocessors']}" for p in PEAKS.values()],
            "memory, TB/s": [f"{p['memory'] / 1e12:g}" for p in PEAKS.values()],
            "products in bf16, dense, TFLOPS": [f"{p['bf16'] / 1e12:g}" for p in PEAKS.values()],
            "fp32, TFLOPS": [f"{p['fp32'] / 1e12:g}" for p in PEAKS.values()],
            "clock of the fp32 peak, GHz": [f"{clock(p) / 1e9:.2f}" for p in PEAKS.values()],
        }),
    }  # fmt: skip


def clock(peak: Mapping[str, float]) -> float:
    """Hz at which the published peak in fp32 is reached."""
    return peak["fp32"] / (2 * LANES * peak["multiprocessors"])


def bounds(rows: list[Row]) -> str:
    """Microseconds for a sample of a tile: counts over rates."""
    lines: dict[str, list[str]] = {}
    for name, peak in PEAKS.items():
        of_multiprocessor = clock(peak)

        def put(what: str, get: Callable[[Row], float], name: str = name) -> None:
            lines[f"{name}: {what}"] = [format(1e6 * get(row), ",.3f") for row in rows]

        put("instructions of the busiest block", lambda row, hz=of_multiprocessor: (
            row["sample_of_a_tile"]["warp_instructions_of_the_busiest_block"] / SCHEDULERS / hz
        ))  # fmt: skip
        put("multiply-adds of one stream on the whole GPU", lambda row, p=peak: (
            2 * row["macs_per_stream"] / p["fp32" if row["dtype"] == "fp32" else "bf16"]
        ))  # fmt: skip
        put("weights, were they read from memory for every sample", lambda row, p=peak: (
            row["weight_bytes"] / p["memory"]
        ))  # fmt: skip
    return table([f"{row['variant']}, {row['shape']} {row['dtype']}" for row in rows], lines)


# --- the chain --------------------------------------------------------------------------------------------------


def chain_tables(told: Row) -> dict[str, str]:
    """Mark → table, of cuda-chain.json."""
    case = told["cases"]["nv-medium"]
    ours, peers = case["resident"], {name: case[name] for name in NV}

    def number(value: float) -> str:
        return format(value, ",.0f") if value == int(value) else format(value, ",.1f")

    def parts(chain: Row) -> str:
        lines: dict[str, list[str]] = {}
        for part in chain["parts"]:
            if not part["times"]:
                continue
            name = part["name"] if part["name"] not in lines else f"{part['name']}, again"
            does = ", ".join(f"{number(count)} {what}" for what, count in part["operations"].items() if count)
            lines[name] = [number(part["times"]), does]
        return table(["times", "one after the other"], lines)

    chains = {"resident": ours, **peers}
    names = list(dict.fromkeys(name for chain in chains.values() for name in chain["operations"]))
    totals = {name: [number(chain["operations"].get(name, 0)) for chain in chains.values()] for name in names}
    estimate = {
        "clock cycles, estimate": [f"{c['clocks'][0]:,} – {c['clocks'][1]:,}" for c in chains.values()],
        "resident takes of it": ["", *(
            ", ".join(f"{mine / theirs:.2f}" for mine, theirs in zip(ours["clocks"], peer["clocks"], strict=True))
            for peer in peers.values()
        )],
    }  # fmt: skip
    beside = {
        name: [f"{part['estimate'][0]:,} – {part['estimate'][1]:,}", f"{part['on a GPU']:,}"]
        for name, part in case["beside_a_gpu"].items()
    }
    latencies = {
        name: [f"{low:g}" if low == high else f"{low:g} – {high:g}", given["source"]]
        for name, given in told["latencies"].items()
        for low, high in [given["clocks"]]
    }
    work = {}
    for shape, row in told["cases"].items():
        slowest = max(block["clocks"][1] for block in row["blocks_work"].values())
        chain = row["resident"]["clocks"][1]
        work[shape] = [f"{chain:,}", f"{slowest:,}", str(chain // slowest), str(8 * (chain // slowest))]
    return {
        "cuda-chain": parts(ours),
        "cuda-chain-nv": parts(peers[NV[0]]),
        "cuda-chain-totals": table(list(chains), totals | estimate),
        "cuda-chain-verdict": verdict(ours, peers),
        "cuda-chain-beside": table(["estimate, clock cycles", "on an H200"], beside),
        "cuda-latencies": table(["clock cycles", "from"], latencies),
        "cuda-work": table(
            ["chain, clock cycles", "slowest block for one tile", "tiles in the time of one", "streams"], work
        ),
    }


def verdict(ours: Row, peers: Mapping[str, Row]) -> str:
    """What the estimates say of the goal of a third."""
    told = []
    for name, peer in peers.items():
        ratios = [mine / theirs for mine, theirs in zip(ours["clocks"], peer["clocks"], strict=True)]
        low, high = (f"{ratio:.3f}" for ratio in sorted(ratios))
        told.append(f"{'reached' if max(ratios) <= 1 / 3 else 'missed'} against {name} ({low} to {high})")
    return f"By these estimates, of 16-bit weights on this side, the goal of a third is {', and '.join(told)}."
