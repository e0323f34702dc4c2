"""Memory, warps, barriers, clusters and messages: hand-written PTX in every place where threads meet."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ptx_text import kernel, module, need_compiler

from wavenet_fast.emulated import EmulationError, Program, RaceError, Struct

need_compiler()

SEEDS = (0, 1, 2)
# %r0 thread, %rd0 and %rd1 the two pointers, %rd2 = second pointer + 4 · thread: where the thread's result goes.
HEAD = """  mov.u32 %r0, %tid.x;
  ld.param.u64 %rd0, [{name}_0];
  ld.param.u64 %rd1, [{name}_1];
  mad.wide.u32 %rd2, %r0, 4, %rd1;
"""


def two(name: str, body: str, registers: str = "") -> str:
    """A kernel of two pointers with HEAD before its body."""
    return kernel(name, ["u64", "u64"], HEAD.format(name=name) + body, registers)


VECTORS = two(
    "vectors",
    """
  mad.wide.u32 %rd3, %r0, 16, %rd0;
  mad.wide.u32 %rd4, %r0, 16, %rd1;
  ld.global.nc.L1::evict_last.v4.u32 {%r1, %r2, %r3, %r4}, [%rd3];
  st.global.v2.b32 [%rd4], {%r4, %r3};
  st.global.cs.v2.b32 [%rd4+8], {%r2, %r1};
""",
)
NARROW = two(
    "narrow",
    """
  cvt.u64.u32 %rd3, %r0;
  add.u64 %rd4, %rd0, %rd3;
  ld.global.s8 %r1, [%rd4];
  ld.global.u8 %r2, [%rd4];
  mad.wide.u32 %rd5, %r0, 8, %rd1;
  st.global.v2.u32 [%rd5], {%r1, %r2};
""",
)
LOCAL = two(
    "scratch",
    """
  .local .align 8 .b8 depot[32];
  mov.u64 %rd3, depot;
  cvta.local.u64 %rd4, %rd3;
  st.local.u32 [%rd3+8], %r0;
  mov.u32 %r1, 7;
  st.u32 [%rd4+12], %r1;
  ld.local.v2.u32 {%r2, %r3}, [depot+8];
  add.u32 %r4, %r2, %r3;
  st.global.u32 [%rd2], %r4;
""",
)
CONSTANTS = two(
    "constants",
    """
  mov.u64 %rd3, table;
  mad.wide.u32 %rd4, %r0, 4, %rd3;
  ld.const.u32 %r1, [%rd4];
  ld.const.u32 %r2, [table+4];
  ld.global.u16 %r3, [pair+2];
  add.u32 %r1, %r1, %r2;
  add.u32 %r1, %r1, %r3;
  st.global.u32 [%rd2], %r1;
""",
)
BRANCHES = two(
    "branches",
    """
  targets: .branchtargets $one, $two, $three;
  rem.u32 %r1, %r0, 3;
  mov.u32 %r2, 0;
  brx.idx %r1, targets;
$one:
  add.u32 %r2, %r2, 100;
  bra.uni $end;
$two:
  add.u32 %r2, %r2, %r0;
  setp.lt.u32 %p1, %r2, 50;
  @%p1 bra $two;
  bra $end;
$three:
  { .reg .pred p; mov.u32 %r3, 0; again: add.u32 %r3, %r3, 1; setp.ge.u32 p, %r3, 5; @!p bra again; }
  { .reg .pred p; again: add.u32 %r3, %r3, 10; setp.ge.u32 p, %r3, 30; @!p bra again; }
  mov.u32 %r2, %r3;
$end:
  st.global.u32 [%rd2], %r2;
""",
)
FUNCTION = """
.func (.param .b32 result) twice_plus(.param .b32 a, .param .b32 b) {
  .reg .b32 %r<4>;
  ld.param.u32 %r1, [a];
  ld.param.u32 %r2, [b];
  mad.lo.u32 %r3, %r1, 2, %r2;
  st.param.b32 [result], %r3;
  ret;
}"""
# A function with local and shared memory of its own, which also reads its caller's local memory by a generic address.
DEEPER = """
.func (.param .b32 result) through(.param .b64 place) {
  .local .align 4 .b8 own[8];
  .shared .align 4 .b8 common[128];
  .reg .b64 %rd<4>; .reg .b32 %r<6>;
  ld.param.u64 %rd1, [place];
  st.local.u32 [own], 1000;
  mov.u32 %r4, %tid.x;
  mad.lo.u32 %r5, %r4, 4, common;
  st.shared.u32 [%r5], 20000;
  ld.u32 %r1, [%rd1];
  ld.local.u32 %r2, [own];
  ld.shared.u32 %r3, [%r5];
  add.u32 %r1, %r1, %r2;
  add.u32 %r1, %r1, %r3;
  st.param.b32 [result], %r1;
  ret;
}"""
NESTED = two(
    "nested",
    """
  .local .align 4 .b8 mine[4];
  mad.lo.u32 %r5, %r0, 4, box;
  st.shared.u32 [%r5], 3;
  mov.u64 %rd3, mine;
  cvta.local.u64 %rd4, %rd3;
  st.local.u32 [mine], %r0;
  { .param .b64 param0; .param .b32 retval0;
    st.param.b64 [param0], %rd4;
    call.uni (retval0), through, (param0);
    ld.param.b32 %r1, [retval0];
  }
  ld.local.u32 %r2, [mine];
  ld.shared.u32 %r3, [%r5];
  add.u32 %r1, %r1, %r2;
  add.u32 %r1, %r1, %r3;
  st.global.u32 [%rd2], %r1;
""",
    ".shared .align 4 .b8 box[128];",
)
CALL = two(
    "calls",
    """
  { .param .b32 param0; .param .b32 param1; .param .b32 retval0;
    st.param.b32 [param0], %r0;
    st.param.b32 [param1+0], 5;
    call.uni (retval0), twice_plus, (param0, param1);
    ld.param.b32 %r1, [retval0];
  }
  st.global.u32 [%rd2], %r1;
""",
)
STRUCT = """
.visible .entry by_value(.param .align 8 .b8 by_value_0[24]) {
  .reg .b64 %rd<4>; .reg .b32 %r<4>;
  ld.param.u64 %rd1, [by_value_0];
  ld.param.u32 %r1, [by_value_0+8];
  ld.param.u64 %rd2, [by_value_0+16];
  ld.global.u32 %r2, [%rd2];
  add.u32 %r1, %r1, %r2;
  st.global.u32 [%rd1], %r1;
  ret;
}"""
REDUCE = two(
    "reduce",
    """
  mad.wide.u32 %rd3, %r0, 4, %rd0;
  ld.global.u32 %r1, [%rd3];
  shfl.sync.bfly.b32 %r2|%p1, %r1, 16, 0x1f, -1;
  add.u32 %r3, %r1, %r2;
  shfl.sync.up.b32 %r4|%p2, %r1, 1, 0x0, -1;
  @!%p2 mov.u32 %r4, 1000;
  shfl.sync.down.b32 %r5|%p3, %r1, 3, 0x1f, -1;
  @!%p3 mov.u32 %r5, 2000;
  shfl.sync.idx.b32 %r6, %r1, 5, 0x1c1f, -1;
  and.b32 %r7, %r1, 1;
  setp.ne.u32 %p4, %r7, 0;
  vote.sync.ballot.b32 %r8, %p4, -1;
  vote.sync.any.pred %p5, %p4, -1;
  vote.sync.all.pred %p6, !%p4, -1;
  selp.u32 %r9, 1, 0, %p5;
  selp.u32 %r10, 1, 0, %p6;
  and.b32 %r11, %r1, 3;
  match.any.sync.b32 %r12, %r11, -1;
  match.all.sync.b32 %r13|%p7, %r11, -1;
  redux.sync.add.u32 %r14, %r1, -1;
  redux.sync.max.s32 %r15, %r1, -1;
  redux.sync.xor.b32 %r16, %r1, -1;
  elect.sync %r17|%p8, -1;
  mul.wide.u32 %rd4, %r0, 52;
  add.u64 %rd5, %rd1, %rd4;
  st.global.u32 [%rd5], %r3;
  st.global.u32 [%rd5+4], %r4;
  st.global.u32 [%rd5+8], %r5;
  st.global.u32 [%rd5+12], %r6;
  st.global.u32 [%rd5+16], %r8;
  st.global.u32 [%rd5+20], %r9;
  st.global.u32 [%rd5+24], %r10;
  st.global.u32 [%rd5+28], %r12;
  st.global.u32 [%rd5+32], %r13;
  st.global.u32 [%rd5+36], %r14;
  st.global.u32 [%rd5+40], %r15;
  st.global.u32 [%rd5+44], %r16;
  st.global.u32 [%rd5+48], %r17;
""",
)
# Half a warp shuffles more often than the other: exchanges of different masks do not disturb each other.
DIVERGED = two(
    "diverged",
    """
  mov.u32 %r1, %r0;
  setp.lt.u32 %p1, %r0, 16;
  @!%p1 bra $rest;
  shfl.sync.bfly.b32 %r1, %r1, 1, 0x1f, 0xffff;
  shfl.sync.bfly.b32 %r1, %r1, 2, 0x1f, 0xffff;
  shfl.sync.bfly.b32 %r1, %r1, 4, 0x1f, 0xffff;
$rest:
  bar.warp.sync -1;
  shfl.sync.bfly.b32 %r1, %r1, 16, 0x1f, -1;
  st.global.u32 [%rd2], %r1;
""",
)
MATRIX = two(
    "matrix",
    """
  mad.wide.u32 %rd3, %r0, 16, %rd0;
  ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%rd3];
  mov.u32 %r5, tile;
  mad.lo.u32 %r6, %r0, 16, %r5;
  st.shared.v4.u32 [%r6], {%r1, %r2, %r3, %r4};
  bar.sync 0;
  ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r7, %r8, %r9, %r10}, [%r6];
  ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%r11, %r12}, [%r6];
  movmatrix.sync.aligned.m8n8.trans.b16 %r13, %r7;
  mul.wide.u32 %rd4, %r0, 28;
  add.u64 %rd5, %rd1, %rd4;
  st.global.u32 [%rd5], %r7;
  st.global.u32 [%rd5+4], %r8;
  st.global.u32 [%rd5+8], %r9;
  st.global.u32 [%rd5+12], %r10;
  st.global.u32 [%rd5+16], %r11;
  st.global.u32 [%rd5+20], %r12;
  st.global.u32 [%rd5+24], %r13;
""",
    ".shared .align 16 .b8 tile[512];",
)
# What ldmatrix took apart, stmatrix puts together again: the copy equals the tile, also transposed twice.
STMATRIX = two(
    "stmatrix",
    """
  mad.wide.u32 %rd3, %r0, 16, %rd0;
  mad.wide.u32 %rd4, %r0, 16, %rd1;
  ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%rd3];
  mov.u32 %r5, tile;
  mad.lo.u32 %r6, %r0, 16, %r5;
  st.shared.v4.u32 [%r6], {%r1, %r2, %r3, %r4};
  bar.sync 0;
  ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%r7, %r8, %r9, %r10}, [%r6];
  bar.sync 0;
  stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%r6], {%r8, %r7, %r10, %r9};
  bar.sync 0;
  ld.shared.v4.u32 {%r1, %r2, %r3, %r4}, [%r6];
  st.global.v4.u32 [%rd4], {%r1, %r2, %r3, %r4};
""",
    ".shared .align 16 .b8 tile[512];",
)
ATOMICS = two(
    "atomics",
    """
  mad.wide.u32 %rd3, %r0, 4, %rd0;
  ld.global.u32 %r1, [%rd3];
  red.global.add.u32 [%rd1], %r1;
  atom.global.gpu.relaxed.max.s32 %r2, [%rd1+4], %r1;
  atom.global.min.u32 %r2, [%rd1+8], %r1;
  red.relaxed.gpu.global.xor.b32 [%rd1+12], %r1;
  atom.global.inc.u32 %r2, [%rd1+16], 4;
  atom.global.dec.u32 %r2, [%rd1+20], 4;
  cvt.rn.f32.u32 %f1, %r1;
  red.global.add.f32 [%rd1+24], %f1;
  cvt.u64.u32 %rd4, %r1;
  red.global.add.u64 [%rd1+32], %rd4;
  cvt.rn.f16.f32 %h1, 0f3f800000;
  mov.b32 %r3, {%h1, %h1};
  red.global.add.noftz.f16x2 [%rd1+28], %r3;
  setp.ne.u32 %p1, %r0, 7;
  @%p1 bra $done;
  cvt.u16.u32 %h2, %r0;
  atom.global.cas.b16 %h3, [%rd1+40], 0, %h2;
  atom.global.exch.b32 %r4, [%rd1+44], %r0;
$done:
""",
)
COPIES = two(
    "copies",
    """
  mad.wide.u32 %rd3, %r0, 16, %rd0;
  mov.u32 %r1, room;
  mad.lo.u32 %r2, %r0, 16, %r1;
  cp.async.cg.shared.global [%r2], [%rd3], 16;
  cp.async.commit_group;
  cp.async.ca.shared.global [%r2+1024], [%rd3], 16, 8;
  cp.async.commit_group;
  ld.shared.u32 %r3, [%r2];
  cp.async.wait_group 1;
  ld.shared.u32 %r4, [%r2+4];
  ld.shared.u32 %r5, [%r2+1024];
  cp.async.wait_all;
  ld.shared.v4.u32 {%r6, %r7, %r8, %r9}, [%r2+1024];
  mad.wide.u32 %rd4, %r0, 28, %rd1;
  st.global.u32 [%rd4], %r3;
  st.global.u32 [%rd4+4], %r4;
  st.global.u32 [%rd4+8], %r5;
  st.global.u32 [%rd4+12], %r6;
  st.global.u32 [%rd4+16], %r7;
  st.global.u32 [%rd4+20], %r8;
  st.global.u32 [%rd4+24], %r9;
""",
    ".shared .align 16 .b8 room[2048];",
)
NAMED = two(
    "named",
    """
  mov.u32 %r1, box;
  setp.ge.u32 %p1, %r0, 32;
  @%p1 bra $take;
  mad.lo.u32 %r2, %r0, 4, %r1;
  st.shared.u32 [%r2], %r0;
  bar.arrive 3, 64;
  bra $end;
$take:
  bar.sync 3, 64;
  sub.u32 %r3, 63, %r0;
  mad.lo.u32 %r2, %r3, 4, %r1;
  ld.shared.u32 %r4, [%r2];
  st.global.u32 [%rd2+-128], %r4;
$end:
  and.b32 %r5, %r0, 3;
  setp.eq.u32 %p2, %r5, 0;
  bar.red.popc.u32 %r6, 0, %p2;
  bar.red.and.pred %p3, 0, %p2;
  bar.red.or.pred %p4, 0, %p2;
  @%p3 add.u32 %r6, %r6, 100;
  @%p4 add.u32 %r6, %r6, 200;
  @%p1 st.global.u32 [%rd2], %r6;
""",
    ".shared .align 4 .b8 box[128];",
)
CLUSTER = two(
    "ring",
    """
  mov.u32 %r1, box;
  mov.u32 %r2, %cluster_ctarank;
  add.u32 %r3, %r2, 1;
  rem.u32 %r3, %r3, %cluster_nctarank;
  mapa.shared::cluster.u32 %r4, %r1, %r3;
  mov.u32 %r5, %ctaid.x;
  mad.lo.u32 %r6, %r5, 32, %r0;
  mad.lo.u32 %r7, %r0, 4, %r4;
  mov.u32 %r8, gate;
  setp.ne.u32 %p1, %r0, 0;
  @!%p1 mbarrier.init.shared::cta.b64 [%r8], 32;
  barrier.cluster.arrive.release.aligned;
  barrier.cluster.wait.acquire.aligned;
  st.shared::cluster.u32 [%r7], %r6;
  mapa.shared::cluster.u32 %r9, %r8, %r3;
  mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r9];
$wait:
  mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p2, [%r8], 0;
  @!%p2 bra $wait;
  mad.lo.u32 %r10, %r0, 4, %r1;
  ld.shared.u32 %r11, [%r10];
  mad.wide.u32 %rd3, %r6, 4, %rd1;
  st.global.u32 [%rd3], %r11;
  barrier.cluster.arrive;
  barrier.cluster.wait;
""",
    ".shared .align 4 .b8 box[128]; .shared .align 8 .b8 gate[8];",
)


def message(name: str, publish: str, poll: str, before: str = "", after: str = "") -> str:
    """Block 0 writes 77 and raises a flag; block 1 polls the flag, reads and stores what it saw."""
    return two(
        name,
        f"""
  mov.u32 %r1, %ctaid.x;
  setp.ne.u32 %p1, %r1, 0;
  @%p1 bra $reader;
  st.global.u32 [%rd0], 77;
  {before}
  {publish};
  bra $end;
$reader:
  {poll};
  setp.eq.u32 %p2, %r2, 0;
  @%p2 bra $reader;
  {after}
  ld.global.u32 %r3, [%rd0];
  st.global.u32 [%rd1], %r3;
$end:
""",
    )


RELEASE, RELAXED = "st.release.gpu.global.u32 [%rd0+4], 1", "st.relaxed.gpu.global.u32 [%rd0+4], 1"
ACQUIRE, WEAK_POLL = "ld.acquire.gpu.global.u32 %r2, [%rd0+4]", "ld.relaxed.gpu.global.u32 %r2, [%rd0+4]"
MESSAGES = {
    "ordered": message("ordered", RELEASE, ACQUIRE),
    "atomics": message("atomics", "atom.release.gpu.global.exch.b32 %r4, [%rd0+4], 1",
        "atom.acquire.gpu.global.add.u32 %r2, [%rd0+4], 0"),
    "fences": message("fences", RELAXED, WEAK_POLL, "fence.acq_rel.gpu;", "membar.gl;"),
    "volatile": message("volatile", "st.volatile.global.u32 [%rd0+4], 1", "ld.volatile.global.u32 %r2, [%rd0+4]",
        "membar.gl;", "membar.gl;"),
    "no_release": message("no_release", RELAXED, ACQUIRE),
    "no_acquire": message("no_acquire", RELEASE, WEAK_POLL),
    "no_fence_before": message("no_fence_before", RELAXED, WEAK_POLL, "", "membar.gl;"),
    "no_fence_after": message("no_fence_after", RELAXED, WEAK_POLL, "membar.gl;", ""),
}  # fmt: skip
# A fence covers what came before it; what is written after it is not published by a relaxed store.
MESSAGES["fence_too_early"] = MESSAGES["fences"].replace("fences", "fence_too_early").replace(
    "  st.global.u32 [%rd0], 77;\n  fence.acq_rel.gpu;", "  fence.acq_rel.gpu;\n  st.global.u32 [%rd0], 77;"
)  # fmt: skip
# The fence before counts, also after an earlier one.
MESSAGES["fences_again"] = (
    MESSAGES["fences"]
    .replace("fences", "fences_again")
    .replace("  st.global.u32 [%rd0], 77;", "  membar.gl;\n  st.global.u32 [%rd0], 77;")
)

TABLE = ".const .align 4 .b32 table[4] = {10, 0x20, -1, 7};\n.global .align 2 .u16 pair[2] = {1, 500};\n"
KERNELS = [
    VECTORS,
    NARROW,
    LOCAL,
    CONSTANTS,
    BRANCHES,
    CALL,
    STRUCT,
    REDUCE,
    DIVERGED,
    MATRIX,
    STMATRIX,
    ATOMICS,
    COPIES,
    NAMED,
    CLUSTER,
]


@pytest.fixture(scope="module")
def program() -> Program:
    return Program(module(FUNCTION, *KERNELS, head=TABLE))


@pytest.fixture(scope="module")
def messages() -> Program:
    return Program(module(*MESSAGES.values()), "thread")


def test_vectors_and_narrow_loads(program: Program) -> None:
    x, y = np.arange(128, dtype=np.uint32), np.zeros(128, np.uint32)
    program.launch("vectors", block=(32,), args=[x, y])
    assert np.array_equal(y.reshape(32, 4), x.reshape(32, 4)[:, ::-1])
    small, out = np.arange(96, 224, dtype=np.uint8), np.zeros((128, 2), np.uint32)
    program.launch("narrow", block=(128,), args=[small, out])
    assert np.array_equal(out[:, 0].view(np.int32), small.view(np.int8)) and np.array_equal(out[:, 1], small)


def test_local_const_branches_calls(program: Program) -> None:
    out, none = np.zeros(32, np.uint32), np.zeros(1, np.uint32)
    for mode in ("plain", "address"):
        Program(module(DEEPER, NESTED), mode).launch("nested", block=(32,), args=[none, out])  # type: ignore[arg-type]
        assert np.array_equal(out, 21003 + 2 * np.arange(32))
    program.launch("scratch", block=(32,), args=[none, out], seed=1)
    assert np.array_equal(out, np.arange(32) + 7)
    program.launch("constants", block=(4,), args=[none, out])
    assert out[:4].tolist() == [10 + 32 + 500, 64 + 500, 31 + 500, 39 + 500]
    program.launch("branches", block=(32,), args=[none, out])
    climb = [next(k * n for k in range(1, 60) if k * n >= 50) if n else 0 for n in range(32)]
    assert out.tolist() == [(100, climb[n], 35)[n % 3] for n in range(32)]
    program.launch("calls", block=(32,), args=[none, out])
    assert np.array_equal(out, 2 * np.arange(32) + 5)


def test_structs_by_value(program: Program) -> None:
    out, source = np.zeros(1, np.uint32), np.array([40], np.uint32)
    program.launch("by_value", args=[Struct(out, np.int32(2), source)])
    assert out[0] == 42
    raw = out.ctypes.data.to_bytes(8, "little") + (3).to_bytes(8, "little") + source.ctypes.data.to_bytes(8, "little")
    program.launch("by_value", args=[raw], buffers=[out, source])
    assert out[0] == 43
    with pytest.raises(EmulationError, match="out of bounds"):
        program.launch("by_value", args=[raw])


@pytest.mark.parametrize("seed", SEEDS)
def test_warps(program: Program, seed: int) -> None:
    x = np.random.default_rng(seed).integers(0, 1 << 30, 64).astype(np.uint32)
    out = np.zeros((64, 13), np.uint32)
    program.launch("reduce", block=(64,), args=[x, out], seed=seed)
    for warp in (0, 1):
        v, got = x[32 * warp : 32 * warp + 32], out[32 * warp : 32 * warp + 32]
        lane = np.arange(32)
        want = [
            v + v[lane ^ 16],
            np.where(lane > 0, v[lane - 1], 1000),
            np.where(lane < 29, v[(lane + 3) % 32], 2000),
            v[(lane & 28) | (5 & 3)],
            [sum(int(b & 1) << n for n, b in enumerate(v))] * 32,
            [int((v & 1).any())] * 32,
            [int((v & 1 == 0).all())] * 32,
            [sum(int(b & 3 == a & 3) << n for n, b in enumerate(v)) for a in v],
            [0xFFFFFFFF if (v & 3 == v[0] & 3).all() else 0] * 32,
            [int(v.sum(dtype=np.uint32))] * 32,
            [int(v.max())] * 32,
            [int(np.bitwise_xor.reduce(v))] * 32,
            [0] * 32,
        ]
        for n, column in enumerate(want):
            assert np.array_equal(got[:, n], np.array(column, np.uint32)), n


def test_exchanges_of_a_part_of_a_warp(program: Program) -> None:
    for seed in SEEDS:
        out = np.zeros(32, np.uint32)
        program.launch("diverged", block=(32,), args=[out, out], seed=seed)
        low = np.arange(16) ^ 7
        assert np.array_equal(out, np.concatenate([np.arange(16, 32), low]))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_matrices(program: Program, seed: int) -> None:
    tile = np.random.default_rng(seed).integers(0, 1 << 16, (4, 8, 8)).astype(np.uint16)
    out = np.zeros((32, 7, 2), np.uint16)
    program.launch("matrix", block=(32,), args=[tile, out], seed=seed % 3)
    lane = np.arange(32)
    row, column = lane // 4, lane % 4 * 2
    for j in range(4):
        assert np.array_equal(out[:, j], np.stack([tile[j, row, column], tile[j, row, column + 1]], 1))
    for j in range(2):
        assert np.array_equal(out[:, 4 + j], np.stack([tile[j, column, row], tile[j, column + 1, row]], 1))
    assert np.array_equal(out[:, 6], np.stack([tile[0, column, row], tile[0, column + 1, row]], 1))
    copy = np.zeros_like(tile)
    program.launch("stmatrix", block=(32,), args=[tile, copy])
    assert np.array_equal(copy, tile[[1, 0, 3, 2]])


def test_atomics(program: Program) -> None:
    x = np.random.default_rng(1).integers(0, 1000, 96).astype(np.uint32)
    out = np.zeros(12, np.uint32)
    out[2] = 0xFFFFFFFF
    program.launch("atomics", block=(96,), args=[x, out], seed=5)
    assert out[0] == x.sum() and out[1] == x.max() and out[2] == x.min() and out[3] == np.bitwise_xor.reduce(x)
    assert out[4] == 96 % 5 and out[5] == (5 - 96 % 5) % 5
    assert out[6:7].view(np.float32)[0] == x.sum() and out[8:10].view(np.uint64)[0] == x.sum()
    assert np.array_equal(out[7:8].view(np.float16), [96, 96]) and out[10] == 7 and out[11] == 7


def test_copies_land_when_they_are_waited_for(program: Program) -> None:
    x = np.arange(256, dtype=np.uint32)
    out = np.zeros((64, 7), np.uint32)
    program.launch("copies", block=(64,), args=[x, out])
    rows = x.reshape(64, 4)
    assert (out[:, 0] == 0xFFFFFFFF).all() and (out[:, 2] == 0xFFFFFFFF).all()
    assert np.array_equal(out[:, 1], rows[:, 1]) and np.array_equal(out[:, 3:5], rows[:, :2]) and not out[:, 5:].any()


@pytest.mark.parametrize("seed", SEEDS)
def test_named_barriers_and_reductions(program: Program, seed: int) -> None:
    out = np.zeros(64, np.uint32)
    program.launch("named", block=(64,), args=[out, out], seed=seed)
    assert np.array_equal(out[:32], np.arange(32)[::-1]) and (out[32:] == 16 + 200).all()


@pytest.mark.parametrize("mode", ["plain", "thread", "address"])
def test_clusters_reach_into_each_other(mode: str) -> None:
    program = Program(module(CLUSTER), mode)
    for seed in SEEDS:
        out = np.zeros(8 * 32, np.uint32)
        program.launch("ring", grid=(8,), block=(32,), args=[out, out], cluster=4, seed=seed)
        want = np.arange(256).reshape(2, 4, 32)[:, [3, 0, 1, 2]].reshape(-1)
        assert np.array_equal(out, want)


@pytest.mark.parametrize("name", MESSAGES)
def test_messages(messages: Program, name: str) -> None:
    """Exactly the pairs that order the data pass ThreadSanitizer; the value is right in all of them."""
    right = name in ("ordered", "atomics", "fences", "volatile", "fences_again")
    found = False
    for seed in range(4):
        box, out = np.zeros(2, np.uint32), np.zeros(1, np.uint32)
        try:
            messages.launch(name, grid=(2,), args=[box, out], seed=seed)
            assert out[0] == 77
        except RaceError as error:
            found = True
            assert "kernel.ptx" in error.report and error.line
    assert found != right
