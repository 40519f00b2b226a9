"""What the coordinator knows that each client holds, so that only differences travel."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from server.checks import Believed
from strategies.codecs import link_named
from strategies.messages import RoundPlan, Sync
from strategies.soft_labels import Int64, SoftLabels, UInt8
from strategies.tables import Table, symbols_digest
from strategies.wire import vote_symbols

_Value = TypeVar("_Value")


@dataclass(slots=True)
class News:
    """What one round's answers say of the links, collected while they stream through; each client is in it once.

    Attributes:
        seen: by client, the round of the difference that it has applied.
        heard: by client, what it has sent by now.
        lost: clients whose difference fitted nothing: the next plan carries everything, and asks for as much.
    """

    seen: dict[str, int] = field(default_factory=dict)
    heard: dict[str, Table] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)

    def answered(self, plan: RoundPlan, believed: Believed, before: Table | None, total: int) -> None:
        """A believed answer to `plan` from a client that had sent `before`; the universe has `total` rows."""
        client, votes, symbols = believed.report.client, believed.report.soft_labels, believed.symbols
        if plan.sync is not None:
            self.seen[client] = plan.round
        if link_named(plan.uplink).delta:
            held = Table.empty(total, symbols.shape[1]) if before is None or believed.key else before
            self.heard[client] = held.changed(plan.round, votes.rows, symbols)


@dataclass(frozen=True, slots=True, eq=False)
class Links:
    """Both directions of every client's link.

    Attributes:
        symbols: [total, width] what the last plans said of every row, in the downlink's codec.
        changed: [total] the round whose plan first said so; 0: never said.
        seen: by client, the newest round whose difference it is known to have applied. Only an answer moves it.
        heard: by client, what it last sent; kept where the uplink takes differences.
    """

    symbols: UInt8
    changed: Int64
    seen: Mapping[str, int] = field(default_factory=dict)
    heard: Mapping[str, Table] = field(default_factory=dict)

    @classmethod
    def new(cls, total: int, classes: int, downlink: str) -> Links:
        """Before the first round: nobody holds anything."""
        width = len(link_named(downlink).codec.alphabets(classes))
        return cls(np.zeros((total, width), np.uint8), np.zeros(total, np.int64))

    def published(self, round_: int, teacher: SoftLabels, downlink: str) -> Links:
        """After the plans of `round_` are known to say this; a row is changed only if its symbols are."""
        told = vote_symbols(teacher, downlink)
        news = (self.changed[teacher.rows] == 0) | (self.symbols[teacher.rows] != told).any(axis=1)
        symbols, changed = self.symbols.copy(), self.changed.copy()
        symbols[teacher.rows[news]], changed[teacher.rows[news]] = told[news], round_
        return replace(self, symbols=symbols, changed=changed)

    def sync(self, client: str, rows: Int64) -> Sync:
        """The difference between what a client holds and what there is: everything since the last plan it carried out.

        Args:
            rows: that the teacher names.
        """
        base = self.seen.get(client, 0)
        news = np.flatnonzero(self.changed > base).astype(np.int64)
        return Sync(base, rows, symbols_digest(rows, self.symbols[rows]), news, self.symbols[news])

    def after(self, news: News) -> Links:
        """After a round's answers."""
        return replace(
            self,
            seen={**_without(self.seen, news.lost), **news.seen},
            heard={**_without(self.heard, news.lost), **news.heard},
        )

    def have(self, client: str) -> int:
        """The round of the client's last answer that a difference may refer to."""
        return self.heard[client].round if client in self.heard else 0

    def arrays(self) -> dict[str, NDArray[Any]]:
        """As named arrays, for a checkpoint."""
        told: dict[str, NDArray[Any]] = {"symbols": self.symbols, "changed": self.changed}
        told |= {f"seen.{client}": np.array(round_, np.int64) for client, round_ in self.seen.items()}
        for client, table in self.heard.items():
            told |= {f"heard.{client}": table.symbols, f"heard-round.{client}": np.array(table.round, np.int64)}
        return told

    @classmethod
    def of_arrays(cls, told: Mapping[str, NDArray[Any]]) -> Links:
        """What arrays() described.

        Raises:
            KeyError: an array is missing.
        """
        seen = {name: int(told[f"seen.{name}"]) for name in _named(told, "seen.")}
        heard = {
            name: Table(int(told[f"heard-round.{name}"]), told[f"heard.{name}"]) for name in _named(told, "heard.")
        }
        return cls(told["symbols"], told["changed"], seen, heard)


def _without(told: Mapping[str, _Value], lost: Collection[str]) -> Mapping[str, _Value]:
    return {name: value for name, value in told.items() if name not in lost}


def _named(told: Mapping[str, Any], prefix: str) -> Sequence[str]:
    return sorted(key.removeprefix(prefix) for key in told if key.startswith(prefix))
