"""Where noise comes from: the operating system's entropy, or a seed that makes a run a simulation, NOT PRIVATE."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

# 52 bits, not 53: u + 0.5 is then exact, where 2^53 - 0.5 would be rounded to 2^53, and its normal number be infinite.
_GRID = 2.0**-52


class Entropy(Protocol):
    """A stream of random bytes.

    Attributes:
        private: whether nobody can compute the stream again.
    """

    @property
    def private(self) -> bool: ...

    def bytes(self, count: int) -> bytes:
        """The next `count` bytes."""
        ...


class OsEntropy:
    """The operating system's generator; never saved, never repeated."""

    private = True

    def bytes(self, count: int) -> bytes:
        """Fresh bytes."""
        return os.urandom(count)


class SeededEntropy:
    """A stream that anyone who knows the seed and the names computes again: for simulations only.

    Args:
        seed: of the simulation, any whole number of at most 64 bits; all of them count.
        names: role, client, round, mechanism: what must not share noise must differ in one of them.
    """

    private = False

    def __init__(self, seed: int, *names: str | int) -> None:
        told = "\x00".join([str(seed), *(f"{type(name).__name__}:{name}" for name in names)])
        digest = hashlib.sha256(told.encode()).digest()
        self._generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))

    def bytes(self, count: int) -> bytes:
        """The stream's next bytes."""
        return self._generator.bytes(count)


@dataclass(frozen=True, slots=True)
class Draw:
    """Random numbers from a stream of bytes.

    Attributes:
        entropy: the stream.
    """

    entropy: Entropy

    def uniform(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """Numbers in (0, 1), the middles of 2^52 equal cells; never 0 or 1."""
        size = int(np.prod(shape, dtype=np.int64))
        words = np.frombuffer(self.entropy.bytes(8 * size), "<u8") >> np.uint64(12)
        uniform: NDArray[np.float64] = ((words.astype(np.float64) + 0.5) * _GRID).reshape(shape)
        return uniform

    def normal(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """Standard normal numbers, by the inverse distribution function."""
        from scipy.special import ndtri  # half a second, which a site without noise need not wait

        normal: NDArray[np.float64] = ndtri(self.uniform(shape))
        return normal
