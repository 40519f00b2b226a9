"""Gaussian noise on a client's soft labels: a baseline."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from privacy.events import Events, Gaussian
from privacy.mechanisms.mechanism import Float64, Noise, positive, projected, simplex_rows, switched_on, whole


@dataclass(frozen=True, slots=True)
class GaussianOutput:
    """The whole matrix of soft labels plus noise, projected back to distributions.

    Training is not stable: one record can move every row from one corner of the simplex to another. So the sensitivity
    is the diameter of the whole matrix, sqrt(2 n); it is not that of a row, and not 1/n of anything.

    Attributes:
        noise_multiplier: s, standard deviation over the sensitivity of the whole matrix.
        allow_baseline: must be True.

    Raises:
        ValueError: a parameter out of range, or a baseline that nobody asked for.
    """

    WORTH: ClassVar[str] = (
        "a baseline that is useless: the noise on each probability is many times 1 (1000 rows, epsilon 1: 166.8), and "
        "students of such labels stay at chance"
    )
    UNIT: ClassVar[str] = "record"
    ADJACENCY: ClassVar[str] = "zero_out"
    BASELINE: ClassVar[bool] = True
    noise_multiplier: float
    allow_baseline: bool = False

    def __post_init__(self) -> None:
        positive("noise_multiplier", self.noise_multiplier)
        switched_on("gaussian-output", self.allow_baseline, self.WORTH)

    def sensitivity(self, rows: int) -> float:
        """Of the whole matrix: sqrt(2 rows)."""
        return math.sqrt(2.0 * rows)

    def events(self, rows: int) -> Events:
        """The cost of one matrix of `rows` rows."""
        return (Gaussian(self.noise_multiplier, 1),) if whole("rows", rows, 0) else ()

    def release(self, probs: Float64, noise: Noise) -> Float64:
        """Noisy soft labels.

        Args:
            probs: [n, classes] probabilities; a row that is no distribution becomes one.

        Returns:
            [n, classes] distributions.

        Raises:
            ValueError: a shape, or so many rows that the noise is above 2^32.
        """
        rows = simplex_rows(probs)
        return projected(noise.gaussian(rows, self.sensitivity(len(rows)), self.noise_multiplier))
