"""Philox and uniforms: published vectors, Triton's own generator, seeds of a batch."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

from wavenet_fast.errors import InputError
from wavenet_fast.rng import MAX_SEED, _philox_rounds, philox, uniforms, utterance_seeds

# The known-answer file of the Random123 library (D. E. Shaw Research), tests/kat_vectors, lines "philox4x32 10":
# counter, key, block. The third uses the digits of pi.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text):
    return [np.asarray(int(word, 16), np.uint64) for word in text.split()]


@pytest.mark.parametrize("counter, key, block", KNOWN_ANSWERS)
def test_rounds_give_the_published_blocks(counter, key, block):
    assert _philox_rounds(words(counter), words(key)).tolist() == [int(word) for word in words(block)]


def test_seed_and_position_land_in_key_and_counter():
    seed, t = 0x0123456789ABCDEF, 0x0000000A0000000B
    expected = _philox_rounds(words("0000000b 0000000a 0 0"), words("89abcdef 01234567"))
    assert philox(seed, t).tolist() == expected.tolist()
    assert philox(np.array([[seed], [1]], np.uint64), np.arange(3)).shape == (2, 3, 4)
    assert philox(seed, np.int64(t)).tolist() == philox(seed, np.uint64(t)).tolist()


def test_a_block_depends_on_its_own_seed_and_position_alone():
    grid = philox(np.arange(5, dtype=np.uint64)[:, None], np.arange(7))
    assert grid[3, 4].tolist() == philox(3, 4).tolist()
    assert len(np.unique(grid)) == grid.size


def test_uniforms_stay_inside_and_are_flat():
    u = uniforms(7, np.arange(50_000))
    assert u.dtype == np.float32 and u.min() >= 0 and u.max() < 1
    # Each word's histogram over 20 cells: chi-squared with 19 degrees of freedom is below 52 but once in 10,000.
    for word in range(4):
        counts = np.histogram(u[:, word], bins=20, range=(0, 1))[0]
        assert ((counts - 2500) ** 2 / 2500).sum() < 52


def test_the_extreme_words_become_uniforms_below_one(monkeypatch):
    extremes = np.array([[0, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]], np.uint32)
    monkeypatch.setattr("wavenet_fast.rng.philox", lambda seeds, t: extremes)
    scale = np.float32(4.6566127342e-10)
    top = np.float32(2**31) * scale
    assert uniforms(0, 0).tolist() == [[0.0, top, top, 0.0]]
    assert top < 1


TRITON_PROGRAM = """
import numpy as np, torch, triton, triton.language as tl

@triton.jit
def blocks(seed_ptr, t_ptr, words_ptr, uniform_ptr, N: tl.constexpr, WIDE: tl.constexpr):
    i = tl.arange(0, N)
    t = tl.load(t_ptr + i)
    if not WIDE:
        t = t.to(tl.int32)
    seed = tl.load(seed_ptr)
    a, b, c, d = tl.randint4x(seed, t)
    tl.store(words_ptr + 4 * i, a.to(tl.int32, bitcast=True))
    tl.store(words_ptr + 4 * i + 1, b.to(tl.int32, bitcast=True))
    tl.store(words_ptr + 4 * i + 2, c.to(tl.int32, bitcast=True))
    tl.store(words_ptr + 4 * i + 3, d.to(tl.int32, bitcast=True))
    a, b, c, d = tl.rand4x(seed, t)
    tl.store(uniform_ptr + 4 * i, tl.rand(seed, t))
    tl.store(uniform_ptr + 4 * i + 1, b)
    tl.store(uniform_ptr + 4 * i + 2, c)
    tl.store(uniform_ptr + 4 * i + 3, d)

from wavenet_fast.rng import philox, uniforms

N = 256
for seed in (0, 1, 1234, 2**32 - 1, 2**32, 2**63 - 1):
    for first in (0, 12345, 2**31 - N, 2**31 + 5, 2**32 - N // 2, 2**40):
        t = np.arange(first, first + N, dtype=np.int64)
        wide = bool(t[-1] >= 2**31)
        w, u = torch.zeros(N, 4, dtype=torch.int32), torch.zeros(N, 4)
        blocks[(1,)](torch.tensor([seed]), torch.from_numpy(t), w, u, N, wide)
        assert (w.numpy().view(np.uint32) == philox(seed, t)).all(), ("words", seed, first)
        assert (u.numpy().view(np.uint32) == uniforms(seed, t).view(np.uint32)).all(), ("uniforms", seed, first)
print("equal")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed here")
def test_words_and_uniforms_equal_triton_bit_for_bit(tmp_path):
    """In a process of its own: TRITON_INTERPRET must be set before triton is imported, and kernels live in a file."""
    program = tmp_path / "program.py"
    program.write_text(TRITON_PROGRAM)
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, str(program)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.strip() == "equal", done.stderr[-2000:]


def test_an_integer_seed_counts_up_over_the_batch():
    assert utterance_seeds(5, 3).tolist() == [5, 6, 7]
    assert utterance_seeds(np.int32(5), 1).tolist() == [5]
    assert utterance_seeds(MAX_SEED - 1, 2).tolist() == [MAX_SEED - 1, MAX_SEED]
    assert utterance_seeds(0, 0).shape == (0,)
    assert utterance_seeds(np.array(9), 2).tolist() == [9, 10]


@pytest.mark.parametrize("seed", [[3, MAX_SEED], (3, MAX_SEED), np.array([3, MAX_SEED], np.uint64)])
def test_one_seed_per_utterance(seed):
    seeds = utterance_seeds(seed, 2)
    assert seeds.dtype == np.uint64 and seeds.tolist() == [3, MAX_SEED]


def test_seeds_may_be_torch_tensors():
    torch = pytest.importorskip("torch")
    assert utterance_seeds(torch.tensor([3, 2**63 - 1]), 2).tolist() == [3, 2**63 - 1]
    assert utterance_seeds(torch.tensor(9), 2).tolist() == [9, 10]
    assert utterance_seeds(torch.tensor([1, 2**63 + 1], dtype=torch.uint64), 2).tolist() == [1, 2**63 + 1]
    for bad in (torch.tensor([1.0, 2.0]), torch.tensor([True, False])):
        with pytest.raises(InputError, match=r"seed\[0\] is"):
            utterance_seeds(bad, 2)


@pytest.mark.parametrize(
    "seed, batch, told",
    [
        (-1, 1, "seed is -1"),
        (2**64, 1, "seed is 18446744073709551616"),
        (MAX_SEED, 2, "too large for 2 utterances"),
        (1.0, 1, "float"),
        (True, 1, "bool"),
        (np.bool_(True), 1, "bool"),
        (None, 1, "NoneType"),
        ("12", 2, "str"),
        (float("nan"), 1, "nan"),
        ([1, 2], 3, "2 seeds for 3 utterances"),
        ([1, -2], 2, r"seed\[1\] is -2"),
        ([1, 2**64], 2, r"seed\[1\]"),
        (np.array([1.0, 2.0]), 2, r"seed\[0\].*float"),
        (np.array([[1, 2]]), 1, r"shape \(1, 2\)"),
        (np.array(1.5), 1, "float"),
    ],
)
def test_seeds_that_cannot_be_used_are_explained(seed, batch, told):
    with pytest.raises(InputError, match=told):
        utterance_seeds(seed, batch)
