"""Instructions that compute: registers in, registers out. Each becomes a call of its helper in numeric.h."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wavenet_fast.emulated.families import (
    REALS,
    ROUNDINGS,
    WHOLES,
    cpp,
    family,
    flags_of,
    refuse,
    rounding_of,
    type_of,
    types_of,
    word,
)
from wavenet_fast.emulated.ptx import Instruction

if TYPE_CHECKING:
    from wavenet_fast.emulated.emitter import Emitter

ROUND = set(ROUNDINGS) - {"rna"}
HALVES = {"u16x2", "s16x2"}


def _real(e: Emitter, i: Instruction, kind: str) -> None:
    """`name_real<type, flags, rounding>(operands)`"""
    operands = ", ".join(e.value(operand, kind) for operand in i.operands[1:])
    e.assign(i.operands[0], f"{i.parts[0]}_real<{cpp(kind)}, {flags_of(i)}, {rounding_of(i)}>({operands})", kind)


def _mixed(e: Emitter, i: Instruction, halves: int) -> None:
    """`add.f32.f16` and its kin: the first `halves` operands are widened, and all else is single precision."""
    result, half = types_of(i)
    if i.parts[0] not in ("add", "sub", "fma") or result != "f32" or half not in ("f16", "bf16") or "ftz" in i.parts:
        raise refuse(i)
    narrow, rest = i.operands[1 : 1 + halves], i.operands[1 + halves :]
    values = [f"convert<f32, {half}, 0, kNear, false>({e.value(operand, half)})" for operand in narrow]
    operands = ", ".join([*values, *(e.value(operand, "f32") for operand in rest)])
    e.assign(i.operands[0], f"{i.parts[0]}_real<f32, {flags_of(i)}, {rounding_of(i)}>({operands})", "f32")


def _whole(e: Emitter, i: Instruction, name: str, kind: str, *kinds: str, result: str | None = None) -> None:
    """`name<type>(operands)`, the operands of `kinds`, or all of the instruction's type"""
    sources = i.operands[1:]
    operands = ", ".join(e.value(o, k) for o, k in zip(sources, kinds or [kind] * len(sources), strict=True))
    e.assign(i.operands[0], f"{name}<{cpp(kind)}>({operands})", result or kind)


def _halves(e: Emitter, i: Instruction, kind: str) -> None:
    """`add`, `min` or `max` of two 16-bit numbers in a word."""
    if i.parts[0] not in ("add", "min", "max") or len(i.parts) != 2:
        raise refuse(i)
    a, b = (e.value(operand, "b32") for operand in i.operands[1:])
    e.assign(i.operands[0], f"halves<{i.parts[0]}<{kind[:3]}>>({a}, {b})", "b32")


@family("add sub", "sat ftz cc", ROUND, REALS, WHOLES, HALVES, types=2)
def _add(e: Emitter, i: Instruction) -> None:
    if len(types_of(i)) == 2:
        return _mixed(e, i, 1)
    kind, name = type_of(i), i.parts[0]
    if kind in REALS:
        return _real(e, i, kind)
    if kind in HALVES:
        return _halves(e, i, kind)
    if "cc" in i.parts:
        helper = "add_carry" if name == "add" else "sub_carry"
        a, b = (e.value(operand, kind) for operand in i.operands[1:])
        start = "false" if name == "add" else "true"
        return e.assign(i.operands[0], f"{helper}<{word(kind)}>({a}, {b}, {start}, &carry)", kind)
    _whole(e, i, f"{name}_sat" if "sat" in i.parts else name, kind)


@family("addc subc", "cc", WHOLES)
def _add_carry(e: Emitter, i: Instruction) -> None:
    kind = type_of(i)
    helper = "add_carry" if i.parts[0] == "addc" else "sub_carry"
    a, b = (e.value(operand, kind) for operand in i.operands[1:])
    out = "&carry" if "cc" in i.parts else "nullptr"
    e.assign(i.operands[0], f"{helper}<{word(kind)}>({a}, {b}, carry, {out})", kind)


@family("mul", "lo hi wide sat ftz", ROUND, REALS, WHOLES)
def _mul(e: Emitter, i: Instruction) -> None:
    kind = type_of(i)
    if kind in REALS:
        return _real(e, i, kind)
    part = next((part for part in i.parts if part in ("hi", "wide")), "lo")
    _whole(e, i, f"mul_{part}", kind, result=_wide(kind) if part == "wide" else None)


@family("mad fma", "lo hi wide sat ftz relu cc", ROUND, REALS, WHOLES, types=2)
def _mad(e: Emitter, i: Instruction) -> None:
    if len(types_of(i)) == 2:
        return _mixed(e, i, 2)
    kind = type_of(i)
    if kind in REALS:
        operands = ", ".join(e.value(operand, kind) for operand in i.operands[1:])
        return e.assign(i.operands[0], f"fma_real<{cpp(kind)}, {flags_of(i)}, {rounding_of(i)}>({operands})", kind)
    if "sat" in i.parts:
        raise refuse(i)
    part = next((part for part in i.parts if part in ("hi", "wide")), "lo")
    if "cc" in i.parts:
        a, b, c = (e.value(operand, kind) for operand in i.operands[1:])
        product = f"mul_{part}<{cpp(kind)}>({a}, {b})"
        return e.assign(i.operands[0], f"add_carry<{word(kind)}>({product}, {c}, false, &carry)", kind)
    if part == "wide":
        return _whole(e, i, "mad_wide", kind, kind, kind, _wide(kind), result=_wide(kind))
    _whole(e, i, f"mad_{part}", kind)


@family("madc", "lo hi cc", WHOLES)
def _mad_carry(e: Emitter, i: Instruction) -> None:
    kind = type_of(i)
    part = "hi" if "hi" in i.parts else "lo"
    a, b, c = (e.value(operand, kind) for operand in i.operands[1:])
    out = "&carry" if "cc" in i.parts else "nullptr"
    product = f"mul_{part}<{cpp(kind)}>({a}, {b})"
    e.assign(i.operands[0], f"add_carry<{word(kind)}>({product}, {c}, carry, {out})", kind)


def _wide(kind: str) -> str:
    return f"{kind[0]}{2 * int(kind[1:])}"


@family("mul24 mad24", "lo hi u32 s32")
def _mul24(e: Emitter, i: Instruction) -> None:
    _whole(e, i, f"{i.parts[0]}_{'hi' if 'hi' in i.parts else 'lo'}", type_of(i))


@family("div", "approx full ftz", ROUND, REALS, WHOLES)
def _div(e: Emitter, i: Instruction) -> None:
    kind = type_of(i)
    _real(e, i, kind) if kind in REALS else _whole(e, i, "div", kind)


@family("rem sad", "", WHOLES)
def _rem(e: Emitter, i: Instruction) -> None:
    _whole(e, i, i.parts[0], type_of(i))


@family("neg abs", "ftz", REALS, WHOLES)
def _sign(e: Emitter, i: Instruction) -> None:
    kind = type_of(i)
    _real(e, i, kind) if kind in REALS else _whole(e, i, i.parts[0], kind)


@family("min max", "ftz NaN xorsign abs relu", REALS, WHOLES, HALVES)
def _extreme(e: Emitter, i: Instruction) -> None:
    kind = type_of(i)
    if "relu" in i.parts:
        if kind != "s32":
            raise refuse(i)
        a, b = (e.value(operand, kind) for operand in i.operands[1:])
        return e.assign(i.operands[0], f"max<int32_t>({i.parts[0]}<int32_t>({a}, {b}), 0)", kind)
    if kind in HALVES:
        return _halves(e, i, kind)
    if kind not in REALS:
        return _whole(e, i, i.parts[0], kind)
    if len(i.operands) == 3:
        return _real(e, i, kind)
    operands = ", ".join(e.value(operand, kind) for operand in i.operands[1:])
    e.assign(i.operands[0], f"{i.parts[0]}3_real<{cpp(kind)}, {flags_of(i)}, kNear>({operands})", kind)


@family("sqrt rcp rsqrt ex2 lg2 sin cos tanh", "approx ftz", ROUND, REALS)
def _function(e: Emitter, i: Instruction) -> None:
    _real(e, i, type_of(i))


@family("copysign", "f32 f64")
def _copysign(e: Emitter, i: Instruction) -> None:
    _real(e, i, type_of(i))


@family("testp", "finite infinite number notanumber normal subnormal f32 f64")
def _testp(e: Emitter, i: Instruction) -> None:
    letter = {"finite": "f", "infinite": "i", "number": "n", "notanumber": "N", "subnormal": "s", "normal": "o"}[
        i.parts[1]
    ]
    kind = type_of(i)
    e.assign(i.operands[0], f"testp<{kind}>('{letter}', {e.value(i.operands[1], kind)})", "pred")


@family("and or xor", "pred b16 b32 b64")
def _logic(e: Emitter, i: Instruction) -> None:
    kind = type_of(i)
    a, b = (e.value(operand, kind) for operand in i.operands[1:])
    operator = {"and": "&", "or": "|", "xor": "^"}[i.parts[0]]
    e.assign(i.operands[0], f"{word(kind)}({a} {operator} {b})", kind)


@family("not cnot", "pred b16 b32 b64")
def _not(e: Emitter, i: Instruction) -> None:
    kind = type_of(i)
    operator = "!" if kind == "pred" or i.parts[0] == "cnot" else "~"
    e.assign(i.operands[0], f"{word(kind)}({operator}{e.value(i.operands[1], kind)})", kind)


@family("shl shr", "", WHOLES)
def _shift(e: Emitter, i: Instruction) -> None:
    kind = type_of(i)
    _whole(e, i, i.parts[0], kind, kind, "u32")


@family("shf", "l r wrap clamp b32")
def _funnel(e: Emitter, i: Instruction) -> None:
    a, b, n = (e.value(operand, "b32") for operand in i.operands[1:])
    amount = f"{n} & 31" if "wrap" in i.parts else f"at_most_32({n})"
    e.assign(i.operands[0], f"funnel_{'left' if 'l' in i.parts else 'right'}({a}, {b}, {amount})", "b32")


@family("popc clz", "b32 b64")
def _count(e: Emitter, i: Instruction) -> None:
    _whole(e, i, i.parts[0], type_of(i), result="u32")


@family("brev", "b32 b64")
def _reverse(e: Emitter, i: Instruction) -> None:
    _whole(e, i, "brev", type_of(i))


@family("bfind", "shiftamt u32 s32 u64 s64")
def _find(e: Emitter, i: Instruction) -> None:
    kind = type_of(i)
    shift = "true" if "shiftamt" in i.parts else "false"
    e.assign(i.operands[0], f"bfind<{kind}>({e.value(i.operands[1], kind)}, {shift})", "u32")


@family("fns", "b32")
def _fns(e: Emitter, i: Instruction) -> None:
    mask, base, offset = (e.value(operand, "b32") for operand in i.operands[1:])
    e.assign(i.operands[0], f"fns({mask}, {base}, s32({offset}))", "b32")


@family("bfe", "u32 s32 u64 s64")
def _extract(e: Emitter, i: Instruction) -> None:
    kind = type_of(i)
    _whole(e, i, "bfe", kind, kind, "u32", "u32")


@family("bfi", "b32 b64")
def _insert(e: Emitter, i: Instruction) -> None:
    kind = type_of(i)
    _whole(e, i, "bfi", kind, kind, kind, "u32", "u32")


@family("bmsk", "clamp wrap b32")
def _mask(e: Emitter, i: Instruction) -> None:
    position, length = (e.value(operand, "b32") for operand in i.operands[1:])
    e.assign(i.operands[0], f"bmsk({position}, {length}, {'true' if 'wrap' in i.parts else 'false'})", "b32")


@family("lop3", "b32")
def _lop3(e: Emitter, i: Instruction) -> None:
    operands = ", ".join(e.value(operand, "b32") for operand in i.operands[1:5])
    e.assign(i.operands[0], f"lop3({operands})", "b32")


@family("prmt", "b32 f4e b4e rc8 ecl ecr rc16")
def _permute(e: Emitter, i: Instruction) -> None:
    modes = ["b32", "f4e", "b4e", "rc8", "ecl", "ecr", "rc16"]
    operands = ", ".join(e.value(operand, "b32") for operand in i.operands[1:])
    e.assign(i.operands[0], f"prmt({operands}, {modes.index(i.parts[-1])})", "b32")


@family("dp4a", "u32 s32", types=2)
def _dot4(e: Emitter, i: Instruction) -> None:
    a, b, c = (e.value(operand, "b32") for operand in i.operands[1:])
    e.assign(i.operands[0], f"dp4a<{i.parts[1]}, {i.parts[2]}>({a}, {b}, {c})", "b32")


@family("dp2a", "lo hi u32 s32", types=2)
def _dot2(e: Emitter, i: Instruction) -> None:
    a, b, c = (e.value(operand, "b32") for operand in i.operands[1:])
    half = "true" if i.parts[1] == "hi" else "false"
    e.assign(i.operands[0], f"dp2a<{i.parts[2]}, {i.parts[3]}>({a}, {b}, {c}, {half})", "b32")
