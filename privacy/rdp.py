"""Renyi differential privacy at whole orders: our own formulas, for filters and to check the library with.

Gaussian: Mironov 2017 (arXiv 1702.07476). Conversion: Canonne, Kamath and Steinke 2020 (2004.00010). Poisson samples:
Mironov, Talwar and Zhang 2019 (1908.10530). Filters: Feldman and Zrnic 2021.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import assert_never

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, logsumexp

from privacy.delta import check_delta
from privacy.events import Event, Gaussian, PoissonGaussian, RandomizedResponse, merged

Floats = NDArray[np.float64]
# The orders that are tried where the best one is asked for.
ORDERS: tuple[int, ...] = (*range(2, 129), 192, 256, 384, 512)
_TINY = float(np.finfo(np.float64).tiny)


def rdp_of(events: Sequence[Event], order: int) -> float:
    """Renyi divergence of all the events together, nats: what a filter at this order spends.

    Args:
        order: a whole number, 2 or more.

    Raises:
        ValueError: order is anything else.

    Guarantees:
        Depends on the events' total counts only, not on their order.

    >>> round(rdp_of([PoissonGaussian(0.05, 3.0, 1)], 8), 7)
    0.0012177
    """
    _check_order(order)
    # fsum is exact and so forgets the order of its terms.
    return math.fsum(event.count * _one(replace(event, count=1), order) for event in merged(events))


def conversion(order: int, delta: float) -> float:
    """What epsilon adds to a Renyi divergence of this order, nats; negative where delta is large.

    Raises:
        ValueError: order is below 2, or delta is not in [1e-12, 1).

    >>> round(conversion(8, 1e-5), 4)
    1.2141
    """
    _check_order(order)
    check_delta(delta)
    return math.log1p(-1.0 / order) - (math.log(delta) + math.log(order)) / (order - 1)


def rdp_epsilon(events: Sequence[Event], delta: float) -> float:
    """Epsilon of a plan by the best order: a bound, looser than epsilon_of, in milliseconds and without the library.

    Raises:
        ValueError: delta is not in [1e-12, 1).
    """
    check_delta(delta)
    told = merged(events)
    if not told:
        return 0.0
    return max(0.0, min(rdp_of(told, order) + conversion(order, delta) for order in ORDERS))


def filter_budget(epsilon: float, delta: float, order: int) -> float:
    """B, what a filter at this order may spend, nats; 0 or less: nothing fits.

    A filter accepts an event as long as the sum of rdp_of at this one order stays at or below B. Parameters may then
    depend on what was released before; the order is fixed before the first release.

    Raises:
        ValueError: order is below 2, or delta is not in [1e-12, 1).

    >>> round(filter_budget(3.0, 1e-5, 8), 4)
    1.7859
    """
    return epsilon - conversion(order, delta)


def filter_order(events: Sequence[Event], epsilon: float, delta: float) -> int:
    """The order at which a filter lets the most of such events through; the lowest where several do.

    Args:
        events: of a typical round. Chosen from what was released, they void the filter: choose before.

    Raises:
        ValueError: no events, delta is not in [1e-12, 1), or epsilon leaves nothing to spend at any order.
    """
    if not events:
        raise ValueError("events is empty: name those of a typical round, the best order depends on them")
    budgets = {order: filter_budget(epsilon, delta, order) for order in ORDERS}
    usable = {order: budget for order, budget in budgets.items() if budget > 0.0}
    if not usable:
        raise ValueError(
            f"epsilon={epsilon} must be above {epsilon - max(budgets.values()):.2g}, what the conversion costs at "
            f"delta={delta} and the best order: give a larger epsilon"
        )
    return max(usable, key=lambda order: usable[order] / max(rdp_of(events, order), _TINY))


@lru_cache(maxsize=2**16)
def _one(event: Event, order: int) -> float:
    """R(order) of one release."""
    match event:
        case Gaussian(s) | PoissonGaussian(1.0, s):
            return 0.5 * order / s / s  # s * s may be rounded to 0, and this to infinity
        case PoissonGaussian(q, s):
            return _subsampled(q, s, order)
        case RandomizedResponse(e0, k):
            return _randomized_response(e0, k, order)
    assert_never(event)


def _subsampled(q: float, s: float, order: int) -> float:
    """ln sum_k binom(a,k) (1-q)^(a-k) q^k exp(k(k-1)/(2 s^2)) over a - 1, for a sample rate below 1.

    The weights sum to 1, and k = 0 and 1 have exponent 0, so the sum is 1 + sum_{k>=2} weight (exp(.) - 1): in this
    form nothing cancels, however rare the sampling or large the noise.
    """
    k = np.arange(2.0, order + 1.0)
    with np.errstate(over="ignore"):
        exponents = 0.5 * k * (k - 1.0) / s / s
    return float(np.logaddexp(0.0, logsumexp(log_binomial(order, q)[2:] + _log_expm1(exponents)))) / (order - 1)


def log_binomial(count: int, share: float) -> Floats:
    """ln of the probability of 0, 1, ..., count successes: [count + 1], for a share in (0, 1)."""
    k = np.arange(count + 1.0)
    ways = gammaln(count + 1.0) - gammaln(k + 1.0) - gammaln(count - k + 1.0)
    logs: Floats = ways + k * math.log(share) + (count - k) * math.log1p(-share)
    return logs


def _randomized_response(e0: float, k: int, order: int) -> float:
    """ln(P^a p^(1-a) + p^a P^(1-a) + (k-2) p) over a - 1, P the probability of the label, p of any other.

    With t = (a-1) e0 and P + (k-1) p = 1 the sum is 1 + (1 - e^-t) (P e^t - p): again nothing cancels.
    """
    t = (order - 1) * e0
    log_keep = -math.log1p((k - 1) * math.exp(-e0))
    rest = float(_log_expm1(np.asarray(t))) + log_keep + math.log(-math.expm1(-e0 - t))
    return float(np.logaddexp(0.0, rest)) / (order - 1)


def _log_expm1(x: Floats) -> Floats:
    """ln(e^x - 1) for x > 0, without overflow."""
    positive = np.maximum(x, _TINY)  # x itself may have been rounded to 0, whose log is none
    logs: Floats = positive + np.log(-np.expm1(-positive))
    return logs


def _check_order(order: int) -> None:
    if isinstance(order, bool) or not isinstance(order, int) or order < 2:
        raise ValueError(f"order={order} must be a whole number, 2 or more")
