"""float16: two bytes a value; log-probabilities and not probabilities, which would underflow for sure rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

from strategies.codecs.plain import decode_as, encode_as
from strategies.soft_labels import Float32


@dataclass(frozen=True, slots=True)
class Float16:
    """Round trip error: at most 2^-11 of a log-probability, 0.008 nats at the floor of ln 1e-7."""

    def size(self, rows: int, classes: int) -> int:
        return 2 * rows * classes

    def sum_tolerance(self, classes: int) -> float:
        # The sum moves by at most sum p |ln p| 2^-11 = H(p) 2^-11, and H(p) <= ln(classes).
        return 1e-3 + classes * 1e-7 + math.log(classes) * 2.0**-11

    def encode(self, log_probs: Float32) -> bytes:
        return encode_as("<f2", log_probs)

    def decode(self, payload: bytes, rows: int, classes: int) -> Float32:
        return decode_as("<f2", payload, rows, classes)
