"""SCARLET's cache of labels (Azuma et al. 2025), with one predicate for everybody who looks at a label's age."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from strategies.soft_labels import Float32, Int64, SoftLabels


@dataclass(frozen=True, slots=True, eq=False)
class LabelCache:
    """The last label of every proxy row, and when it was made.

    Attributes:
        log_probs: [total, classes]; anything where made is 0.
        made: [total] the round that made the label; 0: never.
        duration: D, rounds for which a label is fresh; 0 and 1 both mean: no label is used twice, since a label is one
            round old when it could first be used again.
    """

    log_probs: Float32
    made: Int64
    duration: int

    @classmethod
    def empty(cls, total: int, classes: int, duration: int) -> LabelCache:
        """Before the first round."""
        return cls(np.zeros((total, classes), np.float32), np.zeros(total, np.int64), duration)

    def fresh(self, rows: Int64, round_: int) -> NDArray[np.bool_]:
        """[n] which rows need no vote in this round: ver > 0 and t - ver < D."""
        made = self.made[rows]
        return (made > 0) & (round_ - made < self.duration)

    def stale(self, rows: Int64, round_: int) -> Int64:
        """The rows to ask."""
        return rows[~self.fresh(rows, round_)]

    def filed(self, teacher: SoftLabels, round_: int) -> LabelCache:
        """The cache with this round's labels; an expired label is replaced, never blanked."""
        log_probs, made = self.log_probs.copy(), self.made.copy()
        log_probs[teacher.rows], made[teacher.rows] = teacher.log_probs, round_
        return LabelCache(log_probs, made, self.duration)

    def teacher(self, rows: Int64, round_: int) -> SoftLabels:
        """This round's teacher on the drawn rows: new labels, fresh ones, and for want of a quorum old ones.

        A row that was asked and met no quorum keeps its old label while it is younger than 2 D; then it leaves. Where
        no label is used twice it leaves at once.
        """
        made = self.made[rows]
        reach = 2 * self.duration if self.duration > 1 else 1
        kept = rows[(made > 0) & (round_ - made < reach)]
        return SoftLabels(kept, self.log_probs[kept])
