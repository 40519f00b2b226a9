"""What a number of this project may be called: epsilon never stands alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from decimal import ROUND_CEILING, Decimal
from typing import Any

from privacy.caveats import Tuning, caveats_of, incomplete, noise_of, not_covered
from privacy.events import Event, Gaussian, PoissonGaussian, RandomizedResponse, to_json
from privacy.ledger import Ledger


@dataclass(frozen=True, slots=True)
class Statement:
    """Everything that an epsilon needs beside it, read off a ledger.

    Attributes:
        client, data_set: whose ledger this is; a random UUID.
        covers: whose records epsilon and delta are promised to: that client's, or those of several, see `covering`.
        mechanism: of the releases, by name.
        unit, adjacency: whose presence is hidden, against which change: "record", "client", or "group(k)", any k
            records together; n_public: the number of records is no secret.
        epsilon, delta: promised for all that was released or reserved; epsilon is rounded up to 4 digits.
        budget: the epsilon that is never exceeded over the life of the data set.
        accountant, composition: how epsilon was computed from `events`.
        events: what was paid for: [[kind, parameters, count], ...].
        noise_multiplier, sample_rate, steps: of the first of them; None where it has none.
        noise: kind of arithmetic.
        caveats: what must be so for all of this to hold, beyond what a site does itself.
        tuning: whether the settings were chosen on private data; see privacy.caveats.Tuning.
        unpaid: answers that were given before the first one that was paid for; must be 0 for a promise to be one.
        secure_rng: whether masks and noise came from the operating system; seeded: whether they can be drawn again.
        runs, rounds: what is covered.
        ledger_seq, ledger_head: where the ledger stood; 64 hex digits.
        not_covered: what no part of this promises.
    """

    client: str
    data_set: str
    covers: tuple[str, ...]
    mechanism: str
    unit: str
    adjacency: str
    n_public: bool
    epsilon: float
    delta: float
    budget: float
    accountant: str
    composition: str
    events: list[list[Any]]
    noise_multiplier: float | None
    sample_rate: float | None
    steps: int | None
    noise: str
    caveats: tuple[str, ...]
    tuning: Tuning
    unpaid: int
    secure_rng: bool
    seeded: bool
    runs: tuple[str, ...]
    rounds: tuple[int, ...]
    ledger_seq: int
    ledger_head: str
    not_covered: tuple[str, ...]

    def plain(self) -> dict[str, Any]:
        """As JSON holds it, with the sentence."""
        return {**asdict(self), "statement": self.sentence()}

    def sentence(self) -> str:
        """One line for logs, captions and model cards."""
        several = len(self.covers) > 1
        parts = [
            f"(eps={shown(self.epsilon)}, delta={shown_delta(self.delta)})",
            self.unit,
            self.adjacency.replace("_", "-"),
            *([f"each of {len(self.covers)} clients"] if several else []),
            *self.caveats,
            f"rounds {_ranges(self.rounds)}" if self.rounds else "no round yet",
            f"{self.mechanism} under {self.composition}",
            self.accountant,
            (f"dearest {self.client}: " if several else "")
            + ("; ".join(_told(event) for event in self.events) or "no event"),
            "OS entropy" if self.secure_rng else "seeded noise",
            f"ledger {self.ledger_seq}:{self.ledger_head[:8]}",
        ]
        stamp = "SIMULATION, NOT PRIVATE: " if self.seeded else ""
        return stamp + incomplete(self.unpaid) + ", ".join(parts)


def shown(epsilon: float) -> str:
    """An epsilon with at most four decimals, never rounded down.

    >>> shown(3.0), shown(2.00041), shown(2.9999)
    ('3', '2.0005', '2.9999')
    """
    from privacy.accounting import round_up

    return f"{round_up(epsilon):.4f}".rstrip("0").rstrip(".")


def shown_delta(delta: float) -> str:
    """A delta with at most four digits, never rounded down.

    >>> shown_delta(1e-5), shown_delta(1 / 600_000), shown_delta(1.2341e-6)
    ('1e-05', '1.667e-06', '1.235e-06')
    """
    exact = Decimal(repr(float(delta)))
    if not exact:
        return "0"
    digits = Decimal(1).scaleb(exact.adjusted() - 3)
    return f"{float(exact.quantize(digits, rounding=ROUND_CEILING)):.4g}"


def statement_of(ledger: Ledger, client: str, tuning: Tuning = "unpaid") -> Statement:
    """What a ledger says of one client's records.

    Args:
        ledger: open, of mode "plan" or "filter".
        tuning: how the settings were chosen; no ledger knows.

    Raises:
        ValueError: a ledger that accounts for nothing has no statement.
    """
    from privacy.accounting import accountant, filter_budget, round_up

    terms = ledger.terms
    if terms.epsilon is None or terms.delta is None:
        raise ValueError(f"the ledger of {client} counts releases and accounts for none: there is no epsilon to state")
    charged, delta = ledger.charged()
    events = [event for plan in ledger.plans().values() for event in plan.events] or list(ledger.events())
    requests = [row.body["request"] for row in ledger.rows() if row.kind == "SPENT" and "request" in row.body]
    head, first = ledger.head(), _first(events)
    mechanisms = sorted({told["mechanism"] for told in requests})
    unpaid = ledger.unpaid_before
    composition, method = "plan", accountant(events)
    if terms.mode == "filter" and terms.order is not None:
        total = filter_budget(terms.epsilon, terms.delta, terms.order)
        composition, method = f"filter(alpha={terms.order}, B={total:.4f})", "Renyi DP at one integer order"
    return Statement(
        client=client,
        data_set=ledger.data_set,
        covers=(client,),
        mechanism=", ".join(mechanisms) or "none yet",
        unit=terms.unit if terms.group_size == 1 else f"group({terms.group_size})",
        adjacency=terms.adjacency,
        n_public=True,
        epsilon=round_up(charged),
        delta=delta or terms.delta,
        budget=terms.epsilon,
        accountant=method,
        composition=composition,
        events=json.loads(json.dumps(to_json(events))),
        noise_multiplier=getattr(first, "noise_multiplier", None),
        sample_rate=getattr(first, "sample_rate", None),
        steps=sum(event.count for event in events if isinstance(event, PoissonGaussian)) or None,
        noise=noise_of(mechanisms),
        caveats=_caveats(requests),
        tuning=tuning,
        unpaid=unpaid,
        secure_rng=not terms.seeded,
        seeded=terms.seeded,
        runs=tuple(sorted({told["run"] for told in requests})),
        rounds=tuple(sorted({told["round"] for told in requests})),
        ledger_seq=head.seq,
        ledger_head=head.digest.hex(),
        not_covered=not_covered(terms.unit, terms.group_size, mechanisms, tuning, unpaid),
    )


def covering(each: Sequence[Statement]) -> Statement:
    """What is promised to the records of every one of several clients: the largest epsilon at the largest delta.

    The client with the largest epsilon may have promised a smaller delta than others, so that its own statement does
    not hold for them. Events, noise and ledger are those of that client.

    Args:
        each: one or more, of one kind of unit.
    """
    dearest = max(each, key=lambda one: (one.epsilon, one.delta))
    return replace(
        dearest,
        covers=tuple(name for one in each for name in one.covers),
        mechanism=", ".join(_once(one.mechanism for one in each)),
        epsilon=max(one.epsilon for one in each),
        delta=max(one.delta for one in each),
        budget=max(one.budget for one in each),
        caveats=_once(caveat for one in each for caveat in one.caveats),
        unpaid=sum(one.unpaid for one in each),
        secure_rng=all(one.secure_rng for one in each),
        seeded=any(one.seeded for one in each),
        runs=tuple(sorted({run for one in each for run in one.runs})),
        rounds=tuple(sorted({round_ for one in each for round_ in one.rounds})),
        not_covered=_once(what for one in each for what in one.not_covered),
    )


def _once(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))


def _caveats(requests: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    settings = {(told["mechanism"], told["parameters"]) for told in requests}
    return _once(caveat for name, text in sorted(settings) for caveat in caveats_of(name, json.loads(text)))


def _first(events: Sequence[Event]) -> Event | None:
    return events[0] if events else None


def _told(plain: Sequence[Any]) -> str:
    """An event as a reader of papers knows it."""
    kind, parameters, count = plain
    numbers = {key: float.fromhex(value) if isinstance(value, str) else value for key, value in parameters.items()}
    if kind == PoissonGaussian.KIND:
        return f"Poisson q={numbers['sample_rate']:.6g} s={numbers['noise_multiplier']:.6g} T={count}"
    if kind == Gaussian.KIND:
        return f"{count} Gaussian s={numbers['noise_multiplier']:.6g}"
    assert kind == RandomizedResponse.KIND  # noqa: S101 - there are three kinds
    return f"{count} labels e0={numbers['label_epsilon']:.6g} k={numbers['classes']}"


def _ranges(numbers: Sequence[int]) -> str:
    """Sorted whole numbers, runs of them shortened.

    >>> _ranges([1, 2, 3, 5, 7, 8])
    '1-3, 5, 7-8'
    """
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)
