"""mel → conditioning: the arithmetic against plain NumPy over the whole utterance, and which frames it needs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from engine_models import MODELS, random_history, random_mel, random_weights, small, speaker_vectors
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import HEARD, HEARD_OTHER_SIDE, HEARD_ROUNDED, HEARD_ROUNDED_RMS, HEARD_UNIT

from wavenet_fast.backends.cpu import CpuEngine, isas_possible
from wavenet_fast.conditioning import context_frames, lookahead_frames, ready_samples
from wavenet_fast.config import (
    Conditioning,
    FrameConv,
    Hold,
    Linear,
    RepeatStage,
    Stages,
    TransposedStage,
    WaveNetConfig,
)


def oracle(config: WaveNetConfig, weights: Any, mel: Any, speaker: Any) -> Any:
    """(T, L, G) in float64, each formula written down index by index, the whole utterance at once."""
    c, w = config.conditioning, {k: v.astype(np.float64) for k, v in weights.items()}
    x = mel.astype(np.float64)
    if c.standardise:
        x = (x - w["mel.mean"][:, None]) / w["mel.scale"][:, None]
    for i, conv in enumerate(c.network):
        x = activate(conv, frame_conv(x, conv, w, f"conditioning.network.{i}"))
    if isinstance(c.upsampling, Stages):
        for i, stage in enumerate(c.upsampling.stages):
            x = activate(stage, upsample(x, stage, w, f"conditioning.stages.{i}"))
    heard = np.maximum(np.arange(mel.shape[1] * config.hop_length) + c.offset, 0)
    if isinstance(c.upsampling, Hold):
        x = x[:, heard // config.hop_length]
    elif isinstance(c.upsampling, Stages):
        x = x[:, heard]
    else:
        position = heard / config.hop_length - c.upsampling.frame_centre
        left = np.floor(position).astype(int)
        a, b = (x[:, np.clip(f, 0, x.shape[1] - 1)] for f in (left, left + 1))
        x = a + (b - a) * (position - left)
    rows = []
    for i in range(config.n_layers):
        row = w[f"layers.{i}.conditioning.weight"] @ x
        row = row + np.reshape(w.get(f"layers.{i}.conditioning.bias", 0.0), (-1, 1))
        if config.speakers.channels:
            bias = w.get(f"layers.{i}.speaker.bias", 0.0)
            row = row + (w[f"layers.{i}.speaker.weight"] @ speaker.astype(np.float64) + bias)[:, None]
        rows.append(row)
    return np.stack(rows).transpose(2, 0, 1)


def activate(layer: Any, x: Any) -> Any:
    return {
        "none": x, "relu": np.maximum(x, 0), "tanh": np.tanh(x), "leaky_relu": np.where(x > 0, x, layer.slope * x),
    }[layer.activation]  # fmt: skip


def frame_conv(x: Any, conv: FrameConv, w: Any, name: str) -> Any:
    taps, F = w[f"{name}.weight"], x.shape[1]
    y = np.zeros((conv.channels, F)) + np.reshape(w.get(f"{name}.bias", 0.0), (-1, 1))
    for f in range(F):
        for j in range(conv.kernel_size):
            g = f + j - conv.kernel_size // 2
            if conv.padding == "replicate":
                g = min(max(g, 0), F - 1)
            if 0 <= g < F:
                y[:, f] += taps[:, :, j] @ x[:, g]
    return y


def upsample(x: Any, stage: TransposedStage | RepeatStage, w: Any, name: str) -> Any:
    taps, bias, n = w[f"{name}.weight"], w.get(f"{name}.bias", np.zeros(1)), x.shape[1]
    reach, rows = (stage.kernel_size - 1) // 2, (stage.freq_kernel_size - 1) // 2
    y = np.zeros((x.shape[0] if stage.image else stage.channels or x.shape[0], n * stage.scale)) + bias[:, None]
    for o in range(y.shape[1]):
        for j in range(stage.kernel_size):
            if isinstance(stage, TransposedStage):
                column, rest = divmod(o + stage.crop - j, stage.scale)
                known = rest == 0 and 0 <= column < n
            else:
                column, known = (o + j - reach) // stage.scale, 0 <= o + j - reach < n * stage.scale
            if not known:
                continue
            if not stage.image:
                tap = taps[:, :, j].T if isinstance(stage, TransposedStage) else taps[:, :, j]
                y[:, o] += tap @ x[:, column]
                continue
            for a in range(stage.freq_kernel_size):
                shift = (a - rows) * (-1 if isinstance(stage, TransposedStage) else 1)
                source = np.zeros(x.shape[0])
                inside = np.arange(x.shape[0]) + shift
                ok = (inside >= 0) & (inside < x.shape[0])
                source[ok] = x[inside[ok], column]
                y[:, o] += taps[a, j] * source
    return y


def check(config: WaveNetConfig, frames: int, isa: str | None = None, seed: int = 0) -> None:
    weights, mel = random_weights(config, seed), random_mel(config, frames)
    vectors = speaker_vectors(config, 1)
    speaker = None if vectors is None else vectors[0]
    history = random_history(config, frames * config.hop_length)
    ours = CpuEngine(config, weights, "fp32", isa).trace(mel, history, 0, speaker)["conditioning"]
    theirs = oracle(config, weights, mel, speaker)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-5 * max(1.0, theirs.std())


@pytest.mark.parametrize("isa", isas_possible())
@pytest.mark.parametrize("frames", [1, 2, 13])
@pytest.mark.parametrize("name", MODELS)
def test_conditioning_equals_plain_arithmetic(name: str, frames: int, isa: str) -> None:
    """Down to utterances shorter than the network's context."""
    check(MODELS[name], frames, isa)


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
@pytest.mark.parametrize("isa", isas_possible())
@pytest.mark.parametrize("name", MODELS)
def test_conditioning_in_bf16(name: str, isa: str, dtype: str) -> None:
    """The engine rounds what the reference rounds, and that is all that parts both from plain arithmetic. Where a sum
    in another order falls on the other side of a boundary, it is off by one unit of bf16."""
    torch = pytest.importorskip("torch", reason="the reference needs PyTorch")
    from wavenet_fast.reference import Reference

    config = MODELS[name]
    weights, mel, speakers = random_weights(config, 0), random_mel(config, 13), speaker_vectors(config, 1)
    speaker = None if speakers is None else speakers[0]
    history = random_history(config, 13 * config.hop_length)
    ours = CpuEngine(config, weights, dtype, isa).trace(mel, history, 0, speaker)["conditioning"]
    given = None if speakers is None else torch.from_numpy(speakers)
    theirs = Reference(config, weights, dtype).conditioning(torch.from_numpy(mel[None]), given)[0].numpy()
    size = np.abs(theirs).max()
    error = np.abs(ours - theirs)
    assert (error > HEARD * max(1.0, theirs.std())).mean() <= HEARD_OTHER_SIDE
    assert error.max() <= HEARD_UNIT * size
    exact = oracle(config, weights, mel, speaker)
    least, most = HEARD_ROUNDED
    assert least * size < np.abs(theirs - exact).max() < most * size
    assert np.sqrt(((theirs - exact) ** 2).mean()) < HEARD_ROUNDED_RMS * exact.std()


ACTIVATIONS = st.sampled_from(["none", "relu", "leaky_relu", "tanh"])
CONVS = st.builds(
    FrameConv, channels=st.integers(1, 19), kernel_size=st.integers(1, 5), activation=ACTIVATIONS,
    padding=st.sampled_from(["replicate", "zero"]), bias=st.booleans(), slope=st.floats(-0.5, 0.5),
)  # fmt: skip


@st.composite
def stage_lists(draw: Any) -> Stages:
    """Two stages of any kind, scales 3 and 2 or 1 and 6."""
    stages = []
    for scale in draw(st.sampled_from([(3, 2), (1, 6), (6, 1), (6,)])):
        image = draw(st.booleans())
        common = {
            "scale": scale, "image": image, "channels": None if image else draw(st.none() | st.integers(1, 9)),
            "freq_kernel_size": draw(st.sampled_from([1, 3, 7])) if image else 1, "activation": draw(ACTIVATIONS),
            "bias": draw(st.booleans()),
        }  # fmt: skip
        if draw(st.booleans()):
            crop = draw(st.integers(0, 9))
            stages.append(TransposedStage(kernel_size=crop + scale + draw(st.integers(0, 8)), crop=crop, **common))
        else:
            stages.append(RepeatStage(kernel_size=2 * draw(st.integers(0, 6)) + 1, **common))
    return Stages(stages=tuple(stages))


CONDITIONINGS = st.builds(
    Conditioning, standardise=st.booleans(), network=st.lists(CONVS, max_size=2).map(tuple),
    upsampling=st.just(Hold()) | st.builds(Linear, frame_centre=st.floats(0, 1)) | stage_lists(),
    offset=st.sampled_from([0, -1]),
)  # fmt: skip


@given(conditioning=CONDITIONINGS, frames=st.integers(1, 12), seed=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_any_network_equals_plain_arithmetic(conditioning: Conditioning, frames: int, seed: int) -> None:
    check(small(conditioning=conditioning), frames, seed=seed)


@given(conditioning=CONDITIONINGS, cut=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_look_ahead_and_context_suffice_for_any_network(conditioning: Conditioning, cut: int) -> None:
    """Frames that arrive in two calls give the same bits: the first call made what it could, and kept what it must."""
    config = small(conditioning=conditioning)
    engine = CpuEngine(config, random_weights(config))
    mel, results = random_mel(config, 10, 1), []
    for pieces in ([(0, 10)], [(0, cut), (cut, 10)]):
        state, sound = engine.start(np.zeros(1, np.uint64)), []
        for first, last in pieces:
            piece, n = mel[:, :, first:last], np.array([last - first])
            sound.append(engine.advance(state, piece, n, np.array([last == 10]), 1.0)[0][0])
        results.append(np.concatenate(sound))
    np.testing.assert_array_equal(*results)


@given(conditioning=CONDITIONINGS, hop=st.just(6))
@settings(max_examples=100, deadline=None)
def test_python_and_the_engine_agree_on_look_ahead_and_context(conditioning: Conditioning, hop: int) -> None:
    config = small(conditioning=conditioning, hop_length=hop)
    model = CpuEngine(config, random_weights(config))._model
    assert model.lookahead_frames == lookahead_frames(config)
    assert model.context_frames == context_frames(config)


@pytest.mark.parametrize(
    ("conditioning", "ahead", "behind"),
    [
        (Conditioning(), 0, 0),
        (Conditioning(offset=-1), 0, 1),
        (Conditioning(upsampling=Linear()), 1, 0),
        (Conditioning(upsampling=Linear(frame_centre=0.5)), 1, 1),
        (Conditioning(upsampling=Linear(frame_centre=1.0)), 0, 1),
        (Conditioning(network=(FrameConv(channels=3, kernel_size=5),)), 2, 2),
        (Conditioning(network=(FrameConv(channels=3, kernel_size=4),)), 1, 2),
        (Conditioning(upsampling=Stages(stages=(TransposedStage(scale=6, kernel_size=6),))), 0, 0),
        (Conditioning(upsampling=Stages(stages=(TransposedStage(scale=6, kernel_size=24),))), 0, 3),
        (Conditioning(upsampling=Stages(stages=(TransposedStage(scale=6, kernel_size=12, crop=3),))), 1, 1),
        (Conditioning(upsampling=Stages(stages=(RepeatStage(scale=6, kernel_size=13),))), 1, 1),
    ],
)
def test_look_ahead_and_context_of_known_networks(conditioning: Conditioning, ahead: int, behind: int) -> None:
    config = small(conditioning=conditioning)
    assert (lookahead_frames(config), context_frames(config)) == (ahead, behind)


def test_ready_samples() -> None:
    config = small(conditioning=Conditioning(upsampling=Linear(), network=(FrameConv(channels=3, kernel_size=3),)))
    assert lookahead_frames(config) == 2
    ready = ready_samples(config, [0, 1, 2, 3, 9, 9, 0], [False, False, False, False, False, True, True])
    assert ready.tolist() == [0, 0, 0, 6, 42, 54, 0] and ready.dtype == np.int64
