"""What the sample loop looks up besides weights, as NumPy arrays; the same for all kernels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wavenet_fast.config import CategoricalHead, Linear, WaveNetConfig
from wavenet_fast.packing import hearing_format
from wavenet_fast.sampling import Head
from wavenet_fast.signal import drawn_signal, fed_back


@dataclass(frozen=True)
class Tables:
    """`layers` (LAYERS, 3) int32: dilation, first slot of the ring, slots. By place within the hop (HOP,): `fraction`,
    the weight of the right column, and `shift`, 0 or −1, where the left one lies. `sound`, `feedback` (classes,): a
    class as sound, and as a scalar input is fed it."""

    layers: NDArray[np.int32]
    fraction: NDArray[np.float32]
    shift: NDArray[np.int32]
    sound: NDArray[np.float32]
    feedback: NDArray[np.float32]

    def named(self) -> dict[str, NDArray[Any]]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def depths(config: WaveNetConfig) -> list[int]:
    """Slots of each layer's ring: the first power of two above what its taps reach back, so that no step
    overwrites a past that it reads."""
    return [1 << ((config.kernel_size - 1) * d).bit_length() for d in config.dilations]


@lru_cache(maxsize=64)
def tables(config: WaveNetConfig, dtype: str) -> Tables:
    """For a number format: in bf16 weights of columns are multiples of 1/256, as in
    `reference.Reference.conditioning`."""
    slots = depths(config)
    first = np.concatenate([[0], np.cumsum(slots)[:-1]])
    sound = feedback = np.zeros(1, np.float32)
    if isinstance(config.head, CategoricalHead):
        classes = np.arange(config.out_channels)
        sound, feedback = drawn_signal(classes, config), fed_back(classes, config).astype(np.float32)
    layers = np.stack([config.dilations, first, slots], axis=1).astype(np.int32)
    return Tables(layers, *_interpolation(config, dtype), np.asarray(sound, np.float32), feedback)


def mu_of(config: WaveNetConfig) -> float:
    """µ of the companding: of the head's classes, or of the signal."""
    head = config.head
    return float(head.classes - 1 if isinstance(head, CategoricalHead) else config.signal.mu)


def log_scale_min(head: Head) -> float:
    """−∞ where there is none."""
    floor = None if isinstance(head, CategoricalHead) else head.log_scale_min
    return -float("inf") if floor is None else floor


def _interpolation(config: WaveNetConfig, dtype: str) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    up = config.conditioning.upsampling
    place = np.arange(config.hop_length) / config.hop_length - (up.frame_centre if isinstance(up, Linear) else 0.0)
    left = np.floor(place)
    weight = (place - left).astype(np.float32)
    if hearing_format(dtype) == "bf16":
        weight = np.floor(weight * np.float32(256) + np.float32(0.5)) / np.float32(256)
    return weight, left.astype(np.int32)
