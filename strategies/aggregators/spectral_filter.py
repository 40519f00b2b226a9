"""Spectral filter: drop votes that stand out where votes disagree most (Diakonikolas et al. 2017)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from strategies.aggregator import Ballot, Outcome, State
from strategies.aggregators.stacking import Block, Mask, capped, mean_of_kept, stacked, weighted_mean
from strategies.messages import ClientReport
from strategies.soft_labels import Float64


@dataclass(frozen=True, slots=True)
class SpectralFilter:
    """Row by row the mean of the votes that do not stand out. Holds all votes.

    Row by row: m is the mean vote, a the first principal direction of the votes around it, u_k = (p_k - m) a; votes
    with |u_k| above the cut are dropped and the mean of the others is the teacher. With few voters it also drops
    honest ones.

    Weights count where votes are averaged: in m, in the covariance and in the mean of the kept. The cut counts
    voters, not weight: how many may be malicious is a matter of numbers.

    Attributes:
        quantile: in (0, 1], the cut as a quantile of the row's |u_k|, the upper of two; 1 keeps all.
        threshold: in [0, 2), the cut itself, instead of the quantile; 0: the quantile. A row that keeps fewer than
            two of its voters is left out, unless the ballot asks for one only.
    """

    quantile: float = 0.5
    threshold: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 < self.quantile <= 1.0:
            raise ValueError(f"quantile={self.quantile} must be in (0, 1]: 1 keeps every vote")
        if not 0.0 <= self.threshold < 2.0:
            raise ValueError(f"threshold={self.threshold} must be in [0, 2): 0 leaves the cut to the quantile")

    def aggregate(self, state: State, ballot: Ballot, reports: Iterable[ClientReport]) -> Outcome:
        def filtered(block: Block) -> Float64:
            votes = block.probabilities()
            kept = self._kept(outlier_scores(votes, block.mask, block.weights), block)
            return mean_of_kept(votes, block.weights, kept, ballot.needed)

        return Outcome(stacked(ballot, reports).teacher(filtered), state)

    def _kept(self, scores: Float64, block: Block) -> Mask:
        if self.threshold > 0.0:
            return np.asarray(block.mask & (scores <= self.threshold), bool)
        voters = block.voters
        # Those who did not vote stand last. The rounding keeps 0.7 * 10 = 7.000000000000001 at the seventh.
        order = np.sort(np.where(block.mask, scores, np.inf), axis=1)
        rank = np.ceil(np.round(self.quantile * (voters - 1), 9)).astype(np.int64)
        return np.asarray(block.mask & (scores <= np.take_along_axis(order, rank[:, None], axis=1)), bool)


def outlier_scores(votes: Float64, mask: Mask, weights: Float64) -> Float64:
    """How far each vote stands out along the row's first principal direction.

    Args:
        votes: [m, C, K] probabilities.
        mask: [m, K] those who count.
        weights: [m, K] their weights, at least one positive on each row.

    Returns:
        [m, K] |u_k| in [0, sqrt 2], to nine digits so that equal votes tie; 0 for those who do not count.
    """
    weights = capped(weights * mask)
    centred = votes - weighted_mean(votes, weights)[:, :, None]
    direction = _first_direction(centred * np.sqrt(weights / weights.sum(axis=1, keepdims=True))[:, None])
    scores: Float64 = np.round(np.abs(np.matmul(direction[:, None], centred)[:, 0]) * mask, 9)
    return scores


def _first_direction(spread: Float64) -> Float64:
    """[m, C] unit vectors a with the largest |a' spread|; spread is [m, C, K] and its columns sum to 0."""
    rows, classes, clients = spread.shape
    if classes == 2:
        # Votes sum to 1, so there is no other direction. (Power iteration from all-ones would find none.)
        return np.broadcast_to(np.array([1.0, -1.0]) / np.sqrt(2.0), (rows, 2))
    turned = spread.transpose(0, 2, 1)
    if classes <= clients:
        first: Float64 = np.linalg.eigh(np.matmul(spread, turned))[1][:, :, -1]
        return first
    mixed: Float64 = np.matmul(spread, np.linalg.eigh(np.matmul(turned, spread))[1][:, :, -1:])[:, :, 0]
    mixed /= np.maximum(np.linalg.norm(mixed, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return mixed
