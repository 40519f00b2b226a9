"""Features that no training changes, made once for rows that stay: of a proxy set for all models of a process."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

# What one set of rows may take.
_LIMIT_BYTES = 2**31
_BATCH = 500
# By the tensor of stored rows, then by what was made of them; gone with the rows.
_MADE: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def fixed_features(
    features: torch.Tensor, fixed: nn.Module, make: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor | None:
    """`make` of all rows, from an earlier call if there was one; None if they take more than 2 GiB.

    Args:
        features: [n, *shape] stored rows, never changed in place.
        fixed: the part that `make` ends with, without parameters; two that print alike and take rows of one shape are
            alike.
        make: [m, *shape] rows to their [m, ...] features, row by row.
    """
    known: dict[str, torch.Tensor] = _MADE.setdefault(features, {})
    key = repr(fixed)
    if key not in known:
        if len(features) * make(features[:1]).numel() * 4 > _LIMIT_BYTES:
            return None
        known[key] = torch.cat([make(part) for part in features.split(_BATCH)])
    return known[key]
