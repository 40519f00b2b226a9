"""A round whose votes the coordinator sees as one sum: steps over the cohort, those of two rounds in one exchange.

Bonawitz et al. (2017); the messages are those of privacy.secure_sum, the schedule is its README's with two exchanges a
round: the inputs of a round travel with the first step of the next one, the opening with the second. Sites that have a
registry of each other's keys sign who is in the sum before they open it: a third exchange.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from client.sum_wire import Part, base_of, colluding_of, noisy_sheet, sheet_of
from privacy.mechanisms.distributed_sum import DistributedClientSum
from privacy.secure_sum import server
from privacy.secure_sum.errors import SecureSumError
from privacy.secure_sum.messages import invitation
from privacy.secure_sum.session import FEWEST, Session
from privacy.secure_sum.sheet import Float64, Sheet, Total
from server.checks import Failure
from server.exchange import Exchange
from server.replies import Cohort, QuorumError, Tally
from server.sum_exchange import Heard, Said, exchanged
from server.sum_store import SumStore
from strategies.aggregator import voters_needed
from strategies.messages import RoundPlan
from strategies.selection import count_of
from strategies.wire import decode_plan

_NOW, _NEXT = "now", "next"
# What share of the invited must stay in a sum at least: see the README of privacy.secure_sum.
_LEAST_SHARE = 2.0 / 3.0


@dataclass(slots=True)
class Beginning:
    """The first two stages of one sum, which need no votes yet.

    Attributes:
        missing: why some of the invited are not in it, by name.
        shared: after both stages.
        failed: why it cannot go on.
    """

    session: Session
    missing: dict[str, Failure] = field(default_factory=dict)
    shared: server.Shared | None = None
    failed: SecureSumError | None = None
    _keyed: server.Keyed | None = None

    def requests(self) -> dict[str, Part]:
        """What the next stage asks; nothing where there is none."""
        if self.failed is not None or self.shared is not None:
            return {}
        if self._keyed is None:
            return dict.fromkeys(self.session.clients, Part(invitation(self.session)))
        return dict.fromkeys(self._keyed.asked, Part(self._keyed.message))

    def hear(self, said: Mapping[str, Said]) -> None:
        """One stage's answers."""
        self.missing |= {client: told for client, told in said.items() if isinstance(told, Failure)}
        answers = {client: told for client, told in said.items() if isinstance(told, bytes)}
        try:
            if self._keyed is None:
                self._keyed = server.keyed(self.session, answers)
                refused = self._keyed.refused
            else:
                self.shared = server.shared(self._keyed, answers)
                refused = self.shared.refused
        except SecureSumError as error:
            self.failed = error
            return
        self.missing |= {client: Failure(client, "secure_sum", str(error)) for client, error in refused.items()}


@dataclass(slots=True)
class SecureRounds:
    """The sums of one run, round after round.

    Attributes:
        exchange: of the run.
        store: where a sum is kept from just before its opening on, for a coordinator that is started again.
        split: the mechanism whose noise the sites put into their inputs; None: inputs are votes.
    """

    exchange: Exchange
    store: SumStore | None = None
    split: DistributedClientSum | None = None
    _ahead: Beginning | None = None

    def mean(
        self,
        cohort: Cohort,
        plans: Mapping[str, RoundPlan],
        encoded: Mapping[str, bytes],
        tally: Tally,
        following: Sequence[str] = (),
    ) -> Float64:
        """[rows, classes] the mean vote of everybody who stays, or what follows from a sum with noise; see `total`."""
        if self.split is None:
            total = self.total(cohort, plans, encoded, tally, following)
            return total.votes / len(total.clients)
        # What the sites read is what they clip around: the teacher as the downlink's codec leaves it.
        read = decode_plan(next(iter(encoded.values())), self.exchange.proxy_rows, self.exchange.classes)
        total = self.total(cohort, plans, encoded, tally, following, noisy_sheet(read, self.split))
        return self.split.release(total.steps, base_of(read))

    def total(
        self,
        cohort: Cohort,
        plans: Mapping[str, RoundPlan],
        encoded: Mapping[str, bytes],
        tally: Tally,
        following: Sequence[str] = (),
        sheet: Sheet | None = None,
    ) -> Total:
        """The sum of the votes of everybody who stays.

        Args:
            plans, encoded: by client; all of them ask for the same rows.
            tally: failures, bytes, and what the answers say of the links are added to it.
            following: whom the next round will ask; their first steps for it travel along. Empty: nobody is.
            sheet: what is filled in; None: votes.

        Raises:
            QuorumError: too few stayed.

        Guarantees:
            Exact: the sum of what is on the sheet, whatever the order of the answers and whoever is gone. A sum that
            was to be opened when the coordinator died is opened, with its very members, and not begun again: a site
            helps to open one a round.
        """
        plan = next(iter(plans.values()))
        sheet = sheet or sheet_of(plan)
        next_sum: Beginning | None = None
        try:
            kept = None if self.store is None else self.store.load(sheet, plan.run, plan.round)
            if kept is None:
                shared = self._shared(cohort, plan, tuple(sorted(plans)), tally)
                next_sum = self._prepared(plan.round + 1, following)
                kept = self._kept(self._added(cohort, shared, sheet, plans, encoded, tally, next_sum))
            state, signed = kept
            if state.roster.is_signed and signed is None:
                state, signed = self._kept(state, self._signed(cohort, plan, state, tally, next_sum))
            total = self._opened(cohort, plan, state, signed, tally, next_sum)
        except SecureSumError as error:
            reason = f"secure sum, {error}"
            refused = tally.forbidden(len(plans), self._needed(len(plans)))
            raise QuorumError(plan.round, reason, tally.sorted_failures(), tally.news.lost, refused=refused) from None
        self._ahead = next_sum
        tally.replies = len(total.clients)
        return total

    def _shared(self, cohort: Cohort, plan: RoundPlan, asked: tuple[str, ...], tally: Tally) -> server.Shared:
        """Stages 1 and 2, unless they travelled with the round before."""
        begun, self._ahead = self._ahead, None
        if begun is None or begun.failed or (begun.session.round, begun.session.clients) != (plan.round, asked):
            begun = self._beginning(plan.round, asked)
        while begun.shared is None and begun.failed is None:
            begun.hear(self._exchanged(cohort, plan, begun.requests(), tally).said[_NOW])
        for failure in begun.missing.values():
            tally.failed(failure)
        if begun.failed is not None:
            raise begun.failed
        assert begun.shared is not None  # noqa: S101 - the loop ended
        return begun.shared

    def _added(
        self,
        cohort: Cohort,
        shared: server.Shared,
        sheet: Sheet,
        plans: Mapping[str, RoundPlan],
        encoded: Mapping[str, bytes],
        tally: Tally,
        next_sum: Beginning | None,
    ) -> server.Summing:
        """Stage 3, and stage 1 of the next round."""
        state, plan = server.summing(shared, sheet), next(iter(plans.values()))
        requests = {client: Part(parcel, encoded[client]) for client, parcel in shared.messages.items()}
        heard = self._exchanged(cohort, plan, requests, tally, next_sum)
        for client, told in heard.said[_NOW].items():
            if isinstance(told, Failure):
                tally.failed(told)
                continue
            try:
                state = server.added(state, client, told)
            except SecureSumError as error:
                tally.failed(Failure(client, "secure_sum", str(error)))
                continue
            if client in heard.heads:
                tally.news.heads[client] = heard.heads[client]
            if (sync := plans[client].sync) is not None:
                tally.news.applied[client] = plan.round, sync.changed
        server.opening(state)  # too few are refused before anything is kept
        return state

    def _kept(
        self, state: server.Summing, signed: server.Signed | None = None
    ) -> tuple[server.Summing, server.Signed | None]:
        """The same, on disk where there is a store."""
        if self.store is not None:
            self.store.save(state, signed)
        return state, signed

    def _signed(
        self, cohort: Cohort, plan: RoundPlan, state: server.Summing, tally: Tally, next_sum: Beginning | None
    ) -> server.Signed:
        """Stage 4, and stage 2 of the next round; who does not sign may still help to open."""
        requests = dict.fromkeys(state.asked, Part(server.survivors_list(state)))
        heard = self._exchanged(cohort, plan, requests, tally, next_sum)
        answers = _heard(heard.said[_NOW], "its votes are in the sum, whose list it did not sign", tally)
        signed = server.signed_by(state, answers)
        for client, error in signed.refused.items():
            tally.failed(Failure(client, "secure_sum", str(error)))
        return signed

    def _opened(
        self,
        cohort: Cohort,
        plan: RoundPlan,
        state: server.Summing,
        signed: server.Signed | None,
        tally: Tally,
        next_sum: Beginning | None,
    ) -> Total:
        """Stage 5, and the next round's stage 2 if that has not travelled yet."""
        requests = dict.fromkeys(state.asked, Part(server.opening(state, signed)))
        heard = self._exchanged(cohort, plan, requests, tally, next_sum)
        answers = _heard(heard.said[_NOW], "its votes are in the sum, which it did not help to open", tally)
        opened = server.total(state, answers)
        for client, error in opened.refused.items():
            tally.failed(Failure(client, "secure_sum", str(error)))
        return opened.total

    def _prepared(self, round_: int, clients: Sequence[str]) -> Beginning | None:
        """The next round's sum; None where there can be none, which is that round's failure and not this one's."""
        try:
            return self._beginning(round_, clients)
        except SecureSumError:
            return None

    def _beginning(self, round_: int, clients: Sequence[str]) -> Beginning:
        """A new sum.

        Raises:
            SecureSumError: fewer clients than a sum takes.
        """
        exchange, count = self.exchange, len(clients)
        if count < FEWEST:
            raise SecureSumError("too_few", f"{count} clients are asked and a sum takes {FEWEST} or more")
        if (needed := self._needed(count)) > count:
            raise SecureSumError("too_few", f"{count} clients are asked and {needed} must stay")
        return Beginning(Session(exchange.run, round_, secrets.token_hex(16), tuple(sorted(clients)), needed))

    def _needed(self, count: int) -> int:
        """How many of so many invited must stay."""
        return max(
            math.ceil(_LEAST_SHARE * count - 1e-9),
            count // 2 + 1,
            count_of(self.exchange.quorum, count),
            voters_needed(count, self.exchange.row_quorum),
            0 if self.split is None else self.split.least,
            # Who colludes opens for both sides: half of the others must not be enough.
            0 if self.split is None else (count + colluding_of(self.split)) // 2 + 1,
        )

    def _exchanged(
        self,
        cohort: Cohort,
        plan: RoundPlan,
        requests: Mapping[str, Part],
        tally: Tally,
        next_sum: Beginning | None = None,
    ) -> Heard:
        """One exchange, in which a sum of the next round takes its next step."""
        asked = {_NOW: requests}
        if next_sum is not None and (travels := next_sum.requests()):
            asked[_NEXT] = travels
        most_bytes = 8 * len(plan.ask_rows) * plan.classes + 256 * len(cohort.clients)
        heard = exchanged(cohort, plan.run, plan.round, asked, most_bytes, tally)
        if next_sum is not None and _NEXT in asked:
            next_sum.hear(heard.said[_NEXT])
        return heard


def _heard(said: Mapping[str, Said], without: str, tally: Tally) -> dict[str, bytes]:
    """The answers among what was said to a sum's later stages; the others are failures, each client's once a round."""
    known = {failure.client for failure in tally.failures}
    answers: dict[str, bytes] = {}
    for client, told in said.items():
        if isinstance(told, bytes):
            answers[client] = told
        elif client not in known:
            tally.failed(Failure(client, told.reason, f"{without} {told.detail}".rstrip()))
    return answers
