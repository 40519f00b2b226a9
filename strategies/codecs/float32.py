"""float32: exact down to ln 1e-7; four bytes a value."""

from __future__ import annotations

from dataclasses import dataclass

from strategies.codecs.plain import decode_as, encode_as
from strategies.soft_labels import Float32


@dataclass(frozen=True, slots=True)
class Float32Codec:
    """Round trip error: 0 above the floor of ln 1e-7."""

    def size(self, rows: int, classes: int) -> int:
        return 4 * rows * classes

    def sum_tolerance(self, classes: int) -> float:
        # The floor lifts up to classes - 1 entries by 1e-7 each.
        return 1e-3 + classes * 1e-7

    def encode(self, log_probs: Float32) -> bytes:
        return encode_as("<f4", log_probs)

    def decode(self, payload: bytes, rows: int, classes: int) -> Float32:
        return decode_as("<f4", payload, rows, classes)
