"""Entropy-weighted mean: a vote counts by how far it is from saying nothing (our rule)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from strategies.aggregator import Ballot, Outcome, State
from strategies.aggregators.pooling import log_of, mean_probabilities, probabilities
from strategies.messages import ClientReport
from strategies.soft_labels import Float64, SoftLabels

# What float32 votes and their sum may add to the share of all that could be said.
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Entropy:
    """s_k = min(1, (1 - H(p_k) / ln C) / cap), then the mean of probabilities. Streams; lends its weights.

    Below 1e-6, what rounding makes of uniform votes, all count alike. FedGEMS (Cheng et al. 2021) weighs by 1 / H and
    needs labels of the proxy rows.

    Attributes:
        cap: in (0, 1], the share of all that could be said above which votes count alike. 1: the surest vote counts
            most, which an attacker's always is; small: only who says next to nothing is left out.
    """

    cap: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.cap <= 1.0:
            raise ValueError(f"cap={self.cap} must be in (0, 1]: above it all votes count alike")

    def weights(self, report: ClientReport) -> Float64:
        votes = report.soft_labels
        # The sum over a short last axis is slow; over the first one it is not.
        by_class = np.ascontiguousarray((probabilities(votes) * votes.log_probs).T)
        entropy_nats = -by_class.sum(axis=0, dtype=np.float64)
        said = np.maximum(1.0 - entropy_nats / np.log(votes.classes), _ROUNDING)
        shares: Float64 = np.minimum(said / self.cap, 1.0)
        return shares

    def aggregate(self, state: State, ballot: Ballot, reports: Iterable[ClientReport]) -> Outcome:
        pooled = mean_probabilities(ballot, reports, self)
        return Outcome(SoftLabels.from_logits(pooled.rows, log_of(pooled.mean)), state)
