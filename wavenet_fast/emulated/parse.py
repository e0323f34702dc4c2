"""PTX text → `ptx.Module`. Only structure is read here; what an instruction means is the matter of the table."""

from __future__ import annotations

import re

from wavenet_fast.emulated.ptx import SIZES, Function, Instruction, Label, Module, Scope, Variable
from wavenet_fast.errors import EmulationError

_NAME = r"[%$\w.]+"
_VARIABLE = re.compile(
    rf"\.(?P<space>shared|global|const|local|param)\s+(?P<attributes>(?:\.align\s+\d+\s+|\.attribute\([^)]*\)\s+)*)"
    rf"\.(?P<type>\w+)\s+(?P<name>{_NAME})\s*(?P<dims>(?:\[\s*\d*\s*\]\s*)*)(?:=\s*(?P<value>.*))?$",
    re.S,
)
_PARAMETER = re.compile(
    rf"\.param\s+(?:\.align\s+(?P<align0>\d+)\s+)?\.(?P<type>\w+)\s+(?P<pointer>\.ptr\s+)?(?:\.(?:global|shared|const|local)\s+)?"
    rf"(?:\.align\s+(?P<align>\d+)\s+)?(?P<name>{_NAME})\s*(?:\[\s*(?P<count>\d*)\s*\])?$"
)
_LINKAGE = re.compile(r"^(?:\.(?:visible|extern|weak|common)\s+)+")


class _Reader:
    """Text without comments, and which line a position is on."""

    def __init__(self, text: str) -> None:
        self.lines = text.splitlines()
        # A string keeps its place and loses its content, which may hold anything.
        text = re.sub(r'"[^"\n]*"', lambda match: '"' + "_" * (len(match[0]) - 2) + '"', text)
        self.text = re.sub(r"/\*.*?\*/|//[^\n]*", lambda match: re.sub(r"[^\n]", " ", match[0]), text, flags=re.S)
        self.position = 0
        self._line = 1
        self._counted = 0

    def line(self, position: int) -> int:
        self._line += self.text.count("\n", self._counted, position)
        self._counted = position
        return self._line

    def skip_space(self) -> bool:
        """Goes to the next character that is none; False at the end."""
        match = re.compile(r"\s*").match(self.text, self.position)
        assert match
        self.position = match.end()
        return self.position < len(self.text)

    def take(self, pattern: str) -> re.Match[str] | None:
        match = re.compile(pattern).match(self.text, self.position)
        if match:
            self.position = match.end()
        return match

    def until(self, characters: str) -> str:
        """Text up to the first of `characters` that is not inside brackets of an initialiser."""
        start, depth = self.position, 0
        for position in range(start, len(self.text)):
            character = self.text[position]
            if character in characters and not depth:
                self.position = position
                return self.text[start:position]
            depth += (character in "([{") - (character in ")]}")
        raise EmulationError(
            f"the PTX ends in the middle of a statement that starts on line {self.line(start)}: "
            "give the compiler's whole output",
            self._line,
        )


def split_operands(text: str) -> tuple[str, ...]:
    """Splits at the commas that are outside of brackets."""
    operands, depth, current = [], 0, ""
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and not depth:
            operands.append(current.strip())
            current = ""
        else:
            current += character
    return tuple([*operands, current.strip()] if current.strip() else operands)


def parse(text: str) -> Module:
    """Reads a PTX module.

    Raises:
        EmulationError: it is not PTX, or holds a directive that is not known here; the message names the line.
    """
    reader = _Reader(text)
    module = Module("", [], {}, reader.lines)
    while reader.skip_space():
        line = reader.line(reader.position)
        if match := reader.take(r"\.(version|target|address_size|file|loc)\b([^\n]*)"):
            if match[1] == "target":
                module.target = match[2].split(",")[0].strip()
            if match[1] == "address_size" and match[2].strip() != "64":
                raise EmulationError(f"line {line}: 32-bit PTX is not emulated; compile for .address_size 64", line)
        elif reader.take(r"\.section\s+[^{]*\{"):
            _skip_section(reader)
        elif reader.take(r"\.(pragma|alias)\b[^;]*;"):
            pass
        elif re.compile(r"(\.(visible|extern|weak)\s+)*\.(entry|func)\b").match(reader.text, reader.position):
            _read_function(reader, module)
        elif re.compile(r"(\.(visible|extern|weak|common)\s+)*\.(shared|global|const)\b").match(
            reader.text, reader.position
        ):
            for variable in _variables(" ".join(reader.until(";").split()), line):
                module.variables.append(variable)
            reader.position += 1
        else:
            found = reader.text[reader.position :].split("\n")[0][:60]
            raise EmulationError(f"line {line}: `{found}` is not PTX that is known here", line)
    return module


def _skip_section(reader: _Reader) -> None:
    """Debug information: no semicolons, one pair of braces."""
    reader.until("}")
    reader.position += 1


def _variables(statement: str, line: int) -> list[Variable]:
    """The variables of one declaration; several may share it."""
    external = ".extern" in statement.split("=")[0]
    statement = _LINKAGE.sub("", statement)
    first, *others = split_operands(statement)
    head = re.match(r"(.*?\.\w+\s+)[%$\w]+\s*(\[|=|$)", first)
    return [
        _variable(piece, line, external)
        for piece in [first, *(f"{head[1] if head else ''}{other}" for other in others)]
    ]


def _variable(statement: str, line: int, external: bool) -> Variable:
    match = _VARIABLE.match(statement)
    if not match or match["type"] not in SIZES:
        raise EmulationError(f"line {line}: the declaration `{statement[:80]}` is not known here", line)
    align = re.search(r"\.align\s+(\d+)", match["attributes"] or "")
    if align and not _is_power_of_two(int(align[1])):
        raise EmulationError(f"line {line}: .align {align[1]}; possible: powers of two", line)
    element = SIZES[match["type"]]
    count: int | None = 1
    for dim in re.findall(r"\[\s*(\d*)\s*\]", match["dims"]):
        count = count * int(dim) if dim and count is not None else None
    initial = None
    if match["value"] is not None:
        initial = _initial(match["value"], match["type"], line)
        count = count if count is not None else len(initial) // element
    size = None if count is None else count * element
    if external and match["space"] == "shared" and match["dims"]:
        size = None
    if initial is not None and size is not None:
        initial = initial.ljust(size, b"\0")
    return Variable(
        match["name"], match["space"], match["type"], size, int(align[1]) if align else element, line, initial
    )


def _is_power_of_two(number: int) -> bool:
    return number > 0 and not number & (number - 1)


def _initial(text: str, kind: str, line: int) -> bytes:
    """The bytes of an initialiser: numbers, flat or nested in braces."""
    values = re.findall(r"[^\s,{}]+", text)
    out = bytearray()
    size = SIZES[kind]
    for value in values:
        if match := re.fullmatch(r"0[fFdD]([0-9a-fA-F]{8}|[0-9a-fA-F]{16})", value):
            number = int(match[1], 16)
        elif re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", value):
            number = int(value.rstrip("U"), 0) if not re.fullmatch(r"-?0\d+U?", value) else int(value.rstrip("U"), 8)
        else:
            raise EmulationError(f"line {line}: the initial value `{value}` is not emulated; possible: numbers", line)
        out += (number % (1 << 8 * size)).to_bytes(size, "little")
    return bytes(out)


def _parameters(text: str, line: int) -> list[Variable]:
    result = []
    for piece in split_operands(text):
        match = _PARAMETER.match(" ".join(piece.split()))
        if match is None:
            match = _PARAMETER.match(re.sub(r"^\.reg\b", ".param", " ".join(piece.split())))
        if match is None or match["type"] not in SIZES:
            raise EmulationError(f"line {line}: the parameter `{piece}` is not known here", line)
        size = SIZES[match["type"]]
        count = int(match["count"]) if match["count"] else 1
        align = int(match["align0"] or size)
        result.append(
            Variable(match["name"], "param", match["type"], size * count, align, line, None, bool(match["pointer"]))
        )
    return result


def _read_function(reader: _Reader, module: Module) -> None:
    line = reader.line(reader.position)
    head = reader.take(
        r"(?:\.(?:visible|extern|weak)\s+)*\.(entry|func)\s*(\.\w+\s+)*(?:\((?P<results>[^)]*)\)\s*)?(?P<name>[$\w]+)\s*"
    )
    if head is None:
        raise EmulationError(f"line {line}: a kernel or function without a name", line)
    arguments = reader.take(r"\(([^)]*)\)")
    function = Function(
        head["name"],
        head[1] == "entry",
        _parameters(arguments[1] if arguments else "", line),
        _parameters(head["results"] or "", line),
        line,
    )
    attributes = reader.until("{;")
    if match := re.search(r"\.reqnctapercluster\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?", attributes):
        function.cluster = int(match[1])
        if int(match[2] or 1) * int(match[3] or 1) != 1:
            raise EmulationError(f"line {line}: clusters are emulated along x only", line)
    if match := re.search(r"\.reqntid\s+([\d,\s]+)", attributes):
        function.block = tuple(int(size) for size in match[1].split(","))
    declared = reader.text[reader.position] == ";"
    reader.position += 1
    if declared:
        function.defined = False
        module.functions.setdefault(function.name, function)
        return
    if (other := module.functions.get(function.name)) and other.defined:
        raise EmulationError(f"line {line}: `{function.name}` is there already, on line {other.line}", line)
    _read_body(reader, function, module)
    module.functions[function.name] = function


def _read_body(reader: _Reader, function: Function, module: Module) -> None:
    scope = Scope(0, None)
    function.scopes.append(scope)
    while reader.skip_space():
        line = reader.line(reader.position)
        if reader.take(r"\{"):
            scope = Scope(len(function.scopes), scope)
            function.scopes.append(scope)
        elif reader.take(r"\}"):
            if scope.parent is None:
                return
            scope = scope.parent
        elif reader.take(r"\.(loc|file)\b[^\n]*"):
            pass
        elif match := reader.take(r"([$\w]+)\s*:(?!:)\s*(\.branchtargets\s+|\.callprototype\b)?"):
            if match[2] and "branchtargets" in match[2]:
                scope.targets[match[1]] = [name.strip() for name in reader.until(";").split(",")]
                reader.position += 1
            elif match[2]:
                reader.until(";")
                reader.position += 1
            else:
                if match[1] in scope.labels:
                    raise EmulationError(f"line {line}: the label `{match[1]}` is there already", line)
                scope.labels[match[1]] = len(function.body)
                function.body.append(Label(match[1], line, scope))
        else:
            start = reader.position
            statement = " ".join(reader.until(";").split())
            reader.position += 1
            _read_statement(statement, line, (start, reader.position), scope, function, module)
    raise EmulationError(f"the PTX ends inside of `{function.name}`: give the compiler's whole output", function.line)


def _read_statement(
    statement: str, line: int, span: tuple[int, int], scope: Scope, function: Function, module: Module
) -> None:
    if not statement or statement.startswith(".pragma"):
        return
    if match := re.match(r"\.reg\s*\.(\w+)\s+(.*)", statement):
        if match[1] not in SIZES:
            raise EmulationError(f"line {line}: registers of type .{match[1]} are not emulated", line)
        for name in split_operands(match[2]):
            many = re.fullmatch(r"(.+?)<(\d+)>", name)
            names = [f"{many[1]}{i}" for i in range(int(many[2]))] if many else [name]
            if twice := next((name for name in names if name in scope.registers), None):
                raise EmulationError(f"line {line}: the register `{twice}` is there already", line)
            scope.registers.update(dict.fromkeys(names, match[1]))
        return
    if re.match(r"(\.extern\s+)?\.(shared|local|param|global|const)\b", statement):
        for variable in _variables(statement, line):
            if variable.space == "shared":
                function.shared.append(variable)
            elif variable.space in ("global", "const"):
                module.variables.append(variable)
            else:
                scope.variables[variable.name] = variable
        return
    match = re.match(r"(?:@(!?\s*[%$\w]+)\s+)?([a-z][\w]*(?:\.[\w:]+)*)\s*(.*)", statement)
    if not match:
        raise EmulationError(f"line {line}: `{statement[:80]}` is not an instruction that is known here", line)
    guard = match[1].replace(" ", "") if match[1] else None
    function.body.append(Instruction(match[2], split_operands(match[3]), guard, line, scope, span))
