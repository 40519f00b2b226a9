"""One-run audit: a lower bound on epsilon from guesses about canaries of a single training run.

Steinke, Nasr and Jagielski (2023), Privacy Auditing with One (1) Training Run, arXiv 2305.08846, theorem 5.2 and
appendix D. Design reference 8.1. It finds gross bugs only: halved noise passes it, and so does a ledger that forgets.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import binom

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]

SIGNIFICANCE = 0.05
# Beyond it e^epsilon is no float64; no audit comes near.
_LARGEST = 700.0
_CLOSE = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class Canaries:
    """Records that are easy to remember, of which a coin decides whether they are trained on.

    Attributes:
        features: [m, width + m] zero but for one column each, which no real row and no other canary uses.
        labels: [m] class numbers at random.
        included: [m] whether it is trained on, with probability 1/2 each.
    """

    features: Float32
    labels: Int64
    included: Bool


def canaries(count: int, width: int, classes: int, rng: np.random.Generator, size: float = 1.0) -> Canaries:
    """Draw canaries for rows of `width` features, which get `count` columns of zeros more.

    Args:
        size: value of each canary's own column.

    Raises:
        ValueError: fewer than 2 canaries or classes.
    """
    if count < 2:
        raise ValueError(f"canaries={count} must be at least 2: one is guessed in and one out")
    if classes < 2:
        raise ValueError(f"classes={classes} must be at least 2: a label that is sure says nothing")
    features = np.zeros((count, width + count), np.float32)
    features[np.arange(count), width + np.arange(count)] = size
    return Canaries(features, rng.integers(classes, size=count), rng.random(count) < 0.5)


def canary_scores(logits: NDArray[np.floating], labels: Int64) -> Float64:
    """[m] logit of a canary's own label minus its mean logit: higher where it was trained on.

    Args:
        logits: [m, classes] finite.
        labels: [m].
    """
    outputs = np.asarray(logits, np.float64)
    scores: Float64 = outputs[np.arange(len(labels)), labels] - outputs.mean(axis=1)
    return scores


def p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """The probability, at most, that an (epsilon, delta)-DP training lets so many guesses be right.

    Args:
        canaries: m, each included with probability 1/2, independently.
        guesses: r, fixed before scores are seen; the others are passed over.
        right: v of them.

    Raises:
        ValueError: counts that cannot be, or parameters that are no guarantee.

    >>> round(p_value(500, 100, 80, 1.0, 1e-5), 7)
    0.0722827
    """
    _check_counts(canaries, guesses, right)
    if not 0.0 <= delta < 1.0:
        raise ValueError(f"delta={delta} must be in [0, 1)")
    if not 0.0 <= epsilon <= _LARGEST:
        raise ValueError(f"epsilon={epsilon} must be in [0, {_LARGEST:g}]")
    chance = float(expit(epsilon))  # of randomised response, than which no epsilon-DP release is guessed better
    beta = float(binom.sf(right - 1, guesses, chance))
    fewer = np.arange(1, right + 1)
    gains = (binom.sf(right - 1 - fewer, guesses, chance) - beta) / fewer
    alpha = float(gains.max(initial=0.0))
    return min(1.0, beta + 2.0 * canaries * delta * alpha)


def epsilon_lower_bound(
    canaries: int, guesses: int, right: int, delta: float, significance: float = SIGNIFICANCE
) -> float:
    """The largest epsilon that so many right guesses refute; 0 where they refute none.

    A correct claim is below it with a probability of at most `significance`, for `guesses` fixed beforehand; who tries
    several numbers of guesses divides the significance by how many.

    Raises:
        ValueError: as p_value; or a significance outside (0, 1).

    >>> round(epsilon_lower_bound(500, 100, 80, 1e-5), 4)
    0.9569
    """
    if not 0.0 < significance < 1.0:
        raise ValueError(f"significance={significance} must be in (0, 1)")

    def refuted(epsilon: float) -> bool:
        return p_value(canaries, guesses, right, epsilon, delta) <= significance

    if not refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while refuted(high):
        low, high = high, min(2.0 * high, _LARGEST)
        if low == high:
            return low
    while high - low > _CLOSE:
        middle = (low + high) / 2.0
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


@dataclass(frozen=True, slots=True)
class OneRun:
    """What a one-run audit found.

    Attributes:
        canaries, guesses, right: m, r and v.
        delta, significance: that the bound is for.
        epsilon: a lower bound; the training is not (epsilon', delta)-DP for any smaller epsilon', at this significance.
        ceiling: the bound if every guess had been right: a claim above it cannot be refuted.
    """

    canaries: int
    guesses: int
    right: int
    delta: float
    significance: float
    epsilon: float
    ceiling: float


def audit(scores: Float64, included: Bool, guesses: int, delta: float, significance: float = SIGNIFICANCE) -> OneRun:
    """Guess "in" for the highest scores and "out" for the lowest, and say what that refutes.

    Args:
        scores: [m] higher where a canary looks trained on; computed without looking at `included`.
        included: [m] the truth.
        guesses: r, even, fixed before scores are seen: half "in", half "out". Equal scores stand in canaries' order.

    Raises:
        ValueError: scores that are not finite or all equal, or a number of guesses that cannot be.
    """
    if scores.ndim != 1 or scores.shape != included.shape:
        raise ValueError(f"scores are {list(scores.shape)} and included {list(included.shape)}: [m] of both expected")
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite: the training has diverged, lower its step size")
    if len(scores) and scores.min() == scores.max():
        raise ValueError(f"all {len(scores)} scores are equal, so that nothing can be guessed: train, then audit")
    if guesses < 2 or guesses % 2 or guesses > len(scores):
        raise ValueError(
            f"guesses={guesses} must be even, from 2 to {len(scores)}, the number of canaries: half in, half out"
        )
    order = np.argsort(scores, kind="stable")
    right = int(included[order[-guesses // 2 :]].sum() + (~included[order[: guesses // 2]]).sum())
    told = (delta, significance)
    return OneRun(
        len(scores),
        guesses,
        right,
        *told,
        epsilon_lower_bound(len(scores), guesses, right, *told),
        epsilon_lower_bound(len(scores), guesses, guesses, *told),
    )


def _check_counts(canaries: int, guesses: int, right: int) -> None:
    if not 0 <= right <= guesses <= canaries or guesses < 1:
        raise ValueError(
            f"right={right}, guesses={guesses}, canaries={canaries} must be in this order, with one guess or more"
        )
