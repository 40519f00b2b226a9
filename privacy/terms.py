"""What a ledger promises for as long as it lives, what one release is, and what it gets: all of it public."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeGuard

from privacy.chain import canonical
from privacy.delta import check_delta, check_group
from privacy.events import Events

Mode = Literal["plan", "filter", "count"]
UNITS = ("record", "patient", "client")
ADJACENCIES = ("zero_out", "replace_one")
MODES = ("plan", "filter", "count")


@dataclass(frozen=True, slots=True)
class Terms:
    """Fixed when a ledger is made; no later release, run or restart changes them.

    Attributes:
        unit: whose presence is hidden: "record", "patient" or "client".
        adjacency: which two data sets look alike: "zero_out", one unit becomes nothing; "replace_one", any other one.
        mode: "plan": releases are drawn from plans that were fixed before them; "filter": parameters may depend on what
            was released; "count": nothing is accounted, releases are only counted.
        epsilon, delta: the totals; None in mode "count".
        order: a*, the one integer order of mode "filter"; None in the others.
        seeded: a simulation, NOT PRIVATE: its noise can be computed again.
        group_size: records that one epsilon covers together, as one patient's rows; 1 unless unit is "record" and mode
            "plan".
    """

    unit: str
    adjacency: str
    mode: Mode
    epsilon: float | None
    delta: float | None
    order: int | None
    seeded: bool
    group_size: int = 1

    def __post_init__(self) -> None:
        for name, value, known in (
            ("unit", self.unit, UNITS),
            ("adjacency", self.adjacency, ADJACENCIES),
            ("mode", self.mode, MODES),
        ):
            if value not in known:
                raise ValueError(f"{name}={value!r} must be one of {', '.join(known)}")
        if not isinstance(self.seeded, bool):
            raise ValueError(f"seeded={self.seeded!r} must be true or false")
        check_group(self.group_size)
        if self.group_size > 1 and (self.unit != "record" or self.mode != "plan"):
            raise ValueError(
                f"group_size={self.group_size} needs unit 'record' and mode 'plan', not {self.unit!r} and "
                f"{self.mode!r}: a filter counts single records, and a client is a group already"
            )
        if self.mode == "count":
            self._must_be_none("epsilon", "delta", "order")
            return
        if not _is_number(self.epsilon) or not 0.0 < self.epsilon < math.inf:
            raise ValueError(f"epsilon={self.epsilon!r} must be a finite number above 0")
        if not _is_number(self.delta):
            raise ValueError(f"delta={self.delta!r} must be a number")
        check_delta(self.delta)
        if self.mode == "plan":
            self._must_be_none("order")
        elif isinstance(self.order, bool) or not isinstance(self.order, int) or self.order < 2:
            raise ValueError(f"order={self.order!r} must be a whole number, 2 or more: the filter's one order")

    def _must_be_none(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) is not None:
                raise ValueError(f"{name}={getattr(self, name)!r} has no meaning in mode {self.mode!r}: leave it None")

    def plain(self) -> dict[str, Any]:
        """What a row's body says of them; `read` reads it."""
        totals = {"epsilon": self.epsilon, "delta": self.delta}
        return {**asdict(self), **{name: value and float(value) for name, value in totals.items()}}

    def beside(self, asked: Terms) -> str:
        """The fields in which these terms are not the ones asked for, in words."""
        other = [field.name for field in fields(self) if getattr(self, field.name) != getattr(asked, field.name)]
        made, wanted = (", ".join(f"{name}={getattr(terms, name)!r}" for name in other) for terms in (self, asked))
        return f"{made} and is asked for {wanted}"

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> Terms:
        """The terms in a row's body.

        Raises:
            TypeError, ValueError, KeyError: these are none.
        """
        numbers = {name: plain[name] and float.fromhex(plain[name]) for name in ("epsilon", "delta")}
        return cls(**{**plain, **numbers})


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, float | int) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True)
class Request:
    """What one release is. Every field is known to the coordinator: none is computed from records.

    Attributes:
        run, round: which round of which run.
        attempt: 0 at first; one more each time that the release before was lost with its process.
        client: the site's name.
        mechanism: a key of MECHANISMS.
        parameters: its settings, as privacy.chain.canonical writes them.
        plan_sha256: of the coordinator's plan, and so of the rows asked and of the teacher.
    """

    run: str
    round: int
    attempt: int
    client: str
    mechanism: str
    parameters: str
    plan_sha256: str

    def __post_init__(self) -> None:
        for name in ("run", "client", "mechanism", "parameters", "plan_sha256"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name}={getattr(self, name)!r} must be text")
        for name in ("round", "attempt"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"{name}={value!r} must be a whole number, 0 or more")
        if not _is_canonical(self.parameters):
            raise ValueError(f"parameters={self.parameters!r} must be JSON as privacy.chain.canonical writes it")

    def key(self, data_set: str) -> bytes:
        """32 bytes: SHA-256 of everything above and of the data set."""
        return hashlib.sha256(canonical({**asdict(self), "data_set": data_set}).encode()).digest()


def _is_canonical(text: str) -> bool:
    try:
        return canonical(json.loads(text)) == text
    except (ValueError, RecursionError):
        return False


@dataclass(frozen=True, slots=True)
class Token:
    """The right to release once.

    Attributes:
        seq: of the SPENT row.
        key: of the release.
        events: what was paid for; a mechanism must find its own parameters in it.
    """

    seq: int
    key: bytes
    events: Events


@dataclass(frozen=True, slots=True)
class Sealed:
    """A release that was made before.

    Attributes:
        seq: of the SEALED row.
        payload: the bytes that were stored then, to be sent again.
    """

    seq: int
    payload: bytes
