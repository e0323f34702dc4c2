"""Does the engine compute what it should? Every stage over the beginning of a recording, under forced history, against
the PyTorch reference that rounds where the engine rounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .checkpoint import Checkpoint
from .config import OneHotInput, WaveNetConfig
from .signal import fed_back, to_model_domain
from .weights import weight_shapes

TRACE_SECONDS = 1.0
TRACE_BYTES = 256 << 20
"""Of one copy of all stages; two are held at once. A large model is followed for less than `TRACE_SECONDS`."""

Stages = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class StageError:
    """The engine's distance from the reference in one stage, in standard deviations of that stage."""

    largest: float
    rms: float


class Beginning(NamedTuple):
    """mel (M, F) and what the network hears of its F·hop samples, (F·hop,)."""

    mel: NDArray[np.float32]
    history: NDArray[Any]


def beginning_of(config: WaveNetConfig, mel: NDArray[np.float32], wav: NDArray[np.float32]) -> Beginning:
    """The first second, or as much of it as `TRACE_BYTES` hold; at least a frame, filled up with silence."""
    hop, L, R, G = config.hop_length, config.n_layers, config.residual_channels, config.gate_channels
    a_sample = 4 * (L * (G + G // 2) + L * R + config.skip_channels + config.head_channels + config.out_channels)
    wanted = min(TRACE_SECONDS * config.sample_rate, TRACE_BYTES / a_sample)
    frames = max(1, min(int(wanted / hop), mel.shape[1], len(wav) // hop))
    sound = np.zeros(frames * hop, np.float32)
    sound[: len(wav)] = wav[: len(sound)]
    return Beginning(np.array(mel[:, :frames], np.float32), fed_back(to_model_domain(sound, config), config))


def stage_errors(
    checkpoint: Checkpoint, dtype: str, beginning: Beginning, speaker: NDArray[np.float32] | None, portable: bool
) -> dict[str, StageError]:
    """Stage → error of the engine of this processor, against the PyTorch reference in the same number format or, where
    `portable`, against the engine's own portable code. `speaker` (P,)."""
    from .backends.cpu import CpuEngine

    config = checkpoint.config
    weights = {name: checkpoint.weights[name] for name in weight_shapes(config)}
    ours: Stages = CpuEngine(config, weights, dtype).trace(*beginning, speaker=speaker)
    if portable:
        theirs: Stages = CpuEngine(config, weights, dtype, "portable").trace(*beginning, speaker=speaker)
    else:
        theirs = _reference_stages(config, weights, dtype, beginning, speaker)
    return {name: _error(ours[name], theirs[name]) for name in theirs}


def _reference_stages(
    config: WaveNetConfig, weights: Stages, dtype: str, beginning: Beginning, speaker: NDArray[np.float32] | None
) -> Stages:
    """Every stage by PyTorch under the same history; names and shapes as `CpuEngine.trace` gives them."""
    import torch

    from .reference import Reference, Trace

    writable = {name: np.array(weight) for name, weight in weights.items()}  # torch warns of arrays that are not
    model, trace = Reference(config, writable, dtype), Trace()
    kind = np.int64 if isinstance(config.input, OneHotInput) else np.float32
    heard = np.concatenate([[config.start], beginning.history[:-1]]).astype(kind)
    with torch.inference_mode():
        vector = None if speaker is None else torch.tensor(speaker)[None]
        conditioning = model.conditioning(torch.tensor(beginning.mel)[None], vector)
        model.forward(torch.tensor(heard)[None], conditioning, trace)
    return {name: values[0].numpy() for name, values in trace.items()}


def _error(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> StageError:
    difference = ours - theirs
    spread = float(theirs.std(dtype=np.float64)) or 1.0
    rms = math.sqrt(float(np.mean(np.square(difference), dtype=np.float64)))
    return StageError(float(np.abs(difference).max()) / spread, rms / spread)
