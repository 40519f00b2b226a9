"""Quantised: probabilities in steps of 1/(2^bits - 1) that still sum to 1; with one bit, the label alone.

Sattler et al. (2022), CFD: Communication-Efficient Federated Distillation via Soft-Label Quantization and Delta
Coding. Design reference 5.2, 5.3 and 5.5.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from strategies.codecs.bits import BitReader, bits_needed, to_bits, to_bytes
from strategies.codecs.compositions import compositions, ranks, unranked
from strategies.codecs.plain import (
    byte_columns,
    check_alphabets,
    check_length,
    from_byte_columns,
    id_alphabets,
    id_dtype,
)
from strategies.codecs.ties import order_keys
from strategies.soft_labels import LOG_FLOOR, Float32, Float64, Int64, UInt8

# Above this the enumerative code saves little and its numbers outgrow 64 bits.
_MOST_ENUMERATED = 16
# The share of uniform that keeps a level of 0 from decoding to "never".
_UNIFORM = 1e-4


@dataclass(frozen=True, slots=True)
class Quantised:
    """The nearest row q of multiples of 1/S that sums to 1, S = 2^bits - 1, in L1.

    Attributes:
        bits: of a level, in [1, 8]; 1 sends the most probable class.

    Guarantees:
        Round trip error: the probabilities move by at most classes / (2 S) + 2e-4 in L1.
        Of the nearest rows, a tie is decided by a hash of (row, class): no class is preferred.
    """

    bits: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise ValueError(f"bits={self.bits} must be in [1, 8]: use float16 for finer votes")

    @property
    def steps(self) -> int:
        """S: what the levels of a row sum to."""
        return (1 << self.bits) - 1

    def alphabets(self, classes: int) -> Int64:
        _check(classes)
        return id_alphabets(classes) if self.bits == 1 else np.full(classes - 1, self.steps + 1)

    def groups(self, classes: int) -> Int64:
        width = len(self.alphabets(classes))
        return np.arange(width) if self.bits == 1 else np.zeros(width, np.int64)

    def symbols(self, log_probs: Float32, rows: Int64) -> UInt8:
        classes = log_probs.shape[1]
        _check(classes)
        probs = np.exp(log_probs, dtype=np.float64)
        probs /= probs.sum(axis=1, keepdims=True)
        if self.bits == 1:
            labels = order_keys(probs, rows).argmin(axis=1)
            return byte_columns(labels[:, None], id_dtype(classes))
        return _levels(probs, rows, self.steps)[:, :-1].astype(np.uint8)

    def values(self, symbols: UInt8, classes: int) -> Float32:
        shares = self._rows_of_levels(symbols, classes) / self.steps
        mixed = (1.0 - _UNIFORM) * shares + _UNIFORM / classes
        return np.maximum(np.log(mixed), LOG_FLOOR).astype(np.float32)

    def size(self, rows: int, classes: int) -> int:
        return -(-rows * self._row_bits(classes) // 8)

    def pack(self, symbols: UInt8, classes: int) -> bytes:
        if self.bits == 1:
            return to_bytes(to_bits(from_byte_columns(symbols, id_dtype(classes)), self._row_bits(classes)))
        if self._enumerated(classes):
            numbers = ranks(self._rows_of_levels(symbols, classes), self.steps)
            return to_bytes(to_bits(numbers, self._row_bits(classes)))
        return to_bytes(to_bits(symbols, self.bits))

    def unpack(self, payload: bytes, rows: int, classes: int) -> UInt8:
        check_length(payload, self.size(rows, classes))
        reader = BitReader(payload)
        if self.bits == 1:
            labels = reader.take(rows, self._row_bits(classes))
            symbols = byte_columns(labels[:, None], id_dtype(classes))
        elif self._enumerated(classes):
            numbers = reader.take(rows, self._row_bits(classes)).astype(np.uint64)
            symbols = unranked(numbers, self.steps, classes)[:, :-1].astype(np.uint8)
        else:
            symbols = reader.take(rows * (classes - 1), self.bits).reshape(rows, classes - 1)
        reader.rest()
        check_alphabets(symbols, self.alphabets(classes))
        return symbols

    def sum_tolerance(self, classes: int) -> float:
        # The floor lifts up to classes - 1 entries by 1e-7 each.
        return 1e-3 + classes * 1e-7

    def _enumerated(self, classes: int) -> bool:
        return self.bits > 1 and classes <= _MOST_ENUMERATED and compositions(self.steps, classes) < 2**63

    def _row_bits(self, classes: int) -> int:
        _check(classes)
        if self.bits == 1:
            return bits_needed(classes)
        if self._enumerated(classes):
            return bits_needed(compositions(self.steps, classes))
        return self.bits * (classes - 1)

    def _rows_of_levels(self, symbols: UInt8, classes: int) -> Int64:
        """[n, classes] levels, each row summing to S."""
        _check(classes)
        if self.bits == 1:
            labels = from_byte_columns(symbols, id_dtype(classes)).astype(np.int64)
            if (labels >= classes).any():
                raise ValueError(f"label {labels.max()} must be below {classes}")
            chosen: Int64 = (labels == np.arange(classes)).astype(np.int64)
            return chosen
        levels = symbols.astype(np.int64)
        last = self.steps - levels.sum(axis=1, keepdims=True)
        if (last < 0).any():
            raise ValueError(f"the levels of a row sum to {self.steps - last.min()}; {self.steps} are there to give")
        return np.concatenate([levels, last], axis=1)


def _check(classes: int) -> None:
    if not 2 <= classes <= 2**16:
        raise ValueError(f"classes={classes} must be in [2, 65536] for quantised: use float16")


def _levels(probs: Float64, rows: Int64, steps: int) -> Int64:
    """Largest remainder: [n, classes] integers that sum to `steps` with steps * probs the nearest in L1.

    >>> _levels(np.array([[0.50, 0.30, 0.15, 0.05]]), np.array([0]), 7).tolist()
    [[4, 2, 1, 0]]
    """
    scaled = steps * probs
    # 1e-9: 0.3 / 0.1 = 2.9999999999999996 is three steps.
    levels: Int64 = np.floor(scaled + 1e-9).astype(np.int64)
    missing = steps - levels.sum(axis=1, keepdims=True)
    order = order_keys(scaled - levels, rows).argsort(axis=1, kind="stable")
    given = (np.arange(probs.shape[1]) < missing).astype(np.int64)
    extra = np.empty_like(levels)
    np.put_along_axis(extra, order, given, axis=1)
    levels += extra
    return levels
