"""Top-k with a remainder: the k most probable classes, and what is left as one number.

The tail is spread evenly on decoding: it assumes nothing about the classes, where a prior tail would need public
frequencies. Design reference 5.4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from strategies.codecs.plain import (
    byte_block,
    byte_columns,
    floats,
    from_byte_columns,
    id_alphabets,
    id_dtype,
)
from strategies.codecs.ties import order_keys
from strategies.soft_labels import LOG_FLOOR, Float32, Int64, UInt8, floored


@dataclass(frozen=True, slots=True)
class TopK:
    """A row is k class numbers, ascending, then k float16 log-probabilities and the float16 log of the tail's mass.

    Attributes:
        k: classes kept, in [1, 65535] and below the number of classes.

    Guarantees:
        Round trip error: a kept log-probability moves by at most 2^-11 of itself; each other one becomes their mean.
        Who believes a vote then takes the log of its sum away from all of its classes, at most ln(classes) 2^-11.
        A tie for the last place is decided by a hash of (row, class): no class is preferred.
    """

    k: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.k < 2**16:
            raise ValueError(f"k={self.k} must be in [1, 65535]: it is the number of classes kept")

    def alphabets(self, classes: int) -> Int64:
        self._check(classes)
        return np.concatenate([np.tile(id_alphabets(classes), self.k), np.full(2 * (self.k + 1), 256)])

    def groups(self, classes: int) -> Int64:
        self._check(classes)
        of_id = len(id_alphabets(classes))
        return np.concatenate([np.tile(np.arange(of_id), self.k), np.tile([of_id, of_id + 1], self.k + 1)])

    def symbols(self, log_probs: Float32, rows: Int64) -> UInt8:
        classes = log_probs.shape[1]
        self._check(classes)
        values = floored(log_probs)
        keys = order_keys(1.0 - values.astype(np.float64) / LOG_FLOOR, rows)
        ids = np.sort(np.argpartition(keys, self.k - 1, axis=1)[:, : self.k], axis=1)
        rest = np.exp(log_probs, dtype=np.float64)
        np.put_along_axis(rest, ids, 0.0, axis=1)
        tail = np.log(np.maximum(rest.sum(axis=1, keepdims=True), math.exp(LOG_FLOOR)))
        logs = np.concatenate([np.take_along_axis(values, ids, axis=1), tail], axis=1)
        return np.concatenate([byte_columns(ids, id_dtype(classes)), byte_columns(logs, "<f2")], axis=1)

    def values(self, symbols: UInt8, classes: int) -> Float32:
        self._check(classes)
        of_ids = self.k * len(id_alphabets(classes))
        ids = from_byte_columns(symbols[:, :of_ids], id_dtype(classes)).astype(np.int64)
        if (ids >= classes).any() or (np.diff(ids, axis=1) <= 0).any():
            raise ValueError(f"the class numbers of a row must be ascending, different and below {classes}")
        logs = floats(symbols[:, of_ids:], "<f2")
        tail = logs[:, -1:] - np.float32(math.log(classes - self.k))
        # -inf is no mass that an encoder writes: it is left for the caller to refuse.
        values = np.repeat(np.where(np.isneginf(tail), tail, floored(tail)), classes, axis=1)
        np.put_along_axis(values, ids, logs[:, :-1], axis=1)
        return values

    def size(self, rows: int, classes: int) -> int:
        return rows * len(self.alphabets(classes))

    def pack(self, symbols: UInt8, classes: int) -> bytes:
        return symbols.tobytes()

    def unpack(self, payload: bytes, rows: int, classes: int) -> UInt8:
        return byte_block(payload, rows, self.alphabets(classes))

    def sum_tolerance(self, classes: int) -> float:
        # As float16 with k + 1 entries; the floor lifts the others by 1e-7 each.
        return 1e-3 + classes * 1e-7 + math.log(self.k + 1) * 2.0**-11

    def _check(self, classes: int) -> None:
        if self.k >= classes:
            raise ValueError(f"k={self.k} must be below the {classes} classes: use float16")
        if classes > 2**16:
            raise ValueError(f"classes={classes} must be at most 65536 for top-k: use float16")
