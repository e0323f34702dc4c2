"""What was measured on a GPU, as tables of docs/gpu.md and docs/gpu-cuda.md; gpu_page.py writes them.

From two files in benchmarks/results, each of which may be missing: gpu-speed.json (gpu_speed.py) and
nv-wavenet-speed.json (nv_wavenet_speed.py). What is not in them is "not measured".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gpu_page_cuda import NV, PEAKS, clock
from page_table import table

Row = Mapping[str, Any]

NOT_MEASURED = "not measured"
OURS, THEIRS = "wavenet_fast cuda", "nv-wavenet"
PERSISTENT = f"{THEIRS} persistent"
THEIR_DTYPE = {"fp32": "fp32", "fp16": "fp16", "bf16": "fp16"}
"""Ours → nv-wavenet's of as many bits; it has no bf16."""
PRICED = ("nv-medium", "bf16")
"""Case and number format whose goals docs/gpu-cuda.md speaks of."""
GOAL = 1 / 3
"""Of the time that nv-wavenet's persistent kernel takes for a sample of one stream."""


def measured(row: Row | None) -> bool:
    return row is not None and "samples_per_second" in row and "error" not in row


def about(told: Row | None, script: str, result: str) -> str:
    """Where and with what it was measured."""
    if told is None:
        command = f"`python benchmarks/{script} … --json benchmarks/results/{result}`"
        return f"Not measured: {command}, on a machine with a GPU, writes what belongs here."
    a = told["about"]
    versions = ", ".join(f"{name} {version}" for name, version in a["versions"].items() if version)
    driver = f"; driver {a['driver']}" if "driver" in a else ""
    return f"On {a['gpu']}{driver}; {versions}."


def speed(row: Row | None, of: int = 1) -> str:
    return format(row["samples_per_second"] / of, ",.0f") if row is not None and measured(row) else NOT_MEASURED


def ratio(mine: Row | None, other: Row | None) -> str:
    if mine is None or other is None or not (measured(mine) and measured(other)):
        return NOT_MEASURED
    return format(mine["samples_per_second"] / other["samples_per_second"], ".2f")


# --- gpu-speed.json -----------------------------------------------------------------------------------------------


def speed_tables(told: Row | None) -> dict[str, dict[str, str]]:
    """Backend → mark → text."""
    return {
        backend: {
            f"speed-{backend}": of_backend(told["rows"], backend) if told else NOT_MEASURED.capitalize() + ".",
            f"speed-{backend}-about": about(told, "gpu_speed.py", "gpu-speed.json"),
        }
        for backend in ("cuda", "triton")
    }


def of_backend(rows: Iterable[Row], backend: str) -> str:
    lines = {
        f"{row['case']} {row['dtype']}, {streams(row)}": [speed(row), real_time(row), plan_of(row)]
        for row in rows
        if row["backend"] == backend
    }
    return table(["samples/s", "times real time, each", "plan"], lines) if lines else NOT_MEASURED.capitalize() + "."


def unpaused(told: Row | None) -> str:
    """What the kernels made that did not pause while they waited, as calls and as launches alone."""
    if told is None:
        return NOT_MEASURED.capitalize() + "."
    lines = {
        f"{row['case']} {row['dtype']}, {streams(row)}": [
            speed(row), real_time(row), format(row["kernels_per_second"], ",.0f"),
        ]
        for row in told["rows"]
    }  # fmt: skip
    return table(["samples/s", "times real time, each", "samples/s of the launches alone"], lines)


def plan_of(row: Row) -> str:
    """Of a row of the backend `cuda`; others have none."""
    p = row["plan"]
    if "variant" not in p:
        return "–"
    return f"{p['variant']}, {p['pipelines']} × {p['blocks']} blocks, {p['tiles_in_flight']} × {p['tile']} streams each"


def real_time(row: Row | None) -> str:
    """Of each stream; gpu_speed.py tells it of all together."""
    return f"{row['times_real_time'] / row['streams']:.2f}" if row is not None and measured(row) else NOT_MEASURED


# --- nv-wavenet-speed.json ----------------------------------------------------------------------------------------


def versus_tables(told: Row | None) -> dict[str, str]:
    """Mark → text: beside nv-wavenet, what several streams cost, and what became of the goals."""
    rows = told["rows"] if told else []
    return {
        "versus": versus(rows) if rows else NOT_MEASURED.capitalize() + ".",
        "versus-about": about(told, "nv_wavenet_speed.py", "nv-wavenet-speed.json"),
        "versus-left-out": left_out(rows) if rows else NOT_MEASURED.capitalize() + ".",
        "price": price(rows),
        "goal": goal(rows),
    }


def versus(rows: list[Row]) -> str:
    lines = {}
    for row in rows:
        if row["system"] != OURS:
            continue
        beside = [r for r in rows if (r["case"], r["streams"]) == (row["case"], row["streams"])]
        beside = [r for r in beside if r["dtype"] == THEIR_DTYPE[row["dtype"]] and r["system"].startswith(THEIRS)]
        best = max(filter(measured, beside), key=lambda r: float(r["samples_per_second"]), default=None)
        persistent = next((r for r in beside if r["system"] == PERSISTENT), None)
        its = speed(best) + (f" ({best['system'].removeprefix(THEIRS).strip()})" if best else "")
        each = f"{row['times_real_time']:.2f}" if measured(row) else NOT_MEASURED
        lines[f"{row['case']} {row['dtype']}, {streams(row)}"] = [
            speed(row), each, its, ratio(row, best), speed(persistent), ratio(row, persistent),
        ]  # fmt: skip
    heads = [
        "ours, samples/s", "times real time, each", "fastest nv-wavenet, samples/s", "ours over it",
        "its persistent kernel, samples/s", "ours over it",
    ]  # fmt: skip
    return table(heads, lines)


def streams(row: Row) -> str:
    return f"{row['streams']:,} stream{'s' * (row['streams'] > 1)}"


def left_out(rows: Iterable[Row]) -> str:
    """Who has no figure, and why, in the first line of what was said."""
    why: dict[str, list[str]] = {}
    for row in rows:
        if "error" in row:
            said = row["error"].strip().splitlines()[0].rstrip(".: ")
            why.setdefault(f"{row['case']}, {row['system']} in {row['dtype']}: {said}", []).append(str(row["streams"]))
    lines = [f"- {what} ({', '.join(counts)} streams)." for what, counts in why.items()]
    return "\n".join(lines) if lines else "Nothing that was asked was left out."


def ours_of(rows: Iterable[Row], case: str, dtype: str) -> dict[int, Row]:
    """Streams → row."""
    return {
        r["streams"]: r
        for r in rows
        if (r["case"], r["system"], r["dtype"]) == (case, OURS, dtype) and measured(r)
    }  # fmt: skip


def price(rows: Iterable[Row]) -> str:
    """How fast each stream is where a pipeline of blocks serves several, against one stream alone."""
    ours = ours_of(rows, *PRICED)
    if 1 not in ours:
        return NOT_MEASURED.capitalize() + "."
    alone = ours[1]["samples_per_second"]
    lines = {}
    for count, row in ours.items():
        p = row["plan"]
        lines[streams(row)] = [
            p["variant"], f"{p['pipelines']} of {p['blocks']} blocks", str(-(-count // p["pipelines"])),
            speed(row, count), f"{row['samples_per_second'] / count / alone:.2f}",
        ]  # fmt: skip
    heads = ["kernel", "pipelines", "streams a pipeline", "samples/s of each stream", "of one stream's"]
    return table(heads, lines)


def goal(rows: list[Row]) -> str:
    """What a sample of one stream takes against nv-wavenet's persistent kernel, in words."""
    case, dtype = PRICED
    ours = ours_of(rows, case, dtype).get(1)
    theirs = [r for r in rows if (r["case"], r["system"], r["streams"]) == (case, PERSISTENT, 1) and measured(r)]
    if ours is None or not theirs:
        return "What a sample takes beside nv-wavenet's persistent kernel is not measured."
    per = {r["dtype"]: r["samples_per_second"] / ours["samples_per_second"] for r in theirs}
    told = " and ".join(
        f"{1e6 / r['samples_per_second']:.2f} µs in {r['dtype']} (ours takes {per[r['dtype']]:.2f} of it)"
        for r in theirs
    )
    verdict = "reached" if max(per.values()) <= GOAL else "not reached"
    return (
        f"Measured, {case}, one stream: {1e6 / ours['samples_per_second']:.2f} µs a sample in {dtype}; nv-wavenet's "
        f"persistent kernel takes {told}. The goal, a third, is {verdict}."
    )


def estimate_beside(chain: Row, told: Row | None) -> str:
    """What was estimated of a sample of one stream (cuda-chain.json), and what was measured."""
    case, dtype = PRICED
    hz = clock(PEAKS["H100 SXM"])
    lines = {}
    for name, system, its in [("resident", OURS, dtype), *((nv, PERSISTENT, nv.split(", ")[1]) for nv in NV)]:
        low, high = (1e6 * cycles / hz for cycles in chain["cases"][case][name]["clocks"])
        wanted = (case, system, its, 1)
        rows = [r for r in told["rows"] if (r["case"], r["system"], r["dtype"], r["streams"]) == wanted] if told else []
        found = [1e6 / r["samples_per_second"] for r in rows if measured(r)]
        lines[name] = [f"{low:.2f} – {high:.2f}", *(
            [f"{found[0]:.2f}", f"{found[0] / high:.1f} – {found[0] / low:.1f}"] if found else [NOT_MEASURED] * 2
        )]  # fmt: skip
    return table([f"estimate, µs at {hz / 1e9:.2f} GHz", "measured, µs", "measured over estimate"], lines)
