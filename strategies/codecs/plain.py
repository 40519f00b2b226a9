"""Little-endian floating point blocks: what the float codecs share."""

from __future__ import annotations

import numpy as np

from strategies.soft_labels import LOG_FLOOR, Float32


def encode_as(dtype: str, log_probs: Float32) -> bytes:
    """[n, classes] floored at ln 1e-7, in row order, as `dtype` ("<f4", "<f2")."""
    return np.maximum(log_probs, np.float32(LOG_FLOOR)).astype(dtype).tobytes()


def decode_as(dtype: str, payload: bytes, rows: int, classes: int) -> Float32:
    """The block again as float32 [rows, classes].

    Raises:
        ValueError: wrong length.
    """
    expected = rows * classes * np.dtype(dtype).itemsize
    if len(payload) != expected:
        raise ValueError(f"payload has {len(payload)} bytes: {rows} x {classes} values of {dtype} are {expected}")
    return np.frombuffer(payload, dtype=dtype).reshape(rows, classes).astype(np.float32)
