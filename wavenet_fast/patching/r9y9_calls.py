"""`incremental_forward` of r9y9's WaveNets, both generations. Sample t hears input t, which is what was drawn at t − 1
or, with `test_inputs`, what these say, and conditioning t."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..config import GaussianHead, LogisticHead
from ..errors import InputError, ShapeError
from ..importers import Imported, r9y9
from .live import Heard, Live, State, as_array
from .terms import Settings, Unsupported

_UPSAMPLING = ("upsample_net.", "upsample_conv.")
_SAMPLERS = {LogisticHead: "sample_from_discretized_mix_logistic", GaussianHead: "sample_from_mix_gaussian"}
_LARGEST = 2.0
"""Of a scalar input, as engines take them."""


class R9y9Calls:
    """The model's method over an engine. Raises what `from_state` raises where the model cannot be imported."""

    def __init__(self, model: Any, settings: Settings) -> None:
        self.model, self._settings = model, settings
        self._dilations = tuple(int(layer.conv.dilation[0]) for layer in model.conv_layers)
        self._live = Live(model, settings, self._imported)
        self._config = self._live.config

    def _imported(self, state: State) -> Imported:
        model, classes = self.model, self.model.out_channels
        cycle = next((i for i, d in enumerate(self._dilations) if i and d == 1), len(self._dilations))
        repeats = len(self._dilations) % cycle == 0
        hparams = {
            "sample_rate": 16000, "hop_size": 1, "stacks": len(self._dilations) // cycle if repeats else 1,
            "upsample_conditional_features": False, "legacy": getattr(model, "legacy", None),
            "input_type": "raw" if model.scalar_input else "mulaw-quantize",
            "quantize_channels": 65536 if model.scalar_input else classes,
            "output_distribution": getattr(model, "output_distribution", "Logistic"), "log_scale_min": -7.0,
        }  # fmt: skip
        network = {name: value for name, value in state.items() if not name.startswith(_UPSAMPLING)}
        made = r9y9.from_state(network, hparams, skip_rule=self._settings.skip_rule)
        if made.config.dilations != self._dilations:
            raise Unsupported(f"its dilations {self._dilations} are no powers of two in equal cycles")
        return made

    def incremental_forward(
        self, initial_input: Any = None, c: Any = None, g: Any = None, T: Any = 100, test_inputs: Any = None,
        tqdm: Callable[[Iterable[int]], Any] = iter, softmax: bool = True, quantize: bool = True,
        log_scale_min: float = -7.0, **others: Any,
    ) -> Any:  # fmt: skip
        """See the original. Classes come back one-hot (B, A, T), values as (B, 1, T)."""
        model = self.model
        if model.training:
            raise Unsupported("the model is in training mode (call model.eval())")
        if others:
            raise Unsupported(f"its argument {next(iter(others))} is not known here")
        if not model.scalar_input and not (softmax and quantize):
            raise Unsupported("softmax=False and quantize=False feed back what is no class")
        history = None if test_inputs is None else self._inputs(test_inputs, "test_inputs")
        samples = _samples(T, history)
        with torch.no_grad():
            conditioning = self._conditioning(c, samples)
            batch = len(conditioning)
            speakers = self._speakers(g, batch)
        first = None if initial_input is None else self._inputs(initial_input, "initial_input")[:, 0]
        forced = None
        if history is not None and history.shape[1]:
            first, forced = history[:, 0], _rows(history[:, 1:], batch, "test_inputs")
        heard = Heard(
            conditioning, np.full(batch, samples), None if first is None else _rows(first, batch, "initial_input"),
            forced, speakers,
        )  # fmt: skip
        steps = Steps(tqdm, samples, batch)
        drawn = self._live.draws(heard, head=self._floor(log_scale_min), progress=steps)
        steps.finish()
        return self._as_tensor(drawn)

    def _as_tensor(self, drawn: NDArray[Any]) -> Any:
        made = torch.from_numpy(drawn).to(self._live.device)
        if self.model.scalar_input:
            return made[:, None]
        out = torch.zeros(len(drawn), self.model.out_channels, drawn.shape[1], device=made.device)
        return out.scatter_(1, made[:, None].long(), 1.0)

    def _inputs(self, given: Any, name: str) -> NDArray[Any]:
        """Inputs (B, C, n) or (B, n, C) as classes or values (B, n)."""
        values, width = as_array(given), 1 if self.model.scalar_input else self.model.out_channels
        if values.ndim != 3 or width not in values.shape[1:]:
            raise ShapeError(f"{name} has shape {values.shape}; give (B, {width}, n) or (B, n, {width})")
        values = values if values.shape[1] != width else values.swapaxes(1, 2)
        if self.model.scalar_input:
            if not (np.abs(values) <= _LARGEST).all():
                raise Unsupported(f"{name} holds values beyond ±{_LARGEST:g}")
            return np.asarray(values[:, :, 0])
        if not (((values == 0) | (values == 1)).all() and (values.sum(2) == 1).all()):
            raise Unsupported(f"{name} holds vectors that are not one-hot")
        return np.asarray(values.argmax(2), np.int32)

    def _conditioning(self, c: Any, samples: int) -> NDArray[np.float32]:
        """(B, M, T) at sample rate, by the model's own upsampling."""
        model, network = self.model, getattr(self.model, "upsample_net", None)
        stages = getattr(model, "upsample_conv", None)
        if c is None:
            raise Unsupported("there is no conditioning (c=None)")
        if network is not None:
            c = network(c)
        elif stages is not None:
            c = c.unsqueeze(1)
            for stage in stages:
                c = stage(c)
            c = c.squeeze(1)
        values = as_array(c)
        if network is None and stages is None and values.ndim == 3 and values.shape[2] != samples:
            values = values.swapaxes(1, 2)
        if values.ndim != 3 or values.shape[2] != samples or values.shape[1] != self._config.n_mels:
            raise ShapeError(
                f"c is conditioning of shape {values.shape} at sample rate, and T is {samples}; this model needs"
                f" (B, {self._config.n_mels}, {samples})"
            )
        if not np.isfinite(values).all():
            raise InputError("c holds NaN or infinity, and only finite numbers can be vocoded")
        return values

    def _speakers(self, g: Any, batch: int) -> NDArray[np.float32] | None:
        """(B, P) out of ids (B, 1), where the model has a table, or vectors (B, P) or (B, P, 1)."""
        P = self._config.speakers.channels
        if (g is None) != (P == 0):
            raise Unsupported("it has speakers, and g is None" if P else "it has no speakers, and g is given")
        if not P:
            return None
        if getattr(self.model, "embed_speakers", None) is not None:
            g = self.model.embed_speakers(g.reshape(-1))
        vectors = as_array(g)
        if vectors.ndim == 3:
            if vectors.shape[2] != 1:
                raise Unsupported("g changes from sample to sample")
            vectors = vectors[:, :, 0]
        if vectors.ndim != 2 or vectors.shape[1] != P:
            raise ShapeError(f"g has shape {tuple(g.shape)}; give speaker ids (B, 1) or vectors (B, {P})")
        return np.ascontiguousarray(_rows(vectors, batch, "g"))

    def _floor(self, log_scale_min: float) -> dict[str, Any]:
        """The floor of the log scales. Newer code has an argument `clamp_log_scale` that is off as it generates."""
        head = self._config.head
        if not isinstance(head, (LogisticHead, GaussianHead)):
            return {}
        sampler = getattr(sys.modules.get(type(self.model).__module__), _SAMPLERS[type(head)], None)
        if sampler is None or isinstance(head, GaussianHead):
            return {"log_scale_min": None if head.log_scale_min is None else float(log_scale_min)}
        clamps = inspect.signature(sampler).parameters.get("clamp_log_scale")
        return {"log_scale_min": float(log_scale_min) if clamps is None or clamps.default else None}


class Steps:
    """The original's `for t in tqdm(range(T))`, driven by an engine's progress."""

    def __init__(self, tqdm: Callable[[Iterable[int]], Any], samples: int, batch: int) -> None:
        self._steps: Iterator[Any] = iter(tqdm(range(samples)))
        self._batch, self._done = batch, 0

    def __call__(self, done: int, _: int) -> None:
        reached = max(self._done, done // self._batch)
        for _ in islice(self._steps, reached - self._done):
            pass
        self._done = reached

    def finish(self) -> None:
        for _ in self._steps:
            pass


def _samples(T: Any, history: NDArray[Any] | None) -> int:
    """As the original has it: the longer of T and the test inputs."""
    if T is None and history is None:
        raise InputError("T is None and there are no test_inputs; say how many samples to make")
    samples = max(0 if T is None else int(T), 0 if history is None else history.shape[1])
    if samples < 1:
        raise Unsupported("no samples are asked for")
    return samples


def _rows(values: NDArray[Any], batch: int, name: str) -> NDArray[Any]:
    """One row per utterance; a single one is for all."""
    if len(values) not in (1, batch):
        raise ShapeError(f"{name} is for {len(values)} utterances, and c for {batch}; give one each, or one for all")
    return np.broadcast_to(values, (batch, *values.shape[1:]))
