"""Per-class tables: federated distillation without proxy rows (Jeong et al. 2018). Rows are classes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from strategies.aggregator import Ballot, Outcome, State, most_trust
from strategies.aggregators.pooling import TRUST_FLOOR, log_of
from strategies.aggregators.stacking import capped, stacked
from strategies.messages import ClientReport
from strategies.soft_labels import Float64, SoftLabels


@dataclass(frozen=True, slots=True)
class PerClass:
    """Client i's teacher for class c: the mean over the *other* clients that have c. Holds all tables.

    Row c of a report is the client's mean softmax over its own samples of class c; a class that it does not have is
    not in it. `personal` holds the leave-one-out tables; a class that nobody else has is not in them (the paper's
    fixed divisor K - 1 would make it no distribution). `teacher` is the mean over all. A class that only two clients
    have tells each of them the other's row.

    Memory: about 5 * 8 * K C^2 bytes, 400 MB for 1,000 clients and 100 classes.

    Attributes:
        by_count: weigh clients by their number of samples of the class; it must be asked for, and is a release. One of
            several has at most nine tenths of a class, whatever it claims.
    """

    by_count: bool = False

    # What row numbers mean here, and that clients get teachers of their own: see server.planning.
    subject: ClassVar[str] = "classes"
    own_teachers: ClassVar[bool] = True

    @property
    def needs(self) -> tuple[str, ...]:
        """What reports must carry beside votes."""
        return ("counts",) if self.by_count else ()

    def aggregate(self, state: State, ballot: Ballot, reports: Iterable[ClientReport]) -> Outcome:
        if len(ballot.rows) and ballot.rows[-1] >= ballot.classes:
            raise ValueError(f"row {ballot.rows[-1]} is none of {ballot.classes} classes: per-class needs class tables")
        ordered = sorted(reports, key=lambda report: report.client)
        stack = stacked(ballot, ordered)
        weights = stack.weights[:, stack.positions]
        if self.by_count:
            weights = weights * np.stack([_counts(report) for report in ordered])[:, stack.rows]
        weights = weights / np.where((weights > 0).any(axis=0), weights.max(axis=0), 1.0)
        # A client that has a table and no samples of it says nothing, unless all do.
        weights = np.where(stack.mask[:, stack.positions], np.maximum(weights, TRUST_FLOOR), 0.0)
        tables = np.exp(stack.log_probs[:, stack.positions], dtype=np.float64)
        shares = capped(weights.T).T
        teacher = SoftLabels.from_logits(
            stack.rows, _log_ratio((tables * shares[:, :, None]).sum(axis=0), shares.sum(axis=0))
        )
        sums, others = _of_others(tables, weights)
        logits = _log_ratio(sums, others)
        personal = {
            client: SoftLabels.from_logits(stack.rows[others[index] > 0], logits[index, others[index] > 0])
            for index, client in enumerate(stack.clients)
        }
        return Outcome(teacher, state, personal=personal)


def _counts(report: ClientReport) -> Float64:
    if report.counts is None:
        raise ValueError(f"client {report.client!r} sent no counts: the plan has to ask for them")
    return report.counts


def _of_others(tables: Float64, weights: Float64) -> tuple[Float64, Float64]:
    """Sums over all clients but each: [K, n, C] of tables by capped weights, and [K, n] of those.

    Args:
        tables: [K, n, C].
        weights: [K, n], 0 for who has no table.
    """
    rows = np.arange(weights.shape[1])
    top = weights.argmax(axis=0)
    rest = weights.copy()
    rest[top, rows] = 0.0
    # Among the others of the heaviest the second is the heaviest; among those of everybody else the heaviest itself.
    second = capped(rest.T).T
    sums, others = _sum_of_others(tables * rest[:, :, None]), _sum_of_others(rest)
    most = np.where(others > 0.0, most_trust(others), np.inf)
    added = np.minimum(weights[top, rows], most)
    added[top, rows] = 0.0
    sums, others = sums + added[:, :, None] * tables[top, rows], others + added
    sums[top, rows], others[top, rows] = (tables * second[:, :, None]).sum(axis=0), second.sum(axis=0)
    return sums, others


def _sum_of_others(terms: Float64) -> Float64:
    """[K, ...] sum over the first axis without each entry itself; those before and those after, nothing subtracted."""
    others = np.zeros_like(terms)
    others[1:] = np.cumsum(terms[:-1], axis=0)
    others[:-1] += np.cumsum(terms[:0:-1], axis=0)[::-1]
    return others


def _log_ratio(sums: Float64, weights: Float64) -> Float64:
    """ln of [..., C] sums over [...] weights; any value where the weight is 0."""
    return log_of(sums / np.where(weights > 0, weights, 1.0)[..., None])
