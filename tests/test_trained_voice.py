"""The bundled voice on the native engine, against the reference over more than 2,000 steps of real speech: what other
tests show of small random networks holds for a trained one, whose distributions are as peaked as speech makes them."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from tolerances import MISMATCHES, TRACE_MAX, TRACE_RMS, UNIFORM

from wavenet_fast import Vocoder
from wavenet_fast.audio import read_audio
from wavenet_fast.backends import INT8_COST_LIMIT, choose
from wavenet_fast.backends.cpu import CpuEngine, isas_possible
from wavenet_fast.checkpoint import bundled_voices, load_checkpoint, resolve
from wavenet_fast.mel import mel_spectrogram
from wavenet_fast.packing import DTYPES
from wavenet_fast.rng import uniforms
from wavenet_fast.sampling import cdf_edge_distance

pytest.importorskip("torch", reason="the reference needs PyTorch")

VOICE = bundled_voices()[0]
SEED, FIRST, FRAMES = 2024, 150, 12
"""The frames from FIRST on lie within speech."""


@cache
def checkpoint() -> Any:
    return load_checkpoint(resolve(VOICE))


@cache
def speech() -> Any:
    """(1, M, FRAMES) of the first recording that comes with the voice."""
    spec = checkpoint().mel
    path = sorted((resolve(VOICE) / "samples").glob("*.flac"))[0]
    mel = mel_spectrogram(read_audio(path, spec.sample_rate)[0], spec)
    return np.ascontiguousarray(mel[None, :, FIRST : FIRST + FRAMES])


def run(engine: Any, forced: Any = None) -> tuple[Any, Any]:
    """(classes (T,), logits (T, A)) of one stream over all frames."""
    c = checkpoint().config
    logits = np.zeros((1, FRAMES * c.hop_length, c.out_channels), np.float32)
    state = engine.start(np.array([SEED], np.uint64))
    drawn, _ = engine.advance(
        state, speech(), np.array([FRAMES]), np.array([True]), 1.0, forced=forced, logits=logits, raw=True
    )
    return drawn[0], logits[0]


@cache
def by_the_reference(dtype: str) -> tuple[Any, Any]:
    """Generated freely, one step after the other."""
    from wavenet_fast.backends.reference import ReferenceEngine

    drawn, logits = run(ReferenceEngine(checkpoint().config, checkpoint().weights, dtype))
    assert len(drawn) >= 2000 and drawn.std() > 20  # speech, not silence
    return drawn, logits


def differing_draws(ours: Any, theirs: Any) -> Any:
    """(T, A) logits twice → (T,): the chance that one uniform chooses another class, which is what is left when the
    intervals of every class are laid over each other."""

    def edges(logits: Any) -> Any:
        odds = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
        inner = np.cumsum(odds, axis=1) / odds.sum(axis=1, keepdims=True)
        return np.pad(inner, ((0, 0), (1, 0)))

    a, b = edges(ours), edges(theirs)
    return 1 - np.maximum(np.minimum(a, b)[:, 1:] - np.maximum(a, b)[:, :-1], 0).sum(axis=1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", isas_possible())
def test_samples_are_the_references_but_for_uniforms_at_an_edge(isa: str, dtype: str) -> None:
    expected, logits = by_the_reference(dtype)
    engine = CpuEngine(checkpoint().config, checkpoint().weights, dtype, isa)
    drawn, ours = run(engine, forced=expected[None])
    error = ours.astype(np.float64) - logits
    off = np.flatnonzero(drawn != expected)
    u = uniforms(np.uint64(SEED), off)[:, 0]
    far = cdf_edge_distance(logits[off], u, 1.0, (drawn[off], expected[off]))
    worst = np.abs(error).max() / logits.std()
    print(
        f"{isa} {dtype}: {len(off)} of {len(drawn)} differ ({differing_draws(ours, logits).sum():.1f} expected),"
        f" at most {far.max(initial=0.0):.1e} away; logits {worst:.0e}"
    )
    rms = np.sqrt(np.mean(error**2)) / logits.std()
    assert worst <= TRACE_MAX["cpu", dtype] and rms <= TRACE_RMS["cpu", dtype]
    # Where logits differ by at most ±δ, up to a constant, no edge of the CDF moves by more than tanh(δ/2).
    # In fp16 only weights are rounded, for both alike.
    moved = 0.0 if dtype in ("fp32", "fp16") else np.tanh(np.ptp(error[off], axis=1) / 4)
    assert (far <= moved + UNIFORM).all()
    chance = differing_draws(ours, logits).sum()
    assert abs(len(off) - chance) <= 1 + 4 * np.sqrt(chance)
    if dtype in MISMATCHES:
        assert len(off) <= MISMATCHES[dtype] * len(drawn)


def test_the_recorded_costs_belong_to_the_voice_and_decide_its_number_format() -> None:
    costs = checkpoint().format_costs
    assert costs.keys() == {"bf16", "fp16", "int8"}, "no costs of these weights: wavenet-fast check --write"
    assert abs(costs["bf16"]) <= 0.005 and abs(costs["fp16"]) <= 0.005
    assert Vocoder(checkpoint(), "cpu").dtype == ("int8" if costs["int8"] <= INT8_COST_LIMIT else choose("cpu")[2])


def test_number_formats_cost_about_what_is_recorded() -> None:
    """On two seconds of speech that comes with the voice."""
    spec, hop = checkpoint().mel, checkpoint().config.hop_length
    path = sorted((resolve(VOICE) / "samples").glob("*.flac"))[0]
    wav = read_audio(path, spec.sample_rate)[0][FIRST * hop : (FIRST + 160) * hop]
    mel = mel_spectrogram(wav, spec)
    bits = {dtype: Vocoder(checkpoint(), "cpu", dtype=dtype).nll(mel, wav) for dtype in DTYPES}
    recorded = checkpoint().recorded_costs
    assert recorded is not None and recorded.bits_fp32 is not None and abs(bits["fp32"] - recorded.bits_fp32) < 1
    for dtype, limit in (("bf16", 0.005), ("fp16", 0.005), ("int8", INT8_COST_LIMIT)):
        cost = bits[dtype] - bits["fp32"]
        print(f"{dtype}: {cost:+.5f} bits, recorded {recorded.costs[dtype].cost_bits:+.5f}")
        assert 0 < abs(cost) <= limit


@pytest.mark.parametrize("isa", isas_possible())
def test_left_to_itself_the_engine_says_what_the_reference_says(isa: str) -> None:
    """In fp32, up to the first draw whose uniform lies at an edge; from there on the two may go separate ways."""
    expected, logits = by_the_reference("fp32")
    drawn, _ = run(CpuEngine(checkpoint().config, checkpoint().weights, "fp32", isa))
    off = np.flatnonzero(drawn != expected)
    if len(off):
        u = uniforms(np.uint64(SEED), off[:1])[:, 0]
        assert cdf_edge_distance(logits[off[:1]], u, 1.0, (drawn[off[:1]], expected[off[:1]])) <= UNIFORM
