"""What a ledger's rows add up to: learned row by row, from nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from privacy.chain import GENESIS, Entry, Head, Row
from privacy.events import Event, Events, from_json, times, to_json
from privacy.terms import Terms

# How often each event, taken once, was used.
Counts = dict[Event, int]


def counted(events: Sequence[Event]) -> Counts:
    """How often each event is in `events`."""
    counts: Counts = {}
    add(counts, events)
    return counts


def events_of(counts: Mapping[Event, int]) -> Events:
    """The events of these counts; those that were never used are left out."""
    return tuple(times(event, count) for event, count in counts.items() if count)


def add(counts: Counts, events: Sequence[Event]) -> None:
    """Count `events` too."""
    for event in events:
        once = replace(event, count=1)
        counts[once] = counts.get(once, 0) + event.count


@dataclass(slots=True)
class Reserved:
    """A plan: what was fixed and charged before its first release, and what of it was drawn.

    Attributes:
        events: all of it.
        delta: its own share of the ledger's.
        drawn: by releases so far.
    """

    events: Events
    delta: float
    drawn: Counts = field(default_factory=dict)

    def left(self) -> Counts:
        """What can still be drawn."""
        return {event: count - self.drawn.get(event, 0) for event, count in counted(self.events).items()}

    def covers(self, events: Sequence[Event]) -> bool:
        """Whether `events`, with exactly these parameters, can still be drawn."""
        left = self.left()
        return all(count <= left.get(event, 0) for event, count in counted(events).items())


@dataclass(slots=True)
class Release:
    """One release that was paid for.

    Attributes:
        seq, key: of its SPENT row.
        events: its price.
        plan: that it drew on; "" where there is none, or nothing to draw.
        sealed: the row that sealed its bytes; 0: none yet.
        sha256: of those bytes.
    """

    seq: int
    key: bytes
    events: Events
    plan: str
    sealed: int = 0
    sha256: str = ""


# run, round, attempt: there is at most one release of each.
Slot = tuple[str, int, int]


class Tally:
    """The sum of the rows read so far.

    Attributes:
        head: of the last row read.
        terms, data_set: as the first row fixed them.
        parent: the data set whose spending this one inherited; "" where there is none.
        lineage: this data set, then its parent, that one's parent, and so on.
        inherited: rounds that the parent answered.
        unpaid_before: answers that these records gave before, and that no ledger has paid for.
        plans: by name, in the order in which they were reserved.
        releases: by slot.
        spent: what all releases used, the inherited ones among them.
        child, child_path: the data set that this one was handed on to, and its ledger; "" while this one is in use.
    """

    def __init__(self) -> None:
        self.head: Head = GENESIS
        self.terms: Terms
        self.data_set = self.parent = self.child = self.child_path = ""
        self.lineage: tuple[str, ...] = ()
        self.inherited = self.unpaid_before = 0
        self.plans: dict[str, Reserved] = {}
        self.releases: dict[Slot, Release] = {}
        self.spent: Counts = {}
        self._by_seq: dict[int, Release] = {}

    def learn(self, rows: Iterator[tuple[Row, Head]]) -> None:
        """Take in the rows behind the last one.

        Raises:
            ValueError: a row says what no ledger writes; the rows before it are taken in.
        """
        for row, head in rows:
            try:
                self._take(row)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise ValueError(f"row {row.seq} ({row.kind}) says what no ledger writes: {error!r}") from error
            self.head = head

    def release_at(self, seq: int) -> Release | None:
        """The release that row `seq` paid for."""
        return self._by_seq.get(seq)

    def events(self, run: str | None) -> Events:
        """What was spent: by all releases and by a parent's, or by those of one run."""
        if run is None:
            return events_of(self.spent)
        counts: Counts = {}
        for (of, _, _), release in self.releases.items():
            if of == run:
                add(counts, release.events)
        return events_of(counts)

    def count(self, run: str | None) -> int:
        """Different rounds that were paid for: of all runs and of a parent, or of one run."""
        rounds = {(of, round_) for of, round_, _ in self.releases if run in (None, of)}
        return len(rounds) + (self.inherited if run is None else 0)

    def sealed(self) -> dict[int, Release]:
        """Releases whose bytes are known, by the row that sealed them."""
        return {release.sealed: release for release in self.releases.values() if release.sealed}

    def _take(self, row: Row) -> None:
        if (row.kind == "OPEN") != (row.seq == 1):
            raise ValueError("a ledger has one OPEN row, its first")
        _TAKE[row.kind](self, row)

    def _open(self, row: Row) -> None:
        terms, parent = Terms.read(row.body["terms"]), row.body["parent"]
        if parent is not None:
            self.parent, self.inherited = parent["data_set"], parent["answered"]
        self.data_set, self.terms = row.body["data_set"], terms
        # Ledgers that were made before these were written say neither.
        before = () if parent is None else parent.get("lineage", [self.parent])
        self.lineage, self.unpaid_before = (self.data_set, *before), row.body.get("unpaid_before", 0)

    def _plan(self, row: Row) -> None:
        name = row.body["name"]
        if name in self.plans or self.child or self.terms.mode != "plan":
            raise ValueError(f"no plan {name!r} can be reserved here")
        self.plans[name] = Reserved(from_json(row.body["events"]), float.fromhex(row.body["delta"]))

    def _spent(self, row: Row) -> None:
        events, plan = from_json(row.body["events"]), row.body["plan"]
        if self.child or (plan and not self.plans[plan].covers(events)):
            raise ValueError("there was nothing left to draw on")
        if "inherited" not in row.body:
            told = row.body["request"]
            slot = (told["run"], told["round"], told["attempt"])
            if slot in self.releases:
                raise ValueError(f"{slot} was spent before")
            self.releases[slot] = self._by_seq[row.seq] = Release(row.seq, row.key, events, plan)
        add(self.spent, events)
        if plan:
            add(self.plans[plan].drawn, events)

    def _sealed(self, row: Row) -> None:
        release = self._by_seq[row.body["spent"]]
        if release.sealed or release.key != row.key:
            raise ValueError("there was nothing to seal")
        release.sealed, release.sha256 = row.seq, row.body["sha256"]

    def _closed(self, row: Row) -> None:
        if self.child:
            raise ValueError("it was closed before")
        self.child, self.child_path = row.body["child"], row.body["path"]


_TAKE = {
    "OPEN": Tally._open,
    "PLAN": Tally._plan,
    "SPENT": Tally._spent,
    "SEALED": Tally._sealed,
    "CLOSED": Tally._closed,
}


def inheritance(tally: Tally) -> list[Entry]:
    """The rows that a child begins with: all plans, to be continued there, and all that was spent."""
    mark = {"inherited": tally.data_set}
    plans: list[Entry] = [
        ("PLAN", b"", {"name": name, "events": to_json(plan.events), "delta": plan.delta, **mark})
        for name, plan in tally.plans.items()
    ]
    spent = {name: plan.drawn for name, plan in tally.plans.items()} or {"": tally.spent}
    return plans + [
        ("SPENT", b"", {"plan": name, "events": to_json(events_of(drawn)), **mark})
        for name, drawn in spent.items()
        if drawn
    ]
