"""A set of rows travels in its shortest form, and in no other."""

import struct
import tracemalloc
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.messages import Draw
from strategies.row_sets import pack_rows, unpack_rows
from strategies.selection import drawn

GAPS, DRAW, SUBSET = 0, 1, 2


def unpacked(blob, most):
    """Rows and draw of exactly these bytes."""
    left = [blob]

    def take(count):
        if count > len(left[0]):
            raise ValueError("too short")
        piece, left[0] = left[0][:count], left[0][count:]
        return piece

    rows, draw = unpack_rows(take, most)
    assert left[0] == b""
    return rows, draw


def lengths(rows, draw):
    """Bytes of every form that a set has, counted by hand."""
    widest = int(np.diff(rows).max(initial=1))
    width = 1 if widest < 256 else 2 if widest < 65536 else 4
    found = {GAPS: 10 + max(0, len(rows) - 1) * width}
    if draw is not None:
        whole = set(drawn(draw).tolist())
        if set(rows.tolist()) == whole:
            found[DRAW] = 21
        elif set(rows.tolist()) < whole:
            found[SUBSET] = 21 + -(-draw.count // 8)
    return found


@st.composite
def draws(draw):
    total = draw(st.integers(0, 3000))
    count = draw(st.integers(0, total))
    return Draw(draw(st.integers(0, 2**64 - 1)), total, draw(st.integers(0, total - count)), count)


@given(draws(), st.sampled_from(["all", "some", "others", "none"]), st.data())
@settings(max_examples=300)
def test_every_set_comes_back_in_its_shortest_form(draw, kind, data):
    rows = drawn(draw)
    if kind == "some":
        rng = np.random.default_rng(data.draw(st.integers(0, 99)))
        rows = rows[rng.uniform(size=len(rows)) < data.draw(st.sampled_from([0.02, 0.5, 0.9]))]
    elif kind == "others":
        rows = np.array(sorted(data.draw(st.sets(st.integers(0, 2**20), max_size=30))), np.int64)
    elif kind == "none":
        rows = rows[:0]
    most = max(draw.total, int(rows.max(initial=0)) + 1)
    blob, forms = pack_rows(rows, draw), lengths(rows, draw)
    assert len(blob) == min(forms.values())
    assert len(blob) == forms[blob[0]]
    got, told = unpacked(blob, most)
    assert got.tolist() == rows.tolist()
    assert got.dtype == np.int64
    assert told == (None if blob[0] == GAPS else draw)


def test_each_form_is_the_shortest_of_some_set():
    draw = Draw(3, 10_000, 0, 1000)
    rows = drawn(draw)
    assert [pack_rows(rows[:count], draw)[0] for count in (1000, 900, 20)] == [DRAW, SUBSET, GAPS]
    assert len(pack_rows(rows, draw)) == 21
    assert len(pack_rows(rows[:900], draw)) == 21 + 125


@given(st.binary(max_size=60), st.integers(0, 2000))
@settings(max_examples=300)
def test_any_bytes_are_refused_or_the_one_form_of_their_rows(blob, most):
    with suppress(ValueError):
        rows, draw = unpacked(blob, most)
        assert pack_rows(rows, draw) == blob
        assert rows.max(initial=-1) < most


@given(draws(), st.integers(0, 10**9), st.data())
@settings(max_examples=200)
def test_any_change_of_a_byte_is_refused_or_another_set_in_its_one_form(draw, seed, data):
    kept = np.random.default_rng(seed).uniform(size=draw.count) < 0.8
    blob = bytearray(pack_rows(drawn(draw)[kept], draw))
    at = data.draw(st.integers(0, len(blob) - 1))
    blob[at] = data.draw(st.integers(0, 255))
    with suppress(ValueError, AssertionError):  # too short, too long
        rows, told = unpacked(bytes(blob), draw.total)
        assert pack_rows(rows, told) == bytes(blob)


TEN = Draw(5, 100, 0, 10)


@pytest.mark.parametrize(
    ("blob", "says"),
    [
        (b"\x03", "kind 3"),
        (struct.pack("<BIBI", GAPS, 2, 3, 0) + bytes(3), "gaps of 3 bytes"),
        (struct.pack("<BIBI", GAPS, 3, 1, 0) + b"\x01\x00", "a row twice"),
        (struct.pack("<BIBI", GAPS, 2, 1, 90) + b"\x0a", "row 100 where 100 are known"),
        (struct.pack("<BIBI", GAPS, 101, 1, 0) + bytes(100), "101 rows where 100 are known"),
        (struct.pack("<BIBI", GAPS, 2, 2, 0) + b"\x05\x00", "another form"),  # a gap of 5 fits one byte
        (struct.pack("<BIBI", GAPS, 0, 1, 7), "another form"),  # nothing has no first row
        (struct.pack("<BIBI", GAPS, 0, 4, 0), "another form"),
        (struct.pack("<BIBI", GAPS, 1, 2, 7), "another form"),  # one row has no gaps
        (struct.pack("<BQIII", DRAW, 5, 101, 0, 10), "a draw from 101 rows where 100 are known"),
        (struct.pack("<BQIII", DRAW, 5, 100, 91, 10), "ranks 91 to 100 of 100 rows"),
        (struct.pack("<BQIII", DRAW, 5, 100, 0, 10), "another form"),  # ten rows are 19 bytes as gaps
        (struct.pack("<BQIII", SUBSET, 5, 100, 0, 40) + b"\xff" * 5, "another form"),  # all of them: a draw
        (struct.pack("<BQIII", SUBSET, 5, 100, 0, 39) + b"\xff" * 4 + b"\xfd", "another form"),  # a bit beyond
        (struct.pack("<BQIII", SUBSET, 5, 100, 0, 40) + bytes(5), "another form"),  # none of them: no gaps
        (struct.pack("<BQIII", SUBSET, 5, 100, 0, 40), "too short"),
    ],
)
def test_other_forms_are_refused(blob, says):
    with pytest.raises(ValueError, match=says):
        unpacked(blob, 100)


@pytest.mark.parametrize("rows", [(3, 2), (2, 2), (-1, 2), (1, 2**32)])
def test_rows_that_cannot_be_coded_are_refused(rows):
    with pytest.raises(ValueError, match="strictly increasing"):
        pack_rows(np.array(rows))


@pytest.mark.parametrize(
    "told", [(-1, 10, 0, 1), (2**64, 10, 0, 1), (0, 2**32, 0, 1), (0, 10, -1, 1), (0, 10, 0, -1), (0, 10, 5, 6)]
)
def test_a_draw_out_of_bounds_is_never_made(told):
    with pytest.raises(ValueError, match=r"out of bounds|too many"):
        Draw(*told)


def test_a_draw_from_two_to_the_32_rows_takes_no_memory():
    tracemalloc.start()
    for blob in (
        struct.pack("<BQIII", DRAW, 1, 2**32 - 1, 0, 2**32 - 1),
        struct.pack("<BQIII", SUBSET, 1, 2**32 - 1, 0, 2**32 - 1),
        struct.pack("<BIBI", GAPS, 2**32 - 1, 1, 0),
    ):
        with pytest.raises(ValueError, match="are known"):
            unpacked(blob, 1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50_000
