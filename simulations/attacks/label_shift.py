"""Wrong class order: by mistake, or on purpose."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulations.attacks.attack import Scene, log_vote
from strategies.soft_labels import Float64


@dataclass(frozen=True, slots=True)
class LabelShift:
    """The own vote, with the probability of class c given to class c + shift, modulo the number of classes.

    Attributes:
        shift: at least 1, and no multiple of the number of classes.
    """

    shift: int = 1

    def __post_init__(self) -> None:
        if self.shift < 1:
            raise ValueError(f"shift={self.shift} must be at least 1: at 0 the vote is honest")

    def logits(self, scene: Scene, rng: np.random.Generator) -> Float64:
        classes = scene.own.shape[1]
        if self.shift % classes == 0:
            raise ValueError(f"shift={self.shift} of {classes} classes leaves the vote honest: take 1")
        return log_vote(np.roll(scene.own, self.shift, axis=1))
