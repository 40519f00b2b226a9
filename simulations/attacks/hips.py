"""HIPS, an attack whose vote *is* an honest one: Roux, Zimmer, Pokutta 2025, arXiv 2402.12265."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulations.attacks.attack import Scene, log_vote
from simulations.attacks.class_covariance import covariance
from strategies.soft_labels import Float64

AIMS = ("loss", "class-covariance")
_TINY = 1e-300  # 0 ln 0 = 0


@dataclass(frozen=True, slots=True)
class Hips:
    """Row by row the honest vote p_j that does most harm; of equals the first in order of values.

    Attributes:
        aim: what harm is, of AIMS. `loss`: -sum_c y_H,c ln((1 - a) y_H + a p_j)_c with a the share of attackers, what
            LMA maximises over all votes. `class-covariance`: -sum_c S_c p_j,c with S the row of the honest votes'
            class covariance that belongs to the likeliest class of y_H; over all votes CPA's one-hot maximises it.

    Guarantees:
        Each row is a row of an honest voter, floored as every vote is; without honest voters, the own vote.
    """

    aim: str = "loss"

    def __post_init__(self) -> None:
        if self.aim not in AIMS:
            raise ValueError(f"aim={self.aim!r} must be one of {', '.join(AIMS)}")

    def logits(self, scene: Scene, rng: np.random.Generator) -> Float64:
        votes, mean = scene.votes(), scene.honest_mean()
        if self.aim == "loss":
            # The authors' code has a and 1 - a the other way round; this is the mean that the votes end up in.
            share = scene.attackers / scene.clients
            mixed = (1.0 - share) * mean + share * votes
            harm = -(mean * np.log(np.maximum(mixed, _TINY))).sum(axis=2)
        else:
            harm = -(covariance(votes)[mean.argmax(axis=1)] * votes).sum(axis=2)
        return log_vote(votes[harm.argmax(axis=0), np.arange(len(mean))])
