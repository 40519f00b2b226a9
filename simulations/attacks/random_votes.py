"""Votes that are drawn, not computed: a free rider who makes them up, or noise at full volume."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulations.attacks.attack import Scene, certain, log_vote
from strategies.soft_labels import Float64


@dataclass(frozen=True, slots=True)
class RandomVotes:
    """A draw of its own for every attacker, row and round. The code of Roux et al. 2025 has the certain form.

    Attributes:
        certain: certainty of a class drawn uniformly; otherwise a vote drawn uniformly from the simplex.
    """

    certain: bool = True

    def logits(self, scene: Scene, rng: np.random.Generator) -> Float64:
        rows, classes = scene.own.shape
        if self.certain:
            return certain(rng.integers(classes, size=(rows,)), classes)
        return log_vote(rng.dirichlet(np.ones(classes), rows))
