"""The native engine, stage by stage: against float64 arithmetic on each stage's own inputs, against the reference over
whole networks, and from logits to sound. Every instruction set of this processor, both number formats."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from engine_models import (
    MODELS,
    case,
    random_history,
    random_mel,
    random_weights,
    reference_stages,
    speaker_vectors,
)
from tolerances import EXPONENTIAL, GATE, MISMATCHES, STAGE, TRACE_MAX, TRACE_RMS, UNIFORM, VALUE

from wavenet_fast import _engine
from wavenet_fast.backends.cpu import CpuEngine, isas_possible
from wavenet_fast.config import CategoricalHead, WaveNetConfig
from wavenet_fast.packing import DTYPES, from_bf16, hearing_format, rounded, to_bf16
from wavenet_fast.rng import uniforms
from wavenet_fast.sampling import cdf_edge_distance, expand, mulaw_decode, sample

ISAS = isas_possible()
FRAMES = 9  # at least 54 samples: every ring wraps


def close(name: str, ours: Any, theirs: Any, limit: float) -> None:
    """Both finite, of one shape, and apart by at most `limit` standard deviations."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, name
    assert np.isfinite(ours).all() and np.isfinite(theirs).all(), name
    worst = np.abs(ours - theirs).max() / theirs.std()
    assert worst <= limit, f"{name} is off by {worst:.2e} standard deviations; {limit:.0e} are allowed"


def quantise_operands(x: Any) -> Any:
    """x · (127 / max|x|) to the nearest integer, in float32 as the engine does it."""
    largest = np.abs(x).max(axis=-1, keepdims=True)
    factor = np.where(largest > 1e-30, np.float32(127) / np.maximum(largest, np.float32(1e-30)), np.float32(0))
    return np.rint(x * factor).astype(np.float64), largest


class Oracle:
    """One stage at a time in float64, operands rounded as the number format says."""

    def __init__(self, config: WaveNetConfig, weights: dict[str, Any], dtype: str) -> None:
        self.c, self.dtype = config, dtype
        self.w = {name: w.astype(np.float64) for name, w in rounded(weights, dtype).items()}

    def operand(self, x: Any) -> Any:
        if self.dtype == "bf16":
            return from_bf16(to_bf16(x)).astype(np.float64)
        if self.dtype == "int8":
            numbers, _ = quantise_operands(x)
            return numbers * (np.abs(x).max(axis=-1, keepdims=True).astype(np.float64) / 127)
        return x.astype(np.float64)

    def product(self, x: Any, name: str) -> Any:
        return self.operand(x) @ self.w[f"{name}.weight"].T + self.w.get(f"{name}.bias", 0.0)

    def gate(self, x: Any, conditioning: Any, layer: int) -> Any:
        name, D = f"layers.{layer}.dilated", self.c.dilations[layer]
        taps = self.w[f"{name}.weight"]
        z = conditioning[:, layer].astype(np.float64) + self.w.get(f"{name}.bias", 0.0)
        for k in range(self.c.kernel_size):
            back = (self.c.kernel_size - 1 - k) * D
            before = np.repeat(x[:1] if self.c.past == "steady" else np.zeros_like(x[:1]), back, axis=0)
            past = np.concatenate([before, x])[: len(x)]
            z = z + self.operand(past) @ taps[:, :, k].T
        a, b = np.split(z, 2, axis=1)
        return np.tanh(a) / (1 + np.exp(-b))

    def skip(self, gates: list[Any]) -> Any:
        total = self.product(gates[0], "layers.0.skip")
        for i, gate in enumerate(gates[1:], 1):
            total = total + self.product(gate, f"layers.{i}.skip")
            if self.c.skip_rule == "running":
                total = total * self.c.skip_scale
        return total if self.c.skip_rule == "running" else total * self.c.skip_scale


def relu(x: Any) -> Any:
    return np.maximum(x, 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", [*MODELS, "voice"])
def test_each_stage_equals_float64_arithmetic_on_its_own_inputs(name: str, isa: str, dtype: str) -> None:
    config = case(name) if name == "voice" else MODELS[name]
    frames = 1 if name == "voice" else FRAMES
    weights, speaker = random_weights(config), speaker_vectors(config, 1)
    stages = CpuEngine(config, weights, dtype, isa).trace(
        random_mel(config, frames), random_history(config, frames * config.hop_length), 0,
        None if speaker is None else speaker[0],
    )  # fmt: skip
    oracle, limit = Oracle(config, weights, dtype), STAGE["cpu", dtype]
    L = config.n_layers
    x = stages["embed"]
    for i in range(L):
        gate = stages[f"gate.{i}"]
        close(f"gate.{i}", gate, oracle.gate(x, stages["conditioning"], i), limit)
        if i + 1 < L:
            expected = (x + oracle.product(gate, f"layers.{i}.residual")) * config.residual_scale
            x = stages[f"x.{i}"]
            close(f"x.{i}", x, expected, limit)
    close("skip", stages["skip"], oracle.skip([stages[f"gate.{i}"] for i in range(L)]), limit)
    close("hidden", stages["hidden"], oracle.product(relu(stages["skip"]), "head.hidden"), limit)
    close("logits", stages["logits"], oracle.product(relu(stages["hidden"]), "head.out"), limit)


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
@pytest.mark.parametrize("isa", ISAS)
def test_operands_midway_are_rounded_to_even(isa: str, dtype: str) -> None:
    """An embedding of numbers midway between two operands, which random numbers hardly ever are."""
    config, rng = MODELS["tiny"], np.random.default_rng(0)
    weights = random_weights(config)
    shape = weights["input.weight"].shape
    if dtype == "bf16":
        words = to_bf16(rng.standard_normal(shape).astype(np.float32)).astype(np.uint32)
        midway = (words << 16 | 0x8000).view(np.float32)
    else:
        midway = (rng.integers(-127, 127, shape).astype(np.float32) + np.float32(0.5)) / 64
        midway[0] = 127 / 64  # the largest of every vector, so that a unit is 1/64
    weights |= {"input.weight": midway, "input.bias": np.zeros(shape[0], np.float32)}
    stages = CpuEngine(config, weights, dtype, isa).trace(
        random_mel(config, 2), random_history(config, 2 * config.hop_length), 0, None
    )
    x = stages["embed"]
    assert np.isin(x, midway).all()
    expected = Oracle(config, weights, dtype).gate(x, stages["conditioning"], 0)
    close("gate.0", stages["gate.0"], expected, STAGE["cpu", dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*MODELS, "voice", "r9y9-mol"])
def test_whole_networks_equal_the_reference(name: str, dtype: str) -> None:
    large = name in ("voice", "r9y9-mol")
    config = case(name) if large else MODELS[name]
    frames = 1 if large else 3 * FRAMES
    weights, speaker = random_weights(config), speaker_vectors(config, 1)
    mel, history = random_mel(config, frames), random_history(config, frames * config.hop_length)
    theirs = reference_stages(config, weights, dtype, mel, history, speaker)
    for isa in ISAS:
        ours = CpuEngine(config, weights, dtype, isa).trace(mel, history, 0, None if speaker is None else speaker[0])
        assert ours.keys() == theirs.keys()
        for stage, values in theirs.items():
            # Nothing is rounded before the first product, which in bf16 and int8 is the conditioning's projection.
            exact = stage == "embed" or (stage == "conditioning" and hearing_format(dtype) == "fp32")
            close(f"{isa} {stage}", ours[stage], values, TRACE_MAX["cpu", "fp32" if exact else dtype])
            rms = np.sqrt(np.mean((ours[stage].astype(np.float64) - values) ** 2)) / values.std()
            assert rms <= TRACE_RMS["cpu", dtype], f"{isa} {stage}: root mean square {rms:.2e}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("name", MODELS)
def test_draws_follow_from_logits_and_uniforms(name: str, temperature: float, isa: str, dtype: str) -> None:
    config, seed = MODELS[name], 2**63 + 11
    frames = 40 if isinstance(config.head, CategoricalHead) else FRAMES
    engine = CpuEngine(config, random_weights(config), dtype, isa)
    T = frames * config.hop_length
    logits = np.zeros((1, T, config.out_channels), np.float32)
    state = engine.start(np.array([seed], np.uint64), speaker_vectors(config, 1))
    draws, ready = engine.advance(
        state, random_mel(config, frames, 1), np.array([frames]), np.array([True]), temperature, logits=logits, raw=True
    )
    assert ready.tolist() == [T]
    u = uniforms(np.uint64(seed), np.arange(T))
    expected = sample(logits[0], u, config.head, temperature)
    if not isinstance(config.head, CategoricalHead):
        assert draws.dtype == np.float32
        np.testing.assert_allclose(draws[0], expected, rtol=0, atol=VALUE)
        assert np.unique(draws).size > T // 2
        return
    assert draws.dtype == np.int32 and np.unique(draws).size > 10
    off = np.flatnonzero(draws[0] != expected)
    far = cdf_edge_distance(logits[0][off], u[off, 0], temperature, (draws[0][off], expected[off]))
    # The logits are the same, so the fp32 limit holds in every number format.
    assert len(off) <= 1 + T * MISMATCHES["fp32"] and (far <= UNIFORM).all(), f"{len(off)} differ, by {far}"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["odd", "no-bias", "wide-input"])
def test_at_the_highest_temperature_all_classes_are_alike_and_nothing_else_is_drawn(name: str, isa: str) -> None:
    """What fills the vectors up beyond the last class has no weight, however flat the distribution becomes."""
    config, T = MODELS[name], 40 * MODELS[name].hop_length
    engine = CpuEngine(config, random_weights(config), "fp32", isa)
    state, mel = engine.start(np.array([8], np.uint64)), random_mel(config, 40, 1)
    draws, _ = engine.advance(state, mel, np.array([40]), np.array([True]), 3e38, raw=True)
    u = uniforms(np.uint64(8), np.arange(T))[:, 0]
    expected = np.floor(u.astype(np.float64) * config.out_channels)
    assert np.abs(draws[0] - expected).max() <= 1 and (draws[0] != expected).mean() <= MISMATCHES["fp32"]


@pytest.mark.parametrize("name", MODELS)
def test_sound_is_the_draws_decoded_with_preemphasis_and_gain_undone(name: str) -> None:
    config = MODELS[name]
    engine = CpuEngine(config, random_weights(config))
    results = []
    for raw in (True, False):
        state = engine.start(np.array([3], np.uint64), speaker_vectors(config, 1))
        mel = random_mel(config, FRAMES, 1)
        results.append(engine.advance(state, mel, np.array([FRAMES]), np.array([True]), 0.8, raw=raw)[0][0])
    draws, sound = results
    if isinstance(config.head, CategoricalHead):
        expected = mulaw_decode(draws, config.head.classes - 1, config.head.decode_offset).astype(np.float64)
    else:
        expected = expand(draws, config.signal.mu) if config.signal.domain == "mulaw" else draws.astype(np.float64)
    for t in range(1, len(expected)):
        expected[t] += config.signal.preemphasis * expected[t - 1]
    expected = np.clip(expected / config.signal.gain, -1, 1)
    assert sound.dtype == np.float32 and np.abs(sound).max() > 0.01
    np.testing.assert_allclose(sound, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("isa", ISAS)
def test_the_gate_is_as_exact_as_documented(isa: str) -> None:
    rng = np.random.default_rng(0)
    a = (rng.uniform(-12, 12, 1 << 16) * rng.uniform(0, 1, 1 << 16) ** 4).astype(np.float32)
    b = rng.permutation(a)
    special = [0, 1e-30, 1, 5, 10, 20, 60, 90, 1e4, 3e38, np.inf]
    extremes = np.array([*special, *np.negative(special)] + [2.5] * 2, np.float32)
    pairs = np.stack(np.meshgrid(extremes, extremes)).reshape(2, -1)
    a, b = np.concatenate([a, pairs[0]]), np.concatenate([b, pairs[1]])
    with np.errstate(over="ignore"):
        expected = np.tanh(a.astype(np.float64)) / (1 + np.exp(-b.astype(np.float64)))
    assert np.abs(_engine.gate(isa, a, b) - expected).max() <= GATE


@pytest.mark.parametrize("isa", ISAS)
def test_no_nan_gets_through_a_gate(isa: str) -> None:
    nan, zero = np.full(16, np.nan, np.float32), np.zeros(16, np.float32)
    assert np.isfinite(_engine.gate(isa, nan, zero)).all() and np.isfinite(_engine.gate(isa, zero, nan)).all()


@pytest.mark.parametrize("isa", ISAS)
def test_the_exponential_is_as_exact_as_documented(isa: str) -> None:
    x = np.linspace(-87, 88, 1 << 16, dtype=np.float32)
    expected = np.exp(x.astype(np.float64))
    assert np.abs(_engine.exponential(isa, x) / expected - 1).max() <= EXPONENTIAL
    vanishing = np.array([-88, -89, -100, -1e30, -np.inf, np.nan, -3.4e38, -90] * 2, np.float32)
    assert (_engine.exponential(isa, vanishing) == 0).all()
