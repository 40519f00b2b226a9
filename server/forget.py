"""Forgetting clients: their votes are taken out of every round, and the student learns anew from its first weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from distillation.data import Proxy, Samples
from distillation.export import StudentCard, save_student
from server.config import FederationConfig
from server.planning import round_rows
from server.standing import Standing
from server.student_job import build_student, predicted, scores, teach, teacher_accuracy
from server.votes import VotesError, VoteStore
from strategies.aggregator import Ballot
from strategies.messages import ClientReport


class Counted(NamedTuple):
    """What metrics.csv says of a finished round: usable answers, `late` of them to earlier plans."""

    replies: int
    late: int


@dataclass(frozen=True, slots=True)
class Remainder:
    """The finished rounds of a run without some clients.

    Attributes:
        gone: who is left out, with the rounds in which it had voted; those that were forgotten earlier included.
        rounds: the ballot of each, None where nobody's answer came in time, and the reports that are left.
    """

    gone: Mapping[str, Collection[int]]
    rounds: Sequence[tuple[Ballot | None, list[ClientReport]]]


@dataclass(frozen=True, slots=True)
class Forgotten:
    """One re-aggregated round; accuracies in [0, 1], None where nobody can judge.

    `asked` counts the clients that the round asked, late ones included, and `votes` the reports that are left.
    `same_rows`: what was asked is what would have been asked without the forgotten clients.
    """

    round: int
    asked: int
    votes: int
    rows: int
    same_rows: bool
    student_accuracy: float | None
    teacher_accuracy: float | None


def without(votes: VoteStore, clients: Collection[str], counted: Sequence[Counted]) -> Remainder:
    """What the run kept, without `clients` and those that were forgotten earlier.

    Args:
        counted: of each finished round; votes of a later one are those of a round that was not.

    Raises:
        VotesError: votes are broken, not as many as were counted, or a client has none.
    """
    before = votes.forgotten()
    gone = {client: set(before.get(client, ())) for client in sorted({*clients, *before})}
    kept = {ballot.round: (ballot, reports) for ballot, reports in votes.rounds()}
    if not kept:
        raise VotesError(f"{votes.folder} holds no votes: run with federation.keep_votes = true")
    rounds: list[tuple[Ballot | None, list[ClientReport]]] = []
    for round_, (replies, late) in enumerate(counted, 1):
        ballot, reports = kept.get(round_, (None, []))  # none: nobody's answer came in time
        for report in reports:
            if report.client in gone:
                gone[report.client].add(round_)
        # The files of forgotten clients may be deleted. With late answers earlier votes of others count again, and a
        # client's late and fresh one are one report: then only the lower bound is known.
        voters = {report.client for report in reports} | {client for client in before if round_ in gone[client]}
        if len(voters) < replies - late or (late == 0 and len(voters) > replies):
            raise VotesError(
                f"round {round_} of {votes.folder} holds votes of {len(voters)} clients and metrics.csv counted "
                f"{replies} answers, {late} of them late: restore the folder from a backup"
            )
        rounds.append((ballot, [report for report in reports if report.client not in gone]))
    for client in clients:
        if not gone[client]:
            raise VotesError(f"client {client!r} has no vote in {votes.folder}: nothing is to be forgotten")
    return Remainder(gone, rounds)


def forget(config: FederationConfig, left: Remainder, proxy: Proxy, test: Samples, out: Path) -> list[Forgotten]:
    """Aggregate the votes that are left, distil the student anew, write it to `out`.

    Raises:
        VotesError: what is left teaches nothing.

    Guarantees:
        Equals the run in which the clients had refused every plan, bit by bit, if the others' votes do not depend on
        the teacher (client.distil_epochs = 0) or there was one round, every round has `same_rows`, and nothing else of
        that run depended on the clients. Else the others' votes still carry what they learnt from teachers that the
        clients had a part in: their models would have to forget, too.
    """
    if not config.has_student:
        raise VotesError("class tables teach no student: there is nothing to be learnt anew")
    if config.exchange.cache_rounds and config.exchange.choice == "disagreement":
        raise VotesError("rows chosen by disagreement depend on the forgotten votes: their cache cannot be redone")
    rule, standing, student = config.rule(), Standing.new(config.exchange), build_student(config, proxy)
    done: list[Forgotten] = []
    for round_, (ballot, reports) in enumerate(left.rounds, 1):
        rows, waited = round_rows(config.exchange, standing, round_), config.exchange.mode == "async"
        asks = rows if standing.cache is None else standing.cache.stale(rows, round_)
        counted = ballot is not None and reports and len(ballot.rows)
        outcome = rule.aggregate(standing.state, ballot, reports) if counted else None
        standing = standing.after(outcome, rows, round_, waited=waited)
        teacher = standing.teacher
        if teacher is None or not len(teacher.rows):
            needed, names = ballot.needed if ballot is not None else 1, ", ".join(map(repr, left.gone))
            raise VotesError(f"without {names} no row of round {round_} has the {needed} voters that it needs")
        if config.student.restart:
            student = build_student(config, proxy)
        teach(student, config.student, teacher, config.exchange.seed, round_)
        scored = scores(predicted(student, test), test, len(proxy.classes))
        done.append(
            Forgotten(
                round_,
                ballot.clients if ballot is not None else 0,
                len(reports),
                len(teacher.rows),
                ballot is not None and np.array_equal(asks, ballot.rows),
                scored.accuracy if scored else None,
                teacher_accuracy(teacher, proxy),
            )
        )
    card = StudentCard(
        config.student.model,
        proxy.classes,
        len(done),
        done[-1].student_accuracy,
        scored.macro_f1 if scored else None,
        config.exchange.proxy_sha256,
    )
    out.mkdir(parents=True, exist_ok=True)
    save_student(out, "student", student.model, proxy.inputs, card)
    return done
