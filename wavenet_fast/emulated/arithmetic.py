"""Instructions that compute: registers in, registers out. Each becomes a call of its helper in numeric.h."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wavenet_fast.emulated.families import (
    FLAGS,
    REALS,
    ROUNDINGS,
    WHOLES,
    cpp,
    family,
    flags_of,
    refuse,
    rounding_of,
    type_of,
    word,
)
from wavenet_fast.emulated.ptx import SIZES, Instruction

if TYPE_CHECKING:
    from wavenet_fast.emulated.translate import Emitter

ROUND = set(ROUNDINGS) - {"rna"}


def _real(e: Emitter, i: Instruction, kind: str) -> None:
    """`name_real<type, flags, rounding>(operands)`"""
    operands = ", ".join(e.value(operand, kind) for operand in i.operands[1:])
    e.assign(i.operands[0], f"{i.parts[0]}_real<{cpp(kind)}, {flags_of(i)}, {rounding_of(i)}>({operands})", kind)


def _whole(e: Emitter, i: Instruction, name: str, kind: str, *kinds: str, result: str | None = None) -> None:
    """`name<type>(operands)`, the operands of `kinds`, or all of the instruction's type"""
    sources = i.operands[1:]
    operands = ", ".join(e.value(o, k) for o, k in zip(sources, kinds or [kind] * len(sources), strict=True))
    e.assign(i.operands[0], f"{name}<{cpp(kind)}>({operands})", result or kind)


@family("add sub", "sat ftz cc", ROUND, REALS, WHOLES, {"u16x2", "s16x2"})
def _add(e: Emitter, i: Instruction) -> None:
    kind, name = type_of(i), i.parts[0]
    if kind in REALS:
        return _real(e, i, kind)
    if kind.endswith("x2"):
        raise refuse(i)
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


@family("mad fma", "lo hi wide sat ftz relu cc", ROUND, REALS, WHOLES)
def _mad(e: Emitter, i: Instruction) -> None:
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


@family("min max", "ftz NaN xorsign abs", REALS, WHOLES)
def _extreme(e: Emitter, i: Instruction) -> None:
    kind = type_of(i)
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


@family("dp4a", "u32 s32")
def _dot4(e: Emitter, i: Instruction) -> None:
    a, b, c = (e.value(operand, "b32") for operand in i.operands[1:])
    e.assign(i.operands[0], f"dp4a<{i.parts[1]}, {i.parts[2]}>({a}, {b}, {c})", "b32")


@family("dp2a", "lo hi u32 s32")
def _dot2(e: Emitter, i: Instruction) -> None:
    a, b, c = (e.value(operand, "b32") for operand in i.operands[1:])
    half = "true" if i.parts[1] == "hi" else "false"
    e.assign(i.operands[0], f"dp2a<{i.parts[2]}, {i.parts[3]}>({a}, {b}, {c}, {half})", "b32")


# ---- comparison and selection

COMPARISONS = {
    **{name: f"k{name.capitalize()}" for name in ("eq", "ne", "lt", "le", "gt", "ge", "num")},
    **{f"{name}u": f"k{name.capitalize()}u" for name in ("eq", "ne", "lt", "le", "gt", "ge")},
    "nan": "kIsNan",
    **{"lo": "kLt", "ls": "kLe", "hi": "kGt", "hs": "kGe"},
}
BOOLEANS = {"and": "&", "or": "|", "xor": "^"}


def _comparison(e: Emitter, i: Instruction, kind: str) -> str:
    """The C++ expression of the comparison, without the boolean that may follow it."""
    ftz = ", kFtz" if "ftz" in i.parts else ""
    a, b = (e.value(operand, kind) for operand in i.operands[1:3])
    return f"compare<{cpp(kind)}, {COMPARISONS[i.parts[1]]}{ftz}>({a}, {b})"


def _halves(e: Emitter, i: Instruction, kind: str) -> list[str]:
    """The comparison of packed operands: low halves, high halves."""
    ftz = ", kFtz" if "ftz" in i.parts else ""
    a, b = (e.value(operand, kind) for operand in i.operands[1:3])
    how = f"compare<{kind[:-2]}, {COMPARISONS[i.parts[1]]}{ftz}>"
    return [f"{how}(u16({a} >> {shift}), u16({b} >> {shift}))" for shift in (0, 16)]


@family("setp", "ftz and or xor", COMPARISONS, REALS - {"f32x2"}, WHOLES)
def _setp(e: Emitter, i: Instruction) -> None:
    kind = type_of(i)
    targets = i.operands[0].split("|")
    if kind.endswith("x2"):
        outcomes = _halves(e, i, kind)
    else:
        outcomes = [_comparison(e, i, kind)]
        outcomes.append(f"!{outcomes[0]}")
    boolean = next((BOOLEANS[part] for part in i.parts if part in BOOLEANS), None)
    if boolean:
        other = e.value(i.operands[3], "pred")
        outcomes = [f"bool({outcome} {boolean} {other})" for outcome in outcomes]
    e.assign_all([(target, outcome, "pred") for target, outcome in zip(targets, outcomes, strict=False)])


# What `set` writes for true; anything else gets all ones.
ONES = {"f32": "0x3f800000u", "f16": "u16(0x3c00)", "bf16": "u16(0x3f80)", "f16x2": "u16(0x3c00)", "bf16x2": "u16(0x3f80)"}


@family("set", "ftz and or xor", COMPARISONS, REALS - {"f32x2"}, WHOLES)
def _set(e: Emitter, i: Instruction) -> None:
    target, source = [part for part in i.parts if part in SIZES][-2:]
    packed = source.endswith("x2")
    outcomes = _halves(e, i, source) if packed else [_comparison(e, i, source)]
    if boolean := next((BOOLEANS[part] for part in i.parts if part in BOOLEANS), None):
        outcomes = [f"bool({outcome} {boolean} {e.value(i.operands[3], 'pred')})" for outcome in outcomes]
    element = "u16" if packed else word(target)
    yes = ONES.get(target, f"{element}(~0ull)")
    words = [f"({outcome} ? {yes} : {element}(0))" for outcome in outcomes]
    e.assign(i.operands[0], f"u32({words[1]}) << 16 | {words[0]}" if packed else words[0], target)


@family("selp", "", REALS, WHOLES)
def _select(e: Emitter, i: Instruction) -> None:
    kind = type_of(i)
    a, b = (e.value(operand, kind) for operand in i.operands[1:3])
    e.assign(i.operands[0], f"{e.value(i.operands[3], 'pred')} ? {a} : {b}", kind)


@family("slct", "ftz", REALS, WHOLES)
def _slct(e: Emitter, i: Instruction) -> None:
    kind, by = [part for part in i.parts if part in SIZES]
    a, b = (e.value(operand, kind) for operand in i.operands[1:3])
    zero = f"compare<{by}, kGe{', kFtz' if 'ftz' in i.parts else ''}>({e.value(i.operands[3], by)}, 0)"
    e.assign(i.operands[0], f"{zero} ? {a} : {b}", kind)


# ---- conversion

WHOLE_ROUNDINGS = {"rni": "kNear", "rzi": "kZero", "rmi": "kDown", "rpi": "kUp"}


@family("cvt", "tf32", FLAGS, ROUNDINGS, WHOLE_ROUNDINGS, REALS - {"f32x2"}, WHOLES)
def _convert(e: Emitter, i: Instruction) -> None:
    target, source = [part for part in i.parts if part in SIZES][-2:]
    flags = flags_of(i)
    whole = next((WHOLE_ROUNDINGS[part] for part in i.parts if part in WHOLE_ROUNDINGS), None)
    how = whole or rounding_of(i)
    if target == "tf32":
        relu = "true" if "relu" in i.parts else "false"
        return e.assign(i.operands[0], f"to_tf32(as<f32>({e.value(i.operands[1], 'f32')}), {how}, {relu})", "b32")
    if target in ("f16x2", "bf16x2"):
        if source != "f32" or len(i.operands) != 3:
            raise refuse(i)
        high, low = (f"convert<{target[:-2]}, f32, {flags}, {how}, false>({e.value(o, 'f32')})" for o in i.operands[1:])
        return e.assign(i.operands[0], f"u32({high}) << 16 | {low}", "b32")
    if source in ("f16x2", "bf16x2"):
        raise refuse(i)
    arguments = f"{cpp(target)}, {cpp(source)}, {flags}, {how}, {'true' if whole else 'false'}"
    e.assign(i.operands[0], f"convert<{arguments}>({e.value(i.operands[1], source)})", target)


# ---- moves


@family("mov", "pred", REALS, WHOLES)
def _move(e: Emitter, i: Instruction) -> None:
    kind = type_of(i)
    target, source = i.operands
    if target.startswith("{"):
        pieces = e.vector(target)
        width = SIZES[kind] // len(pieces)
        e.write(f"{word(kind)} whole = {e.value(source, kind)};")
        for position, piece in enumerate(pieces):
            if piece != "_":
                e.assign(piece, f"u{8 * width}(whole >> {8 * width * position})", f"b{8 * width}")
    elif source.startswith("{"):
        pieces = e.vector(source)
        width = SIZES[kind] // len(pieces)
        terms = [
            f"{word(kind)}({e.value(piece, f'b{8 * width}')}) << {8 * width * n}" for n, piece in enumerate(pieces)
        ]
        e.assign(target, " | ".join(terms), kind)
    else:
        e.assign(target, e.value(source, kind), kind)
