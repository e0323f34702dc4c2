"""A PTX module as data: variables, and functions as flat lists of instructions that know their line."""

from __future__ import annotations

from dataclasses import dataclass, field

# Bytes of each type; a predicate is a bool.
SIZES = {
    **dict.fromkeys(("b8", "u8", "s8", "pred", "e4m3", "e5m2"), 1),
    **dict.fromkeys(("b16", "u16", "s16", "f16", "bf16", "e4m3x2", "e5m2x2"), 2),
    **dict.fromkeys(("b32", "u32", "s32", "f32", "f16x2", "bf16x2", "u16x2", "s16x2", "tf32"), 4),
    **dict.fromkeys(("b64", "u64", "s64", "f64", "f32x2"), 8),
}


@dataclass(frozen=True)
class Variable:
    """A `.shared`, `.global`, `.const`, `.local` or `.param` variable; `size` in bytes, or None: the launch sets it."""

    name: str
    space: str
    type: str
    size: int | None
    align: int
    line: int
    initial: bytes | None = None
    pointer: bool = False


@dataclass
class Scope:
    """A `{ }` of a kernel: names of registers and labels hold inside it and in the scopes within."""

    index: int
    parent: Scope | None
    registers: dict[str, str] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)
    targets: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Instruction:
    """One instruction: `opcode` with its modifiers, its operands as text, its guard (`!%p1`) or None, its line."""

    opcode: str
    operands: tuple[str, ...]
    guard: str | None
    line: int
    scope: Scope
    # Where in the text it begins and where, with its semicolon, it ends.
    span: tuple[int, int]

    @property
    def parts(self) -> list[str]:
        """The opcode at its dots, with `::` kept: `ld.shared::cluster.u32` has three."""
        return self.opcode.split(".")


@dataclass(frozen=True)
class Label:
    name: str
    line: int
    scope: Scope


@dataclass
class Function:
    """A kernel (`.entry`) or a device function (`.func`); `results` are a function's return parameters."""

    name: str
    is_kernel: bool
    parameters: list[Variable]
    results: list[Variable]
    line: int
    body: list[Instruction | Label] = field(default_factory=list)
    scopes: list[Scope] = field(default_factory=list)
    shared: list[Variable] = field(default_factory=list)
    cluster: int | None = None
    # Threads of a block, where the kernel prescribes them (`.reqntid`).
    block: tuple[int, ...] | None = None
    defined: bool = True


@dataclass
class Module:
    target: str
    variables: list[Variable]
    functions: dict[str, Function]
    lines: list[str]

    @property
    def kernels(self) -> dict[str, Function]:
        return {name: function for name, function in self.functions.items() if function.is_kernel}
