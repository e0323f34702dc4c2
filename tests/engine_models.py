"""Small models that together use every part of the configuration, and what tests of the engine feed them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from wavenet_fast.cases import case, random_weights
from wavenet_fast.config import (
    Biases,
    CategoricalHead,
    Conditioning,
    FrameConv,
    GaussianHead,
    Linear,
    LogisticHead,
    OneHotInput,
    RepeatStage,
    ScalarInput,
    Signal,
    Speakers,
    Stages,
    TransposedStage,
    WaveNetConfig,
)


def small(**changes: Any) -> WaveNetConfig:
    """A network in which no size divides another and the rings wrap within a few frames."""
    fields: dict[str, Any] = {
        "sample_rate": 8000, "hop_length": 6, "n_mels": 5, "dilations": (1, 3, 2, 5), "kernel_size": 3,
        "residual_channels": 11, "gate_channels": 26, "skip_channels": 14, "head_channels": 19,
    }  # fmt: skip
    return WaveNetConfig(**fields | changes)


_ALL_BIASES = Biases(conditioning=True, speaker=True)
_NO_BIASES = Biases(
    input=False, dilated=False, residual=False, skip=False, head_hidden=False, head_out=False,
)  # fmt: skip

MODELS: dict[str, WaveNetConfig] = {
    "tiny": case("tiny"),
    "odd": case("odd"),
    # Picture stages both ways, an even convolution padded with zeros, offset −1, pre-emphasis and gain.
    "logistic": small(
        input=ScalarInput(kernel_size=2, start=0.25), head=LogisticHead(components=3, log_scale_min=-5.0),
        signal=Signal(preemphasis=0.85, gain=0.55), residual_scale=0.5**0.5, skip_scale=0.5,
        conditioning=Conditioning(
            network=(FrameConv(channels=7, kernel_size=4, activation="leaky_relu", padding="zero", slope=0.3),),
            upsampling=Stages(stages=(
                TransposedStage(scale=3, kernel_size=7, crop=2, image=True, freq_kernel_size=3, activation="relu"),
                RepeatStage(scale=2, kernel_size=5, image=True, freq_kernel_size=5),
            )),
            offset=-1,
        ),
    ),
    # Interpolation, standardised mels, speakers, the running skip rule, a companded signal.
    "gaussian": small(
        input=ScalarInput(tanh=True), head=GaussianHead(log_scale_min=-4.0), signal=Signal(domain="mulaw", mu=100),
        skip_rule="running", skip_scale=0.5**0.5, speakers=Speakers(channels=3, count=4), biases=_ALL_BIASES,
        conditioning=Conditioning(
            standardise=True, upsampling=Linear(frame_centre=0.5), network=(
                FrameConv(channels=9, kernel_size=3, activation="tanh"),
                FrameConv(channels=6, kernel_size=2, bias=False),
            ),
        ),
    ),
    # Dense stages both ways, a mixture of Gaussians, speakers without a table.
    "gaussian-mixture": small(
        input=ScalarInput(kernel_size=3), head=GaussianHead(components=4), speakers=Speakers(channels=2),
        conditioning=Conditioning(upsampling=Stages(stages=(
            RepeatStage(scale=2, kernel_size=3, channels=9, activation="tanh"),
            TransposedStage(scale=3, kernel_size=11, crop=5, channels=4, bias=False),
        ))),
    ),
    # A scalar input under a categorical head, fed companded values; interpolation shifted by a whole frame.
    "scalar-categorical": small(
        input=ScalarInput(kernel_size=2, tanh=True, start=-0.5), head=CategoricalHead(classes=37, decode_offset=0.5),
        signal=Signal(domain="mulaw", preemphasis=0.5),
        conditioning=Conditioning(upsampling=Linear(frame_centre=1.0), offset=-1),
    ),
    # The same fed linear values; no bias anywhere; one layer's ring of a single slot; interpolation between frames.
    "no-bias": small(
        kernel_size=2, input=ScalarInput(), head=CategoricalHead(classes=21), biases=_NO_BIASES,
        conditioning=Conditioning(upsampling=Linear()),
    ),
    # A wide input kernel over classes, and more classes than vectors hold evenly.
    "wide-input": small(
        input=OneHotInput(kernel_size=3, tanh=True, start=7), head=CategoricalHead(classes=131, decode_offset=0.25),
        conditioning=Conditioning(offset=-1),
    ),
    # A past in which everything was as at the first sample.
    "steady": small(
        input=ScalarInput(kernel_size=2, start=0.25), head=LogisticHead(components=2), past="steady",
        conditioning=Conditioning(upsampling=Linear()),
    ),
}  # fmt: skip

SMALL = [name for name in MODELS if name not in ("tiny", "odd")]


def speaker_vectors(config: WaveNetConfig, batch: int) -> NDArray[np.float32] | None:
    """(B, P), or None where the model has no speakers."""
    if not config.speakers.channels:
        return None
    return np.random.default_rng(5).standard_normal((batch, config.speakers.channels)).astype(np.float32)


def random_mel(config: WaveNetConfig, frames: int, batch: int | None = None, seed: int = 1) -> NDArray[np.float32]:
    """(M, F), or (B, M, F)."""
    shape = (config.n_mels, frames) if batch is None else (batch, config.n_mels, frames)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def random_history(config: WaveNetConfig, samples: int, seed: int = 2) -> NDArray[Any]:
    """(T,) classes or values, for forcing."""
    rng = np.random.default_rng(seed)
    if isinstance(config.input, OneHotInput):
        return rng.integers(0, config.out_channels, samples)
    return rng.uniform(-1, 1, samples).astype(np.float32)


def reference_stages(
    config: WaveNetConfig, weights: Any, dtype: str, mel: Any, history: Any, speaker: Any, operands: str | None = None
) -> Any:
    """The reference's stages of one utterance under forced history; `operands` as `Reference` takes them."""
    torch = pytest.importorskip("torch", reason="the reference needs PyTorch")
    from wavenet_fast.reference import Reference

    torch.set_num_threads(1)
    model, trace = Reference(config, weights, dtype, operands), {}
    kind = np.int64 if isinstance(config.input, OneHotInput) else np.float32
    heard = np.concatenate([[config.start], history[:-1]]).astype(kind)
    with torch.inference_mode():
        vector = None if speaker is None else torch.tensor(speaker)
        model.forward(torch.tensor(heard)[None], model.conditioning(torch.tensor(mel)[None], vector), trace)
    return {stage: values[0].numpy() for stage, values in trace.items()}


__all__ = [
    "MODELS",
    "SMALL",
    "case",
    "random_history",
    "random_mel",
    "random_weights",
    "reference_stages",
    "small",
    "speaker_vectors",
]
