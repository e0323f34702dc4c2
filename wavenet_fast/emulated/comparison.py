"""Instructions that compare, select, convert and move."""

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
    types_of,
    word,
)
from wavenet_fast.emulated.ptx import SIZES, Instruction

if TYPE_CHECKING:
    from wavenet_fast.emulated.emitter import Emitter

# ---- comparison and selection

COMPARISONS = {
    **{name: f"k{name.capitalize()}" for name in ("eq", "ne", "lt", "le", "gt", "ge", "num")},
    **{f"{name}u": f"k{name.capitalize()}u" for name in ("eq", "ne", "lt", "le", "gt", "ge")},
    "nan": "kIsNan",
    **{"lo": "kLt", "ls": "kLe", "hi": "kGt", "hs": "kGe"},
}
BOOLEANS = {"and": "&", "or": "|", "xor": "^"}


def _count(e: Emitter, i: Instruction) -> None:
    needed = 3 + any(part in BOOLEANS for part in i.parts)
    if len(i.operands) != needed:
        raise e.error(f"{len(i.operands)} operands; needed: {needed}")


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
    _count(e, i)
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
ONES = {
    "f32": "0x3f800000u",
    "f16": "u16(0x3c00)",
    "bf16": "u16(0x3f80)",
    "f16x2": "u16(0x3c00)",
    "bf16x2": "u16(0x3f80)",
}


@family("set", "ftz and or xor", COMPARISONS, REALS - {"f32x2"}, WHOLES, types=2)
def _set(e: Emitter, i: Instruction) -> None:
    target, source = types_of(i)
    packed = source.endswith("x2")
    _count(e, i)
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
    target, *sources, chosen = i.operands
    a, b = (e.value(operand, kind) for operand in sources)
    e.assign(target, f"{e.value(chosen, 'pred')} ? {a} : {b}", kind)


@family("slct", "ftz", REALS, WHOLES, types=2)
def _slct(e: Emitter, i: Instruction) -> None:
    kind, by = types_of(i)
    if by not in ("s32", "f32"):
        raise refuse(i)
    a, b = (e.value(operand, kind) for operand in i.operands[1:3])
    zero = f"compare<{by}, kGe{', kFtz' if 'ftz' in i.parts else ''}>({e.value(i.operands[3], by)}, 0)"
    e.assign(i.operands[0], f"{zero} ? {a} : {b}", kind)


# ---- conversion

WHOLE_ROUNDINGS = {"rni": "kNear", "rzi": "kZero", "rmi": "kDown", "rpi": "kUp"}


@family("cvt", "tf32 e4m3x2 e5m2x2", FLAGS, ROUNDINGS, WHOLE_ROUNDINGS, REALS - {"f32x2"}, WHOLES, types=2)
def _convert(e: Emitter, i: Instruction) -> None:
    target, source = types_of(i)
    flags = flags_of(i)
    whole = next((WHOLE_ROUNDINGS[part] for part in i.parts if part in WHOLE_ROUNDINGS), None)
    how = whole or rounding_of(i)
    relu = "true" if "relu" in i.parts else "false"
    if target == "tf32":
        return e.assign(i.operands[0], f"to_tf32(as<f32>({e.value(i.operands[1], 'f32')}), {how}, {relu})", "b32")
    if target in ("e4m3x2", "e5m2x2"):
        if source == "f32":
            values = [f"as<f32>({e.value(operand, 'f32')})" for operand in i.operands[1:]]
        elif source == "f16x2":
            halves = e.value(i.operands[1], source)
            values = [f"float(as<f16>(u16({halves} >> {shift})))" for shift in (16, 0)]
        else:
            raise refuse(i)
        return e.assign(i.operands[0], f"to_8bit_pair<{target[:-2]}>({', '.join(values)}, {relu})", "b16")
    if source in ("e4m3x2", "e5m2x2"):
        if target != "f16x2":
            raise refuse(i)
        return e.assign(
            i.operands[0], f"from_8bit_pair<{source[:-2]}>({e.value(i.operands[1], source)}, {relu})", "b32"
        )
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


def _piece(i: Instruction, count: int) -> int:
    """The bytes of each of `count` registers that a `mov` splits or joins."""
    size = SIZES[type_of(i)]
    if count not in (2, 4) or size % count:
        raise refuse(i, f"with {count} registers does not exist")
    return size // count


@family("mov", "pred", REALS, WHOLES)
def _move(e: Emitter, i: Instruction) -> None:
    kind = type_of(i)
    target, source = i.operands
    if target.startswith("{"):
        pieces = e.vector(target)
        width = _piece(i, len(pieces))
        e.write(f"{word(kind)} whole = {e.value(source, kind)};")
        for position, piece in enumerate(pieces):
            if piece != "_":
                e.assign(piece, f"u{8 * width}(whole >> {8 * width * position})", f"b{8 * width}")
    elif source.startswith("{"):
        pieces = e.vector(source)
        width = _piece(i, len(pieces))
        terms = [
            f"{word(kind)}({e.value(piece, f'b{8 * width}')}) << {8 * width * n}" for n, piece in enumerate(pieces)
        ]
        e.assign(target, " | ".join(terms), kind)
    else:
        e.assign(target, e.value(source, kind), kind)
