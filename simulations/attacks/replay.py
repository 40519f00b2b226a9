"""Free rider: sends back what the coordinator sent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulations.attacks.attack import Scene, log_vote
from strategies.soft_labels import Float64


@dataclass(frozen=True, slots=True)
class Replay:
    """The last teacher. In the first round there is none, and the attacker answers honestly."""

    def logits(self, scene: Scene, rng: np.random.Generator) -> Float64:
        return log_vote(scene.own if scene.teacher is None else scene.teacher)
