"""Events to epsilon: dp-accounting's privacy loss distributions are the record, our own formulas its check.

The privacy loss of each event is a distribution on a grid of 1e-4, rounded pessimistically (Doroshenko et al. 2022,
arXiv 2207.04380); composition is convolution. Neighbours are zero-out: one record becomes nothing, n stays public.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, replace
from decimal import ROUND_CEILING, Decimal
from functools import lru_cache
from importlib.metadata import version
from typing import Any, assert_never

from privacy.delta import LEAST_DELTA, check_delta, check_group, default_delta
from privacy.events import Event, Events, Gaussian, PoissonGaussian, RandomizedResponse, merged
from privacy.gaussian_formulas import analytic_gaussian_delta, analytic_gaussian_epsilon, analytic_gaussian_noise
from privacy.groups import group_law, group_mean_loss
from privacy.rdp import ORDERS, conversion, filter_budget, filter_order, rdp_epsilon, rdp_of

__all__ = [
    "LEAST_DELTA",
    "ORDERS",
    "accountant",
    "analytic_gaussian_delta",
    "analytic_gaussian_epsilon",
    "analytic_gaussian_noise",
    "best_of_epsilon",
    "check_delta",
    "conversion",
    "default_delta",
    "delta_of",
    "epsilon_of",
    "filter_budget",
    "filter_order",
    "group_epsilon_of",
    "rdp_epsilon",
    "rdp_of",
    "rough_epsilon_of",
    "round_up",
]

INTERVAL = 1e-4
# Grids grow with the loss: at 50 nats in the mean they have millions of cells, and cost seconds.
_MOST_LOSS = 50.0
_LEAST_NOISE = 0.1
_MOST_COUNT = 10**8
# The library computes cells ** count for a coarse law; at 10^6 releases this alone takes seconds, at 10^8 for ever.
_CHUNK = 2**14


def accountant(events: Sequence[Event] = ()) -> str:
    """The accountant of record, as a statement names it, with the neighbours that these events are charged between."""
    relations = {"REPLACE_ONE" if isinstance(event, RandomizedResponse) else "REPLACE_SPECIAL" for event in events}
    told = " and ".join(sorted(relations or {"REPLACE_SPECIAL"}))
    return f"dp-accounting {version('dp-accounting')} PLD, {told}, interval 1e-4"


def epsilon_of(events: Sequence[Event], delta: float) -> float:
    """Epsilon of all the events together, nats, as a plan fixed in advance; not rounded, see round_up.

    Args:
        events: in any order, equal ones together or apart. Trials that were all kept are just more events.

    Returns:
        0 for no events. Infinity where no useful number is shown: above 50 nats of expected privacy loss (an epsilon
        of about 90 for one Gaussian), at a noise multiplier below 0.1, or at more than 10^8 releases of a kind.

    Raises:
        ValueError: delta is not in [1e-12, 1), or the installed dp-accounting does not support an event.

    Guarantees:
        Bitwise equal for every order of the same events and every split of their counts.
    """
    check_delta(delta)
    return _epsilon(_canonical(events), delta, 1, INTERVAL)


def rough_epsilon_of(events: Sequence[Event], delta: float, records: int = 1) -> float:
    """group_epsilon_of on a ten times coarser grid, in a tenth of the time: to search with, never to show.

    Raises:
        ValueError: as in group_epsilon_of.
    """
    check_delta(delta)
    check_group(records)
    return _epsilon(_canonical(events), delta, records, 10.0 * INTERVAL)


def group_epsilon_of(events: Sequence[Event], delta: float, records: int) -> float:
    """Epsilon of `records` records together, of one patient say; for 1 the same as epsilon_of.

    In each Poisson sample a binomial number of them is drawn, each with its own clipped gradient: a mixture of
    Gaussians (Choquette-Choo et al. 2023, arXiv 2310.15526). A plain Gaussian's sensitivity is `records` times as
    large. Randomised response costs the same: one record may already flip every label that is charged.

    Raises:
        ValueError: as in epsilon_of; records is not in 1..1000.
    """
    check_delta(delta)
    check_group(records)
    return _epsilon(_canonical(events), delta, records, INTERVAL)


def delta_of(events: Sequence[Event], epsilon: float) -> float:
    """The smallest delta at which all the events together cost epsilon; 1 where epsilon_of would be infinite.

    Args:
        epsilon: nats, 0 or more.

    Raises:
        ValueError: epsilon is negative or no number; the installed dp-accounting does not support an event.
    """
    if not epsilon >= 0.0:
        raise ValueError(f"epsilon={epsilon} must be 0 or more")
    told = _canonical(events)
    if not told:
        return 0.0
    return min(1.0, float(_composed(told, 1, INTERVAL).get_delta_for_epsilon(epsilon))) if _shown(told, 1) else 1.0


def best_of_epsilon(events: Sequence[Event], delta: float, mean_trials: float) -> float:
    """Epsilon of a random number of equal trials of which only the best leaves (Papernot and Steinke 2021).

    The number of trials is drawn from a geometric distribution; it and the other trials stay secret. For trials that
    are all kept, count the events as often.

    Args:
        events: of one trial.
        mean_trials: of the geometric distribution, 1 or more.

    Raises:
        ValueError: delta is not in [1e-12, 1), mean_trials is below 1, or an event is randomised response.
    """
    check_delta(delta)
    if not (mean_trials >= 1.0 and math.isfinite(mean_trials)):
        raise ValueError(f"mean_trials={mean_trials} must be a finite number, 1 or more")
    if any(isinstance(event, RandomizedResponse) for event in events):
        # The library would charge its zero-out divergence, which is too little for predicted labels.
        raise ValueError("events has randomised response, whose best-of cost is not computed: charge every trial")
    return _best_of(_canonical(events), delta, mean_trials) if events else 0.0


def round_up(value: float, digits: int = 4) -> float:
    """The smallest number of so many decimals that is not below value.

    Raises:
        ValueError: value is no number.

    >>> round_up(2.99988), round_up(0.1), round_up(math.inf)
    (2.9999, 0.1, inf)
    """
    if math.isnan(value):
        raise ValueError(f"value={value} must be a number")
    if math.isinf(value):
        return value
    # The shortest decimal that names the float: 0.1 is then itself, not 0.1000000000000000055.
    return float(Decimal(repr(float(value))).quantize(Decimal(1).scaleb(-digits), rounding=ROUND_CEILING))


def _canonical(events: Sequence[Event]) -> Events:
    """Equal events together, in an order of their own, so that no order of recording changes a bit of the result."""
    told = merged([_unsampled(event) for event in events])
    return tuple(sorted(told, key=lambda event: (event.KIND, astuple(event))))


def _unsampled(event: Event) -> Event:
    """A sum over all records, taken for what it is."""
    match event:
        case PoissonGaussian(1.0, s, count):
            return Gaussian(s, count)
    return event


@lru_cache(maxsize=4096)
def _epsilon(events: Events, delta: float, records: int, interval: float) -> float:
    if not events:
        return 0.0
    if not _shown(events, records):
        return math.inf
    return float(_composed(events, records, interval).get_epsilon_for_delta(delta))


def _shown(events: Events, records: int) -> bool:
    """Whether the grids stay small and the convolutions exact enough."""
    noises = [event.noise_multiplier / records for event in events if not isinstance(event, RandomizedResponse)]
    return (
        min(noises, default=1.0) >= _LEAST_NOISE
        and max(event.count for event in events) <= _MOST_COUNT
        and math.fsum(event.count * _mean_loss(event, records) for event in events) <= _MOST_LOSS
    )


def _mean_loss(event: Event, records: int) -> float:
    """A bound on the expected privacy loss (Kullback-Leibler divergence) of one release, nats."""
    match event:
        case Gaussian(s):
            return 0.5 * (records / s) ** 2
        case PoissonGaussian(q, s):
            return group_mean_loss(q, s, records)
        case RandomizedResponse(e0, k):
            return -e0 * math.expm1(-e0) / (1.0 + (k - 1) * math.exp(-e0))
    assert_never(event)


def _composed(events: Events, records: int, interval: float) -> Any:
    """The privacy loss distribution of all the events, in both directions."""
    from dp_accounting.pld import privacy_loss_distribution as laws

    total = laws.identity(value_discretization_interval=interval)
    for event in events:
        total = total.compose(_repeated(event, records, interval))
    return total


def _repeated(event: Event, records: int, interval: float) -> Any:
    if isinstance(event, Gaussian):
        # T equal Gaussians are exactly one with noise / sqrt(T), so one rounding instead of T.
        return _law(Gaussian(event.noise_multiplier / math.sqrt(event.count), 1), records, interval)
    one = _law(replace(event, count=1), records, interval)
    chunks, rest = divmod(event.count, _CHUNK)
    if not chunks:
        return one.self_compose(rest)
    many = one.self_compose(_CHUNK).self_compose(chunks)
    return many.compose(one.self_compose(rest)) if rest else many


@lru_cache(maxsize=16)
def _law(event: Event, records: int, interval: float) -> Any:
    """The privacy loss distribution of one release; at INTERVAL by the same calls as PLDAccountant's, but for k-RR."""
    from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent
    from dp_accounting.pld import privacy_loss_distribution as laws

    zero_out = NeighboringRelation.REPLACE_SPECIAL
    match event:
        case Gaussian(s):
            _supported(GaussianDpEvent(s / records))
            return laws.from_gaussian_mechanism(
                s / records, value_discretization_interval=interval, neighboring_relation=zero_out
            )
        case PoissonGaussian(q, s) if records == 1 and interval == INTERVAL:
            _supported(PoissonSampledDpEvent(q, GaussianDpEvent(s)))
            return laws.from_gaussian_mechanism(
                s, value_discretization_interval=interval, sampling_prob=q, neighboring_relation=zero_out
            )
        case PoissonGaussian(q, s):
            return group_law(q, s, records, interval)
        case RandomizedResponse(e0, k):
            # Not through PLDAccountant: it ignores the count. Replace-one: one record may flip a label into any other.
            return laws.from_randomized_response(
                _redraw(e0, k),
                k,
                value_discretization_interval=interval,
                neighboring_relation=NeighboringRelation.REPLACE_ONE,
            )
    assert_never(event)


def _redraw(e0: float, k: int) -> float:
    """The library's parameter: the probability of a label drawn anew from all k; it is not 1 - keep."""
    # Below 1 even where e0 is lost in rounding: the nearest float below is the larger e0, the dearer one.
    return min(k / (math.expm1(e0) + k), math.nextafter(1.0, 0.0))


def _supported(event: Any) -> None:
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import PLDAccountant

    if not PLDAccountant(neighboring_relation=NeighboringRelation.REPLACE_SPECIAL).supports(event):
        raise ValueError(
            f"dp-accounting {version('dp-accounting')} does not support {event} between zero-out neighbours: "
            "install 0.6.0, with which this was checked"
        )


@lru_cache(maxsize=256)
def _best_of(events: Events, delta: float, mean_trials: float) -> float:
    from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent, SelfComposedDpEvent
    from dp_accounting.dp_event import ComposedDpEvent, RepeatAndSelectDpEvent
    from dp_accounting.rdp import RdpAccountant

    def told(event: Any) -> Any:
        noise = GaussianDpEvent(event.noise_multiplier)
        one = noise if isinstance(event, Gaussian) else PoissonSampledDpEvent(event.sample_rate, noise)
        return SelfComposedDpEvent(one, event.count)

    trial = ComposedDpEvent([told(event) for event in events])
    judge = RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_SPECIAL)
    return float(judge.compose(RepeatAndSelectDpEvent(trial, mean_trials, 1.0)).get_epsilon(delta))
