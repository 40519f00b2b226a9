"""An order of the classes of a row in which equals stand by lot: a fixed one, the same at every site."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from strategies.selection import splitmix64
from strategies.soft_labels import Float64, Int64

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_GRID = 1e9


def order_keys(preferences: Float64, rows: Int64) -> NDArray[np.uint64]:
    """Numbers that sort the classes of each row: the most preferred first, equals by a hash of (row, class).

    Always taking the first class of a tie would add votes to class 0 in every run.

    Args:
        preferences: [n, classes] clipped to [0, 1]; differences below 1e-9 are rounding and count as ties.
        rows: [n] proxy row numbers, from 0.

    Returns:
        [n, classes] keys; ascending order is the order wanted.
    """
    classes = np.arange(1, preferences.shape[1] + 1, dtype=np.uint64)
    by_row = splitmix64((rows + 1).astype(np.uint64) * _GOLDEN)
    lots = splitmix64(np.add(by_row[:, None], classes * _GOLDEN, dtype=np.uint64))
    behind = np.rint((1.0 - np.clip(preferences, 0.0, 1.0)) * _GRID).astype(np.uint64)
    keys: NDArray[np.uint64] = (behind << np.uint64(32)) | (lots >> np.uint64(32))
    return keys
