"""What one round leaves to the next: small enough for one screen, complete enough for a restart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.exchange import Exchange
from server.links import Links
from strategies.aggregator import Outcome, State
from strategies.cache import LabelCache
from strategies.soft_labels import Float64, Int64, SoftLabels


@dataclass(frozen=True, slots=True, eq=False)
class Standing:
    """Between two rounds.

    Attributes:
        links: what each client holds.
        teacher: of the last round; None before the first.
        choices, personal: see strategies.aggregator.Outcome.
        state: what the rule remembers.
        cache: labels that may be used again; None without a cache.
        disagreement: [universe] of each row when it was last voted on, nats, NaN: never; None unless rows are chosen
            by it.
    """

    links: Links
    teacher: SoftLabels | None = None
    choices: tuple[SoftLabels, ...] = ()
    personal: Mapping[str, SoftLabels] = field(default_factory=dict)
    state: State = field(default_factory=dict)
    cache: LabelCache | None = None
    disagreement: Float64 | None = None

    @classmethod
    def new(cls, exchange: Exchange) -> Standing:
        """Before the first round."""
        return cls(
            Links.new(exchange.universe, exchange.classes, exchange.downlink),
            cache=LabelCache.empty(exchange.universe, exchange.classes, exchange.cache_rounds)
            if exchange.cache_rounds
            else None,
            disagreement=np.full(exchange.universe, np.nan) if exchange.choice == "disagreement" else None,
        )

    def after(self, outcome: Outcome | None, rows: Int64, round_: int, *, waited: bool) -> Standing:
        """What a round leaves to the next of its votes.

        Args:
            outcome: None: there were no votes.
            rows: [n] that the round was about, answered from the cache or not.
            waited: for answers, when the round began or still; a round whose teacher has no row then leaves the last
                one. Where no label of its rows is cached its teacher is on the rows of late votes, or the last one.
        """
        standing = self
        if outcome is not None and (len(outcome.teacher.rows) or not waited):
            standing = replace(
                self,
                teacher=outcome.teacher,
                choices=outcome.choices,
                personal=outcome.personal,
                state=outcome.state,
                cache=None if self.cache is None else self.cache.filed(outcome.teacher, round_),
            )
        if standing.cache is not None:
            cached = standing.cache.teacher(rows, round_)
            if len(cached.rows) or not waited:
                standing = replace(standing, teacher=cached)
        return standing

    def arrays(self) -> dict[str, NDArray[Any]]:
        """As named arrays, for a checkpoint."""
        told: dict[str, NDArray[Any]] = {f"links.{key}": value for key, value in self.links.arrays().items()}
        told |= {f"state.{key}": value for key, value in self.state.items()}
        if self.teacher is not None:
            told |= _labels("teacher", self.teacher)
        for index, choice in enumerate(self.choices):
            told |= _labels(f"choice-{index}", choice)
        for client, labels in self.personal.items():
            told |= _labels(f"personal.{client}", labels)
        if self.cache is not None:
            told |= {"cache.log_probs": self.cache.log_probs, "cache.made": self.cache.made}
        if self.disagreement is not None:
            told["disagreement"] = self.disagreement
        return told

    @classmethod
    def of_arrays(cls, told: Mapping[str, NDArray[Any]], exchange: Exchange) -> Standing:
        """What arrays() described.

        Raises:
            KeyError, ValueError: an array is missing or breaks its own rule.
        """
        choices = sum(key.startswith("choice-") and key.endswith(".rows") for key in told)
        owners = sorted(
            key.removeprefix("personal.").removesuffix(".rows")
            for key in told
            if key.startswith("personal.") and key.endswith(".rows")
        )
        cached = "cache.made" in told
        return cls(
            Links.of_arrays(_under("links.", told)),
            _told_labels("teacher", told) if "teacher.rows" in told else None,
            tuple(_told_labels(f"choice-{index}", told) for index in range(choices)),
            {name: _told_labels(f"personal.{name}", told) for name in owners},
            _under("state.", told),
            LabelCache(told["cache.log_probs"], told["cache.made"], exchange.cache_rounds) if cached else None,
            told.get("disagreement"),
        )


def _under(prefix: str, told: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {key.removeprefix(prefix): value for key, value in told.items() if key.startswith(prefix)}


def _labels(name: str, labels: SoftLabels) -> dict[str, NDArray[Any]]:
    return {f"{name}.rows": labels.rows, f"{name}.log_probs": labels.log_probs}


def _told_labels(name: str, told: Mapping[str, NDArray[Any]]) -> SoftLabels:
    return SoftLabels(told[f"{name}.rows"], told[f"{name}.log_probs"])
