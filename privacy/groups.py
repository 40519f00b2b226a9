"""The privacy loss of one noisy sum over a Poisson sample, for a group of records that are sampled one by one.

The group shifts the sum by a binomial number of clipped gradients: a mixture of Gaussians (Choquette-Choo et al. 2023,
arXiv 2310.15526). dp-accounting has this law too and inverts the loss cell by cell, in a minute for ten records; here
all cells are inverted at once. Discretisation and composition are the library's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import log_ndtr, logsumexp, softmax

from privacy.rdp import Floats, log_binomial

# Probability left out at each end, charged as a total loss; the library's own bound.
_LOG_TAIL = -50.0 - math.log(2.0)
_START_POINTS = 4_001
# Cells times shifts worked on at once: 16 MB an array.
_AT_ONCE = 2**21
_NEWTON_STEPS = 6


@dataclass(frozen=True, slots=True)
class GroupLoss:
    """Output x with noise s: with the group a sum of k_i-fold shifts, without it none.

    Attributes:
        noise_multiplier: s, over the clipping norm of one record.
        log_shares: [records + 1] log-probability that 0, 1, ... of the group are sampled.
    """

    noise_multiplier: float
    log_shares: Floats

    def losses(self, points: Floats) -> Floats:
        """ln of the density with the group over that without, nats: [points], rising."""
        logs: Floats = logsumexp(self._terms(points), axis=1)
        return logs

    def tails(self, points: Floats) -> tuple[Floats, Floats]:
        """Log-probabilities to lie above each point, with and without the group."""
        above = log_ndtr((np.arange(len(self.log_shares)) - points[:, None]) / self.noise_multiplier)
        return logsumexp(above + self.log_shares, axis=1), above[:, 0]

    def heads(self, points: Floats) -> tuple[Floats, Floats]:
        """Log-probabilities to lie below each point, with and without the group."""
        below = log_ndtr((points[:, None] - np.arange(len(self.log_shares))) / self.noise_multiplier)
        return logsumexp(below + self.log_shares, axis=1), below[:, 0]

    def points_of(self, losses: Floats) -> Floats:
        """Where the loss takes these values: Newton's steps from a table; losses rise and are convex in x."""
        ends = self.reach()
        table = np.linspace(ends[0] - 1.0, ends[1] + 1.0, _START_POINTS)
        points: Floats = np.interp(losses, self.losses(table), table)
        shifts = np.arange(len(self.log_shares))
        for _ in range(_NEWTON_STEPS):
            terms = self._terms(points)
            slopes = softmax(terms, axis=1) @ shifts / self.noise_multiplier**2
            points = points - (logsumexp(terms, axis=1) - losses) / slopes
        return points

    def reach(self) -> tuple[float, float]:
        """The lowest and the highest x of which more than the left-out probability lies beyond."""
        width = 11.0 * self.noise_multiplier  # Phi(-11) = 2e-28, less than e^-50 / 2
        low, high = 0.0, len(self.log_shares) - 1 + width
        for _ in range(60):
            middle = (low + high) / 2.0
            inside = self.tails(np.array([middle]))[0][0] > _LOG_TAIL
            low, high = (middle, high) if inside else (low, middle)
        return -width, high

    def _terms(self, points: Floats) -> Floats:
        shifts = np.arange(len(self.log_shares))
        terms: Floats = self.log_shares + (shifts * points[:, None] - 0.5 * shifts**2) / self.noise_multiplier**2
        return terms


def group_law(sample_rate: float, noise_multiplier: float, records: int, interval: float) -> Any:
    """dp-accounting's PrivacyLossDistribution of one Poisson-sampled Gaussian for a group, in both directions.

    Args:
        sample_rate: q, below 1.
        noise_multiplier: over the clipping norm of one record.
        records: of the group, 1 or more.
        interval: of the grid, nats.
    """
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

    group = GroupLoss(noise_multiplier, log_binomial(records, sample_rate))
    low, high = (float(loss) for loss in group.losses(np.array(group.reach())))
    return PrivacyLossDistribution(
        _mass(low, high, interval, _removed, group),
        _mass(-high, -low, interval, _added, group),
    )


def group_mean_loss(sample_rate: float, noise_multiplier: float, records: int) -> float:
    """A bound on the expected privacy loss of one noisy sum for a group, nats.

    The smaller of two: by convexity the mean square shift over 2 s^2, and ln E exp(i j / s^2), the Renyi divergence of
    order 2, for i and j drawn independently.
    """
    drawn = np.arange(records + 1.0)
    logs = log_binomial(records, sample_rate)
    paired = float(logsumexp(logs[:, None] + logs + drawn[:, None] * drawn / noise_multiplier**2))
    mean_square = records * sample_rate * (1.0 - sample_rate + records * sample_rate)
    return min(paired, 0.5 * mean_square / noise_multiplier**2)


def _removed(group: GroupLoss, losses: Floats) -> Floats:
    """delta(epsilon) where the group is taken out: Pr_with(loss > epsilon) - e^epsilon Pr_without(loss > epsilon)."""
    least = float(group.log_shares[0])  # the loss far to the left, where none was sampled
    deltas: Floats = -np.expm1(losses)
    inside = losses > least
    points = group.points_of(losses[inside])
    given, other = group.tails(points)
    deltas[inside] = _difference(given, losses[inside] + other)
    return deltas


def _added(group: GroupLoss, losses: Floats) -> Floats:
    """delta(epsilon) where the group joins: the loss is minus the other direction's."""
    deltas = np.zeros(len(losses))
    inside = losses < -float(group.log_shares[0])
    points = group.points_of(-losses[inside])
    other, given = group.heads(points)
    deltas[inside] = _difference(given, losses[inside] + other)
    return deltas


def _difference(first: Floats, second: Floats) -> Floats:
    """e^first - e^second, at least 0, without the cancellation of taking it so."""
    difference: Floats = np.exp(first) * -np.expm1(np.minimum(0.0, second - first))
    return difference


def _mass(
    low: float, high: float, interval: float, deltas_of: Callable[[GroupLoss, Floats], Floats], group: GroupLoss
) -> Any:
    """The library's pessimistic grid from low to high nats ("connect the dots")."""
    from dp_accounting.pld import pld_pmf

    first, last = math.floor(low / interval), math.ceil(high / interval)
    cells = np.arange(first, last + 1) * interval
    parts = np.array_split(cells, 1 + len(cells) * len(group.log_shares) // _AT_ONCE)
    deltas = np.concatenate([deltas_of(group, part) for part in parts])
    falling = np.maximum.accumulate(deltas[::-1])[::-1]  # rounding may break the order; upwards costs nothing
    return pld_pmf.create_pmf_pessimistic_connect_dots_fixed_gap(interval, first, last, np.clip(falling, 0.0, 1.0))
