"""Whether a release fits what its ledger has left; epsilon is computed from the rows each time, never kept."""

from __future__ import annotations

import math
from collections.abc import Sequence

from privacy.delta import LEAST_DELTA
from privacy.events import Event, Events, merged, times
from privacy.ledger_errors import BudgetExceeded
from privacy.tally import Tally, counted, events_of
from privacy.terms import Terms

# More of the same than anybody asks for: the search for how much is left ends here.
_MANY = 10**9


def usable(terms: Terms) -> None:
    """Return if a release can fit these terms at all.

    Raises:
        ValueError: in mode "filter", the order alone costs more than epsilon.
    """
    if terms.mode == "filter" and _filter_total(terms) <= 0.0:
        raise ValueError(
            f"order={terms.order} leaves nothing of epsilon={terms.epsilon} at delta={terms.delta}: choose it by "
            "privacy.accounting.filter_order"
        )


def share_of(tally: Tally, name: str, events: Events, delta: float | None) -> float:
    """The delta that one more plan is charged, if it fits beside those that were reserved: both add up (4.7).

    Args:
        delta: None: all that the other plans left.

    Raises:
        BudgetExceeded: it does not fit.
    """
    total, deltas = _totals(tally.terms), [plan.delta for plan in tally.plans.values()]
    share = total[1] - math.fsum(deltas) if delta is None else delta
    while delta is None and math.fsum([*deltas, share]) > total[1]:  # the difference was rounded up
        share = math.nextafter(share, 0.0)
    if share < LEAST_DELTA or math.fsum([*deltas, share]) > total[1]:
        raise BudgetExceeded(
            f"plan {name!r} wants delta={delta} and the plans before it left {total[1] - math.fsum(deltas):.4g} of "
            f"{total[1]}: give each plan a share of delta when it is reserved"
        )
    before = _of_plans(tally)
    epsilon = math.fsum([before, _epsilon_of(tally, events, share)])
    if epsilon > total[0]:
        raise BudgetExceeded(
            f"plan {name!r} brings epsilon from {before:.4f} to {epsilon:.4f}, above {total[0]}: plan more noise or "
            "fewer releases"
        )
    return share


def afford(tally: Tally, events: Events, plan: str | None) -> str:
    """The plan that a release is drawn from, "" where it costs nothing or the ledger has no plans.

    Args:
        plan: None: the one that was reserved last.

    Raises:
        BudgetExceeded: it does not fit.
    """
    if not events:
        return ""
    if tally.terms.mode == "filter":
        if not _passes(tally, events):
            raise BudgetExceeded(
                f"{merged(events)} does not pass the filter of epsilon={tally.terms.epsilon} at order "
                f"{tally.terms.order}: this data set answers no more with this noise"
            )
        return ""
    name = _drawn_on(tally, plan)
    if not tally.plans[name].covers(events):
        left = events_of(tally.plans[name].left())
        raise BudgetExceeded(f"plan {name!r} has {left} left, and {events} was asked: reserve another plan, if it fits")
    return name


def left_of(tally: Tally, events: Events, plan: str | None) -> int | None:
    """How many more releases of `events` each would be accepted; None: any number."""
    if not events or tally.terms.mode == "count":
        return None
    if tally.terms.mode == "plan":
        if not tally.plans:
            return 0
        left = tally.plans[_drawn_on(tally, plan)].left()
        return min(left.get(event, 0) // count for event, count in counted(events).items())
    low, high = 0, 1
    while high < _MANY and _passes(tally, events, high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _passes(tally, events, middle) else (low, middle)
    return low


def epsilon_of_releases(tally: Tally) -> float:
    """What was released so far costs this much; see Ledger.epsilon."""
    if tally.terms.mode == "count":
        return math.inf if tally.releases or tally.inherited else 0.0
    if tally.terms.mode == "plan":
        plans = tally.plans.values()
        return math.fsum(_epsilon_of(tally, events_of(plan.drawn), plan.delta) for plan in plans if plan.drawn)
    if not tally.spent:
        return 0.0
    from privacy.accounting import conversion, rdp_of

    (_, delta), order = _totals(tally.terms), _order(tally.terms)
    return rdp_of(events_of(tally.spent), order) + conversion(order, delta)


def charged_of(tally: Tally) -> tuple[float, float]:
    """Epsilon and delta that are promised for what was released or reserved; see Ledger.charged."""
    if tally.terms.mode == "plan":
        return _of_plans(tally), math.fsum(plan.delta for plan in tally.plans.values())
    if tally.terms.mode == "filter":
        return _totals(tally.terms) if tally.spent else (0.0, 0.0)
    return epsilon_of_releases(tally), 0.0


def _drawn_on(tally: Tally, plan: str | None) -> str:
    if not tally.plans or plan not in (None, *tally.plans):
        raise BudgetExceeded(f"plan {plan!r} was not reserved; reserved: {list(tally.plans)}: reserve it first")
    return next(reversed(tally.plans)) if plan is None else plan


def _passes(tally: Tally, events: Sequence[Event], count: int = 1) -> bool:
    from privacy.accounting import rdp_of

    more = [times(event, count) for event in events]
    return rdp_of(merged([*events_of(tally.spent), *more]), _order(tally.terms)) <= _filter_total(tally.terms)


def _of_plans(tally: Tally) -> float:
    return math.fsum(_epsilon_of(tally, plan.events, plan.delta) for plan in tally.plans.values())


def _totals(terms: Terms) -> tuple[float, float]:
    if terms.epsilon is None or terms.delta is None:
        raise ValueError(f"mode {terms.mode!r} has no epsilon: nothing is accounted in it")
    return terms.epsilon, terms.delta


def _order(terms: Terms) -> int:
    if terms.order is None:
        raise ValueError(f"mode {terms.mode!r} has no order")
    return terms.order


def _filter_total(terms: Terms) -> float:
    from privacy.accounting import filter_budget

    return filter_budget(*_totals(terms), _order(terms))


def _epsilon_of(tally: Tally, events: Events, delta: float) -> float:
    from privacy.accounting import group_epsilon_of

    return group_epsilon_of(events, delta, tally.terms.group_size)
