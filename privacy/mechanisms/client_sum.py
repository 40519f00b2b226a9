"""Client-level privacy of the teacher: clients' clipped answers are summed, and the server adds the noise."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from privacy.events import Events, Gaussian
from privacy.mechanisms.mechanism import (
    Float64,
    Noise,
    clipped,
    positive,
    projected,
    simplex_rows,
    whole,
)

WORTH_OF_SUMS = (
    "hides a whole client, useful from about 1000 clients; with 50 or fewer it does not work (10 clients, 1000 rows, "
    "epsilon 3: noise 4.4 on each averaged probability)"
)


@dataclass(frozen=True, slots=True)
class ClientSum:
    """T_prev + (sum over clients of clip_B(f_i - T_prev) + N(0, (sB)^2)) / M, projected to distributions.

    An absent client contributes 0, which is what zero-out adjacency turns a client into, and the divisor is the public
    M, never the number of replies: so exactly one term of norm B or less goes. Whoever adds the noise sees all answers;
    nothing is promised against the server.

    Attributes:
        clip: B, the L2 norm that a client's whole matrix of differences is cut to.
        noise_multiplier: s, standard deviation over B.
        clients: M, a public constant.

    Raises:
        ValueError: a parameter out of range.
    """

    WORTH: ClassVar[str] = f"{WORTH_OF_SUMS}; whoever adds the noise sees all votes, and nothing is promised against it"
    UNIT: ClassVar[str] = "client"
    ADJACENCY: ClassVar[str] = "zero_out"
    BASELINE: ClassVar[bool] = False
    clip: float
    noise_multiplier: float
    clients: int

    def __post_init__(self) -> None:
        positive("clip", self.clip)
        positive("noise_multiplier", self.noise_multiplier)
        whole("clients", self.clients, 1)

    def sensitivity(self, rows: int) -> float:
        """Of the sum: B, for any number of rows above 0."""
        return self.clip if rows else 0.0

    def events(self, rows: int) -> Events:
        """The cost of one sum; Flower asks a fixed number of clients, so nothing is amplified by sampling."""
        return (Gaussian(self.noise_multiplier, 1),) if whole("rows", rows, 0) else ()

    def release(self, answers: Iterable[Float64], previous: Float64, noise: Noise) -> Float64:
        """The next teacher.

        Args:
            answers: of the clients that answered, each [n, classes] probabilities, in an order that does not depend on
                arrival. Only the running sum is kept. A row that is not finite becomes the previous teacher's.
            previous: [n, classes] the public teacher of these rows; uniform in the first round.

        Returns:
            [n, classes] distributions.

        Raises:
            ValueError: more answers than clients, a shape, or a previous teacher that is not finite.
        """
        base = public_teacher(previous)
        total = np.zeros_like(base)
        for count, answer in enumerate(answers, start=1):
            if count > self.clients:
                raise ValueError(f"clients={self.clients} have sent {count} answers or more: one each")
            total += difference(answer, base, self.clip)
        return self.noised(total, base, noise)

    def noised(self, total: Float64, base: Float64, noise: Noise) -> Float64:
        """The next teacher from a sum of `difference`s, for who adds them as they come.

        Args:
            total: [n, classes] one term a client, each from `difference` with this clip and this base.
            base: [n, classes] what `public_teacher` made of the previous teacher.

        Returns:
            [n, classes] distributions.
        """
        released = noise.gaussian(total, self.sensitivity(len(base)), self.noise_multiplier)
        return projected(base + released / self.clients)


def public_teacher(previous: Float64) -> Float64:
    """The previous teacher as distributions; it is public, so that what is wrong with it may be said.

    Raises:
        ValueError: a shape, or a value that is not finite.
    """
    if not np.isfinite(previous).all():
        raise ValueError("previous has a value that is not finite: give the public teacher, or uniform rows")
    return simplex_rows(previous)


def difference(answer: Float64, base: Float64, clip: float) -> Float64:
    """clip_B(f_i - T_prev): [n, classes], of L2 norm `clip` or less whatever the answer is.

    Raises:
        ValueError: an answer of another shape.
    """
    if np.shape(answer) != base.shape:
        raise ValueError(f"an answer has shape {list(np.shape(answer))}: {list(base.shape)} expected")
    return clipped(simplex_rows(answer, instead=base) - base, clip)
