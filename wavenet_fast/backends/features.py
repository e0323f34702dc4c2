"""Mel → features for engines that project them elsewhere: standardised here; a conditioning network, or learned
upsampling, by the PyTorch reference on the host. It runs once per frame, off the sample loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from ..conditioning import columns_of_first_hop, context_frames, lookahead_frames
from ..config import Stages, WaveNetConfig
from ..errors import BackendError
from .gpu import INSTALL_TORCH

Array = NDArray[np.float32]


class Features:
    """What the layers of one model hear. Each column is computed from a window of frames whose extent follows from the
    frame alone, so the same bits come out whenever frames arrive.

    Raises `BackendError` where the model has a network or learned upsampling and PyTorch is not installed."""

    def __init__(self, config: WaveNetConfig, weights: Mapping[str, Array]) -> None:
        self._config = config
        self._learned = bool(config.conditioning.network) or isinstance(config.conditioning.upsampling, Stages)
        self._of = _network(config, weights) if self._learned else _standardised(config, weights)
        self._context, self._lookahead = context_frames(config), lookahead_frames(config)
        kernels = [conv.kernel_size for conv in config.conditioning.network]
        self._before, self._after = sum(k // 2 for k in kernels), sum((k - 1) // 2 for k in kernels)

    def rows(self, mel: Array, held_first: int, first: int, last: int) -> tuple[Array, int | None]:
        """What the samples of frames first … last − 1 hear, before projection.

        mel (M, n): frames held_first … held_first + n − 1, all that are known
        returns  at frame rate: columns (count, C), and the frame of the first. After learned stages: one row for each
                 sample, (hop·(last − first), C), shifted by `offset` already, and None"""
        staged = isinstance(self._config.conditioning.upsampling, Stages)
        if first == last:
            return np.zeros((0, self._config.conditioning_channels), np.float32), None if staged else first
        if staged:
            return np.concatenate([self._samples(mel, held_first, frame) for frame in range(first, last)]), None
        known = held_first + mel.shape[1]
        earlier, later = columns_of_first_hop(self._config)
        begin, end = max(first + earlier, 0), min(last - 1 + later, known)
        if not self._learned:
            return self._of_window(mel, held_first, begin, end), begin
        return np.concatenate([self._column(mel, held_first, frame) for frame in range(begin, end)]), begin

    def _column(self, mel: Array, held_first: int, frame: int) -> Array:
        """(1, C) of one frame."""
        first, last = max(0, frame - self._before), min(frame + self._after + 1, held_first + mel.shape[1])
        column: Array = self._of_window(mel, held_first, first, last)[frame - first][None]
        return column

    def _samples(self, mel: Array, held_first: int, frame: int) -> Array:
        """(hop, C) of the samples of one frame."""
        c, hop = self._config, self._config.hop_length
        first = max(0, frame - self._context)
        last = min(frame + self._lookahead + 1, held_first + mel.shape[1])
        t = np.arange(frame * hop, (frame + 1) * hop) + c.conditioning.offset
        samples: Array = self._of_window(mel, held_first, first, last)[np.maximum(t, 0) - first * hop]
        return samples

    def _of_window(self, mel: Array, held_first: int, first: int, last: int) -> Array:
        """Features (columns, C) of frames first … last − 1, as if there were no others."""
        return self._of(np.ascontiguousarray(mel[:, first - held_first : last - held_first])).T


def _standardised(config: WaveNetConfig, weights: Mapping[str, Array]) -> Callable[[Array], Array]:
    """(M, n) → (M, n), as `reference.Reference.features` does it."""
    if not config.conditioning.standardise:
        return lambda mel: mel
    mean, scale = (np.asarray(weights[f"mel.{name}"], np.float32)[:, None] for name in ("mean", "scale"))
    return lambda mel: (mel - mean) / scale


def _network(config: WaveNetConfig, weights: Mapping[str, Array]) -> Callable[[Array], Array]:
    """(M, n) → (C, columns)."""
    try:
        import torch

        from ..reference import Reference
    except ImportError:
        what = "a conditioning network" if config.conditioning.network else "learned upsampling"
        raise BackendError(
            f"this model has {what}, which the GPU backends leave to PyTorch on the processor. {INSTALL_TORCH}"
        ) from None
    network = Reference(config, {name: torch.tensor(weight, device="cpu") for name, weight in weights.items()})

    def features(mel: Array) -> Array:
        with torch.inference_mode():
            made: Array = network.features(torch.from_numpy(mel).clone()[None])[0].numpy()
            return made

    return features
