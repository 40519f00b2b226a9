"""Confidence-weighted mean: a vote counts by how sure it is of its likeliest class (our rule)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from strategies.aggregator import Ballot, Outcome, State
from strategies.aggregators.pooling import log_of, mean_probabilities
from strategies.messages import ClientReport
from strategies.soft_labels import Float64, SoftLabels


@dataclass(frozen=True, slots=True)
class Confidence:
    """s_k = (max_c p_k) ^ exponent, then the mean of probabilities. Streams; lends its weights to other rules.

    It helps where sites that do not know a row's class are unsure of it, and rewards those that are sure and wrong.

    Attributes:
        exponent: in [0, 16]; 0 is the plain mean. A trust below 1e-18 counts as 1e-18.
    """

    exponent: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.exponent <= 16.0:
            raise ValueError(f"exponent={self.exponent} must be in [0, 16]: 0 is the plain mean")

    def weights(self, report: ClientReport) -> Float64:
        # The maximum over a short last axis is slow; over the first one it is not.
        top = np.ascontiguousarray(report.soft_labels.log_probs.T).max(axis=0).astype(np.float64)
        # A row that normalises to 1 + 1e-7 must not weigh more than 1.
        shares: Float64 = np.exp(self.exponent * np.minimum(top, 0.0))
        return shares

    def aggregate(self, state: State, ballot: Ballot, reports: Iterable[ClientReport]) -> Outcome:
        pooled = mean_probabilities(ballot, reports, self)
        return Outcome(SoftLabels.from_logits(pooled.rows, log_of(pooled.mean)), state)
