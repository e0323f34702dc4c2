"""How a row of stages (the layers, then the head) is cut into consecutive pieces, one for each block."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Fits = Callable[[int, int], bool]
"""fits(first, end): a block can hold stages first … end − 1. What fits still fits with fewer stages of the same row."""


def cut(costs: Sequence[int], pieces: int, fits: Fits) -> tuple[int, ...] | None:
    """The first stage of each of `pieces` blocks, none of them empty, such that the costliest block costs as little as
    possible; among those cuts, the evenest (least sum of squares), and of equals the one with the earliest cuts.
    None where no cut fits."""
    bottleneck = _cut(costs, pieces, fits, max, lambda cost: cost)
    if bottleneck is None:
        return None
    most = bottleneck[0]
    total = [0]
    for cost in costs:
        total.append(total[-1] + cost)
    evenest = _cut(
        costs, pieces, lambda a, b: total[b] - total[a] <= most and fits(a, b), lambda a, b: a + b, lambda cost: cost**2
    )
    assert evenest is not None
    return evenest[1]


def _cut(
    costs: Sequence[int], pieces: int, fits: Fits, join: Callable[[int, int], int], value: Callable[[int], int]
) -> tuple[int, tuple[int, ...]] | None:
    """Least `join` of the pieces' values, by dynamic programming from the end: best[a] covers stages a … end."""
    n = len(costs)
    best: list[tuple[int, tuple[int, ...]] | None] = [None] * n + [(0, ())]
    for _ in range(pieces):
        longer: list[tuple[int, tuple[int, ...]] | None] = [None] * (n + 1)
        for first in range(n):
            cost = 0
            for end in range(first + 1, n + 1):
                if not fits(first, end):
                    break
                cost += costs[end - 1]
                rest = best[end]
                if rest is not None:
                    found = (join(value(cost), rest[0]), (first, *rest[1]))
                    longer[first] = min(found, longer[first] or found)
        best = longer
    return best[0]
