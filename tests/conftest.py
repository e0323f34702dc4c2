"""Small voices with random weights, for any test that needs one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from last_device import device_of

from wavenet_fast.backends import BACKENDS
from wavenet_fast.checkpoint import Checkpoint
from wavenet_fast.config import CategoricalHead, MelSpec, WaveNetConfig
from wavenet_fast.weights import weight_shapes


def small_config(**changes: Any) -> WaveNetConfig:
    """A network of few channels in which no size equals another; `changes` replaces fields."""
    fields: dict[str, Any] = {
        "sample_rate": 8000, "hop_length": 6, "n_mels": 5, "dilations": (1, 3, 2, 5), "kernel_size": 3,
        "residual_channels": 12, "gate_channels": 20, "skip_channels": 14, "head_channels": 18,
    }  # fmt: skip
    return WaveNetConfig(**fields | changes)


def random_weights(config: WaveNetConfig, seed: int = 0) -> Mapping[str, np.ndarray]:
    """Weights that keep the variance of what passes through, so that history, mel and speaker all matter, and a head
    whose distributions are peaked, but not always at the same place."""
    rng = np.random.default_rng(seed)
    categorical = isinstance(config.head, CategoricalHead)
    weights = {}
    for name, shape in weight_shapes(config).items():
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 25
        if name == "input.weight":
            fan_in = config.input.kernel_size
        gain = (3.0 if categorical else 0.4) if name.startswith("head.out") else 1.0
        weights[name] = (rng.standard_normal(shape) * gain / fan_in**0.5).astype(np.float32)
    if "mel.scale" in weights:
        weights["mel.scale"] = np.abs(weights["mel.scale"]) + np.float32(0.5)
    if not categorical and config.biases.head_out:
        weights["head.out.bias"][-config.head.components :] -= 2  # log scales: narrow enough to tell the means apart
    return weights


def small_checkpoint(config: WaveNetConfig | None = None, seed: int = 0, **info: Any) -> Checkpoint:
    config = small_config() if config is None else config
    spec = MelSpec(
        sample_rate=config.sample_rate, n_fft=4 * config.hop_length, hop_length=config.hop_length,
        win_length=4 * config.hop_length, n_mels=config.n_mels, fmax=config.sample_rate / 2,
    )  # fmt: skip
    return Checkpoint(config, spec, random_weights(config, seed), info)


@pytest.fixture(scope="session")
def make_config() -> Callable[..., WaveNetConfig]:
    return small_config


@pytest.fixture(scope="session")
def make_weights() -> Callable[..., Mapping[str, np.ndarray]]:
    return random_weights


@pytest.fixture(scope="session")
def make_checkpoint() -> Callable[..., Checkpoint]:
    return small_checkpoint


@pytest.fixture(scope="session", params=["cpu", "reference", "triton", "cuda"])
def backend(request: pytest.FixtureRequest) -> str:
    """Every backend in turn, to be run on `device_of` it; skipped with the reason where one does not work here."""
    if (why := BACKENDS[request.param].why_not(device_of(request.param))) is not None:
        pytest.skip(f"{request.param}: {why}")
    return request.param


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is read from or left in the user's cache folder, by child processes either."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WAVENET_FAST_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def one_torch_thread() -> None:
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(1)
