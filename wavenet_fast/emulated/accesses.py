"""Instructions that touch memory: loads and stores, atomics, copies that land later, mbarriers, addresses.

Sites that a mutation may break are announced with `Emitter.site`: waits, and the orders of accesses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wavenet_fast.emulated.families import (
    REALS,
    SCOPES,
    WHOLES,
    cpp,
    family,
    refuse,
    scope_of,
    type_of,
    word,
)
from wavenet_fast.emulated.ptx import SIZES, Instruction

if TYPE_CHECKING:
    from wavenet_fast.emulated.emitter import Emitter

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


def _count(i: Instruction) -> int:
    """How many registers an access moves."""
    return next((VECTORS[part] for part in i.parts if part in VECTORS), 1)


def _order(e: Emitter, i: Instruction, default: str = "kRelaxed") -> str:
    """The order of a synchronising access, as an expression that a mutation can weaken."""
    names = {"acquire": "kAcquire", "release": "kRelease", "acq_rel": "kBoth", "relaxed": "kRelaxed"}
    order = next((names[part] for part in i.parts if part in names), default)
    if order == "kRelaxed":
        return order
    site = e.site("weaken", i, f"{order[1:].lower()} made relaxed")
    return f"weakened({site}, {order})" if site is not None else order


def _scope(e: Emitter, i: Instruction, default: str) -> str:
    """The scope of an access, as an expression that a mutation can narrow where the access orders others."""
    scope = scope_of(i, default)
    if scope == "kBlock" or not {"acquire", "release", "acq_rel"} & set(i.parts) or not SCOPES & set(i.parts):
        return f"simt::{scope}"
    site = e.site("narrow", i, "scope narrowed to the block")
    return f"narrowed({site}, simt::{scope})" if site is not None else f"simt::{scope}"


def _hinted(i: Instruction) -> tuple[str, ...]:
    """The operands without the cache policy."""
    return i.operands[:-1] if "L2::cache_hint" in i.parts else i.operands


@family("ld ldu", "unified", SPACES, ORDERS - {"release", "acq_rel"}, SCOPES, VECTORS, TYPES, hints=True)
def _load(e: Emitter, i: Instruction) -> None:
    kind, space = type_of(i), _space(i)
    target, source = _hinted(i)
    registers = e.vector(target, _count(i))
    size = SIZES[kind]
    place = e.address(source, space, size * len(registers), write=False)
    ordered = [part for part in i.parts if part in ORDERS and part != "weak"]
    e.write(f"const char* p = {place};")
    how = ""
    if ordered and space not in ("param", "local", "const"):
        how = f"{_order(e, i)}, {_scope(e, i, 'sys')}"
    for n, register in enumerate(registers):
        at = f"p + {n * size}" if n else "p"
        value = f"load<{word(kind)}>({at})"
        if how:
            value = f"load_ordered<{word(kind)}>(t, {at}, {how}, {i.line})"
        if register != "_":
            e.assign(register, value, kind)


@family("st", "", SPACES, ORDERS - {"acquire", "acq_rel"}, SCOPES, VECTORS, TYPES, hints=True)
def _store(e: Emitter, i: Instruction) -> None:
    kind, space = type_of(i), _space(i)
    target, source = _hinted(i)
    values = e.vector(source, _count(i))
    size = SIZES[kind]
    ordered = [part for part in i.parts if part in ORDERS and part != "weak"]
    e.write(f"char* p = {e.address(target, space, size * len(values), write=True)};")
    how = f"{_order(e, i)}, {_scope(e, i, 'sys')}" if ordered and space not in ("param", "local") else ""
    for n, value in enumerate(values):
        at = f"p + {n * size}" if n else "p"
        if how:
            e.write(f"store_ordered<{word(kind)}>(t, {at}, {how}, {e.value(value, kind)});")
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
    targets = e.vector(operands.pop(0), _count(i)) if i.parts[0] == "atom" else None
    place, *sources = operands
    values = e.vector(sources[0], _count(i))
    size = SIZES[kind]
    if len(sources) != (2 if name == "cas" else 1):
        raise e.error(f"{len(sources)} sources; needed: {2 if name == 'cas' else 1}")
    e.write(f"char* p = {e.address(place, _space(i), size * len(values), write=True)};")
    how = f"{_order(e, i)}, {_scope(e, i, 'gpu')}"
    for n, value in enumerate(values):
        at = f"p + {n * size}" if n else "p"
        if name == "cas":
            update = f"old == {e.value(value, kind)} ? {e.value(sources[1], kind)} : old"
        else:
            update = f"atom_{name}<{cpp(kind)}>(old, {e.value(value, kind)})"
        function = f"[&]({word(kind)} old) -> {word(kind)} {{ return {update}; }}"
        change = f"modify<{word(kind)}, {'false' if targets is None else 'true'}>(t, {at}, {how}, {i.line}, {function})"
        if targets is None or targets[n] == "_":
            e.write(f"{change};")
        else:
            e.assign(targets[n], change, kind)


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
        if "wait_group" in i.parts:
            site = e.site("loosen", i, "wait for copies loosened by a group")
            keep = keep if site is None else f"{keep} + (simt::mutant == {site})"
        with e.breakable("delete", i, "wait for copies deleted"):
            return e.write(f"copies_wait(t, {keep}, {i.line});")
    if "mbarrier" in i.parts:
        place = e.address(i.operands[0], _space(i, {"shared", "shared::cta"}), 8, write=True)
        with e.breakable("delete", i, "arrival of copies deleted"):
            e.write("{")
        e.write(f"const void* p = mbarrier_use(t, {place}); copies_wait(t, simt::kEvery, {i.line});")
        if "noinc" not in i.parts:
            e.write(f"simt::mbarrier_increment(t, p, {i.line});")
        return e.write(f"simt::mbarrier_arrive(t, p, 1, false, true, simt::kBlock, {i.line}); }}")
    target, source, amount, *rest = _hinted(i)
    size = int(amount, 0)
    if size not in (4, 8, 16):
        raise e.error(f"copies of {size} bytes do not exist; possible: 4, 8, 16")
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
        call = f"simt::mbarrier_arrive(t, p, {count}, {drop}, {order}, {_scope(e, i, 'cta')}, {i.line})"
        if (site := e.site("delete", i, "mbarrier arrival deleted")) is not None:
            call = f"(simt::mutant != {site} ? {call} : 0)"
        return e.write(f"(void){call};") if target == "_" else e.assign(target, call, "b64")
    parity = "parity" in i.parts
    phase = e.value(rest[0], "u32" if parity else "b64")
    call = (
        f"simt::mbarrier_test(t, p, {phase}, {'true' if parity else 'false'}, {order}, {_scope(e, i, 'cta')}, {i.line})"
    )
    if (site := e.site("delete", i, "mbarrier wait deleted")) is not None:
        call = f"(simt::mutant == {site} || {call})"
    e.assign(target, call, "pred")


# ---- addresses


@family("cvta", "to global shared shared::cta shared::cluster local const param u32 u64")
def _cvta(e: Emitter, i: Instruction) -> None:
    space, value = _space(i), e.value(i.operands[1], "u64")
    to = "to" in i.parts
    if space == "shared":
        value = f"simt::shared_from_generic(t, {value}, {i.line})" if to else f"shared_to_generic(t, {value}, {i.line})"
    elif space == "local":
        value = f"{value} {'-' if to else '+'} reinterpret_cast<u64>(t.local.base)"
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
