"""wavenet_fast: autoregressive WaveNet vocoders with the whole sample loop in native code.

    import wavenet_fast
    voc = wavenet_fast.Vocoder.from_pretrained("path/to/voice")
    wav = voc(mel)                      # (M, F) log-mel → (F·hop,) float32 in −1 … 1

The path of one sound: `checkpoint → packing`; `mel → conditioning`; `seed → rng`; all meet in `backends/*`; the samples
go to `audio`. Importing this package loads nothing else; every name below is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import adapters as adapters
    from . import nn as nn
    from .checkpoint import Checkpoint as Checkpoint
    from .checkpoint import load_checkpoint as load_checkpoint
    from .checkpoint import save_checkpoint as save_checkpoint
    from .config import MelSpec as MelSpec
    from .config import WaveNetConfig as WaveNetConfig
    from .errors import AudioError as AudioError
    from .errors import BackendError as BackendError
    from .errors import CheckpointError as CheckpointError
    from .errors import ConfigError as ConfigError
    from .errors import InputError as InputError
    from .errors import MelMismatchWarning as MelMismatchWarning
    from .errors import PatchWarning as PatchWarning
    from .errors import ShapeError as ShapeError
    from .errors import StateError as StateError
    from .errors import WavenetFastError as WavenetFastError
    from .mel import MEL_PRESETS as MEL_PRESETS
    from .mel import mel_spectrogram as mel_spectrogram
    from .mel_convert import convert_mel as convert_mel
    from .patching import patch as patch
    from .streaming import Streaming as Streaming
    from .vocoder import Vocoder as Vocoder

__version__ = "0.1.0"

_HOME = {
    "checkpoint": ("Checkpoint", "load_checkpoint", "save_checkpoint"),
    "config": ("MelSpec", "WaveNetConfig"),
    "errors": (
        "AudioError", "BackendError", "CheckpointError", "ConfigError", "InputError", "MelMismatchWarning",
        "PatchWarning", "ShapeError", "StateError", "WavenetFastError",
    ),
    "mel": ("MEL_PRESETS", "mel_spectrogram"),
    "mel_convert": ("convert_mel",),
    "patching": ("patch",),
    "streaming": ("Streaming",),
    "vocoder": ("Vocoder",),
}  # fmt: skip
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "MEL_PRESETS", "AudioError", "BackendError", "Checkpoint", "CheckpointError", "ConfigError", "InputError",
    "MelMismatchWarning", "MelSpec", "PatchWarning", "ShapeError", "StateError", "Streaming", "Vocoder",
    "WaveNetConfig", "WavenetFastError", "__version__", "convert_mel", "load_checkpoint", "mel_spectrogram", "patch",
    "save_checkpoint",
]  # fmt: skip


_ROOMS = ("adapters", "nn")
"""Modules of PyTorch modules, found as attributes too."""


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f".{name}", __name__)
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
    value = getattr(importlib.import_module(f".{_MODULE[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})
