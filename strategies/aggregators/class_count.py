"""Class-count weighted mean: on each class a site counts by how many rows of it the site has."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from strategies.aggregator import LARGEST_SHARE, Ballot, Outcome, State
from strategies.aggregators.pooling import log_of, probabilities, scaled, trust_of
from strategies.exact_sum import OrderFreeSum, WideOrderFreeSum
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
    as nothing, and one on which one of several voters has more than nine tenths of all rows.
    Claims are believed: for sites that have no reason to lie. A weight below 1e-6 counts as 1e-6.
    """

    needs: ClassVar[tuple[str, ...]] = ("counts",)

    def aggregate(self, state: State, ballot: Ballot, reports: Iterable[ClientReport]) -> Outcome:
        shape = (len(ballot.rows), ballot.classes)
        votes, shares = WideOrderFreeSum(shape, 2.0 * _MOST), WideOrderFreeSum(shape, 2.0 * _MOST)
        all_votes, trusted = OrderFreeSum(shape, 2.0), OrderFreeSum(shape[:1], 2.0)
        # The usual reports: on all rows, with a weight of 1.
        plain, most = WideOrderFreeSum(shape[1:], 2.0 * _MOST), 0.0
        voters, largest = np.zeros(shape[0], np.int64), np.zeros(shape[0])
        for report in reports:
            at, trust, own = ballot.positions(report), trust_of(report), probabilities(report.soft_labels)
            if isinstance(trust, np.ndarray):
                trust = np.maximum(trust, _LEAST_TRUST)
            counts, mine = _counts(report), scaled(own, trust)
            # What a report was made of has been checked: nothing here can be too large.
            votes.add(np.multiply(mine, counts, dtype=np.float64), at, vouched=True)
            all_votes.add(mine, at, vouched=True)
            if isinstance(at, slice) and isinstance(trust, float) and trust == 1.0:
                plain.add(counts, vouched=True)
                most = max(most, float(counts.sum()))
                continue
            by_row = np.full(len(own), trust)
            shares.add(np.multiply.outer(by_row, counts), at, vouched=True)
            trusted.add(by_row, at, vouched=True)
            largest[at] = np.maximum(largest[at], by_row * counts.sum())
            voters[at] += 1
        if all_votes.terms == 0:
            raise ValueError("no report to aggregate: check the quorum first")
        rows_of = shares.value() + plain.value()
        voters += plain.terms
        kept = voters >= ballot.needed
        alone = (voters > 1) & (np.maximum(largest, most) > LARGEST_SHARE * rows_of.sum(axis=1))
        mean = all_votes.value()[kept] / (trusted.value() + plain.terms)[kept][:, None]
        teacher = _ratio(votes.value()[kept], rows_of[kept], mean)
        teacher = _ratio(teacher, teacher.sum(axis=1, keepdims=True), mean)
        teacher[alone[kept]] = mean[alone[kept]]
        return Outcome(SoftLabels.from_logits(ballot.rows[kept], log_of(teacher)), state)


def _counts(report: ClientReport) -> Float64:
    if report.counts is None:
        raise ValueError(f"client {report.client!r} sent no counts: the plan has to ask for them")
    return np.minimum(report.counts, _MOST)


def _ratio(above: Float64, below: Float64, otherwise: Float64) -> NDArray[np.float64]:
    """above / below, and `otherwise` where below is 0."""
    return np.where(below > 0.0, above / np.where(below > 0.0, below, 1.0), otherwise)
