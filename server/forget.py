"""Forgetting a client: its votes are taken out of every round, and the student learns anew from its first weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from distillation.data import Proxy, Samples
from distillation.export import StudentCard, save_student
from server.config import FederationConfig
from server.planning import round_rows
from server.standing import Standing
from server.student_job import build_student, predicted, scores, teach, teacher_accuracy
from server.votes import VotesError, VoteStore


@dataclass(frozen=True, slots=True)
class Forgotten:
    """One re-aggregated round; accuracies in [0, 1], None where nobody can judge.

    `asked` counts the clients that the round asked, late ones included, and `votes` the reports that are left.
    """

    round: int
    asked: int
    votes: int
    rows: int
    student_accuracy: float | None
    teacher_accuracy: float | None


def forget(
    config: FederationConfig,
    votes: VoteStore,
    client: str,
    rounds: int,
    proxy: Proxy,
    test: Samples,
    out: Path,
) -> list[Forgotten]:
    """Aggregate the kept votes without `client`, distil the student anew, write it to `out`.

    Args:
        rounds: that were finished; votes of a later one are those of a round that was not.

    Raises:
        VotesError: nothing was kept, the client never answered, or what is left teaches nothing.

    Guarantees:
        Equals the run in which the client had refused every plan, bit by bit, if the others' votes do not depend on the
        teacher (client.distil_epochs = 0) or there was one round, and nothing else of that run depended on the client.
        Else the others' votes still carry what they learnt from teachers that the client had a part in: their models
        would have to forget, too.
    """
    if not config.has_student:
        raise VotesError("class tables teach no student: there is nothing to be learnt anew")
    if config.exchange.cache_rounds and config.exchange.choice == "disagreement":
        raise VotesError("rows chosen by disagreement depend on the forgotten votes: their cache cannot be redone")
    kept = {ballot.round: (ballot, reports) for ballot, reports in votes.rounds() if ballot.round <= rounds}
    if not kept:
        raise VotesError(f"{votes.folder} holds no votes: run with federation.keep_votes = true")
    if not any(report.client == client for _, reports in kept.values() for report in reports):
        raise VotesError(f"client {client!r} has no vote in {votes.folder}: nothing is to be forgotten")
    rule, standing, student = config.rule(), Standing.new(config.exchange), build_student(config, proxy)
    done: list[Forgotten] = []
    for round_ in range(1, rounds + 1):
        ballot, reports = kept.get(round_, (None, []))  # none: nobody's answer came in time
        left = [report for report in reports if report.client != client]
        counted = ballot is not None and left and len(ballot.rows)
        outcome = rule.aggregate(standing.state, ballot, left) if counted else None
        rows, waited = round_rows(config.exchange, standing, round_), config.exchange.mode == "async"
        standing = standing.after(outcome, rows, round_, waited=waited)
        teacher = standing.teacher
        if teacher is None or not len(teacher.rows):
            needed = ballot.needed if ballot is not None else 1
            raise VotesError(f"without {client!r} no row of round {round_} has the {needed} voters that it needs")
        if config.student.restart:
            student = build_student(config, proxy)
        teach(student, config.student, teacher, config.exchange.seed, round_)
        scored = scores(predicted(student, test), test, len(proxy.classes))
        done.append(
            Forgotten(
                round_,
                ballot.clients if ballot is not None else 0,
                len(left),
                len(teacher.rows),
                scored.accuracy if scored else None,
                teacher_accuracy(teacher, proxy),
            )
        )
    card = StudentCard(
        config.student.model,
        proxy.classes,
        rounds,
        done[-1].student_accuracy,
        scored.macro_f1 if scored else None,
        config.exchange.proxy_sha256,
    )
    out.mkdir(parents=True, exist_ok=True)
    save_student(out, "student", student.model, proxy.inputs, card)
    return done
