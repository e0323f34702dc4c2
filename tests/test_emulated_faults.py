"""What is wrong with a kernel is said in a sentence, in every mode, and never ends the process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from ptx_text import kernel, module, need_compiler

from wavenet_fast.emulated import BoundsError, EmulationError, Program, RaceError
from wavenet_fast.emulated.build import cache_directory, compiler

need_compiler()

THREAD = "  mov.u32 %r0, %tid.x;\n"


def alone(body: str, registers: str = "") -> str:
    """A module of one kernel `k` that takes a pointer, in %rd0."""
    return module(kernel("k", ["u64"], THREAD + "  ld.param.u64 %rd0, [k_0];\n" + body, registers))


def fails(
    body: str, match: str, block: int = 64, registers: str = "", seed: int = 0, **launch: object
) -> EmulationError:
    array = np.zeros(64, np.uint32)
    with pytest.raises(EmulationError, match=match) as caught:
        Program(alone(body, registers)).launch("k", block=(block,), args=[array], seed=seed, **launch)  # type: ignore[arg-type]
    assert "the line is" in str(caught.value) or "deadlock" in str(caught.value)
    return caught.value


BOX = ".shared .align 4 .b8 box[64];"
LINE_OF_BODY = 11  # the body's first line, in the modules of `alone`


def test_line_numbers() -> None:
    error = fails("  st.global.u32 [%rd0+256], 1;", r"line 11, block \(0,0,0\), thread \(0,0,0\)")
    assert error.line == LINE_OF_BODY and "st.global.u32 [%rd0+256], 1;" in str(error)


@pytest.mark.parametrize(
    ("body", "match"),
    [
        ("ld.global.u32 %r1, [%rd0+-4];", r"load of 4 bytes out of bounds: byte -4 of argument 0, which has 256"),
        ("ld.global.v4.u32 {%r1,%r2,%r3,%r4}, [%rd0+248];", r"misaligned load|load of 16 bytes out of bounds"),
        ("ld.global.u32 %r1, [%rd0+2];", r"misaligned load of 4 bytes: byte 2 of argument 0"),
        ("mov.u64 %rd1, 0; st.global.u32 [%rd1], 1;", r"store of 4 bytes out of bounds: the null pointer"),
        ("mov.u64 %rd1, 0x123456; red.global.add.u32 [%rd1], 1;", "far from every argument"),
        ("st.shared.u32 [box+64], 1;", r"byte 64 of shared memory, which has 64"),
        ("st.shared.u16 [box+1], 1;", r"misaligned access of 2 bytes: byte 1 of shared memory"),
        (".local .b8 room[8]; mov.u64 %rd1, room; ld.local.u32 %r1, [%rd1+8];", r"byte 8 of local memory, which has 8"),
        ("trap;", "trap"),
        ("bar.sync 16;", r"barrier 16 does not exist"),
        ("bar.sync 1, 96;", r"barrier 1 waits for 96 threads, and a block has 64"),
        ("shfl.sync.idx.b32 %r1, %r0, 9, 0x1f, 0xff; ", r"is not in its (own )?mask 0x000000ff"),
        ("mov.u32 %r1, box; mbarrier.arrive.shared.b64 _, [%r1];", "the mbarrier has not been initialised"),
        ("barrier.cluster.wait;", r"barrier\.cluster\.wait without a barrier\.cluster\.arrive"),
    ],
)
def test_faults(body: str, match: str) -> None:
    fails(body, match, registers=BOX)


def test_read_only_arguments() -> None:
    array = np.zeros(64, np.uint32)
    array.flags.writeable = False
    with pytest.raises(EmulationError, match="store of 4 bytes to read-only memory: byte 0 of argument 0"):
        Program(alone("  st.global.u32 [%rd0], 1;")).launch("k", args=[array])


def test_deadlock_says_who_waits_where() -> None:
    body = """
  setp.lt.u32 %p1, %r0, 32;
  @%p1 bra $other;
  bar.sync 1;
  bra $end;
$other:
  bar.sync 2;
$end:"""
    error = fails(body, "deadlock", block=64)
    assert re.search(r"line 14, a block barrier: block 0, 32 threads \(32–63\)", str(error))
    assert re.search(r"line 17, a block barrier: block 0, 32 threads \(0–31\)", str(error))


@pytest.mark.parametrize("mode", ["plain", "thread", "address"])
def test_livelock(mode: str) -> None:
    text = alone("$spin:\n  ld.acquire.gpu.global.u32 %r1, [%rd0];\n  setp.eq.u32 %p1, %r1, 0;\n  @%p1 bra $spin;")
    with pytest.raises(EmulationError, match=r"livelock(.|\n)*a polling loop: block 0, 64 threads \(0–63\)"):
        Program(text, mode).launch("k", block=(64,), args=[np.zeros(1, np.uint32)], max_spins=2000)  # type: ignore[arg-type]


def test_barriers_of_threads_that_part() -> None:
    body = """
  setp.eq.u32 %p1, %r0, 5;
  @%p1 bra $other;
  bar.sync 0;
  bra $end;
$other:
  bar.sync 0;
$end:"""
    fails(body, r"divergent barrier: .* other lanes of its warp came at line \d+")
    fails(
        "  setp.eq.u32 %p1, %r0, 5;\n  @%p1 exit;\n  bar.sync 0;", "have exited|exited while others wait|thread exited"
    )
    fails("  setp.eq.u32 %p1, %r0, 63;\n  @!%p1 bar.sync 0;", "and the others have exited")
    fails("  setp.ge.u32 %p1, %r0, 32;\n  selp.u32 %r1, 32, 64, %p1;\n  bar.sync 1, %r1;", "is used with")


def test_endless_loops_end_with_the_time() -> None:
    with pytest.raises(EmulationError, match=r"ended after 0\.2 s(.|\n)*a loop"):
        Program(alone("$here:\n  bra $here;")).launch("k", args=[np.zeros(1, np.uint32)], timeout=0.2)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("wgmma.fence.sync.aligned;", r"line 11: the instruction `wgmma\.fence\.sync\.aligned` is not emulated"),
        ("frobnicate.b32 %r1, %r2;", "line 11: the instruction `frobnicate.b32` is not emulated"),
        ("add.shiny.u32 %r1, %r0, 1;", r"line 11: the modifier `\.shiny` of `add\.shiny\.u32` is not emulated"),
        ("ld.global.L9::keep.u32 %r1, [%rd0];", r"line 11: the modifier `\.L9::keep`"),
        ("add.u32 %r1, %r0, %r99;", r"line 11: .*`%r99`"),
        ("bra $nowhere;", r"line 11: the label `\$nowhere` does not exist"),
        (
            "mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%d1,%d2},{%d3},{%d4},{%d1,%d2};",
            "line 11: .* is not emulated",
        ),
        ("call.uni (%r1), vprintf, (%rd0, %rd1);", "line 11: the function `vprintf`"),
        (".reg .b128 %q;", "line 11: registers of type .b128"),
        ("add.u32 %r1;", "line 11: the instruction is not understood"),
    ],
)
def test_what_is_not_known_is_named(text: str, match: str) -> None:
    with pytest.raises(EmulationError, match=match) as caught:
        Program(alone(f"  {text}"))
    assert caught.value.line == LINE_OF_BODY


@pytest.mark.parametrize(
    "text", ["", "hello", ".version 8.0\n.target sm_90\n.address_size 64\n.visible .entry k() {", "{" * 40]
)
def test_what_is_no_ptx(text: str) -> None:
    with pytest.raises(EmulationError):
        Program(text)


def test_arguments_are_checked() -> None:
    program = Program(module(kernel("k", ["u64", "u32", "f32"], "")))
    array = np.zeros((4, 4), np.float32)
    launch = lambda *args, **more: program.launch("k", args=args, **more)  # noqa: E731
    launch(array, 3, 1.5)
    launch(None, -1, 2)
    for args, match in [
        ((array, 3), r"2 arguments were given; the kernel takes 3: \.u64 k_0, \.u32 k_1, \.f32 k_2"),
        ((array[:, 1:], 3, 0.0), "argument 0 is not contiguous"),
        ((array, array, 0.0), r"argument 1 \(\.u32 k_1\) is no pointer"),
        ((array, 1 << 32, 0.0), "4294967296 does not fit"),
        ((array, "x", 0.0), "cannot be made from str"),
        ((array, b"123", 0.0), "has 4 bytes, and 3 were given"),
    ]:
        with pytest.raises(EmulationError, match=match):
            launch(*args)
    for more, match in [
        ({"block": (2048,)}, "possible: up to 1024"),
        ({"grid": (0,)}, "a size of grid is 0; possible: whole numbers from 1"),
        ({"grid": (3,), "cluster": 2}, "do not divide"),
        ({"grid": (1 << 20,), "block": (1024,)}, "threads at once"),
    ]:
        with pytest.raises(EmulationError, match=match):
            launch(array, 1, 1.0, **more)
    with pytest.raises(EmulationError, match="there is no kernel 'other'; there is: k"):
        program.launch("other")
    with pytest.raises(EmulationError, match="mode 'fast' does not exist"):
        Program(module(kernel("k", [], "")), "fast")  # type: ignore[arg-type]


EXCHANGE = """
  mov.u32 %r1, box;
  mad.lo.u32 %r2, %r0, 4, %r1;
  add.u32 %r4, %r0, 1000;
  st.shared.u32 [%r2], %r4;
  {barrier}
  xor.b32 %r3, %r0, 33;
  mad.lo.u32 %r2, %r3, 4, %r1;
  ld.shared.u32 %r3, [%r2];
  mad.wide.u32 %rd1, %r0, 4, %rd0;
  st.global.u32 [%rd1], %r3;"""
BIG_BOX = ".shared .align 4 .b8 box[256];"


def test_a_missing_barrier_is_a_race() -> None:
    for seed in range(3):
        out = np.zeros(64, np.uint32)
        Program(alone(EXCHANGE.format(barrier="bar.sync 0;"), BIG_BOX), "thread").launch(
            "k", block=(64,), args=[out], seed=seed
        )
        assert np.array_equal(out, 1000 + (np.arange(64) ^ 33))
    with pytest.raises(
        RaceError, match=r"nothing orders the .* in line \d+ \(`(ld|st)\.shared\.u32 .*by block 0 thread \d+"
    ) as caught:
        Program(alone(EXCHANGE.format(barrier=""), BIG_BOX), "thread").launch(
            "k", block=(64,), args=[np.zeros(64, np.uint32)]
        )
    assert "kernel.ptx" in caught.value.report


def test_storing_what_is_there_is_no_race() -> None:
    text = alone("  st.global.u32 [%rd0], 7;")
    Program(text, "thread").launch("k", block=(64,), args=[np.zeros(1, np.uint32)])
    with pytest.raises(RaceError):
        Program(alone("  st.global.u32 [%rd0], %r0;"), "thread").launch("k", block=(64,), args=[np.zeros(1, np.uint32)])


def test_a_short_array_is_found_by_both() -> None:
    text = alone(EXCHANGE.format(barrier="bar.sync 0;"), BIG_BOX)
    for size in (63, 61, 1):
        with pytest.raises(EmulationError, match=rf"out of bounds: byte \d+ of argument 0, which has {4 * size}"):
            Program(text).launch("k", block=(64,), args=[np.zeros(size, np.uint32)])
        with pytest.raises(
            BoundsError, match=r"in line \d+ \(`st\.global\.u32 \[%rd1\], %r3;`\): heap-buffer-overflow"
        ):
            Program(text, "address").launch("k", block=(64,), args=[np.zeros(size, np.uint32)])


def test_one_shared_variable_into_the_next() -> None:
    """Only AddressSanitizer sees it: both lie in the block's shared memory."""
    boxes = ".shared .align 4 .b8 box[64];\n.shared .align 4 .b8 other[64];"
    inside = "  mad.lo.u32 %r1, %r0, 4, box;\n  st.shared.u32 [%r1], %r0;\n  ld.shared.u32 %r2, [other];"
    Program(alone(inside, boxes), "address").launch("k", block=(16,), args=[None])
    Program(alone(inside, boxes)).launch("k", block=(17,), args=[None])
    with pytest.raises(BoundsError, match=r"in line \d+ \(`st\.shared\.u32 \[%r1\], %r0;`\)"):
        Program(alone(inside, boxes), "address").launch("k", block=(17,), args=[None])


def test_uninitialised_memory_is_nan() -> None:
    out = np.zeros(64, np.float32)
    Program(
        alone("  ld.shared.f32 %f1, [box];\n  st.global.f32 [%rd0], %f1;\n  st.global.f32 [%rd0+4], %f2;", BOX)
    ).launch("k", args=[out])
    assert np.isnan(out[:2]).all() and not out[2:].any()


def test_memory_between_modes() -> None:
    """Two views of one array stay one in the child, and a null pointer stays null."""
    body = """
  ld.param.u64 %rd1, [k_1];
  ld.param.u64 %rd2, [k_2];
  st.global.u32 [%rd0], 5;
  ld.global.u32 %r1, [%rd1+12];
  setp.eq.u64 %p1, %rd2, 0;
  selp.u32 %r2, 100, 0, %p1;
  add.u32 %r1, %r1, %r2;
  st.global.u32 [%rd0+4], %r1;"""
    text = module(kernel("k", ["u64"] * 3, "  ld.param.u64 %rd0, [k_0];" + body))
    for mode in ("plain", "thread", "address"):
        whole = np.zeros(16, np.uint32)
        Program(text, mode).launch("k", args=[whole[3:], whole[:8], None])  # type: ignore[arg-type]
        assert whole[3] == 5 and whole[4] == 105, mode


def test_counts() -> None:
    body = "$loop:\n  add.u32 %r1, %r1, 1;\n  setp.lt.u32 %p1, %r1, %r0;\n  @%p1 bra $loop;\n  bar.sync 0;"
    text = alone("  mov.u32 %r1, 0;\n" + body)
    for mode in ("plain", "thread"):
        stats = Program(text, mode, count=True).launch("k", block=(32,), args=[None])  # type: ignore[arg-type]
        rounds = np.maximum(np.arange(32), 1)
        assert np.array_equal(stats.per_thread["add.u32"], rounds) and stats.instructions["add.u32"] == rounds.sum()
        assert stats.instructions["bar.sync"] == 32 and stats.barriers == 32
    assert not Program(text).launch("k", block=(32,), args=[None]).instructions


def test_two_programs_and_two_threads_at_once() -> None:
    """Programs keep their machines apart; launches of one program take turns."""
    programs = [
        Program(alone(f"  mad.wide.u32 %rd1, %r0, 4, %rd0;\n  add.u32 %r1, %r0, {n};\n  st.global.u32 [%rd1], %r1;"))
        for n in (1, 2)
    ]
    wrong: list[int] = []

    def work(n: int) -> None:
        for seed in range(20):
            out = np.zeros(64, np.uint32)
            programs[n % 2].launch("k", block=(64,), args=[out], seed=seed)
            if not np.array_equal(out, np.arange(64) + 1 + n % 2):
                wrong.append(n)

    workers = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong
    with pytest.raises(EmulationError):
        Program(alone("  trap;")).launch("k", args=[None])
    out = np.zeros(64, np.uint32)
    programs[0].launch("k", block=(64,), args=[out])
    assert np.array_equal(out, np.arange(64) + 1)


def test_ctrl_c_ends_a_launch() -> None:
    """A child whose kernel never ends gets SIGINT while it runs, and ends with KeyboardInterrupt."""
    text = alone("$here:\n  st.global.u32 [%rd0], 1;\n  bra $here;")
    script = f"""
import numpy as np
from wavenet_fast.emulated import Program
from wavenet_fast.emulated import native
program = Program({text!r})
launch = native.Library.launch
def announced(self, request, stop):
    told = []
    return launch(self, request, lambda: bool(told or told.append(print("running", flush=True))) and stop())
native.Library.launch = announced
try:
    program.launch("k", block=(32,), args=[np.zeros(1, np.uint32)])
except KeyboardInterrupt:
    print("interrupted")
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        assert child.stdout.readline() == "running\n"
        child.send_signal(signal.SIGINT)
        rest = child.stdout.read()
    assert rest.endswith("interrupted\n")


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(EmulationError, match=r"needs a C\+\+ compiler, and none of g\+\+"):
        compiler()
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(EmulationError, match="CXX is `no-such-compiler`, which is not there"):
        Program(alone(""))


def test_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A second program of the same text compiles nothing; the cache lies where XDG_CACHE_HOME says."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory().is_relative_to(tmp_path)
    first = Program(alone("  mov.u32 %r1, 4242;"))
    assert first.path.is_relative_to(tmp_path)
    before = {path: path.stat().st_ino for path in cache_directory().iterdir()}
    assert Program(alone("  mov.u32 %r1, 4242;")).path == first.path
    assert {path: path.stat().st_ino for path in cache_directory().iterdir()} == before
    os.chmod(cache_directory(), 0o700)


def test_importing_needs_no_torch() -> None:
    code = "import sys, wavenet_fast.emulated; assert not {'torch', 'triton'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
