"""Loss maximisation attack, LMA: Roux, Zimmer, Pokutta 2025, arXiv 2402.12265."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulations.attacks.attack import Scene, certain
from strategies.soft_labels import Float64


@dataclass(frozen=True, slots=True)
class LeastLikely:
    """One-hot on argmin_c y_H, row by row; equals count in order of class.

    Of all votes it moves the plain mean furthest from y_H in cross-entropy: that loss is convex in the vote, so it is
    largest at a corner of the simplex, and the corner of the least likely class is the largest of them (derived).
    """

    def logits(self, scene: Scene, rng: np.random.Generator) -> Float64:
        return certain(scene.honest_mean().argmin(axis=1), scene.own.shape[1])
