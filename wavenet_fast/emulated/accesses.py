"""Instructions that touch memory, other threads or the flow of control.

Sites that a mutation may break are announced with `Emitter.site`: barriers, waits, fences, and orders of accesses.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from wavenet_fast.emulated.families import HINT_PREFIXES, REALS, SCOPES, WHOLES, cpp, family, refuse, type_of, word
from wavenet_fast.emulated.ptx import SIZES, Instruction

if TYPE_CHECKING:
    from wavenet_fast.emulated.translate import Emitter

SPACES = {
    "global",
    "shared",
    "shared::cta",
    "shared::cluster",
    "local",
    "param",
    "param::entry",
    "param::func",
    "const",
}
ORDERS = {"weak", "relaxed", "acquire", "release", "acq_rel", "volatile", "mmio"}
VECTORS = {"v2": 2, "v4": 4, "v8": 8}
TYPES = (REALS | WHOLES) - {"f32x2", "f16x2", "bf16x2"}


def _space(i: Instruction, names: set[str] = SPACES) -> str:
    return next((part.split("::")[0] for part in i.parts[1:] if part in names), "generic")


def _order(e: Emitter, i: Instruction, default: str = "kRelaxed") -> str:
    """The order of a synchronising access, as an expression that a mutation can weaken."""
    names = {"acquire": "kAcquire", "release": "kRelease", "acq_rel": "kBoth", "relaxed": "kRelaxed"}
    order = next((names[part] for part in i.parts if part in names), default)
    if order == "kRelaxed":
        return order
    site = e.site("weaken", i, f"{order[1:].lower()} made relaxed")
    return f"weakened({site}, {order})" if site is not None else order


def _hinted(i: Instruction) -> tuple[str, ...]:
    """The operands without the cache policy."""
    return i.operands[:-1] if "L2::cache_hint" in i.parts else i.operands


@family("ld ldu", "unified", SPACES, ORDERS - {"release", "acq_rel"}, SCOPES, VECTORS, TYPES, hints=True)
def _load(e: Emitter, i: Instruction) -> None:
    kind, space = type_of(i), _space(i)
    target, source = _hinted(i)
    registers = e.vector(target)
    size = SIZES[kind]
    place = e.address(source, space, size * len(registers), write=False)
    ordered = [part for part in i.parts if part in ORDERS and part != "weak"]
    e.write(f"const char* p = {place};")
    for n, register in enumerate(registers):
        at = f"p + {n * size}" if n else "p"
        value = f"load<{word(kind)}>({at})"
        if ordered and space not in ("param", "local", "const"):
            value = f"load_ordered<{word(kind)}>(t, {at}, {_order(e, i)}, {i.line})"
        if register != "_":
            e.assign(register, value, kind)


@family("st", "", SPACES, ORDERS - {"acquire", "acq_rel"}, SCOPES, VECTORS, TYPES, hints=True)
def _store(e: Emitter, i: Instruction) -> None:
    kind, space = type_of(i), _space(i)
    target, source = _hinted(i)
    values = e.vector(source)
    size = SIZES[kind]
    ordered = [part for part in i.parts if part in ORDERS and part != "weak"]
    e.write(f"char* p = {e.address(target, space, size * len(values), write=True)};")
    for n, value in enumerate(values):
        at = f"p + {n * size}" if n else "p"
        if ordered and space not in ("param", "local"):
            e.write(f"store_ordered<{word(kind)}>(t, {at}, {_order(e, i)}, {e.value(value, kind)});")
        else:
            e.write(f"store<{word(kind)}>({at}, {e.value(value, kind)});")


ATOMS = {"add", "min", "max", "and", "or", "xor", "exch", "inc", "dec", "cas"}


@family(
    "atom red",
    "noftz",
    ATOMS,
    {"global", "shared", "shared::cta", "shared::cluster"},
    ORDERS - {"weak", "volatile", "mmio"},
    SCOPES,
    VECTORS,
    REALS - {"f32x2"},
    WHOLES,
    hints=True,
)
def _atom(e: Emitter, i: Instruction) -> None:
    kind, operands = type_of(i), list(_hinted(i))
    name = next(part for part in i.parts if part in ATOMS)
    targets = e.vector(operands.pop(0)) if i.parts[0] == "atom" else None
    place, *sources = operands
    values = e.vector(sources[0])
    size = SIZES[kind]
    e.write(f"char* p = {e.address(place, _space(i), size * len(values), write=True)};")
    order = _order(e, i)
    for n, value in enumerate(values):
        at = f"p + {n * size}" if n else "p"
        if name == "cas":
            update = f"old == {e.value(value, kind)} ? {e.value(sources[1], kind)} : old"
        else:
            update = f"atom_{name}<{cpp(kind)}>(old, {e.value(value, kind)})"
        function = f"[&]({word(kind)} old) -> {word(kind)} {{ return {update}; }}"
        change = f"modify<{word(kind)}>(t, {at}, {order}, {i.line}, {function})"
        if targets is None or targets[n] == "_":
            e.write(f"{change};")
        else:
            e.assign(targets[n], change, kind)


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
            site = e.site("weaken", i, f"{'release' if arrive else 'acquire'} made relaxed")
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
    e.assign(target, f"simt::barrier_sync({common}, simt::{how}, {e.value(predicate, 'pred')})", type_of(i))


@family(
    "membar fence",
    "sc acq_rel acquire release proxy alias async async::generic mbarrier_init "
    "sync_restrict::shared::cta sync_restrict::shared::cluster global shared::cta shared::cluster",
    SCOPES,
)
def _fence(e: Emitter, i: Instruction) -> None:
    # Proxies order accesses that are not emulated (TMA); initialisation of an mbarrier is ordered by what follows it.
    if "proxy" in i.parts or "mbarrier_init" in i.parts:
        return
    with e.breakable("delete", i, "fence deleted"):
        e.write("simt::fence(t);")


# ---- cp.async


@family(
    "cp",
    "async commit_group wait_group wait_all mbarrier arrive noinc b64 shared shared::cta shared::cluster global",
    hints=True,
)
def _copy(e: Emitter, i: Instruction) -> None:
    if i.parts[1] != "async":
        raise refuse(i)
    if "commit_group" in i.parts:
        return e.write("simt::copies_commit(t);")
    if "wait_group" in i.parts or "wait_all" in i.parts:
        keep = "simt::kEvery" if "wait_all" in i.parts else e.value(i.operands[0], "u64")
        with e.breakable("delete", i, "wait for copies deleted"):
            return e.write(f"copies_wait(t, {keep});")
    if "mbarrier" in i.parts:
        place = e.address(i.operands[0], _space(i, {"shared", "shared::cta"}), 8, write=True)
        e.write(f"const void* p = mbarrier_use(t, {place}); copies_wait(t, simt::kEvery);")
        if "noinc" not in i.parts:
            e.write(f"simt::mbarrier_increment(t, p, {i.line});")
        return e.write(f"simt::mbarrier_arrive(t, p, 1, false, true, {i.line});")
    target, source, amount, *rest = _hinted(i)
    size = int(amount, 0)
    read = f"{size}u"
    if rest:
        read = f"({e.value(rest[0], 'pred')} ? 0u : {size}u)" if e.is_predicate(rest[0]) else e.value(rest[0], "u32")
    e.write(f"u32 read = {read};")
    # Nothing is read of a masked copy, whose address may be anything.
    place = e.address(source, "global", "read", write=False, align=size)
    e.write(f"const char* from = read ? {place} : nullptr;")
    e.write(f"copy_async(t, {e.address(target, 'shared', size, write=True)}, from, {size}, read);")


# ---- mbarrier


@family(
    "mbarrier",
    "init inval arrive arrive_drop test_wait try_wait parity noComplete release acquire relaxed cta cluster "
    "shared shared::cta shared::cluster b64",
)
def _mbarrier(e: Emitter, i: Instruction) -> None:
    what, space, operands = i.parts[1], _space(i), list(i.operands)
    if what in ("init", "inval"):
        place = e.address(operands[0], space, 8, write=True)
        if what == "inval":
            return e.write(f"simt::mbarrier_invalidate(t, {place}, {i.line});")
        return e.write(f"mbarrier_init(t, {place}, {e.value(operands[1], 'u32')}, {i.line});")
    target, source, *rest = operands
    e.write(f"const void* p = mbarrier_use(t, {e.address(source, space, 8, write=True)});")
    order = "true"
    if "relaxed" in i.parts:
        order = "false"
    elif (site := e.site("weaken", i, f"{'release' if 'arrive' in what else 'acquire'} made relaxed")) is not None:
        order = f"simt::mutant != {site}"
    if what in ("arrive", "arrive_drop"):
        count = e.value(rest[0], "u32") if rest else "1"
        drop = "true" if what == "arrive_drop" else "false"
        call = f"simt::mbarrier_arrive(t, p, {count}, {drop}, {order}, {i.line})"
        if (site := e.site("delete", i, "mbarrier arrival deleted")) is not None:
            call = f"(simt::mutant != {site} ? {call} : 0)"
        return e.write(f"(void){call};") if target == "_" else e.assign(target, call, "b64")
    parity = "parity" in i.parts
    phase = e.value(rest[0], "u32" if parity else "b64")
    call = f"simt::mbarrier_test(t, p, {phase}, {'true' if parity else 'false'}, {order}, {i.line})"
    if (site := e.site("delete", i, "mbarrier wait deleted")) is not None:
        call = f"(simt::mutant == {site} || {call})"
    e.assign(target, call, "pred")


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


@family("ldmatrix", "sync aligned m8n8 x1 x2 x4 trans shared shared::cta b16")
def _ldmatrix(e: Emitter, i: Instruction) -> None:
    registers = e.vector(i.operands[0])
    turned = "true" if "trans" in i.parts else "false"
    e.write(f"auto words = ldmatrix(t, {e.base(i.operands[1], 'shared')}, {len(registers)}, {turned}, {i.line});")
    for n, register in enumerate(registers):
        e.assign(register, f"words.x[{n}]", "b32")


@family("stmatrix", "sync aligned m8n8 x1 x2 x4 trans shared shared::cta b16")
def _stmatrix(e: Emitter, i: Instruction) -> None:
    registers = e.vector(i.operands[1])
    turned = "true" if "trans" in i.parts else "false"
    values = ", ".join(e.value(register, "b32") for register in registers)
    e.write(f"stmatrix(t, {e.base(i.operands[0], 'shared')}, {len(registers)}, {turned}, {i.line}, {values});")


@family("movmatrix", "sync aligned m8n8 trans b16")
def _movmatrix(e: Emitter, i: Instruction) -> None:
    e.assign(i.operands[0], f"simt::move_matrix(t, {e.value(i.operands[1], 'b32')}, {i.line})", "b32")


# Element type of A and B → the K that are emulated.
MMA = {"f16": (8, 16), "bf16": (8, 16), "tf32": (4, 8), "s8": (16, 32), "u8": (16, 32)}
ELEMENTS = {"f16": "kF16", "bf16": "kBF16", "tf32": "kTF32", "s8": "kS8", "u8": "kU8"}


@family("mma", "sync aligned row col satfinite f32 s32 m16n8k4 m16n8k8 m16n8k16 m16n8k32", MMA)
def _mma(e: Emitter, i: Instruction) -> None:
    *_, d, a, b, c = i.parts
    match = re.search(r"\.m16n8k(\d+)\.row\.col\.", i.opcode)
    k = int(match[1]) if match else 0
    whole = a in ("s8", "u8")
    if k not in MMA.get(a, ()) or d != c or (b != a and not (whole and b in ("s8", "u8"))):
        raise refuse(i)
    if d != "s32" if whole else d not in (("f32", "f16") if a == "f16" else ("f32",)):
        raise refuse(i)
    groups = [[e.value(register, "b32") for register in e.vector(operand)] for operand in i.operands]
    for group, room in zip(groups[1:], (4, 2, 4), strict=True):
        group.extend(["0u"] * (room - len(group)))
    half, saturate = ("true" if fact else "false" for fact in (d == "f16", "satfinite" in i.parts))
    arguments = ", ".join([*groups[1], *groups[2], *groups[3]])
    kinds = f"simt::{ELEMENTS[a]}, simt::{ELEMENTS[b]}, {k}"
    e.write(f"auto words = simt::mma(t, {kinds}, {half}, {saturate}, {i.line}, {arguments});")
    for n, register in enumerate(e.vector(i.operands[0])):
        e.assign(register, f"words.x[{n}]", "b32")


# ---- addresses


@family("cvta", "to global shared shared::cta shared::cluster local const param u32 u64")
def _cvta(e: Emitter, i: Instruction) -> None:
    space, value = _space(i), e.value(i.operands[1], "u64")
    to = "to" in i.parts
    if space == "shared":
        value = f"simt::shared_from_generic(t, {value}, {i.line})" if to else f"shared_to_generic(t, {value}, {i.line})"
    elif space == "local":
        value = f"{value} {'-' if to else '+'} reinterpret_cast<u64>(t.local)"
    e.assign(i.operands[0], value, "u64")


@family("isspacep", "global shared shared::cta shared::cluster local const param")
def _isspacep(e: Emitter, i: Instruction) -> None:
    space, value = _space(i), e.value(i.operands[1], "u64")
    if space not in ("global", "shared", "local") or "shared::cluster" in i.parts:
        raise refuse(i)
    tests = {
        "shared": f"is_shared(t, {value})",
        "local": f"is_local(t, {value})",
        "global": f"(!is_shared(t, {value}) && !is_local(t, {value}))",
    }
    e.assign(i.operands[0], tests[space], "pred")


@family("mapa", "shared::cluster u32 u64")
def _mapa(e: Emitter, i: Instruction) -> None:
    kind = type_of(i)
    generic = "false" if "shared::cluster" in i.parts else "true"
    value, rank = e.value(i.operands[1], kind), e.value(i.operands[2], "u32")
    e.assign(i.operands[0], f"simt::map_rank(t, {value}, {rank}, {generic}, {i.line})", kind)


@family("getctarank", "shared::cluster u32 u64")
def _getctarank(e: Emitter, i: Instruction) -> None:
    value = e.value(i.operands[1], type_of(i))
    if "shared::cluster" in i.parts:
        e.assign(i.operands[0], f"({value} >> 24 ? u32({value} >> 24) - 1 : t.cluster_rank)", "u32")
    else:
        e.assign(i.operands[0], f"simt::rank_of_generic(t, {value}, {i.line})", "u32")


# ---- flow


@family("bra", "uni")
def _branch(e: Emitter, i: Instruction) -> None:
    e.branch(i, i.operands[0])


@family("brx", "idx uni")
def _branch_table(e: Emitter, i: Instruction) -> None:
    e.write(f"switch ({e.value(i.operands[0], 'u32')}) {{")
    for n, name in enumerate(e.targets(i, i.operands[1])):
        e.write(f"case {n}:")
        e.branch(i, name)
    e.write(f'default: simt::fail(t, {i.line}, "brx.idx beyond its table"); }}')


@family("ret", "uni")
def _return(e: Emitter, i: Instruction) -> None:
    e.write("return;")


@family("exit")
def _exit(e: Emitter, i: Instruction) -> None:
    e.write("simt::exit_thread(t);")


@family("trap brkpt")
def _trap(e: Emitter, i: Instruction) -> None:
    e.write(f'simt::fail(t, {i.line}, "{i.parts[0]}");')


@family("call", "uni")
def _call(e: Emitter, i: Instruction) -> None:
    e.call(i)


@family("nanosleep", "u32")
def _sleep(e: Emitter, i: Instruction) -> None:
    e.write(f'simt::spin(t, {i.line}, "nanosleep");')


@family("createpolicy", "fractional range b64", hints=True)
def _policy(e: Emitter, i: Instruction) -> None:
    e.assign(i.operands[0], "0", "b64")


# Hints to the hardware: nothing that a kernel could observe.
@family(
    "prefetch prefetchu discard applypriority griddepcontrol setmaxnreg pmevent",
    "global local tensormap L1 L2 launch_dependents wait inc dec sync aligned u32 mask",
    hints=True,
)
def _nothing(e: Emitter, i: Instruction) -> None:
    assert HINT_PREFIXES
