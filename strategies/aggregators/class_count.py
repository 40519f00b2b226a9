"""Class-count weighted mean: on each class a site counts by how many rows of it the site has."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from strategies.aggregator import LARGEST_SHARE, Ballot, Outcome, State
from strategies.aggregators.pooling import WeightedMean, log_of, probabilities, scaled, trust_of
from strategies.exact_sum import WideOrderFreeSum
from strategies.messages import ClientReport
from strategies.soft_labels import Float64, SoftLabels

# More rows of a class than 2^30 count as that many: the exact sum needs a bound.
_MOST = 2.0**30
# So that a mean of mistrusted votes keeps seven digits.
_LEAST_TRUST = 1e-6


@dataclass(frozen=True, slots=True)
class ClassCount:
    """y_c proportional to sum_k W_kc p_kc, W_kc = n_kc / sum_j n_jc over the voters j of the row. Streams.

    n_kc are the rows of class c that site k says it has: numbers or coarse grades, only ratios within a class matter.
    Weights multiply them. A class of which no voter has a row is the weighted mean there; so is a row that comes out
    as nothing. Where one of several voters has more than nine tenths of a class, the class is nine tenths its vote and
    one tenth the weighted mean of the others. Below that claims are believed: for sites that have no reason to lie. A
    weight below 1e-6 counts as 1e-6.
    """

    needs: ClassVar[tuple[str, ...]] = ("counts",)

    def aggregate(self, state: State, ballot: Ballot, reports: Iterable[ClientReport]) -> Outcome:
        shape = (len(ballot.rows), ballot.classes)
        votes, shares = WideOrderFreeSum(shape, 2.0 * _MOST), WideOrderFreeSum(shape, 2.0 * _MOST)
        # The rows of usual reports, which are on all proxy rows with a weight of 1; the mean vote.
        plain, mean = WideOrderFreeSum(shape[1:], 2.0 * _MOST), WeightedMean(shape, 2.0)
        # Of each class: the most rows that one voter has, its vote and its trust.
        most, vote_of, trust_in = np.zeros((3, *shape))
        for report in reports:
            at, trust, own = ballot.positions(report), trust_of(report), probabilities(report.soft_labels)
            if isinstance(trust, np.ndarray):
                trust = np.maximum(trust, _LEAST_TRUST)
            counts, mine = _counts(report), scaled(own, trust)
            # What a report was made of has been checked: nothing here can be too large.
            votes.add(np.multiply(mine, counts, dtype=np.float64), at, vouched=True)
            mean.add(mine, trust, at)
            if isinstance(at, slice) and isinstance(trust, float) and trust == 1.0:
                plain.add(counts, vouched=True)
                rows_of = np.broadcast_to(counts, shape)
            else:
                rows_of = np.multiply.outer(np.full(len(own), trust), counts)
                shares.add(rows_of, at, vouched=True)
            more = rows_of > most[at]
            if more.any():
                trusts = np.full(len(own), trust)[:, None]
                for held, told in ((most, rows_of), (vote_of, own), (trust_in, trusts)):
                    held[at] = np.where(more, told, held[at])
        total, trusted = mean.totals()
        pooled, rows_of = mean.pooled(ballot), shares.value() + plain.value()
        voters = mean.voters
        kept = np.flatnonzero(voters >= ballot.needed)
        teacher = _ratio(votes.value()[kept], rows_of[kept], pooled.mean)
        at, classes = np.nonzero((voters[kept] > 1)[:, None] & (most[kept] > LARGEST_SHARE * rows_of[kept]))
        alone = kept[at], classes
        top, weight = vote_of[alone], trust_in[alone]
        others = (total[alone] - weight * top) / (trusted[alone[0]] - weight)
        teacher[at, classes] = LARGEST_SHARE * top + (1.0 - LARGEST_SHARE) * others
        teacher = _ratio(teacher, teacher.sum(axis=1, keepdims=True), pooled.mean)
        return Outcome(SoftLabels.from_logits(pooled.rows, log_of(teacher)), state)


def _counts(report: ClientReport) -> Float64:
    if report.counts is None:
        raise ValueError(f"client {report.client!r} sent no counts: the plan has to ask for them")
    return np.minimum(report.counts, _MOST)


def _ratio(above: Float64, below: Float64, otherwise: Float64) -> NDArray[np.float64]:
    """above / below, and `otherwise` where below is 0."""
    return np.where(below > 0.0, above / np.where(below > 0.0, below, 1.0), otherwise)
