"""The picture of peers.py: one stream as bars, many streams as curves, both on logarithmic scales."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

OURS = "wavenet_fast"
OUR_COLOURS = ("#08306b", "#08519c", "#2171b5", "#4292c6", "#6baed6")
PEER_COLOURS = ("#d95f02", "#7a7a7a", "#a6761d", "#66a61e", "#e7298a")
MARKERS = "os^Dv<>P"


def draw(result: dict[str, Any], path: Path) -> None:
    """Write the picture of a result of peers.py to `path`; its ending chooses the format."""
    with matplotlib.rc_context({"font.size": 12, "svg.hashsalt": "peers"}):
        figure = Figure(figsize=(15, 8.2), facecolor="white")
        bars, curves = figure.subplots(1, 2, width_ratios=(1.15, 1))
        _bars(bars, result)
        _curves(curves, result)
        figure.text(0.01, 0.01, _footer(result), fontsize=9.5, va="bottom", color="#333333", linespacing=1.4)
        figure.tight_layout(rect=(0, 0.13, 1, 1))
        figure.savefig(path, dpi=120)


def _bars(axes: Axes, result: dict[str, Any]) -> None:
    about, rows = result["about"], result["one_stream"]
    names = list(rows)
    speeds = [rows[name]["median_samples_per_second"] for name in names]
    colours = [OUR_COLOURS[1] if name.startswith(OURS) else "#b0b0b0" for name in names]
    axes.barh(names, speeds, color=colours)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(min(speeds) / 3, max(speeds) * 6)
    for y, speed in enumerate(speeds):
        axes.text(speed * 1.08, y, f"{speed:,.0f}", va="center")
    _real_time(axes.axvline, axes, about)
    axes.set_xlabel("samples a second (logarithmic)")
    axes.set_title(f"{about['model']}, one stream, {_threads(about)}")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="upper right", framealpha=1)


def _curves(axes: Axes, result: dict[str, Any]) -> None:
    ours = peers = 0
    for i, (name, row) in enumerate(result["batches"].items()):
        if name.startswith(OURS):
            colour, style, ours = OUR_COLOURS[ours % len(OUR_COLOURS)], "-", ours + 1
        else:
            colour, style, peers = PEER_COLOURS[peers % len(PEER_COLOURS)], "--", peers + 1
        counts = [int(batch) for batch in row]
        speeds = [point["median_samples_per_second"] for point in row.values()]
        axes.plot(counts, speeds, style, color=colour, marker=MARKERS[i % len(MARKERS)], label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    counts = sorted({int(batch) for row in result["batches"].values() for batch in row})
    axes.set_xticks(counts, [str(n) for n in counts])
    _real_time(axes.axhline, axes, result["about"])
    axes.set_xlabel("streams at once")
    axes.set_ylabel("samples a second in all (logarithmic)")
    axes.set_title(f"many streams, {_threads(result['about'])}")
    axes.grid(alpha=0.3)
    axes.legend(framealpha=0.9)


def _real_time(line: Any, axes: Axes, about: dict[str, Any]) -> None:
    line(about["sample_rate"], color="#444444", linewidth=1.2, linestyle=":", label="real time of one stream")


def _threads(about: dict[str, Any]) -> str:
    return "one thread" if about["threads"] == 1 else f"{about['threads']} threads"


def _footer(result: dict[str, Any]) -> str:
    about = result["about"]
    machine, versions = about["machine"], about["versions"]
    lines = [
        f"{machine['processor']} ({machine['architecture']}, {machine['usable_cores']} usable cores): "
        + " ".join(machine["features"]),
        ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        about["command"],
        "fp32 except where said; HiFi-GAN and r9y9's model with random weights; all others with the same.",
    ]
    if about["quick"]:
        lines.append("A quick run to see that everything works: these figures mean nothing.")
    return "\n".join(piece for line in lines for piece in textwrap.wrap(line, 190))
