"""Exact samples of the discrete Gaussian: integers only, no float, no rounding (Canonne, Kamath and Steinke 2020)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privacy.noise import Entropy

# Standard deviations are rounded up to multiples of 1/1024, so that their squares are fractions of small numbers.
_PARTS = 1024
_BLOCK_BYTES = 4096


@dataclass(frozen=True, slots=True)
class DiscreteGaussian:
    """The law on the integers with Pr(x) proportional to exp(-x^2 / (2 std^2)).

    Its Renyi divergences are those of the normal law with this std, or smaller (their Proposition 5), so that a filter
    may charge events.Gaussian. A plan's epsilon is that of the normal law only nearly: within .4 % for an std of 4 and
    within .002 % for 64 (one integer that moves by 1 to 40, delta 1e-5; measured).

    Attributes:
        std: above 0, at most 2^32; rounded up to a multiple of 1/1024.

    Raises:
        ValueError: any other std.
    """

    std: float

    def __post_init__(self) -> None:
        if not 0.0 < self.std <= 2.0**32:
            raise ValueError(f"std={self.std} must be in (0, 2^32]")

    def draw(self, entropy: Entropy, count: int) -> NDArray[np.int64]:
        """[count] independent samples.

        Guarantees:
            Exactly this law if the bytes are uniform and independent. Not in constant time.
        """
        parts = math.ceil(self.std * _PARTS)
        numerator, denominator = parts * parts, _PARTS * _PARTS  # of the variance
        scale = parts // _PARTS + 1
        # Accept a Laplace draw y with probability exp(-(|y| - variance/scale)^2 / (2 variance)).
        whole = 2 * numerator * denominator * scale * scale
        bits = _Bits(entropy)
        samples: list[int] = []
        while len(samples) < count:
            y = _laplace(bits, scale)
            if _bernoulli_exp(bits, (abs(y) * scale * denominator - numerator) ** 2, whole):
                samples.append(y)
        return np.array(samples, dtype=np.int64)

    def pmf(self, values: NDArray[np.int64]) -> NDArray[np.float64]:
        """Probabilities of integers, in float64; for tests and audits.

        >>> DiscreteGaussian(1.0).pmf(np.array([0, 1, -1])).round(4).tolist()
        [0.3989, 0.242, 0.242]
        """
        variance = (math.ceil(self.std * _PARTS) / _PARTS) ** 2
        reach = math.ceil(12.0 * math.sqrt(variance)) + 1
        total = np.exp(-(np.arange(-reach, reach + 1, dtype=np.float64) ** 2) / (2.0 * variance)).sum()
        probabilities: NDArray[np.float64] = np.exp(-(values.astype(np.float64) ** 2) / (2.0 * variance)) / total
        return probabilities


class _Bits:
    """Uniform whole numbers from a stream of bytes."""

    def __init__(self, entropy: Entropy) -> None:
        self._entropy, self._block, self._at = entropy, b"", 0

    def below(self, bound: int) -> int:
        """A number from 0 to bound - 1, all alike: drawn again until it fits."""
        bits = (bound - 1).bit_length()
        size = (bits + 7) // 8
        while True:
            if self._at + size > len(self._block):
                self._block, self._at = self._entropy.bytes(_BLOCK_BYTES), 0
            drawn = int.from_bytes(self._block[self._at : self._at + size], "little") >> (8 * size - bits)
            self._at += size
            if drawn < bound:
                return drawn


def _bernoulli_exp(bits: _Bits, numerator: int, denominator: int) -> bool:
    """True with probability exp(-numerator/denominator)."""
    ones, rest = divmod(numerator, denominator)
    return all(_bernoulli_small(bits, 1, 1) for _ in range(ones)) and _bernoulli_small(bits, rest, denominator)


def _bernoulli_small(bits: _Bits, numerator: int, denominator: int) -> bool:
    """The same for a fraction of at most 1: the series of exp, one coin a term; True if the first tails is odd."""
    term = 1
    while bits.below(denominator * term) < numerator:
        term += 1
    return term % 2 == 1


def _laplace(bits: _Bits, scale: int) -> int:
    """A whole number with Pr(x) proportional to exp(-|x|/scale)."""
    while True:
        rest = bits.below(scale)
        if not _bernoulli_small(bits, rest, scale):
            continue
        size = rest
        while _bernoulli_small(bits, 1, 1):
            size += scale
        negative = bits.below(2) == 1
        if not (negative and size == 0):  # 0 would otherwise come twice as often
            return -size if negative else size
