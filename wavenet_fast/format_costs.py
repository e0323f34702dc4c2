"""What a voice's number formats cost in bits per sample, as `wavenet-fast check --write` records it in `config.json`:

    "number_formats": {"weights": fingerprint, "recordings": 20, "seconds": 93.1, "bits_fp32": 3.47,
                       "bf16": {"cost_bits": 0.0001, "standard_error": 0.00003}, "fp16": {…}, "int8": {…}}

A cost is the format's bits per sample minus those of fp32, over all samples of real recordings. It holds for the
weights that it was measured with, hence their fingerprint. Fields that are not known here are left alone: a later
version may know more number formats.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from .config import Record

FIELD = "number_formats"


class FormatCost(Record, frozen=True, forbid_unknown_fields=False):
    """One number format against fp32, bits per sample; more than 0 is worse."""

    cost_bits: float
    standard_error: Annotated[float, Meta(ge=0)] | None = None
    """Of the cost, over recordings; None where there was one."""


class FormatCosts(Record, frozen=True, kw_only=True, forbid_unknown_fields=False, omit_defaults=True):
    """The field `number_formats`. A number format that could not be measured is None."""

    weights: Annotated[str, Meta(max_length=64)]
    """`weights_fingerprint` of the weights that were measured."""
    recordings: Annotated[int, Meta(ge=0)] = 0
    seconds: Annotated[float, Meta(ge=0)] = 0.0
    """Of sound, all recordings together."""
    bits_fp32: float | None = None
    """Bits per sample in fp32."""
    bf16: FormatCost | None = None
    fp16: FormatCost | None = None
    int8: FormatCost | None = None

    @property
    def costs(self) -> dict[str, FormatCost]:
        """Number format → its cost, of those measured."""
        found = {"bf16": self.bf16, "fp16": self.fp16, "int8": self.int8}
        return {name: cost for name, cost in found.items() if cost is not None}


def weights_fingerprint(weights: Mapping[str, NDArray[Any]]) -> str:
    """16 hexadecimal digits that differ whenever a tensor's name, shape or any float32 value does."""
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(weights):
        values = np.ascontiguousarray(weights[name], np.float32)
        digest.update(f"{name} {values.shape} ".encode())
        digest.update(values.data if values.size else b"")
    return digest.hexdigest()
