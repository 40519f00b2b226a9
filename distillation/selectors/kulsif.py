"""KuLSIF: the density ratio of local to auxiliary points by least squares with a kernel, solved exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from distillation.selectors.selector import (
    Selection,
    above_quantile,
    check_share,
    checked,
    hold_out,
    relative_scores,
)
from strategies.soft_labels import Float32, Float64, Int64

# Rows at a time: 2,000 against 2,000 points are 32 MB of float64.
_BLOCK = 2000
# Proxy rows whose distances give the kernel's width.
_WIDTH_ROWS = 500
# Distances below this share of the largest are rounding: features are float32.
_SAME = 1e-6
AUXILIARY_FROM = ("box", "proxy")


@dataclass(frozen=True, slots=True)
class Kulsif:
    """Keep a row whose density ratio is above a quantile of held-out local rows (Selective-FD, Shao et al. 2024).

    The defaults are Selective-FD's but for the width, which is 5 there: on MNIST's pixels that leaves the uniform
    points so far away (kernel under 4e-11) that the ratio is a plain kernel density. `auxiliary_from="proxy"` gives the
    ratio of local to proxy density (KuLSIF's own use, Kanamori et al. 2012), which tells foreign rows far better; with
    it known=0.8, auxiliary=1000, ridge=0.0001 and quantile=0.05 did well on MNIST.

    Attributes:
        quantile: share of the site's own rows that may be refused; 0 keeps every row. SCARLET takes 0.125.
        known: share of the private rows in the ratio; the others give the quantile.
        auxiliary: points to compare with.
        auxiliary_from: box (uniform between the proxy's smallest and largest values) or proxy (rows of it).
        width: of the Gaussian kernel, at least 1e-6; 0 = the median distance between proxy rows that are not the same.
        ridge: of the least squares, at least 1e-6; 0 = auxiliary ** -0.5.
    """

    quantile: float = 0.25
    known: float = 0.05
    auxiliary: int = 250
    auxiliary_from: str = "box"
    width: float = 0.0
    ridge: float = 0.0

    def __post_init__(self) -> None:
        check_share("quantile", self.quantile, "the share of own rows that may be refused", zero=True)
        check_share("known", self.known, "the other private rows give the quantile")
        if self.auxiliary < 1:
            raise ValueError(f"auxiliary={self.auxiliary} must be at least 1: Selective-FD takes 250")
        if self.auxiliary_from not in AUXILIARY_FROM:
            raise ValueError(f"auxiliary_from={self.auxiliary_from!r} must be one of {', '.join(AUXILIARY_FROM)}")
        if self.width != 0.0 and not 1e-6 <= self.width < math.inf:
            raise ValueError(f"width={self.width} must be at least 1e-6, or 0 for the median distance")
        if self.ridge != 0.0 and not 1e-6 <= self.ridge < math.inf:  # below it the solution loses its digits
            raise ValueError(f"ridge={self.ridge} must be at least 1e-6, or 0 for auxiliary ** -0.5")

    def select(self, private: Float32, labels: Int64, proxy: Float32, rng: np.random.Generator) -> Selection:
        """See Selector.

        Guarantees:
            Where width is 0 and not all proxy rows are the same: invariant, up to rounding, to features -> 7 * features
            and to a shift of all of them.
        """
        own, public = checked(private, labels, proxy)
        local, held_out = hold_out(own, self.known, rng)
        width = self.width or median_distance(public, rng)
        if self.auxiliary_from == "proxy":
            points = public[rng.permutation(len(public))[: self.auxiliary]]
        else:
            points = rng.uniform(public.min(axis=0), public.max(axis=0), (self.auxiliary, public.shape[1]))
        ridge = self.ridge or self.auxiliary**-0.5
        weights = fit_ratio(local, points, width, ridge)
        known, asked = (ratios(rows, local, points, weights, width, ridge) for rows in (held_out, public))
        return Selection(above_quantile(asked, known, self.quantile), relative_scores(asked, known))


def fit_ratio(local: Float64, points: Float64, width: float, ridge: float) -> Float64:
    """a of (K_xx / n + ridge I) a = -K_xy 1 / (n m ridge), by Cholesky in float64.

    Args:
        local: [m, d] y.
        points: [n, d] x.

    Returns:
        [n] weights of the auxiliary points.

    Guarantees:
        The residual is below 1e-8 of the right-hand side. (The authors' code inverts, then multiplies by the matrix.)
    """
    from scipy.linalg import cho_factor, cho_solve

    count = len(points)
    matrix = kernel(points, points, width) / count + ridge * np.eye(count)
    right = -kernel(points, local, width).sum(axis=1) / (count * len(local) * ridge)
    weights: Float64 = cho_solve(cho_factor(matrix), right)
    return weights


def ratios(rows: Float64, local: Float64, points: Float64, weights: Float64, width: float, ridge: float) -> Float64:
    """[rows] r(z) = sum_i a_i k(z, x_i) + sum_j k(z, y_j) / (m ridge), never below 0.

    >>> local, points = np.array([[0.0], [0.5]]), np.array([[-1.0], [0.0], [1.0], [2.0]])
    >>> weights = fit_ratio(local, points, 1.0, 0.5)
    >>> ratios(np.array([[0.0], [1.5]]), local, points, weights, 1.0, 0.5).round(4).tolist()
    [1.0223, 0.3796]
    """
    values = [
        kernel(part, points, width) @ weights + kernel(part, local, width).sum(axis=1) / (len(local) * ridge)
        for part in (rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK))
    ]
    positive: Float64 = np.maximum(np.concatenate(values), 0.0)
    return positive


def kernel(one: Float64, other: Float64, width: float) -> Float64:
    """[a, b] exp(-|x - y|^2 / (2 width^2))."""
    values: Float64 = np.exp(-_squared(one, other) / (2.0 * width**2))
    return values


def median_distance(rows: Float64, rng: np.random.Generator) -> float:
    """Median distance between those of 500 rows that are not the same; 1 where all are, so that a kernel exists."""
    from scipy.spatial.distance import pdist

    # Not by _squared: its three terms leave noise between rows that are the same.
    distances = pdist(rows[rng.permutation(len(rows))[:_WIDTH_ROWS]])
    apart = distances[distances > _SAME * distances.max(initial=0.0)]
    return float(np.median(apart)) if len(apart) else 1.0


def _squared(one: Float64, other: Float64) -> Float64:
    # Centred first: far from the origin the three terms cancel to nothing.
    centre = other.mean(axis=0)
    one, other = one - centre, other - centre
    squares = (one**2).sum(axis=1)[:, None] + (other**2).sum(axis=1)[None, :] - 2.0 * one @ other.T
    positive: Float64 = np.maximum(squares, 0.0)
    return positive
