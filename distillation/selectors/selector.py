"""What a site is competent to vote on: the seam that every selector fits, and the steps that they share."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from strategies.soft_labels import Float32, Float64, Int64

Mask = NDArray[np.bool_]

# FedAUX's floor: a row that every site finds foreign still has a teacher.
SCORE_FLOOR = 1e-8
# Score 1 is reached by the best quarter of a site's own held-out rows.
_AT_HOME = 0.75


class Selection(NamedTuple):
    """What a selector says of proxy rows; both parts depend on private rows, so that sending either is a release.

    Attributes:
        kept: [n] whether the site votes on the row.
        scores: [n] in (0, 1], trust in its vote there; only ratios between sites matter. Rows that are not kept have
            one too, for a site that votes on every row and lets the scores decide.
    """

    kept: Mask
    scores: Float64


class Selector(Protocol):
    """A frozen dataclass whose fields are the method's settings."""

    def select(self, private: Float32, labels: Int64, proxy: Float32, rng: np.random.Generator) -> Selection:
        """Which proxy rows look like the site's own, and how much.

        Args:
            private: [m, d] features of the site's rows, m at least 1; see distillation.selectors.features.
            labels: [m] their classes.
            proxy: [n, d] the same features of the proxy rows, n at least 1.
            rng: decides held-out rows, auxiliary points and starts of clusterings.

        Raises:
            ValueError: a shape that does not fit, no row, or a value that is not finite.

        Guarantees:
            A function of its arguments; global random state is not touched.
        """
        ...


def checked(private: Float32, labels: Int64, proxy: Float32) -> tuple[Float64, Float64]:
    """Private and proxy features in float64.

    Raises:
        ValueError: a shape that does not fit, no row, or a value that is not finite.
    """
    for name, features in (("private", private), ("proxy", proxy)):
        if features.ndim != 2 or 0 in features.shape:
            raise ValueError(f"{name} features are {list(features.shape)}: [rows, dimensions] of at least 1 expected")
        if not np.isfinite(features).all():
            raise ValueError(f"{name} features have a value that is not finite: fill or drop missing ones first")
    if private.shape[1] != proxy.shape[1]:
        raise ValueError(
            f"private rows have {private.shape[1]} features and proxy rows {proxy.shape[1]}: the same ones"
        )
    if labels.shape != (len(private),):
        raise ValueError(f"labels are {list(labels.shape)}: one for each of {len(private)} private rows")
    return private.astype(np.float64), proxy.astype(np.float64)


def hold_out(rows: Float64, known: float, rng: np.random.Generator) -> tuple[Float64, Float64]:
    """The share `known` of the rows, drawn, and the others; each part has at least one row.

    A single row stands in both parts: it cannot be spared from either.
    """
    if len(rows) == 1:
        return rows, rows
    order = rng.permutation(len(rows))
    count = min(max(1, round(known * len(rows))), len(rows) - 1)
    return rows[order[:count]], rows[order[count:]]


def above_quantile(proxy: Float64, held_out: Float64, quantile: float) -> Mask:
    """Proxy rows whose ratio is above that quantile of held-out local rows; all of them for quantile 0.

    Args:
        proxy: [n] ratios, at least 0.
        held_out: [h] ratios of rows that the selector has not seen, h at least 1.
        quantile: share of the site's own rows that may be refused.

    Guarantees:
        At least 1 - quantile of the held-out rows would be kept, unless their ratios are 0. A ratio of 0 is refused.

    >>> above_quantile(np.array([0.1, 0.2, 0.9]), np.array([0.2, 0.3, 0.4, 0.5]), 0.25).tolist()
    [False, True, True]
    """
    if quantile == 0.0:
        return np.ones(len(proxy), np.bool_)
    # The lower order statistic, less rounding: rows that are duplicates of one another share one ratio.
    threshold = float(np.quantile(held_out, quantile, method="lower"))
    kept: Mask = proxy > threshold * (1.0 - 1e-6)
    return kept


def relative_scores(proxy: Float64, held_out: Float64, power: float = 1.0) -> Float64:
    """(ratio / upper quartile of held-out ratios) ^ power, in [1e-8, 1]: 1 is as much at home as the best quarter.

    Guarantees:
        Invariant to all ratios -> 7 * ratios, up to rounding; never falls where a ratio grows.

    >>> relative_scores(np.array([0.0, 1.0, 2.0, 9.0]), np.array([1.0, 2.0, 2.0]), 2.0).tolist()
    [1e-08, 0.25, 1.0, 1.0]
    """
    home = float(np.quantile(held_out, _AT_HOME))
    # The smaller first: a quotient by a tiny ratio would overflow.
    shares = np.minimum(proxy, home) / home if home > 0.0 else (proxy > 0.0).astype(np.float64)
    scores: Float64 = shares**power
    return np.maximum(scores, SCORE_FLOOR)


def check_share(name: str, value: float, what: str, *, zero: bool = False) -> None:
    """Refuse a setting that is no share.

    Raises:
        ValueError: outside (0, 1), or [0, 1) where zero is allowed.
    """
    if not (0.0 < value < 1.0 or (zero and value == 0.0)):
        raise ValueError(f"{name}={value} must be in {'[' if zero else '('}0, 1): {what}")
