"""Whole numbers in as many bits as they need, most significant bit first."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from strategies.soft_labels import UInt8


def bits_needed(count: int) -> int:
    """Bits that tell `count` things apart: ceil(log2(count)).

    >>> [bits_needed(count) for count in (1, 2, 10, 256)]
    [0, 1, 4, 8]
    """
    return (count - 1).bit_length()


def to_bits(numbers: NDArray[Any], width: int) -> UInt8:
    """Unsigned numbers below 2^width, of any shape, as [size * width] zeros and ones.

    >>> to_bits(np.array([5, 1], np.uint8), 3).tolist()
    [1, 0, 1, 0, 0, 1]
    """
    big_endian = np.ascontiguousarray(numbers, numbers.dtype.newbyteorder(">")).reshape(-1, 1)
    bits = np.unpackbits(big_endian.view(np.uint8), axis=1)
    return bits[:, bits.shape[1] - width :].ravel()


def to_bytes(bits: UInt8) -> bytes:
    """Zeros and ones in bytes, the last one filled up with zeros."""
    return np.packbits(bits).tobytes()


class BitReader:
    """Takes numbers off bytes; only the bytes that are asked for are spread into bits."""

    def __init__(self, payload: bytes) -> None:
        self._bytes = np.frombuffer(payload, np.uint8)
        self._at = 0

    def take(self, count: int, width: int) -> NDArray[Any]:
        """[count] unsigned numbers of `width` bits each: uint8 up to 8 bits, else uint64.

        Raises:
            ValueError: fewer bits are left.
        """
        end = self._at + count * width
        if end > 8 * len(self._bytes):
            raise ValueError(f"{count} numbers of {width} bits where {8 * len(self._bytes) - self._at} bits are left")
        first = self._at // 8
        bits = np.unpackbits(self._bytes[first : -(-end // 8)])[self._at - 8 * first : end - 8 * first]
        self._at = end
        dtype = ">u8" if width > 8 else ">u1"
        spread = np.zeros((count, 8 * np.dtype(dtype).itemsize), np.uint8)
        spread[:, spread.shape[1] - width :] = bits.reshape(count, width)
        numbers = np.packbits(spread, axis=1).view(dtype).reshape(count)
        return numbers.astype(numbers.dtype.newbyteorder("="))

    def one(self, width: int) -> int:
        """One number.

        Raises:
            ValueError: fewer bits are left.
        """
        return int(self.take(1, width)[0])

    def rest(self) -> bytes:
        """The whole bytes after the one that was begun; its other bits must be zero.

        Raises:
            ValueError: they are not.
        """
        if self._at % 8 and self.take(1, -self._at % 8).any():
            raise ValueError("the bits that fill up a byte must be zero")
        return self._bytes[self._at // 8 :].tobytes()
