"""A little is enough, LIE: Baruch, Baruch, Goldberg 2019, arXiv 1902.06083, on votes instead of gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from simulations.attacks.attack import Scene, log_vote
from strategies.soft_labels import Float64


@dataclass(frozen=True, slots=True)
class Lie:
    """y_H - z std, class by class, cut off at 0, then normalised; std is the population's, over the honest votes.

    Attributes:
        z: standard deviations from the honest mean; 0: from the numbers of voters and attackers, see `hidden_z`.
    """

    z: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.z < math.inf:
            raise ValueError(f"z={self.z} must be at least 0 and finite; 0 computes it from voters and attackers")

    def logits(self, scene: Scene, rng: np.random.Generator) -> Float64:
        z = self.z or hidden_z(scene.clients, scene.attackers)
        mean = scene.honest_mean()
        moved = np.maximum(mean - z * scene.votes().std(axis=0), 0.0)
        total = moved.sum(axis=1, keepdims=True)
        # A z so large that nothing is left: stay at the mean rather than divide by 0.
        return log_vote(np.where(total > 0.0, moved / np.where(total > 0.0, total, 1.0), mean))


def hidden_z(clients: int, attackers: int) -> float:
    """How far attackers may go with enough honest voters still further out: Phi(z) = (K - f - e) / (K - f).

    Args:
        clients: K, all voters.
        attackers: f; e = floor(K / 2 + 1) - f honest ones are missing to a majority.

    Returns:
        z; 0 with one honest voter or none. Few attackers get z <= 0 (10 clients: up to 2): they send about y_H.
        A majority needs no honest ones; it gets the z of e = 1, the largest that is finite.

    >>> round(hidden_z(10, 4), 4)
    0.4307
    """
    honest = clients - attackers
    if honest < 2:
        return 0.0
    missing = max(clients // 2 + 1 - attackers, 1)
    return NormalDist().inv_cdf((honest - missing) / honest)
