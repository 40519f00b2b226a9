"""Mean of probabilities, the linear pool: FedDF's avg_probs (Lin et al. 2020), CFD (Sattler et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from strategies.aggregator import State
from strategies.aggregators.pooling import log_of, mean_probabilities
from strategies.messages import ClientReport
from strategies.soft_labels import SoftLabels


@dataclass(frozen=True, slots=True)
class Mean:
    """y = sum_k w_k p_k / sum_k w_k. Streams.

    Guarantees:
        A share a of malicious voters moves a row by at most 2a in L1. One client's mean is its own vote.
    """

    def aggregate(self, state: State, reports: Iterable[ClientReport]) -> tuple[SoftLabels, State]:
        rows, mean = mean_probabilities(reports)
        return SoftLabels.from_logits(rows, log_of(mean)), state
