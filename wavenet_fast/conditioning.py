"""Which mel frames a sample depends on: shapes and look-ahead of the conditioning network. The arithmetic is native.

While a stream is open, a frame's samples can be made once `lookahead_frames` more frames are there; `context_frames`
before it must be remembered. Both follow from walking the network backwards from the samples of one frame; since every
layer treats all frames alike, the answer is the same for each.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .config import Hold, Linear, RepeatStage, Stages, TransposedStage, WaveNetConfig

# The longest utterance, in samples: positions are 64-bit, and so are the products the engine forms of them.
MAX_STREAM_SAMPLES = 1 << 56


def lookahead_frames(config: WaveNetConfig) -> int:
    """Frames that must be known beyond a frame before its samples can be made."""
    return max(0, _frames_of_first_hop(config)[1] - 1)


def context_frames(config: WaveNetConfig) -> int:
    """Frames before a frame that its samples depend on."""
    return max(0, -_frames_of_first_hop(config)[0])


def ready_samples(config: WaveNetConfig, frames: ArrayLike, ended: ArrayLike) -> NDArray[np.int64]:
    """Samples that can be made in all when `frames` (B,) frames are known: hop for each frame whose look-ahead is
    there, and for every frame of a stream that has `ended` (B,). Integers in, int64 (B,) out."""
    known = np.asarray(frames, np.int64)
    waiting = np.where(np.asarray(ended, bool), 0, lookahead_frames(config))
    return np.maximum(known - waiting, 0) * config.hop_length


def _frames_of_first_hop(config: WaveNetConfig) -> tuple[int, int]:
    """Frames [first, last) that samples 0 … hop−1 depend on, were there no beginning and no end."""
    up = config.conditioning.upsampling
    if isinstance(up, Stages):
        first, last = int(config.conditioning.offset), config.hop_length
        for stage in reversed(up.stages):
            first, last = _stage_inputs(stage, first, last)
    else:
        first, last = columns_of_first_hop(config)
    for conv in reversed(config.conditioning.network):
        first, last = first - conv.kernel_size // 2, last + (conv.kernel_size - 1) // 2
    return first, last


def columns_of_first_hop(config: WaveNetConfig) -> tuple[int, int]:
    """Columns at frame rate [first, last) that samples 0 … hop−1 hear where these are held or interpolated."""
    hop, up, offset = config.hop_length, config.conditioning.upsampling, config.conditioning.offset
    if isinstance(up, Linear):
        return offset // hop - (up.frame_centre > 0), 2 if (hop - 1) / hop >= up.frame_centre else 1
    assert isinstance(up, Hold)
    return offset // hop, 1


def _stage_inputs(stage: TransposedStage | RepeatStage, first: int, last: int) -> tuple[int, int]:
    """Input columns that output columns [first, last) depend on."""
    if isinstance(stage, TransposedStage):
        return (first + stage.crop - stage.kernel_size) // stage.scale + 1, (last - 1 + stage.crop) // stage.scale + 1
    reach = (stage.kernel_size - 1) // 2
    return (first - reach) // stage.scale, (last - 1 + reach) // stage.scale + 1
