"""Trimmed mean: class by class without the highest and the lowest votes (Yin et al. 2018, for gradients)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from strategies.aggregator import Ballot, Outcome, State
from strategies.aggregators.median import ascending
from strategies.aggregators.stacking import Block, stacked, unless_nothing
from strategies.messages import ClientReport
from strategies.soft_labels import Float64


@dataclass(frozen=True, slots=True)
class TrimmedMean:
    """Per class the mean without the g lowest and the g highest votes, then renormalised. Holds all votes.

    g = floor(trim * v) of the v voters of a row. With weights each end loses the share g / v of the row's weight; a
    voter on the border counts with the part of its weight that lies inside, so that ties and small changes of
    weights do not make the result jump. Equal weights make that the plain definition. Where all classes come out as
    nothing the row is the weighted mean.

    Attributes:
        trim: in [0, 0.5); 0 is the mean, and so is every row with fewer than 1 / trim voters.
    """

    trim: float = 0.2

    def __post_init__(self) -> None:
        if not 0.0 <= self.trim < 0.5:
            raise ValueError(f"trim={self.trim} must be in [0, 0.5): it drops that share of voters at each end")

    def aggregate(self, state: State, ballot: Ballot, reports: Iterable[ClientReport]) -> Outcome:
        return Outcome(stacked(ballot, reports).teacher(self._trimmed), state)

    def _trimmed(self, block: Block) -> Float64:
        values, shares = ascending(block)
        # The rounding to 9 digits keeps 0.3 * 10 = 3.0000000000000004 at three voters.
        dropped = np.floor(np.round(self.trim * block.voters, 9)) / block.voters
        inside = np.clip(shares, dropped[:, None, None], 1.0 - dropped[:, None, None])
        inside[:, :, 1:] -= inside[:, :, :-1].copy()
        inside[:, :, 0] -= dropped[:, None]
        pooled = np.einsum("mck,mck->mc", np.exp(values, dtype=np.float64), np.broadcast_to(inside, values.shape))
        # A mean, not a sum of what is left: else little is left of many voters and looks like nothing.
        return unless_nothing(pooled / (1.0 - 2.0 * dropped)[:, None], block)
