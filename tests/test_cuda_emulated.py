"""The CUDA kernels' PTX, executed on the CPU: against the reference stage by stage, the laws of backends/base.py bit
for bit, and the same bits from every cut of a model, in memory that is hostile wherever a kernel has no business."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_models import MODELS, random_mel, random_weights, small
from ptx_text import need_compiler

pytest.importorskip("torch", reason="the engines' conditioning network needs PyTorch")
pytest.importorskip("cuda.bindings", reason='cuda-bindings is not installed: pip install "wavenet-fast[cuda]"')

from cuda_launches import Cut, HostileDevice, laid
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
from wavenet_fast.kernels.cuda.compile import SOURCES, why_not_kernels
from wavenet_fast.kernels.cuda.emulated_device import EmulatedDevice
from wavenet_fast.kernels.cuda.model import Model
from wavenet_fast.kernels.cuda.packing import matrix_of, pack

from wavenet_fast.backends.cuda import CudaEngine
from wavenet_fast.config import (
    CategoricalHead,
    Conditioning,
    GaussianHead,
    Linear,
    LogisticHead,
    OneHotInput,
    ScalarInput,
    Speakers,
    WaveNetConfig,
)

if why_not_kernels() is not None:
    pytest.skip(str(why_not_kernels()), allow_module_level=True)
need_compiler()

# Heads, inputs and depths that MODELS lack.
OTHERS: dict[str, WaveNetConfig] = {
    # More logits than shared memory is given, for 16 streams.
    "many-classes": small(dilations=(1, 3), head=CategoricalHead(classes=1024)),
    "two-classes": small(dilations=(1, 3), head=CategoricalHead(classes=2), input=OneHotInput(kernel_size=2)),
    "ten-logistics": small(
        dilations=(1, 3), input=ScalarInput(kernel_size=2, tanh=True), head=LogisticHead(components=10)
    ),
    # Fifteen layers and the head: one for each block of the largest cluster.
    "deep": small(
        dilations=(1, 2, 3, 5) * 3 + (1, 2, 3), kernel_size=2, skip_rule="running", residual_scale=0.5**0.5,
        skip_scale=0.5**0.5, input=ScalarInput(), head=GaussianHead(), speakers=Speakers(channels=3),
        conditioning=Conditioning(upsampling=Linear(frame_centre=0.5)),
    ),
    # Wider than one panel everywhere, and nothing a multiple of another.
    "panels": small(
        dilations=(1, 3, 2), kernel_size=2, residual_channels=43, gate_channels=74, skip_channels=53, head_channels=67,
        input=OneHotInput(kernel_size=2), head=CategoricalHead(classes=101),
        conditioning=Conditioning(upsampling=Linear()),
    ),
}  # fmt: skip

STREAMED = Cut()
ONE = Cut(1)
CLUSTER = Cut(3, tiles=2)
GRID = Cut(3, "grid", tiles=2, input_shared=False)


def config_of(name: str) -> WaveNetConfig:
    return MODELS[name] if name in MODELS else OTHERS[name]


@cache
def engine_of(name: str, dtype: str, cut: Cut, capability: int = 90) -> CudaEngine:
    config = config_of(name)
    return laid(CudaEngine(config, random_weights(config), dtype, HostileDevice(config, capability)), cut)


def frames_of(name: str) -> int:
    """At least 64 samples, and more than any ring holds; of `OTHERS`, whose rings are short, three times those."""
    return frames_past_every_dilation(config_of(name), 24 if name in OTHERS else 64)


@cache
def spoken(name: str, dtype: str, cut: Cut, capability: int = 90) -> Any:
    """Frames past every dilation, and what three streams say: draws, logits, the state after. Not to be changed."""
    frames = frames_of(name)
    return frames, *speak(engine_of(name, dtype, cut, capability), frames)


# --- against the reference --------------------------------------------------------------------------------------


# Every model once, and every pair of number format and way to hand over; `gpu_check.py --full` runs all combinations.
@pytest.mark.parametrize(
    "name, dtype, cut, capability",
    [
        ("tiny", "bf16", Cut(7, alone=True), 90), ("tiny", "fp16", GRID, 80),
        ("odd", "bf16", STREAMED, 120), ("odd", "fp32", CLUSTER, 90),
        ("logistic", "fp16", Cut(2, in_registers=True), 100), ("gaussian", "fp32", GRID, 89),
        ("gaussian-mixture", "bf16", ONE, 90), ("scalar-categorical", "fp16", STREAMED, 86),
        ("no-bias", "bf16", CLUSTER, 120), ("wide-input", "fp32", Cut(1, "grid"), 80),
        ("many-classes", "bf16", Cut(2, tile=16), 90),
        ("ten-logistics", "fp16", Cut(3, alone=True), 90), ("deep", "bf16", Cut(16, alone=True), 90),
        ("panels", "bf16", Cut(2, head_in_l2=True), 90),
        ("odd", "int8", STREAMED, 80), ("panels", "int8", Cut(2, alone=True, tile=16), 90),
        ("ten-logistics", "int8", Cut(2, "grid", alone=True, team=2), 80),
        ("panels", "fp16", Cut(3, "grid", alone=True, team=3, in_registers=True), 90),
        ("steady", "fp32", STREAMED, 90), ("steady", "fp16", ONE, 90), ("steady", "int8", CLUSTER, 90),
    ],
    ids=str,
)  # fmt: skip
def test_every_stage_equals_the_reference(name: str, dtype: str, cut: Cut, capability: int) -> None:
    engine = engine_of(name, dtype, cut, capability)
    print(check_stages(engine, random_weights(engine.config), frames_of(name)))
    assert engine.model.device.launched.keys() == {"project", "resident" if cut.teams else "streaming_weights"}


# --- the laws ---------------------------------------------------------------------------------------------------

# A cyclic choice: one-hot and scalar inputs, held, interpolated and learned upsampling, every kind of head; both
# kernels, on one block, a cluster and a grid. Two tiles of eight streams, so that 30 streams take two launches.
VOICES = [
    ("wide-input", "fp32", STREAMED, 80), ("logistic", "fp16", CLUSTER, 90), ("gaussian", "bf16", GRID, 120),
    ("panels", "bf16", Cut(2, alone=True, in_registers=True), 90), ("two-classes", "fp32", Cut(2, "grid", tiles=2), 80),
    ("ten-logistics", "int8", Cut(2, pipelines=2), 100), ("panels", "bf16", Cut(3, "grid", alone=True, team=2), 80),
    ("steady", "bf16", STREAMED, 90),
]  # fmt: skip
voices = pytest.mark.parametrize("voice", VOICES, ids=lambda voice: "{}-{}".format(*voice))


@voices
def test_draws_follow_from_logits_and_uniforms(voice: Any) -> None:
    _, draws, logits, _ = spoken(*voice)
    print(voice, check_draws(config_of(voice[0]), draws, logits))


@voices
def test_any_chunking_gives_the_same_bits(voice: Any) -> None:
    frames, *expected = spoken(*voice)
    check_chunks(engine_of(*voice), frames, [1, 0, 2, frames // 2 - 2], *expected)


@voices
def test_streams_do_not_depend_on_batch_place_or_lengths_of_others(voice: Any) -> None:
    engine = engine_of(*voice)
    engine.model.device.launched.clear()
    draws = check_batches(engine, 3, 30)
    assert np.unique(draws).size > 1
    loops = sum(engine.model.device.launched.get(kernel, 0) for kernel in ("resident", "streaming_weights"))
    assert loops > 4, "22 streams that speak were to take more than one launch"


@pytest.mark.parametrize("voice", VOICES[1:4], ids=lambda voice: voice[0])
def test_a_known_history_gives_the_same_bits(voice: Any) -> None:
    check_known_history(engine_of(*voice), *spoken(*voice))


@pytest.mark.parametrize("voice", VOICES[1:3], ids=lambda voice: voice[0])
def test_sound_is_that_of_the_draws(voice: Any) -> None:
    """As the engine is mostly called: no logits are kept."""
    frames, draws, _, _ = spoken(*voice)
    check_sound(engine_of(*voice), frames, draws)


@pytest.mark.parametrize("temperature", [0.1, 3e38])
def test_draws_at_other_temperatures(temperature: float) -> None:
    for voice in VOICES[:2]:
        engine = engine_of(*voice)
        draws, logits, _ = speak(engine, 3, temperature=temperature)
        if voice[0] == "wide-input":
            check_draws(engine.config, draws, logits, temperature)
        assert np.unique(draws).size > (1 if temperature > 1 else 0)


def test_a_stream_past_the_32nd_bit_of_its_position_says_what_follows_from_its_uniforms() -> None:
    """From some samples before 2^32 on. Nothing else depends on the position of a stream that has no past."""
    engine = engine_of(*VOICES[4])
    c = engine.config
    mel, first = random_mel(c, 6, 3), 2**32 // c.hop_length - 2
    T = 6 * c.hop_length
    late = start(engine, 3)
    late.begin_at(np.full(3, first), np.zeros((3, c.n_mels, engine.kept), np.float32))
    logits = np.full((3, T, c.out_channels), np.nan, np.float32)
    draws = feed(engine, late, mel, logits=logits, raw=True)
    assert late.positions.min() > 2**32
    check_draws(c, draws, logits, first=first * c.hop_length)
    early = np.full_like(logits, np.nan)
    assert (draws != feed(engine, start(engine, 3), mel, logits=early, raw=True)).any()
    np.testing.assert_array_equal(early[:, 0], logits[:, 0])


# --- no plan changes a bit ---------------------------------------------------------------------------------------

# Against `STREAMED`: tiles, tiles in flight, pipelines, blocks, homes of weights, warps, ways to hand over, targets.
CUTS = [
    (Cut(tile=16), 80), (Cut(tile=32, chain=3, skip=1, stages=2), 120), (Cut(chain=1, skip=2, stages=4), 90),
    (Cut(1), 90), (Cut(1, "grid", tile=16, in_registers=True), 80), (Cut(2, alone=True, tiles=3), 90),
    (Cut(3, in_registers=True, tile=32, head_in_l2=True, chain=2, skip=2), 90),
    (Cut(4, alone=True, chain=2, skip=3, pipelines=2), 100),
    (Cut(2, "grid", tiles=2), 80), (Cut(2, "grid", alone=True, team=3, tiles=2, chain=2), 89),
    (Cut(4, "grid", alone=True, in_registers=True, pipelines=2), 90),
]  # fmt: skip


def same_as(expected: Any, name: str, dtype: str, cut: Cut, capability: int, seed: int = 0) -> None:
    """What `speak` gave, from another cut: draws, logits and the state after."""
    engine, (draws, logits, state) = engine_of(name, dtype, cut, capability), expected
    engine.model.device.seed = seed
    try:
        frames = draws.shape[1] // engine.config.hop_length
        again = speak(engine, frames, len(draws))
    finally:
        engine.model.device.seed = 0
    np.testing.assert_array_equal(again[0], draws)
    np.testing.assert_array_equal(again[1], logits)
    same_states(again[2], state)


@cache
def of_many(name: str, dtype: str) -> Any:
    """Four streams, a few more samples than the longest dilation."""
    return speak(engine_of(name, dtype, STREAMED, 80), frames_past_every_dilation(config_of(name), 12), 4)


@pytest.mark.parametrize("cut, capability", CUTS, ids=str)
def test_no_cut_of_a_model_changes_a_bit(cut: Cut, capability: int) -> None:
    same_as(of_many("panels", "bf16"), "panels", "bf16", cut, capability, seed=cut.tile + cut.teams)


# The second matrix of the head: five panels of ten steps in fp32, five in bf16.
PARTS = [
    (Cut(2, alone=True, out_in_l2=3), 90), (Cut(3, "grid", tile=16, out_in_l2=5, in_registers=True), 80),
    (Cut(4, "grid", alone=True, out_in_l2=1, chain=1, residual=1, skip=1), 80),
]  # fmt: skip


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("cut, capability", PARTS, ids=str)
def test_what_of_the_head_lies_in_l2_changes_no_bit(dtype: str, cut: Cut, capability: int) -> None:
    same_as(of_many("panels", dtype), "panels", dtype, cut, capability, seed=1)


# In fp32 products are made for places that are taken alone.
@pytest.mark.parametrize("cut, capability", [CUTS[0], CUTS[5], CUTS[6], CUTS[9], CUTS[10]], ids=str)
def test_no_cut_changes_a_bit_in_fp32(cut: Cut, capability: int) -> None:
    same_as(of_many("panels", "fp32"), "panels", "fp32", cut, capability)
    same_as(of_many("panels", "fp32"), "panels", "fp32", replace(cut, used=4), capability)


def test_an_fp32_sum_is_added_up_as_products_cuh_says() -> None:
    """Projected conditioning of 40 inputs, from numbers of 12 bits: float64 holds their products and, near enough, what
    a product is added to, so that each fused step rounds once."""
    config = small(dilations=(1, 2), n_mels=40)
    rng = np.random.default_rng(3)

    def few_bits(*shape: int) -> Any:
        return (rng.integers(-2048, 2048, shape) / 512).astype(np.float32)

    weights = {name: few_bits(*value.shape) for name, value in random_weights(config).items()}
    model = Model(config, weights, "fp32", EmulatedDevice(90))
    matrix = matrix_of(pack(config, weights, "fp32")["project"], "fp32")
    features, starts = few_bits(2, 5, config.conditioning_channels), few_bits(2, len(matrix)) / np.float32(3)
    sums = np.zeros((8, 2, 5, len(matrix)), np.float32)
    for k in range(config.conditioning_channels):
        step = features[..., k, None].astype(np.float64) * matrix[:, k]
        sums[k % 8] = (step + sums[k % 8]).astype(np.float32)
    while len(sums) > 1:
        sums = sums[::2] + sums[1::2]
    found = model.device.download(model.project(features, starts)).reshape(2, 5, -1)
    np.testing.assert_array_equal(found, starts[:, None] + sums[0])
    assert (found != starts[:, None] + (features.astype(np.float64) @ matrix.T[:40]).astype(np.float32)).any()


@pytest.mark.parametrize("streams", [1, 2, 3])
@pytest.mark.parametrize(
    "cut, capability",
    [(Cut(), 80), (Cut(3, alone=True, in_registers=True), 90), (Cut(2, "grid", alone=True, team=2, tile=16), 80)],
    ids=str,
)
def test_how_many_places_are_taken_changes_no_bit(cut: Cut, capability: int, streams: int) -> None:
    """Where more streams speak than are taken, some follow after others."""
    expected = speak(engine_of("two-classes", "fp32", cut, capability), 3, streams)
    for used in (1, 2, 4, 8):
        same_as(expected, "two-classes", "fp32", replace(cut, used=used), capability, seed=used)


@pytest.mark.parametrize("variant", ["streaming_weights", "resident"])
def test_nothing_of_a_place_without_a_stream_reaches_one(variant: str, tmp_path: Path) -> None:
    """The places that fp32 products leave out hold NaN from the first input on."""
    for path in SOURCES.glob("*.cuh"):
        shutil.copy(path, tmp_path)
    head, right = tmp_path / "head.cuh", "    to.put(n, r, value, quantiser);"
    text = head.read_text(encoding="utf-8")
    assert text.count(right) == 1
    spoilt = right.replace("value", "n < plan::USED ? value : float_of(0x7fffffff)")
    head.write_text(text.replace(right, spoilt), encoding="utf-8")
    cut = {"streaming_weights": Cut(used=2), "resident": Cut(3, alone=True, in_registers=True, used=2)}[variant]
    config = config_of("two-classes")
    device = EmulatedDevice(90, sources=tmp_path)
    engine = laid(CudaEngine(config, random_weights(config), "fp32", device), cut)
    found = speak(engine, 3, 2)
    expected = speak(engine_of("two-classes", "fp32", replace(cut, used=8), 90), 3, 2)
    np.testing.assert_array_equal(found[1], expected[1])
    same_states(found[2], expected[2])


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("cut, capability", [CUTS[5], CUTS[9]], ids=str)
def test_no_cut_changes_a_bit_in_other_formats(dtype: str, cut: Cut, capability: int) -> None:
    same_as(of_many("two-classes", dtype), "two-classes", dtype, cut, capability)


@pytest.mark.parametrize("cut, capability", [CUTS[5], CUTS[9]], ids=str)
def test_no_cut_changes_a_bit_in_int8(cut: Cut, capability: int) -> None:
    same_as(of_many("panels", "int8"), "panels", "int8", cut, capability)


# The last: blocks with more layers than the one beside the head, whose parts lie behind fewer weights.
@pytest.mark.parametrize(
    "cut, capability",
    [
        (Cut(16, alone=True, tiles=2), 90), (Cut(5, "grid"), 80),
        (Cut(4, tiles=2, first=(0, 5, 10, 14, 15)), 90), (Cut(4, "grid", first=(0, 5, 10, 13, 15)), 80),
    ],
    ids=str,
)  # fmt: skip
def test_no_cut_of_many_layers_changes_a_bit(cut: Cut, capability: int) -> None:
    same_as(of_many("deep", "fp16"), "deep", "fp16", cut, capability)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_bit_depends_on_the_order_in_which_threads_run(seed: int) -> None:
    for cut, capability in (CUTS[0], CUTS[5], CUTS[8]):
        same_as(of_many("panels", "bf16"), "panels", "bf16", cut, capability, seed)


def test_what_the_planner_chooses_changes_no_bit() -> None:
    """Without a word about variant, tile or blocks, on a small GPU that a grid or a cluster fits."""
    draws, logits, state = of_many("panels", "bf16")
    config = config_of("panels")
    for capability in (80, 90):
        engine = CudaEngine(config, random_weights(config), "bf16", HostileDevice(config, capability))
        again = speak(engine, draws.shape[1] // config.hop_length, len(draws))
        np.testing.assert_array_equal(again[0], draws)
        np.testing.assert_array_equal(again[1], logits)
        same_states(again[2], state)
