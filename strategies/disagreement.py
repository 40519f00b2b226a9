"""How much voters disagree on each row: what active choice goes by."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from strategies.aggregator import Ballot
from strategies.aggregators.pooling import log_of
from strategies.exact_sum import OrderFreeSum
from strategies.messages import ClientReport
from strategies.soft_labels import Float64


class DisagreementMeter:
    """Listens to reports while a rule consumes them: H(m) - mean_k H(p_k) on each row, in nats.

    That is the generalised Jensen-Shannon divergence of the votes: 0 where all say the same, at most ln C. Weights
    do not count: a mistrusted voter's disagreement is still one.
    """

    def __init__(self, ballot: Ballot) -> None:
        self._ballot = ballot
        self._votes = OrderFreeSum((len(ballot.rows), ballot.classes), 2.0)
        self._entropies = OrderFreeSum((len(ballot.rows),), 32.0)
        self._voters = np.zeros(len(ballot.rows), np.int64)

    def listen(self, reports: Iterable[ClientReport]) -> Iterator[ClientReport]:
        """The same reports, one at a time."""
        for report in reports:
            at, probabilities = self._ballot.positions(report), report.soft_labels.probabilities()
            self._votes.add(probabilities, at)
            self._entropies.add(_entropy_nats(probabilities), at)
            self._voters[at] += 1
            yield report

    def value(self) -> Float64:
        """[n] for the ballot's rows; NaN where nobody voted."""
        voters = np.where(self._voters > 0, self._voters, np.nan)
        mixed = _entropy_nats(self._votes.value() / voters[:, None])
        return np.maximum(mixed - self._entropies.value() / voters, 0.0)


def _entropy_nats(probabilities: Float64) -> Float64:
    entropy: Float64 = -(probabilities * log_of(probabilities)).sum(axis=1)
    return entropy
