"""Hard vote: each voter has one vote for its likeliest class (TallyTrain; SSFL; FedKT, Li et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from strategies.aggregator import Ballot, Outcome, State
from strategies.aggregators.pooling import log_of, pool, probabilities
from strategies.lots import lots
from strategies.messages import ClientReport
from strategies.soft_labels import Float64, Int64, SoftLabels

# Shares or means that differ by less tie: votes are float32.
_TIE = 1e-6


@dataclass(frozen=True, slots=True)
class HardVote:
    """Each class's share of the votes, or the winner alone. Streams.

    A voter with several likeliest classes splits its vote among them. Weights are the votes' sizes. An abstention
    counts nowhere. A tie for the winner goes to the class with the highest weighted mean probability; a tie of those
    too is drawn by (ballot.seed, row), the same in every round: the lowest index would favour class 0.

    Attributes:
        soft: the teacher is the shares; false: it is one-hot on the winner.
        margin: in [0, 1); rows whose first and second share are not further apart are left out (FedKT: more than 2
            votes); 0 keeps every row, ties too.
    """

    soft: bool = True
    margin: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.margin < 1.0:
            raise ValueError(f"margin={self.margin} must be in [0, 1): 0 keeps every row")

    def aggregate(self, state: State, ballot: Ballot, reports: Iterable[ClientReport]) -> Outcome:
        if self.soft:
            pooled = pool(ballot, reports, _ballots, 2.0)
        else:
            pooled = pool(ballot, reports, _ballots_and_probabilities, 2.0, 2 * ballot.classes)
        rows, shares, means = pooled.rows, pooled.mean[:, : ballot.classes], pooled.mean[:, ballot.classes :]
        if self.margin > 0.0:
            ordered = np.sort(shares, axis=1)
            clear = ordered[:, -1] - ordered[:, -2] > self.margin + _TIE
            rows, shares, means = rows[clear], shares[clear], means[clear]
        if not self.soft:
            shares = np.eye(ballot.classes)[_winners(shares, means, rows, ballot.seed)]
        return Outcome(SoftLabels.from_logits(rows, log_of(shares)), state)


def _ballots(votes: SoftLabels) -> Float64:
    """[n, classes] one vote a row, on the likeliest class or split among several."""
    # The maximum over a short last axis is slow; over the first one it is not.
    likeliest = votes.log_probs == np.ascontiguousarray(votes.log_probs.T).max(axis=0)[:, None]
    ballots: Float64 = likeliest.astype(np.float64)
    if np.count_nonzero(likeliest) > len(ballots):
        ballots /= ballots.sum(axis=1, keepdims=True)
    return ballots


def _ballots_and_probabilities(votes: SoftLabels) -> Float64:
    return np.concatenate([_ballots(votes), probabilities(votes)], axis=1)


def _winners(shares: Float64, means: Float64, rows: Int64, seed: int) -> Int64:
    """[n] the class with the most votes; of several the most probable; of several of those one by lot."""
    first = shares >= shares.max(axis=1, keepdims=True) - _TIE
    among = np.where(first, means, -1.0)
    first = among >= among.max(axis=1, keepdims=True) - _TIE
    tickets = (lots(seed, rows, shares.shape[1]) >> np.uint64(1)).astype(np.int64)
    return np.asarray(np.where(first, tickets, -1).argmax(axis=1), np.int64)
