"""Numbers as columns of little-endian bytes, and such columns as a plain block: what several codecs share."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from strategies.soft_labels import Float32, Int64, UInt8


def byte_columns(values: NDArray[Any], dtype: str) -> UInt8:
    """[n, columns] numbers as `dtype` ("<f4", "<f2", "<u2", "u1"): [n, columns * itemsize] bytes."""
    width = values.shape[1] * np.dtype(dtype).itemsize
    return np.ascontiguousarray(values.astype(dtype)).view(np.uint8).reshape(len(values), width)


def from_byte_columns(columns: UInt8, dtype: str) -> NDArray[Any]:
    """The inverse of `byte_columns`."""
    width = columns.shape[1] // np.dtype(dtype).itemsize
    return np.ascontiguousarray(columns).view(dtype).reshape(len(columns), width)


def floats(columns: UInt8, dtype: str) -> Float32:
    """Columns of "<f2" or "<f4" as float32, whatever they hold."""
    # A signalling NaN warns in the first sum that it enters; adding 0 here leaves a quiet one for the caller to find.
    with np.errstate(invalid="ignore"):
        return from_byte_columns(columns, dtype).astype(np.float32) + np.float32(0)


def id_dtype(classes: int) -> str:
    """The type of a class number."""
    return "u1" if classes <= 256 else "<u2"


def id_alphabets(classes: int) -> Int64:
    """[1 or 2] alphabets of the bytes of a class number.

    >>> id_alphabets(10).tolist(), id_alphabets(1000).tolist()
    ([10], [256, 4])
    """
    return np.array([classes] if classes <= 256 else [256, -(-classes // 256)], np.int64)


def check_length(payload: bytes, expected: int) -> None:
    """Refuse a payload of another length.

    Raises:
        ValueError: it is not `expected` bytes long.
    """
    if len(payload) != expected:
        raise ValueError(f"payload has {len(payload)} bytes; {expected} expected")


def check_alphabets(symbols: UInt8, alphabets: Int64) -> None:
    """Refuse symbols that their columns do not have.

    Raises:
        ValueError: a symbol is not below its column's alphabet.
    """
    beyond = (symbols >= alphabets).any(axis=0)
    if beyond.any():
        column = int(beyond.argmax())
        raise ValueError(f"column {column} holds a symbol that is not below its alphabet of {alphabets[column]}")


def byte_block(payload: bytes, rows: int, alphabets: Int64) -> UInt8:
    """[rows, width] symbols of one byte each.

    Raises:
        ValueError: a wrong length, or a symbol that is not below its column's alphabet.
    """
    check_length(payload, rows * len(alphabets))
    symbols = np.frombuffer(payload, np.uint8).reshape(rows, len(alphabets))
    check_alphabets(symbols, alphabets)
    return symbols
