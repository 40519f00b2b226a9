"""The round: plan, ask, check, quorum, aggregate. Nothing here knows Flower, files or torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Protocol

import numpy as np

from server.checks import Failure, check_answer
from server.exchange import Exchange
from server.links import Links, News
from server.planning import encode_plans, make_plans, published, round_rows
from server.standing import Standing
from strategies.aggregator import Aggregator, Ballot, Outcome, traits_of, voters_needed
from strategies.disagreement import DisagreementMeter
from strategies.messages import MIN_WEIGHT, ClientReport, RoundPlan
from strategies.seeds import stream_seed
from strategies.selection import count_of, participants
from strategies.soft_labels import Int64, SoftLabels


@dataclass(frozen=True, slots=True)
class Reply:
    """What the network says of one asked client: its bytes, or why there are none.

    Attributes:
        round: of the plan that it answers; 0: the one that was just sent.
    """

    client: str
    payload: bytes | Failure
    round: int = 0


class Cohort(Protocol):
    """The network, as one method."""

    @property
    def clients(self) -> Sequence[str]:
        """Everybody who can be asked, by name."""
        ...

    def ask(self, plans: Mapping[str, bytes]) -> Iterator[Reply]:
        """Send each client its plan; one reply each, as they arrive, within the cohort's own deadline.

        Equal plans are the same object. A cohort that can still hear an answer after its deadline yields it among
        those of a later round, with the round that it belongs to.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class RoundResult:
    """One finished round.

    Attributes:
        teacher: on the rows of this round that met the quorum; with a cache also on those that were not asked.
        ballot: what was voted on, late answers included.
        standing: what the next round needs to know.
        replies: usable answers, `late` of them to earlier plans.
    """

    round: int
    teacher: SoftLabels
    ballot: Ballot
    standing: Standing
    replies: int
    late: int
    failures: tuple[Failure, ...]
    upload_bytes: int
    download_bytes: int


class QuorumError(RuntimeError):
    """Too few usable answers, or no row with enough voters; the round, and with it the run, has failed.

    Attributes:
        lost: clients that must be told everything when the run is resumed, else they would refuse again.
    """

    def __init__(self, round_: int, reason: str, failures: tuple[Failure, ...], lost: Collection[str] = ()) -> None:
        self.round, self.failures, self.lost = round_, failures, frozenset(lost)
        named = ", ".join(f"{failure.client} ({failure.reason})" for failure in failures[:20])
        more = f" and {len(failures) - 20} more" if len(failures) > 20 else ""
        super().__init__(f"round {round_}: {reason}" + (f"; without one: {named}{more}" if failures else ""))


# What the clients are told of a teacher: itself, or for example the student's answers on its rows (CFD).
Speak = Callable[[SoftLabels], SoftLabels]
# Told of every believed report with the ballot that it counts in; `consilium forget` works on what was kept.
Keep = Callable[[ClientReport, Ballot], None]


@dataclass(slots=True)
class _Tally:
    """What one round's replies amounted to, counted while they stream through.

    `pending` are the plans of earlier rounds that may still be answered.
    """

    pending: dict[str, RoundPlan]
    news: News = field(default_factory=News)
    replies: int = 0
    late: int = 0
    upload_bytes: int = 0
    failures: list[Failure] = field(default_factory=list)

    def sorted_failures(self) -> tuple[Failure, ...]:
        """By client, so that their order of arrival cannot matter."""
        return tuple(sorted(self.failures, key=lambda failure: failure.client))


def run_rounds(
    cohort: Cohort,
    aggregator: Aggregator,
    exchange: Exchange,
    rounds: int,
    *,
    done: int = 0,
    standing: Standing | None = None,
    speak: Speak = lambda teacher: teacher,
    keep: Keep = lambda report, ballot: None,
) -> Iterator[RoundResult]:
    """Run rounds `done` + 1 to `rounds`; checkpoint, metrics and logs are the caller's loop.

    Args:
        done, standing: where a resumed run stands: rounds finished, and what the last one left.
        speak: asked before every round what the clients are told of the last teacher.
        keep: told of every believed report.

    Raises:
        QuorumError: too few usable answers in a round, or no row with enough voters.

    Guarantees:
        One bad reply is that client's Failure, never the round's end. The teacher does not depend on the order
        in which replies arrive. With a streaming rule one report is held at a time, unless late ones may come.
    """
    standing = standing or Standing.new(exchange)
    pending: dict[str, RoundPlan] = {}
    wants = traits_of(aggregator).needs
    for round_ in range(done + 1, rounds + 1):
        rows = round_rows(exchange, standing, round_)
        ask_rows = rows if standing.cache is None else standing.cache.stale(rows, round_)
        tally = _Tally({name: plan for name, plan in pending.items() if round_ - plan.round <= exchange.patience})
        chosen = participants(exchange.seed, round_, cohort.clients, exchange.participation)
        asked = tuple(name for name in chosen if name not in tally.pending)
        spoken = None if standing.teacher is None else speak(standing.teacher)
        links = published(exchange, standing, spoken, round_)
        plans = make_plans(exchange, standing, links, spoken, round_, asked, ask_rows, wants)
        encoded = encode_plans(plans)
        reports = _believable(cohort, exchange, links, plans, encoded, round_, tally)
        ballot, reports = _ballot(exchange, reports, ask_rows, len(asked) + len(tally.pending), round_)
        meter = DisagreementMeter(ballot) if standing.disagreement is not None else None
        heard = _kept(reports if meter is None else meter.listen(reports), ballot, keep)
        outcome = _outcome(aggregator, standing, ballot, heard)
        waited = exchange.mode == "async" and bool(tally.pending) and standing.teacher is not None
        if not waited:
            _check_replies(exchange, tally, len(asked), round_)
        standing, teacher = _after(exchange, standing, outcome, ballot, rows, meter, round_, waited)
        standing = replace(standing, links=links.after(tally.news))
        if len(teacher.rows) == 0:
            raise _no_teacher(ballot, tally)
        pending = tally.pending
        yield RoundResult(
            round_,
            teacher,
            ballot,
            standing,
            tally.replies,
            tally.late,
            tally.sorted_failures(),
            tally.upload_bytes,
            sum(map(len, encoded.values())),
        )


def _believable(
    cohort: Cohort,
    exchange: Exchange,
    links: Links,
    plans: Mapping[str, RoundPlan],
    encoded: Mapping[str, bytes],
    round_: int,
    tally: _Tally,
) -> Iterator[ClientReport]:
    """The usable reports as they arrive, one a plan; everything else is counted as a failure."""
    waiting = dict(plans)
    for reply in cohort.ask(encoded):
        late = reply.round not in (0, round_)
        plan = (tally.pending if late else waiting).get(reply.client)
        if plan is None or (late and plan.round != reply.round):
            continue  # a second answer of one client, or one that nobody waits for
        (tally.pending if late else waiting).pop(reply.client)
        if isinstance(reply.payload, Failure):
            if reply.payload.reason == "late" and exchange.mode == "async" and not late:
                tally.pending[reply.client] = plan
            else:
                tally.failures.append(reply.payload)
            continue
        tally.upload_bytes += len(reply.payload)
        before = links.heard.get(reply.client)
        checked = check_answer(reply.client, reply.payload, plan, before)
        if isinstance(checked, Failure):
            if checked.reason in ("base", "refused_need_key"):
                tally.news.lost.add(reply.client)
            tally.failures.append(checked)
            continue
        tally.news.answered(plan, checked, before, exchange.universe)
        tally.replies += 1
        tally.late += late
        yield checked.report if not late else _aged(checked.report, round_ - plan.round, exchange.staleness)
    tally.failures.extend(Failure(client, "no_reply") for client in waiting)


def _aged(report: ClientReport, rounds_late: int, exponent: float) -> ClientReport:
    """A late report with the weight that is left to it."""
    return replace(report, weight=max(MIN_WEIGHT, float(report.weight) * (1.0 + rounds_late) ** -exponent))


def _ballot(
    exchange: Exchange, reports: Iterator[ClientReport], ask_rows: Int64, clients: int, round_: int
) -> tuple[Ballot, Iterator[ClientReport]]:
    """The round's ballot; where late answers may come, its rows are known only when all are there.

    Args:
        clients: who may have a say: asked now, or earlier and still waited for. The fewer are asked while others are
            late, the more of them a row needs, so that no vote alone becomes everybody's teacher.
    """
    rows = ask_rows
    if exchange.mode == "async":
        arrived = list(reports)
        late = (report.soft_labels.rows for report in arrived if report.round != round_)
        rows = np.unique(np.concatenate([ask_rows, *late])).astype(np.int64)
        reports = iter(arrived)
    needed = voters_needed(max(1, clients), exchange.row_quorum)
    seed = stream_seed(exchange.seed, "ties")
    return Ballot(rows, exchange.classes, clients, needed, round_, seed), reports


def _kept(reports: Iterator[ClientReport], ballot: Ballot, keep: Keep) -> Iterator[ClientReport]:
    for report in reports:
        keep(report, ballot)
        yield report


def _outcome(
    aggregator: Aggregator, standing: Standing, ballot: Ballot, reports: Iterator[ClientReport]
) -> Outcome | None:
    """What the rule makes of the votes; None where nothing was usable, or nothing was asked and nothing came late."""
    first = next(reports, None)
    if first is None:
        return None
    if len(ballot.rows) == 0:
        for _ in reports:
            pass  # everything that the teacher needs is cached; the answers only say that the plans arrived
        return None
    return aggregator.aggregate(standing.state, ballot, chain([first], reports))


def _check_replies(exchange: Exchange, tally: _Tally, asked: int, round_: int) -> None:
    """Whether enough answers were usable; where late ones may still come, one is enough.

    Raises:
        QuorumError: they were not.
    """
    share = count_of(exchange.quorum, asked) if exchange.mode == "sync" else 0
    needed = max(1, share)
    if tally.replies < needed:
        usable = f"{tally.replies} of {asked} answers were usable and the quorum is {needed}"
        raise QuorumError(round_, usable, tally.sorted_failures(), tally.news.lost)


def _no_teacher(ballot: Ballot, tally: _Tally) -> QuorumError:
    reason = (
        f"none of {len(ballot.rows)} rows is left for the teacher; a row needs {ballot.needed} voters "
        "(strategy.row_quorum) who keep it (client.selector) and do not tie (ambiguity)"
    )
    return QuorumError(ballot.round, reason, tally.sorted_failures(), tally.news.lost)


def _after(
    exchange: Exchange,
    standing: Standing,
    outcome: Outcome | None,
    ballot: Ballot,
    rows: Int64,
    meter: DisagreementMeter | None,
    round_: int,
    waited: bool,
) -> tuple[Standing, SoftLabels]:
    """What the round leaves to the next, and its teacher.

    Args:
        waited: answers may still come late; a round without votes enough then leaves the last teacher.
    """
    if outcome is not None and standing.cache is not None and (outcome.choices or outcome.personal):
        raise ValueError(
            f"cache_rounds={exchange.cache_rounds} must be 0 with this rule: it gives clients different teachers"
        )
    if meter is not None and standing.disagreement is not None and outcome is not None:
        disagreement, measured = standing.disagreement.copy(), meter.value()
        disagreement[ballot.rows] = np.where(np.isnan(measured), disagreement[ballot.rows], measured)
        standing = replace(standing, disagreement=disagreement)
    standing = standing.after(outcome, rows, round_, waited=waited)
    assert standing.teacher is not None  # noqa: S101 - somebody voted, a label is cached, or late answers are waited for
    return standing, standing.teacher
