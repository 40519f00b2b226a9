"""What one Gaussian release costs, in closed form (Balle and Wang 2018, arXiv 1805.06530)."""

from __future__ import annotations

import math

from scipy.special import log_ndtr, ndtri

from privacy.delta import check_delta

# Halvings of a bracket: float64 has 53 bits of mantissa and about 11 of exponent.
_HALVINGS = 80


def analytic_gaussian_delta(noise_multiplier: float, epsilon: float) -> float:
    """The smallest delta of one release at this epsilon.

    delta = Phi(1/2s - epsilon s) - e^epsilon Phi(-1/2s - epsilon s).

    Args:
        noise_multiplier: s, standard deviation of the noise over the L2 sensitivity, above 0.
        epsilon: nats, 0 or more.
    """
    half, shift = 0.5 / noise_multiplier, epsilon * noise_multiplier
    # In log space: e^epsilon alone overflows at 710, its product with the tail never does.
    first, second = float(log_ndtr(half - shift)), epsilon + float(log_ndtr(-half - shift))
    return math.exp(first) * -math.expm1(min(0.0, second - first))


def analytic_gaussian_epsilon(noise_multiplier: float, delta: float) -> float:
    """The epsilon of one release, nats. T equal releases are exactly one with noise_multiplier / sqrt(T).

    Raises:
        ValueError: noise_multiplier is not a finite number above 0, or delta is not in [1e-12, 1).

    Guarantees:
        Never below the true value by more than float64's rounding of delta.

    >>> round(analytic_gaussian_epsilon(1.0, 1e-5), 4)
    4.3772
    """
    _check("noise_multiplier", noise_multiplier)
    check_delta(delta)
    if analytic_gaussian_delta(noise_multiplier, 0.0) <= delta:
        return 0.0
    # delta(epsilon) is at most its first term, which is delta itself here.
    low, high = 0.0, 0.5 / noise_multiplier / noise_multiplier - min(0.0, float(ndtri(delta))) / noise_multiplier
    for _ in range(_HALVINGS if high < math.inf else 0):
        middle = (low + high) / 2.0
        low, high = (low, middle) if analytic_gaussian_delta(noise_multiplier, middle) <= delta else (middle, high)
    return high


def analytic_gaussian_noise(epsilon: float, delta: float) -> float:
    """The noise multiplier with which one release costs (epsilon, delta); not rounded.

    Raises:
        ValueError: epsilon is not a finite number above 0, or delta is not in [1e-12, 1).

    >>> round(analytic_gaussian_noise(3.0, 1e-5), 4)
    1.3906
    """
    _check("epsilon", epsilon)
    check_delta(delta)
    low, high = -1.0, 1.0  # log s
    while analytic_gaussian_delta(math.exp(high), epsilon) > delta:
        high *= 2.0
    while analytic_gaussian_delta(math.exp(low), epsilon) <= delta:
        low *= 2.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2.0
        low, high = (low, middle) if analytic_gaussian_delta(math.exp(middle), epsilon) <= delta else (middle, high)
    return math.exp(high)


def _check(name: str, value: float) -> None:
    if not (value > 0.0 and math.isfinite(value)):
        raise ValueError(f"{name}={value} must be a finite number above 0")
