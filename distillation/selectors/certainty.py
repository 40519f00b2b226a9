"""FedAUX's certainty score: a logistic regression that tells the site's rows from the proxy set's."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from distillation.selectors.selector import SCORE_FLOOR, Selection, above_quantile, check_share, checked, hold_out
from strategies.soft_labels import Float32, Float64, Int64


@dataclass(frozen=True, slots=True)
class Certainty:
    """s(x) = sigmoid(w.h) + 1e-8, h the row's direction and a constant (FedAUX).

    FedAUX drops no row and lets the scores weigh: quantile 0, the default. It takes features of a frozen public
    encoder, ridge 0.01, and adds Gaussian noise to w (epsilon 0.1, delta 1e-5), which this selector does not:
    `sensitivity` says how much w moves. Without noise a smaller ridge, 1e-4, tells foreign rows far better.

    Attributes:
        ridge: of the mean loss plus ridge/2 |w|^2.
        quantile: share of the site's own held-out rows that may be refused; 0 keeps every row.
        known: share of the private rows that is fitted; the others give the quantile. All are where that is 0.
    """

    ridge: float = 0.01
    quantile: float = 0.0
    known: float = 0.8

    def __post_init__(self) -> None:
        if not 1e-8 <= self.ridge < math.inf:
            raise ValueError(f"ridge={self.ridge} must be at least 1e-8: FedAUX takes 0.01")
        check_share("quantile", self.quantile, "the share of own rows that may be refused", zero=True)
        check_share("known", self.known, "the other private rows give the quantile")

    def sensitivity(self, rows: int) -> float:
        """Bound of |w - w'|, L2, between sets of `rows` fitted rows that differ in one: 2 / (rows ridge).

        Guarantees:
            Holds for the exact minimum of `fit_weights` on `direction` rows, whose norm is at most 1. What `select`
            returns is not private: neither w nor the quantile of held-out rows carries noise.
        """
        return 2.0 / (rows * self.ridge)

    def select(self, private: Float32, labels: Int64, proxy: Float32, rng: np.random.Generator) -> Selection:
        """See Selector. Invariant to features -> 7 * features, also row by row."""
        from scipy.special import expit

        own, public = checked(private, labels, proxy)
        local, held_out = hold_out(own, self.known, rng) if self.quantile else (own, own)
        foreign = direction(public)
        weights = fit_weights(direction(local), foreign, self.ridge)
        known, asked = expit(direction(held_out) @ weights), expit(foreign @ weights)
        scores: Float64 = np.minimum(asked + SCORE_FLOOR, 1.0)
        return Selection(above_quantile(asked, known, self.quantile), scores)


def direction(rows: Float64) -> Float64:
    """[n, d + 1] each row at unit length, then 1, over sqrt(2): a norm of at most 1, whatever the data.

    >>> direction(np.array([[3.0, 4.0], [0.0, 0.0]])).round(4).tolist()
    [[0.4243, 0.5657, 0.7071], [0.0, 0.0, 0.7071]]
    """
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    units = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0.0)
    return np.concatenate([units, np.ones((len(rows), 1))], axis=1) / math.sqrt(2.0)


def fit_weights(local: Float64, foreign: Float64, ridge: float) -> Float64:
    """[d] w minimising the mean logistic loss, local = 1 and foreign = 0, plus ridge/2 |w|^2; no free intercept."""
    from sklearn.linear_model import LogisticRegression

    rows = np.concatenate([local, foreign])
    labels = np.arange(len(rows)) < len(local)
    # scikit-learn sums the loss: C = 1 / (rows ridge). C = 1 / ridge would make w `rows` times as sensitive.
    model = LogisticRegression(
        C=1.0 / (len(rows) * ridge), fit_intercept=False, solver="newton-cholesky", tol=1e-8, max_iter=1000
    )
    weights: Float64 = model.fit(rows, labels).coef_[0]
    return weights
