"""A site's part in secure sums: every step is taken once and stored with its answer before that leaves."""

from __future__ import annotations

import hashlib
import json
import logging
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from client.config import PolicySection, SiteConfigError
from client.identity import Peers
from client.promise import Promise
from client.refusing import refused, unreadable
from client.state import SiteState
from client.sum_wire import (
    NoisyInput,
    Part,
    SumAnswer,
    SumRequest,
    base_of,
    colluding_of,
    noisy_sheet,
    sheet_of,
    steps_of,
)
from privacy.mechanisms.distributed_sum import DistributedClientSum
from privacy.noise import OsEntropy
from privacy.policy import PolicyError
from privacy.secure_sum import client
from privacy.secure_sum.client_state import ClientState, Stage
from privacy.secure_sum.errors import SecureSumError
from privacy.secure_sum.messages import INVITE, KEYS, OPEN, PARCEL, SURVIVORS, invited, kind_of, session_of
from privacy.secure_sum.roster import Roster
from privacy.secure_sum.session import Session, Site
from privacy.secure_sum.sheet import Int64, Sheet
from strategies.envelope import REFUSAL, SUM_INPUT, WireError
from strategies.envelope import kind_of as envelope_of
from strategies.messages import ClientReport, LedgerHead, Refusal, RoundPlan
from strategies.wire import decode_answer

log = logging.getLogger("consilium.node")
# Sums of one round that this site gave its input to and that were not opened: a coordinator that dies more often than
# that has another problem.
_MOST_ATTEMPTS = 100


@dataclass(frozen=True, slots=True)
class Turn:
    """One sum, as far as this site has come.

    Attributes:
        state: of privacy.secure_sum.
        answers: by the SHA-256 of what was asked; the same again gets the same bytes.
    """

    state: bytes = field(repr=False)
    answers: Mapping[str, bytes] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"state": _text(self.state), "answers": {key: _text(told) for key, told in self.answers.items()}}

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> Turn:
        """What `plain` wrote."""
        return cls(b64decode(told["state"]), {key: b64decode(answer) for key, answer in told["answers"].items()})


@dataclass(frozen=True, slots=True)
class Kept:
    """What a site remembers of its sums in one run.

    Attributes:
        run: which one.
        opened: the last round whose sum it helped to open: that round and earlier ones are over.
        turns: the newest sum of each round, by round.
        given: by round that is not over, the sums that it gave its input to, as encoded sessions.
    """

    run: str = ""
    opened: int = 0
    turns: Mapping[int, Turn] = field(default_factory=dict)
    given: Mapping[int, tuple[bytes, ...]] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """As JSON holds it: keys and shares are in it."""
        turns = {str(round_): turn.plain() for round_, turn in self.turns.items()}
        given = {str(round_): [_text(session) for session in sessions] for round_, sessions in self.given.items()}
        return {"opened": self.opened, "turns": turns, "given": given}

    @classmethod
    def read(cls, run: str, told: Mapping[str, Any]) -> Kept:
        """What `plain` wrote.

        Raises:
            ValueError, KeyError, TypeError: this is none of ours.
        """
        turns = {int(round_): Turn.read(turn) for round_, turn in told["turns"].items()}
        given = {int(round_): tuple(map(b64decode, sessions)) for round_, sessions in told["given"].items()}
        return cls(run, told["opened"], turns, given)


class Desk(Protocol):
    """The site as its sums need it."""

    @property
    def name(self) -> str:
        """The site's name."""
        ...

    @property
    def last(self) -> SiteState:
        """What is stored, without the model: the run of its last answer, and its part in sums."""
        ...

    def keep_sums(self, sums: bytes) -> None:
        """Store it beside the site's model and its last answer, which stay as they are."""
        ...

    def read(self, blob: bytes) -> RoundPlan:
        """A plan for the public set that is installed here.

        Raises:
            WireError: it is none.
        """
        ...

    def answer_plan(self, plan: RoundPlan, blob: bytes, *, summed: bool) -> bytes:
        """The report or refusal that this site would send; trained for, paid and stored once."""
        ...


@dataclass(frozen=True, slots=True)
class SecureSums:
    """Answers the messages of secure sums for one site.

    A round's sum is opened once. A coordinator that was started again begins another one, for which the same votes,
    trained and paid for once, are masked under other keys. Opened, the two would tell the votes of whoever is in one of
    them only; so a site gives its input to a second sum of a round only while it has opened none, and only if the
    thresholds of the two are together more than all their clients: at least one client would have to open both.

    Attributes:
        desk: the site.
        policy: its owner's; None: no part in any sum.
        promise: its owner's, too.
        peers: who may be in a sum, known by their signatures; None: whoever the coordinator names, which must then be
            trusted to follow the protocol.

    Raises:
        SiteConfigError: a promise that holds among honest peers only, and no registry of them.
    """

    desk: Desk
    policy: PolicySection | None
    promise: Promise | None
    peers: Peers | None = None

    def __post_init__(self) -> None:
        if self.promise is not None and self._split is not None and self.peers is None:
            raise SiteConfigError(
                f"privacy.mechanism={self.promise.name!r} hides this site behind its peers' noise, and without "
                "policy.sum_registry the coordinator could play all of them: agree on a registry (`consilium keys "
                "--help`) and name it, or take another mechanism"
            )

    def answer(self, blob: bytes) -> bytes:
        """Answer one exchange's messages, each alone.

        Guarantees:
            Never raises for what a coordinator sends. Each step of a sum is taken at most once; the same message gets
            the same bytes, also after the process was killed at any moment.
        """
        try:
            request = SumRequest.decode(blob)
        except WireError as error:
            return unreadable(self.desk.name, error)
        told: list[bytes] = []
        head: LedgerHead | None = None
        for part in request.parts:
            try:
                kept = self._kept(request.run)
                answer, found = self._step(kept, part)
                head = found or head
            except Exception as error:
                answer = refused(self.desk.name, request.run, request.round, error)
            told.append(answer)
        return SumAnswer(request.run, request.round, self.desk.name, tuple(told), head).encode()

    def _kept(self, run: str) -> Kept:
        told = json.loads(self.desk.last.sums or b"{}").get(run)
        return Kept(run) if told is None else Kept.read(run, told)

    def _site(self) -> Site:
        if self.policy is None:
            raise PolicyError("no_policy", "the site's file has no [policy]: nothing leaves until its owner writes one")
        split, site = self._split, Site(self.desk.name, fewest=self.policy.sum_threshold)
        if split is not None:  # noise that is split is enough where so many honest sites' shares of it are in the sum
            site = replace(site, fewest=max(site.fewest, split.least), colluding=colluding_of(split))
        if self.peers is None:
            return site
        return replace(site, registry=self.peers.registry, identity=self.peers.identity, agreement=True)

    @property
    def _split(self) -> DistributedClientSum | None:
        return None if self.promise is None else self.promise.split

    def _step(self, kept: Kept, part: Part) -> tuple[bytes, LedgerHead | None]:
        """The answer to one message, stored before it is returned."""
        asked = hashlib.sha256(part.message).hexdigest()
        for turn in kept.turns.values():
            if asked in turn.answers:
                return turn.answers[asked], None
        if kind_of(part.message) == INVITE:
            return self._joined(kept, part.message, asked), None
        round_, turn = _turn_of(kept, part.message)
        state, kind = ClientState.from_bytes(turn.state), kind_of(part.message)
        if kind == PARCEL:
            return self._given(kept, round_, part, asked)
        if kind == KEYS:
            after, answer = client.share(self._site(), state, part.message, OsEntropy())
        elif kind == SURVIVORS:
            after, answer = client.agree(self._site(), state, part.message)
        elif kind == OPEN:
            after, answer = client.unmask(self._site(), state, part.message)
            given = {other: sessions for other, sessions in kept.given.items() if other > round_}
            kept = replace(kept, opened=max(kept.opened, round_), given=given)
        else:
            raise SecureSumError("foreign", f"kind {kind} is no message that this site answers")
        self._keep(kept, round_, turn, after, asked, answer)
        return answer, None

    def _joined(self, kept: Kept, message: bytes, asked: str) -> bytes:
        """Stage 1: whatever this site did in an earlier sum of the round, it gives no further step of that one."""
        session = invited(message)
        if session.run != kept.run or session.round <= kept.opened:
            raise SecureSumError("wrong_session", f"round {session.round} is over, or another run's")
        state, answer = client.join(self._site(), session, OsEntropy())
        turns = {round_: turn for round_, turn in kept.turns.items() if abs(round_ - session.round) <= 1}
        self._keep(replace(kept, turns=turns), session.round, Turn(b""), state, asked, answer)
        return answer

    def _given(self, kept: Kept, round_: int, part: Part, asked: str) -> tuple[bytes, LedgerHead | None]:
        """Stage 3: the site's votes, from its state where they were made before, under this sum's masks."""
        state = ClientState.from_bytes(kept.turns[round_].state)
        session = state.open_session
        if state.stage != Stage.SHARED:
            raise SecureSumError("wrong_stage", "an input is asked of a site that has given it, or not shared its keys")
        site, sessions = self._site(), kept.given.get(round_, ())
        # The owner may have asked for more since the keys were shared: the input is given on today's terms.
        site.accepted(session)
        Roster.decoded(session, state.roster).check_identities(site)
        check_attempts(session, [Session.decoded(one) for one in sessions], site.colluding)
        try:
            plan = self.desk.read(part.plan)
        except WireError as error:
            return unreadable(self.desk.name, error), None
        if (plan.run, plan.round) != (session.run, session.round):
            raise SecureSumError("wrong_session", f"a plan of round {plan.round} in a sum of round {session.round}")
        before = self.desk.last.run
        blob = self.desk.answer_plan(plan, part.plan, summed=True)
        if envelope_of(blob) == REFUSAL:
            return blob, None
        if not (kept.opened or kept.given):
            self._say_of_runs(before, plan.run)
        sheet, steps, head = self._input(plan, blob)
        after, answer = client.mask(state, part.message, sheet, steps)
        given = {**kept.given, round_: (*sessions, session.encoded())}
        self._keep(replace(kept, given=given), round_, kept.turns[round_], after, asked, answer)
        return answer, head

    def _input(self, plan: RoundPlan, blob: bytes) -> tuple[Sheet, Int64, LedgerHead | None]:
        """What the site's answer to a plan is on the sheet of its sum."""
        if envelope_of(blob) == SUM_INPUT:
            own, split = NoisyInput.decode(blob), self._split
            if split is None:
                raise SecureSumError("wrong_stage", "an input with noise, and the site's file splits none any more")
            return noisy_sheet(plan, split), own.steps, own.ledger
        report = decode_answer(blob)
        assert not isinstance(report, Refusal)  # noqa: S101 - the caller looked
        return sheet_of(plan), steps_of(report, plan), report.ledger

    def _say_of_runs(self, before: str, run: str) -> None:
        """Say once that a second run sums votes on rows that another one has summed: a promise alone bounds that."""
        if before in ("", run) or self.promise is not None or self.policy is None:
            return
        if self.policy.secure_sum == "require":
            log.warning(
                "run %s asks for sums of private rows that answered run %s before: where the members of two runs "
                "differ by one site, the difference of their sums is that site's votes; only [privacy] bounds this",
                run,
                before,
            )

    def _keep(self, kept: Kept, round_: int, turn: Turn, after: ClientState, asked: str, answer: bytes) -> None:
        """Store a step and its answer, one file replaced as a whole.

        What was given and opened in other runs is kept for good: a run in between must not make a site forget that a
        sum is over. The policy bounds how many runs it answers.
        """
        turn = Turn(after.to_bytes(), {**turn.answers, asked: answer})
        stored = json.loads(self.desk.last.sums or b"{}")
        runs = {run: {**told, "turns": {}} for run, told in stored.items() if told["opened"] or told["given"]}
        runs[kept.run] = replace(kept, turns={**kept.turns, round_: turn}).plain()
        self.desk.keep_sums(json.dumps(runs).encode())


def noisy_input(report: ClientReport, plan: RoundPlan, promise: Promise | None, seed: int) -> bytes:
    """A site's votes with its share of a sum's noise, as what it keeps and puts into sums of this round.

    Returns:
        b"" where the site's file splits no noise among sites.
    """
    if promise is None or promise.split is None:
        return b""
    steps = promise.split.contribution(report.soft_labels.probabilities(), base_of(plan), promise.drawn_noise(seed))
    return NoisyInput(plan.run, plan.round, steps, report.ledger).encode()


def check_attempts(session: Session, given: list[Session], colluding: int = 0) -> None:
    """Refuse a sum that could be opened beside an earlier one of its round without any honest client's opening both.

    Args:
        colluding: clients that may open both.

    Raises:
        SecureSumError: `conflict`.
    """
    if len(given) >= _MOST_ATTEMPTS:
        raise SecureSumError("conflict", f"{len(given)} sums of round {session.round} were begun: the site stops here")
    for other in given:
        everybody = len({*session.clients, *other.clients})
        if session.threshold + other.threshold <= everybody + colluding:
            raise SecureSumError(
                "conflict",
                f"thresholds of {session.threshold} and {other.threshold} for two sums of round {session.round} among "
                f"{everybody} clients: both could be opened, and their difference would tell single votes",
            )


def _turn_of(kept: Kept, message: bytes) -> tuple[int, Turn]:
    for round_, turn in kept.turns.items():
        if ClientState.from_bytes(turn.state).open_session.digest[:16] == session_of(message):
            return round_, turn
    raise SecureSumError("wrong_session", "a message of a sum that this site does not take part in, any more or yet")


def _text(data: bytes) -> str:
    return b64encode(data).decode()
