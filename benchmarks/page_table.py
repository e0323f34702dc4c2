"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Mapping


def table(head: list[str], lines: Mapping[str, list[str]]) -> str:
    """`lines` by their first cell."""
    rows = [["", *head], ["---"] * (len(head) + 1), *([name, *cells] for name, cells in lines.items())]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
