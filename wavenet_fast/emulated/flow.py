"""Instructions of control, and hints to the hardware."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wavenet_fast.emulated.calls import call
from wavenet_fast.emulated.families import family
from wavenet_fast.emulated.ptx import Instruction

if TYPE_CHECKING:
    from wavenet_fast.emulated.emitter import Emitter


@family("bra", "uni")
def _branch(e: Emitter, i: Instruction) -> None:
    e.branch(i, i.operands[0])


@family("brx", "idx uni")
def _branch_table(e: Emitter, i: Instruction) -> None:
    e.write(f"switch ({e.value(i.operands[0], 'u32')}) {{")
    for n, name in enumerate(e.targets(i, i.operands[1])):
        e.write(f"case {n}:")
        e.branch(i, name)
    e.write(f'default: simt::fail(t, {i.line}, "brx.idx beyond its table"); }}')


@family("ret", "uni")
def _return(e: Emitter, i: Instruction) -> None:
    e.write("return;")


@family("exit")
def _exit(e: Emitter, i: Instruction) -> None:
    e.write("simt::exit_thread(t);")


@family("trap brkpt")
def _trap(e: Emitter, i: Instruction) -> None:
    e.write(f'simt::fail(t, {i.line}, "{i.parts[0]}");')


family("call", "uni")(call)


@family("nanosleep", "u32")
def _sleep(e: Emitter, i: Instruction) -> None:
    e.write(f"simt::sleep(t, {i.line});")


@family("createpolicy", "fractional range b64", hints=True)
def _policy(e: Emitter, i: Instruction) -> None:
    e.assign(i.operands[0], "0", "b64")


# Hints to the hardware: nothing that a kernel could observe.
@family(
    "prefetch prefetchu discard applypriority griddepcontrol setmaxnreg pmevent",
    "global local tensormap L1 L2 launch_dependents wait inc dec sync aligned u32 mask",
    hints=True,
)
def _nothing(e: Emitter, i: Instruction) -> None:
    return
