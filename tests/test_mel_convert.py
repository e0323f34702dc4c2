"""`convert_mel` against mels computed by both recipes, and what it refuses."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from msgspec.structs import replace
from tolerances import CONVERTED

from wavenet_fast import InputError, MelSpec, ShapeError, Vocoder, convert_mel, mel_spectrogram
from wavenet_fast.checkpoint import Checkpoint
from wavenet_fast.mel import MEL_PRESETS
from wavenet_fast.mel_convert import AFTER_THE_LOGARITHM, KINDS, same_linear_mel, with_kind

M = 20
BASE = MelSpec(sample_rate=8000, n_fft=256, hop_length=64, win_length=200, n_mels=M, fmax=4000, floor=1e-5)
UNIT = {"log": "db", "ref_db": 20.0, "normalize": "minmax01"}
FORMS = {
    "ln": BASE,
    "log10": replace(BASE, log="log10"),
    "decibels": replace(BASE, log="db"),
    "decibels less 16": replace(BASE, log="db", ref_db=16.0),
    "unit": replace(BASE, **UNIT, min_db=-120.0),
    "normalised": replace(BASE, log="log10", normalize="meanvar"),
}
RNG = np.random.default_rng(0)
WAV = (RNG.standard_normal(8000) * np.linspace(1e-6, 0.1, 8000)).astype(np.float32)
STATISTICS = {"normalised": (RNG.normal(-3, 0.3, M), RNG.uniform(0.5, 1.5, M))}
NEPERS = {"ln": 1.0, "log10": np.log(10), "db": np.log(10) / 20}


def by_recipe(name: str, power: int = 1, **changes: float) -> tuple[MelSpec, np.ndarray]:
    spec = replace(FORMS[name], power=power, **changes)
    return spec, mel_spectrogram(WAV, spec, *STATISTICS.get(name, ()))


def nepers(spec: MelSpec, name: str, difference: np.ndarray) -> np.ndarray:
    """Differences of a recipe's values, (M, F), as differences of ln of a magnitude."""
    unit = NEPERS[spec.log] / (spec.power if spec.log != "db" else 1)
    if name == "unit":
        unit *= -spec.min_db
    return difference * unit * (STATISTICS[name][1][:, None] if name == "normalised" else 1)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("src, dst", list(itertools.product(FORMS, FORMS)))
def test_what_is_converted_is_what_the_other_recipe_makes(src, dst, power):
    source, mel = by_recipe(src, power)
    target, expected = by_recipe(dst, power)
    made = convert_mel(mel, source, target, STATISTICS.get(src), STATISTICS.get(dst))
    assert made.dtype == np.float32 and made.shape == expected.shape
    assert np.ptp(expected) > 0.1
    difference = np.abs(nepers(target, dst, made.astype(np.float64) - expected))
    assert difference.max() <= CONVERTED


def test_a_higher_floor_is_applied_and_a_lower_one_is_not_invented():
    low, mel = by_recipe("ln", floor=1e-7)
    high, expected = by_recipe("log10", floor=1e-2)
    assert 0.05 < (expected == expected.min()).mean() < 0.95
    np.testing.assert_allclose(convert_mel(mel, low, high), expected, rtol=0, atol=CONVERTED)
    back = convert_mel(expected, high, low)
    np.testing.assert_allclose(back, np.maximum(mel, np.log(1e-2)), rtol=0, atol=3 * CONVERTED)


def test_values_beyond_the_unit_range_are_at_its_ends():
    spec = replace(BASE, **UNIT)
    mel = np.full((M, 3), 0.5, np.float32)
    mel[0] = [-0.25, 1.5, 1.0]
    made = convert_mel(mel, spec, "db")
    np.testing.assert_allclose(made[0], [-80, 20, 20], rtol=1e-6)
    np.testing.assert_allclose(made[1:], -30, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_short_names_stand_for_the_other_recipe(kind):
    _, mel = by_recipe("ln")
    there = convert_mel(mel, BASE, kind)
    np.testing.assert_array_equal(there, convert_mel(mel, BASE, with_kind(BASE, kind)))
    np.testing.assert_array_equal(convert_mel(there, kind, BASE), convert_mel(there, with_kind(BASE, kind), BASE))
    assert with_kind(FORMS["normalised"], kind).normalize == ("minmax01" if kind == "unit" else "none")


def test_presets_and_voices_stand_for_their_recipes(make_checkpoint):
    mel = np.random.default_rng(1).normal(-5, 2, (80, 7)).astype(np.float32)
    mean, scale = np.linspace(-3, -2, 80), np.linspace(0.5, 1, 80)
    made = convert_mel(mel, "ln", "pwg-22k", dst_statistics=(mean, scale))
    np.testing.assert_allclose(made, (mel / np.log(10) - mean[:, None]) / scale[:, None], rtol=0, atol=1e-5)
    plain = make_checkpoint()
    spec = replace(plain.mel, log="log10", normalize="meanvar")
    moments = {"mel.mean": np.full(5, 2, np.float32), "mel.scale": np.full(5, 4, np.float32)}
    voc = Vocoder(Checkpoint(plain.config, spec, {**plain.weights, **moments}), "cpu", dtype="fp32")
    small = np.full((5, 3), np.log(10), np.float32)
    np.testing.assert_allclose(convert_mel(small, "ln", voc), np.full((5, 3), -0.25), rtol=1e-6)
    np.testing.assert_allclose(convert_mel(convert_mel(small, "ln", voc), voc, "ln"), small, rtol=1e-6)
    assert Vocoder(plain, "cpu", dtype="fp32").mel_statistics is None


def test_batches_layouts_and_tensors_leave_as_they_came():
    torch = pytest.importorskip("torch", reason="tensors need PyTorch")
    _, mel = by_recipe("ln")
    expected = convert_mel(mel, "ln", FORMS["decibels"])
    batch = np.stack([mel, mel + np.float32(1)])
    np.testing.assert_array_equal(convert_mel(batch, "ln", FORMS["decibels"])[0], expected)
    turned = convert_mel(mel.T, "ln", FORMS["decibels"], layout="tc")
    np.testing.assert_array_equal(turned.T, expected)
    tensor = convert_mel(torch.from_numpy(mel).double(), "ln", FORMS["decibels"])
    assert tensor.dtype == torch.float32
    np.testing.assert_array_equal(tensor.numpy(), expected)
    assert convert_mel(mel[:, :0], "ln", FORMS["log10"]).shape == (M, 0)


CHANGED = {
    "sample_rate": 8192, "n_fft": 512, "hop_length": 65, "win_length": 201, "n_mels": 21, "fmin": 20.0, "fmax": 3900.0,
    "center": False, "pad_mode": "constant", "mel_scale": "htk", "mel_norm": "none", "epsilon": 1e-9, "power": 2,
    "preemphasis": 0.9,
}  # fmt: skip


def test_every_field_is_either_convertible_or_refused():
    assert {*CHANGED, *AFTER_THE_LOGARITHM, "window"} == set(MelSpec.__struct_fields__)


@pytest.mark.parametrize("field", CHANGED)
def test_what_lies_before_the_logarithm_is_refused_by_name(field):
    with pytest.raises(InputError, match=f"{field} is .*, wanted {CHANGED[field]}.*anew from the sound"):
        convert_mel(np.zeros((M, 3), np.float32), BASE, replace(BASE, log="db", **{field: CHANGED[field]}))


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ((np.zeros((M, 3), np.float32), "log10", "ln"), InputError, "neither says anything of the bands"),
        ((np.zeros((M, 3), np.float32), "log2", BASE), InputError, "src is 'log2'.*db-20.*hifigan-22k"),
        ((np.zeros((M, 3), np.float32), BASE, 3), InputError, "dst is int"),
        ((np.zeros((3, M), np.float32), "db", BASE), ShapeError, "looks transposed"),
        ((np.zeros((M, 3), np.int16), "db", BASE), InputError, "int16"),
        ((np.full((M, 3), np.nan, np.float32), "db", BASE), InputError, "frame 0, band 0"),
        ((np.zeros((M, 3), np.float32), FORMS["normalised"], BASE), InputError, "no mean was given"),
        ((np.zeros((M, 3), np.float32), FORMS["normalised"], BASE, (np.zeros(3), np.ones(M))), ShapeError, "mean has"),
        (
            (np.zeros((M, 3), np.float32), FORMS["normalised"], BASE, (np.zeros(M), np.zeros(M))),
            InputError, "scale positive",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_in_a_sentence(arguments, error, words):
    with pytest.raises(error, match=words):
        convert_mel(*arguments)


@pytest.mark.parametrize("pair", [("db", "elsewhere"), ("elsewhere", "db")])
def test_what_is_made_elsewhere_cannot_be_converted(pair):
    src, dst = (replace(BASE, normalize=p) if p == "elsewhere" else p for p in pair)
    with pytest.raises(InputError, match=f'{"dst" if src == "db" else "src"} has normalize "elsewhere"'):
        convert_mel(np.zeros((M, 3), np.float32), src, dst)
    assert not same_linear_mel(replace(BASE, normalize="elsewhere"), BASE)


def test_preset_names_are_no_short_names():
    assert not set(KINDS) & set(MEL_PRESETS)
