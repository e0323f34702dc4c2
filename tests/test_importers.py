"""What the importers say of states and hparams that do not fit, and of checkpoints of other models. Needs no torch."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np
import pytest

from wavenet_fast.config import CategoricalHead, GaussianHead, LogisticHead, MelSpec, Signal
from wavenet_fast.errors import CheckpointError, ConfigError, InputError
from wavenet_fast.importers import detect, kan_bayashi, nv_wavenet, r9y9
from wavenet_fast.importers.common import plain_tensors
from wavenet_fast.mel import MEL_PRESETS
from wavenet_fast.weights import weight_shapes

R, G, S, M, L, K = 3, 4, 5, 2, 4, 3


def filled(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def r9y9_state(outputs: int = 6, inputs: int = 1, old: bool = False) -> dict[str, np.ndarray]:
    shapes: dict[str, tuple[int, ...]] = {"first_conv.weight": (R, inputs, 1), "first_conv.bias": (R,)}
    for i in range(L):
        for name, out, width, taps in (
            ("conv", G, R, K), ("conv1x1c", G, M, 1), ("conv1x1_out", R, G // 2, 1), ("conv1x1_skip", S, G // 2, 1),
        ):  # fmt: skip
            shapes[f"conv_layers.{i}.{name}.weight"] = (out, width, taps)
            if old or name != "conv1x1c":
                shapes[f"conv_layers.{i}.{name}.bias"] = (out,)
    for i, out in ((1, S), (3, outputs)):
        shapes |= {f"last_conv_layers.{i}.weight": (out, S, 1), f"last_conv_layers.{i}.bias": (out,)}
    if old:
        shapes |= {"upsample_conv.0.weight": (1, 1, 3, 6), "upsample_conv.0.bias": (1,)}
    else:
        shapes["upsample_net.conv_in.weight"] = (M, M, 5)
        shapes["upsample_net.upsample.up_layers.1.weight"] = (1, 1, 1, 13)
    return filled(shapes)


HPARAMS = {
    "sample_rate": 22050, "stacks": 2, "hop_size": 6, "num_mels": M, "fmin": 125, "fmax": 7600, "fft_size": 1024,
    "win_length": 1024, "window": "hann", "something_else": [1],
}  # fmt: skip


def kan_state(taps: int = 2) -> dict[str, np.ndarray]:
    shapes: dict[str, tuple[int, ...]] = {"causal.conv.weight": (R, 16, taps), "causal.conv.bias": (R,)}
    for i in range(L):
        for name, out, width, k in (
            (f"dil_sigmoid.{i}.conv", R, R, taps), (f"dil_tanh.{i}.conv", R, R, taps), (f"aux_1x1_tanh.{i}", R, M, 1),
            (f"aux_1x1_sigmoid.{i}", R, M, 1), (f"skip_1x1.{i}", S, R, 1), (f"res_1x1.{i}", R, R, 1),
        ):  # fmt: skip
            shapes |= {f"{name}.weight": (out, width, k), f"{name}.bias": (out,)}
    for name, out in (("conv_post_1", S), ("conv_post_2", 16)):
        shapes |= {f"{name}.weight": (out, S, 1), f"{name}.bias": (out,)}
    return filled(shapes | {"upsampling.conv.weight": (1, 1, 1, 6), "upsampling.conv.bias": (1,)})


CONF = {"dilation_depth": 2, "dilation_repeat": 2, "upsampling_factor": 6, "feature_type": "melspc"}


def nv_state() -> dict[str, np.ndarray]:
    shapes: dict[str, tuple[int, ...]] = {
        "upsample.weight": (M, M, 8), "upsample.bias": (M,), "embed.weight": (16, R),
        "cond_layers.conv.weight": (2 * R * L, M, 1), "cond_layers.conv.bias": (2 * R * L,),
        "conv_out.conv.weight": (16, S, 1), "conv_end.conv.weight": (16, 16, 1),
    }  # fmt: skip
    for i in range(L):
        shapes |= {f"dilate_layers.{i}.conv.weight": (2 * R, R, 2), f"dilate_layers.{i}.conv.bias": (2 * R,)}
        shapes |= {f"skip_layers.{i}.conv.weight": (S, R, 1), f"skip_layers.{i}.conv.bias": (S,)}
        if i + 1 < L:
            shapes |= {f"res_layers.{i}.conv.weight": (R, R, 1), f"res_layers.{i}.conv.bias": (R,)}
    return filled(shapes)


def test_r9y9_new() -> None:
    made = r9y9.from_state(r9y9_state(), HPARAMS, stats={"mean": np.zeros(M), "scale": np.ones(M)})
    c = made.config
    assert c.dilations == (1, 2, 1, 2) and c.hop_length == 6 and c.start == 0.0
    assert (c.skip_rule, c.skip_scale) == ("sum", math.sqrt(1 / L)) and c.residual_scale == math.sqrt(0.5)
    assert c.head == LogisticHead(components=2) and c.conditioning.offset == 0
    assert list(made.weights)[: len(weight_shapes(c))] == list(weight_shapes(c))
    family = MEL_PRESETS["r9y9-22k"]
    assert made.mel == MelSpec(
        **{f: getattr(family, f) for f in family.__struct_fields__} | {"hop_length": 6, "n_mels": M}
    )
    assert made.provenance["hparams"]["sample_rate"] == 22050 and "something_else" not in made.provenance["hparams"]


def test_r9y9_of_classes_starts_at_127_and_rounds_down() -> None:
    hparams = HPARAMS | {"input_type": "mulaw-quantize", "quantize_channels": 256}
    c = r9y9.from_state(r9y9_state(256, 256), hparams).config
    assert c.start == 127 and c.head == CategoricalHead(256, encode_offset=0.0, decode_offset=0.0)


def test_r9y9_undoes_what_it_did_to_the_sound() -> None:
    told = {"preprocess": "preemphasis", "postprocess": "inv_preemphasis", "global_gain_scale": 0.55}
    signal = r9y9.from_state(r9y9_state(), HPARAMS | told).config.signal
    assert (signal.preemphasis, signal.gain) == (0.85, 0.55)
    companded = r9y9.from_state(r9y9_state(), HPARAMS | {"input_type": "mulaw", "quantize_channels": 256})
    assert companded.config.signal.domain == "mulaw" and companded.config.signal.mu == 255
    assert r9y9.from_state(r9y9_state(2), HPARAMS | {"output_distribution": "Normal"}).config.head == GaussianHead()


def test_the_mu_of_old_r9y9_files_is_told_about() -> None:
    companded = HPARAMS | {"input_type": "mulaw", "quantize_channels": 256, "legacy": True}
    assert r9y9.OLD_MU in r9y9.from_state(r9y9_state(old=True), companded).notes
    assert r9y9.OLD_MU not in r9y9.from_state(r9y9_state(old=True), HPARAMS | {"legacy": True}).notes
    assert r9y9.OLD_MU not in r9y9.from_state(r9y9_state(), companded | {"legacy": None}).notes


def test_r9y9_says_in_several_ways_that_it_did_nothing_to_the_sound() -> None:
    for told in ({"global_gain_scale": 0}, {"global_gain_scale": -1.0}, {"preprocess": "none", "postprocess": "none"}):
        assert r9y9.from_state(r9y9_state(), HPARAMS | told).config.signal == Signal()


def test_an_activation_takes_a_number_between_the_upsampling_layers() -> None:
    state = {name.replace("up_layers.1", "up_layers.4"): value for name, value in r9y9_state().items()}
    state["upsample_net.upsample.up_layers.1.weight"] = state["upsample_net.upsample.up_layers.4.weight"]
    hparams = HPARAMS | {"hop_size": 36, "upsample_params": {"upsample_activation": "ReLU"}}
    assert r9y9.from_state(state, hparams).config.hop_length == 36
    with pytest.raises(ConfigError, match=r"'none'.*\[1, 4\].*2 apart"):
        r9y9.from_state(state, hparams | {"upsample_params": {}})


def test_the_skip_rule_of_an_old_file_is_never_guessed() -> None:
    old = HPARAMS | {"log_scale_min": -32.2}
    with pytest.raises(InputError, match=r"--skip-rule running .*--skip-rule sum"):
        r9y9.from_state(r9y9_state(old=True), old)
    running = r9y9.from_state(r9y9_state(old=True), old, skip_rule="running").config
    assert (running.skip_rule, running.skip_scale) == ("running", math.sqrt(0.5))
    assert running.head == LogisticHead(components=2, log_scale_min=-32.2)
    assert r9y9.from_state(r9y9_state(old=True), old | {"legacy": True}).config == running
    summed = r9y9.from_state(r9y9_state(old=True), old | {"legacy": False}).config
    assert (summed.skip_rule, summed.skip_scale) == ("sum", 1.0)
    with pytest.raises(InputError, match="hparams say legacy True"):
        r9y9.from_state(r9y9_state(old=True), old | {"legacy": True}, skip_rule="sum")
    with pytest.raises(InputError, match="possible are running, sum"):
        r9y9.from_state(r9y9_state(old=True), old, skip_rule="both")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="leave it out"):
        r9y9.from_state(r9y9_state(), HPARAMS, skip_rule="sum")


def test_a_recipe_is_never_guessed() -> None:
    assert r9y9.from_state(r9y9_state(), HPARAMS).mel is None
    assert r9y9.from_state(r9y9_state(old=True), HPARAMS, skip_rule="sum").mel is None
    assert kan_bayashi.from_state(kan_state(), CONF, sample_rate=16000).mel is None


def test_kan_bayashi() -> None:
    c = kan_bayashi.from_state(kan_state(), CONF, sample_rate=16000).config
    assert c.dilations == (1, 2, 1, 2) and c.input.kernel_size == 2 and c.start == 8 and c.past == "steady"
    assert c.head == CategoricalHead(16, encode_offset=0.5, decode_offset=0.5) and c.conditioning.offset == 0
    with pytest.raises(InputError, match="--sample-rate"):
        kan_bayashi.from_state(kan_state(), CONF)
    assert kan_bayashi.from_state(kan_state(), CONF | {"fs": 22050}).config.sample_rate == 22050


def test_nv_wavenet() -> None:
    said = {"wavenet_config": {"max_dilation": 2, "upsamp_stride": 4}, "data_config": {"sampling_rate": 8000}}
    c = nv_wavenet.from_state(nv_state(), said).config
    assert c.dilations == (1, 2, 1, 2) and c.hop_length == 4 and c.sample_rate == 8000 and c.start == 8
    assert not (c.biases.input or c.biases.head_hidden or c.biases.head_out)
    with pytest.raises(InputError, match="max_dilation"):
        nv_wavenet.from_state(nv_state())
    with pytest.raises(InputError, match="upsamp_stride"):
        nv_wavenet.from_state(nv_state(), {"max_dilation": 2})


WRONG: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (r9y9_state(), {"stacks": 3}, ConfigError, "stacks is 3.*4 layers"),
    (r9y9_state(), {"stacks": "two"}, ConfigError, "hparams: stacks.*integer"),
    (r9y9_state(), {"upsample_conditional_features": False}, ConfigError, "upsamples by 6"),
    (r9y9_state(), {"upsample_params": {"upsample_scales": [2, 3]}}, ConfigError, r"\[2, 3\].*\[6\]"),
    (r9y9_state(), {"hop_size": 7}, ConfigError, "hop_size is 7.*makes 6"),
    (r9y9_state(), {"input_type": "mulaw-quantize"}, ConfigError, "hears 1 channels"),
    (r9y9_state(), {"input_type": "8bit"}, ConfigError, "input_type.*one of"),
    (r9y9_state(7), {}, CheckpointError, "7 outputs"),
    (r9y9_state(2), {}, CheckpointError, "2 outputs"),
    (r9y9_state(), {"postprocess": "denoise"}, ConfigError, "denoise"),
    (r9y9_state(), {"global_gain_scale": float("nan")}, ConfigError, "gain"),
    (r9y9_state(), {"preprocess": "preemphasis"}, ConfigError, "preemphasis"),
    (r9y9_state(), {"sample_rate": 5}, ConfigError, "sample_rate"),
    (r9y9_state(), {"upsample_params": {"mode": "bilinear"}}, ConfigError, "bilinear"),
    (r9y9_state(), {"upsample_params": {"upsample_activation": "ELU"}}, ConfigError, "ELU.*LeakyReLU"),
]  # fmt: skip


@pytest.mark.parametrize("state, changes, error, told", WRONG)
def test_hparams_that_do_not_fit(state: Any, changes: dict[str, Any], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        r9y9.from_state(state, HPARAMS | changes)


HOSTILE = [
    None,
    True,
    0,
    -1,
    1.5,
    10**9,
    10**400,
    1e308,
    -1e308,
    math.nan,
    math.inf,
    "",
    "x",
    [],
    [0],
    [[]],
    {},
    {"a": {}},
]


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: str(value)[:12])
def test_hostile_values_end_in_a_sentence_or_do_not_matter(value: Any) -> None:
    old = r9y9_state(old=True)
    for field in r9y9.Hparams.__struct_fields__:
        for state in (r9y9_state(), old):
            with contextlib.suppress(CheckpointError, ConfigError, InputError):
                r9y9.from_state(state, HPARAMS | {field: value}, stats={"mean": np.zeros(M), "scale": np.ones(M)})
            with contextlib.suppress(CheckpointError, ConfigError, InputError):
                r9y9.from_state(state, {k: v for k, v in HPARAMS.items() if k != "hop_size"} | {field: value})
    for field in ("upsample_scales", "upsample_activation", "upsample_activation_params", "mode"):
        with contextlib.suppress(CheckpointError, ConfigError, InputError):
            r9y9.from_state(r9y9_state(), HPARAMS | {"upsample_params": {field: value}})
    for field in kan_bayashi.Conf.__struct_fields__:
        with contextlib.suppress(CheckpointError, ConfigError, InputError):
            kan_bayashi.from_state(kan_state(), CONF | {field: value}, sample_rate=16000)
    for field in (*nv_wavenet.Config.__struct_fields__, "wavenet_config", "data_config"):
        with contextlib.suppress(CheckpointError, ConfigError, InputError):
            nv_wavenet.from_state(nv_state(), {"max_dilation": 2, "upsamp_stride": 4} | {field: value})


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"dilation_depth": 3}, "depth 3 · dilation_repeat 2.*4 layers"),
        ({"upsampling_factor": 5}, "upsampling_factor is 5.*makes 6"),
        ({"use_upsampling_layer": False}, "has an upsampling layer"),
        ({"dilation_depth": 99}, "dilation_depth"),
    ],
)
def test_a_conf_that_does_not_fit(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        kan_bayashi.from_state(kan_state(), CONF | changes, sample_rate=16000)


def imported(family: str, state: dict[str, Any]) -> Any:
    if family == "r9y9":
        return r9y9.from_state(state, HPARAMS)
    if family == "r9y9, old":
        return r9y9.from_state(state, HPARAMS | {"legacy": True})
    if family == "kan-bayashi":
        return kan_bayashi.from_state(state, CONF, sample_rate=16000)
    return nv_wavenet.from_state(state, {"max_dilation": 2, "upsamp_stride": 4})


STATES = {
    "r9y9": r9y9_state, "r9y9, old": lambda: r9y9_state(old=True), "kan-bayashi": kan_state, "nv-wavenet": nv_state,
}  # fmt: skip


@pytest.mark.parametrize("family", STATES)
def test_every_tensor_counts(family: str) -> None:
    """Without any one of them, with another one more, or with one of another shape, it is refused by name."""
    whole = STATES[family]()
    imported(family, whole)
    for name in whole:
        fewer = {other: value for other, value in whole.items() if other != name}
        with pytest.raises((CheckpointError, ConfigError, InputError)):
            imported(family, fewer)
    with pytest.raises(CheckpointError, match=r"1 not part of this model: strange\.weight"):
        imported(family, whole | {"strange.weight": np.zeros(3, np.float32)})
    for name in whole:
        for shape in ((), (0,), (0, 0, 0), (1,), (2, 2), (1, 1, 0), (1, 1, 1, 1), (1, 1, 3, 1), (9, 9, 9, 9, 9)):
            if whole[name].shape != shape:
                with pytest.raises((CheckpointError, ConfigError, InputError)):
                    imported(family, whole | {name: np.ones(shape, np.float32)})


@pytest.mark.parametrize("family", STATES)
def test_the_first_ten_are_named_and_the_rest_counted(family: str) -> None:
    many = {f"extra.{i:02}": np.zeros(1, np.float32) for i in range(13)}
    with pytest.raises(CheckpointError) as refused:
        imported(family, STATES[family]() | many)
    told = str(refused.value)
    assert "13 not part of this model: extra.00" in told and "extra.09 and 3 more" in told and "extra.10" not in told


def test_numbers_that_are_none() -> None:
    state = r9y9_state()
    state["first_conv.weight"][0] = np.nan
    with pytest.raises(CheckpointError, match=r"NaN or infinite values in input\.weight"):
        r9y9.from_state(state, HPARAMS)
    with pytest.raises(CheckpointError, match=r"first_conv\.bias is <U1"):
        r9y9.from_state(r9y9_state() | {"first_conv.bias": np.array(["a"])}, HPARAMS)


def test_weight_norm_is_multiplied_out() -> None:
    rng = np.random.default_rng(1)
    v, g = rng.standard_normal((3, 4, 2)).astype(np.float32), rng.random((3, 1, 1), np.float32) + np.float32(1)
    wanted = g * v / np.sqrt((v**2).sum(axis=(1, 2), keepdims=True))
    for direction, length in (
        ("weight_v", "weight_g"), ("parametrizations.weight.original1", "parametrizations.weight.original0"),
    ):  # fmt: skip
        plain = plain_tensors({f"a.{length}": g, f"a.{direction}": v, "a.bias": g}, "it")
        assert plain.keys() == {"a.weight", "a.bias"}
        np.testing.assert_allclose(plain["a.weight"], wanted, rtol=1e-6)
    with pytest.raises(CheckpointError, match="one length for each row"):
        plain_tensors({"a.weight_g": g[:2], "a.weight_v": v}, "it")
    v[1] = 0
    with pytest.raises(CheckpointError, match="row of zeros"):
        plain_tensors({"a.weight_g": g, "a.weight_v": v}, "it")


@pytest.mark.parametrize(
    "stats, told",
    [
        ({"mean": np.zeros(M)}, "lack 'scale'"),
        ({"mean": np.zeros(M + 1), "scale": np.ones(M)}, "3 values of mean; this network hears 2"),
        ({"mean": np.zeros(M), "scale": np.zeros(M)}, "above 0"),
        ({"mean": np.full(M, np.inf), "scale": np.ones(M)}, "finite"),
        ({"mean": np.full(M, 1e300), "scale": np.ones(M)}, "finite"),
        ({"mean": np.full(M, "a"), "scale": np.ones(M)}, "<U1 as mean"),
        ({"mean": np.zeros(M), "scale": np.ones(M, complex)}, "complex128 as scale"),
    ],
)
def test_statistics_that_do_not_fit(stats: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        r9y9.from_state(r9y9_state(), HPARAMS, stats=stats)


def test_families_are_told_by_their_tensors() -> None:
    assert detect(r9y9_state()) == detect(r9y9_state(old=True)) == "r9y9"
    assert detect(f"module.{name}" for name in r9y9_state()) == "r9y9"
    assert detect(kan_state()) == "kan-bayashi" and detect(nv_state()) == "nv-wavenet"
    assert detect(["embedding_prev", "embedding_curr", "dilate_weights"]) == "nv-wavenet"
    assert detect(r9y9.from_state(r9y9_state(), HPARAMS).weights) == "own"


@pytest.mark.parametrize(
    "names, what",
    [
        (["conv_pre.weight_g", "ups.0.weight_g", "resblocks.0.convs1.0.weight_g", "conv_post.bias"], "HiFi-GAN"),
        (["conv_pre.weight_g", "ups.0.0.weight_g", "resblocks.0.activations.0.act.alpha"], "BigVGAN"),
        (["first_conv.weight_g", "conv_layers.0.conv1x1_aux.weight_g", "conv_layers.0.conv1x1_skip.bias",
          "last_conv_layers.1.bias"], "Parallel WaveGAN"),
        (["embedding.weight", "decoder.attention_rnn.weight_ih", "postnet.convolutions.0.0.conv.weight"], "Tacotron 2"),
        (["upsample.weight", "WN.0.in_layers.0.bias", "convinv.0.conv.weight"], "WaveGlow"),
        (["I.weight", "rnn1.weight_ih_l0", "rnn2.weight_ih_l0", "fc1.weight"], "WaveRNN"),
        (["backbone.convnext.0.gamma", "head.out.weight"], "Vocos"),
        (["encoder.layers.0.self_attn.q.weight"], "transformer"),
        (["a.weight", "b\x1b[31m"], "no family"),
        ([], "no family"),
    ],
)  # fmt: skip
def test_what_a_checkpoint_of_another_model_seems_to_be(names: list[str], what: str) -> None:
    with pytest.raises(CheckpointError, match=what) as refused:
        detect(names)
    assert "\x1b" not in str(refused.value) and "nv-wavenet can be imported" in str(refused.value)
