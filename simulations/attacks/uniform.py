"""Free rider: says nothing, on every row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulations.attacks.attack import Scene, log_vote
from strategies.soft_labels import Float64


@dataclass(frozen=True, slots=True)
class Uniform:
    """1 / C for each of C classes."""

    def logits(self, scene: Scene, rng: np.random.Generator) -> Float64:
        return log_vote(np.ones_like(scene.own))
