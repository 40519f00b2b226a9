"""What a whole sweep would cost on real private data: every point is another release of the same records."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from privacy.events import Events, from_json, merged
from privacy.mechanisms import MECHANISMS
from privacy.statement import shown_delta
from simulations.reporting.figures import finite
from simulations.sweeps.outcomes import Outcome
from simulations.sweeps.shared import same_deal, shared_ledgers

_COUNTED = "The ledgers in privacy.ledgers count them together and refuse what is beyond their budget."
_UNCOUNTED = "No ledger counts them together: set privacy.ledgers for real data; on public data this is a simulation."
_DEALT = (
    "The points deal rows differently: a row that is private at one point may be public at another, which no epsilon "
    "covers; set data.seed."
)


def price_of(points: Sequence[Outcome]) -> str | None:
    """The price of the whole curve as a sentence, before any point has run and after; None where none is private.

    Where all points deal the same rows to the same clients and the events of all are known, the price is their
    composition for the client that pays most. Else it is bounded by the sum of epsilons and of deltas, each point's
    those of the client that pays most there (basic composition; Dwork and Roth 2014, theorem 3.16).

    Args:
        points: all of the sweep. A failed one has been paid for, too.
    """
    private = [point for point in points if _epsilon(point) != math.inf]
    if not private:
        return None
    configs = [point.point.config for point in private]
    count = f"each of its {len(points)} points" if len(points) > 1 else "its one point"
    counted = _COUNTED if shared_ledgers(configs) else _UNCOUNTED
    dealt = "" if same_deal(configs) else f" {_DEALT}"
    return (
        f"Price of the whole sweep: on real private data {count} is another release of the same records, seeds and "
        f"failures too, and {_amount(points, private)}. {counted}{dealt}"
    )


def _amount(points: Sequence[Outcome], private: Sequence[Outcome]) -> str:
    bare = len(points) - len(private)
    costs = _costs(private)
    if bare:
        which = "one of them has" if bare == 1 else f"{bare} of them have"
        return f"{which} no privacy mechanism, so nothing bounds the whole; the others together cost {costs}"
    return f"together they cost {costs}"


def _costs(private: Sequence[Outcome]) -> str:
    """Points that hide a record and points that hide a whole client apart: one is no part of the other's price."""
    kinds = [[point for point in private if _hides_client(point) is whole] for whole in (False, True)]
    told = [_cost(points) for points in kinds if points]
    return told[0] if len(told) == 1 else f"{told[0]}; and apart from these, which do not add up, {told[1]}"


def _cost(private: Sequence[Outcome]) -> str:
    sizes = {_group_size(point) for point in private}
    if (exact := _composed(private, max(sizes))) is not None:
        return f"(epsilon {exact[0]}, delta {exact[1]}), {_unit(private, max(sizes))}, composed of the events of all"
    shared = shared_ledgers(point.point.config for point in private)
    epsilons = [_budget(point) if shared else _epsilon(point) for point in private]
    deltas = [_delta(point) for point in private]
    if any(epsilon is None for epsilon in epsilons):
        return "what their noise comes to, known when all have run"
    known = [epsilon for epsilon in epsilons if epsilon is not None]
    # The epsilon of a larger group covers a smaller one.
    unit = _unit(private, min(sizes))
    if shared:
        return (
            f"at most epsilon {_rounded_up(max(known))}{_and_delta(deltas, max)}, {unit}: the budget of their ledgers"
        )
    told = f"at most epsilon {_rounded_up(math.fsum(known))}{_and_delta(deltas, _added)}, {unit}, by adding up"
    if not same_deal(point.point.config for point in private):
        return f"{told} what each point's dearest client pays"
    plans = all(point.point.config.privacy.composition == "plan" for point in private if point.point.config.privacy)
    composed = "; composed of their events, known when all have run, it is less"
    return told + (composed if plans and len(sizes) == 1 else "")


def _and_delta(deltas: Sequence[float | None], together: Any) -> str:
    known = [delta for delta in deltas if delta is not None]
    return f" and delta {shown_delta(together(known))}" if len(known) == len(deltas) else ""


def _added(deltas: Iterable[float]) -> float:
    return float(sum(Decimal(repr(delta)) for delta in deltas))  # .00001 three times is .00003, in floats a bit more


def _hides_client(point: Outcome) -> bool:
    settings = point.point.config.privacy
    kind = None if settings is None else MECHANISMS.get(settings.mechanism.name)
    return kind is not None and kind.UNIT == "client"


def _group_size(point: Outcome) -> int:
    settings = point.point.config.privacy
    return 1 if settings is None else settings.group_size


def _unit(private: Sequence[Outcome], group_size: int) -> str:
    if _hides_client(private[0]):
        return "unit client"
    return "unit record" if group_size == 1 else f"unit group({group_size})"


def _epsilon(point: Outcome) -> float | None:
    """Charged, or else planned; infinite where no mechanism is on, None where only the noise is known."""
    settings = point.point.config.privacy
    if settings is None or not settings.promises:
        return math.inf
    charged = finite(_charged(point).get("epsilon"))
    return settings.epsilon if charged is None else charged


def _budget(point: Outcome) -> float | None:
    """What a ledger that other points draw on, too, is never charged more than."""
    settings = point.point.config.privacy
    return None if settings is None else settings.epsilon


def _delta(point: Outcome) -> float | None:
    """Charged, or else planned; None where the run chooses it."""
    settings, rows = point.point.config.privacy, [*_rows(point), _charged(point)]
    charged = [finite(told.get("delta")) for told in rows if isinstance(told, Mapping)]
    known = [delta for delta in charged if delta is not None]
    return max(known) if known else (settings.delta or None if settings else None)


def _privacy(point: Outcome) -> Mapping[str, Any]:
    told = (point.run or {}).get("privacy")
    return told if isinstance(told, Mapping) else {}


def _rows(point: Outcome) -> list[Any]:
    """What run.json says of each client."""
    each = _privacy(point).get("each")
    return each if isinstance(each, list) else []


def _charged(point: Outcome) -> Mapping[str, Any]:
    """What run.json says of all clients together."""
    told = _privacy(point).get("max")
    return told if isinstance(told, Mapping) else {}


def _composed(private: Sequence[Outcome], group_size: int) -> tuple[str, str] | None:
    """(epsilon, delta), rounded up, of all points together at their largest delta; None where that is not to be had.

    A record pays what its own client released in all points, if all deal it to that client; the price is that of the
    client that pays most. Events that passed a filter may have been chosen by what was released before: they are no
    plan, and are not composed as one.
    """
    told = [_ledgers(point) for point in private]
    clients = {client for each in told if each for client in each}
    if not clients or any(each is None or set(each) != clients for each in told):
        return None
    ledgers = [ledger for each in told if each for ledger in each.values()]
    if not same_deal(point.point.config for point in private) or any(ledger.filtered for ledger in ledgers):
        return None
    try:
        from privacy.accounting import group_epsilon_of
    except ModuleNotFoundError:
        return None
    delta = max(ledger.delta for ledger in ledgers)
    spent = {_released([each[client] for each in told if each]) for client in clients}
    dearest = max(float(group_epsilon_of(events, delta, group_size)) for events in spent)
    return _rounded_up(dearest), shown_delta(delta)


class _Ledger:
    """Where a client's ledger stood after a point."""

    def __init__(self, told: Mapping[str, Any], alone: object) -> None:
        self.events = from_json(told["events"])
        self.delta = float(told["delta"])
        self.filtered = not str(told["composition"]).startswith("plan")
        # A ledger that several points share has the events of all before it; without a name it is this point's own.
        self.data_set, self.seq = told.get("data_set", alone), int(told.get("ledger_seq", 0))


def _released(ledgers: Sequence[_Ledger]) -> Events:
    """All that a client released: the last state of each of its ledgers."""
    last: dict[object, _Ledger] = {}
    for ledger in ledgers:
        if ledger.data_set not in last or ledger.seq > last[ledger.data_set].seq:
            last[ledger.data_set] = ledger
    return merged([event for ledger in last.values() for event in ledger.events])


def _ledgers(point: Outcome) -> dict[str, _Ledger] | None:
    """Each client's, by its name; None where run.json does not tell what was released."""
    try:
        return {str(told["client"]): _Ledger(told, point.point.slug) for told in _rows(point)} or None
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _rounded_up(epsilon: float) -> str:
    return f"{math.ceil(epsilon * 10_000 - 1e-9) / 10_000:.4f}"
