"""`generate`, `fast_generate` and `batch_fast_generate` of kan-bayashi's WaveNet, and `generate` of ESPnet's copy.

The sample after x[0 … n−1] hears h[n−1]. Where x is shorter than the receptive field, silence, class Q // 2, is put
before it, with h[0], and zero vectors lie before that. The originals of `fast_generate` do so once; that of `generate`
does so again for every sample, which hardly differs, and here is the same.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from typing import Any

import numpy as np
import torch
from msgspec.structs import replace
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
        made = kan_bayashi.from_state(network, conf, sample_rate=16000)
        return dataclasses.replace(made, config=replace(made.config, past="zero"))

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
        classes = self.model.n_quantize
        missing = max(0, self.model.receptive_field - past.shape[1])
        past = np.pad(past % classes, ((0, 0), (missing, 0)), constant_values=classes // 2).astype(np.int32)
        known = past.shape[1] - 1  # inputs beyond the first
        conditioning = self._conditioning(h, len(counts), missing, known + int(counts.max()), lasting)
        heard = Heard(conditioning, counts + known, first=past[:, 0], forced=past[:, 1:])
        log = None if intervals is None else _log(int(intervals), int(counts.max()), known * len(counts))
        drawn = self._live.draws(heard, MODES[mode], progress=log)
        return [row[known : known + n].astype(np.int64) for row, n in zip(drawn, counts, strict=True)]

    def _conditioning(self, h: Any, batch: int, missing: int, samples: int, lasting: bool) -> NDArray[np.float32]:
        """(B, M, samples) at sample rate, the first `missing` of them before `h`."""
        if self.model.upsampling_factor > 0:
            with torch.no_grad():
                h = self.model.upsampling(h)
        values, wanted = as_array(h), samples - missing
        if values.ndim != 3 or len(values) != batch or values.shape[1] != self.model.n_aux or not values.shape[2]:
            raise ShapeError(f"h has shape {values.shape} at sample rate; give ({batch}, {self.model.n_aux}, samples)")
        if values.shape[2] < wanted and not lasting:
            raise ShapeError(f"h is for {values.shape[2]} samples, and {wanted} are to be heard; give more frames")
        values = values[:, :, :wanted]
        if not np.isfinite(values).all():
            raise InputError("h holds NaN or infinity, and only finite numbers can be vocoded")
        return np.pad(values, ((0, 0), (0, 0), (missing, wanted - values.shape[2])), mode="edge")


def _log(interval: int, samples: int, before: int) -> Progress:
    """Tells the log, as the original does, after every `interval` samples of the longest utterance, about. `before`
    samples of all streams are not new."""
    told, began = 0, time.perf_counter()

    def tell(done: int, total: int) -> None:
        nonlocal told
        while told + interval <= samples * max(0, done - before) // (total - before):
            told += interval
            each = (time.perf_counter() - began) / told
            logging.info("%d/%d samples, about %.3f s left", told, samples, (samples - told) * each)

    return tell
