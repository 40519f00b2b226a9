"""Mean of logits: the consensus of FedMD (Li and Wang 2019), FedDF's averaged logits (Lin et al. 2020)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from strategies.aggregator import Ballot, Outcome, State
from strategies.aggregators.pooling import mean_log_probs
from strategies.messages import ClientReport
from strategies.soft_labels import SoftLabels


@dataclass(frozen=True, slots=True)
class LogitMean:
    """y = softmax(sum_k w_k l_k / sum_k w_k) with l = log p floored at ln 1e-7. Streams.

    Pooling log-probabilities equals pooling raw logits: the two differ by a constant per row, which softmax
    ignores. Confident clients dominate, and one that says "never" nearly vetoes a class: where sites see
    different classes, `mean` or `era` is the better rule.
    """

    def aggregate(self, state: State, ballot: Ballot, reports: Iterable[ClientReport]) -> Outcome:
        pooled = mean_log_probs(ballot, reports)
        return Outcome(SoftLabels.from_logits(pooled.rows, pooled.mean), state)
