"""A sum that gives the same bits in every order, so that replies can be added as they arrive."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from strategies.soft_labels import Float64, Int64

# For |x| < 2048, x + 6144 lies in [4096, 8192), where neighbouring float64 are exactly 2^-40 apart: the addition
# itself rounds x to a multiple of 2^-40, and the bit pattern, read as an integer, counts those multiples.
# Integer addition is associative; float addition is not. (The idea: Demmel and Nguyen 2013, reproducible summation.)
# 192 times the largest term is such an anchor for any power of two: 2^17 terms then stay below 2^62 multiples.
_ANCHOR_PER_TERM = 192.0
MOST_TERMS = 2**17


class OrderFreeSum:
    """Accumulates float64 arrays of one shape in the memory of two such arrays.

    Args:
        shape: of the arrays.
        largest: a power of two; every |value| must be below it.

    Guarantees:
        Bitwise equal totals for every order of the same terms. Each term is rounded to a multiple of
        largest * 2^-45 (9.1e-13 for 32, 2.8e-14 for 1); nothing else is.

    >>> total = OrderFreeSum((1,), largest=2.0)
    >>> for value in (1e-3, 1.0, -1e-3): total.add(np.array([value]))
    >>> float(total.value()[0])
    1.0
    """

    def __init__(self, shape: tuple[int, ...], largest: float = 32.0) -> None:
        self._anchor = _ANCHOR_PER_TERM * largest
        self._largest = largest
        self._bits = np.float64(self._anchor).view(np.int64)
        # Bit patterns are added with their anchors, modulo 2^64; value() takes the anchors off again.
        self._patterns: NDArray[np.int64] = np.zeros(shape, np.int64)
        self._shifted: Float64 = np.empty(shape)  # the term at hand; a buffer, since this is the inner loop
        self._whole = 0  # terms that had all entries
        self._anchors: NDArray[np.int64] = np.zeros(shape[:1], np.int64)  # the others, by entry of the first axis
        self.terms = 0

    def add(self, values: NDArray[np.floating], at: slice | Int64 = slice(None), *, vouched: bool = False) -> None:
        """Add one array, or one for some entries of the first axis; `at` names no entry twice.

        Args:
            vouched: the caller knows that every value is below the bound; looking would cost as much as adding.

        Raises:
            ValueError: a value that is too large or not finite, or the sum already has 2^17 terms.
        """
        if self.terms >= MOST_TERMS:
            raise ValueError(f"{self.terms} terms are the most that one exact sum takes")
        whole = isinstance(at, slice) and at == slice(None)
        out = self._shifted if whole else self._shifted[: len(values)]
        # dtype: float32 values would otherwise be added in float32.
        shifted = np.add(values, self._anchor, out=out, dtype=np.float64)
        # NaN fails both comparisons.
        if (
            not vouched
            and shifted.size
            and not (shifted.min() > self._anchor - self._largest and shifted.max() < self._anchor + self._largest)
        ):
            raise ValueError(f"a term is not finite or not below {self._largest:g}: check votes before adding them")
        patterns = shifted.view(np.int64)
        if whole:
            self._patterns += patterns
            self._whole += 1
        else:
            self._patterns[at] += patterns
            self._anchors[at] += 1
        self.terms += 1

    def take(self, values: NDArray[np.floating], at: Int64) -> None:
        """Take terms that were added off again, as if they had never been."""
        shifted: Float64 = np.add(values, self._anchor, dtype=np.float64)
        self._patterns[at] -= shifted.view(np.int64)
        self._anchors[at] -= 1

    def value(self) -> Float64:
        """The total, rounded once to float64."""
        terms = self._anchors + self._whole
        anchors = terms.reshape(terms.shape + (1,) * (self._patterns.ndim - terms.ndim))
        with np.errstate(over="ignore"):
            multiples = self._patterns - anchors * self._bits
        total: Float64 = np.asarray(multiples * (self._largest * 2.0**-45), np.float64)
        return total


class WideOrderFreeSum:
    """An order-free sum for terms of very different sizes, in the memory of five arrays.

    Args:
        shape: of the arrays.
        largest: a power of two; every |value| must be below it.

    Guarantees:
        Bitwise equal totals for every order of the same terms. Each term is rounded to a multiple of
        largest * 2^-90, the total to float64.

    >>> total = WideOrderFreeSum((1,), largest=2.0**31)
    >>> for value in (1e9, 1e-9, -1e9): total.add(np.array([value]))
    >>> round(float(total.value()[0]), 15)
    1e-09
    """

    def __init__(self, shape: tuple[int, ...], largest: float) -> None:
        self._anchor = _ANCHOR_PER_TERM * largest
        self._coarse = OrderFreeSum(shape, largest)
        self._fine = OrderFreeSum(shape, largest * 2.0**-45)

    def add(self, values: NDArray[np.floating], at: slice | Int64 = slice(None), *, vouched: bool = False) -> None:
        """Add one array, or one for some entries of the first axis; `at` names no entry twice.

        Args:
            vouched: the caller knows that every value is below the bound.

        Raises:
            ValueError: a value that is too large or not finite, or the sum already has 2^17 terms.
        """
        coarse, fine = self._parts(values)
        self._coarse.add(coarse, at, vouched=vouched)
        self._fine.add(fine, at, vouched=vouched)

    def take(self, values: NDArray[np.floating], at: Int64) -> None:
        """Take terms that were added off again, as if they had never been."""
        coarse, fine = self._parts(values)
        self._coarse.take(coarse, at)
        self._fine.take(fine, at)

    def _parts(self, values: NDArray[np.floating]) -> tuple[Float64, Float64]:
        """What the coarse sum keeps of each value, and the rest; both differences are exact."""
        kept: Float64 = np.add(values, self._anchor, dtype=np.float64)
        kept -= self._anchor
        with np.errstate(invalid="ignore"):  # what is not finite is refused when it is added
            return kept, np.subtract(values, kept, dtype=np.float64)

    @property
    def terms(self) -> int:
        """How many arrays were added."""
        return self._coarse.terms

    def value(self) -> Float64:
        """The total."""
        return self._coarse.value() + self._fine.value()
