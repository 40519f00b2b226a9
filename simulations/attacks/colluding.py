"""All attackers are certain of the same wrong class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulations.attacks.attack import Scene, certain
from strategies.soft_labels import Float64


@dataclass(frozen=True, slots=True)
class Colluding:
    """One-hot on one class for all rows and all attackers.

    Where that class already is the likeliest one of y_H it would be no attack: there the next class is sent, so that
    every row is wrong. The code of Roux et al. 2025 (fixed sign flip, class 0) sends the target there too: see `stay`.

    Attributes:
        target: a class, from 0.
        stay: send the target also where the honest mean agrees with it.
    """

    target: int = 0
    stay: bool = False

    def __post_init__(self) -> None:
        if self.target < 0:
            raise ValueError(f"target={self.target} must be a class, from 0")

    def logits(self, scene: Scene, rng: np.random.Generator) -> Float64:
        classes = scene.own.shape[1]
        if self.target >= classes:
            raise ValueError(f"target={self.target} must be below {classes}, the number of classes")
        agreed = (scene.honest_mean().argmax(axis=1) == self.target) & (not self.stay)
        return certain((self.target + agreed) % classes, classes)
