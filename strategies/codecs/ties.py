"""An order of the classes of a row in which equals stand by lot: a fixed one, the same at every site."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from strategies.lots import lots
from strategies.soft_labels import Float64, Int64

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
    behind = np.rint((1.0 - np.clip(preferences, 0.0, 1.0)) * _GRID).astype(np.uint64)
    keys: NDArray[np.uint64] = (behind << np.uint64(32)) | (lots(0, rows, preferences.shape[1]) >> np.uint64(32))
    return keys
