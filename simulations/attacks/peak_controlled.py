"""Peak-controlled logits poisoning, PCFDLA: after Tang et al. 2024, arXiv 2407.18039."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulations.attacks.attack import Scene, log_vote, runner_up
from strategies.soft_labels import Float64


@dataclass(frozen=True, slots=True)
class PeakControlled:
    """The runner-up of the own vote gets probability `peak`; the other classes share the rest equally.

    A third party's public code of PCFDLA sends logits s at the runner-up and -s elsewhere, with s drawn from
    [-20, 20]: the same shape, whose peak is e^2s / (e^2s + C - 1) for C classes, and lower than the rest if s < 0.

    Unverified: the authors' formula, which we have not read. Ours: the peak in place of s, and its default.

    Attributes:
        peak: above 1 / C and at most 1; 0: as high as the own vote's, so that every row is as confident as an honest
            answer of this client.
    """

    peak: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.peak <= 1.0:
            raise ValueError(f"peak={self.peak} must be in (0, 1], or 0 for the own vote's")

    def logits(self, scene: Scene, rng: np.random.Generator) -> Float64:
        rows, classes = scene.own.shape
        if 0.0 < self.peak <= 1.0 / classes:
            raise ValueError(f"peak={self.peak} is no peak among {classes} classes: it must be above 1/{classes}")
        peak = np.full(rows, self.peak) if self.peak else scene.own.max(axis=1)
        sent = np.repeat((1.0 - peak) / (classes - 1), classes).reshape(rows, classes)
        sent[np.arange(rows), runner_up(scene.own)] = peak
        return log_vote(sent)
