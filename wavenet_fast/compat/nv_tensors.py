"""The tensors that nv-wavenet's wrapper is given → a `WaveNetConfig` and its named weights, checked."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..config import WaveNetConfig, decode
from ..errors import InputError, ShapeError

Weights = dict[str, NDArray[np.float32]]
LISTS = ("dilate_weights", "dilate_biases", "res_weights", "res_biases", "skip_weights", "skip_biases")


def network_of(
    tensors: Mapping[str, Any],
    lists: Mapping[str, Sequence[Any]],
    head_biases: Mapping[str, Any],
    dilations: Sequence[int],
    use_embed_tanh: bool,
) -> tuple[WaveNetConfig, Weights]:
    """The network and copies of its weights, by this project's names.

    tensors      embedding_prev and embedding_curr (A, R), conv_out_weight (H, S), conv_end_weight (A, H)
    lists        by the names of `LISTS`: (G, R, K), (G,), (R, G/2), (R,), (S, G/2), (S,); one entry per layer, and one
                 fewer of res_weights and res_biases. A last axis of one tap may be there
    head_biases  conv_out_bias (H,) and conv_end_bias (A,), or None

    Conditioning comes projected, one column a sample: the projection that is here is never used. Raises `ShapeError`,
    `InputError` and `ConfigError`, in sentences."""
    layers = _layers(lists)
    curr = _array("embedding_curr", tensors["embedding_curr"])
    _need("embedding_curr", curr, curr.ndim == 2, "(A, R)")
    A, R = curr.shape
    first = _array("dilate_weights[0]", lists["dilate_weights"][0])
    _need("dilate_weights[0]", first, first.ndim == 3 and first.shape[1] == R and len(first) % 2 == 0, f"(2R, {R}, 2)")
    G, K = len(first), first.shape[2]
    S = _channels("skip_weights[0]", lists["skip_weights"][0])
    H = _channels("conv_out_weight", tensors["conv_out_weight"])
    if len(dilations) != layers:
        raise ShapeError(f"dilations has {len(dilations)} entries for {layers} layers; give one for each")
    biases = {name: bias for name, bias in head_biases.items() if bias is not None}
    described = {
        "sample_rate": 16_000, "hop_length": 1, "n_mels": 1, "dilations": list(dilations), "kernel_size": K,
        "residual_channels": R, "gate_channels": G, "skip_channels": S, "head_channels": H,
        "input": {"kind": "onehot", "kernel_size": 2, "tanh": bool(use_embed_tanh)},
        "head": {"kind": "categorical", "classes": A},
        "biases": {
            "input": False, "head_hidden": "conv_out_bias" in biases, "head_out": "conv_end_bias" in biases,
        },
    }  # fmt: skip
    config = decode(WaveNetConfig, described, "these weights")
    prev = _array("embedding_prev", tensors["embedding_prev"], A, R)
    weights: Weights = {"input.weight": np.stack([prev.T, curr.T], axis=2)}
    shapes = ((G, R, K), (G,), (R, G // 2), (R,), (S, G // 2), (S,))
    names = ("dilated.weight", "dilated.bias", "residual.weight", "residual.bias", "skip.weight", "skip.bias")
    for given, name, shape in zip(LISTS, names, shapes, strict=True):
        for i, tensor in enumerate(lists[given]):
            weights[f"layers.{i}.{name}"] = _array(f"{given}[{i}]", tensor, *shape)
    weights |= {f"layers.{i}.conditioning.weight": np.zeros((G, 1), np.float32) for i in range(layers)}
    weights["head.hidden.weight"] = _array("conv_out_weight", tensors["conv_out_weight"], H, S)
    weights["head.out.weight"] = _array("conv_end_weight", tensors["conv_end_weight"], A, H)
    for name, to, width in (("conv_out_bias", "head.hidden.bias", H), ("conv_end_bias", "head.out.bias", A)):
        if name in biases:
            weights[to] = _array(name, biases[name], width)
    return config, weights


def doubling(layers: int, max_dilation: Any) -> list[int]:
    """1, 2, 4 … and from 1 again where the next would exceed `max_dilation`."""
    try:
        largest = operator.index(max_dilation)
    except TypeError:
        largest = 0
    if largest < 1:
        raise InputError(f"max_dilation is {max_dilation!r}; give a whole number from 1")
    dilations, next_one = [], 1
    for _ in range(layers):
        dilations.append(next_one)
        next_one = 2 * next_one if 2 * next_one <= largest else 1
    return dilations


def listed(name: str, tensors: Any) -> list[Any]:
    """What there is one of for each layer."""
    try:
        return list(tensors)
    except TypeError:
        raise InputError(f"{name} is of type {type(tensors).__name__}; give a list with an entry per layer") from None


def whole_numbers(dilations: Any) -> list[int]:
    """Dilations as Python's integers."""
    try:
        return [operator.index(dilation) for dilation in dilations]
    except TypeError:
        raise InputError(f"dilations is {dilations!r}; give a list of whole numbers from 1, one per layer") from None


def check_dense(name: str, tensor: torch.Tensor) -> None:
    """Raises `InputError` for a tensor that is no block of numbers with strides."""
    if tensor.layout != torch.strided or tensor.is_nested:
        kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
        raise InputError(f"{name} is a tensor of layout {kind}; give a dense tensor")


def _layers(lists: Mapping[str, Sequence[Any]]) -> int:
    lengths = {name: len(list(lists[name])) for name in LISTS}
    layers = lengths["dilate_weights"]
    wanted = {name: layers - name.startswith("res_") for name in LISTS}
    if layers < 1 or lengths != wanted:
        told = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ShapeError(
            f"the lists have these lengths: {told}; give one entry per layer in each, at least one, and one fewer in "
            "res_weights and res_biases, because the last layer has no residual"
        )
    return layers


def _channels(name: str, value: Any) -> int:
    """Outputs of a 1×1 convolution."""
    array = _array(name, value)
    _need(name, array, array.ndim in (2, 3), "(outputs, inputs) or (outputs, inputs, 1)")
    return len(array)


def _array(name: str, value: Any, *shape: int) -> NDArray[np.float32]:
    """A copy as float32, of this shape where one is given; a last axis of one tap is taken off then."""
    if not isinstance(value, (torch.Tensor, np.ndarray)):
        raise InputError(f"{name} is of type {type(value).__name__}; give a tensor")
    floating = value.is_floating_point() if isinstance(value, torch.Tensor) else value.dtype.kind == "f"
    if not floating:
        raise InputError(f"{name} is {value.dtype}; give a tensor of floating-point numbers")
    if isinstance(value, torch.Tensor):
        check_dense(name, value)
        if value.is_meta:
            raise InputError(f"{name} lies on meta, where tensors have no numbers; give a tensor that has them")
        value = value.detach().to("cpu", torch.float32).numpy()
    with np.errstate(over="ignore"):  # what is too large for float32 is refused as infinity below
        array: NDArray[np.float32] = np.array(value, np.float32)
    if not np.isfinite(array).all():
        raise InputError(f"{name} holds NaN or infinity; give finite weights")
    if not shape:
        return array
    if array.shape == (*shape, 1):
        array = array[..., 0]
    _need(name, array, array.shape == shape, str(shape))
    return array


def _need(name: str, array: NDArray[Any], fits: bool, wanted: str) -> None:
    if not fits:
        raise ShapeError(f"{name} has shape {array.shape}; these weights need {wanted}")
