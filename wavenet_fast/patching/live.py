"""A PyTorch model, as it is at the moment, on one of these engines."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from msgspec.structs import replace
from numpy.typing import NDArray

from ..backends import prepare, usable_cores
from ..backends.base import Engine, Progress
from ..importers import Imported
from ..rng import utterance_seeds
from ..weights import weight_shapes
from .terms import Settings

State = dict[str, NDArray[Any]]


class Heard(NamedTuple):
    """What B streams hear, at sample rate.

    conditioning  float32 (B, M, n)
    counts        int64 (B,): samples of each stream, ≤ n
    first         (B,) classes or values: the input of the first sample; None is the model's own
    forced        (B, k), k < n, or None: the inputs of samples 1 … k; from there on streams hear what they draw
    speakers      float32 (B, P), or None
    """

    conditioning: NDArray[np.float32]
    counts: NDArray[np.int64]
    first: NDArray[Any] | None = None
    forced: NDArray[Any] | None = None
    speakers: NDArray[np.float32] | None = None


class Live:
    """`imported` makes a model of one sample a frame out of the state dictionary; upsampling stays the model's own."""

    def __init__(self, model: Any, settings: Settings, imported: Callable[[State], Imported]) -> None:
        self.model, self.settings, self._imported = model, settings, imported
        self._made: dict[Any, Engine] = {}
        self._digest = b""
        self.config = imported(self._state()).config

    @property
    def device(self) -> Any:
        return next(self.model.parameters()).device

    def draws(
        self, heard: Heard, temperature: float = 1.0, head: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> NDArray[Any]:  # fmt: skip
        """What the streams draw, (B, n) int32 classes or float32 values. `head` replaces fields of the head's config.
        progress(samples done, samples in all) is of all streams together."""
        engine = self._engine(head or {})
        c, batch, total = heard.conditioning, len(heard.counts), int(heard.counts.sum())
        state = engine.start(self._seeds(batch), heard.speakers)
        if heard.first is not None:
            _begin_with(state, heard.first)
        known = 0 if heard.forced is None else heard.forced.shape[1]
        options: dict[str, Any] = {"threads": self.settings.threads or usable_cores(), "raw": True}
        parts = []
        for start, end, past in ((0, known, heard.forced), (known, c.shape[2], None)):
            if end == start:
                continue
            done = int(np.minimum(heard.counts, start).sum())
            drawn, _ = engine.advance(
                state, np.ascontiguousarray(c[:, :, start:end]), np.clip(heard.counts - start, 0, end - start),
                heard.counts <= end, temperature, forced=past, progress=_shifted(progress, done, total), **options,
            )  # fmt: skip
            parts.append(np.pad(drawn, ((0, 0), (0, end - start - drawn.shape[1]))))
        return np.concatenate(parts, axis=1) if parts else np.zeros((batch, 0), np.float32)

    def _seeds(self, batch: int) -> NDArray[np.uint64]:
        """(B,)."""
        if self.settings.seed is not None:
            return utterance_seeds(self.settings.seed, batch)
        high, low = torch.randint(0, 1 << 32, (2, batch), dtype=torch.int64, device="cpu").numpy().astype(np.uint64)
        return np.asarray(high << np.uint64(32) | low)

    def _engine(self, head: Mapping[str, Any]) -> Engine:
        """For the weights as they are: a change of any is seen, however it was made."""
        state, s = self._state(), self.settings
        digest = hashlib.blake2b(digest_size=16)
        for value in state.values():
            digest.update(np.ascontiguousarray(value).data)
        key = tuple(sorted(head.items()))
        if self._digest != digest.digest():
            self._digest, self._made = digest.digest(), {}
        if key not in self._made:
            imported = self._imported(state)
            config = replace(imported.config, head=replace(imported.config.head, **head))
            weights = {name: imported.weights[name] for name in weight_shapes(config)}
            self._made[key] = prepare(config, weights, s.backend, s.device, s.dtype).engine
        return self._made[key]

    def _state(self) -> State:
        return {name: value.detach().cpu().float().numpy() for name, value in self.model.state_dict().items()}


def _begin_with(state: Any, first: NDArray[Any]) -> None:
    """Let fresh streams hear `first` (B,) before their first sample, whatever the model's start is."""
    saved = state.state_dict()
    if "inputs" in saved:
        saved["inputs"][:, -1] = first
    else:
        for b, value in enumerate(first):
            saved[f"stream.{b}.newest"][...] = value
    state.load_state_dict(saved)


def _shifted(progress: Progress | None, done: int, total: int) -> Progress | None:
    """`progress` of a whole, told by a part that begins after `done` samples."""
    if progress is None:
        return None
    return lambda here, _: progress(done + here, total)


def as_array(tensor: Any, dtype: type[Any] = np.float32) -> NDArray[Any]:
    """A tensor of any device, or an array, as a contiguous array."""
    if isinstance(tensor, torch.Tensor):
        tensor = tensor.detach().cpu().float() if tensor.is_floating_point() else tensor.detach().cpu()
        tensor = tensor.numpy()
    return np.ascontiguousarray(tensor, dtype)
