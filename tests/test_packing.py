"""Packing: nothing missing, nothing left over, undone exactly, laid out as documented."""

from __future__ import annotations

import numpy as np
import pytest
from engine_models import MODELS, case, random_weights

from wavenet_fast.cases import CASES
from wavenet_fast.config import CategoricalHead, ConfigError
from wavenet_fast.errors import BackendError
from wavenet_fast.packing import DTYPES, Layout, pack, quantise, rounded, to_bf16, unpack
from wavenet_fast.sampling import sample
from wavenet_fast.weights import weight_shapes

STREAMED = ("dilated.weight", "residual.weight", "skip.weight", "head.hidden.weight", "head.out.weight")
LAYOUTS = {
    "8 lanes, blocks of 4": {
        "fp32": Layout(8, 4), "bf16": Layout(8, 4, 2, 2), "fp16": Layout(8, 4), "int8": Layout(8, 4, 4, 4),
    },
    "16 lanes, blocks of 8": {
        "fp32": Layout(16, 8), "bf16": Layout(16, 8, 2, 2), "fp16": Layout(16, 8), "int8": Layout(16, 8, 4, 4),
    },
    "tiles": {
        "fp32": Layout(16, 8), "bf16": Layout(16, 4, 32, 2), "fp16": Layout(16, 8), "int8": Layout(16, 4, 64, 4),
    },
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layouts", LAYOUTS)
@pytest.mark.parametrize("name", [*MODELS, "voice"])
def test_unpacking_gives_back_what_was_packed(name: str, layouts: str, dtype: str) -> None:
    config = case(name) if name == "voice" else MODELS[name]
    weights = random_weights(config)
    back = unpack(config, pack(config, weights, LAYOUTS[layouts], dtype), LAYOUTS[layouts], dtype)
    assert list(back) == list(weight_shapes(config))
    for tensor, values in rounded(weights, dtype).items():
        np.testing.assert_array_equal(back[tensor], values, tensor)
        assert back[tensor].dtype == np.float32
        heard_short = dtype in ("bf16", "int8") and tensor.endswith(".conditioning.weight")
        assert dtype == "fp32" or (values != weights[tensor]).any() == (tensor.endswith(STREAMED) or heard_short)


def test_the_documented_order() -> None:
    """Element (row, tap, k) of a dilated product: block, tap, run, vector, word, lane, k within the word."""
    config = MODELS["odd"]  # R = 24; G/2 = 20: 3 vectors of 8 a half, taking turns, in 3 blocks of 2
    weights = random_weights(config)
    name = "layers.1.dilated.weight"
    layouts = {"fp32": Layout(8, 2), "bf16": Layout(8, 2, 2, 2), "int8": Layout(8, 2, 16, 4)}
    plain = pack(config, weights, layouts, "fp32")[name].reshape(3, 3, 24, 2, 8)
    pairs = pack(config, weights, layouts, "bf16")[name].reshape(3, 3, 12, 2, 8, 2)
    packed = pack(config, weights, layouts, "int8")
    runs, scales = packed[name].reshape(3, 3, 2, 2, 4, 8, 4), packed[f"{name}.scale"]
    numbers, expected_scales = quantise(weights[name].transpose(0, 2, 1))
    for row, tap, k in [(0, 0, 0), (7, 2, 23), (19, 1, 5), (20, 0, 3), (39, 2, 11)]:
        half, within = divmod(row, 20)
        vector, lane = within // 8 * 2 + half, within % 8
        value = weights[name][row, k, tap]
        assert plain[vector // 2, tap, k, vector % 2, lane] == value
        assert pairs[vector // 2, tap, k // 2, vector % 2, lane, k % 2] == to_bf16(value)
        assert runs[vector // 2, tap, k // 16, vector % 2, k % 16 // 4, lane, k % 4] == numbers[row, tap, k]
        assert scales[tap, vector * 8 + lane] == expected_scales[row, tap]
    assert pairs.view(np.uint32)[0, 1, 5, 1, 2, 0] >> 16 == pairs[0, 1, 5, 1, 2, 1]


def test_int8_uses_the_whole_range_of_each_row() -> None:
    rows = np.random.default_rng(0).standard_normal((50, 7)).astype(np.float32) * np.float32(3)
    rows[3] = 0
    numbers, scales = quantise(rows)
    assert (np.abs(numbers).max(axis=1) == np.where(np.arange(50) == 3, 0, 127)).all() and scales[3] == 0
    assert (np.abs(numbers * scales[:, None] - rows) <= scales[:, None] * 0.5001).all()


def test_weights_too_large_for_fp16_are_named() -> None:
    config = MODELS["tiny"]
    weights = random_weights(config)
    weights["layers.2.skip.weight"][3, 4] = 7e4
    with pytest.raises(BackendError, match=r"skip.weight holds 70000; fp16 ends at 65504"):
        pack(config, weights, LAYOUTS["tiles"], "fp16")


def test_bf16_rounds_to_nearest_even() -> None:
    words = np.array([0x3F800000, 0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0xBF808000, 0x00000001], np.uint32)
    expected = [0x3F80, 0x3F80, 0x3F82, 0x3F81, 0x3F80, 0xBF80, 0]
    assert to_bf16(words.view(np.float32)).tolist() == expected


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_weights_that_do_not_fit_are_named(change: str) -> None:
    config = MODELS["tiny"]
    for name in weight_shapes(config):
        weights = random_weights(config)
        if change == "missing":
            del weights[name]
        elif change == "extra":
            weights[f"{name}.old"] = weights[name]
        else:
            weights[name] = np.concatenate([weights[name], weights[name]])
        with pytest.raises(BackendError, match=name.replace(".", r"\.")):
            pack(config, weights, LAYOUTS["tiles"], "fp32")


@pytest.mark.parametrize("name", ["tiny", "odd", "voice"])
def test_random_weights_are_reproducible_and_their_softmax_is_not_flat(name: str) -> None:
    from wavenet_fast.backends.cpu import CpuEngine

    config = case(name)
    weights, again = random_weights(config, 3), random_weights(config, 3)
    assert all((weights[k] == again[k]).all() for k in weights)
    assert isinstance(config.head, CategoricalHead)
    frames = 400 // config.hop_length + 1
    mel = np.random.default_rng(0).standard_normal((config.n_mels, frames)).astype(np.float32)
    history = np.random.default_rng(1).integers(0, config.out_channels, frames * config.hop_length)
    logits = CpuEngine(config, weights).trace(mel, history)["logits"]
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    highest = (odds.max(axis=1) / odds.sum(axis=1)).mean()
    assert 0.1 < highest < 0.9
    chosen = sample(logits, np.full((len(logits), 4), 0.5, np.float32), config.head)
    assert np.unique(chosen).size > 20


def test_unknown_cases_are_listed() -> None:
    with pytest.raises(ConfigError, match=r"'nv'.*tiny, odd, voice.*wavenet-2016"):
        case("nv")
    assert set(CASES) >= {"tiny", "odd", "voice", "nv-small", "nv-medium", "nv-large", "r9y9-mol", "r9y9-512"}
