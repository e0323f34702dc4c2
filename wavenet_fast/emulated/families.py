"""The table of instructions: what a family of mnemonics becomes in C++, and which modifiers it may have.

A family is declared with `@family(mnemonics, modifiers)` above a function that writes one instruction. A modifier that
is not listed is an error; so is a mnemonic that no family has. `HINTS` say how to cache and change no result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wavenet_fast.emulated.ptx import SIZES, Instruction
from wavenet_fast.errors import EmulationError

if TYPE_CHECKING:
    from wavenet_fast.emulated.emitter import Emitter

Writer = Callable[["Emitter", Instruction], None]

HINTS = {"ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc"}
HINT_PREFIXES = ("L1::", "L2::", "level::")
SCOPES = {"cta", "cluster", "gpu", "sys", "gl"}
ROUNDINGS = {"rn": "kNear", "rz": "kZero", "rm": "kDown", "rp": "kUp", "rna": "kAway"}
REALS = {"f16", "bf16", "f32", "f64", "f16x2", "bf16x2", "f32x2"}
WHOLES = {"u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64", "b8", "b16", "b32", "b64"}
FLAGS = {
    "ftz": "kFtz",
    "sat": "kSat",
    "NaN": "kNan",
    "relu": "kRelu",
    "abs": "kAbs",
    "xorsign": "kXorSign",
    "satfinite": "kSatFinite",
}


@dataclass(frozen=True)
class Family:
    modifiers: frozenset[str]
    hints: bool
    # How many types an instruction may name; another one is another instruction (`add.f32.f16` is not `add.f16`).
    types: int
    write: Writer


TABLE: dict[str, Family] = {}


def family(
    mnemonics: str, modifiers: str = "", *sets: Iterable[str], hints: bool = False, types: int = 1
) -> Callable[[Writer], Writer]:
    """Enters the decorated function into `TABLE` under each of `mnemonics`."""
    allowed = frozenset(modifiers.split()).union(*map(set, sets))

    def enter(write: Writer) -> Writer:
        for mnemonic in mnemonics.split():
            TABLE[mnemonic] = Family(allowed, hints, types, write)
        return write

    return enter


# What to do instead of the largest groups of instructions that are not emulated.
INSTEAD = {
    "wgmma": "use mma.sync (in Triton: fewer than 64 rows on sm_90)",
    "tcgen05": "use mma.sync (in Triton: fewer than 64 rows on sm_100)",
    "cp.async.bulk": "copy with cp.async (in Triton: without tensor descriptors)",
    "cp.reduce.async.bulk": "copy with cp.async (in Triton: without tensor descriptors)",
}


def lookup(instruction: Instruction) -> Family:
    """The family of an instruction.

    Raises:
        EmulationError: the mnemonic or one of its modifiers is not in the table; the message names it and the line.
    """
    name, *modifiers = instruction.parts
    found = TABLE.get(name)
    instead = next((f": {text}" for start, text in INSTEAD.items() if instruction.opcode.startswith(start)), "")
    if found is None or instead:
        raise EmulationError(
            f"line {instruction.line}: the instruction `{instruction.opcode}` is not emulated{instead}",
            instruction.line,
        )
    for modifier in modifiers:
        hint = found.hints and (modifier in HINTS or modifier.startswith(HINT_PREFIXES))
        if modifier not in found.modifiers and not hint:
            raise EmulationError(
                f"line {instruction.line}: the modifier `.{modifier}` of `{instruction.opcode}` is not emulated",
                instruction.line,
            )
    named = types_of(instruction)
    if len(named) > found.types:
        raise refuse(instruction, f"names {len(named)} types ({', '.join(named)}), a form that is not emulated")
    return found


def refuse(instruction: Instruction, why: str = "is not emulated") -> EmulationError:
    return EmulationError(f"line {instruction.line}: `{instruction.opcode}` {why}", instruction.line)


def types_of(instruction: Instruction) -> list[str]:
    """The types that an instruction names, in order."""
    return [part for part in instruction.parts[1:] if part in SIZES]


def type_of(instruction: Instruction) -> str:
    """The instruction's type: its last modifier that is one."""
    if named := types_of(instruction):
        return named[-1]
    raise refuse(instruction, "has no type that is emulated")


def cpp(kind: str) -> str:
    """The C++ type of a PTX type: `.b32` is a `u32`."""
    return "u" + kind[1:] if kind[0] == "b" and kind[1:].isdigit() else kind


def word(kind: str) -> str:
    """The unsigned C++ type that holds it in a register."""
    return "bool" if kind == "pred" else f"u{8 * SIZES[kind]}"


def flags_of(instruction: Instruction) -> str:
    present = [FLAGS[part] for part in instruction.parts if part in FLAGS]
    return " | ".join(present) or "0"


def rounding_of(instruction: Instruction) -> str:
    return next((ROUNDINGS[part] for part in instruction.parts if part in ROUNDINGS), "kNear")


def scope_of(instruction: Instruction, default: str) -> str:
    """How far an access synchronises: `kBlock`, `kCluster` or `kDevice`."""
    named = next((part for part in instruction.parts[1:] if part in SCOPES), default)
    return {"cta": "kBlock", "cluster": "kCluster"}.get(named, "kDevice")


def label(instruction: Instruction) -> str:
    """The name under which an instruction is counted: `ld.global`, `mma.sync`, `bar.sync`, `fma.f32`."""
    name, *parts = instruction.parts
    if name in ("ld", "ldu", "st", "atom", "red"):
        space = next(
            (p.split("::")[0] for p in parts if p.split("::")[0] in ("global", "shared", "local", "param", "const")),
            "generic",
        )
        return f"{name}.{space}"
    if name in ("cp", "mbarrier", "bar", "barrier", "fence"):
        kept = [
            p
            for p in parts
            if p
            in (
                "async",
                "commit_group",
                "wait_group",
                "wait_all",
                "mbarrier",
                "sync",
                "arrive",
                "wait",
                "red",
                "warp",
                "cluster",
                "init",
                "inval",
                "try_wait",
                "test_wait",
                "proxy",
                "mbarrier_init",
            )
            and not (name == "mbarrier" and p == "cluster")
        ]
        return ".".join([name, *kept])
    if name in ("mma", "shfl", "vote", "redux", "ldmatrix", "stmatrix", "movmatrix", "match", "elect"):
        return f"{name}.sync"
    kind = next((part for part in reversed(parts) if part in SIZES), None)
    return f"{name}.{kind}" if (kind and kind[0] != "b") or kind in REALS else name
