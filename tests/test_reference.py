"""The PyTorch reference against its own formulas written down a second time, in NumPy loops and float64."""

from __future__ import annotations

import numpy as np
import pytest
from children import python

from wavenet_fast.config import (
    Biases,
    CategoricalHead,
    Conditioning,
    FrameConv,
    GaussianHead,
    Hold,
    Linear,
    LogisticHead,
    OneHotInput,
    RepeatStage,
    ScalarInput,
    Signal,
    Speakers,
    Stages,
    TransposedStage,
)

torch = pytest.importorskip("torch")

from wavenet_fast.backends.features import Features  # noqa: E402
from wavenet_fast.backends.reference import ReferenceEngine  # noqa: E402
from wavenet_fast.backends.steady import SteadyPast  # noqa: E402
from wavenet_fast.reference import Reference, round_to_bf16  # noqa: E402

CONVS = (FrameConv(7, 3, activation="tanh"), FrameConv(9, 4, activation="leaky_relu", padding="zero", slope=0.2))
CONFIGS = {
    "plain": {},
    "input kernel": {"input": OneHotInput(kernel_size=3, tanh=True, start=7), "residual_scale": 0.7},
    "no biases": {"biases": Biases(*[False] * 8), "kernel_size": 2, "skip_scale": 0.5},
    "running": {"skip_rule": "running", "skip_scale": 0.5**0.5, "residual_scale": 0.5**0.5},
    "logistics": {"input": ScalarInput(kernel_size=2), "head": LogisticHead(4), "kernel_size": 4},
    "gaussian": {"input": ScalarInput(tanh=True, start=0.25), "head": GaussianHead(1)},
    "scalar classes": {"input": ScalarInput(kernel_size=3), "head": CategoricalHead(64), "signal": Signal("mulaw")},
    "linear": {"conditioning": Conditioning(standardise=True, network=CONVS, upsampling=Linear(0.5))},
    "centred": {"conditioning": Conditioning(network=CONVS[:1], upsampling=Linear(), offset=-1)},
    "late": {"conditioning": Conditioning(network=CONVS, upsampling=Hold(), offset=-1)},
    "repeat": {
        "conditioning": Conditioning(
            network=CONVS[:1],
            upsampling=Stages((RepeatStage(2, 5, image=True, freq_kernel_size=3), RepeatStage(3, 3, channels=4))),
        )
    },
    "transposed": {
        "conditioning": Conditioning(
            upsampling=Stages(
                (
                    TransposedStage(2, 5, crop=2, channels=8, activation="relu"),
                    TransposedStage(3, 7, crop=1, image=True, freq_kernel_size=3),
                )
            ),
            offset=-1,
        )
    },
    "speakers": {"speakers": Speakers(channels=3, count=4), "biases": Biases(conditioning=True, speaker=True)},
}


@pytest.fixture(params=CONFIGS)
def case(request, make_config, make_weights):
    """(config, weights, mel (B, M, F), speaker (B, P) or None, history (B, T)) with B = 2, T = F·hop."""
    config = make_config(**CONFIGS[request.param])
    rng = np.random.default_rng(3)
    mel = rng.standard_normal((2, config.n_mels, 9)).astype(np.float32)
    P = config.speakers.channels
    speaker = rng.standard_normal((2, P)).astype(np.float32) if P else None
    length = 9 * config.hop_length
    if isinstance(config.input, OneHotInput):
        history = rng.integers(0, config.out_channels, (2, length))
    else:
        history = rng.uniform(-1, 1, (2, length)).astype(np.float32)
    history[:, 0] = config.start
    return config, make_weights(config), mel, speaker, history


def run(config, weights, mel, speaker, history, dtype="fp32"):
    """All stages of the teacher-forced reference, as arrays."""
    model, trace = Reference(config, weights, dtype), {}
    conditioning = model.conditioning(torch.from_numpy(mel), None if speaker is None else torch.from_numpy(speaker))
    model.forward(torch.from_numpy(history), conditioning, trace)
    return {name: value.numpy() for name, value in trace.items()}


# --- the same formulas, naively ---------------------------------------------------------------------------------


def activate(x, layer):
    slope = {"none": 1.0, "relu": 0.0, "leaky_relu": layer.slope}.get(layer.activation)
    return np.tanh(x) if slope is None else np.where(x > 0, x, slope * x)


def naive_features(mel, config, w):
    """(M, F) → (C, F), or (C, F·hop) after learned stages."""
    x = mel
    if config.conditioning.standardise:
        x = (x - w["mel.mean"][:, None]) / w["mel.scale"][:, None]
    for i, conv in enumerate(config.conditioning.network):
        weight, y = w[f"conditioning.network.{i}.weight"], np.zeros((conv.channels, x.shape[1]))
        for f in range(x.shape[1]):
            for k in range(conv.kernel_size):
                at = f + k - conv.kernel_size // 2
                inside = 0 <= at < x.shape[1]
                if inside or conv.padding == "replicate":
                    y[:, f] += weight[:, :, k] @ x[:, min(max(at, 0), x.shape[1] - 1)]
        x = activate(y + w[f"conditioning.network.{i}.bias"][:, None], conv)
    up = config.conditioning.upsampling
    for i, stage in enumerate(up.stages if isinstance(up, Stages) else ()):
        x = naive_stage(x, stage, w[f"conditioning.stages.{i}.weight"], w[f"conditioning.stages.{i}.bias"])
    return x


def naive_stage(x, stage, weight, bias):
    channels, length = x.shape
    out = channels if stage.image else (stage.channels or channels)
    y = np.zeros((out, length * stage.scale)) + (bias if stage.image else bias[:, None])

    def add(at, k, column):
        if not 0 <= at < y.shape[1]:
            return
        if not stage.image:
            taps = weight[:, :, k] if isinstance(stage, RepeatStage) else weight[:, :, k].T
            y[:, at] += taps @ column
            return
        half = (stage.freq_kernel_size - 1) // 2
        for row in range(channels):
            for j in range(stage.freq_kernel_size):
                # A convolution gathers from row + j − half; a transposed one scatters to it.
                source = row + j - half if isinstance(stage, RepeatStage) else row - j + half
                if 0 <= source < channels:
                    y[row, at] += weight[j, k] * column[source]

    for n in range(length * (stage.scale if isinstance(stage, RepeatStage) else 1)):
        for k in range(stage.kernel_size):
            if isinstance(stage, RepeatStage):
                add(n - k + (stage.kernel_size - 1) // 2, k, x[:, n // stage.scale])
            else:
                add(stage.scale * n + k - stage.crop, k, x[:, n])
    return activate(y, stage)


def naive_conditioning(mel, speaker, config, w):
    """(M, F) → (T, L, G)."""
    features, up, hop = naive_features(mel, config, w), config.conditioning.upsampling, config.hop_length
    rows = []
    for t in range(mel.shape[1] * hop):
        heard = max(t + config.conditioning.offset, 0)
        if isinstance(up, Stages):
            column = features[:, heard]
        elif isinstance(up, Linear):
            position = heard / hop - up.frame_centre
            left, last = int(np.floor(position)), mel.shape[1] - 1
            share = position - left
            a, b = (features[:, min(max(f, 0), last)] for f in (left, left + 1))
            column = (1 - share) * a + share * b
        else:
            column = features[:, heard // hop]
        row = [w[f"layers.{i}.conditioning.weight"] @ column for i in range(config.n_layers)]
        for i in range(config.n_layers):
            row[i] = row[i] + w.get(f"layers.{i}.conditioning.bias", 0)
            if speaker is not None:
                row[i] = row[i] + w[f"layers.{i}.speaker.weight"] @ speaker + w.get(f"layers.{i}.speaker.bias", 0)
        rows.append(row)
    return np.array(rows)


def naive_network(history, conditioning, config, w):
    """(T,), (T, L, G) → every stage, one sample after another."""
    T, layers, taps = len(history), range(config.n_layers), config.input.kernel_size
    inputs = [[] for _ in layers]
    stages = {"conditioning": conditioning, "embed": [], "skip": [], "hidden": [], "logits": []}
    stages |= {f"gate.{i}": [] for i in layers} | {f"x.{i}": [] for i in layers[:-1]}
    for t in range(T):
        x = np.zeros(config.residual_channels) + w.get("input.bias", 0)
        for k in range(taps):
            if (at := t - (taps - 1 - k)) >= 0:
                onehot = isinstance(config.input, OneHotInput)
                x = x + (w["input.weight"][:, history[at], k] if onehot else w["input.weight"][:, 0, k] * history[at])
        x = np.tanh(x) if config.input.tanh else x
        stages["embed"].append(x)
        total = None
        for i, dilation in enumerate(config.dilations):
            inputs[i].append(x)
            z = conditioning[t, i] + w.get(f"layers.{i}.dilated.bias", 0)
            for k in range(config.kernel_size):
                if (at := t - (config.kernel_size - 1 - k) * dilation) >= 0:
                    z = z + w[f"layers.{i}.dilated.weight"][:, :, k] @ inputs[i][at]
            half = config.gate_channels // 2
            gate = np.tanh(z[:half]) / (1 + np.exp(-z[half:]))
            stages[f"gate.{i}"].append(gate)
            skip = w[f"layers.{i}.skip.weight"] @ gate + w.get(f"layers.{i}.skip.bias", 0)
            if config.skip_rule == "running":
                total = skip if total is None else (total + skip) * config.skip_scale
            else:
                total = skip * config.skip_scale + (0 if total is None else total)
            if f"x.{i}" in stages:
                residual = w[f"layers.{i}.residual.weight"] @ gate + w.get(f"layers.{i}.residual.bias", 0)
                x = (x + residual) * config.residual_scale
                stages[f"x.{i}"].append(x)
        hidden = w["head.hidden.weight"] @ np.maximum(total, 0) + w.get("head.hidden.bias", 0)
        stages["skip"].append(total)
        stages["hidden"].append(hidden)
        stages["logits"].append(w["head.out.weight"] @ np.maximum(hidden, 0) + w.get("head.out.bias", 0))
    return {name: np.array(values) for name, values in stages.items()}


# --- tests ------------------------------------------------------------------------------------------------------


def assert_stages_close(ours, theirs, tolerance):
    """Two-sided, relative to the largest value of a stage; nothing may be missing on either side."""
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.shape == theirs[name].shape, name
        scale = np.abs(theirs[name]).max()
        assert scale > 0.01, f"{name} is too small to compare"
        error = np.abs(value - theirs[name]).max() / scale
        assert error < tolerance, f"{name}: {error:.2e}"


def test_forward_is_the_published_formula_at_every_stage(case):
    config, weights, mel, speaker, history = case
    ours = run(config, weights, mel, speaker, history)
    double = {name: weight.astype(np.float64) for name, weight in weights.items()}
    for b in range(2):
        vector = None if speaker is None else speaker[b]
        conditioning = naive_conditioning(mel[b].astype(np.float64), vector, config, double)
        expected = naive_network(history[b], conditioning, config, double)
        assert_stages_close({name: value[b] for name, value in ours.items()}, expected, 2e-5)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_step_equals_forward_at_every_stage(case, dtype):
    config, weights, mel, speaker, history = case
    model = Reference(config, weights, dtype)
    conditioning = model.conditioning(torch.from_numpy(mel), None if speaker is None else torch.from_numpy(speaker))
    whole = {}
    model.forward(torch.from_numpy(history), conditioning, whole)
    state, steps = model.initial_state(2), []
    for t in range(history.shape[1]):
        steps.append({})
        model.step(state, torch.from_numpy(history[:, t]), conditioning[:, t], steps[-1])
    stepped = {name: torch.stack([s[name] for s in steps], dim=1).numpy() for name in whole}
    # bf16: a value that falls between two representable ones may be rounded apart by the last bit of an fp32 sum.
    assert_stages_close(stepped, {k: v.numpy() for k, v in whole.items()}, 2e-6 if dtype == "fp32" else 2e-2)


@pytest.mark.parametrize(
    "set_default, other, usual",
    [(torch.set_default_dtype, torch.float64, torch.float32), (torch.set_default_device, "meta", None)],
)
@pytest.mark.parametrize("past", ["zero", "steady"])
def test_defaults_of_torch_change_nothing(set_default, other, usual, past, make_config, make_weights):
    """A program may have made the GPU, or another type, what torch makes tensors of: GPU backends leave the network
    that hears the mel to the reference, and a steady past."""
    network = Conditioning(network=(FrameConv(channels=5, kernel_size=3),))
    config = make_config(input=ScalarInput(), head=LogisticHead(components=2), conditioning=network, past=past)
    weights = make_weights(config)
    mel = np.random.default_rng(3).standard_normal((1, config.n_mels, 4)).astype(np.float32)

    def made():
        engine = ReferenceEngine(config, weights)
        state = engine.start(np.array([7], np.uint64))
        sound = engine.advance(state, mel, np.array([4]), np.array([True]), 1.0)[0]
        heard = Features(config, weights).rows(mel[0], 0, 0, 4)[0]
        first = SteadyPast(config, weights, "bf16").layer_inputs(mel[0], np.zeros(0, np.float32), state_inputs)
        return sound, heard, first

    state_inputs = np.zeros(config.input.kernel_size, np.float32)
    expected = made()
    set_default(other)
    try:
        found = made()
    finally:
        set_default(usual)
    for one, same in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, same)


def test_forward_is_causal_in_samples_and_reaches_as_far_as_the_receptive_field(case):
    config, weights, mel, speaker, history = case
    changed, at = history.copy(), 11
    changed[:, at] = (changed[:, at] + 9) % 256 if changed.dtype == np.int64 else -changed[:, at]
    before = run(config, weights, mel, speaker, history)["logits"]
    after = run(config, weights, mel, speaker, changed)["logits"]
    differs = np.flatnonzero((before != after).any(axis=(0, 2)))
    assert differs.min() == at
    assert differs.max() < at + config.receptive_field


def test_receptive_field_is_what_the_configuration_says(make_config, make_weights):
    config = make_config(dilations=(1, 2), kernel_size=3, input=OneHotInput(kernel_size=2))
    mel = np.zeros((1, config.n_mels, 4), np.float32)
    history = np.full((1, 4 * config.hop_length), config.start, np.int64)
    changed = history.copy()
    changed[0, 3] = 9
    logits = [run(config, make_weights(config), mel, None, h)["logits"][0] for h in (history, changed)]
    differs = np.flatnonzero((logits[0] != logits[1]).any(axis=1))
    assert (differs.min(), differs.max()) == (3, 3 + config.receptive_field - 1)


def test_bf16_rounds_weights_and_activations_and_nothing_else(make_config, make_weights):
    config = make_config()
    weights = make_weights(config)
    products = (
        ".conditioning.weight", ".dilated.weight", ".residual.weight", ".skip.weight", "head.hidden.weight",
        "head.out.weight",
    )  # fmt: skip
    rounded = {
        name: round_to_bf16(torch.tensor(w)).numpy() if name.endswith(products) else w for name, w in weights.items()
    }
    mel = np.random.default_rng(0).standard_normal((1, config.n_mels, 4)).astype(np.float32)
    history = np.random.default_rng(1).integers(0, 256, (1, 24))
    given, again = (run(config, w, mel, None, history, "bf16") for w in (weights, rounded))
    for name in given:
        np.testing.assert_array_equal(given[name], again[name])
    full = run(config, weights, mel, None, history, "fp32")
    np.testing.assert_array_equal(given["embed"], full["embed"])
    error = np.abs(given["conditioning"] - full["conditioning"]).max() / np.abs(full["conditioning"]).max()
    assert 1e-4 < error < 0.02
    error = np.abs(given["logits"] - full["logits"]).max() / np.abs(full["logits"]).max()
    assert 1e-4 < error < 0.1


def test_reference_needs_no_extension():
    code = (
        "import sys; sys.modules['wavenet_fast._engine'] = None\n"
        "from wavenet_fast.reference import Reference\n"
        "from wavenet_fast.backends import availability\n"
        "told = availability(); assert told['reference'] is None and 'extension' in told['cpu'], told\n"
    )
    python(code)
