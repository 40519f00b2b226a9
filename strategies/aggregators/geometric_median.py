"""Geometric median: the point with the least total distance to the votes (Weiszfeld 1937; Vardi and Zhang 2000)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from strategies.aggregator import Ballot, Outcome, State
from strategies.aggregators.median import class_medians
from strategies.aggregators.stacking import Block, capped, stacked, weighted_mean
from strategies.messages import ClientReport
from strategies.soft_labels import Float64

# A step of 1e-9 is below what a float32 label can say.
STEP, ROUNDS = 1e-9, 300
# Rounds crawl towards a median that is itself a vote. So every vote of a row is asked whether it is the median: of few
# voters at once, of more where a row still moves after some rounds.
_FEW, _PATIENCE = 64, 12
_AT_A_VOTE = 1e-12
# Votes that are tried at once: 100 against 1,000 on ten classes are 8 MB.
_TRIED = 100
_TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True, slots=True)
class GeometricMedian:
    """y = argmin_g sum_k w_k |p_k - g|, all classes of a row together, L2. Holds all votes.

    Weiszfeld's rounds with the correction of Vardi and Zhang where a point is itself a vote; each round leaps ahead
    (SQUAREM, Varadhan and Roland 2008) where that is nearer. A median that is a vote is found by their criterion; where
    votes lie on a line and leave a whole stretch to choose from (two voters, two equal camps) it is the middle, or of
    more than 64 voters any point of it.

    Guarantees:
        The result lies in the convex hull of the votes. While less than half of a row's weight is malicious it stays
        near the trusted votes, however far the others are.
    """

    def aggregate(self, state: State, ballot: Ballot, reports: Iterable[ClientReport]) -> Outcome:
        # Votes on two classes lie on a line, where this is the median.
        rule = class_medians if ballot.classes == 2 else _geometric_medians
        return Outcome(stacked(ballot, reports).teacher(rule), state)


def _geometric_medians(block: Block) -> Float64:
    votes, weights = block.probabilities(), capped(block.weights)
    result = weighted_mean(votes, weights)
    moving, at = np.arange(len(votes)), result.copy()
    for round_ in range(ROUNDS):
        if round_ == (0 if votes.shape[2] <= _FEW else _PATIENCE):
            at = np.stack([_at_a_vote(*row) for row in zip(votes, weights, at, strict=True)])
        first = _step(votes, weights, at)
        still = np.linalg.norm(first - at, axis=1) >= STEP
        result[moving] = first
        if not still.all():
            moving, votes, weights, at, first = moving[still], votes[still], weights[still], at[still], first[still]
        if len(moving) == 0:
            break
        at = _step(votes, weights, _leap(votes, weights, at, first, _step(votes, weights, first)))
    return np.maximum(result, 0.0)


def _step(votes: Float64, weights: Float64, at: Float64) -> Float64:
    """One round of Weiszfeld from the points `at`.

    Args:
        votes: [m, C, K].
        weights: [m, K], 0 for those who did not vote.
        at: [m, C].

    Returns:
        [m, C] in the hull of the votes; `at` itself where it is the median.
    """
    apart = votes - at[:, :, None]
    distances = np.sqrt(np.einsum("mck,mck->mk", apart, apart))
    here = distances < _AT_A_VOTE
    pulls = np.where(here, 0.0, weights / np.where(here, 1.0, distances))
    total = np.maximum(pulls.sum(axis=1), _TINY)
    # The others' Weiszfeld point is at + towards, and the force that pulls there is total * |towards|.
    towards = np.matmul(apart, pulls[:, :, None])[:, :, 0] / total[:, None]
    force = total * np.linalg.norm(towards, axis=1)
    held = (weights * here).sum(axis=1)
    # A vote of weight `held` at this very point holds it unless the others pull harder.
    gain = np.where(force > held, 1.0 - held / np.where(force > held, force, 1.0), 0.0)
    stepped: Float64 = at + gain[:, None] * towards
    return stepped


def _leap(votes: Float64, weights: Float64, at: Float64, first: Float64, second: Float64) -> Float64:
    """[m, C] where two steps at -> first -> second seem to lead to, or the second where that is nearer to all."""
    one, bend = first - at, (second - first) - (first - at)
    length = np.linalg.norm(one, axis=1) / np.maximum(np.linalg.norm(bend, axis=1), _TINY)
    length = np.minimum(length, 1e6)[:, None]
    ahead = at + 2.0 * length * one + length**2 * bend
    better = _total_distance(votes, weights, ahead) < _total_distance(votes, weights, second)
    return np.where(better[:, None], ahead, second)


def _at_a_vote(votes: Float64, weights: Float64, at: Float64) -> Float64:
    """[C] the vote of [C, K] that is the median by Vardi and Zhang's criterion, else the point `at`.

    A vote is a median if and only if its weight, with that of votes at the same place, is at least the pull of the
    others: |sum_k w_k (v_k - v) / |v_k - v||. Several places that are lie on one line with all votes, at the ends of
    a stretch of medians and within it.
    """
    found = []
    cast = np.flatnonzero(weights > 0.0)
    votes, weights = votes[:, cast].T, weights[cast]
    for start in range(0, len(votes), _TRIED):
        tried = votes[start : start + _TRIED]
        apart = votes[None] - tried[:, None]
        distances = np.linalg.norm(apart, axis=2)
        here = distances < _AT_A_VOTE
        pulls = np.where(here, 0.0, weights / np.where(here, 1.0, distances))
        force = np.linalg.norm(np.matmul(pulls[:, None], apart)[:, 0], axis=1)
        holds = force <= (weights * here).sum(axis=1) * (1.0 + 1e-9)
        found.append(tried[holds])
    medians = np.concatenate(found)
    if len(medians) == 0:
        return at
    axis = np.ptp(medians, axis=0).argmax()
    ends = medians[[medians[:, axis].argmin(), medians[:, axis].argmax()]]
    return np.asarray(ends.mean(axis=0), np.float64)


def _total_distance(votes: Float64, weights: Float64, at: Float64) -> Float64:
    apart = votes - at[:, :, None]
    total: Float64 = (weights * np.sqrt(np.einsum("mck,mck->mk", apart, apart))).sum(axis=1)
    return total
