"""PTX that Triton compiles, executed: fragments of tensor cores as Triton's authors lay them out, and what else a
kernel is made of (pipelined copies, reductions, scans, sorting, atomics, Philox)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ptx_text import need_compiler
from tolerances import EMULATED_DOT, EMULATED_FUNCTION

torch = pytest.importorskip("torch", reason="torch makes the data")
triton = pytest.importorskip("triton", reason="Triton compiles the kernels")
need_compiler()

import triton.language as tl  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from wavenet_fast.emulated import Program  # noqa: E402

CAPABILITIES = (80, 90, 120)


@triton.jit
def dots(
    a16, b16, c16, abf, bbf, cbf, a8, b8, c8, a32, b32, ctf, chalf,
    M: tl.constexpr, K: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    m, k, n = tl.arange(0, M), tl.arange(0, K), tl.arange(0, N)
    left = m[:, None] * K + k[None, :]
    right = k[:, None] * N + n[None, :]
    out = m[:, None] * N + n[None, :]
    tl.store(c16 + out, tl.dot(tl.load(a16 + left), tl.load(b16 + right)))
    tl.store(cbf + out, tl.dot(tl.load(abf + left), tl.load(bbf + right)))
    tl.store(c8 + out, tl.dot(tl.load(a8 + left), tl.load(b8 + right)))
    tl.store(ctf + out, tl.dot(tl.load(a32 + left), tl.load(b32 + right), input_precision="tf32"))
    tl.store(chalf + out, tl.dot(tl.load(a16 + left), tl.load(b16 + right), out_dtype=tl.float16))


@triton.jit
def pipelined(a, b, c, K, M: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr):
    m, k, n = tl.arange(0, M), tl.arange(0, BLOCK), tl.arange(0, N)
    acc = tl.zeros((M, N), tl.float32)
    for i in range(0, K, BLOCK):
        left = tl.load(a + m[:, None] * K + (i + k)[None, :], mask=(i + k)[None, :] < K, other=0.0)
        right = tl.load(b + (i + k)[:, None] * N + n[None, :], mask=(i + k)[:, None] < K, other=0.0)
        acc = tl.dot(left, right, acc)
    tl.store(c + m[:, None] * N + n[None, :], acc)


@triton.jit
def mixed(x, y, counts, N: tl.constexpr):
    i = tl.arange(0, N)
    v = tl.load(x + i)
    tl.store(y + i, tl.cumsum(v, 0))
    tl.store(y + N + i, tl.sort(v))
    tl.store(y + 2 * N + i, tl.sigmoid(v))
    tl.store(y + 3 * N + i, tl.sum(v, 0) + i)
    tl.store(y + 4 * N + i, tl.argmax(v, 0).to(tl.float32))
    tl.store(y + 5 * N + i, tl.rand(7, i))
    tl.atomic_add(counts + (i % 4), i)
    tl.store(y + 6 * N + i, tl.exp(v.to(tl.bfloat16).to(tl.float32)).to(tl.bfloat16).to(tl.float32))


def compiled(fn: Any, signature: dict[str, str], constants: dict[str, int], capability: int, **options: int) -> Any:
    """As the JIT compiles it for pointers to fresh tensors."""
    pointers = [n for n, kind in enumerate(signature.values()) if kind.startswith("*")]
    source = ASTSource(
        fn=fn,
        signature={**signature, **dict.fromkeys(constants, "constexpr")},
        constexprs=constants,
        attrs={(n,): [["tt.divisibility", 16]] for n in pointers},
    )
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def launch(kernel: Any, *args: Any, mode: str = "plain", seed: int = 0) -> None:
    """Triton adds two pointers to scratch memory, which these kernels do not use."""
    (name,) = (program := Program(kernel.asm["ptx"], mode)).kernels  # type: ignore[arg-type]
    block = (32 * kernel.metadata.num_warps,)
    program.launch(name, block=block, args=[*args, None, None], shared=kernel.metadata.shared, seed=seed)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_dot(capability: int) -> None:
    M, K, N = 32, 64, 16
    types = {"16": "fp16", "bf": "bf16", "8": "i8", "32": "fp32"}
    signature = {}
    for short, kind in types.items():
        signature |= {f"a{short}": f"*{kind}", f"b{short}": f"*{kind}"}
        if short != "32":
            signature[f"c{short}"] = "*i32" if kind == "i8" else "*fp32"
    signature |= {"ctf": "*fp32", "chalf": "*fp16"}
    kernel = compiled(dots, signature, {"M": M, "K": K, "N": N}, capability, num_warps=2)
    ptx = kernel.asm["ptx"]
    for shape in (
        "m16n8k16.row.col.f32.f16",
        "m16n8k16.row.col.f32.bf16",
        "m16n8k32.row.col",
        "m16n8k8.row.col.f32.tf32",
    ):
        assert shape in ptx, f"the compiler chose another instruction than {shape}"
    g = torch.Generator().manual_seed(capability)
    a, b = torch.randn(M, K, generator=g), torch.randn(K, N, generator=g)
    ai, bi = (torch.randint(-128, 128, shape, generator=g, dtype=torch.int8) for shape in ((M, K), (K, N)))
    outs = {name: torch.full((M, N), 7, dtype=dtype) for name, dtype in (("c16", torch.float32), ("cbf", torch.float32),
            ("c8", torch.int32), ("ctf", torch.float32), ("chalf", torch.float16))}  # fmt: skip
    h, f = (a.half(), b.half()), (a.bfloat16(), b.bfloat16())
    launch(kernel, *h, outs["c16"], *f, outs["cbf"], ai, bi, outs["c8"], a, b, outs["ctf"], outs["chalf"], seed=1)
    assert torch.equal(outs["c8"], ai.int() @ bi.int())
    # Triton hands over fp32 as it is, and a tensor core does not read the low 13 bits.
    tf32 = lambda x: (x.view(torch.int32) & ~0x1FFF).view(torch.float32)  # noqa: E731
    for name, (left, right) in {"c16": h, "cbf": f, "ctf": (tf32(a), tf32(b)), "chalf": h}.items():
        want = left.double() @ right.double()
        assert (outs[name].double() - want).abs().max() <= EMULATED_DOT[name], name


@pytest.mark.parametrize("mode", ["plain", "thread"])
def test_pipelined_copies(mode: str) -> None:
    kernel = compiled(
        pipelined, {"a": "*fp16", "b": "*fp16", "c": "*fp32", "K": "i32"}, {"M": 16, "N": 32, "BLOCK": 32}, 80,
        num_warps=2, num_stages=3,
    )  # fmt: skip
    assert "cp.async.wait_group" in kernel.asm["ptx"]
    a, b, c = torch.randn(16, 136).half(), torch.randn(136, 32).half(), torch.zeros(16, 32)
    launch(kernel, a, b, c, 136, mode=mode)
    assert (c.double() - a.double() @ b.double()).abs().max() <= EMULATED_DOT["c16"]


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_what_kernels_are_made_of(capability: int) -> None:
    N = 256
    kernel = compiled(mixed, {"x": "*fp32", "y": "*fp32", "counts": "*i32"}, {"N": N}, capability, num_warps=4)
    x, y, counts = torch.randn(N), torch.zeros(7, N), torch.zeros(4, dtype=torch.int32)
    launch(kernel, x, y, counts, seed=3)
    i = torch.arange(N)
    assert (y[0].double() - x.double().cumsum(0)).abs().max() <= 1e2 * EMULATED_FUNCTION
    assert torch.equal(y[1], x.sort()[0]) and (y[4] == x.argmax()).all()
    assert (y[2] - x.sigmoid()).abs().max() <= EMULATED_FUNCTION
    assert (y[3].double() - (x.double().sum() + i)).abs().max() <= 1e2 * EMULATED_FUNCTION
    assert counts.tolist() == [int(i[i % 4 == n].sum()) for n in range(4)]
    assert np.array_equal(y[6], x.bfloat16().float().exp().bfloat16().float())
    uniforms = y[5].numpy()
    assert ((uniforms >= 0) & (uniforms < 1)).all() and len(np.unique(uniforms)) == N
