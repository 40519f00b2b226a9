"""Which proxy rows and which clients a round asks: pure functions of (seed, round)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from strategies.seeds import stream_seed
from strategies.soft_labels import Int64

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def splitmix64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The mixing function of SplitMix64 (Steele et al. 2014), modulo 2^64.

    Our own and not a library's permutation: those change between versions, and both ends must agree.

    >>> hex(int(splitmix64(np.array([0x9E3779B97F4A7C15], np.uint64))[0]))
    '0xe220a8397b1dcdaf'
    """
    mixed = values.copy()
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def _lowest(seed: int, total: int, count: int) -> Int64:
    """[count] of the numbers 0..total-1, ascending: those with the lowest keyed hash."""
    keys = splitmix64(np.uint64(seed) + np.arange(total, dtype=np.uint64) * _GOLDEN)
    return np.sort(np.argsort(keys, kind="stable")[:count]).astype(np.int64)


def proxy_rows(seed: int, round_: int, total: int, count: int) -> Int64:
    """The proxy rows that a round asks for.

    Args:
        seed: the federation's seed.
        round_: from 1.
        total: rows of the proxy set.
        count: rows wanted; all of them where count >= total.

    Returns:
        [min(count, total)] row numbers, strictly increasing.
    """
    return _lowest(stream_seed(seed, "proxy-rows", round_), total, count)


def participants(seed: int, round_: int, clients: Sequence[str], participation: float) -> tuple[str, ...]:
    """The clients that a round asks: ceil(participation * clients) of them, at least one, sorted by name.

    >>> participants(0, 1, ["b", "a", "c"], 1.0)
    ('a', 'b', 'c')
    """
    ordered = sorted(clients)
    # The rounding to 9 digits keeps 0.1 * 30 = 3.0000000000000004 at three clients.
    count = max(1, math.ceil(round(participation * len(ordered), 9)))
    chosen = _lowest(stream_seed(seed, "participants", round_), len(ordered), count)
    return tuple(ordered[i] for i in chosen)
