"""What a line of PTX is: its family, and the bytes that it moves."""

from __future__ import annotations

import re

from wavenet_fast.emulated.parse import parse
from wavenet_fast.emulated.ptx import SIZES, Instruction, Label

FAMILIES = {
    "products": r"mma",
    "global memory": r"(ld|st)\.global|cp\.async\.c[ag]",
    "shared memory": r"(ld|st)\.shared|ldmatrix|stmatrix",
    "barriers and waits": r"bar|barrier|cp\.async\.(commit|wait)",
    "exchange in a warp": r"shfl|vote|redux",
    "special functions": r"(ex2|lg2|rcp|sqrt|rsqrt|sin|cos|tanh|div)\b",
    "conversions": r"cvt",
    "multiply-adds": r"fma",
    "other arithmetic in fp32": r"\w+\.(\w+\.)*f(32|16|16x2)\b|\w+\.(\w+\.)*bf16(x2)?\b",
    "moves and choices": r"mov|selp|prmt|ld\.param|cvta",
    "addresses, integers, branches": r".",
}
"""Family → what its opcodes begin with; an instruction belongs to the first that it fits."""


def instructions_of(ptx: str, kernel: str) -> dict[str, Instruction]:
    """Line → instruction."""
    body = [item for item in parse(ptx).functions[kernel].body if isinstance(item, Instruction)]
    found = {str(instruction.line): instruction for instruction in body}
    if len(found) != len(body):
        raise SystemExit("the PTX has several instructions on a line; they cannot be counted apart")
    return found


def waits(ptx: str, kernel: str, looks: tuple[str, ...]) -> set[str]:
    """Lines of the innermost loops around instructions whose opcode begins with one of `looks`. A loop is what lies
    between a label and the last branch back to it."""
    body = parse(ptx).functions[kernel].body
    at = {item.name: item.line for item in body if isinstance(item, Label)}
    loops: dict[int, int] = {}
    for item in body:
        if isinstance(item, Instruction) and item.parts[0] == "bra" and at[item.operands[0]] < item.line:
            loops[at[item.operands[0]]] = item.line
    found: set[str] = set()
    for item in body:
        if isinstance(item, Instruction) and item.opcode.startswith(looks):
            around = [(last - first, first, last) for first, last in loops.items() if first <= item.line <= last]
            _, first, last = min(around, default=(0, item.line, item.line))
            found |= set(map(str, range(first, last + 1)))
    return found


def family(instruction: Instruction, families: dict[str, str] = FAMILIES) -> str:
    return next(name for name, pattern in families.items() if re.match(pattern, instruction.opcode))


def bytes_of(instruction: Instruction) -> dict[str, int]:
    """Bytes that one thread moves with one instruction, by where from or where to; "generic" where the address does
    not say. A copy whose size is in a register is taken for one of 16 bytes."""
    parts, name = instruction.parts, instruction.parts[0]
    if name in ("ldmatrix", "stmatrix"):
        count = 4 * int(next(part[1:] for part in parts if re.fullmatch(r"x[124]", part)))
        return {"shared loads" if name == "ldmatrix" else "shared stores": count}
    if name == "cp" and parts[1] == "async" and len(instruction.operands) >= 3:
        size = int(instruction.operands[2], 0)
        return {"global loads": size, "shared stores": size}
    if name in ("ld", "st") and not parts[1].startswith(("param", "local", "const")):
        space = next((p.split("::")[0] for p in parts if p.split("::")[0] in ("global", "shared")), "generic")
        size = SIZES[parts[-1]] * int(next((part[1:] for part in parts if re.fullmatch(r"v\d", part)), 1))
        return {f"{space} {'loads' if name == 'ld' else 'stores'}": size}
    return {}
