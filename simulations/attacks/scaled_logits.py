"""Raw logits, scaled up, where log-probabilities are expected."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from simulations.attacks.attack import Scene, log_vote
from strategies.soft_labels import Float64


@dataclass(frozen=True, slots=True)
class ScaledLogits:
    """factor * z, where z is the own log-vote centred over classes: the logits whose mean is 0.

    Attributes:
        factor: how much larger they are made; at 1 they are merely not normalised.

    Guarantees:
        No row is a distribution: with mean 0 over C classes the exponentials sum to at least C (Jensen).
    """

    factor: float = 1000.0

    def __post_init__(self) -> None:
        if not 0.0 < self.factor < math.inf:
            raise ValueError(f"factor={self.factor} must be above 0 and finite; for values that are not, see `nan`")

    def logits(self, scene: Scene, rng: np.random.Generator) -> Float64:
        own = log_vote(scene.own)
        sent: Float64 = self.factor * (own - own.mean(axis=1, keepdims=True))
        return sent
