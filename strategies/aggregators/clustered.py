"""Clustered teachers: COMET (Cho et al. 2023). Two teachers a row, of which a client takes the nearer to its vote."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from strategies.aggregator import Ballot, Outcome, State
from strategies.aggregators.pooling import log_of
from strategies.aggregators.stacking import BLOCK_VOTES, Block, Mask, capped, stacked, weighted_mean
from strategies.lots import lots
from strategies.messages import ClientReport
from strategies.soft_labels import Float64, SoftLabels

# Up to here all 2^(v - 1) - 1 splits of a row's voters are tried; beyond, k-means from several starts.
ENUMERATED = 12
_STEPS = 50
# Splits whose squared errors differ by less tie, and the first is taken; no split gains less than this.
_TIE = 1e-12


@dataclass(frozen=True, slots=True)
class Clustered:
    """Row by row k-means of the votes with two clusters; the server's student learns the mean. Holds all votes.

    `choices` are the two weighted centroids, the heavier first (equal: the one with the first name). Where votes do
    not differ both are the mean. Weights count in the mean, the centroids and the squared error that is minimised.

    Attributes:
        publish_single: whether a cluster of one voter is published. Otherwise both teachers of such a row are the
            mean: not only the single's own, since the other cluster, the mean and the number of voters give the
            single vote away by subtraction.
        restarts: in [1, 100], starts of k-means on rows with more than 12 voters.
    """

    publish_single: bool = False
    restarts: int = 8

    # Clients choose between teachers: see server.planning.
    own_teachers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 1 <= self.restarts <= 100:
            raise ValueError(f"restarts={self.restarts} must be in [1, 100]")

    def aggregate(self, state: State, ballot: Ballot, reports: Iterable[ClientReport]) -> Outcome:
        stack = stacked(ballot, reports)
        parts = [self._teachers(block, ballot.seed) for block in stack.blocks()]
        pooled = np.concatenate([np.zeros((3, 0, ballot.classes)), *parts], axis=1)
        teacher, *choices = (SoftLabels.from_logits(stack.rows, log_of(labels)) for labels in pooled)
        return Outcome(teacher, state, tuple(choices))

    def _teachers(self, block: Block, seed: int) -> Float64:
        """[3, m, C]: the mean and the two centroids."""
        block, votes = replace(block, weights=capped(block.weights)), block.probabilities()
        mean = weighted_mean(votes, block.weights)
        second = self._second_clusters(votes - mean[:, :, None], block, seed)
        seconds, firsts = second.sum(axis=1), (block.mask & ~second).sum(axis=1)
        split = seconds > 0 if self.publish_single else (seconds > 1) & (firsts > 1)
        teachers = np.stack([mean, mean, mean])
        for index, member in ((1, block.mask & ~second), (2, second)):
            teachers[index, split] = weighted_mean(votes[split], (block.weights * member)[split])
        heavier = _comes_first(second, block)
        teachers[1:, heavier] = teachers[:0:-1, heavier]
        return teachers

    def _second_clusters(self, centred: Float64, block: Block, seed: int) -> Mask:
        """[m, K] who is in the second cluster; nobody on a row where votes do not differ."""
        second, voters = np.zeros_like(block.mask), block.voters
        for count in np.unique(voters[(voters > 1) & (voters <= ENUMERATED)]):
            at = np.flatnonzero(voters == count)
            size = max(1, BLOCK_VOTES // (centred.shape[1] * 2 ** (int(count) - 1)))
            for part in np.split(at, range(size, len(at), size)):
                second[part] = _best_split(centred[part], block.weights[part], block.mask[part], int(count))
        at = np.flatnonzero(voters > ENUMERATED)
        if centred.shape[1] == 2:
            second[at] = _best_border(centred[at, 0], block.weights[at], block.mask[at])
        elif len(at):
            draws = (lots(seed, block.rows[at], 2 * self.restarts) >> np.uint64(11)).astype(np.float64) * 2.0**-53
            second[at] = _k_means(centred[at], block.weights[at], block.mask[at], draws)
        return second


def _comes_first(second: Mask, block: Block) -> Mask:
    """[m] whether the second cluster is the heavier, or as heavy and the one with the first voter by name."""
    weight, half = (block.weights * second).sum(axis=1), block.weights.sum(axis=1) / 2.0
    first_voter = np.take_along_axis(second, block.mask.argmax(axis=1)[:, None], axis=1)[:, 0]
    equal = np.abs(weight - half) <= 1e-9 * half
    return np.asarray(np.where(equal, first_voter, weight > half), bool)


def _gain(sums: Float64, weight: Float64, total: Float64) -> Float64:
    """How much a split lowers the squared error, from the second cluster's sum of centred votes; 0 if it is no split.

    Args:
        sums: squared norm of that sum; any shape, like the weight of the second cluster and that of all.
    """
    both = (weight > 0.0) & (weight < total)
    gain: Float64 = np.where(both, sums * total / np.where(both, weight * (total - weight), 1.0), 0.0)
    return gain


def _best_split(centred: Float64, weights: Float64, mask: Mask, voters: int) -> Mask:
    """[r, K] the second cluster of the best of all splits, on rows that have the same number of voters."""
    order = np.argsort(~mask, axis=1, kind="stable")[:, :voters]
    weights, total = np.take_along_axis(weights, order, axis=1), weights.sum(axis=1, keepdims=True)
    votes = np.take_along_axis(centred, order[:, None], axis=2) * weights[:, None]
    # The first voter is always in the first cluster: its bit is never set.
    splits = (np.arange(2, 2**voters, 2)[:, None] >> np.arange(voters) & 1).astype(np.float64)
    sums = np.matmul(votes, splits.T)
    # Summed bit by bit, a split's weight can come out as the total; its share of the voters cannot.
    gains = _gain(np.einsum("rcs,rcs->rs", sums, sums), np.matmul(weights, splits.T), total)
    best = (gains >= gains.max(axis=1, keepdims=True) - _TIE).argmax(axis=1)
    chosen = splits[best].astype(bool) & (gains.max(axis=1, keepdims=True) > _TIE)
    second = np.zeros_like(mask)
    np.put_along_axis(second, order, chosen, axis=1)
    return second


def _best_border(centred: Float64, weights: Float64, mask: Mask) -> Mask:
    """[r, K] the second cluster of the best of all splits of votes on two classes: they lie on a line.

    Args:
        centred: [r, K] the first class's.
    """
    order = np.argsort(np.where(mask, centred, np.inf), axis=1, kind="stable")
    sums = np.cumsum(np.take_along_axis(weights * np.where(mask, centred, 0.0), order, axis=1), axis=1)
    upto = np.cumsum(np.take_along_axis(weights, order, axis=1), axis=1)
    # Both classes deviate by as much.
    gains = _gain(2.0 * sums**2, upto, upto[:, -1:])
    border = gains.argmax(axis=1)[:, None]
    above = np.zeros_like(mask)
    np.put_along_axis(above, order, np.arange(mask.shape[1]) > border, axis=1)
    return mask & above & (np.take_along_axis(gains, border, axis=1) > _TIE)


def _k_means(centred: Float64, weights: Float64, mask: Mask, draws: Float64) -> Mask:
    """[r, K] the second cluster of the best of several runs of k-means.

    Args:
        draws: [r, 2 * restarts] uniform in [0, 1), two for the first centres of each run (k-means++, Arthur and
            Vassilvitskii 2007).
    """
    best, second = np.full(len(centred), _TIE), np.zeros_like(mask)
    for restart in range(0, draws.shape[1], 2):
        first = _drawn(centred, weights, draws[:, restart])
        apart = np.einsum("rck,rck->rk", centred - first[:, :, None], centred - first[:, :, None])
        member, gain = _lloyd(centred, weights, mask, first, _drawn(centred, weights * apart, draws[:, restart + 1]))
        better = gain > best + _TIE
        best[better], second[better] = gain[better], member[better]
    return second


def _drawn(votes: Float64, shares: Float64, draws: Float64) -> Float64:
    """[r, C] one vote a row, drawn in proportion to shares; the first one where all shares are 0."""
    upto = np.cumsum(shares, axis=1)
    at = (upto <= draws[:, None] * upto[:, -1:]).sum(axis=1) % shares.shape[1]
    return np.take_along_axis(votes, at[:, None, None], axis=2)[:, :, 0]


def _lloyd(centred: Float64, weights: Float64, mask: Mask, first: Float64, second: Float64) -> tuple[Mask, Float64]:
    """k-means from two centres: who ends in the second cluster, [r, K], and what the split gains, [r]."""
    total, member = weights.sum(axis=1), np.zeros_like(mask)
    for _ in range(_STEPS):
        # Nearer to the second centre: beyond the plane half-way between the two.
        along = second - first
        half_way = (second**2 - first**2).sum(axis=1) / 2.0
        before, member = member, mask & (np.matmul(along[:, None], centred)[:, 0] > half_way[:, None])
        weight = (weights * member).sum(axis=1)
        sums = np.matmul(centred, (weights * member)[:, :, None])[:, :, 0]
        if (member == before).all():
            break
        # Votes are centred: the sums of the clusters are opposite. An empty cluster ends the row: both centres meet.
        some = np.maximum(weight, np.finfo(np.float64).tiny)[:, None]
        others = np.maximum(total - weight, np.finfo(np.float64).tiny)[:, None]
        second, first = np.where(weight[:, None] > 0, sums / some, 0.0), -sums / others
    return member, _gain((sums**2).sum(axis=1), weight, total)
