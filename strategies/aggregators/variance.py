"""Variance-weighted mean of logits: Fed-ET (Cho et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from strategies.aggregator import Ballot, Outcome, State
from strategies.aggregators.stacking import Block, stacked, weighted_mean
from strategies.messages import ClientReport
from strategies.soft_labels import LOG_FLOOR, Float32, Float64

# The variance grows with the square of the logit scale: below ln 1e-4 a vote says nothing more.
_FLOOR = float(np.log(1e-4))
# The most that values between the floor and 0 can vary: half at either end, 21.2 square nats.
_MOST = _FLOOR**2 / 4.0
_CAP = 3.0
# Equal float32 values have a variance of rounding.
_NONE = 1e-12


@dataclass(frozen=True, slots=True)
class Variance:
    """y = softmax(sum_k s_k l_k / sum_k s_k), s_k the variance of l_k over classes. Holds all votes.

    For s_k the log-probabilities are floored at ln 1e-4, for the pool at ln 1e-7; s_k is capped at 3 times the median
    over the row's voters (floor and cap are ours), so that one vote among three and more cannot outweigh the others by
    being sure. Weights multiply the capped s_k. A row whose median is 0 counts all votes alike.

    Lent to another rule (`weight = "variance"`) s_k has its floor, but no cap: a report is weighed without the
    others.
    """

    def weights(self, report: ClientReport) -> Float64:
        shares: Float64 = _variances(np.ascontiguousarray(report.soft_labels.log_probs.T)[None])[0]
        return shares

    def aggregate(self, state: State, ballot: Ballot, reports: Iterable[ClientReport]) -> Outcome:
        return Outcome(stacked(ballot, reports).teacher(_pooled), state)


def _variances(log_probs: Float32) -> Float64:
    """[m, K] population variances over classes of [m, C, K], in [0, 1] of the most possible."""
    shares: Float64 = np.maximum(log_probs, _FLOOR, dtype=np.float64).var(axis=1) / _MOST
    return np.minimum(shares, 1.0)


def _pooled(block: Block) -> Float64:
    shares = _variances(block.log_probs)
    order = np.sort(np.where(block.mask, shares, np.inf), axis=1)
    middle = np.stack([(block.voters - 1) // 2, block.voters // 2], axis=1)
    median = np.take_along_axis(order, middle, axis=1).mean(axis=1)
    capped = np.minimum(shares, _CAP * median[:, None])
    trust = block.weights * np.where(median[:, None] > _NONE, capped, 1.0)
    pooled = weighted_mean(np.maximum(block.log_probs, LOG_FLOOR, dtype=np.float64), trust)
    teacher: Float64 = np.exp(pooled - pooled.max(axis=1, keepdims=True))
    return teacher
