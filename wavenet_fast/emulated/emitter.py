"""What the writers of the table call: operands as C++ expressions, assignments, branches, mutation sites."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from wavenet_fast.emulated.calls import identifier, in_parameters
from wavenet_fast.emulated.families import label, lookup, word
from wavenet_fast.emulated.ptx import SIZES, Function, Instruction, Label, Module, Scope, Variable
from wavenet_fast.errors import EmulationError

# Special registers; %clock and its kin advance when they are read, and %smid is the block's number.
SPECIAL = {
    **{f"%tid.{d}": f"t.tid.{d}" for d in "xyz"},
    **{f"%ctaid.{d}": f"t.bid.{d}" for d in "xyz"},
    **{f"%ntid.{d}": f"simt::block.{d}" for d in "xyz"},
    **{f"%nctaid.{d}": f"simt::grid.{d}" for d in "xyz"},
    **{f"%cluster_ctaid.{d}": "t.cluster_rank" if d == "x" else "0" for d in "xyz"},
    **{f"%cluster_nctaid.{d}": "simt::cluster" if d == "x" else "1" for d in "xyz"},
    **{f"%clusterid.{d}": "t.bid.x / simt::cluster" if d == "x" else f"t.bid.{d}" for d in "xyz"},
    **{f"%nclusterid.{d}": "simt::grid.x / simt::cluster" if d == "x" else f"simt::grid.{d}" for d in "xyz"},
    "%cluster_ctarank": "t.cluster_rank",
    "%cluster_nctarank": "simt::cluster",
    "%is_explicit_cluster": "simt::cluster > 1",
    "%laneid": "t.lane",
    "%warpid": "t.warp",
    "%nwarpid": "(simt::block.count() + 31) / 32",
    "%lanemask_eq": "1u << t.lane",
    "%lanemask_lt": "(1u << t.lane) - 1",
    "%lanemask_le": "(2u << t.lane) - 1",
    "%lanemask_gt": "~((2u << t.lane) - 1)",
    "%lanemask_ge": "~((1u << t.lane) - 1)",
    "%envreg1": "reinterpret_cast<u64>(simt::grid_workspace) >> 32",
    "%envreg2": "reinterpret_cast<u64>(simt::grid_workspace)",
    "%dynamic_smem_size": "simt::dynamic_shared",
    "%total_smem_size": "t.shared_size",
    **dict.fromkeys(("%clock", "%clock64", "%globaltimer", "%globaltimer_lo"), "simt::clock()"),
    **dict.fromkeys(("%clock_hi", "%globaltimer_hi"), "simt::clock() >> 32"),
    "%gridid": "0",
    "%smid": "t.bid.x",
    "%nsmid": "simt::grid.x",
    "WARP_SZ": "32",
}


@dataclass(frozen=True)
class Site:
    """A place that a mutation can break; its number is its position in `Translation.sites`."""

    kind: str
    line: int
    description: str
    instruction: Instruction


@dataclass
class Translation:
    """C++ text, and what is needed to launch what it becomes."""

    source: str
    kernels: list[str]
    sites: list[Site] = field(default_factory=list)
    counters: list[str] = field(default_factory=list)
    # Kernel → bytes of its `.shared` variables, before the dynamic part.
    shared: dict[str, int] = field(default_factory=dict)
    # Kernel → bytes of the `.local` variables of a thread, those of all functions together.
    local: dict[str, int] = field(default_factory=dict)


@dataclass
class Options:
    count: bool | Literal["lines"] = False
    mutable: bool = False
    # Bytes after every `.shared` variable, for AddressSanitizer to guard.
    gap: int = 0


class Emitter:
    """Writes one function. The writers of the table call its methods."""

    def __init__(
        self, function: Function, module: Module, symbols: dict[str, str], out: Translation, options: Options
    ) -> None:
        self.function, self.module, self.symbols, self.out, self.options = function, module, symbols, out, options
        self.text: list[str] = []
        self.types: dict[str, str] = {}
        self.instruction: Instruction | None = None
        self.position = 0
        self._cluster: int | None = None
        self.parameters = {p.name: n for n, p in enumerate([*function.results, *function.parameters])}
        self.local_offsets: dict[tuple[int, str], int] = {}
        self.local_size = 0
        self.buffers: list[str] = []
        for scope in function.scopes:
            for variable in scope.variables.values():
                self._place(scope, variable)

    def _place(self, scope: Scope, variable: Variable) -> None:
        """`.local` variables share one array; a `.param` variable of a call is an array of its own."""
        size = variable.size or 0
        if variable.space == "param":
            self.buffers.append(f"alignas(16) char {identifier(variable.name)}_{scope.index}[{max(size, 1)}];")
        else:
            start = -(-self.local_size // variable.align) * variable.align
            self.local_offsets[scope.index, variable.name] = start
            self.local_size = start + size

    # ---- names

    def _find(self, name: str) -> tuple[Scope, str] | None:
        """The innermost scope that declares a register, and the register's type."""
        assert self.instruction
        scope: Scope | None = self.instruction.scope
        while scope:
            if name in scope.registers:
                return scope, scope.registers[name]
            scope = scope.parent
        return None

    def _variable(self, name: str) -> tuple[Scope, Variable] | None:
        assert self.instruction
        scope: Scope | None = self.instruction.scope
        while scope:
            if name in scope.variables:
                return scope, scope.variables[name]
            scope = scope.parent
        return None

    def register(self, name: str) -> tuple[str, str]:
        """C++ name and PTX type of a register."""
        found = self._find(name)
        if found is None:
            raise self.error(f"the register `{name}` is not declared")
        scope, kind = found
        return f"{identifier(name)}_{scope.index}", kind

    def is_predicate(self, operand: str) -> bool:
        found = self._find(operand.lstrip("!"))
        return found is not None and found[1] == "pred"

    def error(self, what: str) -> EmulationError:
        assert self.instruction
        line = self.instruction.line
        return EmulationError(f"line {line}: {what}, in `{self.module.lines[line - 1].strip()}`", line)

    # ---- operands

    def vector(self, operand: str, count: int | None = None) -> list[str]:
        """The registers of an operand in braces; `count` is how many there must be."""
        pieces = [piece.strip() for piece in operand[1:-1].split(",")] if operand.startswith("{") else [operand]
        if count is not None and len(pieces) != count:
            raise self.error(f"`{operand}` has {len(pieces)} registers; needed: {count}")
        return pieces

    def value(self, operand: str, kind: str) -> str:
        """An operand as C++ expression of the unsigned word that holds `kind`; for a predicate, a bool."""
        if kind == "pred":
            return self._predicate(operand)
        size = SIZES[kind]
        if self._find(operand):
            name, held = self.register(operand)
            if held == "pred":
                raise self.error(f"`{operand}` is a predicate")
            self._wide_enough(operand, held, kind)
            return name if SIZES[held] == size else f"{word(kind)}({name})"
        if operand in SPECIAL:
            return f"{word(kind)}({SPECIAL[operand]})"
        if re.fullmatch(r"[-~!]?\s*(0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?", operand):
            return f"{word(kind)}({self._whole(operand)})" if size < 8 else self._whole(operand)
        if match := re.fullmatch(r"(-?)0[fF]([0-9a-fA-F]{8})", operand):
            return self._real_constant(int(match[2], 16) ^ (0x80000000 if match[1] else 0), size)
        if match := re.fullmatch(r"(-?)0[dD]([0-9a-fA-F]{16})", operand):
            if size != 8:
                raise self.error(f"the constant `{operand}` does not fit {kind}")
            return f"0x{int(match[2], 16) ^ (1 << 63 if match[1] else 0):x}ull"
        if re.fullmatch(r"-?\d+\.\d*(e[-+]?\d+)?", operand) and size in (4, 8):
            return f"raw(f{8 * size}({operand}))"
        return f"{word(kind)}({self.symbol(operand)})"

    def _wide_enough(self, register: str, held: str, kind: str) -> None:
        if (held == "pred") != (kind == "pred"):
            raise self.error(f"`{register}` is of type .{held}; needed: .{kind}")
        if SIZES[held] < SIZES[kind]:
            raise self.error(f"`{register}` has {8 * SIZES[held]} bits; needed: {8 * SIZES[kind]}")

    def _predicate(self, operand: str) -> str:
        if re.fullmatch(r"-?\d+", operand):
            return "true" if int(operand) else "false"
        negated = operand.startswith("!")
        name, kind = self.register(operand.lstrip("! "))
        if kind != "pred":
            raise self.error(f"`{operand}` is no predicate")
        return f"!{name}" if negated else name

    def _whole(self, operand: str) -> str:
        text = operand.rstrip("U").replace(" ", "")
        sign = text[0] if text[0] in "-~!" else ""
        digits = text[len(sign) :]
        number = int(digits, 8) if re.fullmatch(r"0[0-7]+", digits) else int(digits, 0)
        number = {"": number, "-": -number, "~": ~number, "!": int(not number)}[sign]
        return f"0x{number % (1 << 64):x}ull"

    def _real_constant(self, bits: int, size: int) -> str:
        if size == 4:
            return f"0x{bits:08x}u"
        raise self.error("a single-precision constant does not fit")

    def symbol(self, operand: str) -> str:
        """A variable's address in its space, perhaps plus an offset; of a parameter, where it lies."""
        match = re.fullmatch(r"([%$\w.]+?)\s*(?:\+\s*(-?(?:0[xX])?[0-9a-fA-F]+))?", operand)
        offset = int(match[2], 0) if match and match[2] else 0
        name = match[1] if match else operand
        if found := self._variable(name):
            scope, variable = found
            if variable.space == "local":
                return f"{self.local_offsets[scope.index, name] + offset}"
            return f"reinterpret_cast<u64>({identifier(name)}_{scope.index}) + {offset}"
        if name in self.parameters:
            return f"reinterpret_cast<u64>(PARAM[{self.parameters[name]}]) + {offset}"
        if name in self.symbols:
            return f"{self.symbols[name]} + {offset}"
        raise self.error(f"`{operand}` is not known")

    def base(self, operand: str, space: str) -> str:
        """`[register + offset]` as an address of 64 bits in its space."""
        match = re.fullmatch(r"\[\s*([^\s+\]]+)\s*(?:\+\s*(-?\s*(?:0[xX])?[0-9a-fA-F]+)U?)?\s*\]", operand)
        if not match:
            raise self.error(f"the address `{operand}` is not understood")
        name, offset = match[1], int((match[2] or "0").replace(" ", ""), 0)
        if found := self._find(name):
            narrow = SIZES[found[1]] < 8
            register = self.register(name)[0]
            # 32-bit addresses wrap around in 32 bits.
            if narrow:
                return f"u64(u32({register} + {offset}u))" if offset >= 0 else f"u64(u32({register} - {-offset}u))"
            return f"{register} + {offset}" if offset else register
        if re.fullmatch(r"\d+|0[xX][0-9a-fA-F]+", name):
            return f"{int(name, 0) + offset}ull"
        return f"u64({self.symbol(f'{name}+{offset}')})"

    def address(self, operand: str, space: str, size: int | str, write: bool, align: int | None = None) -> str:
        """The host pointer of an operand in brackets, checked for its space; `size` and `align` in bytes."""
        assert self.instruction
        place, line = self.base(operand, space), self.instruction.line
        align = align if align is not None else int(size)
        template = f"<{'true' if write else 'false'}>"
        if space == "param":
            return in_parameters(self, self.instruction, operand, place, int(size))
        if space in ("global", "const"):
            return f"global{template}(t, {place}, {size}, {align}, {line})"
        if space == "generic":
            return f"generic{template}(t, {place}, {size}, {align}, {line})"
        return f"{space}(t, {place}, {size}, {align}, {line})"

    # ---- statements

    def write(self, statement: str) -> None:
        self.text.append(f"    {statement}")

    def assign(self, target: str, value: str, kind: str) -> None:
        """`target = value`, the value a word of `kind`; a wider register is extended by the type's sign."""
        if target == "_":
            return self.write(f"(void)({value});")
        name, held = self.register(target)
        self._wide_enough(target, held, kind)
        if held == "pred" or SIZES[held] == SIZES[kind]:
            return self.write(f"{name} = {value};")
        if kind[0] == "s" and SIZES[held] > SIZES[kind]:
            return self.write(f"{name} = {word(held)}(s64({kind}({value})));")
        self.write(f"{name} = {word(held)}({word(kind)}({value}));")

    def assign_all(self, assignments: list[tuple[str, str, str]]) -> None:
        """Several at once: all values are computed before the first target changes."""
        if len(assignments) > 1:
            for n, (_, value, kind) in enumerate(assignments):
                self.write(f"{word(kind)} value{n} = {value};")
            assignments = [(target, f"value{n}", kind) for n, (target, _, kind) in enumerate(assignments)]
        for target, value, kind in assignments:
            self.assign(target, value, kind)

    def label(self, name: str) -> tuple[Scope, int]:
        assert self.instruction
        scope: Scope | None = self.instruction.scope
        while scope:
            if name in scope.labels:
                return scope, scope.labels[name]
            scope = scope.parent
        raise self.error(f"the label `{name}` does not exist")

    def branch(self, i: Instruction, name: str) -> None:
        scope, position = self.label(name)
        if position <= self.position:
            self.write(f"BACKWARD({i.line});")
        self.write(f"goto {identifier(name)}_{scope.index}_label;")

    def targets(self, i: Instruction, name: str) -> list[str]:
        scope: Scope | None = i.scope
        while scope:
            if name in scope.targets:
                return scope.targets[name]
            scope = scope.parent
        raise self.error(f"the branch table `{name}` does not exist")

    # ---- mutation

    def site(self, kind: str, i: Instruction, description: str) -> int | None:
        """Enters a site and gives its number; None where the program is not to be mutated."""
        if not self.options.mutable:
            return None
        self.out.sites.append(Site(kind, i.line, description, i))
        return len(self.out.sites) - 1

    def cluster_site(self, i: Instruction, arrive: bool) -> int | None:
        """One site for an arrival and the wait that follows it."""
        if arrive:
            self._cluster = self.site("delete", i, "cluster barrier deleted")
        return self._cluster

    @contextlib.contextmanager
    def breakable(self, kind: str, i: Instruction, description: str) -> Iterator[None]:
        """What is written inside is left out in the mutant of this site."""
        number = self.site(kind, i, description)
        if number is not None:
            self.write(f"if (simt::mutant != {number})")
        yield

    # ---- the whole function

    def run(self) -> list[str]:
        for position, item in enumerate(self.function.body):
            self.position = position
            if isinstance(item, Label):
                self.text.append(f"  {identifier(item.name)}_{item.scope.index}_label:;")
            else:
                self._instruction(item)
        head = []
        used = set(re.findall(r"\w+", "\n".join(self.text)))
        for scope in self.function.scopes:
            for name, kind in scope.registers.items():
                if (register := f"{identifier(name)}_{scope.index}") in used:
                    # All ones is NaN: what is read before it is written is noticed.
                    poison = "false" if kind == "pred" else "~0"
                    head.append(f"  {word(kind)} {register} = {word(kind)}({poison});")
        return [*head, *(f"  {buffer}" for buffer in self.buffers), *self.text]

    def _instruction(self, i: Instruction) -> None:
        self.instruction = i
        found = lookup(i)
        self.text.append(f'#line {i.line} "kernel.ptx"')
        guard = f"if ({self._predicate(i.guard)}) " if i.guard else ""
        start = len(self.text)
        self.text.append(f"  {guard}{{")
        if self.options.count:
            name = str(i.line) if self.options.count == "lines" else label(i)
            if name not in self.out.counters:
                self.out.counters.append(name)
            self.write(f"t.counts[{self.out.counters.index(name)}]++;")
        try:
            found.write(self, i)
        except (ValueError, IndexError, KeyError, StopIteration) as error:
            raise self.error(f"`{i.opcode}` is not understood") from error
        self.text.append("  }")
        # On one line, so that all of it has the line of the PTX.
        self.text[start:] = [" ".join(piece.strip() for piece in self.text[start:])]
