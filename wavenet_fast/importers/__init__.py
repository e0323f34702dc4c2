"""Checkpoints of other projects → a `WaveNetConfig` and its weights. One file per family, each with a pure
`from_state`: tensors and hparams in, `Imported` out, no torch and no files."""

from __future__ import annotations

from . import kan_bayashi, nv_wavenet, r9y9
from .common import Imported
from .families import FAMILIES, detect

__all__ = ["FAMILIES", "Imported", "detect", "kan_bayashi", "nv_wavenet", "r9y9"]
