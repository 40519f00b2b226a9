"""Entropy reduction aggregation, ERA: DS-FL (Itahara et al. 2020)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from strategies.aggregator import State
from strategies.aggregators.pooling import mean_probabilities
from strategies.messages import ClientReport
from strategies.soft_labels import SoftLabels


@dataclass(frozen=True, slots=True)
class Era:
    """y = softmax(m / T) over classes of the mean *probability* m. Streams.

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

    def aggregate(self, state: State, reports: Iterable[ClientReport]) -> tuple[SoftLabels, State]:
        rows, mean = mean_probabilities(reports)
        return SoftLabels.from_logits(rows, mean / self.temperature), state
