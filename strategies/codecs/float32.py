"""float32: exact down to ln 1e-7; four bytes a value."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from strategies.codecs.plain import byte_block, byte_columns, floats
from strategies.soft_labels import Float32, Int64, UInt8, floored


@dataclass(frozen=True, slots=True)
class Float32Codec:
    """Round trip error: 0 above the floor of ln 1e-7.

    A receiver believes these bits as they are where the row sums to 1 within 1e-6. Rounding alone keeps it there; the
    floored classes, 1e-7 each, may not: then the receiver subtracts the log of the sum, and a second trip changes
    nothing above the floor.
    """

    def alphabets(self, classes: int) -> Int64:
        return np.full(4 * classes, 256)

    def groups(self, classes: int) -> Int64:
        return np.tile(np.arange(4), classes)

    def symbols(self, log_probs: Float32, rows: Int64) -> UInt8:
        return byte_columns(floored(log_probs), "<f4")

    def values(self, symbols: UInt8, classes: int) -> Float32:
        return floats(symbols, "<f4")

    def size(self, rows: int, classes: int) -> int:
        return 4 * rows * classes

    def pack(self, symbols: UInt8, classes: int) -> bytes:
        return symbols.tobytes()

    def unpack(self, payload: bytes, rows: int, classes: int) -> UInt8:
        return byte_block(payload, rows, self.alphabets(classes))

    def sum_tolerance(self, classes: int) -> float:
        # The floor lifts up to classes - 1 entries by 1e-7 each.
        return 1e-3 + classes * 1e-7
