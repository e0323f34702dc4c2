"""Mutation check: is a kernel's test good enough to notice that one barrier, fence, order or wait is missing?

Every site of a kernel that keeps threads in step is broken in turn: barriers, fences, arrivals and waits are deleted,
waits for copies leave one group more under way, acquire and release become relaxed, or hold within the block only. One
compilation serves all mutants: each site has a switch in the generated code.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm import tqdm  # type: ignore[import-untyped]

from wavenet_fast.emulated.parse import parse
from wavenet_fast.emulated.program import Mode, Program
from wavenet_fast.emulated.ptx import Instruction, Label, Module
from wavenet_fast.emulated.translate import Options, Site, translate
from wavenet_fast.errors import EmulationError

# Seconds that a launch of a mutant may take: a mutant that hangs is caught.
TIME_LIMIT = 120.0


@dataclass(frozen=True)
class Mutant:
    """One broken site. `text` is the PTX with that one change; `equivalent` says why nothing can notice, or is None."""

    site: int
    kind: str
    line: int
    description: str
    text: str
    equivalent: str | None


@dataclass(frozen=True)
class Caught:
    """How a mutant was noticed: in which mode, and by what."""

    mutant: Mutant
    mode: Mode
    by: str


@dataclass
class MutationReport:
    """What became of every mutant that was run; `equivalent` ones are listed and not run."""

    caught: list[Caught] = field(default_factory=list)
    survived: list[Mutant] = field(default_factory=list)
    equivalent: list[Mutant] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For a results file: counts, and line and description of every mutant."""

        def told(m: Mutant) -> dict[str, Any]:
            return {"line": m.line, "kind": m.kind, "description": m.description}

        return {
            "mutants": len(self.caught) + len(self.survived) + len(self.equivalent),
            "caught": [{**told(c.mutant), "mode": c.mode, "by": c.by} for c in self.caught],
            "survived": [told(m) for m in self.survived],
            "equivalent": [{**told(m), "reason": m.equivalent} for m in self.equivalent],
        }


def mutants(ptx: str) -> list[Mutant]:
    """Every mutant of a module; a mutant's `site` is its number in `Program(ptx, mutable=True).sites`."""
    module = parse(ptx)
    sites = translate(module, Options(mutable=True)).sites
    return [
        Mutant(number, site.kind, site.line, site.description, _mutated(ptx, module, site), _equivalent(module, site))
        for number, site in enumerate(sites)
    ]


def survivors(
    ptx: str,
    run: Callable[[Program], Any],
    *,
    modes: Sequence[Mode] = ("plain", "thread"),
    sites: Sequence[int] | None = None,
    workers: int | None = None,
) -> MutationReport:
    """Runs a check on every mutant, in each mode until one notices.

    Args:
        run: launches a program, on data of its own, and gives what came out: arrays, or lists, tuples and dicts of
            them. A mutant is caught when this differs from the unbroken program's, bit for bit, or when `run` raises
            an `EmulationError` (a race, a deadlock, an access out of bounds …) or an `AssertionError`.
        sites: the mutants to run, all by default.
        workers: how many at once; mode `plain` runs one at a time in any case.

    Raises:
        EmulationError, AssertionError: from `run`, on the unbroken program.
    """
    everything = mutants(ptx)
    chosen = [everything[site] for site in sites] if sites is not None else everything
    report = MutationReport(equivalent=[mutant for mutant in chosen if mutant.equivalent])
    programs = {mode: Program(ptx, mode, mutable=True) for mode in modes}
    expected = {mode: run(program) for mode, program in programs.items()}

    def check(mutant: Mutant) -> Caught | Mutant:
        for mode, program in programs.items():
            by = _noticed(run, program.with_mutant(mutant.site, TIME_LIMIT), expected[mode])
            if by:
                return Caught(mutant, mode, by)
        return mutant

    todo = [mutant for mutant in chosen if not mutant.equivalent]
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        for outcome in tqdm(pool.map(check, todo), "mutants", len(todo), disable=None):
            if isinstance(outcome, Caught):
                report.caught.append(outcome)
            else:
                report.survived.append(outcome)
    return report


def _noticed(run: Callable[[Program], Any], program: Program, expected: Any) -> str | None:
    try:
        got = run(program)
    except (EmulationError, AssertionError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return None if same(got, expected) else "the results differ"


def same(a: Any, b: Any) -> bool:
    """Equal bit for bit; NaN equals NaN of the same bits."""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(same, a, b))
    if hasattr(a, "data_ptr"):
        a, b = a.detach().contiguous(), b.detach().contiguous()
        view = {1: "uint8", 2: "int16", 4: "int32", 8: "int64"}[a.element_size()]
        import torch

        return bool(a.shape == b.shape and torch.equal(a.view(getattr(torch, view)), b.view(getattr(torch, view))))
    a, b = np.asarray(a), np.asarray(b)
    return bool(a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes())


# ---- the mutated text


def _mutated(ptx: str, module: Module, site: Site) -> str:
    i = site.instruction
    spans = [(i.span, _replacement(ptx[slice(*i.span)], site))]
    if "cluster" in i.parts and site.kind == "delete":
        # The site is the pair of arrival and wait.
        following = next(j for j in _after(module, i) if isinstance(j, Instruction) and "wait" in j.parts)
        spans.append((following.span, "/* deleted */"))
    for (start, end), text in reversed(spans):
        ptx = ptx[:start] + text + ptx[end:]
    return ptx


def _replacement(statement: str, site: Site) -> str:
    i = site.instruction
    if site.kind == "weaken":
        weaker = re.sub(r"\.(acq_rel|acquire|release)\b", ".relaxed", statement, count=1)
        # Without a word in the text the order is the default, acquire or release.
        return weaker if weaker != statement else statement.replace(i.opcode, _with_relaxed(i), 1)
    if site.kind == "narrow":
        return re.sub(r"\.(cluster|gpu|gl|sys)\b", ".cta", statement, count=1)
    guard = f"@{i.guard} " if i.guard else ""
    if site.kind == "loosen":
        return f"{guard}{i.opcode} {int(i.operands[0], 0) + 1};"
    if i.parts[0] in ("bar", "barrier") and "red" in i.parts:
        return guard + _without_others(i)
    if i.parts[0] == "mbarrier" and "wait" in i.parts[1]:
        return f"{guard}setp.eq.u32 {i.operands[0]}, 0, 0;"
    if i.parts[0] == "mbarrier" and i.operands[0] != "_":
        return f"{guard}mov.b64 {i.operands[0]}, 0;"
    return "/* deleted */"


def _without_others(i: Instruction) -> str:
    """What a reduction over the threads of a barrier gives to a thread that is alone."""
    own, negated = i.operands[-1].lstrip("! "), i.operands[-1].startswith("!")
    if "popc" in i.parts:
        return f"selp.u32 {i.operands[0]}, {'0, 1' if negated else '1, 0'}, {own};"
    return f"{'not' if negated else 'mov'}.pred {i.operands[0]}, {own};"


def _with_relaxed(i: Instruction) -> str:
    head = 3 if i.parts[0] == "barrier" else 2
    parts = i.parts
    if i.parts[0] == "mbarrier" and "parity" in parts:
        head = parts.index("parity") + 1
    scope = [] if i.parts[0] == "barrier" or any(part in ("cta", "cluster") for part in parts) else ["cta"]
    return ".".join([*parts[:head], "relaxed", *scope, *parts[head:]])


# ---- mutants that nothing can notice

_MEMORY = {"ld", "ldu", "st", "atom", "red", "cp", "ldmatrix", "stmatrix", "fence", "membar", "mbarrier", "call"}
_FLOW = {"bra", "brx", "ret", "exit", "trap"}


def _body(module: Module, i: Instruction) -> list[Instruction | Label]:
    return next(function.body for function in module.functions.values() if i in function.body)


def _after(module: Module, i: Instruction) -> list[Instruction | Label]:
    body = _body(module, i)
    return body[body.index(i) + 1 :]


def _is_barrier(i: Instruction) -> bool:
    """`bar.sync` of all threads; of which barrier, its first operand says."""
    return i.parts[0] in ("bar", "barrier") and "sync" in i.parts and "warp" not in i.parts and len(i.operands) == 1


def _touches(item: Instruction) -> bool:
    return item.parts[0] in _MEMORY and "param" not in item.parts


def _equivalent(module: Module, site: Site) -> str | None:
    """Why a mutant cannot be noticed, as far as the text shows it."""
    i = site.instruction
    if i.parts[:2] == ["barrier", "cluster"] and site.kind == "weaken":
        last = all(
            isinstance(item, Label) or not (_touches(item) or item.parts[0] == "bra") for item in _after(module, i)
        )
        return "no access to memory follows it" if last else None
    if "mbarrier_init" in i.parts:
        relaxed = any(isinstance(j, Instruction) and _is_relaxed_arrival(j) for j in _after(module, i))
        return None if relaxed else "what follows it releases, and so orders the initialisation too"
    return _next_to_another(module, site)


def _is_relaxed_arrival(i: Instruction) -> bool:
    return i.parts[:3] == ["barrier", "cluster", "arrive"] and "relaxed" in i.parts


def _next_to_another(module: Module, site: Site) -> str | None:
    """A barrier that is next to another one, without an access to memory between, orders nothing of its own."""
    i = site.instruction
    if site.kind != "delete" or not _is_barrier(i) or i.guard:
        return None
    body = _body(module, i)
    position = body.index(i)
    for items, past_labels in ((body[position + 1 :], True), (reversed(body[:position]), False)):
        for item in items:
            if isinstance(item, Label):
                # Coming from above, a label may be reached from elsewhere, without the other barrier.
                if past_labels:
                    continue
                break
            if _is_barrier(item) and not item.guard and item.operands == i.operands:
                return f"the barrier on line {item.line} is next to it, and no access to memory lies between"
            if _touches(item) or item.parts[0] in _FLOW or item.parts[0] in ("bar", "barrier"):
                break
    return None
