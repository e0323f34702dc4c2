"""Every family of computing instructions against NumPy and exact fractions, at the edges of its types."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from ptx_text import NUMPY, elementwise, from_bf16, module, need_compiler, rounded, to_bf16
from tolerances import EMULATED_FUNCTION

from wavenet_fast.emulated import Program

need_compiler()

RNG = np.random.default_rng(4)
F32 = np.array(
    [0.0, -0.0, 1, -1, 1.5, 2.5, -2.5, 3.5, np.inf, -np.inf, np.nan, 3.4028235e38, -3.4028235e38, 1.17549435e-38,
     1e-45, -1e-45,
     5e-39, 65504, 65520, 1e-8, 0.1, -0.7, 33.3, 2147483648.0, -2147483904.0, 4294967296.0], np.float32,
)  # fmt: skip
WHOLE = {
    kind: np.array([0, 1, 2, 3, 7, 31, 32, 33, 63, 64, 100, 255], np.int64).astype(NUMPY[kind])
    for kind in ("u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64", "b16", "b32", "b64")
}
for kind, values in WHOLE.items():
    info = np.iinfo(NUMPY[kind])
    edges = np.array([info.min, info.max, info.max - 1, info.max // 2, info.min + 1], NUMPY[kind])
    noise = RNG.integers(info.min, info.max, 9, NUMPY[kind], endpoint=True)
    WHOLE[kind] = np.concatenate([values, edges, noise])


def data(kind: str) -> np.ndarray:
    if kind in WHOLE:
        return WHOLE[kind]
    if kind == "f32":
        return np.concatenate([F32, RNG.standard_normal(8).astype(np.float32)])
    if kind == "f64":
        return data("f32").astype(np.float64) * 1.1
    with np.errstate(over="ignore"):
        if kind == "f16":
            return data("f32").astype(np.float16)
        if kind == "bf16":
            return to_bf16(data("f32"))
        if kind in ("f16x2", "bf16x2"):
            half = data(kind[:-2]).view(np.uint16).astype(np.uint32)
            return half | np.roll(half, 3) << 16
    if kind == "f32x2":
        word = data("f32").view(np.uint32).astype(np.uint64)
        return word | np.roll(word, 3) << 32
    raise AssertionError(kind)


Reference = Callable[..., Any]
CASES: dict[str, tuple[str, tuple[str, ...], str, Reference]] = {}


def case(instruction: str, inputs: str, output: str, reference: Reference) -> None:
    CASES[f"k{len(CASES)}"] = (instruction, tuple(inputs.split()), output, reference)


def bits(kind: str) -> int:
    return int(NUMPY[kind]().itemsize) * 8


def signed(value: int, width: int) -> int:
    value &= (1 << width) - 1
    return value - (1 << width) if value >> (width - 1) else value


def each(f: Callable[..., Any]) -> Reference:
    """A reference on Python numbers, element by element."""
    return lambda *arrays: [f(*(x.item() for x in row)) for row in zip(*arrays, strict=True)]


# ---- integers: the references are Python's whole numbers; results are taken modulo the width

for kind in ("u16", "s16", "u32", "s32", "u64", "s64"):
    w = bits(kind)
    case(f"add.{kind} D, A, B;", f"{kind} {kind}", kind, each(lambda a, b: a + b))
    case(f"sub.{kind} D, A, B;", f"{kind} {kind}", kind, each(lambda a, b: a - b))
    case(f"mul.lo.{kind} D, A, B;", f"{kind} {kind}", kind, each(lambda a, b: a * b))
    case(f"mul.hi.{kind} D, A, B;", f"{kind} {kind}", kind, each(lambda a, b, w=w: (a * b) >> w))
    case(f"mad.lo.{kind} D, A, B, C;", f"{kind} {kind} {kind}", kind, each(lambda a, b, c: a * b + c))
    case(f"min.{kind} D, A, B;", f"{kind} {kind}", kind, each(min))
    case(f"max.{kind} D, A, B;", f"{kind} {kind}", kind, each(max))
    case(f"div.{kind} D, A, B;", f"{kind} {kind}", kind,
         each(lambda a, b: int(Fraction(a, b)) if b else -1))  # fmt: skip
    case(f"rem.{kind} D, A, B;", f"{kind} {kind}", kind,
         each(lambda a, b: a - b * int(Fraction(a, b)) if b else a))  # fmt: skip
    case(f"sad.{kind} D, A, B, C;", f"{kind} {kind} {kind}", kind, each(lambda a, b, c: abs(a - b) + c))
    case(f"shr.{kind} D, A, B;", f"{kind} u32", kind, each(lambda a, n: a >> n))
    for name, compare in {"lt": lambda a, b: a < b, "ge": lambda a, b: a >= b, "eq": lambda a, b: a == b}.items():
        case(f"setp.{name}.{kind} D, A, B;", f"{kind} {kind}", "pred", each(compare))
    if w < 64:
        wide = f"{kind[0]}{2 * w}"
        case(f"mul.wide.{kind} D, A, B;", f"{kind} {kind}", wide, each(lambda a, b: a * b))
        case(f"mad.wide.{kind} D, A, B, C;", f"{kind} {kind} {wide}", wide, each(lambda a, b, c: a * b + c))
for kind in ("s16", "s32", "s64"):
    case(f"neg.{kind} D, A;", kind, kind, each(lambda a: -a))
    case(f"abs.{kind} D, A;", kind, kind, each(abs))
case("add.sat.s32 D, A, B;", "s32 s32", "s32", each(lambda a, b: max(-(2**31), min(2**31 - 1, a + b))))
case("sub.sat.s32 D, A, B;", "s32 s32", "s32", each(lambda a, b: max(-(2**31), min(2**31 - 1, a - b))))
case("max.relu.s32 D, A, B;", "s32 s32", "s32", each(lambda a, b: max(a, b, 0)))
case("min.relu.s32 D, A, B;", "s32 s32", "s32", each(lambda a, b: max(min(a, b), 0)))
case("mad.hi.u32 D, A, B, C;", "u32 u32 u32", "u32", each(lambda a, b, c: (a * b >> 32) + c))
case("mul24.lo.u32 D, A, B;", "u32 u32", "u32", each(lambda a, b: (a & 0xFFFFFF) * (b & 0xFFFFFF)))
case("mul24.lo.s32 D, A, B;", "s32 s32", "s32", each(lambda a, b: signed(a, 24) * signed(b, 24)))
case("mad24.lo.s32 D, A, B, C;", "s32 s32 s32", "s32", each(lambda a, b, c: signed(a, 24) * signed(b, 24) + c))
case("{ add.cc.u32 %r30, A, B; addc.u32 D, A, B; }", "u32 u32", "u32", each(lambda a, b: a + b + (a + b >> 32)))
case("{ sub.cc.u32 %r30, A, B; subc.u32 D, A, 0; }", "u32 u32", "u32", each(lambda a, b: a - (a < b)))
case(
    "{ mad.lo.cc.u32 %r30, A, B, C; madc.hi.u32 D, A, B, 0; }",
    "u32 u32 u32",
    "u32",
    each(lambda a, b, c: a * b + c >> 32),
)
case("{ sub.cc.u32 %r30, A, B; addc.u32 D, 0, 0; }", "u32 u32", "u32", each(lambda a, b: int(a >= b)))
case("{ sub.cc.u64 %rd30, A, B; subc.cc.u64 %rd31, 5, A; subc.u64 D, 9, 0; }", "u64 u64", "u64",
     each(lambda a, b: 9 - (a + (a < b) > 5)))  # fmt: skip
for relation, compare in {"lt": lambda a, b: a < b, "ge": lambda a, b: a >= b}.items():
    case(f"set.{relation}.f32.s32 D, A, B;", "s32 s32", "f32", each(lambda a, b, f=compare: float(f(a, b))))
for kind in ("b16", "b32", "b64"):
    w = bits(kind)
    case(f"and.{kind} D, A, B;", f"{kind} {kind}", kind, each(lambda a, b: a & b))
    case(f"or.{kind} D, A, B;", f"{kind} {kind}", kind, each(lambda a, b: a | b))
    case(f"xor.{kind} D, A, B;", f"{kind} {kind}", kind, each(lambda a, b: a ^ b))
    case(f"not.{kind} D, A;", kind, kind, each(lambda a: ~a))
    case(f"cnot.{kind} D, A;", kind, kind, each(lambda a: int(a == 0)))
    case(f"shl.{kind} D, A, B;", f"{kind} u32", kind, each(lambda a, n: a << n if n < 64 else 0))
    case(f"shr.{kind} D, A, B;", f"{kind} u32", kind, each(lambda a, n: a >> n))
for kind in ("b32", "b64"):
    w = bits(kind)
    case(f"popc.{kind} D, A;", kind, "u32", each(lambda a: a.bit_count()))
    case(f"clz.{kind} D, A;", kind, "u32", each(lambda a, w=w: w - a.bit_length()))
    case(f"brev.{kind} D, A;", kind, kind, each(lambda a, w=w: int(f"{a:0{w}b}"[::-1], 2)))


def word_of(a: float) -> int:
    return int(np.array([a], np.float32).view(np.uint32)[0])


def find(a: int) -> int:
    return (a if a >= 0 else ~a).bit_length() - 1


def extract(a: int, position: int, length: int, width: int, sign: bool) -> int:
    """The bits of an endless number: beyond the width stands the sign (signed) or zero."""
    position, length = position & 255, length & 255
    if not length:
        return 0
    if not sign:
        return (a & ((1 << width) - 1)) >> position & ((1 << length) - 1)
    field = (a >> position) & ((1 << length) - 1)
    return signed(field, length)


def insert(a: int, b: int, position: int, length: int, width: int) -> int:
    position, length = position & 255, length & 255
    if position >= width:
        return b
    mask = ((1 << length) - 1) << position & ((1 << width) - 1)
    return (b & ~mask) | (a << position & mask)


def permute(a: int, b: int, selector: int) -> int:
    pool, out = (b << 32 | a).to_bytes(8, "little"), 0
    for n in range(4):
        pick = selector >> 4 * n & 15
        byte = pool[pick & 7]
        out |= (255 * (byte >> 7) if pick & 8 else byte) << 8 * n
    return out


for kind in ("u32", "s32", "u64", "s64"):
    case(f"bfind.{kind} D, A;", kind, "u32", each(find))
    w = bits(kind)
    case(f"bfe.{kind} D, A, B, C;", f"{kind} u32 u32", kind,
         each(lambda a, p, n, w=w, s=kind[0] == "s": extract(a, p, n, w, s)))  # fmt: skip
case("bfind.shiftamt.u32 D, A;", "u32", "u32", each(lambda a: 31 - find(a) if a else -1))
case("bfi.b32 D, A, B, C, 5;", "b32 b32 u32", "b32", each(lambda a, b, p: insert(a, b, p, 5, 32)))
case("bfi.b64 D, A, B, 7, C;", "b64 b64 u32", "b64", each(lambda a, b, n: insert(a, b, 7, n, 64)))
case("lop3.b32 D, A, B, C, 0x96;", "b32 b32 b32", "b32", each(lambda a, b, c: a ^ b ^ c))
case("lop3.b32 D, A, B, C, 0xCA;", "b32 b32 b32", "b32", each(lambda a, b, c: (a & b) | (~a & c)))
case("prmt.b32 D, A, B, C;", "b32 b32 b32", "b32", each(permute))
case("shf.l.wrap.b32 D, A, B, C;", "b32 b32 u32", "b32", each(lambda a, b, n: (b << 32 | a) << (n & 31) >> 32))
case("shf.r.wrap.b32 D, A, B, C;", "b32 b32 u32", "b32", each(lambda a, b, n: (b << 32 | a) >> (n & 31)))
case("shf.r.clamp.b32 D, A, B, C;", "b32 b32 u32", "b32", each(lambda a, b, n: (b << 32 | a) >> min(n, 32)))
case("dp4a.s32.s32 D, A, B, C;", "b32 b32 s32", "s32",
     each(lambda a, b, c: c + sum(signed(a >> 8 * n, 8) * signed(b >> 8 * n, 8) for n in range(4))))  # fmt: skip
case("dp4a.u32.s32 D, A, B, C;", "b32 b32 s32", "s32",
     each(lambda a, b, c: c + sum((a >> 8 * n & 255) * signed(b >> 8 * n, 8) for n in range(4))))  # fmt: skip
case("{ mov.b32 {%h11, %h12}, A; mov.b32 D, {%h12, %h11}; }", "b32", "b32", each(lambda a: a << 16 | a >> 16))
case("{ mov.b64 {%r11, %r12}, A; mov.b64 D, {%r12, %r11}; }", "b64", "b64", each(lambda a: a << 32 | a >> 32))
case("selp.b32 D, A, B, 1;", "b32 b32", "b32", each(lambda a, b: a))
case("slct.u32.s32 D, A, B, C;", "u32 u32 s32", "u32", each(lambda a, b, c: a if c >= 0 else b))
case("set.lt.u32.s32 D, A, B;", "s32 s32", "u32", each(lambda a, b: -1 if a < b else 0))
case("{ setp.lt.s32 %p2|%p3, A, B; selp.u32 %r30, 1, 0, %p2; selp.u32 D, 2, %r30, %p3; }", "s32 s32", "u32",
     each(lambda a, b: 1 if a < b else 2))  # fmt: skip
case("{ setp.eq.u32 %p2, A, 7; setp.lt.and.s32 %p4|%p5, A, B, %p2; selp.u32 D, 1, 0, %p5; }", "s32 s32", "u32",
     each(lambda a, b: int(a >= b and a == 7)))  # fmt: skip

# ---- real arithmetic


def exact(f: Callable[..., Fraction], kind: str, mode: str = "rn") -> Reference:
    """Finite operands: the exact result, rounded once. None where an operand or the zero's sign needs another rule."""

    def one(*values: float) -> float | None:
        if not all(map(math.isfinite, values)):
            return None
        try:
            result = f(*map(Fraction, values))
        except ZeroDivisionError:
            return None
        return rounded(result, kind, mode) if result else None

    def all_of(*arrays: np.ndarray) -> list[float | None]:
        arrays = tuple(from_bf16(a) if kind == "bf16" and a.dtype == np.uint16 else a for a in arrays)
        return [one(*(float(x) for x in row)) for row in zip(*arrays, strict=True)]

    return all_of


for kind in ("f32", "f64", "f16", "bf16"):
    case(f"add.rn.{kind} D, A, B;", f"{kind} {kind}", kind, exact(lambda a, b: a + b, kind))
    case(f"mul.rn.{kind} D, A, B;", f"{kind} {kind}", kind, exact(lambda a, b: a * b, kind))
    case(f"fma.rn.{kind} D, A, B, C;", f"{kind} {kind} {kind}", kind, exact(lambda a, b, c: a * b + c, kind))
for mode in ("rz", "rm", "rp"):
    case(f"add.{mode}.f32 D, A, B;", "f32 f32", "f32", exact(lambda a, b: a + b, "f32", mode))
    case(f"mul.{mode}.f32 D, A, B;", "f32 f32", "f32", exact(lambda a, b: a * b, "f32", mode))
    case(f"fma.{mode}.f32 D, A, B, C;", "f32 f32 f32", "f32", exact(lambda a, b, c: a * b + c, "f32", mode))
    case(f"div.{mode}.f32 D, A, B;", "f32 f32", "f32", exact(lambda a, b: a / b, "f32", mode))
    case(f"cvt.{mode}.f16.f32 D, A;", "f32", "f16", exact(lambda a: a, "f16", mode))
    case(f"cvt.{mode}.f32.f64 D, A;", "f64", "f32", exact(lambda a: a, "f32", mode))
    case(f"cvt.{mode}.f32.s32 D, A;", "s32", "f32", exact(lambda a: a, "f32", mode))
case("div.rn.f32 D, A, B;", "f32 f32", "f32", np.divide)
case("add.f32 D, A, B;", "f32 f32", "f32", np.add)
case("sub.f32 D, A, B;", "f32 f32", "f32", np.subtract)
case("mul.f32 D, A, B;", "f32 f32", "f32", np.multiply)
case("sqrt.rn.f32 D, A;", "f32", "f32", np.sqrt)
case("rcp.rn.f32 D, A;", "f32", "f32", lambda a: np.float32(1) / a)
case("neg.f32 D, A;", "f32", "f32", np.negative)
case("abs.f32 D, A;", "f32", "f32", np.abs)
case("copysign.f32 D, A, B;", "f32 f32", "f32", lambda a, b: np.copysign(b, a))
case("neg.bf16 D, A;", "bf16", "bf16", lambda a: a ^ 0x8000)


def extreme(larger: bool, nan: bool = False) -> Reference:
    def one(a: float, b: float) -> float:
        if math.isnan(a) or math.isnan(b):
            return math.nan if nan else b if math.isnan(a) else a
        if a == b:
            a_first = (math.copysign(1, a) > 0) == larger
            return a if a_first else b
        return max(a, b) if larger else min(a, b)

    return each(one)


case("min.f32 D, A, B;", "f32 f32", "f32", extreme(False))
case("max.f32 D, A, B;", "f32 f32", "f32", extreme(True))
case("max.NaN.f32 D, A, B;", "f32 f32", "f32", extreme(True, nan=True))
case("max.f16 D, A, B;", "f16 f16", "f16", extreme(True))


def flushed(a: np.ndarray) -> np.ndarray:
    return np.where(np.abs(a) < np.float32(1.17549435e-38), np.copysign(np.float32(0), a), a)


case("add.ftz.f32 D, A, B;", "f32 f32", "f32", lambda a, b: flushed(flushed(a) + flushed(b)))
case("mul.ftz.f32 D, A, B;", "f32 f32", "f32", lambda a, b: flushed(flushed(a) * flushed(b)))
case(
    "add.sat.f32 D, A, B;", "f32 f32", "f32", lambda a, b: np.nan_to_num(np.clip(a + b, 0, 1), nan=0.0) + np.float32(0)
)
for name, op in {"lt": np.less, "ge": np.greater_equal, "eq": np.equal, "ne": np.not_equal}.items():
    ordered = lambda a, b, op=op: op(a, b) & ~np.isnan(a) & ~np.isnan(b)  # noqa: E731
    case(f"setp.{name}.f32 D, A, B;", "f32 f32", "pred", ordered)
    case(f"setp.{name}u.f32 D, A, B;", "f32 f32", "pred", lambda a, b, op=op: op(a, b) | np.isnan(a) | np.isnan(b))
case("setp.num.f32 D, A, B;", "f32 f32", "pred", lambda a, b: ~np.isnan(a) & ~np.isnan(b))
case("setp.nan.f32 D, A, B;", "f32 f32", "pred", lambda a, b: np.isnan(a) | np.isnan(b))
case("testp.subnormal.f32 D, A;", "f32", "pred", lambda a: (a != 0) & (np.abs(a) < np.float32(1.17549435e-38)))


def halves(f: Reference, kind: str) -> Reference:
    """A reference on the two 16-bit numbers of a word."""
    return lambda a, b: f(np.ascontiguousarray(a).view(NUMPY[kind]), np.ascontiguousarray(b).view(NUMPY[kind])).view(
        np.uint32
    )


def pairs(f: Reference, element: str) -> Reference:
    """A reference on the halves of packed operands; as bits."""

    def both(*arrays: np.ndarray) -> np.ndarray:
        half = {"f16": np.uint16, "bf16": np.uint16, "f32": np.uint32}[element]
        width = half().itemsize * 8
        out = 0
        for shift in (0, width):
            parts = [(a >> a.dtype.type(shift)).astype(half) for a in arrays]
            if element != "bf16":
                parts = [p.view(NUMPY[element]) for p in parts]
            values = f(*parts)
            if isinstance(values, list):
                known = [np.nan if v is None else v for v in values]
                values = to_bf16(np.array(known)) if element == "bf16" else np.array(known).astype(NUMPY[element])
            out = out | np.asarray(values).view(half).astype(arrays[0].dtype) << arrays[0].dtype.type(shift)
        return out

    return both


for half in ("u16", "s16"):
    case(f"add.{half}x2 D, A, B;", "u32 u32", "u32", halves(np.add, half))
    case(f"min.{half}x2 D, A, B;", "u32 u32", "u32", halves(np.minimum, half))
    case(f"max.{half}x2 D, A, B;", "u32 u32", "u32", halves(np.maximum, half))
case("add.rn.f16x2 D, A, B;", "f16x2 f16x2", "f16x2", pairs(np.add, "f16"))
case(
    "fma.rn.bf16x2 D, A, B, C;",
    "bf16x2 bf16x2 bf16x2",
    "bf16x2",
    pairs(exact(lambda a, b, c: a * b + c, "bf16"), "bf16"),
)
case("add.rn.f32x2 D, A, B;", "f32x2 f32x2", "f32x2", pairs(np.add, "f32"))

# ---- conversions


def to_whole(mode: Callable[[np.ndarray], np.ndarray], kind: str) -> Reference:
    def convert(a: np.ndarray) -> list[int]:
        info = np.iinfo(NUMPY[kind])
        whole = mode(a.astype(np.float64))
        return [
            (1 << bits(kind) - 1 if bits(kind) == 64 else 0)
            if math.isnan(x)
            else info.max
            if x >= info.max
            else info.min
            if x <= info.min
            else int(x)
            for x in whole.tolist()
        ]

    return convert


for kind in ("s32", "u32", "s64", "u64", "s16", "u8", "s8"):
    case(f"cvt.rzi.{kind}.f32 D, A;", "f32", kind, to_whole(np.trunc, kind))
case("cvt.rni.s32.f32 D, A;", "f32", "s32", to_whole(np.rint, "s32"))
case("cvt.rmi.s32.f32 D, A;", "f32", "s32", to_whole(np.floor, "s32"))
case("cvt.rpi.s32.f32 D, A;", "f32", "s32", to_whole(np.ceil, "s32"))
case("cvt.rni.f32.f32 D, A;", "f32", "f32", np.rint)
case("cvt.sat.f32.f32 D, A;", "f32", "f32", lambda a: np.nan_to_num(np.clip(a, 0, 1), nan=0.0) + np.float32(0))
case("cvt.ftz.f32.f32 D, A;", "f32", "f32", flushed)
case("cvt.rn.f16.f32 D, A;", "f32", "f16", lambda a: a.astype(np.float16))
case("cvt.rn.bf16.f32 D, A;", "f32", "bf16", exact(lambda a: a, "bf16"))
case("cvt.f32.f16 D, A;", "f16", "f32", lambda a: a.astype(np.float32))
case("cvt.f32.bf16 D, A;", "bf16", "f32", lambda a: from_bf16(a))
case("cvt.rn.f32.u64 D, A;", "u64", "f32", lambda a: a.astype(np.float32))
case("cvt.rn.f16.s32 D, A;", "s32", "f16", exact(lambda a: a, "f16"))
case("cvt.s64.s8 D, A;", "s8", "s64", each(lambda a: a))
case("cvt.u32.s16 D, A;", "s16", "u32", each(lambda a: a))
case("cvt.u16.u32 D, A;", "u32", "u16", each(lambda a: a))
case("cvt.sat.s8.s32 D, A;", "s32", "s8", each(lambda a: max(-128, min(127, a))))
case("cvt.sat.u16.s64 D, A;", "s64", "u16", each(lambda a: max(0, min(65535, a))))


def packed(kind: str, mode: str, relu: bool = False) -> Reference:
    def convert(high: np.ndarray, low: np.ndarray) -> np.ndarray:
        out = []
        for row in zip(high.tolist(), low.tolist(), strict=True):
            word = 0
            for shift, value in zip((16, 0), row, strict=True):
                if math.isnan(value):
                    half = 0x7FFF
                else:
                    value = 0.0 if relu and value <= 0 else value
                    kept = math.copysign(rounded(Fraction(value), kind, mode), value) if math.isfinite(value) else value
                    bits_of = (
                        to_bf16(np.array([kept])) if kind == "bf16" else np.array([kept], np.float16).view(np.uint16)
                    )
                    half = int(bits_of[0])
                word |= half << shift
            out.append(word)
        return np.array(out, np.uint32)

    return convert


case("cvt.rn.f16x2.f32 D, A, B;", "f32 f32", "f16x2", packed("f16", "rn"))
case("cvt.rn.bf16x2.f32 D, A, B;", "f32 f32", "bf16x2", packed("bf16", "rn"))
case("cvt.rz.bf16x2.f32 D, A, B;", "f32 f32", "bf16x2", packed("bf16", "rz"))
case("cvt.rn.relu.bf16x2.f32 D, A, B;", "f32 f32", "bf16x2", packed("bf16", "rn", relu=True))
case("cvt.rna.tf32.f32 D, A;", "f32", "tf32",
     each(lambda a: 0x7FFFFFFF if math.isnan(a) else word_of(a) + 0x1000 * math.isfinite(a) & 0xFFFFE000))  # fmt: skip


def decoded(code: int, mantissa: int, lowest: int) -> float:
    """An 8-bit float as the formula of its format says; NaN and infinity as NaN."""
    exponent, rest = (code & 127) >> mantissa, code & ((1 << mantissa) - 1)
    if (code & 127) == 127 or (mantissa == 2 and exponent == 31):
        return math.nan
    size = math.ldexp(rest + bool(exponent) * (1 << mantissa), max(exponent, 1) - 1 + lowest - mantissa)
    return -size if code & 128 else size


def encoded(value: float, mantissa: int, lowest: int) -> int:
    """The nearest code; of two, the even one. Beyond the largest: the largest."""
    if math.isnan(value):
        return 127
    codes = [code for code in range(128) if not math.isnan(decoded(code, mantissa, lowest))]
    distance = lambda code: (abs(decoded(code, mantissa, lowest) - min(abs(value), 1e9)), code & 1)  # noqa: E731
    return min(codes, key=distance) | (128 if math.copysign(1, value) < 0 else 0)


def both_decoded(shape: tuple[int, int]) -> Reference:
    def decode(codes: np.ndarray) -> np.ndarray:
        pairs = [[decoded(code & 255, *shape), decoded(code >> 8, *shape)] for code in codes.tolist()]
        return np.array(pairs, np.float16).view(np.uint32).ravel()

    return decode


for name, shape in {"e4m3": (3, -6), "e5m2": (2, -14)}.items():
    case(f"cvt.rn.satfinite.{name}x2.f32 D, A, B;", "f32 f32", "b16",
         each(lambda a, b, s=shape: encoded(a, *s) << 8 | encoded(b, *s)))  # fmt: skip
    case(f"cvt.rn.f16x2.{name}x2 D, A;", "b16", "f16x2", both_decoded(shape))


@pytest.fixture(scope="module")
def program() -> Program:
    return Program(
        module(*(elementwise(name, text, inputs, output) for name, (text, inputs, output, _) in CASES.items()))
    )


def grid_of(kinds: tuple[str, ...]) -> list[np.ndarray]:
    """All combinations of the first two operands' values; a third goes round beside them. At most 1024."""
    values = [data(kind) for kind in kinds]
    if len(values) == 1:
        return values
    a, b = (x.ravel() for x in np.meshgrid(values[0], values[1], indexing="ij"))
    return [x[:1024].copy() for x in (a, b, *(np.resize(v, a.size) for v in values[2:]))]


def assert_same(got: np.ndarray, wanted: Any, what: str) -> None:
    """Bit for bit, any NaN equal to any other; None in a list is not compared."""
    if isinstance(wanted, list):
        known = np.array([w is not None for w in wanted])
        if got.dtype.kind in "ui" and wanted and isinstance(next(w for w in wanted if w is not None), float):
            want = to_bf16(np.array([np.nan if w is None else w for w in wanted]))
        elif got.dtype.kind == "f":
            want = np.array([np.nan if w is None else w for w in wanted]).astype(got.dtype)
        else:
            modulus = 1 << 8 * got.dtype.itemsize
            want = np.array([int(w or 0) % modulus for w in wanted], f"u{got.dtype.itemsize}").view(got.dtype)
    else:
        want, known = np.asarray(wanted).astype(got.dtype), np.ones(len(got), bool)
    same = got.view(f"u{got.dtype.itemsize}") == want.view(f"u{got.dtype.itemsize}")
    if got.dtype.kind == "f":
        same |= np.isnan(got) & np.isnan(want)
    bad = np.flatnonzero(known & ~same)
    assert not len(bad), f"{what}: element {bad[0]}: {got[bad[0]]!r}, not {want[bad[0]]!r} ({len(bad)} differ)"
    assert known.sum() >= min(8, len(got) // 2), "the reference knows next to nothing"


@pytest.mark.parametrize("name", CASES, ids=[text for text, *_ in CASES.values()])
def test_against_numpy(program: Program, name: str) -> None:
    text, inputs, output, reference = CASES[name]
    arrays = grid_of(inputs)
    out = np.zeros(len(arrays[0]), NUMPY[output])
    program.launch(name, block=(len(out),), args=[*arrays, out])
    with np.errstate(all="ignore"):
        wanted = reference(*arrays)
    if output in ("f16x2", "bf16x2", "f32x2"):
        element = output[:-2]
        half = {"f16": "f2", "bf16": "u2", "f32": "f4"}[element]
        got, want = out.view(half), np.asarray(wanted, out.dtype).view(half)
        if element == "bf16":
            got, want = from_bf16(got), from_bf16(want)
        skip = np.isnan(want) if text.startswith("fma") else np.zeros(len(want), bool)
        assert_same(np.where(skip, 0, got).astype(got.dtype), np.where(skip, 0, want), text)
    else:
        assert_same(out, wanted, text)


FUNCTIONS = {
    "ex2.approx.f32": (np.exp2, -20, 20), "lg2.approx.f32": (np.log2, 1e-3, 50), "sin.approx.f32": (np.sin, -3, 3),
    "cos.approx.f32": (np.cos, -3, 3), "tanh.approx.f32": (np.tanh, -5, 5),
    "rsqrt.approx.f32": (lambda x: 1 / np.sqrt(x), 0.1, 90),
    "rcp.approx.ftz.f32": (lambda x: 1 / x, 0.1, 90), "sqrt.approx.f32": (np.sqrt, 0, 90),
}  # fmt: skip


def test_functions() -> None:
    """The approximations are computed as well as single precision allows: what the hardware adds is not emulated."""
    texts = [elementwise(f"f{n}", f"{name} D, A;", ["f32"], "f32") for n, name in enumerate(FUNCTIONS)]
    program = Program(module(*texts))
    for n, (name, (function, low, high)) in enumerate(FUNCTIONS.items()):
        x = RNG.uniform(low, high, 256).astype(np.float32)
        out = np.zeros_like(x)
        program.launch(f"f{n}", block=(256,), args=[x, out])
        want = function(x.astype(np.float64))
        assert np.all(np.abs(out - want) <= EMULATED_FUNCTION * np.maximum(np.abs(want), 1e-3)), name
