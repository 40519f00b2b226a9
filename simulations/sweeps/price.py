"""What a whole sweep would cost on real private data: every point is another release of the same records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from privacy.events import Events, from_json, merged
from simulations.reporting.figures import finite
from simulations.sweeps.outcomes import Outcome

_COUNTED = "The ledgers in privacy.ledgers count them together and refuse what is beyond their budget."
_UNCOUNTED = "No ledger counts them together: set privacy.ledgers for real data; on public data this is a simulation."


def price_of(points: Sequence[Outcome]) -> str | None:
    """The price of the whole curve as a sentence, before any point has run and after; None where none is private.

    With the events of all points the price is their composition; before that it is bounded by the sum of the points'
    epsilons and deltas (basic composition; Dwork and Roth 2014, theorem 3.16).

    Args:
        points: all of the sweep. A failed one has been paid for, too.
    """
    private = [point for point in points if _epsilon(point) != math.inf]
    if not private:
        return None
    count = f"each of its {len(points)} points" if len(points) > 1 else "its one point"
    folders = {point.point.config.privacy.ledgers for point in private if point.point.config.privacy}
    counted = _COUNTED if len(folders) == 1 and all(folders) else _UNCOUNTED
    return (
        f"Price of the whole sweep: on real private data {count} is another release of the same records, seeds and "
        f"failures too, and {_amount(points, private)}. {counted}"
    )


def _amount(points: Sequence[Outcome], private: Sequence[Outcome]) -> str:
    bare = len(points) - len(private)
    if bare:
        which = "one of them has" if bare == 1 else f"{bare} of them have"
        return f"{which} no privacy mechanism, so nothing bounds the whole; the others together cost {_cost(private)}"
    return f"together they cost {_cost(private)}"


def _cost(private: Sequence[Outcome]) -> str:
    if (exact := _composed(private)) is not None:
        return f"(epsilon {exact[0]}, delta {exact[1]:g}), composed of the events of all"
    epsilons, deltas = [_epsilon(point) for point in private], [_delta(point) for point in private]
    if any(epsilon is None for epsilon in epsilons):
        return "what their noise comes to, known when all have run"
    told = f"at most epsilon {_rounded_up(math.fsum(epsilon for epsilon in epsilons if epsilon is not None))}"
    known = [delta for delta in deltas if delta is not None]
    if len(known) == len(deltas):
        told += f" and delta {math.fsum(known):g}"
    return f"{told}, by adding up; composed of their events, known when all have run, it is less"


def _epsilon(point: Outcome) -> float | None:
    """Charged, or else planned; infinite where no mechanism is on, None where only the noise is known."""
    settings = point.point.config.privacy
    if settings is None or not settings.promises:
        return math.inf
    charged = finite(_charged(point).get("epsilon"))
    return settings.epsilon if charged is None else charged


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
    """What run.json says of the client that pays most."""
    told = _privacy(point).get("max")
    return told if isinstance(told, Mapping) else {}


def _composed(private: Sequence[Outcome]) -> tuple[str, float] | None:
    """(epsilon rounded up, delta) of all points together at their largest delta; None until all events are known.

    A record pays what its own client released in all points; the price is that of the client that pays most.
    """
    told = [_ledgers(point) for point in private]
    clients = {client for each in told if each for client in each}
    if not clients or any(each is None or set(each) != clients for each in told):
        return None
    try:
        from privacy.accounting import epsilon_of
    except ModuleNotFoundError:
        return None
    delta = max(ledger.delta for each in told if each for ledger in each.values())
    spent = {_released([each[client] for each in told if each]) for client in clients}
    return _rounded_up(max(float(epsilon_of(events, delta)) for events in spent)), delta


class _Ledger:
    """Where a client's ledger stood after a point."""

    def __init__(self, told: Mapping[str, Any], alone: object) -> None:
        self.events = from_json(told["events"])
        self.delta = float(told["delta"])
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
