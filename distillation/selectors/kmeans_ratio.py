"""How much nearer a row is to the site's clusters than to the proxy set's."""

from __future__ import annotations

import math
import warnings
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

_TINY = 1e-9
# Proxy rows that are clustered: more cost time and move no centroid.
_CLUSTERED = 4000


@dataclass(frozen=True, slots=True)
class KmeansRatio:
    """Keep a row whose distance ratio is above a quantile of held-out local rows.

    The idea is EdgeFD's (arXiv 2508.14769), with at most 10 centroids; its exact statistic was not available, so ratio
    and score are ours. A ratio of distances to the power of the data's intrinsic dimension estimates a density ratio,
    which is why the score has a power. On MNIST clusters=200 did well. A row that is itself a proxy centroid has a
    ratio near 0 wherever it lies: take far fewer clusters than there are proxy rows.

    Attributes:
        quantile: share of the site's own rows that may be refused; 0 keeps every row.
        clusters: centroids of the local and of the proxy rows each; fewer where there are fewer different rows.
        known: share of the private rows that is clustered; the others give the quantile.
        power: sharpens the score, not what is kept; 8 suits images of digits.
    """

    quantile: float = 0.25
    clusters: int = 10
    known: float = 0.8
    power: float = 8.0

    def __post_init__(self) -> None:
        check_share("quantile", self.quantile, "the share of own rows that may be refused", zero=True)
        check_share("known", self.known, "the other private rows give the quantile")
        if self.clusters < 1:
            raise ValueError(f"clusters={self.clusters} must be at least 1: EdgeFD takes up to 10")
        if not 0.0 < self.power < math.inf:
            raise ValueError(f"power={self.power} must be above 0: 1 is the plain ratio")

    def select(self, private: Float32, labels: Int64, proxy: Float32, rng: np.random.Generator) -> Selection:
        """See Selector. Invariant to features -> 7 * features and to a shift of all of them, up to rounding."""
        own, public = checked(private, labels, proxy)
        local, held_out = hold_out(own, self.known, rng)
        homes = centroids(local, self.clusters, rng)
        others = centroids(public[rng.permutation(len(public))[:_CLUSTERED]], self.clusters, rng)
        known, asked = (distance_ratios(rows, homes, others) for rows in (held_out, public))
        return Selection(above_quantile(asked, known, self.quantile), relative_scores(asked, known, self.power))


def distance_ratios(rows: Float64, homes: Float64, others: Float64) -> Float64:
    """[rows] (distance to the nearest of others + 1e-9) / (distance to the nearest of homes + 1e-9).

    >>> two = np.array([[0.0], [1.0]]), np.array([[0.5], [3.0]])
    >>> distance_ratios(np.array([[0.1], [2.8]]), *two).round(4).tolist()
    [4.0, 0.1111]
    """
    from scipy.spatial.distance import cdist

    # Plain differences: |a|^2 + |b|^2 - 2 a.b leaves 1e-8 of a distance that is 0.
    far, near = (cdist(rows, centres).min(axis=1) for centres in (others, homes))
    values: Float64 = (far + _TINY) / (near + _TINY)
    return values


def centroids(rows: Float64, clusters: int, rng: np.random.Generator) -> Float64:
    """[at most clusters, d] k-means centroids."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    count = min(clusters, len(rows))
    means = KMeans(count, n_init=1, max_iter=50, random_state=int(rng.integers(2**31)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # duplicates: fewer different rows than clusters
        found: Float64 = means.fit(rows).cluster_centers_
    return found
