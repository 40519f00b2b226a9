"""From a budget back to the noise that keeps it, or to the rounds that fit into it."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

from scipy.optimize import brentq

from privacy.accounting import check_delta, conversion, epsilon_of, rdp_epsilon, rdp_of
from privacy.events import Events, PoissonGaussian, times
from privacy.rdp import ORDERS

# Above, a guarantee is worth nothing; the accountant shows none from about 90 on.
MOST_EPSILON = 50.0
LEAST_NOISE, MOST_NOISE = 0.1, 1e6
MOST_ROUNDS = 10**6
_DECIMALS = 10_000  # noise is told to four decimals
_STRIDE = 1.25


def noise_for(epsilon: float, delta: float, sample_rate: float, steps: int) -> float:
    """The noise multiplier with which so many steps of DP-SGD cost no more than (epsilon, delta) by epsilon_of.

    Args:
        epsilon: nats, in (0, 50].
        sample_rate: of each step, in (0, 1].
        steps: in all rounds together.

    Returns:
        The smallest one of four decimals.

    Raises:
        ValueError: an argument is outside its bounds, or no noise multiplier in [0.1, 1e6] fits.
    """
    return _noise_for_steps(epsilon, delta, PoissonGaussian(sample_rate, 1.0, steps))


@lru_cache(maxsize=1024)
def _noise_for_steps(epsilon: float, delta: float, at_one: PoissonGaussian) -> float:
    return noise_for_events(epsilon, delta, lambda noise: (PoissonGaussian(at_one.sample_rate, noise, at_one.count),))


def noise_for_events(epsilon: float, delta: float, events_at: Callable[[float], Events]) -> float:
    """The noise with which a plan costs no more than (epsilon, delta) by epsilon_of.

    Args:
        epsilon: nats, in (0, 50].
        events_at: the plan's events at a noise; more noise must cost no more. The noise may be any number of which
            this holds: a multiplier, or 1 / label_epsilon.

    Returns:
        A number of four decimals that fits where the one before it does not. It is the smallest wherever the
        computed cost falls; with randomised response, whose losses are rounded up to 1e-4, it does so by steps.

    Raises:
        ValueError: epsilon or delta is outside its bounds, the plan is empty, or no noise in [0.1, 1e6] fits.

    Guarantees:
        epsilon_of(events_at(result), delta) <= epsilon was computed for the very number returned.
    """
    _check(epsilon, delta)
    if not events_at(MOST_NOISE):
        raise ValueError("events_at returns no events: a plan that releases nothing needs no noise")

    def over(noise: float) -> float:
        # Twice the largest epsilon stands for infinity, which interpolation cannot use.
        return min(epsilon_of(events_at(noise), delta), 2.0 * MOST_EPSILON) - epsilon

    low, high = _bracket(over, _guess(epsilon, delta, events_at), epsilon)
    return _round_to_fit(over, float(brentq(over, low, high, xtol=0.2 / _DECIMALS)))


def steps_for(epsilon: float, delta: float, event_per_round: Events) -> int:
    """How many such rounds, planned in advance, cost no more than (epsilon, delta) by epsilon_of.

    Args:
        epsilon: nats, in (0, 50].
        event_per_round: what one round costs.

    Returns:
        0 where not even one fits; never more than a million, however many would fit.

    Raises:
        ValueError: epsilon or delta is outside its bounds, or event_per_round is empty.
    """
    _check(epsilon, delta)
    if not event_per_round:
        raise ValueError("event_per_round is empty: a round that releases nothing can be repeated for ever")

    def fits(rounds: int) -> bool:
        return epsilon_of([times(event, rounds) for event in event_per_round], delta) <= epsilon

    low = 0
    high = _rounds_by_rdp(epsilon, delta, event_per_round)
    while fits(high):
        if high == MOST_ROUNDS:
            return MOST_ROUNDS
        low, high = high, min(MOST_ROUNDS, high + 1 + high // 4)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _check(epsilon: float, delta: float) -> None:
    check_delta(delta)
    if not 0.0 < epsilon <= MOST_EPSILON:
        raise ValueError(
            f"epsilon={epsilon} must be in (0, {MOST_EPSILON:g}]: above, nothing is promised; leave privacy out instead"
        )


def _guess(epsilon: float, delta: float, events_at: Callable[[float], Events]) -> float:
    """A noise with which the plan fits by the RDP bound, to 1 %; the most noise where none does."""
    low, high = math.log(LEAST_NOISE), math.log(MOST_NOISE)
    while high - low > 0.01:
        middle = (low + high) / 2.0
        fits = rdp_epsilon(events_at(math.exp(middle)), delta) <= epsilon
        low, high = (low, middle) if fits else (middle, high)
    return min(MOST_NOISE, math.exp(high))


def _bracket(over: Callable[[float], float], guess: float, epsilon: float) -> tuple[float, float]:
    """A noise that does not fit and a larger one that does."""
    high = guess
    while over(high) > 0.0:
        if high >= MOST_NOISE:
            raise ValueError(
                f"epsilon={epsilon} is not met with noise {MOST_NOISE:g}: plan fewer rounds, or give a larger epsilon "
                "or delta"
            )
        high = min(MOST_NOISE, high * _STRIDE)
    low = max(LEAST_NOISE, high / _STRIDE)
    while over(low) <= 0.0:
        if low <= LEAST_NOISE:
            raise ValueError(
                f"epsilon={epsilon} is met with noise {LEAST_NOISE:g}, below which nothing is hidden: give a smaller "
                "epsilon, or name the noise"
            )
        low, high = max(LEAST_NOISE, low / _STRIDE), low
    return low, high


def _round_to_fit(over: Callable[[float], float], noise: float) -> float:
    """The number of four decimals next to a root that fits where the one before it does not."""
    whole = math.ceil(noise * _DECIMALS)
    while over(whole / _DECIMALS) > 0.0:
        whole += 1
    while over((whole - 1) / _DECIMALS) <= 0.0:
        whole -= 1
    return whole / _DECIMALS


def _rounds_by_rdp(epsilon: float, delta: float, events: Events) -> int:
    """How many rounds fit by the RDP bound: where the search begins."""
    rounds = max((epsilon - conversion(order, delta)) / max(rdp_of(events, order), 1e-300) for order in ORDERS)
    return int(min(max(rounds, 1.0), MOST_ROUNDS))
