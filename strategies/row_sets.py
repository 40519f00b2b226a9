"""Sets of row numbers as few bytes: a draw that both ends compute, a subset of one, or gaps."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np

from strategies.messages import Draw
from strategies.selection import drawn
from strategies.soft_labels import Int64

_GAPS, _DRAW, _SUBSET = 0, 1, 2
_DRAWN = struct.Struct("<BQIII")
_HEAD = struct.Struct("<BIBI")


def pack_rows(rows: Int64, draw: Draw | None = None) -> bytes:
    """The shortest of: gaps in the narrowest unsigned type; the draw that gives these rows; that draw with a bitmap.

    Args:
        rows: [n] strictly increasing, from 0, below 2^32.
        draw: which these rows are, or of which they are a subset.
    """
    found = [_gaps(rows)]
    if draw is not None:
        whole = drawn(draw)
        told = (draw.seed, draw.total, draw.offset, draw.count)
        if np.array_equal(whole, rows):
            found.append(_DRAWN.pack(_DRAW, *told))
        elif len(np.setdiff1d(rows, whole, assume_unique=True)) == 0:
            found.append(_DRAWN.pack(_SUBSET, *told) + np.packbits(np.isin(whole, rows)).tobytes())
    return min(found, key=len)


def unpack_rows(take: Callable[[int], bytes], most: int) -> tuple[Int64, Draw | None]:
    """The rows, and the draw that they came from.

    Args:
        take: gives the next so many bytes, or raises.
        most: row numbers must be below it; no more memory is taken than for so many rows.

    Raises:
        ValueError: no set of rows, one beyond `most`, or bytes that `pack_rows` never makes.
    """
    taken: list[bytes] = []

    def field(count: int) -> bytes:
        taken.append(take(count))
        return taken[-1]

    (kind,) = field(1)
    draw: Draw | None = None
    if kind == _GAPS:
        rows = _from_gaps(field, most)
    elif kind in (_DRAW, _SUBSET):
        rows, draw = _from_draw(field, most, subset=kind == _SUBSET)
    else:
        raise ValueError(f"a set of rows of kind {kind}")
    # One comparison for all that is left to doubt: fillings, wider gaps than needed, a longer form than the shortest.
    if pack_rows(rows, draw) != b"".join(taken):
        raise ValueError("a set of rows in another form than the shortest")
    return rows, draw


def _gaps(rows: Int64) -> bytes:
    if len(rows) == 0:
        return _HEAD.pack(_GAPS, 0, 1, 0)
    gaps = np.diff(rows)
    if rows[0] < 0 or rows[-1] >= 2**32 or (gaps <= 0).any():
        raise ValueError("rows must be strictly increasing from 0 and below 2^32")
    widest = int(gaps.max()) if len(gaps) else 1
    width = next(width for width in (1, 2, 4) if widest < 2 ** (8 * width))
    return _HEAD.pack(_GAPS, len(rows), width, int(rows[0])) + gaps.astype(f"<u{width}").tobytes()


def _from_draw(take: Callable[[int], bytes], most: int, *, subset: bool) -> tuple[Int64, Draw]:
    seed, total, offset, count = struct.unpack("<QIII", take(_DRAWN.size - 1))
    if total > most:
        raise ValueError(f"a draw from {total} rows where {most} are known")
    draw = Draw(seed, total, offset, count)
    if not subset:
        return drawn(draw), draw
    packed = np.frombuffer(take((count + 7) // 8), np.uint8)
    return drawn(draw)[np.unpackbits(packed, count=count).astype(bool)], draw


def _from_gaps(take: Callable[[int], bytes], most: int) -> Int64:
    count, width, first = struct.unpack("<IBI", take(_HEAD.size - 1))
    if width not in (1, 2, 4):
        raise ValueError(f"gaps of {width} bytes; 1, 2 or 4 are known")
    if count > most:
        raise ValueError(f"{count} rows where {most} are known")
    if count == 0:
        return np.empty(0, np.int64)
    gaps = np.frombuffer(take((count - 1) * width), f"<u{width}").astype(np.int64)
    if (gaps == 0).any():
        raise ValueError("a row twice")
    rows: Int64 = np.concatenate([[first], first + np.cumsum(gaps)]).astype(np.int64)
    if rows[-1] >= most:
        raise ValueError(f"row {int(rows[-1])} where {most} are known")
    return rows
