"""A strongly convex head: its weights are noised once, and its labels are free (Chaudhuri et al. 2011)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from privacy.events import Events, Gaussian
from privacy.mechanisms.mechanism import GRID, Float64, Int64, Noise, positive, std_of, whole

# Gradients of norm sqrt(2) or less, summed in float64, are no more exact than this.
_LEAST_TOLERANCE = 1e-10


@dataclass(frozen=True, slots=True)
class ConvexHead:
    """Multinomial logistic regression on fixed, public features, released with Gaussian noise on its weights.

    F(W) = (1/n) sum loss_i(W) + (Lambda/2)|W|^2. A record's gradient x (p - e_y)' has norm sqrt(2)|x| or less, and x
    is cut to norm 1, so L = sqrt(2). At one optimum the other objective's gradient is at most L/n; strong convexity
    turns a gradient g into a distance of at most g/Lambda; a solution with gradient tau is within tau/Lambda of the
    optimum. So two released solutions are at most (L/n + 2 tau)/Lambda apart. The loss is a mean: for a sum the bound
    is n times larger.

    Attributes:
        noise_multiplier: s, standard deviation of the noise on the weights over that bound.
        classes: 2 or more.
        regularisation: Lambda.
        tolerance: tau, the gradient norm that the solver must reach; at least 1e-10.

    Raises:
        ValueError: a parameter out of range.
    """

    WORTH: ClassVar[str] = (
        "for a linear model on fixed public features, as where records are few (under about 500); any number of labels "
        "is then free"
    )
    UNIT: ClassVar[str] = "record"
    ADJACENCY: ClassVar[str] = "zero_out"
    BASELINE: ClassVar[bool] = False
    noise_multiplier: float
    classes: int
    regularisation: float
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        positive("noise_multiplier", self.noise_multiplier)
        whole("classes", self.classes, 2)
        positive("regularisation", self.regularisation)
        positive("tolerance", self.tolerance)
        if self.tolerance < _LEAST_TOLERANCE:
            raise ValueError(f"tolerance={self.tolerance} must be at least {_LEAST_TOLERANCE}: float64 gets no closer")

    def sensitivity(self, records: int) -> float:
        """Of the weights for n training records: (sqrt(2)/n + 2 tau)/Lambda; n is public and fixed."""
        return (math.sqrt(2.0) / whole("records", records, 1) + 2.0 * self.tolerance) / self.regularisation

    def events(self, rows: int) -> Events:
        """The cost of the weights, the same for any number of proxy rows; () for none."""
        return (Gaussian(self.noise_multiplier, 1),) if whole("rows", rows, 0) else ()

    def release(self, features: Float64, labels: Int64, noise: Noise) -> Float64:
        """Noisy weights.

        Args:
            features: [n, inputs] outputs of a public encoder. Rows are cut to norm 1.
            labels: [n] classes. A record with a label that is none, or a feature that is not finite, counts as nothing:
                its loss is 0, and n stays.

        Returns:
            [inputs + 1, classes]; the last row is the intercept. `probabilities` reads them.

        Raises:
            ValueError: a shape, or no record.
        """
        if np.ndim(features) != 2 or np.shape(labels) != (len(features),):
            raise ValueError(
                f"features {list(np.shape(features))} and labels {list(np.shape(labels))}: [n, inputs] and [n] expected"
            )
        sensitivity = self.sensitivity(len(features))
        weights = self._solved(np.asarray(features, np.float64), np.asarray(labels))
        # The grid follows the noise, which is public: weights of many records differ by less than 2^-12.
        grid = GRID * 2.0 ** math.floor(math.log2(std_of(sensitivity, self.noise_multiplier)))
        return noise.gaussian(weights, sensitivity, self.noise_multiplier, grid)

    def _solved(self, features: Float64, labels: Int64) -> Float64:
        """Weights whose gradient has norm tau or less, for any records."""
        from scipy.optimize import minimize  # 0.3 s that no other mechanism needs

        sound = np.isfinite(features).all(axis=1) & (labels >= 0) & (labels < self.classes)
        inputs = with_intercept(features[sound])
        objective = _objective(inputs, labels[sound].astype(np.int64), len(features), self.classes, self.regularisation)
        shape = (inputs.shape[1], self.classes)
        # Conjugate gradients, because they can stop at the gradient's norm: SciPy's L-BFGS takes half the steps, but
        # looks at the largest entry only, and its small matrices wait for BLAS threads on a busy machine.
        found = minimize(
            lambda flat: _flat(objective(flat.reshape(shape))),
            np.zeros(math.prod(shape)),
            jac=True,
            method="CG",
            options={"gtol": self.tolerance, "norm": 2, "maxiter": 10_000},
        )
        weights: Float64 = found.x.reshape(shape)
        # Where the line search gave up, plain descent goes on: the objective is (Lambda + 1/2)-smooth, so every
        # step takes 2 Lambda/(1 + 2 Lambda) of the gradient away or more. To raise here would tell of the records.
        while np.linalg.norm(gradient := objective(weights)[1]) > self.tolerance:
            weights = weights - gradient / (self.regularisation + 0.5)
        return weights


def probabilities(weights: Float64, features: Float64) -> Float64:
    """Labels of released weights; free, for any rows.

    Args:
        weights: [inputs + 1, classes].
        features: [n, inputs], of the same public encoder.

    Returns:
        [n, classes] distributions.
    """
    scores = with_intercept(np.asarray(features, np.float64)) @ weights
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares: Float64 = odds / odds.sum(axis=1, keepdims=True)
    return shares


def with_intercept(features: Float64) -> Float64:
    """[n, inputs + 1] rows cut to norm 1, a constant 1 behind, all divided by sqrt(2): no row is longer than 1."""
    largest = np.maximum(np.abs(features).max(axis=1, initial=0.0, keepdims=True), 1.0)
    shrunk = features / largest  # the norm of huge values would overflow
    lengths = np.maximum(np.linalg.norm(shrunk, axis=1, keepdims=True), 1.0 / largest)
    cut: Float64 = np.concatenate([shrunk / lengths, np.ones((len(features), 1))], axis=1) / math.sqrt(2.0)
    return cut


def _objective(
    inputs: Float64, labels: Int64, records: int, classes: int, regularisation: float
) -> Callable[[Float64], tuple[float, Float64]]:
    """F and its gradient at [inputs, classes] weights."""
    wanted = np.eye(classes)[labels]

    def at(weights: Float64) -> tuple[float, Float64]:
        scores = inputs @ weights
        scores = scores - scores.max(axis=1, keepdims=True)
        log_sums = np.log(np.exp(scores).sum(axis=1, keepdims=True))
        loss = float((log_sums - (scores * wanted).sum(axis=1, keepdims=True)).sum()) / records
        gradient = inputs.T @ (np.exp(scores - log_sums) - wanted) / records + regularisation * weights
        return loss + regularisation / 2.0 * float((weights**2).sum()), gradient

    return at


def _flat(value: tuple[float, Float64]) -> tuple[float, Float64]:
    return value[0], value[1].ravel()
