"""Our own tensors where they are not in a voice's directory: any file of them, with the `config.json` of the voice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import ArrayLike

from ..config import MelSpec, WaveNetConfig, decode
from ..errors import InputError
from ..weights import weight_shapes
from .common import Imported, finished, need, plain_tensors

FAMILY = "own"
WHERE = "this file of wavenet_fast tensors"
_STATISTICS = ("mel.mean", "mel.scale")


def from_state(state: Mapping[str, ArrayLike], document: Mapping[str, Any], *, mel: MelSpec | None = None) -> Imported:
    """Tensors by our names and the contents of `config.json`. Raises `CheckpointError` and `ConfigError`."""
    if "model" not in document:
        raise InputError('our own tensors need the voice\'s config.json, whose "model" says what they are; give it as'
                         " --hparams")  # fmt: skip
    config = decode(WaveNetConfig, document["model"], "config.json: model")
    recipe = decode(MelSpec, document["mel"], "config.json: mel") if mel is None and "mel" in document else mel
    tensors = plain_tensors(state, WHERE)
    statistics = {name: (config.n_mels,) for name in _STATISTICS if name in tensors}
    need(tensors, {**weight_shapes(config), **statistics}, WHERE)
    return Imported(config, finished(config, tensors, WHERE), recipe, [], dict(document.get("provenance") or {}))
