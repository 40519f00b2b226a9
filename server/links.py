"""What the coordinator knows that each client holds, so that only differences travel."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from server.checks import Believed
from strategies.believing import vote_symbols
from strategies.codecs import link_named
from strategies.messages import LedgerHead, RoundPlan, Sync
from strategies.soft_labels import Int64, SoftLabels, UInt8
from strategies.tables import Table, symbols_digest

_Value = TypeVar("_Value")


@dataclass(slots=True)
class News:
    """What one round's answers say of the links, collected while they stream through; each client is in it once.

    Attributes:
        applied: by client, the round of the difference that it has applied, and the rows of that.
        heard: by client, what it has sent by now.
        lost: clients whose difference fitted nothing: the next plan carries everything, and asks for as much.
        heads: by client, where its privacy ledger stands.
    """

    applied: dict[str, tuple[int, Int64]] = field(default_factory=dict)
    heard: dict[str, Table] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)
    heads: dict[str, LedgerHead] = field(default_factory=dict)

    def answered(self, plan: RoundPlan, believed: Believed, before: Table | None, total: int) -> None:
        """A believed answer to `plan` from a client that had sent `before`; the universe has `total` rows."""
        client, votes, symbols = believed.report.client, believed.report.soft_labels, believed.symbols
        if believed.report.ledger is not None:
            self.heads[client] = believed.report.ledger
        if plan.sync is not None:
            self.applied[client] = plan.round, plan.sync.changed
        if link_named(plan.uplink).delta:
            held = Table.empty(total, symbols.shape[1]) if before is None or believed.key else before
            self.heard[client] = held.changed(plan.round, votes.rows, symbols)


@dataclass(frozen=True, slots=True, eq=False)
class Told:
    """What one client is known to hold of what was said.

    Attributes:
        round: the newest whose difference it is known to have applied. Only an answer moves it.
        current: [total / 8] one bit a row: what it holds there is what was said last.
    """

    round: int
    current: UInt8


@dataclass(frozen=True, slots=True, eq=False)
class Links:
    """Both directions of every client's link.

    Attributes:
        symbols: [total, width] what the last plans said of every row, in the downlink's codec.
        changed: [total] the round whose plan first said so; 0: never said.
        told: by client, what it is known to hold of that; who holds nothing is not in it.
        heard: by client, what it last sent; kept where the uplink takes differences.
        heads: by client, where its privacy ledger stood after its last answer; who promises no privacy is not in it.
    """

    symbols: UInt8
    changed: Int64
    told: Mapping[str, Told] = field(default_factory=dict)
    heard: Mapping[str, Table] = field(default_factory=dict)
    heads: Mapping[str, LedgerHead] = field(default_factory=dict)

    @classmethod
    def new(cls, total: int, classes: int, downlink: str) -> Links:
        """Before the first round: nobody holds anything."""
        width = len(link_named(downlink).codec.alphabets(classes))
        return cls(np.zeros((total, width), np.uint8), np.zeros(total, np.int64))

    def published(self, round_: int, teacher: SoftLabels, downlink: str) -> Links:
        """After the plans of `round_` are known to say this; a row is changed only if its symbols are."""
        said, rows = vote_symbols(teacher, downlink), teacher.rows
        news = (self.changed[rows] == 0) | (self.symbols[rows] != said).any(axis=1)
        symbols, changed = self.symbols.copy(), self.changed.copy()
        symbols[rows[news]], changed[rows[news]] = said[news], round_
        same = ~self._bits(rows[news])
        told = {name: replace(one, current=one.current & same) for name, one in self.told.items()}
        return replace(self, symbols=symbols, changed=changed, told=told)

    def missing(self, client: str, rows: Int64) -> tuple[int, Int64]:
        """The round of the last plan that a client is known to have carried out, 0: none; and which rows it lacks.

        What it lacks beside them can wait until a teacher names it, and by then may have changed once more.

        Args:
            rows: that the teacher names; all were said before.
        """
        if client not in self.told:
            return 0, rows
        one = self.told[client]
        return one.round, rows[np.unpackbits(one.current, count=len(self.changed))[rows] == 0]

    def sync(self, base: int, rows: Int64, news: Int64) -> Sync:
        """The difference for all that hold `rows` but for `news` since the plan of round `base`."""
        return Sync(base, rows, symbols_digest(rows, self.symbols[rows]), news, self.symbols[news])

    def after(self, news: News) -> Links:
        """After a round's answers, also those to earlier plans."""
        told = _without(self.told, news.lost)
        applied = {name: self._applied(told.get(name), *one) for name, one in news.applied.items()}
        heard = {**_without(self.heard, news.lost), **news.heard}
        return replace(self, told={**told, **applied}, heard=heard, heads={**self.heads, **news.heads})

    def _applied(self, before: Told | None, round_: int, rows: Int64) -> Told:
        """What a client holds after the difference that said `rows` in this round; some may have changed since."""
        current = self._bits(rows[self.changed[rows] <= round_])
        return Told(round_, current if before is None else current | before.current)

    def _bits(self, rows: Int64) -> UInt8:
        at = np.zeros(len(self.changed), bool)
        at[rows] = True
        return np.packbits(at)

    def have(self, client: str) -> int:
        """The round of the client's last answer that a difference may refer to."""
        return self.heard[client].round if client in self.heard else 0

    def arrays(self) -> dict[str, NDArray[Any]]:
        """As named arrays, for a checkpoint."""
        arrays: dict[str, NDArray[Any]] = {"symbols": self.symbols, "changed": self.changed}
        for client, one in self.told.items():
            arrays |= {f"told.{client}": one.current, f"told-round.{client}": np.array(one.round, np.int64)}
        for client, table in self.heard.items():
            arrays |= {f"heard.{client}": table.symbols, f"heard-round.{client}": np.array(table.round, np.int64)}
        for client, head in self.heads.items():
            digest = np.frombuffer(head.digest, np.uint8)
            arrays |= {f"head.{client}": digest, f"head-seq.{client}": np.array(head.seq, np.int64)}
        return arrays

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Links:
        """What arrays() described.

        Raises:
            KeyError: an array is missing.
        """
        told = {
            name: Told(int(arrays[f"told-round.{name}"]), arrays[f"told.{name}"]) for name in _named(arrays, "told.")
        }
        heard = {
            name: Table(int(arrays[f"heard-round.{name}"]), arrays[f"heard.{name}"])
            for name in _named(arrays, "heard.")
        }
        heads = {
            name: LedgerHead(int(arrays[f"head-seq.{name}"]), arrays[f"head.{name}"].tobytes())
            for name in _named(arrays, "head.")
        }
        return cls(arrays["symbols"], arrays["changed"], told, heard, heads)


def _without(known: Mapping[str, _Value], lost: Collection[str]) -> Mapping[str, _Value]:
    return {name: value for name, value in known.items() if name not in lost}


def _named(arrays: Mapping[str, Any], prefix: str) -> Sequence[str]:
    return sorted(key.removeprefix(prefix) for key in arrays if key.startswith(prefix))
