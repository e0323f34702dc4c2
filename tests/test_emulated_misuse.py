"""What would end the process or pass unnoticed: deep calls, parts of warps, another form of an instruction.

Launches that once crashed run in a child, so that a crash is one failed test.
"""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest
from ptx_text import elementwise, from_bf16, kernel, module, need_compiler, to_bf16

from wavenet_fast.emulated import EmulationError, Program

need_compiler()

BOX = ".shared .align 16 .b8 box[1024];"


def text_of(body: str, head: str = "", registers: str = BOX) -> str:
    """A module of one kernel `k` that takes a pointer, in %rd0; %r0 is %tid.x."""
    start = "  mov.u32 %r0, %tid.x;\n  ld.param.u64 %rd0, [k_0];\n"
    return module(kernel("k", ["u64"], start + body, registers), head=head)


def in_a_child(script: str) -> str:
    """What a script prints; a child that crashes fails the test."""
    head = "import numpy as np\nfrom wavenet_fast.emulated import EmulationError, Program\n"
    done = subprocess.run([sys.executable, "-c", head + script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"the child ended with {done.returncode}: {done.stderr[-500:]}"
    return done.stdout


def error_in_a_child(text: str, launch: str = "", before: str = "") -> str:
    """The message of the error that a launch in a child ends with, or "no error"."""
    return in_a_child(f"""
{before}
array = np.zeros(64, np.uint32)
try:
    Program({text!r}).launch("k", args=[array], {launch})
except EmulationError as error:
    print(error)
else:
    print("no error")
""")


# ---- forms of an instruction


@pytest.mark.parametrize("half", ["f16", "bf16"])
def test_mixed_precision(half: str) -> None:
    """`add.f32.f16`: the half operand is widened, all else is single precision (PTX 8.6, sm_100 and up)."""
    bits = {"f16": np.uint16, "bf16": np.uint16}[half]
    x = np.array([1, -2.5, 0.1, 65504, 6e-8, np.inf, -0.0], np.float32)
    a = x.astype(np.float16).view(bits) if half == "f16" else to_bf16(x)
    wide = a.view(np.float16).astype(np.float32) if half == "f16" else from_bf16(a)
    b = np.array([1e-7, 3.25, 1e5, 1e-3, 1.1, 2, 0.3], np.float32)
    exact = {
        f"add.rn.f32.{half} D, A, B;": wide + b,
        f"sub.f32.{half} D, A, B;": wide - b,
        f"add.sat.f32.{half} D, A, B;": np.clip(wide + b, 0, 1),
        f"fma.rn.f32.{half} D, A, A, B;": (wide.astype(np.float64) ** 2 + b).astype(np.float32),
    }
    kinds = [half, "f32"]
    for instruction, expected in exact.items():
        out = np.zeros_like(b)
        text = module(elementwise("k", instruction, kinds, "f32"), target="sm_100")
        Program(text).launch("k", block=(len(b),), args=[a, b, out])
        assert np.array_equal(out, expected), instruction


@pytest.mark.parametrize(
    ("instruction", "match"),
    [
        ("mul.rn.f32.f16 %f1, %h1, %f2;", r"names 2 types \(f32, f16\)"),
        ("mad.rn.f32.f16 %f1, %h1, %h1, %f2;", "is not emulated"),
        ("add.rn.f64.f32 %d1, %f1, %d2;", "is not emulated"),
        ("fma.rn.ftz.f32.f16 %f1, %h1, %h1, %f2;", "is not emulated"),
        ("max.s32.f32 %f1, %f1, %f2;", r"names 2 types \(s32, f32\)"),
        ("ld.global.u32.f32 %f1, [%rd0];", r"names 2 types \(u32, f32\)"),
        ("setp.lt.u32.f32 %p1, %f1, %f2;", "names 2 types"),
        ("cvt.rn.f16.f32.f64 %h1, %d1;", "names 3 types"),
        ("slct.f32.u64 %f1, %f2, %f3, %rd1;", "is not emulated"),
        ("cvt.f32 %f1, %f2;", "is not understood"),
        ("add.f32 %h1, %h1, %h2;", "`%h1` has 16 bits; needed: 32"),
        ("add.f32 %h1, %f1, %f2;", "`%h1` has 16 bits; needed: 32"),
        ("add.u64 %rd1, %rd0, %r0;", "`%r0` has 32 bits; needed: 64"),
        ("add.u32 %p1, %r0, %r1;", r"`%p1` is of type .pred; needed: .u32"),
        ("setp.lt.u32 %r1, %r0, %r1;", r"`%r1` is of type .b32; needed: .pred"),
        ("setp.lt.u32 %p1, %r0, %r1, %p2;", "4 operands; needed: 3"),
        ("setp.lt.and.u32 %p1, %r0, %r1;", "3 operands; needed: 4"),
        ("ld.global.v4.u32 {%r1, %r2}, [%rd0];", "has 2 registers; needed: 4"),
        ("st.global.u32 [%rd0], {%r1, %r2};", "has 2 registers; needed: 1"),
        ("mov.b64 {%r1, %r2, %r3}, %rd0;", "with 3 registers does not exist"),
        ("cp.async.ca.shared.global [%r1], [%rd0], 5;", "copies of 5 bytes do not exist"),
        ("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r1, %r2}, [%r3];", "has 2 registers; needed: 4"),
        (
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f1,%f2,%f3,%f4}, {%r1,%r2}, {%r3}, {%f1,%f2,%f3,%f4};",
            "has 2 registers; needed: 4",
        ),
        ("atom.global.add.u32 %r1, [%rd0], %r2, %r3;", "2 sources; needed: 1"),
    ],
)
def test_another_form_is_refused(instruction: str, match: str) -> None:
    with pytest.raises(EmulationError, match=rf"^line 11: .*{match}"):
        Program(text_of(f"  {instruction}"))


# ---- calls


def test_recursion_ends_with_a_sentence() -> None:
    endless = """.func f()
{
  .reg .b32 %r<3>;
  call.uni f, ();
  add.u32 %r1, %r1, 1;
  ret;
}"""
    assert "calls are nested too deep" in error_in_a_child(text_of("  call.uni f, ();", endless))


def test_recursion_that_ends() -> None:
    """The sum of 1 … 20, by a function that calls itself."""
    total = """.func (.param .b32 out) f(.param .b32 n)
{
  .reg .b32 %r<9>; .reg .pred %p<2>;
  ld.param.b32 %r1, [n];
  mov.u32 %r2, 0;
  setp.eq.u32 %p1, %r1, 0;
  @%p1 bra $end;
  sub.u32 %r3, %r1, 1;
  {
    .param .b32 given; .param .b32 got;
    st.param.b32 [given], %r3;
    call.uni (got), f, (given);
    ld.param.b32 %r4, [got];
  }
  add.u32 %r2, %r1, %r4;
$end:
  st.param.b32 [out], %r2;
  ret;
}"""
    body = """
  { .param .b32 given; .param .b32 got; st.param.b32 [given], 20; call.uni (got), f, (given);
    ld.param.b32 %r1, [got]; st.global.u32 [%rd0], %r1; }"""
    out = np.zeros(1, np.uint32)
    Program(text_of(body, total)).launch("k", args=[out])
    assert out[0] == 210


def function_with_local(size: int) -> str:
    return f""".func f()
{{
  .local .align 4 .b8 room[{size}]; .reg .b64 %rd<3>;
  mov.u64 %rd1, room;
  st.local.u32 [%rd1+{size - 4}], 1;
  ret;
}}"""


def test_functions_with_much_local_memory() -> None:
    text = text_of("  call.uni f, ();", function_with_local(500_000))
    assert error_in_a_child(text, "block=(64,)") == "no error\n"
    with pytest.raises(EmulationError, match=r"line 4: `f` has 800000 bytes of local memory; possible: 524288"):
        Program(text_of("  call.uni f, ();", function_with_local(800_000)))


# ---- whole warps

WHOLE = {
    "ldmatrix": "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r1, %r2, %r3, %r4}, [%r9];",
    "stmatrix": "stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%r9], {%r1, %r2};",
    "movmatrix": "movmatrix.sync.aligned.m8n8.trans.b16 %r1, %r2;",
    "mma": "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%f1,%f2,%f3,%f4}, {%r1,%r2}, {%r3}, {%f1,%f2,%f3,%f4};",
}
EXIT = "setp.gt.u32 %p1, %r0, 15;\n  @%p1 exit;\n"
# The lanes that stay come first.
LATE_EXIT = "setp.gt.u32 %p1, %r0, 15;\n  @!%p1 bra $go;\n  nanosleep.u32 1;\n  nanosleep.u32 1;\n  exit;\n$go:\n"


@pytest.mark.parametrize("name", WHOLE)
def test_a_part_of_a_warp(name: str) -> None:
    """Lanes that are not there, or that exit before or while the others wait."""
    for block, before in ((8, ""), (40, ""), (32, EXIT), (32, LATE_EXIT)):
        body = f"  mov.u32 %r9, box;\n  {before}  {WHOLE[name]}"
        message = error_in_a_child(text_of(body), f"block=({block},)")
        assert re.search(r"needs a whole warp, and \d+ of its lanes have exited or do not exist", message), message
        assert f"the line is: {WHOLE[name]}" in message


def test_a_warp_at_two_lines() -> None:
    body = f"""
  mov.u32 %r9, box;
  setp.gt.u32 %p1, %r0, 15;
  @%p1 bra $other;
  {WHOLE["ldmatrix"]}
  bra $end;
$other:
  ldmatrix.sync.aligned.m8n8.x1.shared.b16 {{%r1}}, [%r9];
$end:"""
    assert "execute ldmatrix" in error_in_a_child(text_of(body), "block=(32,)")


# ---- what a launch is given


@pytest.mark.parametrize(
    ("launch", "match"),
    [
        ("shared=-1", "shared .* is -1; possible: whole numbers from 0 to"),
        ("shared=-100000", "shared .* is -100000"),
        ("shared=1.5", "shared .* is 1.5"),
        ("shared=1 << 24", "shared .* is 16777216"),
        ("grid=3", "grid is 3; possible: one to three sizes"),
        ("grid=(1.7,)", "a size of grid is 1.7"),
        ("grid=(2**32,)", "a size of grid is 4294967296"),
        ("grid=(2**22, 2**21, 2**21)", "threads at once"),
        ("block=(2**31, 2**31)", "a size of block is 2147483648"),
        ("block=('a',)", "a size of block is 'a'"),
        ("seed='a'", "seed is 'a'"),
        ("max_spins=-1", "max_spins is -1"),
        ("timeout='1'", "timeout is '1'"),
        ("timeout=-1", "timeout is -1"),
    ],
)
def test_numbers_of_a_launch(launch: str, match: str) -> None:
    program = Program(text_of("  st.shared.u32 [box], 1;"))
    with pytest.raises(EmulationError, match=match):
        program.launch("k", args=[None], **eval(f"dict({launch})"))


def test_more_memory_than_there_is() -> None:
    with pytest.raises(EmulationError, match="possible: half of this machine's memory"):
        Program(text_of("  st.shared.u32 [box], 1;")).launch("k", grid=(1 << 17,), args=[None], shared=15 << 20)
    text = text_of("  call.uni f, ();", function_with_local(500_000))
    with pytest.raises(EmulationError, match="possible: half of this machine's memory"):
        Program(text).launch("k", grid=(1 << 7,), block=(1024,), args=[None])
    # Where the system gives less than it has.
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))"
    message = error_in_a_child(text_of("  st.shared.u32 [box], 1;"), "grid=(500,), shared=4 << 20", limit)
    assert "no memory for" in message


def test_addresses_that_wrap() -> None:
    body = "  mov.u64 %rd1, 0;\n  mov.u32 %r1, 5;\n  st.shared.u32 [%rd1+-4], %r1;"
    assert "access of 4 bytes out of bounds" in error_in_a_child(text_of(body))


# ---- state


def test_two_programs_of_one_text_take_turns() -> None:
    """A library that is loaded twice is the same one."""
    body = """
  mov.u32 %r1, 0;
$loop:
  add.u32 %r1, %r1, 1;
  bar.sync 0;
  setp.lt.u32 %p1, %r1, 300;
  @%p1 bra $loop;"""
    script = f"""
from threading import Thread
text, failed = {text_of(body)!r}, []
def work():
    program = Program(text)
    try:
        for _ in range(5):
            program.launch("k", block=(64,), args=[np.zeros(1, np.uint32)])
    except EmulationError as error:
        failed.append(error)
workers = [Thread(target=work) for _ in range(4)]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
print(failed)
"""
    assert in_a_child(script) == "[]\n"


def test_every_launch_finds_the_variables_of_the_module_as_written() -> None:
    text = text_of(
        "  atom.global.add.u32 %r1, [count], 1;\n  st.global.u32 [%rd0], %r1;", ".global .align 4 .u32 count = 5;"
    )
    for program in (first := Program(text), first, Program(text)):
        out = np.zeros(1, np.uint32)
        program.launch("k", args=[out])
        assert out[0] == 5


# ---- copies that are on their way


@pytest.mark.parametrize("behind, found", [("bar.sync 0;", True), ("cp.async.wait_all;\n  bar.sync 0;", False)])
def test_a_store_to_where_a_copy_is_on_its_way_is_found(behind: str, found: bool) -> None:
    """By another thread, behind a barrier: no race, and the copy lands over it all the same."""
    body = f"""
  mov.u32 %r1, box;
  setp.ne.u32 %p1, %r0, 0;
  @%p1 bra $other;
  cp.async.ca.shared.global [%r1], [%rd0], 16;
  cp.async.commit_group;
$other:
  {behind}
  setp.ne.u32 %p2, %r0, 1;
  @%p2 bra $end;
  st.shared.u32 [%r1+4], 9;
$end:
  bar.sync 0;
  cp.async.wait_all;
"""
    array = np.arange(64, dtype=np.uint32)
    for mode in ("plain", "thread"):
        program = Program(text_of(body), mode)
        if found:
            with pytest.raises(EmulationError, match="written while a copy of 16 bytes was on its way there"):
                program.launch("k", (1,), (32,), [array])
        else:
            program.launch("k", (1,), (32,), [array])
