"""Values that are no numbers: one bad cell is enough where nothing is checked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulations.attacks.attack import Scene, log_vote
from strategies.soft_labels import Float64


@dataclass(frozen=True, slots=True)
class Nan:
    """The own vote, spoilt.

    Attributes:
        value: nan, inf or -inf.
        everywhere: every cell; otherwise only the first cell of the first row.
    """

    value: str = "nan"
    everywhere: bool = True

    def __post_init__(self) -> None:
        if self.value not in ("nan", "inf", "-inf"):
            raise ValueError(f"value={self.value!r} must be nan, inf or -inf: a number is no such attack")

    def logits(self, scene: Scene, rng: np.random.Generator) -> Float64:
        sent = log_vote(scene.own)
        where = slice(None) if self.everywhere else slice(1)
        sent[where, where] = float(self.value)
        return sent
