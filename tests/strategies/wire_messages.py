"""Messages that the wire's tests build, and how they break them."""

import struct
import zlib

import numpy as np

from strategies.believing import vote_symbols
from strategies.messages import RoundPlan, Sync
from strategies.soft_labels import SoftLabels
from strategies.tables import Table
from strategies.wire import decode_plan

RUN, PROXY, CLASSES = "0123456789abcdef" * 2, "a1" * 32, "b2" * 32
ROWS = np.array([0, 5, 300])


def soft(rows, classes=3, seed=0):
    rows = np.array(rows, np.int64)
    return SoftLabels.from_logits(rows, np.random.default_rng(seed).normal(size=(len(rows), classes)))


def plan(rows=ROWS, teachers=(), **changed):
    told = {"uplink": "float32", "downlink": "float32", **changed}
    round_ = told.pop("round", 2)
    return RoundPlan(RUN, round_, PROXY, CLASSES, 3, np.array(rows, np.int64), teachers=teachers, **told)


def sync_plan(spec="quantised:1+delta+entropy", base=1, **changed):
    teacher = soft(ROWS)
    symbols = vote_symbols(teacher, spec)
    table = Table.empty(1000, symbols.shape[1]).changed(1, ROWS, symbols)
    return plan(sync=Sync(base, ROWS, table.digest(ROWS), ROWS[1:], symbols[1:]), downlink=spec, **changed)


def sealed(blob, change):
    """`blob` with its body changed and length and checksum made right again: a liar, not a broken line."""
    body = bytearray(blob[10:-4])
    change(body)
    message = blob[:6] + struct.pack("<I", len(body)) + bytes(body)
    return message + struct.pack("<I", zlib.crc32(message))


def put(at, data):
    """A change that writes `data` at `at`, from the end where that is negative."""

    def change(body):
        start = at if at >= 0 else len(body) + at
        body[start : start + len(data)] = data

    return change


def decoded(blob):
    return decode_plan(blob, 2**20, 3)
