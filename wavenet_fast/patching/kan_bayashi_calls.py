"""`generate`, `fast_generate` and `batch_fast_generate` of kan-bayashi's WaveNet, and `generate` of ESPnet's copy.

The sample after x[0 … n−1] hears h[n−1]. Before x[0] lies silence, class Q // 2, with h[0]: the engine begins with one
sample of it, so that x may begin with any class, and what it draws there is x[0].
"""

from __future__ import annotations

import logging
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..backends.base import Progress
from ..errors import InputError, ShapeError
from ..importers import Imported, kan_bayashi
from .live import Heard, Live, State, as_array
from .terms import Settings, Unsupported

MODES = {"sampling": 1.0, "argmax": 1e-30}
"""Name → temperature; at the second all probability lies on the largest."""


class KanBayashiCalls:
    """The model's methods over an engine. Raises what `from_state` raises where the model cannot be imported."""

    def __init__(self, model: Any, settings: Settings) -> None:
        self.model = model
        self._live = Live(model, settings, self._imported)

    def _imported(self, state: State) -> Imported:
        conf = {
            "dilation_depth": self.model.dilation_depth, "dilation_repeat": self.model.dilation_repeat,
            "upsampling_factor": 1, "use_upsampling_layer": False,
        }  # fmt: skip
        network = {name: value for name, value in state.items() if not name.startswith("upsampling.")}
        return kan_bayashi.from_state(network, conf, sample_rate=16000)

    def generate(
        self, x: Any, h: Any, n_samples: Any, intervals: Any = None, mode: str = "sampling", interval: Any = None,
        **others: Any,
    ) -> NDArray[np.int64]:  # fmt: skip
        """See the original. x (1, T) and h (1, M, F); ESPnet's, which knows `interval`, has x (T,) and h (F, M), whose
        last frame goes on where it ends too early."""
        if x.dim() == 1:
            return self._made(x[None], h.mT[None], [n_samples], interval, mode, others, lasting=True)[0]
        return self._made(x, h, [n_samples], intervals, mode, others)[0]

    def fast_generate(
        self, x: Any, h: Any, n_samples: Any, intervals: Any = None, mode: str = "sampling", **others: Any
    ) -> NDArray[np.int64]:
        """See the original."""
        return self._made(x, h, [n_samples], intervals, mode, others)[0]

    def batch_fast_generate(
        self, x: Any, h: Any, n_samples_list: Any, intervals: Any = None, mode: str = "sampling", **others: Any
    ) -> list[NDArray[np.int64]]:
        """See the original: the answers come shortest first. The list of lengths is left as it is."""
        made = self._made(x, h, list(n_samples_list), intervals, mode, others)
        return sorted(made, key=len)

    def _made(
        self, x: Any, h: Any, lengths: list[Any], intervals: Any, mode: str, others: dict[str, Any],
        lasting: bool = False,
    ) -> list[NDArray[np.int64]]:  # fmt: skip
        """The new samples of each utterance; the last of `h` goes on for ever where it is `lasting`."""
        if others:
            raise Unsupported(f"its argument {next(iter(others))} is not known here")
        if mode not in MODES:
            raise InputError(f"mode is {mode!r}; possible are {', '.join(MODES)}")
        counts = np.array([int(n) for n in lengths], np.int64)
        if (counts < 1).any():
            raise Unsupported("no samples are asked for")
        past = as_array(x, np.int64)
        if past.ndim != 2 or len(past) != len(counts) or not past.shape[1]:
            raise ShapeError(f"x has shape {past.shape} for {len(counts)} utterances; give ({len(counts)}, T), T ≥ 1")
        past %= self.model.n_quantize  # as the original's one-hot does
        known = past.shape[1]
        conditioning = self._conditioning(h, len(counts), known + int(counts.max()) - 1, lasting)
        heard = Heard(conditioning, counts + known, forced=past.astype(np.int32))
        log = None if intervals is None else _log(int(intervals), int(counts.max()))
        drawn = self._live.draws(heard, MODES[mode], progress=log)
        return [row[known : known + n].astype(np.int64) for row, n in zip(drawn, counts, strict=True)]

    def _conditioning(self, h: Any, batch: int, samples: int, lasting: bool) -> NDArray[np.float32]:
        """(B, M, 1 + samples) at sample rate: that of the silence before x, and of every sample but the last."""
        if self.model.upsampling_factor > 0:
            with torch.no_grad():
                h = self.model.upsampling(h)
        values = as_array(h)
        if values.ndim != 3 or len(values) != batch or values.shape[1] != self.model.n_aux:
            raise ShapeError(f"h has shape {values.shape} at sample rate; give ({batch}, {self.model.n_aux}, samples)")
        if lasting and 0 < values.shape[2] < samples:
            values = np.pad(values, ((0, 0), (0, 0), (0, samples - values.shape[2])), mode="edge")
        if values.shape[2] < samples:
            raise ShapeError(f"h is for {values.shape[2]} samples, and {samples} are to be heard; give more frames")
        if not np.isfinite(values[:, :, :samples]).all():
            raise InputError("h holds NaN or infinity, and only finite numbers can be vocoded")
        return np.concatenate([values[:, :, :1], values[:, :, :samples]], axis=2)


def _log(interval: int, samples: int) -> Progress:
    """Tells the log, as the original does, after every `interval` samples of the longest utterance, about."""
    told, began = 0, time.perf_counter()

    def tell(done: int, total: int) -> None:
        nonlocal told
        while told + interval <= samples * done // total:
            told += interval
            each = (time.perf_counter() - began) / told
            logging.info("%d/%d samples, about %.3f s left", told, samples, (samples - told) * each)

    return tell
