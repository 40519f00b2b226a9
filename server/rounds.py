"""The round: plan, ask, check, quorum, aggregate. Nothing here knows Flower, files or torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import chain

import numpy as np

from privacy.mechanisms.distributed_sum import DistributedClientSum
from server.checks import Failure, check_answer
from server.exchange import Exchange
from server.late import Awaited, late_rows, together
from server.links import Links
from server.plain_mean import outcome_of
from server.planning import encode_plans, make_plans, published, round_rows
from server.replies import Cohort as Cohort
from server.replies import QuorumError as QuorumError
from server.replies import Reply as Reply
from server.replies import Tally
from server.secure_round import SecureRounds
from server.standing import Standing
from server.sum_store import SumStore
from strategies.aggregator import Aggregator, Ballot, Outcome, traits_of, voters_needed
from strategies.disagreement import DisagreementMeter
from strategies.messages import ClientReport, RoundPlan
from strategies.seeds import stream_seed
from strategies.selection import count_of, participants
from strategies.soft_labels import Int64, SoftLabels


@dataclass(frozen=True, slots=True, eq=False)
class RoundResult:
    """One finished round.

    Attributes:
        teacher: on the rows of this round that met the quorum; with a cache also on those that were not asked. In mode
            `async` also on those of late votes; the last one once more where a round has none of its own.
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


class RuleError(RuntimeError):
    """Somebody's own rule failed; the message says which one and how to try it."""


# What the clients are told of a teacher: itself, or for example the student's answers on its rows (CFD).
Speak = Callable[[SoftLabels], SoftLabels]
# Told of every report as it counts, with the ballot that it counts in; `consilium forget` works on what was kept.
Keep = Callable[[ClientReport, Ballot], None]


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
    sums: SumStore | None = None,
    split: DistributedClientSum | None = None,
) -> Iterator[RoundResult]:
    """Run rounds `done` + 1 to `rounds`; checkpoint, metrics and logs are the caller's loop.

    Args:
        done, standing: where a resumed run stands: rounds finished, and what the last one left.
        speak: asked before every round what the clients are told of the last teacher.
        keep: told of every report as the rule gets it: in a round with late answers, put together by client.
        sums: where a secure sum that is about to be opened is kept; None: nowhere.
        split: the mechanism whose noise is in the sites' inputs to secure sums; None: none is.

    Raises:
        QuorumError: too few usable answers in a round, or no row with enough voters; in mode `async`, too few that are
            usable or may still come, or for more than `patience` rounds in a row none at all.
        RuleError: a rule, or a part of one, that is not ours raised something or returned no teacher.

    Guarantees:
        One bad reply is that client's Failure, never the round's end. The teacher does not depend on the order
        in which replies arrive. With a streaming rule one report is held at a time. In mode `async` those of a round
        are, and of the rounds since the oldest plan that may still be answered, at most `patience` more; a late
        answer is counted together with them: see server.late. A plan that is never answered is a Failure, `late`, of
        the round in which its patience ends, or the run. A resumed run knows no pending plan and holds no report:
        answers to what was asked before are lost, and their clients are asked again.
    """
    standing = standing or Standing.new(exchange)
    awaited = Awaited()
    wants = traits_of(aggregator).needs
    secure = SecureRounds(exchange, sums, split)
    for round_ in range(done + 1, rounds + 1):
        rows = round_rows(exchange, standing, round_)
        ask_rows = rows if standing.cache is None else standing.cache.stale(rows, round_)
        tally = Tally()
        chosen = participants(exchange.seed, round_, cohort.clients, exchange.participation)
        asked = tuple(name for name in chosen if name not in awaited.pending)
        spoken = None if standing.teacher is None else speak(standing.teacher)
        links = published(exchange, standing, spoken, round_)
        plans = make_plans(exchange, standing, links, spoken, round_, asked, ask_rows, wants)
        encoded = encode_plans(plans, links.heads)
        voices, busy = len(asked) + len(awaited.pending), bool(awaited.pending)
        meter: DisagreementMeter | None = None
        if exchange.secure_sum and len(ask_rows):
            after = participants(exchange.seed, round_ + 1, cohort.clients, exchange.participation)
            mean = secure.mean(cohort, plans, encoded, tally, after if round_ < rounds else ())
            ballot, _ = _ballot(exchange, iter(()), ask_rows, voices, round_, awaited)
            outcome: Outcome | None = outcome_of(aggregator, standing.state, ballot, mean)
        else:
            reports = _believable(cohort, exchange, links, plans, encoded, round_, awaited.pending, tally)
            ballot, reports = _ballot(exchange, reports, ask_rows, voices, round_, awaited)
            meter = DisagreementMeter(ballot) if standing.disagreement is not None else None
            heard = _kept(reports if meter is None else meter.listen(reports), ballot, keep)
            outcome = _outcome(aggregator, standing, ballot, heard)
        tally.failures.extend(awaited.closed(round_, exchange.patience))
        waited = (busy or bool(awaited.pending)) and standing.teacher is not None
        awaited.silent = 0 if tally.replies else awaited.silent + 1
        _check_replies(exchange, tally, voices, round_, awaited, waited)
        standing, teacher = _after(exchange, standing, outcome, ballot, rows, meter, round_, waited)
        standing = replace(standing, links=links.after(tally.news))
        if len(teacher.rows) == 0:
            raise _no_teacher(ballot, tally)
        if round_ == rounds:
            tally.failures.extend(awaited.closed(round_, 0))
        yield RoundResult(
            round_,
            teacher,
            ballot,
            standing,
            tally.replies,
            tally.late,
            tally.sorted_failures(),
            tally.upload_bytes,
            tally.download_bytes,
        )


def _believable(
    cohort: Cohort,
    exchange: Exchange,
    links: Links,
    plans: Mapping[str, RoundPlan],
    encoded: Mapping[str, bytes],
    round_: int,
    pending: dict[str, RoundPlan],
    tally: Tally,
) -> Iterator[ClientReport]:
    """The usable reports as they arrive, one a plan; everything else is counted as a failure.

    Args:
        pending: plans of earlier rounds; those that are answered leave it, those that will be answered late join it.
    """
    waiting = dict(plans)
    tally.download_bytes += sum(map(len, encoded.values()))
    for reply in cohort.ask(encoded):
        late = reply.round not in (0, round_)
        plan = (pending if late else waiting).get(reply.client)
        if plan is None or (late and plan.round != reply.round):
            continue  # a second answer of one client, or one that nobody waits for
        (pending if late else waiting).pop(reply.client)
        if isinstance(reply.payload, Failure):
            if reply.payload.reason == "late" and exchange.mode == "async" and not late:
                pending[reply.client] = plan
            else:
                tally.failures.append(reply.payload)
            continue
        tally.upload_bytes += len(reply.payload)
        before = links.heard.get(reply.client)
        checked = check_answer(reply.client, reply.payload, plan, before)
        if isinstance(checked, Failure):
            tally.failed(checked)
            continue
        tally.news.answered(plan, checked, before, exchange.universe)
        tally.replies += 1
        tally.late += late
        yield checked.report
    tally.failures.extend(Failure(client, "no_reply") for client in waiting)


def _ballot(
    exchange: Exchange,
    reports: Iterator[ClientReport],
    ask_rows: Int64,
    clients: int,
    round_: int,
    awaited: Awaited,
) -> tuple[Ballot, Iterator[ClientReport]]:
    """The round's ballot and what is counted in it; where late answers may come, that is known when all are there.

    Args:
        clients: who may have a say: asked now, or earlier and still waited for. A share of them is needed on a row, so
            that while others are late no vote alone becomes everybody's teacher.
    """
    rows, heard = ask_rows, None
    if exchange.mode == "async":
        believed = list(reports)
        heard = frozenset(report.client for report in believed)
        rows = np.union1d(ask_rows, late_rows(believed, round_)).astype(np.int64)
        reports = iter(together(believed, awaited.held, round_, exchange.staleness))
        awaited.held.extend(believed)
    needed = voters_needed(max(1, clients), exchange.row_quorum)
    seed = stream_seed(exchange.seed, "ties")
    return Ballot(rows, exchange.classes, clients, needed, round_, seed, heard), reports


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
    own, network = _own_part(aggregator), _Watched(chain([first], reports))
    try:
        outcome = aggregator.aggregate(standing.state, ballot, network)
        told = _wrong(outcome, ballot)
    except Exception as error:
        if own is None or network.failed is not None:
            raise network.failed or error from None
        told = " ".join(f"{type(error).__name__}: {error}".split())
    if network.failed is not None:  # a rule that goes on without some votes
        raise network.failed
    if own is not None and told:
        raise RuleError(f"round {ballot.round}: the rule {own} failed ({told}): see what `consilium check-rule` says")
    return outcome


def _wrong(outcome: object, ballot: Ballot) -> str:
    """What a rule returned that is no teacher for these rows."""
    if not isinstance(outcome, Outcome) or not isinstance(outcome.teacher, SoftLabels):
        return f"it returned {type(outcome).__name__}, not an Outcome with SoftLabels"
    if outcome.teacher.classes != ballot.classes or not np.isin(outcome.teacher.rows, ballot.rows).all():
        return "its teacher has other classes, or rows that are not on the ballot"
    return ""


class _Watched:
    """Reports, and the error that getting them met, if any."""

    def __init__(self, reports: Iterator[ClientReport]) -> None:
        self._reports = reports
        self.failed: Exception | None = None

    def __iter__(self) -> Iterator[ClientReport]:
        return self

    def __next__(self) -> ClientReport:
        try:
            return next(self._reports)
        except StopIteration:
            raise
        except Exception as error:
            self.failed = error
            raise


def _own_part(part: object) -> str | None:
    """module:Name of the first of a rule's parts that is not ours."""
    kind = type(part)
    if not kind.__module__.startswith(("strategies.", "server.")):
        return f"{kind.__module__}:{kind.__qualname__}"
    inner = (getattr(part, field.name) for field in fields(part)) if is_dataclass(part) else ()
    parts = (one for one in inner if any(hasattr(one, method) for method in ("aggregate", "weights", "sharpen")))
    return next((found for found in map(_own_part, parts) if found is not None), None)


def _check_replies(exchange: Exchange, tally: Tally, voices: int, round_: int, awaited: Awaited, waited: bool) -> None:
    """Whether enough answers were usable; those that may still come count like them, but one at least has come.

    Args:
        voices: who was asked, now or in an earlier round that was still waited for.
        waited: for answers, when the round began or still, and there is a teacher to go on with.

    Raises:
        QuorumError: they were not.
    """
    needed = max(1, count_of(exchange.quorum, voices))
    usable = f"{tally.replies} of {voices} answers were usable"
    if coming := len(awaited.pending):
        usable += f", {coming} may still come"
    if tally.replies + coming < needed:
        reason = f"{usable} and the quorum is {needed}"
    elif tally.replies == 0 and not waited:
        reason = f"{usable} and there is no teacher to go on with until then"
    elif awaited.silent > exchange.patience:
        reason = f"{usable}; the last {awaited.silent} rounds had none and the patience is {exchange.patience}"
    else:
        return
    tally.failures.extend(awaited.closed(round_, 0))
    refused = tally.forbidden(voices, needed)
    raise QuorumError(round_, reason, tally.sorted_failures(), tally.news.lost, refused=refused)


def _no_teacher(ballot: Ballot, tally: Tally) -> QuorumError:
    reason = (
        f"none of {len(ballot.rows)} rows is left for the teacher; a row needs {ballot.needed} voters "
        "(strategy.row_quorum) who keep it (client.selector) and do not tie (ambiguity)"
    )
    refused = tally.forbidden(ballot.clients, ballot.needed)
    return QuorumError(ballot.round, reason, tally.sorted_failures(), tally.news.lost, refused=refused)


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
        waited: for answers, when the round began or still; a round without votes enough on its own rows then leaves
            the last teacher.
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
