"""Cronus: the spectral filter in two passes against an assumed number of attackers (Chang et al. 2019)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from strategies.aggregator import Ballot, Outcome, State
from strategies.aggregators.spectral_filter import outlier_scores
from strategies.aggregators.stacking import Block, Mask, stacked, weighted_mean
from strategies.messages import ClientReport
from strategies.soft_labels import Float64, Int64


@dataclass(frozen=True, slots=True)
class Cronus:
    """Row by row: score, drop the ceil(f / 2) worst; score the rest, drop f - ceil(f / 2); the mean. Holds all votes.

    Scores are those of `spectral-filter`. (The two-pass form of the public re-implementation, with exact counts; the
    paper's own pseudo-code was not available to us.) Weights count in the scores and in the mean of the kept;
    attackers are counted by heads. Equal scores fall in the order of names, the last first.

    Attributes:
        attackers: f, assumed on each row; a row with fewer than 2 f + 1 voters is left out. 0: the most that the
            voters v of a row allow, ceil(v / 2) - 1.
    """

    attackers: int = 0

    def __post_init__(self) -> None:
        if self.attackers < 0:
            raise ValueError(f"attackers={self.attackers} must be at least 0: 0 takes the most that a row allows")

    def aggregate(self, state: State, ballot: Ballot, reports: Iterable[ClientReport]) -> Outcome:
        return Outcome(stacked(ballot, reports).teacher(self._kept_mean), state)

    def _kept_mean(self, block: Block) -> Float64:
        voters = block.voters
        assumed = np.full(len(voters), self.attackers) if self.attackers else (voters + 1) // 2 - 1
        able = np.flatnonzero(voters >= 2 * assumed + 1)
        votes, mask, weights, assumed = (
            block.probabilities()[able],
            block.mask[able],
            block.weights[able],
            assumed[able],
        )
        for count in ((assumed + 1) // 2, assumed // 2):
            mask = _without_worst(outlier_scores(votes, mask, weights), mask, count)
        pooled = np.zeros(block.log_probs.shape[:2])
        pooled[able] = weighted_mean(votes, weights * mask)
        return pooled


def _without_worst(scores: Float64, mask: Mask, count: Int64) -> Mask:
    """[m, K] the mask without exactly `count` [m] of each row's largest scores."""
    order = np.argsort(np.where(mask, scores, -1.0), axis=1, kind="stable")
    dropped = np.zeros_like(mask)
    late = np.arange(mask.shape[1]) >= mask.shape[1] - count[:, None]
    np.put_along_axis(dropped, order, late, axis=1)
    return mask & ~dropped
