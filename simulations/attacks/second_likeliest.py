"""Certainty where doubt is nearest: the runner-up of the honest mean (in the code of Roux et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulations.attacks.attack import Scene, certain, runner_up
from strategies.soft_labels import Float64


@dataclass(frozen=True, slots=True)
class SecondLikeliest:
    """One-hot on the second most likely class of y_H, row by row."""

    def logits(self, scene: Scene, rng: np.random.Generator) -> Float64:
        return certain(runner_up(scene.honest_mean()), scene.own.shape[1])
