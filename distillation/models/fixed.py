"""Models of two parts: features that are known before any row is seen, and a head that learns on them."""

from __future__ import annotations

import torch
from torch import nn


class OnFixed(nn.Module):
    """head(fixed(x)).

    Attributes:
        fixed: from inputs to features, row by row and without parameters: what it makes of a row never changes, so it
            may be computed once and kept.
        head: from features to logits; all that is trained, and all that a state holds.
    """

    def __init__(self, fixed: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.fixed, self.head = fixed, head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, *shape] to [n, classes] logits."""
        logits: torch.Tensor = self.head(self.fixed(x))
        return logits
