"""Streaming pools: weighted means of votes in O(rows x classes) memory, the same bits in every order."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from strategies.exact_sum import OrderFreeSum
from strategies.messages import ClientReport
from strategies.soft_labels import LOG_FLOOR, Float64, Int64, SoftLabels

# The log of 0 is no vote: a class that nobody believes in keeps 1e-12.
PROBABILITY_FLOOR = 1e-12


def pool(reports: Iterable[ClientReport], vote: Callable[[SoftLabels], Float64]) -> tuple[Int64, Float64]:
    """Weighted mean of `vote(soft_labels)` over clients, consumed one report at a time.

    Returns:
        rows [n] and the mean [n, classes].

    Raises:
        ValueError: no report, or reports on different rows.
    """
    rows: Int64 | None = None
    for report in reports:
        votes = report.soft_labels
        if rows is None:
            rows = votes.rows
            total, weights = OrderFreeSum(votes.log_probs.shape), OrderFreeSum(())
        elif not np.array_equal(rows, votes.rows):
            raise ValueError(f"client {report.client!r} voted on other rows than the first: pool equal rows only")
        total.add(report.weight * vote(votes))
        weights.add(np.asarray(report.weight, np.float64).reshape(()))
    if rows is None:
        raise ValueError("no report to aggregate: check the quorum first")
    return rows, total.value() / weights.value()


def mean_probabilities(reports: Iterable[ClientReport]) -> tuple[Int64, Float64]:
    """Linear pool m = sum_k w_k p_k / sum_k w_k: rows [n], probabilities [n, classes]."""
    return pool(reports, SoftLabels.probabilities)


def mean_log_probs(reports: Iterable[ClientReport]) -> tuple[Int64, Float64]:
    """Weighted mean of log-probabilities floored at ln 1e-7: rows [n], values [n, classes], not normalised."""
    return pool(reports, lambda votes: np.maximum(votes.log_probs.astype(np.float64), LOG_FLOOR))


def log_of(probabilities: Float64) -> Float64:
    """Natural log, with probabilities floored at 1e-12."""
    return np.log(np.maximum(probabilities, PROBABILITY_FLOOR))
