"""What the records of one data set have already paid, kept for ever; a release is paid here before data is touched."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from privacy.budget import afford, charged_of, epsilon_of_releases, left_of, share_of, usable
from privacy.chain import GENESIS, Chain, Entry, broken, make
from privacy.chain import Head as Head
from privacy.chain import Row as Row
from privacy.chain import canonical as canonical
from privacy.delta import check_delta
from privacy.events import Event, Events, merged, to_json
from privacy.ledger_errors import BudgetExceeded as BudgetExceeded
from privacy.ledger_errors import KeyConflict as KeyConflict
from privacy.ledger_errors import LedgerBroken as LedgerBroken
from privacy.ledger_errors import LedgerError as LedgerError
from privacy.ledger_errors import LedgerRolledBack as LedgerRolledBack
from privacy.ledger_errors import LedgerUnavailable as LedgerUnavailable
from privacy.ledger_errors import ReleaseLost as ReleaseLost
from privacy.ledger_errors import StaleRelease as StaleRelease
from privacy.ledger_errors import TermsDiffer as TermsDiffer
from privacy.ledger_errors import TokenRefused as TokenRefused
from privacy.lineage import first_row, insist_on, insist_on_parent, parent_row, refuse_if_closed
from privacy.repeats import again
from privacy.tally import Reserved, Tally, counted, inheritance
from privacy.terms import Request as Request
from privacy.terms import Sealed as Sealed
from privacy.terms import Terms as Terms
from privacy.terms import Token as Token


class Ledger:
    """The ledger of one data set, by `create`, `open` or `open_or_create`.

    It is open until its `with` block ends, or `close`; `with` opens it again and reads only the rows that were added
    meanwhile, which is what a site that answers many rounds should do.

    Guarantees:
        A token is on disk before it is returned: a crash at any point may count too much, never too little. Nothing is
        refunded, removed or changed. Opening checks every row; a chain that another party saw (`check`) cannot be
        shortened, edited or rolled back unnoticed. No clock decides anything: the times in the rows are for readers.
    """

    def __init__(self, path: Path, *, durable: bool, wait_s: float) -> None:
        self._chain, self._tally = Chain(path, durable=durable, wait_s=wait_s), Tally()

    @classmethod
    def create(
        cls,
        path: Path,
        terms: Terms,
        *,
        parent: Path | None = None,
        unpaid_before: int = 0,
        durable: bool = True,
    ) -> Self:
        """A new ledger; its folder is made if need be.

        Args:
            path: one file on a local disk.
            terms: for ever.
            parent: the ledger of data that shares records with this one (a copy, a part, more rows). Everything it has
                spent and reserved counts here too, its plans are continued here, and it answers no more: records that
                are in both would otherwise pay in two places.
            unpaid_before: answers that these records gave before, without a ledger; a parent's are added.
            durable: survive a power cut; a simulation only has to survive being killed.

        Raises:
            LedgerUnavailable: there is a ledger already, or the disk refuses.
            TermsDiffer: the parent has other terms.
            LedgerBroken: the parent is, or a lost ledger's write-ahead log lies there.
            ValueError: in mode "filter", no release at all fits at this order.
        """
        usable(terms)
        if path.exists():  # before a parent is closed for nothing
            raise LedgerUnavailable(f"there is a ledger at {path}: open it, or name another place")
        data_set, inherited, history = str(uuid.uuid4()), None, list[Entry]()
        if parent is not None:
            with cls.open(parent, durable=durable) as old:
                data_set, inherited, history = old._hand_on(terms, data_set, str(path.absolute()))
                unpaid_before += old.unpaid_before
        told = first_row(data_set, terms, inherited, unpaid_before)
        make(path, [("OPEN", b"", told), *history], durable=durable)
        return cls.open(path, durable=durable)

    @classmethod
    def open(cls, path: Path, *, durable: bool = True, wait_s: float = 30.0) -> Self:
        """The ledger at `path`, every row checked.

        Args:
            wait_s: how long to wait for another process's transaction.

        Raises:
            LedgerUnavailable, LedgerBroken.
        """
        return cls(path, durable=durable, wait_s=wait_s).__enter__()

    @classmethod
    def open_or_create(
        cls,
        path: Path,
        terms: Terms,
        *,
        parent: Path | None = None,
        unpaid_before: int = 0,
        durable: bool = True,
    ) -> Self:
        """The ledger at `path`, made as by `create` if there is none.

        Raises:
            TermsDiffer: as for `insist`.
            LedgerUnavailable, LedgerBroken, ValueError: as for `create`.
        """
        if not path.exists():
            try:
                return cls.create(path, terms, parent=parent, unpaid_before=unpaid_before, durable=durable)
            except LedgerUnavailable:
                if not path.exists():
                    raise
        ledger = cls.open(path, durable=durable)
        try:
            ledger.insist(terms, parent)
        except BaseException:
            ledger.close()
            raise
        return ledger

    def __enter__(self) -> Self:
        if not self._chain.is_open:
            self._chain.open()
            try:
                self._catch_up()
                if self._tally.head == GENESIS:
                    raise broken(self._chain.path, "it has no rows")
            except BaseException:
                self.close()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the file go; what was learned stays for the next `with`."""
        self._chain.close()

    @property
    def terms(self) -> Terms:
        """As they were fixed."""
        return self._tally.terms

    @property
    def data_set(self) -> str:
        """A random UUID, public; it says nothing of the data."""
        return self._tally.data_set

    @property
    def lineage(self) -> tuple[str, ...]:
        """This data set, then those whose spending it has inherited, the nearest first."""
        return self._tally.lineage

    @property
    def child(self) -> str:
        """The data set that this one was handed on to; "" while this one answers."""
        return self._tally.child

    @property
    def unpaid_before(self) -> int:
        """Answers that these records gave before their first ledger was made: nothing here covers them."""
        return self._tally.unpaid_before

    def insist(self, terms: Terms, parent: Path | None = None) -> None:
        """Return if this ledger was made for these terms and, where a parent is named, from that one.

        Raises:
            TermsDiffer: it was not; what was released cannot be taken back.
            LedgerUnavailable, LedgerBroken: the parent is.
        """
        insist_on(self._chain.path, self.terms, terms)
        if parent is not None:
            with type(self)(parent, durable=self._chain.durable, wait_s=30.0) as old:
                insist_on_parent(self._chain.path, self._tally, parent, old._tally)

    def plan(self, name: str, events: Sequence[Event], delta: float | None = None) -> None:
        """Mode "plan": reserve and charge all releases of a plan, before the first of them.

        The same plan again is no second one. Epsilons and deltas of several plans add up.

        Args:
            delta: this plan's share of the ledger's; None: all that is left of it.

        Raises:
            BudgetExceeded: it does not fit; nothing was reserved.
            KeyConflict: the name stands for another plan.
            LedgerUnavailable, LedgerBroken, ValueError.
        """
        wanted = merged(events)
        if self.terms.mode != "plan" or not wanted or not name:
            raise ValueError(f"plan {name!r} of {wanted} in mode {self.terms.mode!r}: name events, in mode 'plan'")
        if delta is not None:
            check_delta(delta)
        with self._writing() as tally:
            known = tally.plans.get(name)
            if known is not None:
                if (counted(known.events), delta or known.delta) == (counted(wanted), known.delta):
                    return
                raise KeyConflict(
                    f"plan {name!r} was reserved with other events or another delta: give this one its own name"
                )
            refuse_if_closed(self._chain.path, tally)
            share = share_of(tally, name, wanted, delta)
            self._append("PLAN", b"", {"name": name, "events": to_json(wanted), "delta": share})
        self._catch_up()

    def reserve(self, request: Request, events: Sequence[Event], *, plan: str | None = None) -> Token | Sealed:
        """Pay for one release, before its data is touched.

        Args:
            request: what it is.
            events: its whole price; empty where it is computed from earlier releases alone, and in mode "count".
            plan: in mode "plan", which one it is drawn from; None: the one that was reserved last.

        Returns:
            A token; or the bytes that this very request was answered with.

        Raises:
            BudgetExceeded: it does not fit, or its parameters are not the plan's; nothing was spent.
            KeyConflict: this run, round and attempt was paid for with other contents.
            ReleaseLost: it was paid for, and the process died. In a seeded ledger the same token is returned instead:
                there a release is a function of its request.
            StaleRelease: it was answered long ago.
            LedgerUnavailable, LedgerBroken, ValueError.
        """
        key, wanted = request.key(self.data_set), merged(events)
        if wanted and self.terms.mode == "count":
            raise ValueError(f"{len(wanted)} events in mode 'count', which accounts for none: pass no events")
        with self._writing() as tally:
            known = tally.releases.get((request.run, request.round, request.attempt))
            if known is not None:
                return again(self._chain, known, request, key, wanted, seeded=self.terms.seeded)
            refuse_if_closed(self._chain.path, tally)
            told = {"request": asdict(request), "events": to_json(wanted), "plan": afford(tally, wanted, plan)}
            seq = self._append("SPENT", key, told).seq
        self._catch_up()
        return Token(seq, key, wanted)

    def unsealed(self, seq: int, key: bytes) -> Token | None:
        """The token of row `seq`, for whoever kept the bytes that it paid for; None: sealed.

        Raises:
            LedgerRolledBack: nothing here was paid for by that row and key.
        """
        self._catch_up()
        release = self._tally.release_at(seq)
        if release is None or release.key != key:
            raise self._rolled_back(f"has no release at row {seq} that this site paid for")
        return None if release.sealed else Token(release.seq, release.key, release.events)

    def store(self, token: Token, payload: bytes) -> Head:
        """Keep the bytes of a release and seal it: one transaction.

        Returns:
            The head to send along.

        Raises:
            TokenRefused: it is of another ledger, unknown, or used.
            LedgerUnavailable, LedgerBroken.
        """
        with self._writing() as tally:
            release = tally.release_at(token.seq)
            if release is None or (release.key, release.events) != (token.key, token.events):
                raise TokenRefused(f"token of row {token.seq} is not of this ledger: reserve the release here")
            if release.sealed:
                raise TokenRefused(f"token of row {token.seq} was used: row {release.sealed} seals what it released")
            sha256 = hashlib.sha256(payload).hexdigest()
            head = self._append("SEALED", token.key, {"spent": token.seq, "sha256": sha256, "bytes": len(payload)})
            self._chain.keep_payload(head.seq, payload)
        self._catch_up()
        return head

    def head(self) -> Head:
        """Where the chain ends."""
        self._catch_up()
        return self._tally.head

    def check(self, seq: int, digest: bytes) -> None:
        """Return if this chain had the head `digest` at row `seq`.

        Raises:
            LedgerRolledBack: it had not: a copy was put back, rows were lost, or whoever asks is wrong.
        """
        self._catch_up()
        if not 1 <= seq <= self._tally.head.seq or self._chain.digest_at(seq) != digest:
            raise self._rolled_back(f"has not the head {digest.hex()[:8]}... at row {seq} that was shown before")

    def verify(self) -> None:
        """Read every row and every kept payload again.

        Raises:
            LedgerBroken: with the first row that does not hold.
        """
        fresh = Tally()
        self._learn(fresh)
        self._chain.check_payloads({seq: release.sha256 for seq, release in fresh.sealed().items()})
        self.check(fresh.head.seq, fresh.head.digest)

    def rows(self) -> Iterator[Row]:
        """Every row, from the first."""
        return (row for row, _ in self._chain.rows())

    def events(self, run: str | None = None) -> Events:
        """What was spent: by all releases and by a parent's, or by those of one run."""
        self._catch_up()
        return self._tally.events(run)

    def count(self, run: str | None = None) -> int:
        """Different rounds that were paid for: of all runs and of a parent, or of one run."""
        self._catch_up()
        return self._tally.count(run)

    def plans(self) -> dict[str, Reserved]:
        """Mode "plan": what was reserved, by name, in that order."""
        self._catch_up()
        return deepcopy(self._tally.plans)

    def epsilon(self) -> float:
        """What the releases so far cost, computed from the rows at the ledger's delta.

        In mode "plan" the sum over plans of the PLD epsilon of what was drawn, at that plan's delta: less than what
        is charged until all is drawn. In mode "filter" the sum of R(a*), converted. In mode "count" infinite as
        soon as there was a release. What may be promised is `charged`.
        """
        self._catch_up()
        return epsilon_of_releases(self._tally)

    def charged(self) -> tuple[float, float]:
        """Epsilon and delta that may be promised for all that was released.

        In mode "plan" the sums over reserved plans: to stop early refunds nothing. In mode "filter" the totals, from
        the first release on: where it stops may depend on what was released. In mode "count" infinite, and 0.
        """
        self._catch_up()
        return charged_of(self._tally)

    def left(self, events: Sequence[Event], *, plan: str | None = None) -> int | None:
        """How many more releases of `events` each would be accepted; None: any number, since they cost nothing here.

        Args:
            plan: in mode "plan", the one to draw from; None: the one that was reserved last.

        Raises:
            BudgetExceeded: there is no such plan.
        """
        self._catch_up()
        return 0 if self._tally.child else left_of(self._tally, merged(events), plan)

    @contextmanager
    def _writing(self) -> Iterator[Tally]:
        """All rows known, and nobody else adds one: then at most one is appended, which is learned afterwards."""
        with self._chain.writing():
            self._catch_up()
            yield self._tally

    def _append(self, kind: str, key: bytes, body: Mapping[str, Any]) -> Head:
        return self._chain.append(self._tally.head, (kind, key, body))

    def _catch_up(self) -> None:
        head = self._tally.head
        if head != GENESIS and self._chain.digest_at(head.seq) != head.digest:
            raise self._rolled_back(f"no longer has the row {head.seq} that was read from it")
        self._learn(self._tally)

    def _rolled_back(self, what: str) -> LedgerRolledBack:
        return LedgerRolledBack(f"the ledger {self._chain.path} {what}: put back the newest one, with its -wal file")

    def _learn(self, tally: Tally) -> None:
        try:
            tally.learn(self._chain.rows(tally.head))
        except ValueError as error:
            raise broken(self._chain.path, str(error)) from error

    def _hand_on(self, terms: Terms, child: str, path: str) -> tuple[str, dict[str, Any], list[Entry]]:
        """Close this ledger for its child: the child's id, what its OPEN row says of this one, and its next rows."""
        self.insist(terms)
        with self._writing() as tally:
            if not tally.child:
                self._append("CLOSED", b"", {"child": child, "path": path})
        self._catch_up()
        if self._tally.child_path != path:  # the same path again: the process died before the child was made
            refuse_if_closed(self._chain.path, self._tally)
        return self._tally.child, parent_row(self._tally, self.count()), inheritance(self._tally)
