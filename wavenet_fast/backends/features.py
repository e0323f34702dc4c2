"""Mel → features for engines that project them elsewhere: the conditioning network alone, by the PyTorch reference on
the host. It runs once per frame, off the sample loop."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..conditioning import columns_of_first_hop, context_frames, lookahead_frames
from ..config import Stages, WaveNetConfig
from ..reference import Reference


class Features:
    """The network of one model. Each column is computed from a window of frames whose extent follows from the frame
    alone, so the same bits come out whenever frames arrive."""

    def __init__(self, config: WaveNetConfig, weights: Mapping[str, NDArray[np.float32]]) -> None:
        self._config = config
        self._network = Reference(config, {name: torch.tensor(weight) for name, weight in weights.items()})
        self._context, self._lookahead = context_frames(config), lookahead_frames(config)
        kernels = [conv.kernel_size for conv in config.conditioning.network]
        self._before, self._after = sum(k // 2 for k in kernels), sum((k - 1) // 2 for k in kernels)

    @torch.inference_mode()
    def rows(self, mel: NDArray[np.float32], held_first: int, first: int, last: int) -> tuple[Tensor, int | None]:
        """What the samples of frames first … last − 1 hear, before projection.

        mel (M, n): frames held_first … held_first + n − 1, all that are known
        returns  at frame rate: columns (count, C), and the frame of the first. After learned stages: one row for each
                 sample, (hop·(last − first), C), shifted by `offset` already, and None"""
        up = self._config.conditioning.upsampling
        if first == last:
            return torch.zeros(0, self._config.conditioning_channels, dtype=torch.float32), None if isinstance(
                up, Stages
            ) else first
        if isinstance(up, Stages):
            return torch.cat([self._samples(mel, held_first, frame) for frame in range(first, last)]), None
        known = held_first + mel.shape[1]
        earlier, later = columns_of_first_hop(self._config)
        begin, end = max(first + earlier, 0), min(last - 1 + later, known)
        if not self._config.conditioning.network:
            window = torch.from_numpy(np.ascontiguousarray(mel[:, begin - held_first : end - held_first])).clone()
            return self._network.features(window[None])[0].T, begin
        return torch.cat([self._column(mel, held_first, frame) for frame in range(begin, end)]), begin

    def _column(self, mel: NDArray[np.float32], held_first: int, frame: int) -> Tensor:
        """(1, C) of one frame."""
        first, last = max(0, frame - self._before), min(frame + self._after + 1, held_first + mel.shape[1])
        return self._of_window(mel, held_first, first, last)[frame - first][None]

    def _samples(self, mel: NDArray[np.float32], held_first: int, frame: int) -> Tensor:
        """(hop, C) of the samples of one frame."""
        c, hop = self._config, self._config.hop_length
        first = max(0, frame - self._context)
        last = min(frame + self._lookahead + 1, held_first + mel.shape[1])
        t = np.arange(frame * hop, (frame + 1) * hop) + c.conditioning.offset
        return self._of_window(mel, held_first, first, last)[np.maximum(t, 0) - first * hop]

    def _of_window(self, mel: NDArray[np.float32], held_first: int, first: int, last: int) -> Tensor:
        """Features (columns, C) of frames first … last − 1, as if there were no others."""
        part = np.ascontiguousarray(mel[:, first - held_first : last - held_first])
        return self._network.features(torch.from_numpy(part).clone()[None])[0].T.contiguous()
