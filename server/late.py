"""What an asynchronous run keeps from round to round: plans that may still be answered, and what to count them with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from server.checks import Failure
from strategies.messages import MIN_WEIGHT, ClientReport, RoundPlan
from strategies.soft_labels import Int64, SoftLabels


@dataclass(slots=True)
class Awaited:
    """What may still come, and what it will be counted with. A run that is resumed begins with a new one.

    Attributes:
        pending: by client, the plan that may still be answered.
        held: believed reports of the oldest pending plan's round and of all rounds since; none where none is pending.
        silent: rounds in a row without a usable answer.
    """

    pending: dict[str, RoundPlan] = field(default_factory=dict)
    held: list[ClientReport] = field(default_factory=list)
    silent: int = 0

    def closed(self, round_: int, patience: int) -> list[Failure]:
        """At the end of a round: plans that are not waited for any longer are failures of who did not answer them."""
        over = [name for name, plan in self.pending.items() if round_ - plan.round >= patience]
        failures = [Failure(name, "late", f"no answer to round {self.pending.pop(name).round}") for name in over]
        oldest = min((plan.round for plan in self.pending.values()), default=round_ + 1)
        self.held = [report for report in self.held if report.round >= oldest]
        return failures


def late_rows(believed: Iterable[ClientReport], round_: int) -> Int64:
    """[n] rows that answers to earlier plans vote on."""
    rows = [report.soft_labels.rows for report in believed if report.round != round_]
    return np.unique(np.concatenate([np.empty(0, np.int64), *rows])).astype(np.int64)


def together(
    believed: Sequence[ClientReport], held: Sequence[ClientReport], round_: int, staleness: float
) -> list[ClientReport]:
    """A round's reports, one a client: no late answer is counted without those that it is late for.

    Votes of this round count as they are. On the rows that a late answer votes on, every client has its newest vote,
    of this round or of an earlier one, that weighs (1 + rounds since then)^-staleness. Alone, late voters would own
    their rows: where all weights are equally small they are as good as 1.

    Args:
        believed: reports that came in this round; those of an earlier round are late.
        held: what was believed in earlier rounds, and of those rounds.
        round_: this one.

    Returns:
        In order of client names. A report that is put together is the newest of its parts, with their votes, weights
        and scores by row; one that has nothing to add is as it came.
    """
    rows = late_rows(believed, round_)
    earlier = (_only(report, rows) for report in held if len(rows))
    parts: dict[str, list[ClientReport]] = {}
    for report in (*believed, *(some for some in earlier if len(some.soft_labels.rows))):
        parts.setdefault(report.client, []).append(_aged(report, round_ - report.round, staleness))
    return [_merged(sorted(parts[client], key=lambda part: -part.round)) for client in sorted(parts)]


def _aged(report: ClientReport, rounds: int, exponent: float) -> ClientReport:
    """A report with the weight that is left to it."""
    if rounds == 0:
        return report
    weight = float(report.weight) * (1.0 + rounds) ** -exponent
    # One number for all rows has a lower bound; numbers by row have none.
    return replace(report, weight=weight if weight >= MIN_WEIGHT else np.full(len(report.soft_labels.rows), weight))


def _only(report: ClientReport, rows: Int64) -> ClientReport:
    """A report's votes on some of the rows."""
    votes, at = report.soft_labels, np.isin(report.soft_labels.rows, rows)
    scores = None if report.scores is None else report.scores[at]
    return replace(report, soft_labels=SoftLabels(votes.rows[at], votes.log_probs[at]), scores=scores)


def _merged(parts: Sequence[ClientReport]) -> ClientReport:
    """One report of one client's, newest first: on every row the first vote counts, with its weight and score."""
    newest = parts[0]
    rows, first = np.unique(np.concatenate([part.soft_labels.rows for part in parts]), return_index=True)
    if len(rows) == len(newest.soft_labels.rows):
        return newest
    weights = [np.full(len(part.soft_labels.rows), part.weight, np.float64) for part in parts]
    scores = [part.scores for part in parts if part.scores is not None]
    return replace(
        newest,
        soft_labels=SoftLabels(rows, np.concatenate([part.soft_labels.log_probs for part in parts])[first]),
        weight=np.concatenate(weights)[first],
        scores=np.concatenate(scores)[first] if scores else None,
    )
