"""Lots that depend on the seed and the row alone: which other rows a round asks for changes nothing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from strategies.selection import GOLDEN, splitmix64
from strategies.soft_labels import Int64


def lots(seed: int, rows: Int64, count: int) -> NDArray[np.uint64]:
    """[n, count] numbers of 64 bits for each row.

    >>> lots(7, np.array([3, 5]), 2)[1] == lots(7, np.array([5]), 2)[0]
    array([ True,  True])
    """
    by_row = splitmix64(np.uint64(seed) + (rows + 1).astype(np.uint64) * GOLDEN)
    return splitmix64(by_row[:, None] + np.arange(1, count + 1, dtype=np.uint64) * GOLDEN)
