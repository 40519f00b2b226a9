"""k-ary randomised response on predicted labels: a baseline (Kairouz et al. 2016)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from privacy.events import Events, RandomizedResponse
from privacy.mechanisms.mechanism import Float64, Noise, keep_probability, positive, simplex_rows, switched_on, whole


@dataclass(frozen=True, slots=True)
class KRandomizedResponse:
    """Each row's most probable class, kept with probability P = e^e0/(e^e0 + k - 1), else one of the others.

    One record can change every label that its client's model predicts, so N labels are N events, charged against
    replace-one. Nothing needs clipping: whatever a label was, each released one is at most e^e0 times likelier for it.

    Attributes:
        label_epsilon: e0 of one label.
        classes: k, 2 or more.
        posterior: release what a label says under a uniform prior (P on it, (1 - P)/(k - 1) on the others) in place of
            a one-hot row; a public function of the label.
        allow_baseline: must be True.

    Raises:
        ValueError: a parameter out of range, or a baseline that nobody asked for.
    """

    WORTH: ClassVar[str] = (
        "a baseline, of use only where one label is one person's own: predicted labels compose, and those of many rows "
        "are near chance (10 classes, 1000 rows, epsilon 3: kept with probability .1046)"
    )
    UNIT: ClassVar[str] = "record"
    ADJACENCY: ClassVar[str] = "replace_one"
    BASELINE: ClassVar[bool] = True
    label_epsilon: float
    classes: int
    posterior: bool = True
    allow_baseline: bool = False

    def __post_init__(self) -> None:
        positive("label_epsilon", self.label_epsilon)
        whole("classes", self.classes, 2)
        switched_on("k-rr", self.allow_baseline, self.WORTH)

    def events(self, rows: int) -> Events:
        """The cost of `rows` labels."""
        return (RandomizedResponse(self.label_epsilon, self.classes, rows),) if whole("rows", rows, 0) else ()

    def release(self, probs: Float64, noise: Noise) -> Float64:
        """Randomised labels.

        Args:
            probs: [n, classes] probabilities; of equal ones the first class counts.

        Returns:
            [n, classes] distributions: one-hot, or the posterior of the label.

        Raises:
            ValueError: a shape.
        """
        rows = simplex_rows(probs)
        if rows.shape[1:] != (self.classes,):
            raise ValueError(f"probs have shape {list(rows.shape)}: [n, {self.classes}] expected")
        labels = noise.responses(rows.argmax(axis=1), self.classes, self.label_epsilon)
        keep = keep_probability(self.label_epsilon, self.classes) if self.posterior else 1.0
        others = (1.0 - keep) / (self.classes - 1)
        released: Float64 = np.where(np.eye(self.classes, dtype=np.bool_)[labels], keep, others)
        return released
