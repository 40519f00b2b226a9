"""Coordinate median: class by class the vote in the middle (Yin et al. 2018, for gradients)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from strategies.aggregator import Ballot, Outcome, State
from strategies.aggregators.stacking import Block, capped, stacked, unless_nothing
from strategies.messages import ClientReport
from strategies.soft_labels import Float32, Float64

# Sums of weights carry rounding; half of the weight is half of it to nine digits.
_HALF_LOW, _HALF_HIGH = 0.5 - 1e-9, 0.5 + 1e-9


@dataclass(frozen=True, slots=True)
class Median:
    """Per class the weighted median of the voters' probabilities, then renormalised. Holds all votes.

    The weighted median is the mean of the smallest value with at least half of the row's weight up to it and of the
    smallest with more than half. With equal weights that is the middle value, or the mean of the two middle ones.
    Where all classes come out as nothing (three different one-hots) the row is the weighted mean.

    Guarantees:
        A class's value before renormalising lies between those of trusted voters while less than half of a row's
        weight is malicious, unless all classes come out as nothing: the mean has no such bound. Uniform votes of free
        riders count like any other: five of ten are half of the weight.
    """

    def aggregate(self, state: State, ballot: Ballot, reports: Iterable[ClientReport]) -> Outcome:
        return Outcome(stacked(ballot, reports).teacher(class_medians), state)


def class_medians(block: Block) -> Float64:
    """[m, C] weighted medians; not normalised."""
    values, shares = ascending(block)
    low = (shares < _HALF_LOW).sum(axis=2, keepdims=True)
    high = (shares < _HALF_HIGH).sum(axis=2, keepdims=True)
    middle = [np.take_along_axis(values, np.broadcast_to(at, (*values.shape[:2], 1)), axis=2) for at in (low, high)]
    return unless_nothing(np.exp(middle, dtype=np.float64).mean(axis=0)[:, :, 0], block)


def ascending(block: Block) -> tuple[Float32, Float64]:
    """A block's votes in order, and what share of the row's weight lies up to each.

    Returns:
        [m, C, K] log-probabilities ascending, the -inf of those who did not vote first; and [m, C, K] shares, at the
        end 1, or [m, 1, K] where all voters of every row weigh the same.
    """
    if ((block.weights == 1.0) == block.mask).all():
        first = block.mask.shape[1] - block.voters
        counted = np.arange(1, block.mask.shape[1] + 1) - first[:, None]
        return np.sort(block.log_probs, axis=2), (np.maximum(counted, 0) / block.voters[:, None])[:, None, :]
    order = np.argsort(block.log_probs, axis=2)
    weights = np.take_along_axis(np.broadcast_to(capped(block.weights)[:, None], order.shape), order, axis=2)
    upto = np.cumsum(weights, axis=2)
    return np.take_along_axis(block.log_probs, order, axis=2), upto / upto[:, :, -1:]
