"""Configuration: what is refused and how it is said; encoding and decoding; derived sizes."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wavenet_fast import config as cfg
from wavenet_fast.config import MelSpec, WaveNetConfig, decode, encode
from wavenet_fast.errors import ConfigError
from wavenet_fast.weights import weight_count, weight_shapes

MODEL = {
    "sample_rate": 16000, "hop_length": 200, "n_mels": 80, "dilations": [1, 2, 4], "kernel_size": 3,
    "residual_channels": 16, "gate_channels": 32, "skip_channels": 24, "head_channels": 20,
}  # fmt: skip
MEL = {"sample_rate": 16000, "n_fft": 1024, "hop_length": 200, "win_length": 800, "n_mels": 80, "fmax": 7600.0}


def stages(**stage):
    return {
        "upsampling": {"kind": "stages", "stages": [{"kind": "transposed", "scale": 200, "kernel_size": 400, **stage}]}
    }


REFUSED = [
    # given, path that must be named, what must be said
    ({"dilations": ...}, "model", 'lacks the field "dilations", a list of 1 to 256 entries'),
    ({"dilations": []}, "model.dilations", "is []; it must be a list of 1 to 256 entries"),
    ({"dilations": [1] * 257}, "model.dilations", "256 entries"),
    ({"dilations": [1, 0]}, "model.dilations[1]", "is 0; it must be an integer from 1 to 1048576"),
    ({"dilations": [1, 2**40]}, "model.dilations[1]", "is 1099511627776"),
    ({"dilations": 10**9}, "model.dilations", "is 1000000000; it must be a list"),
    ({"dilations": "1 2 4"}, "model.dilations", 'is "1 2 4"; it must be a list'),
    ({"dilations": [2**20] * 20}, "model.dilations", "at most 16777216 are allowed"),
    ({"dilations": [2**20] * 4, "residual_channels": 4096}, "model.dilations", "GiB of past per stream"),
    ({"kernel_size": 1}, "model.kernel_size", "is 1; it must be an integer from 2 to 16"),
    ({"kernel_size": "3"}, "model.kernel_size", 'is "3"'),
    ({"kernel_size": 3.5}, "model.kernel_size", "is 3.5"),
    ({"kernel_size": True}, "model.kernel_size", "is true"),
    ({"kernel_size": None}, "model.kernel_size", "is null"),
    ({"residual_channels": 0}, "model.residual_channels", "from 1 to 4096"),
    ({"residual_channels": -5}, "model.residual_channels", "is -5"),
    ({"gate_channels": 31}, "model.gate_channels", "from 2 to 4096, a multiple of 2"),
    ({"skip_channels": 10**9}, "model.skip_channels", "from 1 to 4096"),
    ({"sample_rate": 10**30}, "model.sample_rate", "from 1000 to 384000"),
    ({"hop_length": 0}, "model.hop_length", "from 1 to 8192"),
    ({"n_mels": 513}, "model.n_mels", "from 1 to 512"),
    ({"residual_chanels": 16}, "model", 'has no field "residual_chanels"; did you mean "residual_channels"?'),
    ({"zzz": 1}, "model", "its fields are sample_rate, hop_length"),
    ({"residual_scale": 0}, "model.residual_scale", "a number above 0 and at most 16"),
    ({"skip_rule": "mean"}, "model.skip_rule", 'one of "running", "sum"'),
    ({"head": {"kind": "softmax"}}, "model.head.kind", 'one of "categorical", "logistic", "gaussian"'),
    ({"head": {"classes": 256}}, "model.head", 'lacks the field "kind", one of "categorical"'),
    ({"head": []}, "model.head", "an object whose kind is one of"),
    ({"head": {"kind": "categorical", "classes": 1}}, "model.head.classes", "from 2 to 65536"),
    ({"head": {"kind": "categorical", "components": 3}}, "model.head", "its fields are kind, classes"),
    ({"head": {"kind": "logistic"}}, "model.input.kind", 'use input.kind "scalar"'),
    ({"input": {"kind": "onehot", "start": 256}}, "model.input.start", "classes 0 … 255"),
    ({"input": {"kind": "onehot", "start": 1.5}}, "model.input.start", "an integer at least 0 or null"),
    ({"signal": {"domain": "mulaw"}}, "model.signal.domain", 'use "linear"'),
    ({"biases": {"skip": 1}}, "model.biases.skip", "true or false"),
    ({"speakers": {"count": 3}}, "model.speakers.channels", "give the vectors a width"),
    ({"conditioning": {"offset": 1}}, "model.conditioning.offset", "one of -1, 0"),
    ({"conditioning": {"network": [{"channels": 8, "activation": "gelu"}]}},
     "model.conditioning.network[0].activation", '"leaky_relu", "none", "relu", "tanh"'),
    ({"conditioning": {"network": [{"channels": 8}] * 65}}, "model.conditioning.network", "0 to 64 entries"),
    ({"conditioning": stages(scale=100)},
     "model.conditioning.upsampling.stages", "multiply to 100; their product must be hop_length 200"),
    ({"conditioning": stages(scale=-2)}, "model.conditioning.upsampling.stages[0].scale", "is -2"),
    ({"conditioning": stages(kernel_size=100)},
     "model.conditioning.upsampling.stages[0].kernel_size", "at least scale 200"),
    ({"conditioning": stages(freq_kernel_size=2)}, "model.conditioning.upsampling.stages[0].freq_kernel_size", "odd"),
    ({"conditioning": stages(image=True, channels=8)}, "model.conditioning.upsampling.stages[0].channels", "left out"),
    ({"conditioning": stages(kind="repeat")}, "model.conditioning.upsampling.stages[0].kernel_size", "must be odd"),
]  # fmt: skip


@pytest.mark.parametrize("change, path, said", REFUSED)
def test_a_refusal_names_the_path_and_what_is_possible(change, path, said):
    model = {key: value for key, value in {**MODEL, **change}.items() if value is not ...}
    outer = {"model": model}
    with pytest.raises(ConfigError) as refused:
        decode(Outer, outer, "config.json")
    message = str(refused.value)
    assert message.startswith(f"config.json: {path}: ")
    assert said in message and len(message) < 600 and "`" not in message


class Outer(cfg.Struct):
    model: WaveNetConfig


@pytest.mark.parametrize(
    "change, path, said",
    [
        ({"fmax": 9000.0}, "fmax", "not above half the sample rate, 8000"),
        ({"fmin": 7600.0}, "fmax", "above fmin"),
        ({"win_length": 2048}, "win_length", "at most n_fft = 1024"),
        ({"hop_length": 1200, "win_length": 1024}, "hop_length", "samples are skipped"),
        ({"normalize": "minmax01"}, "normalize", 'log "db"'),
        ({"log": "log2"}, "log", 'one of "db", "ln", "log10"'),
        ({"power": 3}, "power", "one of 1, 2"),
        ({"floor": 0}, "floor", "above 0 and below 1"),
        ({"fmax": math.inf}, "fmax", "is inf"),
        ({"ref_db": math.nan}, "ref_db", "finite number"),
    ],
)
def test_mel_recipes_are_checked_too(change, path, said):
    with pytest.raises(ConfigError, match=rf"^mel: {path}: ") as refused:
        decode(MelSpec, {**MEL, **change}, "mel")
    assert said in str(refused.value)


def test_hostile_values_are_shown_short():
    with pytest.raises(ConfigError) as refused:
        decode(WaveNetConfig, {**MODEL, "kernel_size": "x" * 100_000}, "config.json")
    assert len(str(refused.value)) < 200
    with pytest.raises(ConfigError) as refused:
        decode(WaveNetConfig, {**MODEL, "\x1b[31m" + "y" * 100_000: 1}, "config.json")
    assert len(str(refused.value)) < 600 and "\x1b" not in str(refused.value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_given_in_python_must_be_finite(value):
    with pytest.raises(ConfigError, match=r"slope: is .*finite"):
        cfg.FrameConv(channels=4, slope=value)


# --- round trip -------------------------------------------------------------------------------------------------

SMALL = st.integers(1, 40)
SCALES = st.floats(0.01, 16)
HEADS = st.one_of(
    st.builds(cfg.CategoricalHead, classes=st.integers(2, 65536), encode_offset=st.floats(0, 0.99)),
    st.builds(cfg.LogisticHead, components=st.integers(1, 256), log_scale_min=st.none() | st.floats(-100, 10)),
    st.builds(cfg.GaussianHead, components=st.integers(1, 256)),
)
CONVS = st.builds(
    cfg.FrameConv, channels=SMALL, kernel_size=st.integers(1, 64), padding=st.sampled_from(["replicate", "zero"]),
    activation=st.sampled_from(["none", "relu", "leaky_relu", "tanh"]), bias=st.booleans(),
)  # fmt: skip


@st.composite
def upsamplings(draw):
    """An upsampling network and the hop that belongs to it."""
    kind = draw(st.sampled_from(["hold", "linear", "stages"]))
    if kind == "hold":
        return cfg.Hold(), draw(st.integers(1, 8192))
    if kind == "linear":
        return cfg.Linear(frame_centre=draw(st.floats(0, 1))), draw(st.integers(1, 8192))
    made, hop = [], 1
    for scale in draw(st.lists(st.integers(1, 8), min_size=1, max_size=4)):
        image = draw(st.booleans())
        common = {
            "scale": scale, "image": image, "channels": None if image else draw(st.none() | SMALL),
            "freq_kernel_size": 2 * draw(st.integers(0, 31)) + 1 if image else 1, "bias": draw(st.booleans()),
        }  # fmt: skip
        if draw(st.booleans()):
            crop = draw(st.integers(0, 5))
            made.append(cfg.TransposedStage(kernel_size=scale + crop + draw(st.integers(0, 9)), crop=crop, **common))
        else:
            made.append(cfg.RepeatStage(kernel_size=2 * draw(st.integers(0, 20)) + 1, **common))
        hop *= scale
    return cfg.Stages(stages=tuple(made)), hop


@st.composite
def configs(draw):
    head, (upsampling, hop) = draw(HEADS), draw(upsamplings())
    onehot = isinstance(head, cfg.CategoricalHead) and draw(st.booleans())
    kind = cfg.OneHotInput if onehot else cfg.ScalarInput
    return WaveNetConfig(
        sample_rate=draw(st.integers(1000, 384_000)),
        hop_length=hop,
        n_mels=draw(st.integers(1, 512)),
        dilations=tuple(draw(st.lists(st.integers(1, 512), min_size=1, max_size=12))),
        kernel_size=draw(st.integers(2, 16)),
        residual_channels=draw(SMALL),
        gate_channels=2 * draw(SMALL),
        skip_channels=draw(SMALL),
        head_channels=draw(SMALL),
        residual_scale=draw(SCALES),
        skip_scale=draw(SCALES),
        skip_rule=draw(st.sampled_from(["sum", "running"])),
        input=kind(kernel_size=draw(st.integers(1, 16)), tanh=draw(st.booleans())),
        head=head,
        signal=cfg.Signal(domain="linear" if onehot else draw(st.sampled_from(["linear", "mulaw"]))),
        conditioning=cfg.Conditioning(
            standardise=draw(st.booleans()),
            network=tuple(draw(st.lists(CONVS, max_size=3))),
            upsampling=upsampling,
            offset=draw(st.sampled_from([0, -1])),
        ),
        speakers=draw(st.sampled_from([cfg.Speakers(), cfg.Speakers(channels=7), cfg.Speakers(channels=5, count=3)])),
        biases=cfg.Biases(**draw(st.dictionaries(st.sampled_from(cfg.Biases.__struct_fields__), st.booleans()))),
    )


@given(configs())
@settings(max_examples=150, deadline=None)
def test_encoding_and_decoding_give_the_same_network(config):
    again = decode(WaveNetConfig, encode(config), "config.json")
    assert again == config and encode(again) == encode(config)
    shapes = weight_shapes(config)
    assert list(shapes) == list(weight_shapes(again)) and weight_count(config) == sum(map(math.prod, shapes.values()))
    assert all(min(shape) >= 1 for shape in shapes.values())
    assert shapes["layers.0.conditioning.weight"] == (config.gate_channels, config.conditioning_channels)
    assert shapes["head.out.weight"][0] == config.out_channels


# --- derived sizes ----------------------------------------------------------------------------------------------


def test_derived_sizes():
    config = decode(WaveNetConfig, MODEL, "")
    assert (config.n_layers, config.out_channels, config.in_channels, config.start) == (3, 256, 256, 128)
    assert config.receptive_field == 2 * (1 + 2 + 4) + 1
    assert config.conditioning_channels == 80
    mol = decode(WaveNetConfig, {**MODEL, "input": {"kind": "scalar"}, "head": {"kind": "logistic"}}, "")
    assert (mol.out_channels, mol.in_channels, mol.start) == (30, 1, 0.0)
    one = decode(WaveNetConfig, {**MODEL, "input": {"kind": "scalar"}, "head": {"kind": "gaussian"}}, "")
    assert one.out_channels == 2


def test_the_last_layer_has_no_residual():
    shapes = weight_shapes(decode(WaveNetConfig, MODEL, ""))
    assert "layers.1.residual.weight" in shapes and "layers.2.residual.weight" not in shapes


def test_fingerprints_differ_with_every_field():
    """The value is pinned: fingerprints live in mel files and checkpoints, so the same recipe must keep its own."""
    base = decode(MelSpec, MEL, "")
    assert base.fingerprint == decode(MelSpec, {**MEL, "fmin": 0.0, "log": "ln"}, "").fingerprint == PINNED
    assert MelSpec(**{**MEL, "fmax": 7600}).fingerprint == PINNED
    changes = [
        {"n_fft": 2048}, {"win_length": 801}, {"fmin": 1.0}, {"fmax": 7601.0}, {"center": False}, {"power": 2},
        {"pad_mode": "constant"}, {"mel_scale": "htk"}, {"mel_norm": "none"}, {"log": "log10"}, {"floor": 1e-4},
        {"ref_db": 1.0}, {"min_db": -90.0}, {"normalize": "meanvar"}, {"preemphasis": 0.5}, {"epsilon": 1e-9},
        {"n_mels": 79}, {"hop_length": 201}, {"sample_rate": 16001},
    ]  # fmt: skip
    prints = {base.fingerprint} | {decode(MelSpec, {**MEL, **change}, "").fingerprint for change in changes}
    assert len(prints) == 1 + len(changes)


PINNED = "10092600dadd"
