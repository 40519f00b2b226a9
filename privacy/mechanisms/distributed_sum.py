"""The client-level sum with the noise split among clients, in integers, for secure aggregation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from privacy.events import Events, Gaussian
from privacy.mechanisms.client_sum import WORTH_OF_SUMS, difference, public_teacher
from privacy.mechanisms.mechanism import GRID, Float64, Int64, Noise, positive, projected, whole

# A sum of discrete Gaussians differs from one discrete Gaussian by a term of order 10 exp(-16 pi^2) if each has a
# standard deviation of at least 4 steps (Kairouz, Liu and Steinke 2021).
_LEAST_STEPS = 4.0


@dataclass(frozen=True, slots=True)
class DistributedClientSum:
    """ClientSum without a trusted server: each client rounds, adds its share of the noise, and only the sum is seen.

    A client's clipped matrix is rounded to multiples of a public grid, which moves one term: the sensitivity grows from
    B to D = B + grid sqrt(d)/2 for d entries. Each client adds discrete Gaussian noise of variance (sD)^2/h, where h
    clients are sure to be honest and to arrive. Secure aggregation adds integers modulo 2^64, or a power of two above
    all sums; a sum that wraps around costs accuracy, not privacy.

    Attributes:
        clip: B, the L2 norm that a client's whole matrix of differences is cut to.
        noise_multiplier: s of the noise of h clients together, over D.
        clients: M, a public constant.
        least: fewest clients whose sum is ever opened, of `clients`.
        colluding: share of those that may tell the server their noise, in [0, 1).
        classes: columns of a matrix.
        grid: step of the rounding, public.

    Raises:
        ValueError: a parameter out of range.
    """

    WORTH: ClassVar[str] = WORTH_OF_SUMS
    UNIT: ClassVar[str] = "client"
    ADJACENCY: ClassVar[str] = "zero_out"
    BASELINE: ClassVar[bool] = False
    clip: float
    noise_multiplier: float
    clients: int
    least: int
    colluding: float
    classes: int
    grid: float = GRID

    def __post_init__(self) -> None:
        for name in ("clip", "noise_multiplier", "grid"):
            positive(name, getattr(self, name))
        whole("clients", self.clients, 1)
        whole("classes", self.classes, 2)
        if whole("least", self.least, 1) > self.clients:
            raise ValueError(f"least={self.least} must be at most clients={self.clients}")
        if not 0.0 <= self.colluding < 1.0:
            raise ValueError(f"colluding={self.colluding} must be in [0, 1)")

    @property
    def honest(self) -> int:
        """h = ceil((1 - colluding) least), the clients that the noise is split among."""
        # (1 - .7) * 10 is 3.0000000000000004 in floats: as 4 it would leave each of the three with too small a share.
        return max(1, math.ceil((1.0 - self.colluding) * self.least - 1e-9))

    def sensitivity(self, rows: int) -> float:
        """Of the sum of rounded terms: D = B + grid sqrt(rows * classes)/2."""
        return self.clip + self.grid * math.sqrt(rows * self.classes) / 2.0 if rows else 0.0

    def events(self, rows: int) -> Events:
        """The cost of one sum, if `honest` clients or more are honest and arrive."""
        return self.events_with(rows, self.honest)

    def events_with(self, rows: int, honest: int) -> Events:
        """The cost of one sum in which so many honest clients arrived; abort, or charge this.

        With m < h the noise is s sqrt(m/h) times the sensitivity. More than h cost no less: the plan counts on h.
        """
        share = min(1.0, whole("honest", honest, 1) / self.honest)
        return (Gaussian(self.noise_multiplier * math.sqrt(share), 1),) if whole("rows", rows, 0) else ()

    def contribution(self, answer: Float64, previous: Float64, noise: Noise) -> Int64:
        """What one client puts into the sum.

        Args:
            answer: [n, classes] probabilities; a row that is not finite becomes the previous teacher's.
            previous: [n, classes] the public teacher of these rows; uniform in the first round.

        Returns:
            [n, classes] noised multiples of the grid.

        Raises:
            ValueError: a shape, a previous teacher that is not finite, or noise of less than 4 steps of the grid.
        """
        base = public_teacher(previous)
        if base.shape[1] != self.classes:
            raise ValueError(f"previous has {base.shape[1]} columns: classes={self.classes} expected")
        if not len(base):
            return np.zeros(base.shape, np.int64)
        steps, multiplier = self.sensitivity(len(base)) / self.grid, self.noise_multiplier / math.sqrt(self.honest)
        if steps * multiplier < _LEAST_STEPS:
            raise ValueError(
                f"grid={self.grid} must be at most a quarter of a client's noise, "
                f"{self.grid * steps * multiplier:.3g}: choose a finer one"
            )
        rounded = np.rint(difference(answer, base, self.clip) / self.grid).astype(np.int64)
        return noise.discrete_gaussian(rounded, steps, multiplier)

    def release(self, total: Int64, previous: Float64) -> Float64:
        """The next teacher from the sum of all contributions; free.

        Returns:
            [n, classes] distributions.

        Raises:
            ValueError: a shape, or a previous teacher that is not finite.
        """
        base = public_teacher(previous)
        if total.shape != base.shape:
            raise ValueError(f"total has shape {list(total.shape)}: {list(base.shape)} expected")
        return projected(base + total * self.grid / self.clients)
