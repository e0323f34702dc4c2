"""Instructions that several threads execute together: barriers, fences, exchanges in a warp, tensor cores.

Every barrier and fence is a site that a mutation may delete.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from wavenet_fast.emulated.families import SCOPES, family, refuse, scope_of, type_of
from wavenet_fast.emulated.ptx import SIZES, Instruction

if TYPE_CHECKING:
    from wavenet_fast.emulated.emitter import Emitter

# ---- barriers, fences


@family("bar barrier", "cta sync arrive red warp cluster wait aligned acquire release relaxed popc and or pred u32")
def _barrier(e: Emitter, i: Instruction) -> None:
    parts, operands = set(i.parts[1:]), list(i.operands)
    if "warp" in parts:
        with e.breakable("delete", i, "warp barrier deleted"):
            return e.write(f"simt::warp_sync(t, {e.value(operands[0], 'u32')}, {i.line});")
    if "cluster" in parts:
        arrive = "arrive" in parts
        ordered = "false" if "relaxed" in parts else "true"
        if ordered == "true":
            site = e.site("weaken", i, "release made relaxed") if arrive else None
            ordered = "true" if site is None else f"simt::mutant != {site}"
        # Arrival and wait are one barrier: deleting half of it would only be a misuse.
        call = f"simt::cluster_{'arrive' if arrive else 'wait'}(t, {ordered}, {i.line});"
        pair = e.cluster_site(i, arrive)
        return e.write(call if pair is None else f"if (simt::mutant != {pair}) {call}")
    aligned = "true" if i.parts[0] == "bar" or "aligned" in parts else "false"
    target = operands.pop(0) if "red" in parts else None
    predicate = operands.pop() if "red" in parts else None
    number = e.value(operands[0], "u32")
    count = e.value(operands[1], "u32") if len(operands) > 1 else "0"
    common = f"t, {number}, {count}, {aligned}, {i.line}"
    if "arrive" in parts:
        with e.breakable("delete", i, "barrier arrival deleted"):
            return e.write(f"simt::barrier_arrive({common});")
    if target is None or predicate is None:
        with e.breakable("delete", i, "barrier deleted"):
            return e.write(f"simt::barrier_sync({common});")
    how = {"popc": "kPopc", "and": "kAnd", "or": "kOr"}[next(part for part in i.parts if part in ("popc", "and", "or"))]
    own = e.value(predicate, "pred")
    call = f"simt::barrier_sync({common}, simt::{how}, {own})"
    if (site := e.site("delete", i, "reducing barrier deleted")) is not None:
        call = f"(simt::mutant == {site} ? u32({own}) : {call})"
    e.assign(target, call, type_of(i))


@family(
    "membar fence",
    "sc acq_rel acquire release proxy alias async async::generic mbarrier_init "
    "sync_restrict::shared::cta sync_restrict::shared::cluster global shared::cta shared::cluster",
    SCOPES,
)
def _fence(e: Emitter, i: Instruction) -> None:
    # Proxies order accesses that are not emulated (TMA).
    if "proxy" in i.parts:
        return
    if "mbarrier_init" in i.parts:
        with e.breakable("delete", i, "fence of initialised mbarriers deleted"):
            return e.write("simt::fence_mbarriers(t);")
    scope = f"simt::{scope_of(i, 'sys')}"
    with e.breakable("delete", i, "fence deleted"):
        if scope != "simt::kBlock" and (site := e.site("narrow", i, "scope narrowed to the block")) is not None:
            scope = f"narrowed({site}, {scope})"
        e.write(f"simt::fence(t, {scope}, {i.line});")


# ---- warp


@family("shfl", "sync up down bfly idx b32")
def _shuffle(e: Emitter, i: Instruction) -> None:
    if "sync" not in i.parts:
        raise refuse(i, "without .sync is not emulated")
    mode = {"up": "u", "down": "d", "bfly": "b", "idx": "i"}[i.parts[2]]
    operands = ", ".join(e.value(operand, "b32") for operand in i.operands[1:])
    _flagged(e, i, f"simt::shuffle(t, '{mode}', {operands}, {i.line})", "b32")


def _flagged(e: Emitter, i: Instruction, call: str, kind: str) -> None:
    """Assigns a result and, where the instruction asks for it (`%r1|%p1`), its predicate."""
    value, _, flag = i.operands[0].partition("|")
    e.write(f"auto got = {call};")
    if value != "_":
        e.assign(value, "got.value", kind)
    if flag and flag != "_":
        e.assign(flag, "got.flag", "pred")


@family("vote", "sync all any uni ballot pred b32")
def _vote(e: Emitter, i: Instruction) -> None:
    if "sync" not in i.parts:
        raise refuse(i, "without .sync is not emulated")
    mode = {"ballot": "b", "all": "a", "any": "n", "uni": "u"}[i.parts[2]]
    predicate, mask = e.value(i.operands[1], "pred"), e.value(i.operands[2], "b32")
    e.assign(i.operands[0], f"simt::vote(t, '{mode}', {predicate}, {mask}, {i.line})", type_of(i))


@family("match", "sync any all b32 b64")
def _match(e: Emitter, i: Instruction) -> None:
    every = "true" if "all" in i.parts else "false"
    value, mask = e.value(i.operands[1], type_of(i)), e.value(i.operands[2], "b32")
    _flagged(e, i, f"simt::match(t, {every}, {value}, {mask}, {i.line})", "b32")


@family("elect", "sync")
def _elect(e: Emitter, i: Instruction) -> None:
    _flagged(e, i, f"simt::elect(t, {e.value(i.operands[1], 'b32')}, {i.line})", "b32")


@family("redux", "sync add min max and or xor u32 s32 b32 f32 abs NaN")
def _redux(e: Emitter, i: Instruction) -> None:
    kind, name = type_of(i), i.parts[2]
    value, mask = e.value(i.operands[1], kind), e.value(i.operands[2], "b32")
    if kind == "f32":
        options = ", ".join("true" if word in i.parts else "false" for word in ("max", "abs", "NaN"))
        return e.assign(
            i.operands[0], f"raw(simt::reduce_float(t, {options}, as<f32>({value}), {mask}, {i.line}))", kind
        )
    letter = {"add": "a", "and": "&", "or": "|", "xor": "^", "min": "n", "max": "x"}[name]
    if kind == "s32":
        letter = {"min": "m", "max": "M"}.get(name, letter)
    e.assign(i.operands[0], f"simt::reduce(t, '{letter}', {value}, {mask}, {i.line})", kind)


@family("activemask", "b32")
def _active(e: Emitter, i: Instruction) -> None:
    # Which lanes run together is the hardware's choice; a lane alone is always a right answer.
    e.assign(i.operands[0], "1u << t.lane", "b32")


def _matrices(i: Instruction) -> int:
    return next(int(part[1:]) for part in i.parts if part in ("x1", "x2", "x4"))


@family("ldmatrix", "sync aligned m8n8 x1 x2 x4 trans shared shared::cta b16")
def _ldmatrix(e: Emitter, i: Instruction) -> None:
    registers = e.vector(i.operands[0], _matrices(i))
    turned = "true" if "trans" in i.parts else "false"
    e.write(f"auto words = ldmatrix(t, {e.base(i.operands[1], 'shared')}, {len(registers)}, {turned}, {i.line});")
    for n, register in enumerate(registers):
        e.assign(register, f"words.x[{n}]", "b32")


@family("stmatrix", "sync aligned m8n8 x1 x2 x4 trans shared shared::cta b16")
def _stmatrix(e: Emitter, i: Instruction) -> None:
    registers = e.vector(i.operands[1], _matrices(i))
    turned = "true" if "trans" in i.parts else "false"
    values = ", ".join(e.value(register, "b32") for register in registers)
    e.write(f"stmatrix(t, {e.base(i.operands[0], 'shared')}, {len(registers)}, {turned}, {i.line}, {values});")


@family("movmatrix", "sync aligned m8n8 trans b16")
def _movmatrix(e: Emitter, i: Instruction) -> None:
    e.assign(i.operands[0], f"simt::move_matrix(t, {e.value(i.operands[1], 'b32')}, {i.line})", "b32")


# Element type of A and B → the K that are emulated.
MMA = {"f16": (8, 16), "bf16": (8, 16), "tf32": (4, 8), "s8": (16, 32), "u8": (16, 32), "e4m3": (32,), "e5m2": (32,)}
ELEMENTS = {"f16": "kF16", "bf16": "kBF16", "tf32": "kTF32", "s8": "kS8", "u8": "kU8", "e4m3": "kE4M3", "e5m2": "kE5M2"}


@family("mma", "sync aligned row col satfinite f32 s32 m16n8k4 m16n8k8 m16n8k16 m16n8k32", MMA, types=4)
def _mma(e: Emitter, i: Instruction) -> None:
    *_, d, a, b, c = i.parts
    match = re.search(r"\.m16n8k(\d+)\.row\.col\.", i.opcode)
    k = int(match[1]) if match else 0
    whole = a in ("s8", "u8")
    mixed = next((pair for pair in ({"s8", "u8"}, {"e4m3", "e5m2"}) if a in pair), {a})
    results = ("s32",) if whole else ("f32", "f16") if a in ("f16", "e4m3", "e5m2") else ("f32",)
    if k not in MMA.get(a, ()) or b not in mixed or d != c or d not in results:
        raise refuse(i)
    width = 8 * SIZES[a]
    counts = (2 if d == "f16" else 4, k * width // 64, k * width // 128, 2 if d == "f16" else 4)
    for operand, count in zip(i.operands, counts, strict=True):
        e.vector(operand, count)
    groups = [[e.value(register, "b32") for register in e.vector(operand)] for operand in i.operands]
    for group, room in zip(groups[1:], (4, 2, 4), strict=True):
        group.extend(["0u"] * (room - len(group)))
    half, saturate = ("true" if fact else "false" for fact in (d == "f16", "satfinite" in i.parts))
    arguments = ", ".join([*groups[1], *groups[2], *groups[3]])
    kinds = f"simt::{ELEMENTS[a]}, simt::{ELEMENTS[b]}, {k}"
    e.write(f"auto words = simt::mma(t, {kinds}, {half}, {saturate}, {i.line}, {arguments});")
    for n, register in enumerate(e.vector(i.operands[0])):
        e.assign(register, f"words.x[{n}]", "b32")
