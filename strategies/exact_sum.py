"""A sum that gives the same bits in every order, so that replies can be added as they arrive."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from strategies.soft_labels import Float64

# For |x| < 2048, x + 6144 lies in [4096, 8192), where neighbouring float64 are exactly 2^-40 apart: the addition
# itself rounds x to a multiple of 2^-40, and the bit pattern, read as an integer, counts those multiples.
# Integer addition is associative; float addition is not. (The idea: Demmel and Nguyen 2013, reproducible summation.)
_ANCHOR = 6144.0
_ANCHOR_BITS = np.float64(_ANCHOR).view(np.int64)
_RESOLUTION = 2.0**-40
# Log-probabilities are floored at -16.1, probabilities are at most 1. 2^17 terms of up to 2^5 * 2^40 reach 2^62.
LARGEST_TERM = 32.0
MOST_TERMS = 2**17


class OrderFreeSum:
    """Accumulates float64 arrays of one shape in the memory of one int64 array.

    Guarantees:
        Bitwise equal totals for every order of the same terms. Each term is rounded to a multiple of 2^-40
        (9.1e-13); nothing else is.

    >>> total = OrderFreeSum((1,))
    >>> for value in (1e-3, 1.0, -1e-3): total.add(np.array([value]))
    >>> float(total.value()[0])
    1.0
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._multiples: NDArray[np.int64] = np.zeros(shape, np.int64)
        self.terms = 0

    def add(self, values: Float64) -> None:
        """Add one array; every |value| must be below 32.

        Raises:
            ValueError: a value that is too large or not finite, or the sum already has 2^17 terms.
        """
        if self.terms >= MOST_TERMS:
            raise ValueError(f"{self.terms} terms are the most that one exact sum takes")
        shifted = values + _ANCHOR
        if not ((shifted > _ANCHOR - LARGEST_TERM) & (shifted < _ANCHOR + LARGEST_TERM)).all():
            raise ValueError(f"a term is not finite or not below {LARGEST_TERM}: check votes before adding them")
        counts = shifted.view(np.int64)
        counts -= _ANCHOR_BITS
        self._multiples += counts
        self.terms += 1

    def value(self) -> Float64:
        """The total, rounded once to float64."""
        total: Float64 = np.asarray(self._multiples * _RESOLUTION, np.float64)
        return total
