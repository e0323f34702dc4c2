"""Writes the tables of docs/gpu.md and docs/gpu-cuda.md anew, from the results that lie in benchmarks/results.

    python benchmarks/gpu_page.py

Everything between a pair of marks `<!-- NAME: begin -->`, `<!-- NAME: end -->` is replaced. tests/test_gpu_page.py
holds the pages to the results.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gpu_page_cuda
import gpu_page_speed
from page_table import table

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parent.parent / "docs"
PAGE, CUDA_PAGE = DOCS / "gpu.md", DOCS / "gpu-cuda.md"
WAYS = ("global loads", "global stores", "shared loads", "shared stores")

Row = Mapping[str, Any]


# --- counts -----------------------------------------------------------------------------------------------------


def count_tables(told: Row) -> dict[str, str]:
    """Mark → table, of triton-counts.json."""
    rows = told["cases"]

    def made(values: Mapping[str, Callable[[Row], float]], form: str) -> str:
        lines = {label: [format(value(row), form) for row in rows] for label, value in values.items()}
        return table([f"{row['shape']} {row['dtype']}" for row in rows], lines)

    def need(name: str, unit: float) -> Callable[[Row], float]:
        return lambda row: row["needed"][name] / unit

    def done(name: str) -> Callable[[Row], float]:
        return lambda row: row["step"]["instructions_per_thread"][name]

    def moved(way: str) -> Callable[[Row], float]:
        return lambda row: row["step"]["bytes_moved"][way] / 1e6

    def least(name: str) -> Callable[[Row], float]:
        return lambda row: row["bounds_us_per_step"][name]

    families, bounds = rows[0]["step"]["instructions_per_thread"], rows[0]["bounds_us_per_step"]
    return {
        "needed": made({
            "weights, MB a step": need("weight_bytes_per_step", 1e6),
            "conditioning read, KB a stream": need("conditioning_bytes_per_stream", 1e3),
            "rings read, KB a stream": need("ring_read_bytes_per_stream", 1e3),
            "rings written, KB a stream": need("ring_write_bytes_per_stream", 1e3),
            "rings held, KB a stream": need("ring_bytes_held_per_stream", 1e3),
            "multiply-adds of the model, M a stream": need("macs_per_stream", 1e6),
            "multiply-adds of the tile, M a step": need("macs_per_step", 1e6),
        }, ",.2f"),
        "chain": made({
            "layers": lambda r: r["layers"],
            "barriers of a layer": lambda r: r["layer"]["barriers"],
            "barriers outside of the layers": lambda r: r["step"]["barriers"] - r["layers"] * r["layer"]["barriers"],
            "barriers of a step": lambda r: r["step"]["barriers"],
            "dependent steps": lambda r: r["step"]["barriers"] + 1,
        }, ",.0f"),
        "done": made({name: done(name) for name in families}
                     | {"all": lambda r: sum(r["step"]["instructions_per_thread"].values())}, ",.0f"),
        "moved": made({f"{way}, MB a step": moved(way) for way in WAYS}, ",.2f"),
        "bounds": made({f"{name}, µs": least(name) for name in bounds}, ",.3f"),
        "peaks": peaks(told),
    }  # fmt: skip


def peaks(told: Row) -> str:
    h = told["h100_sxm"]
    return table(["H100 SXM"], {
        "multiprocessors": [str(h["multiprocessors"])],
        "memory": [f"{h['memory_bytes_per_s'] / 1e12:g} TB/s"],
        "products in bf16, dense": [f"{h['bf16_flop_per_s'] / 1e12:g} TFLOPS"],
        "fp32": [f"{h['fp32_flop_per_s'] / 1e12:g} TFLOPS"],
        "second-level cache": [f"{h['l2_bytes'] / 1e6:g} MB; its bandwidth is not published"],
    })  # fmt: skip


# --- compiled code and checks -----------------------------------------------------------------------------------


def compile_tables(told: Row) -> dict[str, str]:
    """Mark → table, of triton-compiled.json."""
    rows = [row for row in told["kernels"] if row["kernel"] == "generate"]
    shapes, targets = list(dict.fromkeys(r["shape"] for r in rows)), list(dict.fromkeys(r["target"] for r in rows))
    of = {(row["shape"], row["dtype"], row["target"]): row for row in rows}

    def cell(row: Row) -> str:
        kib, products = round(row["shared_bytes"] / 1024), row["tensor"].get("HMMA", 0)
        return f"{row['registers']}, {kib}, {products}, {row['instructions']}"

    lines = {f"sm_{target}": [cell(of[shape, "bf16", target]) for shape in shapes] for target in targets}
    spilled = [row for row in told["kernels"] if row["spill_stores"] or row["spill_loads"]]
    listed = {
        f"{row['kernel']} {row['shape']} {row['dtype']} sm_{row['target']}": [
            str(row["spill_stores"]), str(row["spill_loads"]),
        ]
        for row in spilled
    }  # fmt: skip
    text = f"{len(spilled)} of {len(told['kernels'])} kernels spill registers"
    by = told["compiler"]
    return {
        "compiled": table([f"{shape} bf16" for shape in shapes], lines),
        "spills": f"{text}:\n\n{table(['stores', 'loads'], listed)}" if spilled else f"{text}.",
        "compiler": "; ".join(f"{tool} {version}" for tool, version in by.items()),
    }


def check_tables(told: Row) -> dict[str, str]:
    """Mark → table, of gpu-check.json."""
    verdicts = ("passed", "failed", "skipped")
    parts = {
        f"{part}, {'all' if told['levels'][part] == 'full' else 'a part'}": [str(counts[v]) for v in verdicts]
        for part, counts in told["counts"].items()
    }
    return {"checks": table(list(verdicts), parts), "mutants": mutants(told), "cuda-mutants": cuda_mutants(told)}


def of_mutants(told: Row, part: str) -> tuple[str, list[tuple[str, Row]]]:
    """A table of what became of the mutants, and those that went unnoticed, each with the kernel that it is of."""
    lines, unnoticed = {}, []
    for finding in told["findings"]:
        if finding["part"] == part and "mutants" in (d := finding.get("details", {})):
            cells = [d["mutants"], len(d["caught"]), len(d["equivalent"]), len(d["survived"])]
            lines[finding["what"]] = [str(cell) for cell in cells]
            unnoticed += [(finding["what"], mutant) for mutant in d["survived"]]
    return table(["mutants", "noticed", "equivalent", "unnoticed"], lines), unnoticed


def mutants(told: Row) -> str:
    """Of the Triton kernels."""
    found, unnoticed = of_mutants(told, "mutants")
    reasons = [
        f"- {what}, line {m['line']} of the PTX (`{m['source']}`), {m['description']}: {m['reason']}."
        for what, m in unnoticed
    ]
    return "\n\n".join([found, *reasons])


def cuda_mutants(told: Row) -> str:
    """Of the CUDA kernels; the same reason is told once."""
    if "cuda-mutants" not in told["counts"]:
        return "Not in the last run: `python benchmarks/gpu_check.py --full --parts cuda-mutants`."
    found, unnoticed = of_mutants(told, "cuda-mutants")
    places: dict[str, list[str]] = {}
    for what, mutant in unnoticed:
        places.setdefault(mutant["reason"], []).append(f"{what} line {mutant['line']}, {mutant['description']}")
    return "\n\n".join([found, *(f"- {reason}: {'; '.join(where)}." for reason, where in places.items())])


# --- the pages --------------------------------------------------------------------------------------------------


def read(name: str) -> Row:
    told: Row = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    return told


def measured(name: str) -> Row | None:
    """What was found on a GPU, if anything was."""
    return read(name) if (RESULTS / name).exists() else None


def tables() -> dict[str, str]:
    """Of docs/gpu.md, by mark."""
    found = count_tables(read("triton-counts.json")) | compile_tables(read("triton-compiled.json"))
    found |= gpu_page_speed.speed_tables(measured("gpu-speed.json"))["triton"]
    return found | check_tables(read("gpu-check.json"))


def cuda_tables() -> dict[str, str]:
    """Of docs/gpu-cuda.md."""
    found = gpu_page_cuda.compile_tables(read("cuda-compiled.json"))
    found |= gpu_page_cuda.count_tables(read("cuda-counts.json"))
    found |= gpu_page_speed.speed_tables(measured("gpu-speed.json"))["cuda"]
    found["speed-unpaused"] = gpu_page_speed.unpaused(measured("gpu-speed-unpaused.json"))
    chain, versus = read("cuda-chain.json"), measured("nv-wavenet-speed.json")
    found |= gpu_page_speed.versus_tables(versus)
    found |= {"estimate-measured": gpu_page_speed.estimate_beside(chain, versus)}
    return found | gpu_page_cuda.chain_tables(chain)


PAGES = {PAGE: tables, CUDA_PAGE: cuda_tables}


def written(page: str, given: Mapping[str, str]) -> str:
    """The page with every table as the results have it. Raises `ValueError` where a mark is missing."""
    for mark, text in given.items():
        marks = rf"(<!-- {mark}: begin -->\n).*?(<!-- {mark}: end -->)"
        page, found = re.subn(marks, lambda match, text=text: f"{match[1]}{text}\n{match[2]}", page, flags=re.S)
        if found != 1:
            raise ValueError(f"the page has {found} pairs of marks {mark!r}; it needs one")
    return page


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.split("\n\n")[0]).parse_args()
    for place, of_page in PAGES.items():
        place.write_text(written(place.read_text(encoding="utf-8"), of_page()), encoding="utf-8")
