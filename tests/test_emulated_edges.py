"""Parameters, arguments, files and polls at the edges of what is allowed: sentences, and no false alarm."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from ptx_text import kernel, module, need_compiler

from wavenet_fast.emulated import EmulationError, Program, Struct
from wavenet_fast.emulated import build as builder

need_compiler()


def text_of(body: str, head: str = "", kinds: tuple[str, ...] = ("u64",)) -> str:
    """A module of one kernel `k` that takes a pointer, in %rd0; %r0 is %tid.x. Its body begins on line 11."""
    start = "  mov.u32 %r0, %tid.x;\n  ld.param.u64 %rd0, [k_0];\n"
    return module(kernel("k", kinds, start + body), head=head)


# ---- parameters

TWO = """.func f(.param .b32 n, .param .b64 m)
{
  .reg .b64 %rd<3>;
  ld.param.b64 %rd1, [m];
  ret;
}"""


@pytest.mark.parametrize(
    ("body", "match"),
    [
        ("ld.param.u32 %r1, [k_0+400];", r"bytes 400 … 403 of `k_0`, which has 8"),
        ("ld.param.u32 %r1, [k_0+6];", r"bytes 6 … 9 of `k_0`"),
        ("ld.param.u32 %r1, [k_0+-4];", r"bytes -4 … -1 of `k_0`"),
        ("{ .param .b32 q; st.param.b64 [q], %rd0; }", r"bytes 0 … 7 of `q`, which has 4"),
        ("{ .param .b32 q; call.uni f, (q); }", "1 results and parameters; `f` has 2"),
        ("{ .param .b32 q; call.uni f, (q, q); }", "`q` is no parameter of 8 bytes"),
    ],
)
def test_parameters_have_bounds(body: str, match: str) -> None:
    head = TWO if "call" in body else ""
    with pytest.raises(EmulationError, match=match) as caught:
        Program(text_of(f"  {body}", head))
    assert caught.value.line == 11 + head.count("\n")


def test_parameters_that_are_reached_by_a_register() -> None:
    body = "  mov.b64 %rd1, k_1;\n  ld.param.u32 %r1, [%rd1+{at}];\n  st.global.u32 [%rd0], %r1;"
    out = np.zeros(1, np.uint32)
    Program(text_of(body.format(at=4), kinds=("u64", "u64"))).launch("k", args=[out, (7 << 32) + 1])
    assert out[0] == 7
    for at in (-4, 8, 5):
        with pytest.raises(EmulationError, match="access of 4 bytes out of bounds of every parameter"):
            Program(text_of(body.format(at=at), kinds=("u64", "u64"))).launch("k", args=[out, 1])


@pytest.mark.parametrize(
    ("kind", "value", "match"),
    [
        ("u64", np.array([object()], dtype=object), "array of Python objects"),
        ("f32", 1e300, "does not fit"),
        ("f32", np.int32(1), "is a real number, and int32 was given"),
        ("u64", Struct(1 << 40), "does not fit"),
    ],
)
def test_arguments_that_do_not_fit(kind: str, value: object, match: str) -> None:
    with pytest.raises(EmulationError, match=match):
        Program(text_of("", kinds=("u64", kind))).launch("k", args=[None, value])


@pytest.mark.parametrize("mode", ["plain", "thread", "address"])
def test_read_only_memory_in_every_mode(mode: str) -> None:
    array = np.zeros(4, np.uint32)
    array.flags.writeable = False
    program = Program(text_of("  st.global.u32 [%rd0+4], 1;"), mode)  # type: ignore[arg-type]
    with pytest.raises(EmulationError, match="store of 4 bytes to read-only memory"):
        program.launch("k", args=[array])


# ---- what is declared twice or cannot be


@pytest.mark.parametrize(
    ("body", "match"),
    [
        ("$here:\n$here:\n  bra $here;", r"^line 12: the label `\$here` is there already"),
        ("  .reg .b64 %r1;", r"^line 11: the register `%r1` is there already"),
        ("  .shared .align 0 .b8 box[4];", r"^line 11: \.align 0; possible: powers of two"),
        ("  .shared .align 3 .b8 box[4];", r"^line 11: \.align 3; possible: powers of two"),
    ],
)
def test_declarations(body: str, match: str) -> None:
    with pytest.raises(EmulationError, match=match):
        Program(text_of(body))


def test_two_kernels_of_one_name() -> None:
    one = kernel("k", ["u64"], "")
    with pytest.raises(EmulationError, match="`k` is there already, on line 6"):
        Program(module(one, one))


def test_what_is_no_text() -> None:
    for wrong in (b"x", None):
        with pytest.raises(EmulationError, match="PTX is text"):
            Program(wrong)  # type: ignore[arg-type]


# ---- polls


def test_atomics_that_change_nothing_are_no_polls() -> None:
    body = """
  mov.u32 %r1, 0;
$loop:
  red.global.max.u32 [%rd0], 0;
  add.u32 %r1, %r1, 1;
  setp.lt.u32 %p1, %r1, 30;
  @%p1 bra $loop;"""
    Program(text_of(body)).launch("k", block=(64,), args=[np.zeros(1, np.uint32)], max_spins=500)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_producer_may_take_its_time(seed: int) -> None:
    """Others wait while one block counts to 100 000: that is no livelock, and costs no turns."""
    body = """
  mov.u32 %r1, %ctaid.x;
  setp.eq.u32 %p1, %r1, 0;
  @%p1 bra $wait;
  mov.u32 %r2, 0;
$count:
  add.u32 %r2, %r2, 1;
  setp.lt.u32 %p2, %r2, 100000;
  @%p2 bra $count;
  st.release.gpu.global.u32 [%rd0], 1;
  bra $end;
$wait:
  ld.acquire.gpu.global.u32 %r4, [%rd0];
  setp.eq.u32 %p3, %r4, 0;
  @%p3 bra $wait;
$end:"""
    stats = Program(text_of(body)).launch(
        "k", grid=(2,), block=(32,), args=[np.zeros(1, np.uint32)], seed=seed, max_spins=600
    )
    assert stats.spins <= 2 * 32 and not stats.stall


def test_two_flags_that_never_come() -> None:
    body = """
$wait:
  ld.relaxed.gpu.global.u32 %r1, [%rd0];
  ld.relaxed.gpu.global.u32 %r2, [%rd0+32];
  or.b32 %r3, %r1, %r2;
  setp.eq.u32 %p1, %r3, 0;
  @%p1 bra $wait;"""
    for seed in (0, 1):
        with pytest.raises(EmulationError, match=r"livelock.*max_spins allows 1000"):
            Program(text_of(body)).launch(
                "k", block=(4,), args=[np.zeros(64, np.uint32)], seed=seed, max_spins=1000, timeout=60
            )


def test_clocks_advance() -> None:
    body = """
  mov.u64 %rd1, %clock64;
$wait:
  mov.u64 %rd2, %clock64;
  sub.u64 %rd2, %rd2, %rd1;
  setp.lt.u64 %p1, %rd2, 1000;
  @%p1 bra $wait;"""
    Program(text_of(body)).launch("k", args=[None], timeout=60)


# ---- compiler and files


@pytest.mark.parametrize("command", ['"', " ", "/bin/false", "/bin/true"])
def test_what_is_no_compiler(command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", command)
    with pytest.raises(EmulationError, match=r"CXX is|cannot compile|compiled .* to nothing"):
        Program(text_of(""))


def test_files_of_the_cache_that_are_cut_are_made_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = Program(text_of("  mov.u32 %r1, 77;"), "thread").path
    whole = source.read_bytes()
    for size in (3000, 3):
        source.write_bytes(whole[:size])
        Program(text_of("  mov.u32 %r1, 77;"), "thread").launch("k", args=[None])
        assert source.stat().st_size == len(whole)


def test_what_lies_in_the_cache_and_is_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    text = text_of("  mov.u32 %r1, 79;")
    path = Program(text).path
    path.unlink()
    os.mkfifo(path)  # which nobody writes to
    Program(text).launch("k", args=[None])
    assert path.is_file()
    path.unlink()
    path.mkdir()
    with pytest.raises(EmulationError, match=r"cannot use .*; set XDG_CACHE_HOME to a folder"):
        Program(text)
    assert sorted(path.parent.glob("tmp*")) == []


def test_where_there_is_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)
    for named in (None, "", "relative/to/somewhere"):
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        if named is not None:
            monkeypatch.setenv("XDG_CACHE_HOME", named)
        with pytest.raises(EmulationError, match=r"no folder for compiled code .*set XDG_CACHE_HOME"):
            builder.cache_directory()


def test_a_program_whose_file_is_gone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    program = Program(text_of("  mov.u32 %r1, 78;"), "thread")
    program.path.unlink()
    with pytest.raises(EmulationError, match="make the Program anew"):
        program.launch("k", args=[None])


def test_a_compiler_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "TIMEOUT", 0.001)
    with pytest.raises(EmulationError, match="has not compiled the translated kernel after"):
        Program(text_of(f"  mov.u32 %r1, {os.getpid()};"))


def test_more_threads_than_the_sanitizer_follows() -> None:
    """Relaxed accesses and fences cost no threads of their own."""
    body = "  st.relaxed.gpu.global.u32 [%rd0], 1;\n  ld.relaxed.gpu.global.u32 %r1, [%rd0];\n  fence.sc.gpu;"
    program = Program(text_of(body), "thread")
    program.launch("k", grid=(4,), block=(1024,), args=[np.zeros(1, np.uint32)])
    with pytest.raises(EmulationError, match="8192 threads at once; possible in mode thread: up to 8000"):
        program.launch("k", grid=(8,), block=(1024,), args=[np.zeros(1, np.uint32)])
