"""All votes of a round side by side, for rules that cannot stream."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from strategies.aggregator import LARGEST_SHARE, Ballot, most_trust
from strategies.aggregators.pooling import log_of, trust_of
from strategies.messages import ClientReport
from strategies.soft_labels import Float32, Float64, Int64, SoftLabels

Mask = NDArray[np.bool_]
# Votes that are worked on at once: 1 MB of float32, so that a block and what is made of it stay in the cache.
BLOCK_VOTES = 2**18
# Class-wise medians that sum to no more than what codecs put into classes that nobody believes in: quantised labels
# share 1e-4 out among a row's classes, the others' floor is 1e-7 a class.
_NOTHING, _NOTHING_PER_CLASS = 2e-4, 2e-7


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Some rows of a stack, turned so that a class's votes lie side by side.

    Attributes:
        rows: [m] row numbers.
        log_probs: [m, C, K]; -inf where a client did not vote.
        mask: [m, K] who voted; at least one a row.
        weights: [m, K] trust, positive where mask is set and 0 elsewhere; the largest of each row is 1.
    """

    rows: Int64
    log_probs: Float32
    mask: Mask
    weights: Float64

    @property
    def voters(self) -> Int64:
        """[m] voters of each row."""
        return np.asarray(self.mask.sum(axis=1), np.int64)

    def probabilities(self) -> Float64:
        """[m, C, K]; 0 where a client did not vote."""
        return np.exp(self.log_probs, dtype=np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Stack:
    """The votes on the rows that met the quorum, in order of client name.

    Memory: 4 K n C bytes beside the reports, 40 MB for 1,000 clients x 1,000 rows x 10 classes; blocks add a few MB.

    Attributes:
        clients: [K] names, sorted.
        classes: C.
        rows: [n'] rows with enough voters.
        positions: [n'] where they stand in the arrays below.
        log_probs: [K, n, C]; -inf where a client did not vote.
        mask: [K, n] who voted on what.
        weights: [K, n] trust, positive where mask is set and 0 elsewhere.
    """

    clients: tuple[str, ...]
    classes: int
    rows: Int64
    positions: Int64
    log_probs: Float32
    mask: Mask
    weights: Float64

    def blocks(self) -> Iterator[Block]:
        """The rows in order, a few at a time."""
        size = max(1, BLOCK_VOTES // (len(self.clients) * self.classes))
        for start in range(0, len(self.rows), size):
            at = self.positions[start : start + size]
            weights = np.ascontiguousarray(self.weights[:, at].T)
            yield Block(
                self.rows[start : start + size],
                np.ascontiguousarray(self.log_probs[:, at].transpose(1, 2, 0)),
                np.ascontiguousarray(self.mask[:, at].T),
                weights / weights.max(axis=1, keepdims=True),
            )

    def only(self, rows: Int64) -> Stack:
        """The same votes on some of the rows."""
        some = np.isin(self.rows, rows)
        return replace(self, rows=self.rows[some], positions=self.positions[some])

    def teacher(self, rule: Callable[[Block], Float64]) -> SoftLabels:
        """What a rule makes of each block: [m, C], any positive scale a row; a row of zeros is left out."""
        parts = [rule(block) for block in self.blocks()]
        pooled = np.concatenate([np.zeros((0, self.classes)), *parts])
        total = pooled.sum(axis=1, keepdims=True)
        some = total[:, 0] > 0.0
        return SoftLabels.from_logits(self.rows[some], log_of(pooled[some] / total[some]))


def stacked(ballot: Ballot, reports: Iterable[ClientReport]) -> Stack:
    """Collect the reports, sorted by client, so that their order of arrival cannot matter.

    Raises:
        ValueError: no report, two of one client, or one on rows that are not on the ballot.
    """
    ordered = sorted(reports, key=lambda report: report.client)
    if not ordered:
        raise ValueError("no report to aggregate: check the quorum first")
    clients = tuple(report.client for report in ordered)
    if len(set(clients)) < len(clients):
        raise ValueError("two reports of one client: a client has one vote")
    shape = (len(ordered), len(ballot.rows))
    log_probs = np.full((*shape, ballot.classes), -np.inf, np.float32)
    mask, weights = np.zeros(shape, bool), np.zeros(shape)
    for index, report in enumerate(ordered):
        at = ballot.positions(report)
        log_probs[index, at] = report.soft_labels.log_probs
        mask[index, at] = True
        weights[index, at] = trust_of(report)
    positions = np.flatnonzero(mask.sum(axis=0) >= ballot.needed)
    return Stack(clients, ballot.classes, ballot.rows[positions], positions, log_probs, mask, weights)


def capped(weights: Float64) -> Float64:
    """[m, K] weights, 0 for those who do not count, with the largest of several lowered to LARGEST_SHARE of a row.

    For a rule's last weights, products with its own ones included: to cap twice is not to cap once.
    """
    over = np.flatnonzero(weights.max(axis=1, initial=0.0) > LARGEST_SHARE * weights.sum(axis=1))
    over = over[(weights[over] > 0.0).sum(axis=1) > 1]
    if len(over) == 0:
        return weights
    others, top = weights[over], weights[over].argmax(axis=1)[:, None]
    largest = np.take_along_axis(others, top, axis=1)
    np.put_along_axis(others, top, 0.0, axis=1)
    lowered = np.minimum(largest, most_trust(others.sum(axis=1, keepdims=True)))
    np.put_along_axis(others, top, lowered, axis=1)
    weights = weights.copy()
    weights[over] = others
    return weights


def weighted_mean(probabilities: Float64, weights: Float64) -> Float64:
    """Mean of [m, C, K] votes by capped [m, K] weights, not all 0 on a row: [m, C]."""
    weights = capped(weights)
    pooled: Float64 = np.matmul(probabilities, weights[:, :, None])[:, :, 0] / weights.sum(axis=1)[:, None]
    return pooled


def mean_of_kept(votes: Float64, weights: Float64, kept: Mask, needed: int) -> Float64:
    """[m, C] weighted mean of the kept of [m, C, K] votes; zeros for a row on which one of several is left alone.

    Args:
        needed: voters that the ballot needs.
    """
    enough = kept.sum(axis=1) >= min(needed, 2)
    pooled = np.zeros(votes.shape[:2])
    pooled[enough] = weighted_mean(votes[enough], (weights * kept)[enough])
    return pooled


def unless_nothing(pooled: Float64, block: Block) -> Float64:
    """[m, C] class-wise results; the weighted mean where they sum to nothing (three different one-hots)."""
    nothing = np.flatnonzero(pooled.sum(axis=1) <= _NOTHING + _NOTHING_PER_CLASS * pooled.shape[1])
    if len(nothing):
        pooled = pooled.copy()
        votes = np.exp(block.log_probs[nothing], dtype=np.float64)
        pooled[nothing] = weighted_mean(votes, block.weights[nothing])
    return pooled
