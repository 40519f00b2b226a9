"""A run from its first or its last finished round to its end: rounds, student, metrics, checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import astuple, fields, replace
from pathlib import Path

from distillation.data import Proxy, Samples
from distillation.export import StudentCard, save_student, write_table
from distillation.learner import TorchLearner
from distillation.runtime import single_thread
from server.checkpoint import Judged, Progress, RoundMetrics, load_progress, save_progress
from server.client_sum import ClientSumRule
from server.config import FederationConfig
from server.links import News
from server.rounds import Cohort, QuorumError, RoundResult, run_rounds
from server.standing import Standing
from server.student_job import build_student, predicted, scores, teach, teacher_accuracy
from server.sum_store import SumStore
from server.votes import VoteStore
from strategies.aggregator import Ballot
from strategies.messages import ClientReport
from strategies.soft_labels import SoftLabels

# (mean, worst) accuracy of the clients' own models on the test rows, or None where this round is not evaluated.
Evaluate = Callable[[int], tuple[float, float] | None]


def coordinate(
    config: FederationConfig,
    cohort: Cohort,
    proxy: Proxy,
    test: Samples,
    out: Path,
    *,
    evaluate: Evaluate = lambda _: None,
    on_round: Callable[[RoundMetrics], None] = lambda _: None,
) -> Progress:
    """Run, or go on running, a federation.

    Args:
        config: settings; a checkpoint in `out` must be of the same ones.
        cohort: the network.
        proxy, test: public rows, and held-out rows to judge the student on.
        out: where metrics.csv, student files and checkpoint/ are kept up to date after every round.
        evaluate: simulations look at the clients' models on the side; deployments cannot.
        on_round: called after each round is safe on disk.

    Raises:
        QuorumError: a round failed; everything before it is on disk.
        RuleError: a rule that is not ours failed.
        CheckpointError: `out` holds another run.

    Guarantees:
        When this returns or goes on with a next round, `student` and `student-best` are those that the checkpoint
        names. They are written after it, and anew on resuming: a crash between the two leaves those of the round
        before, never those of a round that was not finished.
    """
    single_thread()
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / "checkpoint" / "server.safetensors"
    progress = load_progress(checkpoint, config)
    student = build_student(config, proxy)
    if progress.student:
        student.restore(progress.student)
        # The checkpoint may be newer than the files by one round. A best student of an earlier round was written then.
        _save_students(out, config, student, proxy, len(progress.rounds), progress.last, progress.best)
    votes = VoteStore(out / "votes") if config.keep_votes else None
    if votes is not None:
        votes.cut(len(progress.rounds))

    def speak(teacher: SoftLabels) -> SoftLabels:
        return student.predict(teacher.rows) if config.student.speaks else teacher

    def keep(report: ClientReport, ballot: Ballot) -> None:
        if votes is not None:
            votes.keep(report, ballot)

    noise = config.client_sum
    ledger = Path(noise.ledger) if noise is not None and noise.ledger else checkpoint.with_name("ledger.sqlite")
    rounds = run_rounds(
        cohort,
        config.rule() if noise is None else ClientSumRule(config.rule(), noise, config.exchange, ledger),
        config.exchange,
        config.rounds,
        done=len(progress.rounds),
        standing=progress.standing,
        speak=speak,
        keep=keep,
        sums=SumStore(checkpoint.with_name("secure-sum.json")) if config.exchange.secure_sum else None,
        split=None if config.split_sum is None else config.split_sum.mechanism(config.exchange.classes),
    )
    started = time.perf_counter()
    write_metrics(out / "metrics.csv", progress.rounds)
    try:
        for result in rounds:
            if config.student.restart:
                student = build_student(config, proxy)
            judged = _taught(config, student, proxy, test, result)
            clients = evaluate(result.round)
            row = _metrics(config, result, proxy, judged, clients, time.perf_counter() - started)
            best = _best(config, progress.best, judged)
            progress = replace(
                progress,
                rounds=(*progress.rounds, row),
                failures=(*progress.failures, *((result.round, failure) for failure in result.failures)),
                standing=result.standing,
                student=student.state(),
                last=judged,
                best=best,
            )
            save_progress(checkpoint, config, progress)
            _save_students(out, config, student, proxy, result.round, judged, best)
            write_metrics(out / "metrics.csv", progress.rounds)
            on_round(row)
            started = time.perf_counter()
    except QuorumError as error:
        if error.lost and progress.standing is not None:
            save_progress(checkpoint, config, _without_links(progress, progress.standing, error.lost))
        raise
    return progress


def _without_links(progress: Progress, standing: Standing, lost: Collection[str]) -> Progress:
    """The sites that asked for everything are told everything when the run is resumed."""
    links = standing.links.after(News(lost=set(lost)))
    return replace(progress, standing=replace(standing, links=links))


def write_metrics(path: Path, rows: Sequence[RoundMetrics]) -> None:
    """Replace metrics.csv; empty cells where nobody evaluated."""
    write_table(path, [field.name for field in fields(RoundMetrics)], map(astuple, rows))


def _metrics(
    config: FederationConfig,
    result: RoundResult,
    proxy: Proxy,
    judged: Judged | None,
    clients: tuple[float, float] | None,
    seconds: float,
) -> RoundMetrics:
    mean, worst = clients if clients is not None else (None, None)
    return RoundMetrics(
        result.round,
        judged.accuracy if judged else None,
        teacher_accuracy(result.teacher, proxy) if config.has_student else None,
        mean,
        worst,
        result.replies,
        result.late,
        sum(failure.answered for failure in result.failures),
        len(result.teacher.rows),
        result.upload_bytes,
        result.download_bytes,
        seconds,
    )


def _taught(
    config: FederationConfig, student: TorchLearner, proxy: Proxy, test: Samples, result: RoundResult
) -> Judged | None:
    """Teach the student; how good it is then, if there is a student and something to judge it on."""
    if not config.has_student:
        return None
    teach(student, config.student, result.teacher, config.exchange.seed, result.round)
    scored = scores(predicted(student, test), test, len(proxy.classes))
    return Judged(result.round, scored.accuracy, scored.macro_f1) if scored else None


def _best(config: FederationConfig, best: Judged | None, judged: Judged | None) -> Judged | None:
    metric = config.student.best_metric
    if judged and (best is None or getattr(judged, metric) > getattr(best, metric)):
        return judged
    return best


def _save_students(
    out: Path,
    config: FederationConfig,
    student: TorchLearner,
    proxy: Proxy,
    round_: int,
    judged: Judged | None,
    best: Judged | None,
) -> None:
    """`student` is the last one; `student-best` the one with the best held-out score; none without a student."""
    if not config.has_student:
        return
    card = StudentCard(
        config.student.model,
        proxy.classes,
        round_,
        judged.accuracy if judged else None,
        judged.macro_f1 if judged else None,
        config.exchange.proxy_sha256,
    )
    save_student(out, "student", student.model, proxy.inputs, card)
    if best is not None and best.round == round_:
        save_student(out, "student-best", student.model, proxy.inputs, card)
