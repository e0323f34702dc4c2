"""The self-test that a GPU backend must pass before `auto` takes it."""

from __future__ import annotations

from typing import NamedTuple

from ..config import WaveNetConfig


class Verdict(NamedTuple):
    passed: bool
    reason: str


def verdict(config: WaveNetConfig, backend: str, device: str, dtype: str) -> Verdict:
    """Nothing has been tried yet."""
    return Verdict(False, "it has not run")
