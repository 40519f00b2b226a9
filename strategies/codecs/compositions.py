"""Enumerative code: a row of levels with a fixed sum, as its number in the lexicographic list of all such rows.

Cover (1973), Enumerative source encoding; formula: design reference 5.3, summed with the hockey-stick identity.
"""

from __future__ import annotations

from math import comb

import numpy as np
from numpy.typing import NDArray

from strategies.soft_labels import Int64


def compositions(total: int, classes: int) -> int:
    """How many rows of `classes` integers from 0 sum to `total`.

    >>> compositions(3, 4)
    20
    """
    return comb(total + classes - 1, classes - 1)


def _ways(total: int, classes: int) -> Int64:
    """[classes, total + 1]: at [m, x] the rows of m classes that sum to at most x, binom(x + m, m)."""
    table = np.ones((classes, total + 1), np.int64)
    for m in range(1, classes):
        table[m] = np.cumsum(table[m - 1])
    return table


def ranks(levels: Int64, total: int) -> NDArray[np.uint64]:
    """The numbers of rows.

    Args:
        levels: [n, classes] from 0, each row summing to `total`; compositions(total, classes) < 2^63.

    Returns:
        [n] numbers from 0.

    >>> ranks(np.array([[2, 1, 0, 0]]), 3).tolist()
    [18]
    """
    classes = levels.shape[1]
    ways = _ways(total, classes)
    left = total - np.cumsum(levels, axis=1)[:, :-1]
    before = np.concatenate([np.full((len(levels), 1), total), left[:, :-1]], axis=1)
    others = np.arange(classes - 1, 0, -1)
    # Rows that agree so far and have less here: sum over j < r of binom(before - j + m - 1, m - 1), m = others.
    numbers: Int64 = (ways[others, before] - ways[others, left]).sum(axis=1)
    return numbers.astype(np.uint64)


def unranked(numbers: NDArray[np.uint64], total: int, classes: int) -> Int64:
    """The inverse of `ranks`: [n, classes] levels.

    Raises:
        ValueError: a number that no row has.
    """
    count = compositions(total, classes)
    if (numbers >= count).any():
        raise ValueError(f"a row has number {numbers.max()}; only 0 to {count - 1} are rows of levels")
    ways = _ways(total, classes)
    todo, left = numbers.astype(np.int64), np.full(len(numbers), total)
    levels = np.empty((len(numbers), classes), np.int64)
    for column, m in enumerate(range(classes - 1, 0, -1)):
        after = np.searchsorted(ways[m], ways[m, left] - todo)
        todo -= ways[m, left] - ways[m, after]
        levels[:, column] = left - after
        left = after
    levels[:, -1] = left
    return levels
