"""The mutation check: what it breaks, that it notices, and what it lists instead."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ptx_text import kernel, module, need_compiler

from wavenet_fast.emulated import EmulationError, Program
from wavenet_fast.emulated.mutate import mutants, same, survivors

need_compiler()

# Block 0 reverses 64 numbers through shared memory, publishes them and raises a flag; block 1 waits for the flag,
# copies with cp.async, and reverses again. Two barriers stand next to each other: each alone is superfluous.
TEXT = module(kernel("k", ["u64", "u64"], """
  ld.param.u64 %rd0, [k_0];
  ld.param.u64 %rd1, [k_1];
  mov.u32 %r0, %tid.x;
  mov.u32 %r1, box;
  mov.u32 %r9, %ctaid.x;
  mad.lo.u32 %r2, %r0, 4, %r1;
  sub.u32 %r3, 63, %r0;
  mad.lo.u32 %r4, %r3, 4, %r1;
  mad.wide.u32 %rd2, %r0, 4, %rd0;
  mad.wide.u32 %rd3, %r0, 4, %rd1;
  setp.ne.u32 %p1, %r9, 0;
  setp.ne.u32 %p2, %r0, 0;
  @%p1 bra $second;
  ld.global.u32 %r5, [%rd2];
  st.shared.u32 [%r2], %r5;
  bar.sync 0;
  bar.sync 0;
  ld.shared.u32 %r5, [%r4];
  st.global.u32 [%rd3], %r5;
  bar.sync 0;
  @%p2 bra $end;
  fence.acq_rel.gpu;
  st.relaxed.gpu.global.u32 [%rd1+1024], 1;
  bra $end;
$second:
  @%p2 bra $ready;
$poll:
  ld.acquire.gpu.global.u32 %r6, [%rd1+1024];
  setp.eq.u32 %p3, %r6, 0;
  @%p3 bra $poll;
$ready:
  bar.sync 0;
  cp.async.ca.shared.global [%r2], [%rd3], 4;
  cp.async.wait_all;
  bar.sync 0;
  ld.shared.u32 %r5, [%r4];
  st.global.u32 [%rd3+512], %r5;
$end:
""", ".shared .align 16 .b8 box[256];"))  # fmt: skip


def run(program: Program) -> list[np.ndarray]:
    results = []
    for seed in (0, 3):
        x, y = np.arange(64, dtype=np.uint32) + 100, np.zeros(257, np.uint32)
        program.launch("k", grid=(2,), block=(64,), args=[x, y], seed=seed)
        results.append(y)
    assert np.array_equal(results[0][:64], x[::-1]) and np.array_equal(results[0][128:192], x)
    return results


def test_what_is_broken() -> None:
    everything = mutants(TEXT)
    assert [m.description for m in everything] == [
        "barrier deleted", "barrier deleted", "barrier deleted", "fence deleted", "scope narrowed to the block",
        "acquire made relaxed", "scope narrowed to the block", "barrier deleted",
        "wait for copies deleted", "barrier deleted",
    ]  # fmt: skip
    lines = TEXT.splitlines()
    for mutant in everything:
        changed = mutant.text.splitlines()
        assert [n + 1 for n, line in enumerate(lines) if changed[n] != line] == [mutant.line]
    for site, wanted in ((4, "fence.acq_rel.cta;"), (5, "ld.relaxed.gpu.global.u32"), (6, "ld.acquire.cta.global.u32")):
        assert wanted in everything[site].text.splitlines()[everything[site].line - 1]
    assert [bool(m.equivalent) for m in everything] == [True, True] + [False] * 8
    assert f"line {everything[1].line}" in str(everything[0].equivalent)


def test_every_mutant_is_caught() -> None:
    report = survivors(TEXT, run)
    assert not report.survived and len(report.caught) == 8 and len(report.equivalent) == 2
    by = {caught.mutant.description: caught for caught in report.caught}
    assert by["scope narrowed to the block"].mode == "plain"
    assert by["fence deleted"].mode == "thread" and by["acquire made relaxed"].mode == "thread"
    told = report.as_dict()
    assert told["mutants"] == 10 and {"line", "kind", "description", "mode", "by"} <= set(told["caught"][0])


def test_the_text_of_a_mutant_does_what_its_site_does() -> None:
    """The switch in the compiled program and the mutated PTX are the same change."""
    program = Program(TEXT, "thread", mutable=True)
    for mutant in mutants(TEXT):
        outcomes = []
        for broken in (program.with_mutant(mutant.site), Program(mutant.text, "thread")):
            try:
                run(broken)
                outcomes.append("nothing")
            except (EmulationError, AssertionError) as error:
                outcomes.append(type(error).__name__)
        assert outcomes[0] == outcomes[1], mutant
        assert (outcomes[0] == "nothing") == bool(mutant.equivalent)


def test_survivors_are_told() -> None:
    """A check that looks at nothing, without a race detector, lets values pass."""

    def blind(program: Program) -> None:
        program.launch("k", grid=(2,), block=(64,), args=[np.zeros(64, np.uint32), np.zeros(257, np.uint32)])

    report = survivors(TEXT, blind, modes=["plain"], sites=[2, 3])
    assert [mutant.description for mutant in report.survived] == ["barrier deleted", "fence deleted"]
    with pytest.raises(EmulationError, match="out of bounds"):
        survivors(TEXT.replace("sub.u32 %r3, 63", "sub.u32 %r3, 62"), run, modes=["plain"])


CLUSTER = module(kernel("c", ["u64"], """
  mov.u32 %r1, gate;
  barrier.cluster.arrive.aligned;
  barrier.cluster.wait.aligned;
  mbarrier.init.shared.b64 [%r1], 1;
  mbarrier.arrive.shared.b64 %rd5, [%r1];
$wait:
  mbarrier.try_wait.shared.b64 %p1, [%r1], %rd5;
  @!%p1 bra $wait;
""", ".shared .align 8 .b8 gate[8];"))  # fmt: skip


def test_mutants_of_clusters_and_mbarriers_are_ptx() -> None:
    texts = [mutant.text for mutant in mutants(CLUSTER)]
    assert len(texts) == 6
    for text in texts:
        Program(text)


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        (np.array([np.nan]), np.array([np.nan]), True),
        (np.array([0.0]), np.array([-0.0]), False),
        ({"x": [np.zeros(2)]}, {"x": [np.zeros(2)]}, True),
        ({"x": [np.zeros(2)]}, {"y": [np.zeros(2)]}, False),
        (np.zeros(2, np.float32), np.zeros(2), False),
    ],
)
def test_same(a: Any, b: Any, equal: bool) -> None:
    assert same(a, b) is equal
