"""Which proxy rows and which clients a round asks: pure functions of (seed, round) and of what was heard so far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from strategies.messages import Draw
from strategies.seeds import stream_seed
from strategies.soft_labels import Float64, Int64

# The step of SplitMix64.
GOLDEN = np.uint64(0x9E3779B97F4A7C15)

# How a round's proxy rows are chosen.
CHOICES = ("random", "fixed", "epoch", "disagreement")


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


def drawn(draw: Draw) -> Int64:
    """[count] of the numbers 0..total-1, ascending: those of ranks offset to offset + count - 1 by keyed hash."""
    return np.sort(_ranked(draw.seed, draw.total)[draw.offset : draw.offset + draw.count])


@lru_cache(maxsize=4)  # a plan names two draws, and a round's plans all the same ones
def _ranked(seed: int, total: int) -> Int64:
    ranked = np.argsort(_keys(seed, total), kind="stable").astype(np.int64)
    ranked.flags.writeable = False
    return ranked


def _keys(seed: int, total: int) -> NDArray[np.uint64]:
    """The keyed hash of each of the numbers 0..total-1."""
    return splitmix64(np.uint64(seed) + np.arange(total, dtype=np.uint64) * GOLDEN)


def proxy_draw(seed: int, round_: int, total: int, count: int, choice: str = "random") -> Draw:
    """The proxy rows that a round asks for, as the few numbers that both ends compute them from.

    Args:
        seed: the federation's seed.
        round_: from 1.
        total: rows of the proxy set.
        count: rows wanted; all of them where count >= total.
        choice: `random` draws anew each round; `fixed` keeps one draw for the whole run; `epoch` cuts one permutation
            into blocks, so that a row comes back only when all blocks have had their turn (what does not fill a
            block waits for the next permutation).
    """
    count = min(count, total)
    if choice == "fixed":
        return Draw(stream_seed(seed, "proxy-rows", 0), total, 0, count)
    if choice == "epoch":
        epoch, block = divmod(round_ - 1, total // count)
        return Draw(stream_seed(seed, "proxy-rows", "epoch", epoch), total, block * count, count)
    return Draw(stream_seed(seed, "proxy-rows", round_), total, 0, count)


def disputed_rows(seed: int, round_: int, disagreement: Float64, count: int) -> Int64:
    """Active choice: half of the rows are those that voters disputed most, half are drawn among the others.

    Args:
        disagreement: [total] of each row when it was last voted on, in nats; NaN where it never was.
        count: rows wanted; all of them where count >= total.

    Returns:
        [min(count, total)] row numbers, strictly increasing; a row that was never voted on is drawn, not chosen.
    """
    total = len(disagreement)
    count = min(count, total)
    keys = _keys(stream_seed(seed, "disputed", round_), total)
    known = np.flatnonzero(~np.isnan(disagreement))
    # Ties in the order of the draw, not of the row numbers.
    by_dispute = known[np.lexsort((keys[known], -disagreement[known]))][: count // 2]
    rest = np.setdiff1d(np.arange(total), by_dispute)
    others = rest[np.argsort(keys[rest], kind="stable")][: count - len(by_dispute)]
    return np.sort(np.concatenate([by_dispute, others])).astype(np.int64)


def count_of(share: float, total: int) -> int:
    """How many of `total` a share is, rounded up.

    >>> count_of(0.1, 30), count_of(0.3, 11)
    (3, 4)
    """
    # The rounding to 9 digits keeps 0.1 * 30 = 3.0000000000000004 at three.
    return math.ceil(round(share * total, 9))


def participants(seed: int, round_: int, clients: Sequence[str], participation: float) -> tuple[str, ...]:
    """The clients that a round asks: ceil(participation * clients) of them, at least two if there are, sorted by name.

    One alone would be everybody's teacher.

    >>> participants(0, 1, ["b", "a", "c"], 1.0)
    ('a', 'b', 'c')
    """
    ordered = sorted(clients)
    count = max(min(2, len(ordered)), count_of(participation, len(ordered)))
    chosen = drawn(Draw(stream_seed(seed, "participants", round_), len(ordered), 0, count))
    return tuple(ordered[i] for i in chosen)
