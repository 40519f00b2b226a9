"""float16: two bytes a value; log-probabilities and not probabilities, which would underflow for sure rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from strategies.codecs.plain import byte_block, byte_columns, floats
from strategies.soft_labels import Float32, Int64, UInt8, floored


@dataclass(frozen=True, slots=True)
class Float16:
    """Round trip error: at most 2^-11 of a log-probability, 0.008 nats at the floor of ln 1e-7.

    Whoever believes a vote then takes the log of its sum away from all of its classes, at most ln(classes) 2^-11.
    """

    def alphabets(self, classes: int) -> Int64:
        return np.full(2 * classes, 256)

    def groups(self, classes: int) -> Int64:
        return np.tile(np.arange(2), classes)

    def symbols(self, log_probs: Float32, rows: Int64) -> UInt8:
        return byte_columns(floored(log_probs), "<f2")

    def values(self, symbols: UInt8, classes: int) -> Float32:
        return floats(symbols, "<f2")

    def size(self, rows: int, classes: int) -> int:
        return 2 * rows * classes

    def pack(self, symbols: UInt8, classes: int) -> bytes:
        return symbols.tobytes()

    def unpack(self, payload: bytes, rows: int, classes: int) -> UInt8:
        return byte_block(payload, rows, self.alphabets(classes))

    def sum_tolerance(self, classes: int) -> float:
        # The sum moves by at most sum p |ln p| 2^-11 = H(p) 2^-11, and H(p) <= ln(classes).
        return 1e-3 + classes * 1e-7 + math.log(classes) * 2.0**-11
