"""A rule with what may stand around it: weights before it, a filter and a sharpening after it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from strategies.aggregator import Aggregator, Ballot, Outcome, Sharpening, State, Weighting, traits_of
from strategies.aggregators.weighing import weighed
from strategies.messages import ClientReport, Subject
from strategies.soft_labels import SoftLabels


@dataclass(frozen=True, slots=True)
class Pipeline:
    """weight -> rule -> ambiguity -> then. Streams if the rule does.

    Attributes:
        rule: what pools the votes.
        weight: trust in each vote; None: the clients' own weights only.
        ambiguity: in (0, 2]; a row whose teacher m has 2 (1 - max m) >= ambiguity is dropped (Selective-FD, Shao et
            al. 2024), and so is an exact tie where the filter is on; 2 keeps everything.
        then: how the teacher, its choices and personal teachers are sharpened; None: not at all.
    """

    rule: Aggregator
    weight: Weighting | None = None
    ambiguity: float = 2.0
    then: Sharpening | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.ambiguity <= 2.0:
            raise ValueError(f"ambiguity={self.ambiguity} must be in (0, 2]: 2 keeps every row")

    @property
    def needs(self) -> tuple[str, ...]:
        """What reports must carry beside votes, for the rule and for the weights."""
        return tuple(sorted({*traits_of(self.rule).needs, *traits_of(self.weight).needs}))

    @property
    def subject(self) -> Subject:
        """What the rule's row numbers mean."""
        return traits_of(self.rule).subject

    @property
    def own_teachers(self) -> bool:
        """Whether the rule gives clients teachers of their own, or several to choose from."""
        return traits_of(self.rule).own_teachers

    def aggregate(self, state: State, ballot: Ballot, reports: Iterable[ClientReport]) -> Outcome:
        outcome = self.rule.aggregate(state, ballot, reports if self.weight is None else weighed(reports, self.weight))
        if self.ambiguity < 2.0:
            outcome = self._unambiguous(outcome)
        if self.then is None:
            return outcome
        return replace(
            outcome,
            teacher=self._sharpened(outcome.teacher),
            choices=tuple(map(self._sharpened, outcome.choices)),
            personal={name: self._sharpened(teacher) for name, teacher in outcome.personal.items()},
        )

    def _sharpened(self, teacher: SoftLabels) -> SoftLabels:
        assert self.then is not None  # noqa: S101 - the caller looked
        return SoftLabels.from_logits(teacher.rows, self.then.sharpen(teacher.log_probs.astype(np.float64)))

    def _unambiguous(self, outcome: Outcome) -> Outcome:
        ordered = np.sort(outcome.teacher.probabilities(), axis=1)
        clear = (2.0 * (1.0 - ordered[:, -1]) < self.ambiguity) & (ordered[:, -1] > ordered[:, -2])

        def only(labels: SoftLabels) -> SoftLabels:
            kept = np.isin(labels.rows, outcome.teacher.rows[clear])
            return SoftLabels(labels.rows[kept], labels.log_probs[kept])

        return replace(
            outcome,
            teacher=only(outcome.teacher),
            choices=tuple(map(only, outcome.choices)),
            personal={name: only(teacher) for name, teacher in outcome.personal.items()},
        )
