"""What a rule makes of the mean of all votes, where that is all that there is: of a secure sum, or after noise."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from strategies.aggregator import Aggregator, Ballot, Outcome, State
from strategies.aggregators.enhanced_era import EnhancedEra
from strategies.aggregators.era import Era
from strategies.aggregators.mean import Mean
from strategies.aggregators.pipeline import Pipeline
from strategies.aggregators.pooling import log_of
from strategies.codecs import link_named
from strategies.messages import ClientReport
from strategies.soft_labels import Float64, SoftLabels


def is_plain(rule: Aggregator) -> bool:
    """Whether a rule's teacher follows from the mean of the votes' probabilities alone."""
    if isinstance(rule, Pipeline):
        return rule.weight is None and is_plain(rule.rule)
    return type(rule) in (Mean, Era, EnhancedEra)


def outcome_of(rule: Aggregator, state: State, ballot: Ballot, mean: Float64) -> Outcome:
    """The teacher of a plain rule.

    Args:
        mean: [rows of the ballot, classes] of the votes' probabilities; a sum's rounding is in it.

    Raises:
        ValueError: the rule is not plain.
    """
    if isinstance(rule, Pipeline):
        inner = outcome_of(rule.rule, state, ballot, mean)
        return replace(rule, rule=_Told(inner), weight=None).aggregate(state, ballot, ())
    return Outcome(SoftLabels.from_logits(ballot.rows, _logits(rule, mean)), state)


def _logits(rule: Aggregator, mean: Float64) -> Float64:
    if isinstance(rule, Mean):
        return log_of(mean)
    if isinstance(rule, Era):
        return np.asarray(mean / rule.temperature, np.float64)
    if isinstance(rule, EnhancedEra):
        return rule.sharpen(log_of(mean))
    raise ValueError(
        f"{type(rule).__name__} does not follow from the mean of all votes: take mean, era or enhanced-era"
    )


@dataclass(frozen=True, slots=True)
class _Told:
    """A rule that has been carried out."""

    outcome: Outcome

    def aggregate(self, state: State, ballot: Ballot, reports: Iterable[ClientReport]) -> Outcome:
        return self.outcome


def sum_misfits(
    rule: Aggregator, named: str, *, uplink: str, mode: str, choice: str, keep_votes: bool
) -> Iterator[tuple[bool, str]]:
    """What does not go with a secure sum: whether that is so here, and what to do about it.

    Args:
        named: how the rule is called in the settings.
    """
    sums = "strategy.secure_sum=true shows the coordinator one sum and no single vote"
    yield (
        not is_plain(rule),
        f"{sums}, and {named} needs single votes or weights: take mean, era or enhanced-era without a weight",
    )
    yield (
        mode == "async",
        f"{sums}, and federation.mode='async' counts late votes one by one: set it to \"sync\"",
    )
    yield (
        link_named(uplink).delta,
        f"{sums}, and strategy.uplink={uplink!r} sends differences to single votes: take an uplink without +delta",
    )
    yield (
        choice == "disagreement",
        f"{sums}, and strategy.choice='disagreement' compares single votes: take random, fixed or epoch",
    )
    yield keep_votes, f"{sums}, and federation.keep_votes=true keeps single votes: set it to false"


def split_misfits(*, secure_sum: bool, cache_rounds: int, downlink: str) -> Iterator[tuple[bool, str]]:
    """What does not go with noise that is split among the sites of a secure sum, as above."""
    split = "client-sum-distributed"
    yield (
        not secure_sum,
        f"{split} hides a site in a sum, and strategy.secure_sum=false shows its votes alone, with too little noise: "
        "set it to true",
    )
    yield (
        cache_rounds > 0 or link_named(downlink).delta,
        f"{split} clips around the teacher that a plan carries whole, and strategy.cache_rounds={cache_rounds} and "
        f"strategy.downlink={downlink!r} send what changed of it: set cache_rounds=0 and a downlink without +delta",
    )


def noise_misfits(
    rule: Aggregator, named: str, *, mode: str, choice: str, keep_votes: bool, secure_sum: bool
) -> Iterator[tuple[bool, str]]:
    """What does not go with noise on the sum of all clients' votes, as above."""
    noised = "client-sum lets out one noised sum of votes"
    yield (
        secure_sum,
        "client-sum adds its noise at the coordinator, which sees all votes: take client-sum-distributed with "
        "strategy.secure_sum=true, or set it to false",
    )
    yield (
        not is_plain(rule),
        f"{noised}, and {named} needs single votes or weights, which no noise pays for: take mean, era or enhanced-era "
        "without a weight",
    )
    yield (
        mode == "async",
        f"{noised}, and federation.mode='async' counts a vote in more than one round: set it to \"sync\"",
    )
    yield (
        choice == "disagreement",
        f"{noised}, and strategy.choice='disagreement' chooses rows by single votes: take random, fixed or epoch",
    )
    yield (
        keep_votes,
        f"{noised}, and federation.keep_votes=true would teach students anew without noise: set it to false",
    )
