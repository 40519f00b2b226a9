"""The laws that every aggregator obeys, tried on small rounds; also for rules from outside the tree."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace

import numpy as np
from numpy.random import Generator

from strategies.aggregator import Aggregator, Ballot, Outcome, State
from strategies.contract_rounds import CLASSES, ROWS, Round, reports_of, small_rounds, some_votes
from strategies.soft_labels import SoftLabels

# Votes are float32, so is the teacher: a few units in their last places.
_TOLERANCE = 1e-5


def check_aggregator(rule: Aggregator, *, seed: int = 0) -> list[str]:
    """Try a rule, with the settings that it has, against the laws of strategies.aggregator.Aggregator.

    Args:
        rule: any object with `aggregate`.
        seed: of the rounds that it is tried on.

    Returns:
        One sentence for each law that was seen broken; none is no proof.

    >>> from strategies.aggregators import build_aggregator
    >>> check_aggregator(build_aggregator("median", {"weight": "entropy"}))
    []
    """
    broken = []
    for index, (law, check) in enumerate(_LAWS.items()):
        try:
            seen = next(check(rule, np.random.default_rng([seed, index])), None)
        except Exception as error:  # a rule may fail in any way
            seen = f"it raised {type(error).__name__}: {error}"
        if seen is not None:
            broken.append(f"{law}: {seen}")
    return broken


def _frozen(rule: Aggregator, rng: Generator) -> Iterator[str]:
    parameters = getattr(type(rule), "__dataclass_params__", None)
    if not (is_dataclass(rule) and parameters is not None and parameters.frozen):
        yield f"{type(rule).__name__} is not one; write @dataclass(frozen=True)"
        return
    for part in (getattr(rule, field.name) for field in fields(rule)):
        if any(hasattr(part, method) for method in ("aggregate", "weights", "sharpen")):
            yield from _frozen(part, rng)


def _labels(rule: Aggregator, rng: Generator) -> Iterator[str]:
    for case in small_rounds(rng):
        outcome = rule.aggregate({}, case.ballot, case.reports)
        if not isinstance(outcome, Outcome):
            yield f"it returned {type(outcome).__name__}, not Outcome"
            return
        for labels in (outcome.teacher, *outcome.choices, *outcome.personal.values()):
            # SoftLabels itself refuses what is not finite or no distribution.
            if not isinstance(labels, SoftLabels) or labels.classes != CLASSES:
                yield f"{case.name}: a teacher is not SoftLabels of {CLASSES} classes"


def _quorum(rule: Aggregator, rng: Generator) -> Iterator[str]:
    for case in small_rounds(rng):
        outcome = rule.aggregate({}, case.ballot, case.reports)
        voters = sum(np.isin(ROWS, report.soft_labels.rows).astype(int) for report in case.reports)
        enough = ROWS[voters >= case.ballot.needed]
        for labels in (outcome.teacher, *outcome.choices, *outcome.personal.values()):
            if not np.isin(labels.rows, enough).all():
                yield f"{case.name}: rows {labels.rows.tolist()}, but only {enough.tolist()} have enough voters"
        if any(not np.array_equal(labels.rows, outcome.teacher.rows) for labels in outcome.choices):
            yield f"{case.name}: choices are not on the teacher's rows"
        if not set(outcome.personal) <= {report.client for report in case.reports}:
            yield f"{case.name}: a personal teacher for somebody who sent nothing"


def _order(rule: Aggregator, rng: Generator) -> Iterator[str]:
    for case in small_rounds(rng):
        expected = _bits(rule.aggregate({}, case.ballot, case.reports))
        for _ in range(3):
            shuffled = [case.reports[index] for index in rng.permutation(len(case.reports))]
            # As an iterator: a rule may go over the reports once only, or keep them itself.
            if _bits(rule.aggregate({}, case.ballot, iter(shuffled))) != expected:
                yield f"{case.name}: another order gave other bits"


def _scale(rule: Aggregator, rng: Generator) -> Iterator[str]:
    for case in small_rounds(rng):
        light = [replace(report, weight=report.weight * 0.37) for report in case.reports]
        outcomes = [rule.aggregate({}, case.ballot, reports) for reports in (case.reports, light)]
        for one, other in zip(*(map(_all_labels, outcomes)), strict=True):
            apart = not np.array_equal(one.rows, other.rows)
            if apart or not np.allclose(np.exp(one.log_probs), np.exp(other.log_probs), atol=_TOLERANCE):
                yield f"{case.name}: all weights times 0.37 gave another teacher"


def _one_mind(rule: Aggregator, rng: Generator) -> Iterator[str]:
    for clients in (1, 2, 7):
        vote = rng.dirichlet(np.ones(CLASSES), len(ROWS))
        ballot = Ballot(ROWS, CLASSES, clients, min(clients, 2))
        teacher = rule.aggregate({}, ballot, reports_of(rng, np.array([vote] * clients))).teacher
        common = vote[np.isin(ROWS, teacher.rows)]
        if not np.array_equal(common.argmax(axis=1), teacher.log_probs.argmax(axis=1)):
            yield f"{clients} equal votes: the teacher prefers another class than they"


def _refusals(rule: Aggregator, rng: Generator) -> Iterator[str]:
    ballot = Ballot(ROWS, CLASSES, 2)
    stray = SoftLabels.from_logits(np.array([1]), np.zeros((1, CLASSES)))
    elsewhere = replace(reports_of(rng, some_votes(rng, 1))[0], soft_labels=stray, scores=np.ones(1))
    for name, reports in (("no report", ()), ("a row that is not on the ballot", (elsewhere,))):
        try:
            rule.aggregate({}, ballot, reports)
        except ValueError:
            continue
        yield f"{name} was accepted"


def _memory(rule: Aggregator, rng: Generator) -> Iterator[str]:
    state: State = {}
    for case in small_rounds(rng):
        before = _copied(state), _bits_of_reports(case)
        outcome = rule.aggregate(state, case.ballot, case.reports)
        if (_copied(state), _bits_of_reports(case)) != before:
            yield f"{case.name}: it changed its inputs"
        for key, value in outcome.state.items():
            if not (isinstance(key, str) and isinstance(value, np.ndarray) and value.dtype == np.float64):
                yield f"{case.name}: state[{key!r}] is no float64 array"
                return
            if not np.isfinite(value).all():
                yield f"{case.name}: state[{key!r}] is not finite"
        restored = {key: np.frombuffer(data).reshape(shape) for key, (shape, data) in _copied(state).items()}
        if _bits(rule.aggregate(restored, case.ballot, case.reports)) != _bits(outcome):
            yield f"{case.name}: the same state and reports gave another outcome the second time"
        state = outcome.state


_LAWS: Mapping[str, Callable[[Aggregator, Generator], Iterator[str]]] = {
    "a rule is a frozen dataclass": _frozen,
    "labels are finite distributions, however certain the votes": _labels,
    "a row with too few voters is not in the teacher": _quorum,
    "the order of reports changes no bit": _order,
    "only ratios of weights matter": _scale,
    "equal votes are confirmed": _one_mind,
    "what cannot be pooled is a ValueError": _refusals,
    "state goes in and comes out, and nothing else is remembered": _memory,
}
# By name, in the order in which they are tried.
LAWS = tuple(_LAWS)


def _all_labels(outcome: Outcome) -> list[SoftLabels]:
    return [outcome.teacher, *outcome.choices, *(outcome.personal[name] for name in sorted(outcome.personal))]


def _bits(outcome: Outcome) -> tuple[object, ...]:
    labels = [(one.rows.tobytes(), one.log_probs.tobytes()) for one in _all_labels(outcome)]
    return (labels, sorted(outcome.personal), _copied(outcome.state))


def _copied(state: State) -> dict[str, tuple[tuple[int, ...], bytes]]:
    return {key: (np.shape(value), np.asarray(value).tobytes()) for key, value in state.items()}


def _bits_of_reports(case: Round) -> list[bytes]:
    return [
        np.asarray(array).tobytes()
        for one in case.reports
        for array in (one.soft_labels.log_probs, one.soft_labels.rows, one.weight, one.scores, one.counts)
    ]
