"""Does an engine compute what the engine on the CPU computes, for a network with random weights?

Both are run; what they say is compared as follows.

- The engine speaks freely. The CPU engine, forced to hear what it heard, must give its logits within `LOGITS`.
- Every class drawn must be the one that `sampling.sample` draws from the engine's own logits, unless the uniform lies
  within `UNIFORM` of the edges between the two; that may happen in at most `MISMATCHES` of the draws. A continuous draw
  must be the same value within `VALUE`, as often.
- The sound must be that of the draws within `SOUND`, whether the frames come in one piece or in two, with the state
  saved and loaded between, and whether a stream is alone or not: the same to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bench_gate import LIMITS, LOOSE_LIMIT, ROUNDED_FP16_LIMIT, macs_per_sample, standard_mel
from ..config import CategoricalHead, WaveNetConfig
from ..packing import DTYPES
from ..rng import uniforms
from ..sampling import cdf_edge_distance, sample
from ..signal import fed_back, to_waveform
from .base import Engine

LOGITS = {"fp32": LIMITS["fp32", "fp32"], "fp16": ROUNDED_FP16_LIMIT, "bf16": LIMITS["bf16", "bf16"]}
"""Number format → largest logit error over the logits' standard deviation in time."""
UNIFORM, MISMATCHES = 1e-5, 1 / 1000
VALUE = SOUND = 1e-4
"""Of full scale 1. Exponentials and logarithms of a GPU are good to about 1e-6."""

TEMPERATURE = 0.8
SEEDS = (5, 1 << 33, 2**64 - 1)
MIN_SAMPLES, MAX_SAMPLES = 256, 4096
MAX_WORK = 2e11
"""Multiply-adds that the CPU engine spends at most, over all streams, unless two frames need more."""

STEPS = ("logits", "draws", "sound", "pieces", "alone")

Step = Callable[[str], None]


class DisagreementError(Exception):
    """The engine computes something else; the message says what, and by how much."""


def check_agreement(
    engine: Engine, weights: Mapping[str, NDArray[np.float32]], told: Step = lambda step: None,
    samples: int | None = None, threads: int = 1,
) -> None:  # fmt: skip
    """Raises `DisagreementError` unless the engine, made of these weights, does as described above.

    told     called with the word of `STEPS` that begins
    samples  of each stream, at least; None for more than the longest history of a layer
    threads  for the engine on the CPU"""
    trial = _Trial(engine, weights, samples, threads)
    told(STEPS[0])
    raw, logits = trial.speak_with_logits()
    trial.check_logits(raw, logits)
    told(STEPS[1])
    trial.check_draws(raw, logits)
    told(STEPS[2])
    whole = trial.feed(trial.start(), trial.mel, ended=True)
    trial.check_sound(raw, whole)
    told(STEPS[3])
    _same("pieces with the state saved between them give other samples than one call", trial.in_pieces(), whole)
    told(STEPS[4])
    last = slice(trial.batch - 1, trial.batch)
    alone = trial.feed(trial.start(last), trial.mel[last], ended=True)
    _same("a stream says something else alone than in a batch", alone, whole[last])


class _Trial:
    """One engine and what is asked of it."""

    def __init__(
        self, engine: Engine, weights: Mapping[str, NDArray[np.float32]], samples: int | None, threads: int
    ) -> None:
        c = self.config = engine.config
        self.engine, self.weights, self.threads = engine, weights, threads
        self.batch = len(SEEDS)
        wanted = samples or sample_count(c)
        self.frames = max(2, math.ceil(wanted / c.hop_length))
        self.samples = self.frames * c.hop_length
        self.mel = standard_mel(c, weights, self.batch, self.frames)
        self.seeds = np.array(SEEDS, np.uint64)
        P = c.speakers.channels
        self.speakers = np.random.default_rng(2).standard_normal((self.batch, P)).astype(np.float32) if P else None

    def start(self, which: slice = slice(None), engine: Engine | None = None) -> Any:
        speakers = None if self.speakers is None else self.speakers[which]
        return (engine or self.engine).start(self.seeds[which], speakers)

    def feed(
        self, state: Any, mel: NDArray[np.float32], ended: bool, engine: Engine | None = None, **options: Any
    ) -> NDArray[Any]:
        batch, _, frames = mel.shape
        given = np.full(batch, frames, np.int64), np.full(batch, ended)
        return (engine or self.engine).advance(state, np.ascontiguousarray(mel), *given, TEMPERATURE, **options)[0]

    def speak_with_logits(self) -> tuple[NDArray[Any], NDArray[np.float32]]:
        logits = np.full((self.batch, self.samples, self.config.out_channels), np.nan, np.float32)
        return self.feed(self.start(), self.mel, ended=True, raw=True, logits=logits), logits

    def check_logits(self, raw: NDArray[Any], logits: NDArray[np.float32]) -> None:
        from .cpu import CpuEngine

        dtype = self.engine.dtype if self.engine.dtype in DTYPES else "fp32"
        cpu, expected = CpuEngine(self.config, self.weights, dtype), np.zeros_like(logits)
        heard = fed_back(raw, self.config)
        options: dict[str, Any] = {"threads": self.threads, "logits": expected, "forced": heard}
        self.feed(self.start(engine=cpu), self.mel, ended=True, engine=cpu, **options)
        spread = (expected - expected.mean(axis=1, keepdims=True)).std()
        error = float(np.abs(logits - expected).max() / spread)
        limit = LOGITS.get(self.engine.dtype, LOOSE_LIMIT)
        if not error <= limit:  # a NaN is no smaller either
            raise DisagreementError(
                f"its logits are {error:.2g} standard deviations off those of the cpu backend in {dtype}, where "
                f"{limit:g} are allowed"
            )

    def check_draws(self, raw: NDArray[Any], logits: NDArray[np.float32]) -> None:
        c, t = self.config, np.arange(self.samples)
        u = np.stack([uniforms(seed, t) for seed in self.seeds])
        expected = sample(logits, u, c.head, TEMPERATURE)
        allowed = max(1, int(MISMATCHES * raw.size))
        if isinstance(c.head, CategoricalHead):
            off = raw != expected
            far = cdf_edge_distance(logits[off], u[off][:, 0], TEMPERATURE, (raw[off], expected[off]))
            if (far > UNIFORM).any():
                raise DisagreementError(
                    f"{int((far > UNIFORM).sum())} of {raw.size} draws are classes that their logits do not give: the "
                    f"uniform lies {far.max():.2g} from the edge, where {UNIFORM:g} is allowed"
                )
        else:
            off = ~(np.abs(raw - expected) <= VALUE)
        if (count := int(off.sum())) > allowed:
            raise DisagreementError(
                f"{count} of {raw.size} draws are not what their logits give, where {allowed} are allowed"
            )

    def check_sound(self, raw: NDArray[Any], sound: NDArray[np.float32]) -> None:
        expected = np.stack([to_waveform(row, self.config)[0] for row in raw])
        error = float(np.abs(sound - expected).max())
        if not error <= SOUND:
            raise DisagreementError(f"its sound is {error:.2g} off that of its own draws, where {SOUND:g} is allowed")

    def in_pieces(self) -> NDArray[np.float32]:
        cut = (self.frames + 1) // 2
        first, second = self.start(), self.start()
        head = self.feed(first, self.mel[:, :, :cut], ended=False)
        second.load_state_dict(first.state_dict())
        return np.concatenate([head, self.feed(second, self.mel[:, :, cut:], ended=True)], axis=1)


def sample_count(config: WaveNetConfig) -> int:
    """More than the longest history of a layer, so that every ring is gone round, as far as `MAX_SAMPLES` and
    `MAX_WORK` allow."""
    longest = (config.kernel_size - 1) * max(config.dilations) + config.hop_length
    affordable = int(MAX_WORK / (macs_per_sample(config) * len(SEEDS)))
    return max(1, min(max(MIN_SAMPLES, longest), MAX_SAMPLES, affordable))


def _same(what: str, found: NDArray[Any], expected: NDArray[Any]) -> None:
    if found.shape != expected.shape or not np.array_equal(found, expected):
        raise DisagreementError(what)
