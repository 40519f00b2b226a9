"""Another attack on some of the rows: the rest is honest, so a whole answer looks like one of many."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from simulations.attacks.attack import Attack, Scene, log_vote
from simulations.attacks.least_likely import LeastLikely
from strategies.seeds import stream_seed
from strategies.selection import GOLDEN, splitmix64
from strategies.soft_labels import Float64, Int64


@dataclass(frozen=True, slots=True)
class Partial:
    """`attack` on a share of the rows, the own vote on the others.

    Attributes:
        attack: what is sent on those rows; it sees the whole scene.
        share: in (0, 1]; that share of the rows, rounded, but at least one.

    Guarantees:
        All attackers of a round touch the same rows, also where they are told them in another order; other ones each
        round.
    """

    attack: Attack = field(default_factory=LeastLikely)
    share: float = 0.1

    def __post_init__(self) -> None:
        if not 0.0 < self.share <= 1.0:
            raise ValueError(f"share={self.share} must be in (0, 1]: the share of rows that is attacked")

    def logits(self, scene: Scene, rng: np.random.Generator) -> Float64:
        sent, rows = log_vote(scene.own), self.rows(scene)
        sent[rows] = self.attack.logits(scene, rng)[rows]
        return sent

    def rows(self, scene: Scene) -> Int64:
        """[share * n] positions of the attacked rows, ascending."""
        total = len(scene.own)
        count = min(total, max(1, round(self.share * total)))
        numbers = np.arange(total) if scene.rows is None else scene.rows
        # Ranked by a keyed hash of their numbers, which all attackers know; `rng` is another one for each of them.
        shared = np.uint64(stream_seed(scene.round, "attack", "partial"))
        ranked = np.argsort(splitmix64(shared + numbers.astype(np.uint64) * GOLDEN), kind="stable")
        return np.sort(ranked[:count]).astype(np.int64)
