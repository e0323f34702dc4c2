"""What the context and the calls inside it agree on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


class Unsupported(Exception):
    """What cannot be done here, as the beginning of a sentence; the model's own code can."""


@dataclass(frozen=True)
class Settings:
    """Options of `patch`."""

    seed: int | None
    backend: str
    device: str
    dtype: str
    threads: int | None
    skip_rule: Literal["running", "sum"] | None
