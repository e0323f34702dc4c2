"""Sampling, µ-law and likelihood against independent formulas in double precision."""

import math
from statistics import NormalDist

import numpy as np
import pytest

from wavenet_fast.config import CategoricalHead, GaussianHead, LogisticHead
from wavenet_fast.errors import InputError, ShapeError
from wavenet_fast.rng import uniforms
from wavenet_fast.sampling import (
    cdf_edge_distance,
    mulaw_decode,
    mulaw_encode,
    nll_bits,
    normal_quantile,
    out_channels,
    sample,
)

HEADS = [
    CategoricalHead(classes=200),
    LogisticHead(components=1),
    LogisticHead(components=10),
    GaussianHead(components=1),
    GaussianHead(components=3),
]


def four(u0, u1=0.5):
    return np.array([u0, u1, np.nan, np.nan], np.float32)  # words 2 and 3 must not be read


def logits_for(head, n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, out_channels(head))).astype(np.float32) - 1


# --- drawing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_categorical_is_the_inverse_of_the_cdf(temperature):
    head = CategoricalHead(classes=200)
    x, u = 4 * logits_for(head, 3000), uniforms(3, np.arange(3000))
    y = sample(x, u, head, temperature)
    p = np.exp((x - x.max(-1, keepdims=True)).astype(np.float64) / temperature)
    edges = np.concatenate([np.zeros((3000, 1)), np.cumsum(p / p.sum(-1, keepdims=True), -1)], -1)
    rows = np.arange(3000)
    assert y.dtype == np.int64 and len(np.unique(y)) > 150
    assert (edges[rows, y] <= u[:, 0] + 1e-5).all() and (u[:, 0] <= edges[rows, y + 1] + 1e-5).all()
    exact = np.sum(edges[:, 1:-1] <= u[:, :1], -1)
    assert np.mean(exact != y) < 1e-3


def test_ties_and_empty_classes():
    """s_c ≤ u·total passes a class: a uniform on an edge belongs above it, and weightless classes are never drawn."""
    head = CategoricalHead(classes=4)
    equal = np.zeros(4, np.float32)
    assert [int(sample(equal, four(u), head)) for u in (0, 0.25, 0.5, 0.75, 0.99999994)] == [0, 1, 2, 3, 3]
    x = np.array([-np.inf, 0, -np.inf, 0], np.float32)
    assert [int(sample(x, four(u), head)) for u in (0, 0.49, 0.5, 0.99)] == [1, 1, 3, 3]


def test_prefix_sums_are_single_precision_in_class_order():
    """After 1.0, weights of 2^-25 vanish one by one in fp32 (and would not if added together first)."""
    head = CategoricalHead(classes=1026)
    x = np.full(1026, -25 * math.log(2), np.float32)
    x[0] = 0
    assert sample(x, four(0.99999994), head) == 0
    assert sample(x[::-1].copy(), four(1e-5), head) < 1025  # small ones first do add up


@pytest.mark.parametrize("head", HEADS)
def test_shapes_and_independence_of_the_batch(head):
    x, u = logits_for(head, 12), uniforms(5, np.arange(12))
    together = sample(x.reshape(3, 4, -1), u.reshape(3, 4, 4), head)
    assert together.shape == (3, 4)
    assert together.ravel().tolist() == [sample(row, v, head).tolist() for row, v in zip(x, u, strict=True)]


@pytest.mark.parametrize("kind", [LogisticHead, GaussianHead])
def test_one_component_is_mean_plus_scale_times_quantile(kind):
    head, mean, log_scale = kind(components=1), 0.1, -3.0
    for v in (0.0, 1e-5, 0.001, 0.3, 0.5, 0.9, 0.99999994):
        c = min(max(v, 1e-5), 1 - 1e-5)
        quantile = math.log(c / (1 - c)) if kind is LogisticHead else NormalDist().inv_cdf(c)
        for temperature in (1.0, 0.5):
            y = sample(np.array([mean, log_scale], np.float32), four(0.7, v), head, temperature)
            expected = mean + math.exp(log_scale) * temperature * quantile
            # v = 1 - 1e-5 is only known to 6e-8 in single precision, which moves the quantile by up to 0.3 %.
            assert y == pytest.approx(expected, abs=3e-3 * abs(expected - mean) + 1e-6)


@pytest.mark.parametrize("kind", [LogisticHead, GaussianHead])
def test_word_0_chooses_the_component_and_the_floor_holds(kind):
    head = kind(components=3, log_scale_min=-7.0)
    x = np.array([math.log(0.2), math.log(0.3), math.log(0.5), -0.5, 0.0, 0.5, -50, -50, -50], np.float32)
    assert [float(sample(x, four(u), head)) for u in (0.1, 0.3, 0.6)] == [-0.5, 0.0, 0.5]
    y = sample(x, four(0.3, 0.9), head)
    quantile = math.log(9) if kind is LogisticHead else NormalDist().inv_cdf(0.9)
    assert y == pytest.approx(math.exp(-7) * quantile, rel=1e-5)
    assert float(sample(np.array([0, 0, 0, 5, 5, 5, 0, 0, 0], np.float32), four(0.1), head)) == 1.0


@pytest.mark.parametrize("kind", [LogisticHead, GaussianHead])
@pytest.mark.parametrize("log_scale", [-1e30, -200, 200, 1e30])
@pytest.mark.parametrize("v", [0.0, 0.5, 0.99999994])
def test_absurd_scales_still_give_a_sample(kind, log_scale, v):
    y = sample(np.array([0.25, log_scale], np.float32), four(0, v), kind(components=1), temperature=1e30)
    assert -1 <= y <= 1


def test_normal_quantile_agrees_with_double_precision():
    v = np.concatenate([np.geomspace(1e-5, 0.5, 3000), 1 - np.geomspace(1e-5, 0.5, 3000)]).astype(np.float32)
    exact = np.array([NormalDist().inv_cdf(float(x)) for x in v])
    assert np.max(np.abs(normal_quantile(v) - exact)) < 2e-6
    assert normal_quantile(0.5) == 0 and normal_quantile(v).dtype == np.float32


@pytest.mark.parametrize("head", HEADS)
def test_frequencies_follow_the_likelihood(head):
    """Sampler and likelihood are written independently; drawn histograms must match the probabilities."""
    n, levels = 40_000, 200 if isinstance(head, CategoricalHead) else 41
    x = logits_for(head, 1, seed=4)
    y = sample(np.repeat(x, n, 0), uniforms(9, np.arange(n)), head)
    grid = np.arange(levels) if isinstance(head, CategoricalHead) else np.linspace(-1, 1, levels)
    p = 2.0 ** -nll_bits(np.repeat(x, levels, 0), grid, head, levels)
    cells = y if isinstance(head, CategoricalHead) else np.rint((y + 1) / 2 * (levels - 1)).astype(int)
    counts = np.bincount(cells, minlength=levels)
    big = p * n > 5
    assert p.sum() == pytest.approx(1, abs=1e-9)
    chi_squared = np.sum((counts[big] - n * p[big]) ** 2 / (n * p[big]))
    assert chi_squared < big.sum() + 5 * math.sqrt(2 * big.sum())


# --- distance to an edge ----------------------------------------------------------------------------------------


def test_cdf_edge_distance():
    x = np.log(np.array([0.1, 0.2, 0.3, 0.4], np.float32))
    assert cdf_edge_distance(x, 0.29) == pytest.approx(0.01, abs=1e-7)
    assert cdf_edge_distance(x, 0.99) == pytest.approx(0.39, abs=1e-7)  # 1 is no edge: nothing lies above it
    assert cdf_edge_distance(x, 0.29, between=(1, 2)) == pytest.approx(0.01, abs=1e-7)
    assert cdf_edge_distance(x, 0.29, between=(3, 1)) == pytest.approx(0.31, abs=1e-7)
    assert cdf_edge_distance(x, 0.29, between=(2, 2)) == 0
    sharp = np.array([0.2, 0.8]) ** 2
    assert cdf_edge_distance(np.log([0.2, 0.8]), 0.5, 0.5) == pytest.approx(0.5 - sharp[0] / sharp.sum(), abs=1e-12)
    both = cdf_edge_distance(np.stack([x, x]), np.array([0.29, 0.99]), between=(np.array([1, 3]), np.array([1, 2])))
    assert both == pytest.approx([0, 0.39], abs=1e-7)


# --- µ-law ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mu", [1, 199, 255, 1023, 65535])
def test_mulaw_round_trip(mu):
    classes = np.arange(mu + 1)
    assert (mulaw_encode(mulaw_decode(classes, mu), mu) == classes).all()


def test_mulaw_conventions():
    assert mulaw_encode([-1, -5, 1, 5]).tolist() == [0, 0, 255, 255]
    assert mulaw_encode(0.0) == 128 and mulaw_encode(0.0, offset=0.0) == 127
    assert mulaw_decode([0, 255]).tolist() == [-1.0, 1.0]
    assert mulaw_decode(128, offset=0.5) == 0.0
    x = 0.1
    f = math.log(1 + 255 * x) / math.log(256)
    assert mulaw_encode(x) == math.floor((f + 1) / 2 * 255 + 0.5)
    assert mulaw_decode(200) == pytest.approx((256 ** (2 * 200 / 255 - 1) - 1) / 255, rel=1e-6)
    with pytest.raises(InputError, match=r"NaN"):
        mulaw_encode([0.0, math.nan])


# --- likelihood -------------------------------------------------------------------------------------------------


def test_categorical_bits():
    x = np.log(np.array([[0.5, 0.25, 0.25], [0.125, 0.875, 1e-30]]))
    assert nll_bits(x, np.array([1, 0]), CategoricalHead(classes=3)).tolist() == pytest.approx([2, 3])
    assert nll_bits(1000 + x, np.array([1, 0]), CategoricalHead(classes=3)).tolist() == pytest.approx([2, 3])
    assert nll_bits(np.array([0.0, -np.inf]), np.array(1), CategoricalHead(classes=2)) == math.inf


@pytest.mark.parametrize("kind", [LogisticHead, GaussianHead])
@pytest.mark.parametrize("log_scale", [-12.0, -7.0, -3.0, 0.0, 5.0])
def test_probabilities_of_all_levels_sum_to_one(kind, log_scale):
    grid = np.linspace(-1, 1, 65536)
    x = np.broadcast_to(np.array([0.3, log_scale]), (65536, 2))
    bits = nll_bits(x, grid, kind(components=1))
    assert np.exp2(-bits).sum() == pytest.approx(1, abs=1e-9) and bits.min() >= -1e-9


def gaussian_mass_by_quadrature(a, b):
    """ln ∫_a^b φ by Simpson's rule on the integrand scaled by its maximum."""
    t = np.linspace(a, b, 20_001)
    log_density = -(t**2) / 2 - math.log(2 * math.pi) / 2
    top = log_density.max()
    f = np.exp(log_density - top)
    return top + math.log((b - a) / 20_000 / 3 * (f[0] + f[-1] + 4 * f[1:-1:2].sum() + 2 * f[2:-1:2].sum()))


@pytest.mark.parametrize("z", [-300.0, -35.0, -29.0, -8.0, -1.0, 0.0, 0.2, 3.0, 31.0, 250.0])
@pytest.mark.parametrize("width", [3e-5, 9e-4, 0.02, 0.3])
def test_gaussian_bins_near_and_far(z, width):
    """A bin of `width` standard deviations, z away from the mean: both tails, narrow and wide."""
    scale = 2 / 65535 / width
    x = np.array([-z * scale, math.log(scale)])  # target 0
    expected = gaussian_mass_by_quadrature(z - width / 2, z + width / 2)
    assert nll_bits(x, np.array(0.0), GaussianHead()) == pytest.approx(-expected / math.log(2), rel=1e-9)


@pytest.mark.parametrize("z", [-700.0, -50.0, -1.0, 0.0, 40.0, 600.0])
@pytest.mark.parametrize("width", [3e-5, 0.3, 50.0])
def test_logistic_bins_near_and_far(z, width):
    scale = 2 / 65535 / width
    x = np.array([-z * scale, math.log(scale)])
    t = np.linspace(z - width / 2, z + width / 2, 200_001)
    log_density = -np.abs(t) - 2 * np.log1p(np.exp(-np.abs(t)))
    mass = np.trapezoid(np.exp(log_density - log_density.max()), t) if hasattr(np, "trapezoid") else None
    if mass is None:  # NumPy before 2
        mass = np.trapz(np.exp(log_density - log_density.max()), t)
    expected = log_density.max() + math.log(mass)
    assert nll_bits(x, np.array(0.0), LogisticHead(components=1)) == pytest.approx(-expected / math.log(2), rel=1e-6)


@pytest.mark.parametrize("kind", [LogisticHead, GaussianHead])
@pytest.mark.parametrize("log_scale", [-1e30, -200.0, 200.0, 1e30])
def test_absurd_scales_still_have_a_likelihood(kind, log_scale):
    """Nothing but the mean's own bin where the scale is next to 0; half in either open bin where it is huge."""
    x = np.broadcast_to(np.array([0.0, log_scale]), (3, 2))
    bits = nll_bits(x, np.array([-1.0, 0.0, 1.0]), kind(components=1), 3)
    if log_scale > 0:
        assert bits[0] == bits[2] == pytest.approx(1) and bits[1] > 250
    else:
        assert bits[1] == pytest.approx(0) and bits[0] == bits[2] > 1e20


def test_mixture_bits_are_the_weighted_sum():
    head, levels = GaussianHead(components=2), 256
    x = np.array([math.log(0.25), math.log(0.75), 0.1, -0.2, -2.0, -1.0])
    parts = [nll_bits(np.array([x[2 + i], x[4 + i]]), np.array(0.05), GaussianHead(), levels) for i in range(2)]
    expected = -math.log2(0.25 * 2 ** -parts[0] + 0.75 * 2 ** -parts[1])
    assert nll_bits(x, np.array(0.05), head, levels) == pytest.approx(expected, rel=1e-12)


def test_targets_beyond_the_clamp_count_as_the_clamp():
    x = np.broadcast_to(np.array([0.9, -1.0]), (2, 2))
    bits = nll_bits(x, np.array([1.0, 1.7]), LogisticHead(components=1))
    exact = math.log2(1 + math.exp((1 - 1 / 65535 - 0.9) * math.e))
    assert bits[0] == bits[1] == pytest.approx(exact, rel=1e-12)


# --- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan, math.inf, True, "1", None])
def test_temperature_must_be_positive_and_finite(temperature):
    with pytest.raises(InputError, match=r"temperature"):
        sample(np.zeros(256, np.float32), four(0), CategoricalHead(), temperature)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_unusable_logits_are_refused(head, bad):
    with pytest.raises(InputError):
        x = np.zeros((2, out_channels(head)), np.float32)
        x[1, : None if bad == -math.inf else 1] = bad
        sample(x, np.stack([four(0), four(0)]), head)


def test_wrong_shapes_and_targets_are_explained():
    with pytest.raises(ShapeError, match=r"256"):
        sample(np.zeros(255, np.float32), four(0), CategoricalHead())
    with pytest.raises(ShapeError, match=r"uniforms"):
        sample(np.zeros((2, 256), np.float32), four(0), CategoricalHead())
    with pytest.raises(ShapeError, match=r"target"):
        nll_bits(np.zeros((2, 256)), np.zeros(3, int), CategoricalHead())
    for target in (np.array(0.5), np.array(-1), np.array(256)):
        with pytest.raises(InputError, match=r"0 … 255"):
            nll_bits(np.zeros(256), target, CategoricalHead())
    with pytest.raises(InputError, match=r"NaN"):
        nll_bits(np.zeros(2), np.array(math.nan), GaussianHead())
