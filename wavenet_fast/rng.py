"""Randomness as an argument: four uniforms for every (seed, sample index), the same bits in every backend.

The generator is Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011),
counter-based: block(seed, t) needs no state, so a stream's samples depend on its own seed and position alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import InputError

# Multipliers and key increments of Philox4x32, as published in the paper's table of constants.
_MULTIPLY_0, _MULTIPLY_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10
_LOW, _32 = np.uint64(0xFFFFFFFF), np.uint64(32)

# Triton's uint_to_uniform_float: a little below 2^-31, so that the largest uniform stays below 1.
_UNIFORM_SCALE = np.float32(4.6566127342e-10)

MAX_SEED = 2**64 - 1


def philox(seeds: ArrayLike, t: ArrayLike) -> NDArray[np.uint32]:
    """Philox4x32-10 with key (seed low, seed high) and counter (t low, t high, 0, 0).

    seeds  uint64 (...), t  non-negative int64 or uint64 (...), broadcast together  →  uint32 (..., 4)
    """
    seed, position = np.broadcast_arrays(np.asarray(seeds, np.uint64), np.asarray(t).astype(np.uint64))
    k0, k1 = seed & _LOW, seed >> _32
    return _philox_rounds((position & _LOW, position >> _32, np.zeros_like(seed), np.zeros_like(seed)), (k0, k1))


def _philox_rounds(counter: Sequence[NDArray[np.uint64]], key: Sequence[NDArray[np.uint64]]) -> NDArray[np.uint32]:
    """The ten rounds, every 32-bit word held in a uint64 so that one multiplication gives both halves."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for i in range(_ROUNDS):
        if i:
            k0, k1 = (k0 + np.uint64(_WEYL_0)) & _LOW, (k1 + np.uint64(_WEYL_1)) & _LOW
        even, odd = c0 * _MULTIPLY_0, c2 * _MULTIPLY_1
        c0, c1, c2, c3 = (odd >> _32) ^ c1 ^ k0, odd & _LOW, (even >> _32) ^ c3 ^ k1, even & _LOW
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def uniforms(seeds: ArrayLike, t: ArrayLike) -> NDArray[np.float32]:
    """Four uniforms in [0, 1) per (seed, t): word 0 chooses class or component, word 1 the value, 2 and 3 are reserved.

    seeds  uint64 (...), t  non-negative int64 or uint64 (...), broadcast together  →  float32 (..., 4)

    The words become floats as Triton's `uint_to_uniform_float` does it: read as int32, negative ones mapped to −x − 1.
    """
    x = philox(seeds, t).view(np.int32)
    x = np.where(x < 0, ~x, x)  # ~x is -x - 1
    return x.astype(np.float32) * _UNIFORM_SCALE


def utterance_seeds(seed: int | Sequence[int] | NDArray[Any], batch: int) -> NDArray[np.uint64]:
    """One seed per utterance: an integer n gives utterance b the seed n + b; a sequence gives one each.

    Returns uint64 (B,). Raises `InputError` for anything but integers in 0 … 2⁶⁴−1 and for a wrong count.
    """
    if not isinstance(seed, (Sequence, np.ndarray)) and hasattr(seed, "tolist"):  # torch's tensors
        seed = np.array(seed.tolist(), object)  # whole numbers stay what they are, above 2⁶³ too
    if isinstance(seed, np.ndarray) and seed.ndim == 0:
        seed = seed[()]
    if isinstance(seed, (str, bytes)) or not isinstance(seed, (Sequence, np.ndarray)):
        first = _integer(seed, "seed")
        if first + batch - 1 > MAX_SEED:
            raise InputError(
                f"seed {first} is too large for {batch} utterances: utterance b uses seed + b, at most 2^64 - 1 = "
                f"{MAX_SEED}; use a seed up to {MAX_SEED - batch + 1}"
            )
        return np.uint64(first) + np.arange(batch, dtype=np.uint64)
    if isinstance(seed, np.ndarray) and seed.ndim != 1:
        raise InputError(f"seed has shape {seed.shape}; give one integer, or a list of one integer per utterance")
    if len(seed) != batch:
        raise InputError(
            f"got {len(seed)} seeds for {batch} utterances; give one integer, or exactly one per utterance"
        )
    return np.array([_integer(value, f"seed[{b}]") for b, value in enumerate(seed)], dtype=np.uint64)


def _integer(value: Any, name: str) -> int:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise InputError(f"{name} is {value!r} ({type(value).__name__}); it must be an integer from 0 to 2^64 - 1")
    if not 0 <= int(value) <= MAX_SEED:
        raise InputError(f"{name} is {int(value)}; it must be an integer from 0 to 2^64 - 1 = {MAX_SEED}")
    return int(value)
