"""Blocks that wait for each other: a token on a ring, what waiting costs, what is told where a wait never ends, and
whether each order, arrival and wait is missed when it is broken."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from cuda_text import cuda_ptx, need_nvrtc
from ptx_text import kernel, module, need_compiler

from wavenet_fast.emulated import EmulationError, Program, Stats
from wavenet_fast.emulated.mutate import mutants, survivors

need_compiler()
need_nvrtc()

# Cycles that a wait may take: seconds on a GPU.
LIMIT = 1 << 33
NOBODY = 1 << 20


def ring(
    program: Program,
    kernel: str,
    blocks: int,
    threads: int,
    rounds: int = 2,
    *,
    stuck: int = NOBODY,
    limit: int = LIMIT,
    **launch: Any,
) -> tuple[Stats, list[Any]]:
    """Launches one of the two rings; the token of every thread, and the word of the abort."""
    out, abort = np.zeros(threads, np.uint32), np.zeros(1, np.uint64)
    if kernel == "ring_of_cluster":
        args, launch = [out, abort], {"cluster": blocks, **launch}
    else:
        args = [out, np.zeros(blocks * threads, np.uint32), np.zeros(blocks, np.uint32), abort]
    stats = program.launch(kernel, (blocks,), (threads,), [*args, rounds, limit, stuck], **launch)
    return stats, [out, abort]


def token(blocks: int, threads: int, rounds: int = 2) -> np.ndarray:
    """What thread n ends with: it adds every block's number + 1, and each hop but the first changes n."""
    moved = np.arange(threads) ^ (32 if (blocks * rounds - 1) % 2 else 0)
    return (moved + rounds * blocks * (blocks + 1) // 2).astype(np.uint32)


RINGS = ("ring_of_cluster", "ring_of_flags")


@pytest.mark.parametrize("mode", ["plain", "thread", "address"])
@pytest.mark.parametrize("name", RINGS)
def test_a_token_goes_round(name: str, mode: Any) -> None:
    program = Program(cuda_ptx("ring.cu", 90), mode)
    for seed in (0, 1):
        stats, (out, abort) = ring(program, name, 5, 96 - 32, seed=seed)
        assert np.array_equal(out, token(5, 64)) and not abort[0] and not stats.stall


@pytest.mark.parametrize(("name", "turns"), [("ring_of_cluster", 4), ("ring_of_flags", 24)])
def test_waiting_costs_little(name: str, turns: int) -> None:
    """Of 16 blocks with all of a multiprocessor's shared memory one works at a time: per hop, a thread of that block is
    woken for each warp that adds to its flag, and those of the other blocks are not."""
    program = Program(cuda_ptx("ring.cu", 90))
    for seed in (0, 1):
        stats, (out, abort) = ring(program, name, 16, 384, seed=seed, shared=227 * 1024 - 4104)
        assert np.array_equal(out, token(16, 384)) and not abort[0]
        assert stats.switches < turns * 384 * 32


def test_as_many_threads_under_the_race_detector() -> None:
    """16 blocks of 12 warps, whose relaxed looks at the word of the abort cost no threads of its own."""
    _, (out, abort) = ring(Program(cuda_ptx("ring.cu", 90), "thread"), "ring_of_flags", 16, 384, 1)
    assert np.array_equal(out, token(16, 384, 1)) and not abort[0]


@pytest.mark.parametrize("mode", ["plain", "thread"])
@pytest.mark.parametrize("name", RINGS)
def test_a_block_that_hands_on_nothing(name: str, mode: Any) -> None:
    """The wait ends by its own bound, whatever it is; the launch ends, and says who waited for what."""
    program = Program(cuda_ptx("ring.cu", 90), mode)
    words = []
    for limit in (10_000, LIMIT, 1 << 42):
        stats, (_, abort) = ring(program, name, 4, 64, stuck=2, seed=1, limit=limit)
        assert abort[0] & 1
        words.append(int(abort[0]))
    assert ring(program, name, 4, 64, stuck=2, seed=1, limit=LIMIT)[1][1][0] == words[1]
    line = next(line for line in stats.stall.splitlines() if "block 3" in line)
    seen = {
        "ring_of_cluster": "2 of 2 arrivals are missing in phase 0 of the mbarrier at byte 4096 of the shared memory",
        "ring_of_flags": "it sees 0x0 in byte 12 of argument 2",
    }
    assert re.search(r"line \d+, (an mbarrier wait|a polling loop): block 3, \d+ threads \(", line)
    assert seen[name] in line


@pytest.mark.parametrize("name", RINGS)
def test_waits_that_seldom_look_at_the_clock(name: str) -> None:
    program = Program(cuda_ptx("ring.cu", 90, "POLLS_PER_LOOK=64"))
    for blocks, threads in ((4, 64), (16, 192)):
        for seed in (0, 1):
            stats, (_, abort) = ring(program, name, blocks, threads, stuck=2, seed=seed)
            assert abort[0] & 1 and stats.stall
            _, (out, abort) = ring(program, name, blocks, threads, seed=seed)
            assert not abort[0] and np.array_equal(out, token(blocks, threads))


@pytest.mark.parametrize("name", RINGS)
def test_a_wait_without_a_bound(name: str) -> None:
    with pytest.raises(
        EmulationError, match=r"livelock(.|\n)*block 3, \d+ threads .* in (phase 0|byte 12) of"
    ) as caught:
        ring(Program(cuda_ptx("ring.cu", 90)), name, 4, 64, stuck=2, limit=(1 << 63) - 1)
    assert caught.value.line and "the line is" in str(caught.value)


def test_a_deadlock_says_what_is_missing() -> None:
    body = """
  setp.lt.u32 %p1, %r0, 32;
  @%p1 bra $other;
  bar.sync 3, 64;
$other:
  barrier.cluster.arrive;
  barrier.cluster.wait;"""
    text = module(kernel("k", ["u64"], "  mov.u32 %r0, %tid.x;" + body))
    with pytest.raises(EmulationError, match="deadlock") as caught:
        Program(text).launch("k", (2,), (64,), [None], cluster=2)
    for told in (
        r"a block barrier: block 1, 32 threads \(32–63\); 32 of 64 threads have come to barrier 3",
        r"barrier\.cluster\.wait: block 0, 32 threads \(0–31\); 64 of 128 threads of the cluster have arrived",
    ):
        assert re.search(told, str(caught.value))


def test_a_store_that_does_not_synchronise_is_seen() -> None:
    """A flag that is written by a weak store is a race, and wakes whoever waits all the same."""
    body = """
  mov.u32 %r0, %tid.x;
  ld.param.u64 %rd0, [k_0];
  setp.eq.u32 %p1, %r0, 32;
  @%p1 bra $set;
$wait:
  ld.acquire.gpu.global.u32 %r1, [%rd0];
  setp.eq.u32 %p2, %r1, 0;
  @%p2 bra $wait;
  bra $end;
$set:
  st.global.u32 [%rd0], 1;
$end:"""
    for seed in range(4):
        Program(module(kernel("k", ["u64"], body))).launch("k", block=(33,), args=[np.zeros(1, np.uint32)], seed=seed)


@pytest.mark.parametrize("narrow", ["release", "acquire"])
def test_a_scope_that_is_too_narrow(narrow: str) -> None:
    """One block releases, another acquires, and one of the two says that it is about its own block."""
    body = f"""
  ld.param.u64 %rd0, [k_0];
  mov.u32 %r0, %ctaid.x;
  setp.ne.u32 %p1, %r0, 0;
  @%p1 bra $wait;
  red.release.{"cta" if narrow == "release" else "gpu"}.global.add.u32 [%rd0], 1;
  bra $end;
$wait:
  ld.acquire.{"cta" if narrow == "acquire" else "gpu"}.global.u32 %r1, [%rd0];
  setp.eq.u32 %p2, %r1, 0;
  @%p2 bra $wait;
$end:"""
    words = {"release": "the block there and the device here", "acquire": "the device there and the block here"}
    with pytest.raises(EmulationError, match=f"block 0 has released in byte 0 of argument 0.*scope is {words[narrow]}"):
        Program(module(kernel("k", ["u64"], body))).launch("k", grid=(2,), args=[np.zeros(1, np.uint32)])
    within = body.replace("%ctaid.x", "%tid.x")
    Program(module(kernel("k", ["u64"], within))).launch("k", block=(2,), args=[np.zeros(1, np.uint32)])


# ---- mutants


def test_every_mutant_of_the_rings_is_caught() -> None:
    text = cuda_ptx("ring.cu", 90)

    def run(program: Program) -> list[Any]:
        runs = [ring(program, name, 3, 64, seed=seed) for name in RINGS for seed in (0, 1)]
        return [results for _, results in runs]

    report = survivors(text, run)
    assert {(c.mutant.kind, c.mutant.description) for c in report.caught} >= {
        ("delete", "cluster barrier deleted"),
        ("weaken", "acquire made relaxed"),
        ("weaken", "release made relaxed"),
        ("narrow", "scope narrowed to the block"),
        ("delete", "mbarrier wait deleted"),
        ("delete", "mbarrier arrival deleted"),
        ("delete", "warp barrier deleted"),
    }
    # The first barrier's release is the fence's work, too; the last barrier is for launches that are aborted.
    assert [m.description for m in report.survived] == ["release made relaxed", "cluster barrier deleted"]
    assert {m.description for m in report.equivalent} == {
        "fence of initialised mbarriers deleted",
        "release made relaxed",
    }


def inputs() -> list[Any]:
    """Of the kernel `products`: operands, results, steps."""
    a, b = np.ones(5 * 512, np.int8), np.arange(5 * 256).astype(np.int8)
    return [a, b, *(np.full((16, 8), 9, np.float32) for _ in range(3)), 5]


def primitives(program: Program, kernels: tuple[str, ...]) -> list[Any]:
    got: list[Any] = []
    for name in kernels:
        for seed in (0, 1):
            x, y = np.arange(300, 556, dtype=np.uint32), np.zeros(256, np.uint32)
            x[70] = 1000
            if name == "products":
                args = inputs()
                program.launch(name, block=(32,), args=args, seed=seed)
                got += args[2:5]
            elif name == "barriers":
                program.launch(name, block=(96,), args=[x, y], seed=seed)
            elif name == "messages":
                data, words = np.zeros(128, np.uint32), np.zeros(2, np.uint32)
                program.launch(name, block=(160,), args=[data, words[:1], words[1:], y], seed=seed)
            else:
                program.launch(name, grid=(4,), block=(64,), args=[x, y], cluster=2, seed=seed)
            got.append(y)
    return got


def lines_of(text: str, kernel: str) -> range:
    """The lines of a kernel."""
    start = text[: text.index(f".entry {kernel}(")].count("\n") + 1
    return range(start, start + text[text.index(f".entry {kernel}(") :].split("\n}")[0].count("\n"))


@pytest.mark.parametrize("variant", [0, 1, 2])
def test_every_mutant_of_the_primitives_is_caught(variant: int) -> None:
    """Copies, warp barriers, named and reducing barriers, sums of releases, fences, locks, clusters."""
    text = cuda_ptx("primitives.cu", 90, f"VARIANT={variant}")
    kernels = {0: ("products", "barriers", "messages", "clusters"), 1: ("messages", "clusters"), 2: ("messages",)}[
        variant
    ]
    lines = {line for name in kernels for line in lines_of(text, name)}
    # `messages` is one block, for which narrower scopes do.
    alone = lines_of(text, "messages")
    sites = [m for m in mutants(text) if m.line in lines and not (m.kind == "narrow" and m.line in alone)]
    # Of the unrolled loops of `products`, the first copies; between its three products lie barriers without use.
    copies = [m for m in sites if m.line in lines_of(text, "products")][:6]
    chosen = [m for m in sites if m.line not in lines_of(text, "products")] + copies
    report = survivors(text, lambda program: primitives(program, kernels), sites=[m.site for m in chosen])
    if variant == 0:
        assert {c.mutant.description for c in report.caught} >= {
            "wait for copies loosened by a group",
            "wait for copies deleted",
            "reducing barrier deleted",
            "barrier arrival deleted",
            "fence of initialised mbarriers deleted",
        }
    if "clusters" in kernels:
        # A barrier of a warp before one of the cluster, and the last one.
        assert [m.description for m in report.survived] == ["warp barrier deleted", "cluster barrier deleted"]
    if variant == 1:
        assert {c.mutant.kind for c in report.caught if "mbarrier" in c.mutant.description} == {"delete"}
        assert len([c for c in report.caught if c.mutant.kind == "narrow"]) == 2
    if variant == 2:
        assert {c.mutant.description for c in report.caught} == {
            "warp barrier deleted", "fence deleted", "acquire made relaxed", "release made relaxed",
        }  # fmt: skip
        assert not report.survived
    assert len(report.caught) > 5


def test_the_text_of_the_new_kinds_is_ptx() -> None:
    text = cuda_ptx("primitives.cu", 90)
    kinds = {}
    for mutant in mutants(text):
        kinds.setdefault(mutant.description, mutant)
    for description in ("wait for copies loosened by a group", "reducing barrier deleted"):
        changed = kinds[description].text.splitlines()[kinds[description].line - 1]
        assert changed != text.splitlines()[kinds[description].line - 1]
        Program(kinds[description].text)
    assert "cp.async.wait_group 2;" in kinds["wait for copies loosened by a group"].text
