"""Streaming pools: weighted means of votes in O(rows x classes) memory, the same bits in every order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from strategies.aggregator import LARGEST_SHARE, Ballot, Weighting, most_trust
from strategies.exact_sum import OrderFreeSum, WideOrderFreeSum
from strategies.messages import ClientReport
from strategies.soft_labels import Float32, Float64, Int64, SoftLabels, floored

# The log of 0 is no vote: a class that nobody believes in keeps 1e-12.
PROBABILITY_FLOOR = 1e-12
# Where all votes of a row are trusted less than this they count alike.
TRUST_FLOOR = 1e-18
# Reports with a smaller trust in some row are added to 90 bits instead of 45.
_SMALL_TRUST = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class Pooled:
    """A weighted mean on the rows that met the quorum; of several votes none has more than LARGEST_SHARE.

    Attributes:
        rows: [n'] of the ballot's rows.
        mean: [n', width].
    """

    rows: Int64
    mean: Float64


def pool(
    ballot: Ballot,
    reports: Iterable[ClientReport],
    vote: Callable[[SoftLabels], NDArray[np.floating]],
    bound: float,
    width: int = 0,
    weighting: Weighting | None = None,
) -> Pooled:
    """Weighted mean of `vote(soft_labels)` over the voters of each row, consumed one report at a time.

    Args:
        vote: [n, width] values whose size stays below `bound`, a power of two, whatever the soft labels are; this
            is not looked at again.
        width: values a row; 0: one a class.
        weighting: trust in each vote, times the report's own weight; None: that alone.

    Raises:
        ValueError: no report, or one on rows that are not on the ballot.
    """
    mean = WeightedMean((len(ballot.rows), width or ballot.classes), bound)
    for report in reports:
        at, trust = ballot.positions(report), trust_of(report, weighting)
        mean.add(scaled(vote(report.soft_labels), trust), trust, at)
    return mean.pooled(ballot)


class WeightedMean:
    """The mean of votes as they come, the same bits in every order; of several votes none has more than LARGEST_SHARE.

    Args:
        shape: rows and values a row.
        bound: see pool.
    """

    def __init__(self, shape: tuple[int, int], bound: float) -> None:
        self._shape, self._bound = shape, bound
        self._sums = _Sums(OrderFreeSum(shape, bound), OrderFreeSum(shape[:1], 2.0))
        self._faint: _Sums | None = None
        self._top: _Top | None = None
        self._voters = np.zeros(shape[0], np.int64)
        # Votes on all rows with a weight of 1: the usual ones, counted and not added. One is kept, should it be alone.
        self._plain = 0
        self._lone: NDArray[np.floating] = np.empty(0)

    def add(self, votes: NDArray[np.floating], trust: float | Float64, at: slice | Int64) -> None:
        """One report's votes, already scaled by its trust, finite and below the bound; and where they stand."""
        if isinstance(at, slice) and isinstance(trust, float) and trust == 1.0:
            self._plain, self._lone = self._plain + 1, votes
            self._sums.votes.add(votes, at, vouched=True)
            return
        by_row = np.full(len(votes), trust)
        into = self._sums
        if by_row.min(initial=1.0) < _SMALL_TRUST:
            into = self._faint = self._faint or _Sums(
                WideOrderFreeSum(self._shape, self._bound), WideOrderFreeSum(self._shape[:1], 2.0)
            )
        into.votes.add(votes, at, vouched=True)
        into.trust.add(by_row, at, vouched=True)
        self._voters[at] += 1
        self._top = self._top or _Top(self._shape)
        self._top.shown(by_row, votes, at, faint=into is self._faint)

    def pooled(self, ballot: Ballot) -> Pooled:
        """The mean on the rows that met the quorum; nothing can be added afterwards.

        Raises:
            ValueError: nothing was added.
        """
        if self._sums.votes.terms == 0 and self._faint is None:
            raise ValueError("no report to aggregate: check the quorum first")
        voters, top = self.voters, self._top
        total, trusted = self.totals()
        if top is not None:
            if self._plain == 1:
                top.shown(np.ones(self._shape[0]), self._lone, slice(None), faint=False)
            over = np.flatnonzero((voters > 1) & (top.trust > LARGEST_SHARE * trusted))
            if len(over):
                top.taken(over, self._sums, self._faint)
                total, trusted = self.totals()
                left = np.minimum(top.trust[over], most_trust(trusted[over]))
                total[over] += (left / top.trust[over])[:, None] * top.votes[over]
                trusted[over] += left
        kept = voters >= ballot.needed
        return Pooled(ballot.rows[kept], total[kept] / trusted[kept][:, None])

    @property
    def voters(self) -> Int64:
        """[n] who has voted on each row."""
        return self._voters + self._plain

    def totals(self) -> tuple[Float64, Float64]:
        """[n, width] weighted votes, and [n] what they weigh, with nothing capped; to be asked before `pooled`."""
        total, trusted = self._sums.votes.value(), self._sums.trust.value() + self._plain
        if self._faint is not None:
            total, trusted = total + self._faint.votes.value(), trusted + self._faint.trust.value()
        return total, trusted


class _Sums(NamedTuple):
    """Of weighted votes, and of their weights."""

    votes: OrderFreeSum | WideOrderFreeSum
    trust: OrderFreeSum | WideOrderFreeSum


class _Top:
    """The most trusted vote of each row so far, as it was added; of equals any: none of them has more than half.

    Attributes:
        trust: [n] in it.
        votes: [n, width] weighted with it.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self.trust, self.votes, self._faint = np.zeros(shape[0]), np.zeros(shape), np.zeros(shape[0], bool)

    def shown(self, trust: Float64, votes: NDArray[np.floating], at: slice | Int64, *, faint: bool) -> None:
        """A report's weighted votes, and which of two sums they were added to."""
        more = trust > self.trust[at]
        if more.any():
            rows = np.flatnonzero(more) if isinstance(at, slice) else at[more]
            self.trust[rows], self.votes[rows], self._faint[rows] = trust[more], votes[more], faint

    def taken(self, rows: Int64, sums: _Sums, faint: _Sums | None) -> None:
        """Take these rows' votes out of the sums."""
        for into, of in ((sums, ~self._faint[rows]), (faint, self._faint[rows])):
            if into is not None:
                into.votes.take(self.votes[rows[of]], rows[of])
                into.trust.take(self.trust[rows[of]], rows[of])


def trust_of(report: ClientReport, weighting: Weighting | None = None) -> float | Float64:
    """A report's weight, for all of its rows or for each; floored so that a row of mistrusted votes still counts."""
    weight = report.weight if weighting is None else report.weight * weighting.weights(report)
    if isinstance(weight, np.ndarray):
        return np.maximum(weight, TRUST_FLOOR)
    return float(weight)


def scaled(values: NDArray[np.floating], trust: float | Float64) -> NDArray[np.floating]:
    """[n, width] values times the trust in each row, in float64; as they are where the trust is 1."""
    if isinstance(trust, float) and trust == 1.0:
        return values
    by_row = trust[:, None] if isinstance(trust, np.ndarray) else trust
    weighted: Float64 = np.multiply(values, by_row, dtype=np.float64)
    return weighted


def mean_probabilities(ballot: Ballot, reports: Iterable[ClientReport], weighting: Weighting | None = None) -> Pooled:
    """Linear pool m = sum_k w_k p_k / sum_k w_k over the voters of each row."""
    return pool(ballot, reports, probabilities, 2.0, weighting=weighting)


def mean_log_probs(ballot: Ballot, reports: Iterable[ClientReport], weighting: Weighting | None = None) -> Pooled:
    """Weighted mean of log-probabilities floored at ln 1e-7; not normalised."""
    return pool(ballot, reports, lambda votes: floored(votes.log_probs), 32.0, weighting=weighting)


def probabilities(votes: SoftLabels) -> Float32:
    """[n, classes] probabilities in float32.

    A float32 log-probability l says p to a relative |l| * 6e-8; the float32 exponential adds 1e-7 and is five times as
    fast as one in float64. What is exact is the sum.
    """
    return np.exp(votes.log_probs)


def log_of(probabilities: Float64) -> Float64:
    """Natural log, with probabilities floored at 1e-12."""
    return np.log(np.maximum(probabilities, PROBABILITY_FLOOR))
