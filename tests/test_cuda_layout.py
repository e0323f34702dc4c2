"""Where things lie in the shared memory of the CUDA kernels: no two of one block in the same place, all inside of what
the launch asks for."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wavenet_fast.kernels.cuda.layout import Layout
from wavenet_fast.kernels.cuda.shapes import Shape, steps

from wavenet_fast.cases import case

DTYPES = ("fp32", "bf16", "fp16", "int8")


def multiples(most: int) -> st.SearchStrategy[int]:
    return st.integers(1, most // 32).map(lambda n: 32 * n)


shapes = st.builds(
    Shape, LAYERS=st.integers(1, 40), K=st.integers(2, 4), R=multiples(256), HALF=multiples(256), S=multiples(256),
    H=multiples(256), A=multiples(2048), SLOTS=st.just(64), CLASSES=st.just(32), COMPONENTS=st.just(1),
    HEAD=st.just(0), IN_TAPS=st.integers(1, 3), IN_DEPTH=st.just(4), ONE_HOT=st.just(True),
    INPUT_ROWS=st.integers(1, 256), TANH=st.just(False), COMPANDED=st.just(False), SCALED=st.just(False),
    RUNNING=st.just(False), HOP=st.just(16), UPSAMPLING=st.just(0),
)  # fmt: skip


def offsets(layout: Layout) -> dict[str, int]:
    """`namespace at` of the header that the kernel is compiled with."""
    body = re.search(r"namespace at \{(.*?)\}", layout.header(), re.S)
    assert body is not None
    return {name: int(value) for name, value in re.findall(r"constexpr int (\w+) = (\d+);", body[1])}


def check_apart(at: dict[str, int], sizes: dict[str, int], total: int) -> None:
    """Parts of these sizes at these places."""
    placed = sorted((at[name], size, name) for name, size in sizes.items() if size)
    for (begin, size, name), (behind, _, other) in itertools.pairwise(placed):
        assert begin + size <= behind, f"{name} reaches into {other}"
    assert all(begin + size <= total for begin, size, _ in placed)


@settings(max_examples=200, deadline=None)
@given(
    shapes, st.sampled_from(DTYPES), st.sampled_from((8, 16, 32)), st.integers(1, 9), st.booleans(), st.booleans(),
    st.booleans(), st.booleans(), st.data(),
)  # fmt: skip
def test_parts_of_a_block_lie_apart(
    s: Shape, dtype: str, tile: int, tiles: int, cluster: bool, registers: bool, l2: bool, table: bool,
    data: st.DataObject,
) -> None:  # fmt: skip
    cuts = data.draw(st.lists(st.integers(1, s.LAYERS), max_size=4, unique=True).map(sorted))
    first = tuple(dict.fromkeys((0, *cuts)))
    layout = Layout(
        s, dtype, "resident", tile, 4, 2, tiles, (*first, s.LAYERS), cluster=cluster,
        newest_in_registers=registers, residual_in_registers=registers, head_in_l2=l2, input_shared=table,
        residual=2,
        out_in_l2=0 if l2 else data.draw(st.integers(0, steps(s.H, dtype))),
    )  # fmt: skip
    at = offsets(layout)
    assert at["total"] == layout.shared
    for team, own in enumerate(layout.own):
        head = team + 1 == layout.teams
        sizes = layout.common_parts() | (layout.layer_parts(own) if own else {})
        sizes |= layout.head_parts(own == 0) if head else {}
        at["past"] = at["weights"] + own * layout.layer_weights  # as resident.cuh has it, and the next
        at["residual_biases"] = at["past"] + sizes.get("past", 0)
        check_apart(at, sizes, layout.shared)


@pytest.mark.parametrize("dtype", DTYPES)
def test_parts_of_streaming_weights_lie_apart(dtype: str) -> None:
    s = Shape.of(case("nv-medium"), dtype)
    layout = Layout(s, dtype, "streaming_weights", 16, 8, 4, stages=8)
    check_apart(offsets(layout), layout.streaming_parts(), layout.shared)
