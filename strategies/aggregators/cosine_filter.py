"""Cosine filter: drop clients that point away from the median of all, then the mean (our rule)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from strategies.aggregator import Ballot, Outcome, State
from strategies.aggregators.median import class_medians
from strategies.aggregators.stacking import Block, Stack, mean_of_kept, stacked
from strategies.messages import ClientReport
from strategies.soft_labels import Float64


@dataclass(frozen=True, slots=True)
class CosineFilter:
    """The mean of the clients whose cosine to the median is at least (the median of cosines) - slack.

    A client's cosine is between its votes on all of its rows and the coordinate median there, each row's median
    renormalised. It judges clients, not rows. In our runs it was the best of mean, median and filter under naive
    attacks by up to four of ten clients; an attacker whose votes resemble honest ones passes. Holds all votes.

    Weights count in the median and in the mean of the kept; the median of cosines counts clients.

    Attributes:
        slack: in [0, 2].
    """

    slack: float = 0.15

    def __post_init__(self) -> None:
        if not 0.0 <= self.slack <= 2.0:
            raise ValueError(f"slack={self.slack} must be in [0, 2]: 2 keeps every client")

    def aggregate(self, state: State, ballot: Ballot, reports: Iterable[ClientReport]) -> Outcome:
        stack = stacked(ballot, reports)
        cosines = _cosines(stack)
        known = cosines[~np.isnan(cosines)]
        # Nine digits, so that clients with equal votes stand or fall together.
        kept = cosines >= (np.median(known) if len(known) else 0.0) - self.slack - 1e-9

        def kept_mean(block: Block) -> Float64:
            return mean_of_kept(block.probabilities(), block.weights, block.mask & kept, ballot.needed)

        return Outcome(stack.teacher(kept_mean), state)


def _cosines(stack: Stack) -> Float64:
    """[K] cosine of each client's votes to the median; NaN for a client without a vote on a row with quorum."""
    products, votes_squared, medians_squared = np.zeros((3, len(stack.clients)))
    for block in stack.blocks():
        votes, medians = block.probabilities(), class_medians(block)
        medians /= medians.sum(axis=1, keepdims=True)
        products += np.einsum("mck,mc->k", votes, medians)
        votes_squared += np.einsum("mck,mck->k", votes, votes)
        medians_squared += np.einsum("mc,mc,mk->k", medians, medians, block.mask)
    voted = medians_squared > 0.0
    cosines = np.full(len(stack.clients), np.nan)
    cosines[voted] = products[voted] / np.sqrt(votes_squared[voted] * medians_squared[voted])
    return cosines
