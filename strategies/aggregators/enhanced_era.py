"""Enhanced ERA: the power sharpening of SCARLET (Azuma et al. 2025)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from strategies.aggregator import Ballot, Outcome, State
from strategies.aggregators.pooling import log_of, mean_probabilities
from strategies.messages import ClientReport
from strategies.soft_labels import Float64, SoftLabels


@dataclass(frozen=True, slots=True)
class EnhancedEra:
    """y_c proportional to m_c ^ exponent, m the mean probability. Streams; as a sharpening it follows other rules.

    Attributes:
        exponent: in (0, 100]; 1 is the mean, above 1 sharpens, below 1 flattens. The paper takes 2 under
            Dirichlet 0.05 and 1 under 0.3.
    """

    exponent: float = 2.0

    def __post_init__(self) -> None:
        if not 0.0 < self.exponent <= 100.0:
            raise ValueError(f"exponent={self.exponent} must be in (0, 100]: 1 is the plain mean")

    def aggregate(self, state: State, ballot: Ballot, reports: Iterable[ClientReport]) -> Outcome:
        pooled = mean_probabilities(ballot, reports)
        return Outcome(SoftLabels.from_logits(pooled.rows, self.sharpen(log_of(pooled.mean))), state)

    def sharpen(self, log_probs: Float64) -> Float64:
        return self.exponent * log_probs
