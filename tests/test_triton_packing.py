"""Packing for the Triton kernels: undone exactly, nothing missing, padding zero."""

from __future__ import annotations

import numpy as np
import pytest
from engine_models import MODELS, case, random_weights
from wavenet_fast.kernels.triton.packing import DTYPES, STREAMED, pack, unpack
from wavenet_fast.kernels.triton.shapes import MIN_CHANNELS, Shape, padded, padded_outputs

from wavenet_fast.cases import CASES
from wavenet_fast.errors import BackendError
from wavenet_fast.packing import from_bf16, hearing_format, is_streamed, rounded
from wavenet_fast.weights import weight_shapes


def floats(array: np.ndarray) -> np.ndarray:
    return from_bf16(array) if array.dtype == np.uint16 else array.astype(np.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*MODELS, "voice", "r9y9-mol"])
def test_unpacking_gives_back_what_was_packed(name: str, dtype: str) -> None:
    config = MODELS[name] if name in MODELS else case(name)
    weights = random_weights(config)
    back = unpack(config, pack(config, weights, dtype), dtype)
    expected = {
        tensor: values
        for tensor, values in rounded(weights, dtype).items()
        if is_streamed(tensor) or tensor.endswith(".conditioning.weight")
    }
    assert back.keys() == expected.keys()
    for tensor, values in expected.items():
        np.testing.assert_array_equal(back[tensor], values, tensor)


@pytest.mark.parametrize("name", MODELS)
def test_what_unpacking_leaves_out_is_in_its_place(name: str) -> None:
    c, s = MODELS[name], Shape.of(MODELS[name])
    weights = random_weights(c)
    packed = pack(c, weights, "fp32")
    R, half = c.residual_channels, c.gate_channels // 2

    def bias(tensor: str, size: int) -> np.ndarray:
        assert (tensor in weights) == (tensor in weight_shapes(c))
        return weights.get(tensor, np.zeros(size, np.float32))

    np.testing.assert_array_equal(packed["w_input"][:, :, :R], weights["input.weight"].transpose(2, 1, 0))
    np.testing.assert_array_equal(packed["b_input"][:R], bias("input.bias", R))
    skips = np.stack([bias(f"layers.{i}.skip.bias", c.skip_channels) for i in range(c.n_layers)])
    ours = packed["b_skip"][:, : c.skip_channels]
    np.testing.assert_allclose(ours, skips if s.RUNNING else skips.sum(0, keepdims=True), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(packed["b_hidden"][: c.head_channels], bias("head.hidden.bias", c.head_channels))
    np.testing.assert_array_equal(packed["b_out"][: c.out_channels], bias("head.out.bias", c.out_channels))
    gates = (c.n_layers, s.HALF, 2)  # the column that tanh takes, the one that the sigmoid takes, by turns
    for part, where in (("dilated", "b_dilated"), ("conditioning", "b_project"), ("speaker", "b_speaker")):
        if part == "speaker" and not c.speakers.channels:
            assert where not in packed and "speaker" not in packed
            continue
        for i, row in enumerate(packed[where].reshape(gates)):
            expected = bias(f"layers.{i}.{part}.bias", c.gate_channels)
            np.testing.assert_array_equal(row[:half].T.ravel(), expected, f"{part} {i}")
    if c.speakers.channels:
        for i, matrix in enumerate(packed["speaker"].reshape(-1, *gates).transpose(1, 2, 3, 0)):
            expected = weights[f"layers.{i}.speaker.weight"].reshape(2, half, -1)
            np.testing.assert_array_equal(matrix[:half].swapaxes(0, 1), expected)
    for i in range(c.n_layers - 1):
        np.testing.assert_array_equal(packed["b_residual"][i, :R], bias(f"layers.{i}.residual.bias", R))
    assert not packed["w_residual"][-1].any() and not packed["b_residual"][-1].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MODELS)
def test_all_else_is_zero(name: str, dtype: str) -> None:
    """As many numbers are not zero as the model has, so none stands twice and padding stays silent."""
    c = MODELS[name]
    weights = {tensor: np.ones(shape, np.float32) for tensor, shape in weight_shapes(c).items()}
    packed = pack(c, weights, dtype)
    count = {tensor: int(np.count_nonzero(floats(array))) for tensor, array in packed.items()}
    for part, ours in (("dilated", "w_dilated"), ("residual", "w_residual"), ("skip", "w_skip"),
                       ("conditioning", "project"), ("speaker", "speaker")):  # fmt: skip
        assert count.get(ours, 0) == sum(w.size for t, w in weights.items() if t.endswith(f".{part}.weight")), ours
    for tensor, ours in (("input.weight", "w_input"), ("head.hidden.weight", "w_hidden"), ("head.out.weight", "w_out"),
                         ("input.bias", "b_input"), ("head.out.bias", "b_out")):  # fmt: skip
        assert count[ours] == (weights[tensor].size if tensor in weights else 0), ours
    kinds = {"fp32": np.float32, "bf16": np.uint16, "fp16": np.float16}
    assert all(packed[tensor].dtype == kinds[dtype] for tensor in STREAMED)
    assert packed["project"].dtype == kinds[hearing_format(dtype)]


def test_nothing_may_be_missing() -> None:
    for name in ("gaussian", "odd"):
        weights = random_weights(MODELS[name])
        for tensor in weights:
            if tensor.startswith(("conditioning.", "mel.", "speakers.")):
                continue  # these stay on the host
            with pytest.raises(KeyError):
                pack(MODELS[name], {n: w for n, w in weights.items() if n != tensor}, "fp32")


def test_what_fp16_cannot_hold_is_refused() -> None:
    weights = random_weights(MODELS["tiny"])
    weights["layers.2.skip.weight"][3, 4] = 7e4
    with pytest.raises(BackendError, match="fp16 ends at 65504"):
        pack(MODELS["tiny"], weights, "fp16")
    pack(MODELS["tiny"], weights, "bf16")


def test_padding_is_the_next_power_of_two_that_products_take() -> None:
    assert [padded(n) for n in (1, 15, 16, 17, 128, 129)] == [MIN_CHANNELS, 16, 16, 32, 128, 256]
    outputs = {CASES["tiny"]: 256, CASES["odd"]: 256, CASES["r9y9-mol"]: 32, MODELS["gaussian"]: 16}
    assert {config: padded_outputs(config.head) for config in outputs} == outputs
