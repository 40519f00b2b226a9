"""How well an attack tells members from strangers: its curve, its area, and rates at few false alarms, with intervals.

Area's variance: DeLong et al. (1988), for records that are guessed on several times Obuchowski (1997). Rates: Clopper
and Pearson (1934).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri
from scipy.stats import beta, rankdata

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its interval.

    Attributes:
        value, low, high: all in [0, 1].
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, eq=False)
class Roc:
    """What every threshold would do: a record is called a member where its score reaches the threshold.

    Attributes:
        hits, alarms: [k + 1] members and strangers that are called members, from nobody to everybody; the k steps are
            the k different scores.
        members, strangers: how many there are.
    """

    hits: Int64
    alarms: Int64
    members: int
    strangers: int

    @property
    def true_positives(self) -> Float64:
        """[k + 1] shares of the members."""
        return self.hits / self.members

    @property
    def false_positives(self) -> Float64:
        """[k + 1] shares of the strangers."""
        return self.alarms / self.strangers


def roc(scores: Float64, member: Bool) -> Roc:
    """The curve of an attack.

    Args:
        scores: [...] any numbers, higher where a record looks trained on.
        member: [...] the truth, of the same shape.

    Raises:
        ValueError: shapes that differ, NaN, scores that are all equal, or fewer than two members or strangers.
    """
    _check(scores, member)
    _, place, counts = np.unique(-scores.ravel(), return_inverse=True, return_counts=True)
    hits = np.bincount(place.ravel(), weights=member.ravel(), minlength=len(counts)).astype(np.int64)
    steps = np.concatenate([[0], np.cumsum(hits)]), np.concatenate([[0], np.cumsum(counts - hits)])
    return Roc(*steps, int(member.sum()), int((~member).sum()))


def area(scores: Float64, member: Bool, confidence: float = CONFIDENCE) -> Estimate:
    """The probability that a member's score is above a stranger's, a tie counting half.

    Args:
        scores: [n], or [models, n] where each record was guessed on once a model: its guesses are not independent,
            so the interval is for another draw of records.
        member: the truth, of the same shape.

    Raises:
        ValueError: as roc.

    Guarantees:
        The interval is normal and cut at 0 and 1; where all members are above all strangers it is one point.
    """
    _check(scores, member)
    ranks, member = rankdata(scores).reshape(scores.shape), np.asarray(member)
    members, strangers = int(member.sum()), int((~member).sum())
    # rank among all minus rank among one's own = how many of the others are below, ties half
    own = np.empty(scores.shape)
    own[member], own[~member] = rankdata(scores[member]), rankdata(scores[~member])
    beats = (ranks - own) / np.where(member, strangers, members)
    value = float(beats[member].mean())
    inside = np.atleast_2d(np.where(member, beats - value, 0.0)).sum(axis=0) / members
    outside = np.atleast_2d(np.where(member, 0.0, (1.0 - beats) - value)).sum(axis=0) / strangers
    records = len(inside)
    # A record's two parts are added before squaring: guesses on one record go together.
    variance = records / (records - 1) * float(((inside + outside) ** 2).sum())
    half = float(ndtri(0.5 + confidence / 2.0)) * np.sqrt(variance)
    return Estimate(value, max(0.0, value - half), min(1.0, value + half))


def rate_at(curve: Roc, false_positives: float, confidence: float = CONFIDENCE) -> Estimate:
    """The share of the members that is found where at most this share of the strangers raises an alarm.

    The interval takes the guesses as independent and the threshold as given.

    Raises:
        ValueError: a share outside [0, 1].
    """
    if not 0.0 <= false_positives <= 1.0:
        raise ValueError(f"false_positives={false_positives} must be in [0, 1]")
    # 1e-12: 0.29 * 100 = 28.999999999999996 allows 29 alarms.
    best = int(np.searchsorted(curve.alarms, false_positives * curve.strangers + 1e-12, side="right")) - 1
    hits = int(curve.hits[best])
    low, high = clopper_pearson(hits, curve.members, (1.0 - confidence) / 2.0)
    return Estimate(hits / curve.members, float(low), float(high))


def clopper_pearson(successes: ArrayLike, trials: ArrayLike, significance: float) -> tuple[Float64, Float64]:
    """Exact bounds of a probability, each of which is wrong with a probability of at most `significance`.

    Args:
        successes: [...] of so many.
        trials: [...] independent ones.

    Returns:
        ([...], [...]) below and above.

    >>> [round(float(bound), 4) for bound in clopper_pearson(0, 100, 0.025)]
    [0.0, 0.0362]
    """
    hits, tries = np.asarray(successes, np.float64), np.asarray(trials, np.float64)
    misses = tries - hits
    # beta.ppf wants parameters above 0; where one is 0 the bound is the end of the interval.
    low = np.where(hits == 0, 0.0, beta.ppf(significance, np.maximum(hits, 1.0), misses + 1.0))
    high = np.where(misses == 0, 1.0, beta.ppf(1.0 - significance, hits + 1.0, np.maximum(misses, 1.0)))
    return low, high


def _check(scores: Float64, member: Bool) -> None:
    if scores.shape != member.shape or member.dtype != np.bool_:
        raise ValueError(
            f"scores are {list(scores.shape)} and member {member.dtype}{list(member.shape)}: one truth each"
        )
    if np.isnan(scores).any():
        raise ValueError("a score is no number: the attack had nothing to go by")
    members, strangers = int(member.sum()), int((~member).sum())
    if min(members, strangers) < 2:
        raise ValueError(f"{members} members and {strangers} strangers: at least two of each tell an attack from luck")
    if scores.min() == scores.max():
        raise ValueError(f"all {scores.size} scores are equal, so that no attack can be judged: train longer")
