"""The contract passes every rule of the tree, whatever weighs its votes, and catches rules that break a law."""

import re
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from strategies.aggregator import Outcome
from strategies.aggregators import AGGREGATORS, build_aggregator
from strategies.aggregators.mean import Mean
from strategies.aggregators.pipeline import Pipeline
from strategies.aggregators.pooling import log_of, mean_probabilities
from strategies.contract import check_aggregator
from strategies.soft_labels import SoftLabels

WEIGHTINGS = sorted(name for name, rule in AGGREGATORS.items() if hasattr(rule, "weights"))
SHARPENINGS = sorted(name for name, rule in AGGREGATORS.items() if hasattr(rule, "sharpen"))
OTHER_SETTINGS = [
    ("sample-weighted", {"pool": "probabilities"}),
    ("hard-vote", {"soft": False}),
    ("hard-vote", {"margin": 0.3}),
    ("trimmed-mean", {"trim": 0.4}),
    ("spectral-filter", {"threshold": 0.2}),
    ("cronus", {"attackers": 2}),
    ("cronus", {"attackers": 50}),
    ("expguard", {"base": {"name": "spectral-filter", "quantile": 0.8}, "step": 10.0}),
    ("clustered", {"publish_single": True, "restarts": 2}),
    ("per-class", {"by_count": True}),
    ("median", {"ambiguity": 1.0}),
]


def test_what_can_weigh_and_what_can_sharpen():
    assert WEIGHTINGS == ["confidence", "entropy", "sample-weighted", "variance"]
    assert SHARPENINGS == ["enhanced-era", "era"]


@pytest.mark.parametrize("name", sorted(AGGREGATORS))
def test_every_rule_obeys(name):
    assert check_aggregator(build_aggregator(name, {})) == []


@pytest.mark.parametrize("weight", WEIGHTINGS)
@pytest.mark.parametrize("name", sorted(AGGREGATORS))
def test_every_rule_obeys_with_every_weighting(name, weight):
    assert check_aggregator(build_aggregator(name, {"weight": weight}), seed=1) == []


@pytest.mark.parametrize("then", SHARPENINGS)
@pytest.mark.parametrize("name", ["median", "clustered", "per-class", "expguard", "hard-vote"])
def test_every_kind_of_outcome_can_be_sharpened(name, then):
    assert check_aggregator(build_aggregator(name, {"then": then}), seed=2) == []


@pytest.mark.parametrize(("name", "settings"), OTHER_SETTINGS)
def test_other_settings_obey_too(name, settings):
    assert check_aggregator(build_aggregator(name, settings), seed=3) == []


@dataclass(frozen=True)
class InOrderOfArrival:
    def aggregate(self, state, ballot, reports):
        outcome = Mean().aggregate(state, ballot, reports := list(reports))
        first = reports[0].soft_labels
        return outcome if len(first.rows) != len(outcome.teacher.rows) else replace(outcome, teacher=first)


@dataclass(frozen=True)
class SumsFloats:
    """A plain sum: right to fifteen digits, and not one bit more."""

    def aggregate(self, state, ballot, reports):
        total, weights, voters = np.zeros((len(ballot.rows), ballot.classes)), np.zeros(len(ballot.rows)), 0
        for report in (reports := list(reports)):
            at = ballot.positions(report)
            total[at] += report.soft_labels.probabilities() * np.reshape(np.maximum(report.weight, 1e-6), (-1, 1))
            weights[at] += np.maximum(report.weight, 1e-6)
            voters = voters + np.isin(ballot.rows, report.soft_labels.rows)
        if not reports:
            raise ValueError("no report")
        kept = voters >= ballot.needed
        share = 1e12 * (total[kept] / weights[kept][:, None])  # what a float32 label would hide
        return Outcome(SoftLabels.from_logits(ballot.rows[kept], share - np.floor(share)), state)


@dataclass(frozen=True)
class ForgetsTheQuorum:
    def aggregate(self, state, ballot, reports):
        return Mean().aggregate(state, replace(ballot, needed=0 if len(ballot.rows) else 1), reports)


@dataclass(frozen=True)
class AnswersEveryRow:
    def aggregate(self, state, ballot, reports):
        outcome = Mean().aggregate(state, ballot, reports)
        every = np.full((len(ballot.rows), ballot.classes), 0.0)
        every[np.isin(ballot.rows, outcome.teacher.rows)] = outcome.teacher.log_probs
        return replace(outcome, teacher=SoftLabels.from_logits(ballot.rows, every))


@dataclass(frozen=True)
class CountsWeights:
    """A pseudo-count of 1 that does not scale with the weights."""

    def aggregate(self, state, ballot, reports):
        reports = list(reports)
        pooled = mean_probabilities(ballot, reports)
        weight = sum(
            float(np.mean(report.weight)) if np.size(report.weight) else 0.0
            for report in sorted(reports, key=lambda r: r.client)
        )
        smoothed = (weight * pooled.mean + 1.0 / ballot.classes) / (weight + 1.0)
        return Outcome(SoftLabels.from_logits(pooled.rows, log_of(smoothed)), state)


@dataclass(frozen=True)
class LogOfNothing:
    def aggregate(self, state, ballot, reports):
        pooled = mean_probabilities(ballot, reports)
        with np.errstate(divide="ignore", invalid="ignore"):
            return Outcome(SoftLabels.from_logits(pooled.rows, np.log(pooled.mean)), state)


@dataclass(frozen=True)
class RemembersInItself:
    seen: Counter = field(default_factory=Counter)

    def aggregate(self, state, ballot, reports):
        self.seen["rounds"] += 1
        pooled = mean_probabilities(ballot, reports)
        sharpened = log_of(pooled.mean) * (1.0 + 0.1 * self.seen["rounds"])
        return Outcome(SoftLabels.from_logits(pooled.rows, sharpened), state)


@dataclass(frozen=True)
class CountsRoundsInPlace:
    def aggregate(self, state, ballot, reports):
        rounds = state.get("rounds", np.zeros(()))
        rounds += 1.0
        return replace(Mean().aggregate(state, ballot, reports), state={"rounds": rounds})


@dataclass(frozen=True)
class CountsRoundsAsInteger:
    def aggregate(self, state, ballot, reports):
        return replace(Mean().aggregate(state, ballot, reports), state={"rounds": int(state.get("rounds", 0)) + 1})


@dataclass(frozen=True)
class WritesIntoVotes:
    def aggregate(self, state, ballot, reports):
        reports = list(reports)
        for report in reports:
            report.soft_labels.log_probs[:] = np.sort(report.soft_labels.log_probs, axis=1)
        return Mean().aggregate(state, ballot, reports)


@dataclass
class NotFrozen:
    def aggregate(self, state, ballot, reports):
        return Mean().aggregate(state, ballot, reports)


@dataclass(frozen=True)
class OldStyle:
    def aggregate(self, state, ballot, reports):
        return Mean().aggregate(state, ballot, reports).teacher, state


@dataclass(frozen=True)
class Contrarian:
    def aggregate(self, state, ballot, reports):
        pooled = mean_probabilities(ballot, reports)
        return Outcome(SoftLabels.from_logits(pooled.rows, -log_of(pooled.mean)), state)


@dataclass(frozen=True)
class AcceptsNothing:
    def aggregate(self, state, ballot, reports):
        reports = list(reports)
        if not reports:
            return Outcome(SoftLabels.from_logits(ballot.rows, np.zeros((len(ballot.rows), ballot.classes))), state)
        return Mean().aggregate(state, ballot, reports)


@dataclass(frozen=True)
class InventsAClient:
    def aggregate(self, state, ballot, reports):
        outcome = Mean().aggregate(state, ballot, reports)
        return replace(outcome, personal={"nobody": outcome.teacher})


@dataclass(frozen=True)
class ChoicesElsewhere:
    def aggregate(self, state, ballot, reports):
        outcome = Mean().aggregate(state, ballot, reports)
        return replace(outcome, choices=(SoftLabels(outcome.teacher.rows[1:], outcome.teacher.log_probs[1:]),))


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (InOrderOfArrival(), "the order of reports changes no bit: 2 clients: another order gave other bits"),
        (SumsFloats(), "the order of reports changes no bit"),
        (ForgetsTheQuorum(), "a row with too few voters is not in the teacher"),
        (AnswersEveryRow(), r"a row with too few voters is not in the teacher: .* rows \[0, 2, 3, 4, 6\], but only \["),
        (CountsWeights(), "only ratios of weights matter: .* all weights times 0.37 gave another teacher"),
        (LogOfNothing(), "labels are finite distributions, however certain the votes: it raised ValueError"),
        (RemembersInItself(), "nothing else is remembered: .* gave another outcome the second time"),
        (CountsRoundsInPlace(), "nothing else is remembered: .* it changed its inputs"),
        (CountsRoundsAsInteger(), r"nothing else is remembered: .* state\['rounds'\] is no float64 array"),
        (WritesIntoVotes(), "nothing else is remembered: .* it changed its inputs"),
        (Pipeline(NotFrozen()), "a rule is a frozen dataclass: NotFrozen is not one"),
        (NotFrozen(), "a rule is a frozen dataclass: NotFrozen is not one"),
        (OldStyle(), "labels are finite distributions, .*: it returned tuple, not Outcome"),
        (Contrarian(), "equal votes are confirmed: 1 equal votes: the teacher prefers another class"),
        (AcceptsNothing(), "what cannot be pooled is a ValueError: no report was accepted"),
        (InventsAClient(), "a personal teacher for somebody who sent nothing"),
        (ChoicesElsewhere(), "choices are not on the teacher's rows"),
    ],
)
def test_a_broken_law_is_named(rule, says):
    broken = check_aggregator(rule)
    assert any(re.search(says, sentence) for sentence in broken), broken
