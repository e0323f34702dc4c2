"""What the streams of the backend `cpu` remember: NumPy arrays that the native engine changes in place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import _engine
from ..errors import InputError
from .host_state import HostState, check_finite

if TYPE_CHECKING:
    from .cpu import CpuEngine


class CpuState(HostState):
    """The streams of one batch; implements `base.State`.

    `rings` (B, slots, R padded) holds, layer after layer, (K−1)·D slots each: slot t mod depth is the layer's input at
    sample t, float32, bf16 words or int8 numbers, of which one unit is worth `ring_scales` (B, slots; none in other
    number formats). A saved state is the same for every instruction set.
    """

    def __init__(self, engine: CpuEngine, seeds: NDArray[np.uint64], speakers: NDArray[np.float32]) -> None:
        batch = len(seeds)
        shape = (batch, engine.ring_slots, engine.ring_channels)
        size = math.prod(shape) * engine.ring_dtype.itemsize
        try:
            self.rings = _engine.zeros(size).view(engine.ring_dtype).reshape(shape)
        except MemoryError:
            need = f"{batch} streams need {size / 2**30:.1f} GiB of history, which is not there; use fewer"
            raise InputError(need) from None
        self.ring_scales = np.zeros((batch, engine.scale_slots), np.float32)
        super().__init__(engine, seeds, speakers)

    def native(self) -> _engine.State:
        """The arrays as the engine takes them."""
        return _engine.State(
            rings=self.rings.reshape(self.batch, -1), ring_scales=self.ring_scales, inputs=self.inputs,
            filters=self.filters, positions=self.positions, seeds=self.seeds, speakers=self.speakers,
            received=self.frames, pending=self.mel, pending_counts=self.mel_frames,
        )  # fmt: skip

    def _check_values(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        check_finite("ring_scales", arrays["ring_scales"])
        super()._check_values(arrays)

    def _zero_rings(self, mask: NDArray[np.bool_]) -> None:
        self.rings[mask] = 0
        self.ring_scales[mask] = 0

    def _saved_rings(self) -> dict[str, NDArray[Any]]:
        R = self.engine.config.residual_channels
        return {"rings": self.rings[..., :R].copy(), "ring_scales": self.ring_scales.copy()}

    def _load_rings(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self.rings[..., : arrays["rings"].shape[-1]] = arrays["rings"]
        self.ring_scales[...] = arrays["ring_scales"]

    def _copied_rings(self) -> tuple[NDArray[Any], NDArray[np.float32]]:
        return self.rings.copy(), self.ring_scales.copy()

    def _put_back_rings(self, copied: tuple[NDArray[Any], NDArray[np.float32]]) -> None:
        self.rings[...], self.ring_scales[...] = copied
