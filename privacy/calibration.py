"""From a budget back to the noise that keeps it, or to the rounds that fit into it."""

from __future__ import annotations

import math
from collections.abc import Callable

from scipy.optimize import brentq

from privacy.accounting import check_delta, conversion, group_epsilon_of, rdp_epsilon, rdp_of, rough_epsilon_of
from privacy.events import Events, times
from privacy.rdp import ORDERS

# Above, a guarantee is worth nothing; the accountant shows none from about 90 on.
MOST_EPSILON = 50.0
LEAST_NOISE, MOST_NOISE = 0.1, 1e6
MOST_ROUNDS = 10**6
_DECIMALS = 10_000  # noise is told to four decimals
_STRIDE = 1.25


def noise_for_events(epsilon: float, delta: float, events_at: Callable[[float], Events], records: int = 1) -> float:
    """The noise with which a plan costs no more than (epsilon, delta) by group_epsilon_of.

    Args:
        epsilon: nats, in (0, 50].
        events_at: the plan's events at a noise; more noise must cost no more. The noise may be any number of which
            this holds: a multiplier, or 1 / label_epsilon.
        records: that the promise covers together, 1 or more.

    Returns:
        A number of four decimals that fits where the one before it does not. It is the smallest wherever the
        computed cost falls; with randomised response, whose losses are rounded up to 1e-4, it does so by steps.

    Raises:
        ValueError: epsilon or delta is outside its bounds, the plan is empty, or no noise in [0.1, 1e6] fits.

    Guarantees:
        group_epsilon_of(events_at(result), delta, records) <= epsilon was computed for the very number returned.
    """
    _check(epsilon, delta)
    if not events_at(MOST_NOISE):
        raise ValueError("events_at returns no events: a plan that releases nothing needs no noise")

    def cost(noise: float) -> float:
        return group_epsilon_of(events_at(noise), delta, records)

    def rough(noise: float) -> float:
        return rough_epsilon_of(events_at(noise), delta, records)

    # A plain Gaussian's noise grows with the group; a sampled one's by less.
    guess = min(MOST_NOISE, records * _guess(epsilon, delta, events_at))
    start = _root(rough, epsilon, guess)
    # What the coarse grid adds hardly depends on the noise: aim lower by as much.
    aim = epsilon - (cost(start) - rough(start))
    if 0.0 < aim <= MOST_EPSILON:
        start = _root(rough, aim, start)
    return _settled(cost, epsilon, start)


def steps_for(epsilon: float, delta: float, event_per_round: Events, records: int = 1) -> int:
    """How many such rounds, planned in advance, cost no more than (epsilon, delta) by group_epsilon_of.

    Args:
        epsilon: nats, in (0, 50].
        event_per_round: what one round costs.
        records: that the promise covers together, 1 or more.

    Returns:
        0 where not even one fits; never more than a million, however many would fit.

    Raises:
        ValueError: epsilon or delta is outside its bounds, or event_per_round is empty.
    """
    _check(epsilon, delta)
    if not event_per_round:
        raise ValueError("event_per_round is empty: a round that releases nothing can be repeated for ever")

    def fits(rounds: int) -> bool:
        return group_epsilon_of([times(event, rounds) for event in event_per_round], delta, records) <= epsilon

    low = 0
    high = max(1, _rounds_by_rdp(epsilon, delta, event_per_round) // records)
    while fits(high):
        if high == MOST_ROUNDS:
            return MOST_ROUNDS
        low, high = high, min(MOST_ROUNDS, high + 1 + high // 4)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def check_epsilon(epsilon: float) -> None:
    """Return if noise can be found for it.

    Raises:
        ValueError: it is not in (0, 50].
    """
    if not 0.0 < epsilon <= MOST_EPSILON:
        raise ValueError(
            f"epsilon={epsilon} must be in (0, {MOST_EPSILON:g}]: above, nothing is promised; leave privacy out instead"
        )


def _check(epsilon: float, delta: float) -> None:
    check_delta(delta)
    check_epsilon(epsilon)


def _guess(epsilon: float, delta: float, events_at: Callable[[float], Events]) -> float:
    """A noise with which the plan fits by the RDP bound, to 1 %; the most noise where none does."""
    low, high = math.log(LEAST_NOISE), math.log(MOST_NOISE)
    while high - low > 0.01:
        middle = (low + high) / 2.0
        fits = rdp_epsilon(events_at(math.exp(middle)), delta) <= epsilon
        low, high = (low, middle) if fits else (middle, high)
    return min(MOST_NOISE, math.exp(high))


def _root(cost: Callable[[float], float], epsilon: float, guess: float) -> float:
    """About where a falling cost takes the value epsilon, or the end of the range that is nearer to it."""

    def over(noise: float) -> float:
        # Twice the largest epsilon stands for infinity, which interpolation cannot use.
        return min(cost(noise), 2.0 * MOST_EPSILON) - epsilon

    high = guess
    while over(high) > 0.0 and high < MOST_NOISE:
        high = min(MOST_NOISE, high * _STRIDE)
    low = max(LEAST_NOISE, high / _STRIDE)
    while over(low) <= 0.0 and low > LEAST_NOISE:
        low, high = max(LEAST_NOISE, low / _STRIDE), low
    if over(high) > 0.0 or over(low) <= 0.0:
        return high if over(high) > 0.0 else low
    return float(brentq(over, low, high, xtol=0.2 / _DECIMALS))


def _settled(cost: Callable[[float], float], epsilon: float, start: float) -> float:
    """The number of four decimals nearest to start that fits where the one before it does not."""

    def fits(whole: int) -> bool:
        return cost(whole / _DECIMALS) <= epsilon

    least, most = round(LEAST_NOISE * _DECIMALS), round(MOST_NOISE * _DECIMALS)
    low = high = min(max(math.ceil(start * _DECIMALS), least), most)
    stride = 1
    while not fits(high):
        if high == most:
            raise ValueError(
                f"epsilon={epsilon} is not met with noise {MOST_NOISE:g}: plan fewer rounds, or give a larger epsilon "
                "or delta"
            )
        low, high, stride = high, min(most, high + stride), 2 * stride
    while low == high or fits(low):
        if high == least:
            raise ValueError(
                f"epsilon={epsilon} is met with noise {LEAST_NOISE:g}, below which nothing is hidden: give a smaller "
                "epsilon, or name the noise"
            )
        low, high, stride = max(least, low // 2, low - stride), low, 2 * stride
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high / _DECIMALS


def _rounds_by_rdp(epsilon: float, delta: float, events: Events) -> int:
    """How many rounds fit by the RDP bound: where the search begins."""
    rounds = max((epsilon - conversion(order, delta)) / max(rdp_of(events, order), 1e-300) for order in ORDERS)
    return int(min(max(rounds, 1.0), MOST_ROUNDS))
