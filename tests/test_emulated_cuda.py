"""CUDA C++ with inline PTX, as NVRTC compiles it for every target: each group of instructions, in every mode."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_text import cuda_ptx, need_nvrtc
from ptx_text import need_compiler, to_bf16

from wavenet_fast.emulated import Program, Struct

need_compiler()
need_nvrtc()

TARGETS = (80, 86, 89, 90, 100, 120)
# Sanitizers see the same instructions for other targets: one before clusters, one with them.
CASES = [(t, m) for t in TARGETS for m in ("plain", "thread", "address")]
RANDOM = np.random.default_rng(5)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"sm_{case[0]}-{case[1]}")
def program(request: pytest.FixtureRequest) -> Program:
    target, mode = request.param
    return Program(cuda_ptx("primitives.cu", target), mode)


def test_products(program: Program) -> None:
    """Small whole numbers, so that every sum is exact in every order."""
    steps = 5
    a, b = RANDOM.integers(-4, 5, (steps, 16, 32)), RANDOM.integers(-4, 5, (steps, 8, 32))
    masked = a.copy()
    masked[-1, 8:] = 0
    results = {"bf16": np.full((16, 8), 9, np.float32), "f16": np.full((16, 8), 9, np.float32)}
    for name, pack in (
        ("bf16", lambda x: to_bf16(x[..., :16].astype(np.float32))),
        ("f16", lambda x: x[..., :16].astype(np.float16)),
        ("s8", lambda x: x.astype(np.int8)),
    ):
        results["s8"] = np.full((16, 8), 9, np.int32)
        program.launch("products", block=(32,), args=[pack(a), pack(b), *results.values(), steps], seed=1)
        k = 32 if name == "s8" else 16
        assert np.array_equal(results[name], np.einsum("smk,snk->mn", masked[..., :k], b[..., :k])), name


def test_functions(program: Program) -> None:
    x = RANDOM.uniform(0.1, 3, 64).astype(np.float32)
    y = np.zeros((64, 16), np.float32)
    program.launch("functions", block=(64,), args=[x, y])
    a, b = x.astype(np.float64), x[np.arange(64) ^ 1].astype(np.float64)
    exact = [np.exp2(a), np.log2(a), 1 / a, np.tanh(a), np.sqrt(a), np.sqrt(a), a**-0.5, a / b, a / b, np.exp(a),
             np.log(a), np.sqrt(a), a * b + a, np.clip(a, -1.5, 1.5), np.rint(a), 1 / a]  # fmt: skip
    np.testing.assert_allclose(y, np.stack(exact, 1), rtol=2e-6, atol=1e-6)
    for column in (4, 8, 11, 12, 13, 14, 15):  # these round correctly
        assert np.array_equal(y[:, column], exact[column].astype(np.float32)), column


def test_conversions(program: Program) -> None:
    x = np.array([[1.5, -2.25], [3.14159, 1e6], [-0.5, 300.0], [127.5, -1.0], [2.5, 0.1], [-200.7, 65.0]], np.float32)
    y = np.zeros((6, 8), np.uint32)
    program.launch("conversions", block=(6,), args=[x, y])
    with np.errstate(over="ignore"):
        halves = x.astype(np.float16).view(np.uint16).astype(np.uint32)
    rounded = (x.view(np.uint32) + 0x7FFF + (x.view(np.uint32) >> 16 & 1)) >> 16
    positive = np.where(x > 0, rounded, 0)
    assert np.array_equal(y[:, 0], rounded[:, 0] << 16 | rounded[:, 1])
    assert np.array_equal(y[:, 1], halves[:, 0] << 16 | halves[:, 1])
    assert np.array_equal(y[:, 2], positive[:, 0] << 16 | positive[:, 1])
    assert np.array_equal(y[:, 3].view(np.int32), np.rint(x[:, 0]))
    assert np.array_equal(y[:, 4].view(np.int32), np.clip(np.rint(x[:, 0]), -128, 127))
    assert np.array_equal(y[:, 5], halves[:, 0] | rounded[:, 0] << 16)
    assert np.array_equal(y[:, 6].view(np.float32), x[:, 0].astype(np.float16))
    if y[:, 7].any():  # targets that have it; 448 is the largest of e4m3
        assert y[0, 7] == 0x3C << 8 | 0xC1 and y[1, 7] & 0xFF == 0x7E


def test_whole_numbers(program: Program) -> None:
    x = RANDOM.integers(0, 1 << 32, (32, 2), np.uint32)
    wide = RANDOM.integers(0, 1 << 63, 32, np.uint64)
    y, wide_out = np.zeros((32, 10), np.uint32), np.zeros(32, np.uint64)
    program.launch("whole_numbers", block=(32,), args=[x, y, wide, wide_out])
    for (a, b), got, w, w_out in zip(x.tolist(), y.tolist(), wide.tolist(), wide_out.tolist(), strict=True):
        signed = [v - (1 << 32) if v >> 31 else v for v in (a, b)]
        eighths = [np.frombuffer(v.to_bytes(4, "little"), np.int8).astype(int) for v in (a, b)]
        field = a >> 3 & 0x7F
        assert got[0] == a & 0xFF | (b & 0xFF) << 8 | (a >> 8 & 0xFF) << 16 | (b >> 8 & 0xFF) << 24
        assert got[1] == a >> 5 & 0x1FF and got[2] == (field - 128 if field >> 6 else field) % (1 << 32)
        assert got[3] == b & ~(0xFFF << 4) | (a & 0xFFF) << 4
        assert got[4] == a * b >> 32 and got[5] == (signed[0] * signed[1] >> 32) % (1 << 32)
        assert got[6] == (int(eighths[0] @ eighths[1]) + 7) % (1 << 32)
        assert got[7] == a.bit_count() + 32 - b.bit_length() + (a & -a).bit_length()
        assert got[8] == (b << 32 | a) << 11 >> 32 & 0xFFFFFFFF
        assert got[9] == int(np.float32(signed[0]) * np.float32(4.6566127342e-10) * np.float32(1000) + np.float32(3000))
        assert w_out == (a * b + w // (b | 1)) % (1 << 64)


def test_exchanges(program: Program) -> None:
    x = RANDOM.permutation(np.arange(60, 92)).astype(np.uint32)
    y = np.zeros((32, 8), np.uint32)
    program.launch("exchanges", block=(32,), args=[x, y], seed=2)
    n = np.arange(32)
    votes = sum(int(v & 1) << i for i, v in enumerate(x.tolist()))
    want = [x[np.where(n < 3, n, n - 3)], x[n ^ 5], x[x & 31], x.sum(), x.max(), votes, 3, np.bitwise_or.reduce(x)]
    for column, expected in enumerate(want):
        assert np.array_equal(y[:, column], np.broadcast_to(expected, 32)), column


def test_places(program: Program) -> None:
    """A struct by value, its array by a computed index, a table of constants, a local array."""
    x, y, offsets = (
        np.arange(100, 132, dtype=np.uint32),
        np.zeros(32, np.uint32),
        np.array([4, 30, 200, 1000], np.uint32),
    )
    program.launch("places", block=(32,), args=[Struct(x, y, 9, 2.5, *offsets)])
    table = [1, 1, 2, 3, 5, 8, 13, 21]
    for mine, got in zip(x.tolist(), y.tolist(), strict=True):
        scratch = [mine * i for i in range(24)]
        for i in range(9):
            scratch[(mine + i) % 24] += table[(mine + i) & 7]
        total = sum(scratch[(i * 7 + mine) % 24] * (i + 1) for i in range(24))
        assert got == total + int(offsets[mine & 3]) + 2


def test_barriers(program: Program) -> None:
    for special in (0, 1000):
        x = np.arange(300, 396, dtype=np.uint32)
        x[70] = special or 370
        y = np.zeros(32 + 96 * 2, np.uint32)
        program.launch("barriers", block=(96,), args=[x, y], seed=3)
        n = np.arange(96) % 32
        assert np.array_equal(y[:32], x[31::-1])
        assert np.array_equal(y[32:128], x[(n + 1) & 31] + 1 + (100000 if special else 0))
        assert (y[128:] == (x & 1).sum() + (0 if special else 1000)).all()


def test_times(program: Program) -> None:
    got = [np.zeros(3, np.uint64) for _ in range(2)]
    for y in got:
        program.launch("times", args=[y])
    assert got[0].all() and np.array_equal(*got)


@pytest.mark.parametrize("variant", [0, 1, 2])
@pytest.mark.parametrize(("target", "mode"), [(80, "plain"), (90, "thread"), (100, "address")])
def test_messages(variant: int, target: int, mode: Any) -> None:
    """The sum of several releases, read by one acquire, is behind everything that the warps wrote before."""
    program = Program(cuda_ptx("primitives.cu", target, f"VARIANT={variant}"), mode)
    for seed in (0, 1, 2):
        data, words, y = np.zeros(128, np.uint32), np.zeros(2, np.uint32), np.zeros(1, np.uint32)
        program.launch("messages", block=(160,), args=[data, words[:1], words[1:], y], seed=seed)
        assert y[0] == np.arange(7, 135).sum() and words.tolist() == [4, 0]


def test_clusters(program: Program) -> None:
    if "clusters" not in program.kernels:
        pytest.skip("this target has no clusters")
    for seed in (0, 1):
        x, y = np.arange(4 * 64, dtype=np.uint32), np.zeros(4 * 64, np.uint32)
        program.launch("clusters", grid=(4,), block=(64,), args=[x, y], cluster=2, seed=seed)
        before = x.reshape(2, 2, 64)[:, ::-1].reshape(4, 64)
        n = np.arange(64)
        assert np.array_equal(y.reshape(4, 64), before[:, n ^ 32] + 1000 * (before[:, n ^ 33] + 1))
