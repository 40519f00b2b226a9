"""Mean of probabilities, the linear pool: FedDF's avg_probs (Lin et al. 2020), CFD (Sattler et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from strategies.aggregator import Ballot, Outcome, State
from strategies.aggregators.pooling import log_of, mean_probabilities
from strategies.messages import ClientReport
from strategies.soft_labels import SoftLabels


@dataclass(frozen=True, slots=True)
class Mean:
    """y = sum_k w_k p_k / sum_k w_k. Streams.

    Guarantees:
        A share a of malicious voters moves a row by at most 2a in L1. One client's mean is its own vote.
    """

    def aggregate(self, state: State, ballot: Ballot, reports: Iterable[ClientReport]) -> Outcome:
        pooled = mean_probabilities(ballot, reports)
        return Outcome(SoftLabels.from_logits(pooled.rows, log_of(pooled.mean)), state)
