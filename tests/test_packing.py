"""Packing: nothing missing, nothing left over, undone exactly, laid out as documented."""

from __future__ import annotations

import numpy as np
import pytest
from engine_models import MODELS, case, random_weights

from wavenet_fast.cases import CASES
from wavenet_fast.config import CategoricalHead, ConfigError
from wavenet_fast.errors import BackendError
from wavenet_fast.packing import Layout, from_bf16, pack, to_bf16, unpack
from wavenet_fast.sampling import sample
from wavenet_fast.weights import weight_shapes

LAYOUTS = [Layout(8, 4), Layout(8, 8), Layout(16, 8)]
NARROW = ("dilated.weight", "residual.weight", "skip.weight", "head.hidden.weight", "head.out.weight")


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", [*MODELS, "voice"])
def test_unpacking_gives_back_what_was_packed(name: str, layout: Layout, dtype: str) -> None:
    config = case(name) if name == "voice" else MODELS[name]
    weights = random_weights(config)
    back = unpack(config, pack(config, weights, layout, dtype), layout, dtype)
    assert list(back) == list(weight_shapes(config))
    for tensor, values in weights.items():
        rounded = dtype == "bf16" and tensor.endswith(NARROW)
        np.testing.assert_array_equal(back[tensor], from_bf16(to_bf16(values)) if rounded else values, tensor)
        assert back[tensor].dtype == np.float32


def test_the_documented_order() -> None:
    """Element (row, tap, k) of a dilated product: block, tap, k, vector, lane, each gate half padded by itself."""
    config, layout = MODELS["odd"], Layout(8, 2)  # G/2 = 20: 3 vectors a half, 6 in all, 3 blocks of 2
    weights = random_weights(config)
    packed = pack(config, weights, layout, "fp32")["layers.1.dilated.weight"].reshape(3, 3, 24, 2, 8)
    for row, tap, k in [(0, 0, 0), (7, 2, 23), (19, 1, 5), (20, 0, 3), (39, 2, 11)]:
        padded = row if row < 20 else row - 20 + 24
        vector, lane = divmod(padded, 8)
        expected = weights["layers.1.dilated.weight"][row, k, tap]
        assert packed[vector // 2, tap, k, vector % 2, lane] == expected
    paired = pack(config, weights, layout, "bf16")["layers.1.dilated.weight"].reshape(3, 3, 12, 2, 8, 2)
    assert paired[0, 1, 5, 1, 2, 1] == to_bf16(weights["layers.1.dilated.weight"][10, 11, 1])
    assert paired.view(np.uint32)[0, 1, 5, 1, 2, 0] >> 16 == paired[0, 1, 5, 1, 2, 1]


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
            pack(config, weights, LAYOUTS[0], "fp32")


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
