"""Sampling as a pure function of logits and uniforms, µ-law, and likelihood in bits. NumPy; the definition that the
engines are tested against.

Layouts: A classes for a categorical head; [component logits | means | log scales] of n each for a mixture of n
components, [mean | log scale] for one.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .config import CategoricalHead, GaussianHead, LogisticHead
from .errors import InputError, ShapeError

Head = CategoricalHead | LogisticHead | GaussianHead

_V_MIN, _V_MAX = np.float32(1e-5), np.float32(1 - 1e-5)
_FLOAT_MAX = np.finfo(np.float32).max
_LN2 = math.log(2.0)

# M. Giles, "Approximating the erfinv function", GPU Computing Gems Jade Edition (2011), single precision, highest
# power first: for w = −ln(1 − x²) below 5 in powers of w − 2.5, from there on in powers of √w − 3.
GILES_CENTRE = np.array(
    [2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503, -0.00417768164,
     0.246640727, 1.50140941], np.float32
)  # fmt: skip
GILES_TAIL = np.array(
    [-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613, 0.00943887047,
     1.00167406, 2.83297682], np.float32
)  # fmt: skip


# --- drawing ----------------------------------------------------------------------------------------------------


def sample(logits: ArrayLike, uniforms: ArrayLike, head: Head, temperature: float = 1.0) -> NDArray[Any]:
    """The next sample of every stream.

    logits    float32 (..., A)
    uniforms  float32 (..., 4) in [0, 1): word 0 chooses the class or component, word 1 the value inside a component
    returns   int64 (...) classes for a categorical head, else float32 (...) values in −1 … 1, which is also what is
              fed back

    Temperature divides the class and component logits and multiplies the scales. Raises `InputError` for NaN or +∞
    logits, for logits that are all −∞, and for a temperature that is not positive and finite.
    """
    x, u = np.asarray(logits, np.float32), np.asarray(uniforms, np.float32)
    check_temperature(temperature)
    _check_logits(x, head)
    if u.shape != (*x.shape[:-1], 4):
        raise ShapeError(f"uniforms have shape {u.shape}; logits of shape {x.shape} need {(*x.shape[:-1], 4)}")
    if isinstance(head, CategoricalHead):
        return _choose(x, u[..., 0], temperature)
    weights, means, log_scales = _mixture(x, head)
    if weights is not None:
        chosen = _choose(weights, u[..., 0], temperature)[..., None]
        means, log_scales = np.take_along_axis(means, chosen, -1), np.take_along_axis(log_scales, chosen, -1)
    mean, log_scale = means[..., 0], log_scales[..., 0]
    with np.errstate(over="ignore"):
        # The largest float instead of infinity: infinity times a quantile of exactly 0 would be NaN.
        scale = np.minimum(np.exp(log_scale) * np.float32(temperature), _FLOAT_MAX)
        v = np.clip(u[..., 1], _V_MIN, _V_MAX)
        quantile = np.log(v) - np.log(1 - v) if isinstance(head, LogisticHead) else normal_quantile(v)
        value: NDArray[np.float32] = np.clip(mean + scale * quantile, np.float32(-1), np.float32(1))
    return value


def _choose(logits: NDArray[np.float32], u: NDArray[np.float32], temperature: float) -> NDArray[np.int64]:
    """Number of classes below the last whose prefix sum, in fp32 and class order, is at most u · total."""
    weights = np.exp((logits - logits.max(axis=-1, keepdims=True)) / np.float32(temperature))
    sums = np.cumsum(weights, axis=-1, dtype=np.float32)
    classes: NDArray[np.int64] = (sums[..., :-1] <= u[..., None] * sums[..., -1:]).sum(axis=-1, dtype=np.int64)
    return classes


def normal_quantile(v: ArrayLike) -> NDArray[np.float32]:
    """Φ⁻¹(v) = √2 · erfinv(2v − 1) in fp32 by Giles' polynomials; v float32 (...) in (0, 1).

    1 − x² is computed as 4·v·(1 − v), which keeps its precision in both tails where (1 − x)(1 + x) would not."""
    v = np.asarray(v, np.float32)
    w = -np.log(np.float32(4) * v * (1 - v))
    centre, tail = w - np.float32(2.5), np.sqrt(np.maximum(w, 0)) - np.float32(3)
    p = np.where(w < 5, _horner(GILES_CENTRE, centre), _horner(GILES_TAIL, tail))
    return np.float32(math.sqrt(2)) * p * (np.float32(2) * v - 1)


def _horner(coefficients: NDArray[np.float32], x: NDArray[np.float32]) -> NDArray[np.float32]:
    total = np.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        total = total * x + c
    return total


def cdf_edge_distance(
    logits: ArrayLike, u0: ArrayLike, temperature: float = 1.0, between: tuple[ArrayLike, ArrayLike] | None = None
) -> NDArray[np.float64]:
    """How far the uniform lies from the CDF edges of a categorical distribution, in float64.

    logits (..., A), u0 (...) → (...): the distance to the nearest edge. With `between` = (classes a, classes b), each
    (...), the distance to the farthest edge that separates a from b instead (0 where a = b): two samplers may differ
    by a against b only if their rounding moves all of those edges across the uniform.
    """
    x = np.asarray(logits, np.float64)
    weights = np.exp((x - x.max(axis=-1, keepdims=True)) / temperature)
    sums = np.cumsum(weights, axis=-1)
    distance = np.abs(sums[..., :-1] / sums[..., -1:] - np.asarray(u0, np.float64)[..., None])
    answer: NDArray[np.float64]
    if between is None:
        answer = distance.min(axis=-1)
        return answer
    a, b = (np.asarray(c)[..., None] for c in between)
    edge = np.arange(x.shape[-1] - 1)
    separates = (edge >= np.minimum(a, b)) & (edge < np.maximum(a, b))
    answer = np.where(separates, distance, 0.0).max(axis=-1)
    return answer


# --- µ-law ------------------------------------------------------------------------------------------------------


def compand(x: ArrayLike, mu: int) -> NDArray[np.float64]:
    """f(x) = sign(x) · ln(1 + µ|x|) / ln(1 + µ), float64 (ITU-T G.711's curve, continuous)."""
    x = np.asarray(x, np.float64)
    companded: NDArray[np.float64] = np.sign(x) * np.log1p(mu * np.abs(x)) / math.log1p(mu)
    return companded


def expand(y: ArrayLike, mu: int) -> NDArray[np.float64]:
    """f⁻¹(y) = sign(y) · ((1 + µ)^|y| − 1) / µ, float64."""
    y = np.asarray(y, np.float64)
    expanded: NDArray[np.float64] = np.sign(y) * np.expm1(np.abs(y) * math.log1p(mu)) / mu
    return expanded


def mulaw_encode(x: ArrayLike, mu: int = 255, offset: float = 0.5) -> NDArray[np.int64]:
    """Classes ⌊(f(x) + 1)/2 · µ + offset⌋ in 0 … µ of samples x (...); beyond ±1 they count as ±1."""
    y = (compand(np.clip(np.asarray(x, np.float64), -1, 1), mu) + 1) / 2 * mu + offset
    if np.isnan(y).any():
        raise InputError("the signal holds NaN; µ-law classes exist for numbers only")
    return np.clip(np.floor(y), 0, mu).astype(np.int64)


def mulaw_decode(classes: ArrayLike, mu: int = 255, offset: float = 0.0) -> NDArray[np.float32]:
    """Samples f⁻¹(2·(class − offset)/µ − 1) of classes (...). With an offset the lowest class lies just below −1."""
    return expand(2 * (np.asarray(classes, np.float64) - offset) / mu - 1, mu).astype(np.float32)


# --- likelihood -------------------------------------------------------------------------------------------------


def nll_bits(logits: ArrayLike, target: ArrayLike, head: Head, levels: int = 65536) -> NDArray[np.float64]:
    """−log₂ P(target) of every sample, in float64.

    logits  (..., A);  target (...): classes for a categorical head, else values in the model's own domain
    A continuous head is charged for the probability of the bin target ± 1/(levels − 1). The first and last bins are
    open, and targets beyond ±1 count as ±1, because generation clamps there; over the `levels` values −1 … 1 the
    probabilities thus sum to 1. Raises `InputError` for NaN and for classes that do not exist.
    """
    x, y = np.asarray(logits, np.float64), np.asarray(target)
    _check_logits(x, head)
    if y.shape != x.shape[:-1]:
        raise ShapeError(f"target has shape {y.shape}; logits of shape {x.shape} need {x.shape[:-1]}")
    if isinstance(head, CategoricalHead):
        if y.dtype.kind not in "iu" or (y.size and not (y.min() >= 0 and y.max() < head.classes)):
            raise InputError(f"targets of this head are integer classes 0 … {head.classes - 1}; use mulaw_encode")
        chosen = np.take_along_axis(x, y[..., None].astype(np.int64), -1)[..., 0]
        return (_logsumexp(x) - chosen) / _LN2
    if np.isnan(y).any():
        raise InputError("the target signal holds NaN; its likelihood is defined for numbers only")
    half = 1 / (levels - 1)
    centre = np.clip(y.astype(np.float64), -1, 1)[..., None]
    weights, means, log_scales = _mixture(x, head)
    scale = np.exp(np.clip(log_scales, -300, 300))  # beyond these, squares of distances in scales overflow
    lower = np.where(centre - half < -1, -np.inf, (centre - means - half) / scale)
    upper = np.where(centre + half > 1, np.inf, (centre - means + half) / scale)
    mass = _log_logistic_mass if isinstance(head, LogisticHead) else _log_normal_mass
    log_mass = mass(lower, upper, np.where(np.isfinite(lower + upper), 2 * half / scale, np.inf))
    if weights is not None:
        log_mass = log_mass + weights - _logsumexp(weights)[..., None]
    return -_logsumexp(log_mass) / _LN2


def _log_logistic_mass(a: NDArray[np.float64], b: NDArray[np.float64], width: NDArray[np.float64]) -> NDArray[Any]:
    """ln(σ(b) − σ(a)), b − a = width, from σ(b) − σ(a) = σ(b)·σ(−a)·(1 − e^−width): no cancellation anywhere."""
    return -np.logaddexp(0, -b) - np.logaddexp(0, a) + np.log(-np.expm1(-width))


def _log_normal_mass(a: NDArray[np.float64], b: NDArray[np.float64], width: NDArray[np.float64]) -> NDArray[Any]:
    """ln(Φ(b) − Φ(a)), b − a = width."""
    # Mirrored to the left half, where Φ keeps its relative precision.
    mirror = a + b > 0
    a, b = np.where(mirror, -b, a), np.where(mirror, -a, b)
    # Narrow bins: width · density at the middle, with the first term of Taylor's series; the next is below 1e-11.
    narrow = width * np.maximum(1, -a) < 0.01
    a_wide, b_wide = np.where(narrow, -1.0, a), np.where(narrow, 1.0, b)
    low, high = _log_normal_cdf(a_wide), _log_normal_cdf(b_wide)
    wide = high + np.log(-np.expm1(low - high))
    w, middle = np.where(narrow, width, 1.0), np.where(narrow, (a + b) / 2, 0.0)
    taylor = -(middle**2) / 2 - math.log(2 * math.pi) / 2 + np.log(w) + np.log1p((middle**2 - 1) * w**2 / 24)
    return np.where(narrow, taylor, wide)


def _log_normal_cdf(z: NDArray[np.float64]) -> NDArray[np.float64]:
    """ln Φ(z): erfc down to z = −30, below that the asymptotic series (Abramowitz & Stegun 7.1.23)."""
    erfc = np.vectorize(math.erfc, otypes=[np.float64])
    tail = np.minimum(z, -30.0)
    with np.errstate(invalid="ignore"):
        r = 1 / tail**2
        series = (
            -(tail**2) / 2 - np.log(-tail * math.sqrt(2 * math.pi)) + np.log1p(r * (-1 + r * (3 + r * (-15 + r * 105))))
        )
    near = np.clip(z, -30.0, 30.0)
    half = erfc(np.abs(near) / math.sqrt(2)) / 2
    return np.where(z < -30, series, np.where(z < 0, np.log(half), np.log1p(-half)))


# --- shared -----------------------------------------------------------------------------------------------------


def out_channels(head: Head) -> int:
    """A: outputs of the network for this head."""
    if isinstance(head, CategoricalHead):
        return head.classes
    return 3 * head.components if head.components > 1 else 2


def check_temperature(temperature: float) -> None:
    """Raises `InputError` unless the temperature is a positive, finite number."""
    number = isinstance(temperature, (int, float, np.integer, np.floating)) and not isinstance(temperature, bool)
    if not number or not 0 < temperature <= 1.7e308:  # which no integer overflows, infinity and NaN do not meet
        raise InputError(
            f"temperature is {temperature!r}; it must be a positive finite number: 1 samples what the model learned,"
            " less makes it quieter and duller, 0 is not defined"
        )


def _check_logits(x: NDArray[Any], head: Head) -> None:
    if x.ndim == 0 or x.shape[-1] != out_channels(head):
        raise ShapeError(f"logits have shape {x.shape}; this head needs (..., {out_channels(head)})")
    if np.isnan(x).any() or np.isposinf(x).any():
        raise InputError("the logits hold NaN or +Inf: the weights or the mel are out of range for this network")
    classes, means = (x, None) if isinstance(head, CategoricalHead) else _mixture(x, head)[:2]
    if classes is not None and np.isneginf(classes).all(axis=-1).any():
        raise InputError("all logits of a sample are -Inf, so no class has a probability; at least one must be finite")
    if means is not None and np.isneginf(means).any():
        raise InputError("a mean of the mixture is -Inf; means must be finite")


def _mixture(
    x: NDArray[Any], head: LogisticHead | GaussianHead
) -> tuple[NDArray[Any] | None, NDArray[Any], NDArray[Any]]:
    """Component logits (None for one component), means and floored log scales, each (..., components)."""
    n = head.components
    weights, means, log_scales = (
        (x[..., :n], x[..., n : 2 * n], x[..., 2 * n :]) if n > 1 else (None, x[..., :1], x[..., 1:])
    )
    if head.log_scale_min is not None:
        log_scales = np.maximum(log_scales, x.dtype.type(head.log_scale_min))
    return weights, means, log_scales


def _logsumexp(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """ln Σ eˣ over the last axis; −∞ where all are."""
    top = np.maximum(x.max(axis=-1), np.finfo(np.float64).min)
    with np.errstate(divide="ignore"):
        total: NDArray[np.float64] = top + np.log(np.exp(x - top[..., None]).sum(axis=-1))
    return total
