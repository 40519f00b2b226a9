"""Entropy reduction aggregation, ERA: DS-FL (Itahara et al. 2020)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from strategies.aggregator import Ballot, Outcome, State
from strategies.aggregators.pooling import mean_probabilities
from strategies.messages import ClientReport
from strategies.soft_labels import Float64, SoftLabels


@dataclass(frozen=True, slots=True)
class Era:
    """y = softmax(m / T) over classes of the mean *probability* m. Streams; as a sharpening it follows other rules.

    Attributes:
        temperature: T in [0.001, 1). The odds of class a over c become exp((m_a - m_c) / T): a pair is sharpened
            only if (m_a - m_c) / T > ln(m_a / m_c). With 100 classes and a top of 0.1 it flattens; there
            `enhanced-era` is the better rule.
    """

    temperature: float = 0.1

    def __post_init__(self) -> None:
        if not 1e-3 <= self.temperature < 1.0:
            raise ValueError(
                f"temperature={self.temperature} must be in [0.001, 1): at 1 and above ERA flattens; DS-FL uses 0.1"
            )

    def aggregate(self, state: State, ballot: Ballot, reports: Iterable[ClientReport]) -> Outcome:
        pooled = mean_probabilities(ballot, reports)
        return Outcome(SoftLabels.from_logits(pooled.rows, pooled.mean / self.temperature), state)

    def sharpen(self, log_probs: Float64) -> Float64:
        sharpened: Float64 = np.exp(log_probs) / self.temperature
        return sharpened
