"""Class prior attack, CPA: Roux, Zimmer, Pokutta 2025, arXiv 2402.12265."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulations.attacks.attack import Scene, certain
from strategies.soft_labels import Float64


@dataclass(frozen=True, slots=True)
class ClassCovariance:
    """One-hot on the class that is least similar to the likeliest one of y_H, row by row.

    Similarity is covariance. The authors' code reads a matrix for each data set from a file; here it comes from the
    round's honest votes, so it needs no data and differs from theirs.
    """

    def logits(self, scene: Scene, rng: np.random.Generator) -> Float64:
        similar = covariance(scene.votes())
        # A class never stands for itself, also where votes are so few that all covariances are 0.
        np.fill_diagonal(similar, np.inf)
        return certain(similar.argmin(axis=1)[scene.honest_mean().argmax(axis=1)], scene.own.shape[1])


def covariance(votes: Float64) -> Float64:
    """Population covariance of classes over all voters and rows.

    Args:
        votes: [voters, n, classes] probabilities.

    Returns:
        [classes, classes]; zeros where there are no rows.
    """
    flat = votes.reshape(-1, votes.shape[2])
    count = max(len(flat), 1)
    centred = flat - flat.sum(axis=0) / count
    similar: Float64 = centred.T @ centred / count
    return similar
