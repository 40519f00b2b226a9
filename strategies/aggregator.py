"""What turns votes into a teacher."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from strategies.messages import ClientReport
from strategies.soft_labels import SoftLabels

# What a rule remembers between rounds: named arrays, so that a checkpoint is a safetensors file.
State = Mapping[str, NDArray[np.float64]]


class Aggregator(Protocol):
    """A frozen dataclass whose fields are the rule's hyper-parameters. State goes in and comes out."""

    def aggregate(self, state: State, reports: Iterable[ClientReport]) -> tuple[SoftLabels, State]:
        """The ensemble teacher of one round.

        Args:
            state: what the rule remembered of earlier rounds; empty at first.
            reports: checked reports on the same rows, in any order. A rule that streams consumes them one by
                one and never holds two; one that cannot says so, with its memory.

        Raises:
            ValueError: no report at all, or reports on different rows.

        Guarantees:
            The teacher does not depend on the order of reports, bitwise; scaling all weights changes nothing
            beyond rounding.
        """
        ...
