"""Operations of a dependent chain, and the latencies that others have measured of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

# What an operation is called.
PRODUCT, FP32, SPECIAL, CONVERT = "tensor-core products", "fp32 operations", "special functions", "conversions"
QUEUED = "tensor-core products that only wait for their turn"
SHARED, BARRIER, EXCHANGE = "reads of shared memory", "barriers of a block", "exchanges within a warp"
HALF2 = "half2 operations"
WORDS = "words to another block's shared memory"
WEIGHTS = "fragments of weights from shared memory"
POLLED = "values through L2 to a thread that polls"
L2 = "loads from L2"

LUO = "Luo et al., arXiv 2402.13499, H800; read in a public summary that quotes its tables, not in the paper itself"
JIA = "Jia et al., arXiv 1804.06826, Volta, as quoted in public code; figures found for Hopper contradict each other"
LATENCIES: dict[str, tuple[float, float, str]] = {
    PRODUCT: (
        24.1, 33.0, f"{LUO}: 24.1 for m16n8k16 in FP16 (Table VII). With fp32 sums 32 to 35 are reported for other "
        "chips; 33 is taken for the upper end",
    ),
    QUEUED: (
        4.3, 6.9, "2048 multiply-adds at the published peak of an H100 (989 TFLOPS, 132 · 4 tensor cores, 1.98 GHz), "
        "and at the 62.9 % of a peak that Luo et al. report of mma",
    ),
    SHARED: (29.0, 29.0, f"{LUO}: Table IV"),
    L2: (263.0, 263.0, f"{LUO}: Table IV"),
    POLLED: (
        263.0, 394.5, "from the same 263 of a load: half of it to write and half to come back at least; a thread that "
        "polls one load after the other waits half a load more on average",
    ),
    WORDS: (
        90.0, 194.5, f"{LUO}: SM-to-SM, 180 there and back; half of it, one way, for the lower end, which is an "
        "assumption. The look that sees the word is counted as a read of shared memory; the upper end waits half a "
        "look more, as above",
    ),
    WEIGHTS: (
        4.0, 4.0, "512 bytes at 128 a clock, the 32 banks of shared memory: what warps read of their own weights while "
        "the chain waits for them, nothing overlapping",
    ),
    FP32: (4.0, 4.0, JIA),
    HALF2: (4.0, 4.0, "taken to be as fast as in fp32"),
}  # fmt: skip
"""Operation → clock cycles, lower and upper, and where from."""
LEFT_OUT = (BARRIER, SPECIAL, CONVERT, EXCHANGE)

Operations = Mapping[str, float]


@dataclass(frozen=True)
class Part:
    """Operations that follow each other, and how often a sample passes them."""

    name: str
    times: float
    operations: Operations


def total(parts: list[Part]) -> dict[str, float]:
    found: Counter[str] = Counter()
    for part in parts:
        for operation, count in part.operations.items():
            found[operation] += part.times * count  # type: ignore[assignment]
    return dict(found)


def clocks(operations: Operations) -> tuple[float, float]:
    """Lower and upper; operations without a published latency count nothing."""
    known = {name: LATENCIES[name] for name in operations if name in LATENCIES}
    return (
        sum(operations[name] * low for name, (low, _, _) in known.items()),
        sum(operations[name] * high for name, (_, high, _) in known.items()),
    )


def followed(*more: Operations) -> dict[str, float]:
    """One after the other."""
    found: Counter[str] = Counter()
    for one in more:
        for name, count in one.items():
            found[name] += count  # type: ignore[assignment]
    return dict(found)
