"""PTX written by hand, for tests of the executor: a module around kernels, and kernels around one instruction."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest

# The type a test's array has, the load and the register that go with a PTX type. bf16 travels as bits.
NUMPY = {
    "u8": np.uint8, "s8": np.int8, "u16": np.uint16, "s16": np.int16, "b16": np.uint16, "f16": np.float16,
    "bf16": np.uint16, "u32": np.uint32, "s32": np.int32, "b32": np.uint32, "f32": np.float32, "f16x2": np.uint32,
    "bf16x2": np.uint32, "u64": np.uint64, "s64": np.int64, "b64": np.uint64, "f64": np.float64, "f32x2": np.uint64,
    "tf32": np.uint32, "pred": np.uint32,
}  # fmt: skip


def need_compiler() -> None:
    """Skips the module's tests where nothing can compile C++."""
    from wavenet_fast.emulated.build import compiler
    from wavenet_fast.errors import EmulationError

    try:
        compiler()
    except EmulationError as error:
        pytest.skip(str(error), allow_module_level=True)


def module(*bodies: str, target: str = "sm_90", head: str = "") -> str:
    return "\n".join([".version 8.7", f".target {target}", ".address_size 64", head, *bodies])


def kernel(name: str, parameters: Sequence[str], body: str, registers: str = "") -> str:
    """A kernel with `%r<40>`, `%rd<40>`, `%f<40>`, `%h<20>`, `%d<20>`, `%p<10>`; parameters: types, "u64", "u32" …"""
    listed = ", ".join(f".param .{kind} {name}_{n}" for n, kind in enumerate(parameters))
    return f"""
.visible .entry {name}({listed}) {{
  .reg .b32 %r<40>; .reg .b64 %rd<40>; .reg .f32 %f<40>; .reg .b16 %h<20>; .reg .f64 %d<20>; .reg .pred %p<10>;
  {registers}
{body}
  ret;
}}"""


def _register(kind: str, n: int) -> str:
    size = NUMPY[kind]().itemsize
    return {1: "%h", 2: "%h", 4: "%r", 8: "%rd"}[size] + str(n)


def elementwise(name: str, instruction: str, inputs: Sequence[str], output: str) -> str:
    """A kernel that applies an instruction to element tid of its inputs. In the text `D` is the result, `A`, `B`, `C`
    are the operands; a result `pred` is stored as 0 or 1. Parameters: inputs, output."""
    lines = ["  mov.u32 %r20, %tid.x;"]
    for n, kind in enumerate(inputs):
        size = NUMPY[kind]().itemsize
        load = f"{'u' if size == 1 else 'b'}{8 * size}"
        lines += [
            f"  ld.param.u64 %rd20, [{name}_{n}];",
            f"  mad.wide.u32 %rd21, %r20, {size}, %rd20;",
            f"  ld.global.{load} {_register(kind, n)}, [%rd21];",
        ]
    target = "%p1" if output == "pred" else _register(output, 10)
    names = {
        "D": target,
        **{letter: _register(kind, n) for n, (letter, kind) in enumerate(zip("ABC", inputs, strict=False))},
    }
    lines += [
        "  " + " ".join(names.get(word, word) for word in instruction.replace(",", " , ").replace(";", " ;").split())
    ]
    size = NUMPY[output]().itemsize
    if output == "pred":
        lines += ["  selp.u32 %r10, 1, 0, %p1;"]
        target = "%r10"
    lines += [
        f"  ld.param.u64 %rd22, [{name}_{len(inputs)}];",
        f"  mad.wide.u32 %rd23, %r20, {size}, %rd22;",
        f"  st.global.{'u' if size == 1 else 'b'}{8 * size} [%rd23], {target};",
    ]
    return kernel(name, ["u64"] * (len(inputs) + 1), "\n".join(lines))


# Significant bits, smallest and largest exponent of a format.
FORMATS = {"f16": (11, -14, 15), "bf16": (8, -126, 127), "f32": (24, -126, 127), "f64": (53, -1022, 1023)}


def rounded(value: Fraction, kind: str, mode: str = "rn") -> float:
    """An exact value in a format; modes rn, rz, rm and rp as PTX names them."""
    bits, lowest, highest = FORMATS[kind]
    if value == 0:
        return 0.0
    size = abs(value)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent += (Fraction(2) ** (exponent + 1) <= size) - (Fraction(2) ** exponent > size)
    quantum = Fraction(2) ** (max(exponent, lowest) - bits + 1)
    whole, rest = divmod(size / quantum, 1)
    up = {
        "rn": rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole % 2 == 1),
        "rz": False,
        "rm": rest > 0 and value < 0,
        "rp": rest > 0 and value > 0,
    }[mode]
    result = (whole + up) * quantum
    largest = (2 - Fraction(2) ** (1 - bits)) * Fraction(2) ** highest
    if result > largest:
        away = mode == "rn" or (mode == "rm" and value < 0) or (mode == "rp" and value > 0)
        return float(np.copysign(np.inf if away else float(largest), float(value > 0) - 0.5))
    return float(result) * (1 if value > 0 else -1)


def from_bf16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_bf16(values: np.ndarray) -> np.ndarray:
    """Values that bf16 holds exactly, as bits."""
    return (np.asarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)
