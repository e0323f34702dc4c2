"""Calls and their parameters: the bytes that are handed over, their bounds, and the stack that a call needs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from wavenet_fast.emulated.ptx import Function, Instruction, Scope

if TYPE_CHECKING:
    from wavenet_fast.emulated.emitter import Emitter

# Bytes of stack for what the runtime and the sanitizers do below a kernel's own functions.
RESERVE = 128 << 10


def frame(function: Function) -> int:
    """Bytes of stack that a function may need: its variables, and what the compiler keeps per instruction."""
    variables = [variable for scope in function.scopes for variable in scope.variables.values()]
    return 1024 + 512 * len(function.body) + sum((v.size or 0) + max(v.align, 64) for v in variables)


def identifier(name: str) -> str:
    return re.sub(r"\W", "_", name)


def _spans(e: Emitter, i: Instruction) -> dict[str, tuple[str, int]]:
    """Where the parameters in sight of an instruction lie, and their bytes: the function's own, and those of calls."""
    own = [*e.function.results, *e.function.parameters]
    spans = {p.name: (f"PARAM[{n}]", p.size or 0) for n, p in enumerate(own)}
    inner: dict[str, tuple[str, int]] = {}
    scope: Scope | None = i.scope
    while scope:
        for name, variable in scope.variables.items():
            if variable.space == "param":
                inner.setdefault(name, (f"{identifier(name)}_{scope.index}", variable.size or 0))
        scope = scope.parent
    return {**spans, **inner}


def in_parameters(e: Emitter, i: Instruction, operand: str, place: str, size: int) -> str:
    """The host pointer of `[parameter + offset]`, checked now, or of `[register + offset]`, checked when it runs."""
    spans = _spans(e, i)
    match = re.match(r"\[\s*([^\s+\]]+)\s*(?:\+\s*(-?\s*\w+?)U?)?\s*\]", operand)
    if match and match[1] in spans:
        room, start = spans[match[1]][1], int((match[2] or "0").replace(" ", ""), 0)
        if not 0 <= start <= room - size:
            raise e.error(f"bytes {start} … {start + size - 1} of `{match[1]}`, which has {room}")
        return f"reinterpret_cast<char*>({place})"
    listed = ", ".join(f"{{{base}, {room}}}" for base, room in spans.values())
    return f"parameter(t, {place}, {size}, {{{listed}}}, {i.line})"


def call(e: Emitter, i: Instruction) -> None:
    """A direct call: results and parameters are arrays of bytes, handed over by address."""
    operands = list(i.operands)
    results = operands.pop(0) if operands[0].startswith("(") else "()"
    name, arguments = operands[0], operands[1] if len(operands) > 1 else "()"
    function = e.module.functions.get(name)
    if name == "__assertfail":
        return e.write(f'simt::fail(t, {i.line}, "an assertion of the kernel failed");')
    if function is None or not function.defined or function.is_kernel:
        raise e.error(f"the function `{name}` is not part of the module (printf and calls by address are not emulated)")
    pieces = [piece.strip() for group in (results, arguments) for piece in group[1:-1].split(",") if piece.strip()]
    needed, spans = [*function.results, *function.parameters], _spans(e, i)
    if len(pieces) != len(needed):
        raise e.error(f"{len(pieces)} results and parameters; `{name}` has {len(needed)}")
    for piece, variable in zip(pieces, needed, strict=True):
        room = spans[piece][1] if piece in spans else 0
        if room < (variable.size or 0):
            raise e.error(f"`{piece}` is no parameter of {variable.size} bytes, as `{name}` has")
    pointers = ", ".join(f"reinterpret_cast<void*>({e.symbol(piece)})" for piece in pieces)
    e.write(f"simt::need_stack(t, {RESERVE + frame(function)}, {i.line});")
    e.write(f"void* passed[] = {{{pointers or 'nullptr'}}};")
    e.write(f"function_{identifier(name)}(t, passed);")
