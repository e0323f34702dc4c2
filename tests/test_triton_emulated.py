"""The PTX that Triton compiles of the kernels, executed on the CPU: against the reference stage by stage, and the laws
of backends/base.py bit for bit, in memory that is hostile wherever a kernel has no business."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import numpy as np
import pytest
from engine_models import MODELS, random_mel, random_weights, small
from tolerances import MISMATCHES, UNIFORM, VALUE

pytest.importorskip("torch", reason="the Triton engine needs PyTorch")
pytest.importorskip("triton", reason="its compiler writes the PTX")

from gpu_checks import (
    check_batches,
    check_chunks,
    check_draws,
    check_known_history,
    check_sound,
    check_stages,
    feed,
    frames_past_every_dilation,
    same_states,
    speak,
    start,
)
from triton_hostile import HostileLauncher
from wavenet_fast.kernels.triton import tuning
from wavenet_fast.kernels.triton.model import Model, check_size
from wavenet_fast.kernels.triton.tuning import Options

from wavenet_fast.backends import gpu
from wavenet_fast.backends.triton import TritonEngine
from wavenet_fast.config import CategoricalHead, GaussianHead, LogisticHead, OneHotInput, ScalarInput, WaveNetConfig
from wavenet_fast.errors import BackendError
from wavenet_fast.sampling import cdf_edge_distance, out_channels, sample

pytestmark = [
    pytest.mark.skipif(gpu.why_not_emulated() is not None, reason=str(gpu.why_not_emulated())),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1: nothing is compiled"),
]

# Heads and inputs that MODELS lack.
OTHERS: dict[str, WaveNetConfig] = {
    # More classes than registers hold, 188 of them in a second block.
    "many-classes": small(dilations=(1, 3), head=CategoricalHead(classes=700)),
    "two-classes": small(dilations=(1, 3), head=CategoricalHead(classes=2), input=OneHotInput(kernel_size=2)),
    # Channels that take two of the smallest blocks.
    "blocks": small(
        dilations=(1, 3), residual_channels=21, gate_channels=42, skip_channels=20, head=CategoricalHead(classes=21)
    ),
    "ten-logistics": small(dilations=(1, 3), input=ScalarInput(kernel_size=2), head=LogisticHead(components=10)),
}


@cache
def engine_of(name: str, dtype: str, capability: int) -> TritonEngine:
    config = MODELS[name] if name in MODELS else OTHERS[name]
    weights = random_weights(config)
    return TritonEngine(config, weights, dtype, "emulated", HostileLauncher(capability))


def frames_of(config: WaveNetConfig) -> int:
    """At least 64 samples, and more than any ring holds; of the small `OTHERS` three times their rings."""
    return frames_past_every_dilation(config, 24 if config in OTHERS.values() else 64)


@cache
def spoken(name: str, dtype: str, capability: int) -> Any:
    """Frames past every dilation, and what three streams say: draws, logits, the state after. Not to be changed."""
    engine = engine_of(name, dtype, capability)
    frames = frames_of(engine.config)
    return frames, *speak(engine, frames)


# --- against the reference --------------------------------------------------------------------------------------


# Every model once and every pair of number format and target; `gpu_check.py --full` runs all combinations.
@pytest.mark.parametrize(
    "name, dtype, capability",
    [
        ("tiny", "fp32", 80), ("tiny", "fp16", 90), ("tiny", "bf16", 120),
        ("odd", "bf16", 90), ("logistic", "fp16", 80), ("gaussian", "fp32", 120), ("gaussian-mixture", "fp32", 90),
        ("scalar-categorical", "bf16", 80), ("no-bias", "fp16", 120), ("wide-input", "bf16", 90),
        ("many-classes", "bf16", 90), ("two-classes", "fp32", 80), ("ten-logistics", "fp16", 120),
        ("steady", "fp32", 90),
    ],
)  # fmt: skip
def test_every_stage_equals_the_reference(name: str, dtype: str, capability: int) -> None:
    engine = engine_of(name, dtype, capability)
    frames = frames_of(engine.config)
    print(name, dtype, capability, check_stages(engine, random_weights(engine.config), frames))


# --- the laws ---------------------------------------------------------------------------------------------------

# A cyclic choice: one-hot and scalar inputs, held, interpolated and learned upsampling, every kind of head.
VOICES = [
    ("odd", "fp32", 90), ("logistic", "fp16", 80), ("gaussian", "bf16", 120), ("many-classes", "bf16", 90),
    ("two-classes", "fp32", 80), ("ten-logistics", "fp16", 120), ("steady", "bf16", 80),
]  # fmt: skip
voices = pytest.mark.parametrize("voice", VOICES, ids=lambda voice: "{}-{}-sm_{}".format(*voice))


@voices
def test_draws_follow_from_logits_and_uniforms(voice: Any) -> None:
    _, draws, logits, _ = spoken(*voice)
    print(voice, check_draws(engine_of(*voice).config, draws, logits))


@voices
def test_a_known_history_gives_the_bits_of_the_sample_loop(voice: Any) -> None:
    engine, said = engine_of(*voice), spoken(*voice)
    engine.model.launcher.launched.clear()
    check_known_history(engine, *said)
    assert "generate" not in engine.model.launcher.launched


def test_torchs_default_dtype_changes_nothing() -> None:
    torch = pytest.importorskip("torch", reason="the kernels' tensors are PyTorch's")
    voice = VOICES[1]
    frames, draws, logits, _ = spoken(*voice)
    torch.set_default_dtype(torch.float64)
    try:
        again = speak(engine_of(*voice), frames)
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_array_equal(again[0], draws)
    np.testing.assert_array_equal(again[1], logits)


@voices
def test_any_chunking_gives_the_same_bits(voice: Any) -> None:
    frames, *expected = spoken(*voice)
    check_chunks(engine_of(*voice), frames, [1, 0, 2, frames // 2 - 2], *expected)


@voices
def test_streams_do_not_depend_on_batch_slot_or_lengths_of_others(voice: Any) -> None:
    draws = check_batches(engine_of(*voice), 3)
    assert np.unique(draws).size > 1


@pytest.mark.parametrize("voice", VOICES[:3], ids=lambda voice: voice[0])
def test_sound_is_that_of_the_draws(voice: Any) -> None:
    """As the engine is mostly called: no logits are kept."""
    frames, draws, _, _ = spoken(*voice)
    check_sound(engine_of(*voice), frames, draws)


@pytest.mark.parametrize(
    "name, dtype, options",
    [
        # Inputs that a product takes in pieces come back through memory.
        ("blocks", "fp32", Options(32, 4, 1, block_r=16, block_gate=32, block_s=16, block_hidden=16)),
        ("blocks", "bf16", Options(16, 4, 1, block_r=32, block_gate=16, block_s=32, block_hidden=16)),
        ("odd", "bf16", Options(32, 8, 2, block_r=16, block_gate=16, block_s=32, block_hidden=16)),
    ],
)
def test_tiles_blocks_and_warps_change_no_bit(
    name: str, dtype: str, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(name, dtype, 90)
    usual = tuning.for_generate(engine.model.shape, dtype, 90)
    assert (usual.tile, usual.block_r, usual.block_gate) != (options.tile, options.block_r, options.block_gate)
    frames, draws, logits, state = spoken(name, dtype, 90)
    monkeypatch.setattr(tuning, "for_generate", lambda *given: options)
    monkeypatch.setattr(tuning, "for_residual_block", lambda *given: options)
    again = speak(engine, frames)
    np.testing.assert_array_equal(again[0], draws)
    np.testing.assert_array_equal(again[1], logits)
    same_states(again[2], state)
    check_known_history(engine, frames, draws, logits, state)


def test_a_stream_past_the_32nd_bit_of_its_position_says_what_follows_from_its_uniforms() -> None:
    """From 32 samples before 2^32 on. Nothing else depends on the position of a stream that has no past."""
    engine = engine_of("tiny", "fp32", 80)
    c = engine.config
    mel, first = random_mel(c, 4, 3), 2**32 // c.hop_length - 2
    T = 4 * c.hop_length
    late = start(engine, 3)
    late.begin_at(np.full(3, first), np.zeros((3, c.n_mels, engine.kept), np.float32))
    begun = late.state_dict()
    logits = np.full((3, T, c.out_channels), np.nan, np.float32)
    draws = feed(engine, late, mel, logits=logits, raw=True)
    assert (late.positions == first * c.hop_length + T).all() and late.positions.min() > 2**32
    check_draws(c, draws, logits, first=first * c.hop_length)
    assert (draws != feed(engine, start(engine, 3), mel, logits=logits.copy(), raw=True)).any()
    for state in (start(engine, 3), start(engine, 3)):
        known = np.full_like(logits, np.nan)
        feed(engine, state, mel, forced=draws, logits=known)
        np.testing.assert_array_equal(known, logits)
        again = start(engine, 3)
        again.load_state_dict(begun)
        feed(engine, again, mel, forced=draws, logits=known)
        np.testing.assert_array_equal(known, logits)
    same_states(again, late)


@pytest.mark.parametrize("temperature", [0.1, 3e38])
def test_draws_at_other_temperatures(temperature: float) -> None:
    for name, dtype, capability in (VOICES[0], VOICES[1]):
        engine = engine_of(name, dtype, capability)
        draws, logits, _ = speak(engine, 3, temperature=temperature)
        if name == "odd":
            check_draws(engine.config, draws, logits, temperature)
        assert np.unique(draws).size > (1 if temperature > 1 else 0)


# --- the draw on its own ----------------------------------------------------------------------------------------

HEADS = [
    CategoricalHead(classes=2), CategoricalHead(classes=131), CategoricalHead(classes=512),
    CategoricalHead(classes=513), CategoricalHead(classes=1024), CategoricalHead(classes=1500),
    LogisticHead(components=1), LogisticHead(components=3, log_scale_min=-4.0), LogisticHead(components=30),
    GaussianHead(components=1), GaussianHead(components=10),
]  # fmt: skip


def hard_logits(head: Any, rows: int, seed: int = 4) -> Any:
    """Peaked, flat, tied and enormous ones."""
    rng, A = np.random.default_rng(seed), out_channels(head)
    logits = rng.standard_normal((rows, A)).astype(np.float32)
    if isinstance(head, CategoricalHead):
        logits *= rng.choice(np.array([0.1, 1, 6, 30], np.float32), (rows, 1))
        logits[0], logits[1], logits[2, ::2] = 0, 1e30, -1e30
        logits[3] = np.linspace(-1e4, 1e4, A)
        logits[4] = -np.arange(A)
    else:
        logits[:, -head.components :] = rng.uniform(-7, 1, (rows, head.components))
        logits[0, -head.components :] = -100
        logits[1] = 0
    return logits


def component_is_clear(logits: Any, u: Any, temperature: float) -> Any:
    """Rows whose uniform does not lie at an edge between two components of a mixture (where there are several)."""
    if logits.shape[1] == 1:
        return np.ones(len(u), bool)
    weights = np.exp((logits - logits.max(axis=1, keepdims=True)) / np.float64(temperature))
    edges = np.cumsum(weights / weights.sum(axis=1, keepdims=True), axis=1)[:, :-1]
    return (np.abs(edges - u[:, None]) > UNIFORM).all(axis=1)


@pytest.mark.parametrize("head", HEADS, ids=lambda head: f"{type(head).__name__}-{out_channels(head)}")
def test_the_sampling_kernel_draws_what_sampling_draws(head: Any) -> None:
    config = small(dilations=(1,), head=head, input=ScalarInput())
    model = Model.from_weights(config, random_weights(config), "fp32", HostileLauncher(90))
    rows, A = 133, out_channels(head)
    logits = hard_logits(head, rows)
    u = np.random.default_rng(5).random((rows, 4), np.float32)
    u[:4, 0], u[4:8, 0] = 0, np.float32(0.99999994)
    u[8:12, 1], u[12:16, 1] = 0, np.float32(0.99999994)
    padded = np.full((rows, model.shape.A), np.nan, np.float32)
    padded[:, :A] = logits
    for temperature in (1.0, 0.3, 100.0):
        draws = model.draw(model.tensor(padded), model.tensor(u), temperature).numpy()
        expected = sample(logits, u, head, temperature)
        if isinstance(head, CategoricalHead):
            off = np.flatnonzero(draws != expected)
            far = cdf_edge_distance(logits[off], u[off, 0], temperature, (draws[off].astype(np.int64), expected[off]))
            print(len(off), far)
            assert len(off) <= 1 + rows * MISMATCHES["fp32"] and (far <= UNIFORM).all(), f"{len(off)} differ, by {far}"
        else:
            clear = component_is_clear(logits[:, : head.components], u[:, 0], temperature)
            assert clear.sum() >= rows - 12
            np.testing.assert_allclose(draws[clear], expected[clear], rtol=0, atol=VALUE)


def test_loading_runs_the_loop_for_no_sample_and_says_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = engine_of("two-classes", "fp32", 80).model
    model.load()
    monkeypatch.setitem(tuning.SHARED_KIB, 80, 1)
    with pytest.raises(BackendError, match=r"'generate' of this model needs \d+ KiB of shared memory.* has 1\."):
        model.load()


def test_models_beyond_32_bit_counts_are_refused() -> None:
    check_size(small(residual_channels=512, gate_channels=512, kernel_size=2, dilations=(512,) * 30))
    with pytest.raises(BackendError, match="dilated weights"):
        check_size(small(residual_channels=4096, gate_channels=4096, kernel_size=2, dilations=(1,) * 64))
