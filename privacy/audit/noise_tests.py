"""Has the noise the law, the size and the independence that were declared?

Noise 5 % low is found from about 10,000 values on, half the noise from 500. It cannot see a wrong sensitivity
(record_replay) or noise that somebody could compute again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from privacy.audit.record_replay import Call
from privacy.mechanisms.discrete_gaussian import DiscreteGaussian
from privacy.mechanisms.mechanism import Float64, Int64

# Cells of a chi-square test should expect this many at least.
_LEAST_EXPECTED = 10.0


@dataclass(frozen=True, slots=True)
class NoiseReport:
    """What the noise of some releases looks like.

    Attributes:
        ks_p: Kolmogorov-Smirnov against the standard normal law, all values together.
        variance_p: chi-square of the sum of squares, two-sided: too little and too much.
        correlation: the largest in size between any two releases; 0 for one.
        correlation_limit: 5/sqrt(values of a release).
    """

    ks_p: float
    variance_p: float
    correlation: float
    correlation_limit: float

    def problems(self, p_value: float = 1e-4) -> tuple[str, ...]:
        """One sentence for each test that fails; sound noise fails one of the first two in 2 of 10,000 reports."""
        found = []
        if not self.ks_p > p_value:
            found.append(f"the noise is not standard normal after scaling: KS p={self.ks_p:.2g}")
        if not self.variance_p > p_value:
            found.append(f"the noise has another variance than declared: p={self.variance_p:.2g}")
        if not self.correlation < self.correlation_limit:
            found.append(
                f"two releases share noise: correlation {self.correlation:.3f}, limit {self.correlation_limit:.3f}"
            )
        return tuple(found)


def examine(standardised: Float64) -> NoiseReport:
    """Test noise against the standard normal law.

    Args:
        standardised: [releases, values] (noised - clean) / (declared sensitivity * multiplier).

    Raises:
        ValueError: no such matrix, or fewer than 100 values a release.
    """
    if standardised.ndim != 2 or standardised.shape[1] < 100:
        raise ValueError(f"noise has shape {list(standardised.shape)}: [releases, 100 values or more] expected")
    if not np.isfinite(standardised).all():
        return NoiseReport(0.0, 0.0, math.inf, 0.0)
    flat = standardised.ravel()
    square = float((flat**2).sum())
    variance_p = 2.0 * min(stats.chi2.cdf(square, flat.size), stats.chi2.sf(square, flat.size))
    return NoiseReport(
        float(stats.kstest(flat, "norm").pvalue),
        float(variance_p),
        largest_correlation(standardised),
        5.0 / math.sqrt(standardised.shape[1]),
    )


def largest_correlation(releases: Float64) -> float:
    """The largest |correlation| between two of [releases, values]; 0 for one release, 1 for constant ones."""
    if len(releases) < 2:
        return 0.0
    centred = releases - releases.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    if (lengths == 0.0).any():
        return 1.0
    between = (centred / lengths) @ (centred / lengths).T
    return float(np.abs(between[np.triu_indices(len(releases), 1)]).max())


def standardised(calls: Sequence[Call]) -> Float64:
    """[values] of recorded Gaussian noise over its declared standard deviation, calls one after the other.

    The rounding to the grid adds grid^2/12 to the variance: keep the noise above 100 steps of it.
    """
    noise = [
        (call.released - call.values).ravel() / (call.parameters[0] * call.parameters[1])
        for call in calls
        if call.kind in ("gaussian", "discrete_gaussian")
    ]
    flat: Float64 = np.concatenate([np.zeros(0), *noise])
    return flat


def discrete_p(samples: Int64, std: float) -> float:
    """Chi-square test of samples against the discrete Gaussian's probabilities, tails pooled; the p-value."""
    law = DiscreteGaussian(std)
    reach = 0
    while law.pmf(np.array([reach + 1]))[0] * len(samples) >= _LEAST_EXPECTED:
        reach += 1
    inside = np.arange(-reach, reach + 1)
    expected = law.pmf(inside) * len(samples)
    tail = (len(samples) - expected.sum()) / 2.0
    seen = np.array(
        [(samples < -reach).sum(), *(np.sum(samples == value) for value in inside), (samples > reach).sum()]
    )
    return float(stats.chisquare(seen, np.array([tail, *expected, tail])).pvalue)
