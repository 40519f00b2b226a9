"""What an attacker sees in one round, and what it is: a function from there to the values it sends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from strategies.soft_labels import LOG_FLOOR, Float64, Int64, log_softmax


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """One round as an attacker sees it who knows everything.

    Attributes:
        honest: [voters, n, classes] probabilities of the honest voters, in order of name; there may be none.
        own: [n, classes] what this attacker's own model would have voted; on rows that it would have left out, what
            the honest ones say on average.
        teacher: [n, classes] the last teacher on these rows, uniform where it has none; None in the first round.
        attackers: how many attack.
        clients: all voters, the attackers among them.
        round: from 1.
        rows: [n] what the rows are called: the same numbers for all attackers of a round. None: 0 to n - 1.

    Raises:
        ValueError: shapes that do not fit each other, or more attackers than voters.
    """

    honest: Float64
    own: Float64
    teacher: Float64 | None
    attackers: int
    clients: int
    round: int
    rows: Int64 | None = None

    def __post_init__(self) -> None:
        fits = self.honest.ndim == 3 and self.honest.shape[1:] == self.own.shape
        if self.rows is not None and self.rows.shape != self.own.shape[:1]:
            raise ValueError(f"rows must be {len(self.own)} numbers, one for each row of own")
        if not fits or (self.teacher is not None and self.teacher.shape != self.own.shape):
            raise ValueError("honest, own and teacher must be [voters, n, classes], [n, classes] and [n, classes]")
        if not 1 <= self.attackers <= self.clients:
            raise ValueError(f"attackers={self.attackers} must be in [1, {self.clients}]: they are among the voters")

    def votes(self) -> Float64:
        """[at least 1, n, classes] the honest votes; where nobody is honest, the own one.

        Guarantees:
            Row by row in order of their values: who cast which vote changes no bit of what is computed from them.
        """
        if not len(self.honest):
            return self.own[None]
        keys = np.moveaxis(self.honest, 2, 0)[::-1]  # lexsort: the last key, here the first class, goes first
        return np.take_along_axis(self.honest, np.lexsort(keys, axis=0)[:, :, None], axis=0)

    def honest_mean(self) -> Float64:
        """[n, classes] y_H, the mean of the honest votes."""
        mean: Float64 = self.votes().mean(axis=0)
        return mean


class Attack(Protocol):
    """A frozen dataclass whose fields are its settings; nothing survives a round inside it."""

    def logits(self, scene: Scene, rng: np.random.Generator) -> Float64:
        """What the attacker sends where log-probabilities are expected.

        Args:
            rng: this attacker's own; what colluders share comes from the scene and the settings.

        Returns:
            [n, classes] log-probabilities, nats; `nan` and `scaled-logits` return what is none.
        """


def log_vote(probabilities: Float64) -> Float64:
    """[n, classes] log-probabilities of a vote: floored at ln 1e-7, as honest ones are, then normalised."""
    return log_softmax(np.log(np.maximum(probabilities, np.exp(LOG_FLOOR))))


def certain(target: Int64, classes: int) -> Float64:
    """[n, classes] log-probabilities of a vote that is certain of class target[i] on row i."""
    return log_vote(np.eye(classes)[target])


def runner_up(probabilities: Float64) -> Int64:
    """[n] the second most likely class of each row; equals count in order of class."""
    rest = probabilities.copy()
    rest[np.arange(len(rest)), rest.argmax(axis=1)] = -1.0
    second: Int64 = rest.argmax(axis=1)
    return second
