"""Rows and clients of a round are functions of (seed, round), the same everywhere."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.selection import participants, proxy_rows, splitmix64


@given(st.integers(0, 2**63), st.integers(1, 1000), st.integers(1, 500), st.integers(1, 600))
def test_rows_are_distinct_ascending_and_inside_the_proxy(seed, round_, total, count):
    rows = proxy_rows(seed, round_, total, count)
    assert len(rows) == min(total, count)
    assert rows.dtype == np.int64
    assert (np.diff(rows) > 0).all()
    assert rows[0] >= 0
    assert rows[-1] < total


def test_rows_are_pinned_so_that_no_version_may_change_them():
    assert proxy_rows(1, 1, 100, 5).tolist() == [30, 70, 80, 98, 99]


def naive_rows(seed, round_, total, count):
    """The same in Python's own integers, one row at a time."""
    digest = hashlib.sha256()
    for part in (str(seed), "proxy-rows", str(round_)):
        digest.update(len(part).to_bytes(4, "little") + part.encode())
    start, mask = int.from_bytes(digest.digest()[:8], "little"), 2**64 - 1
    keys = []
    for row in range(total):
        h = (start + row * 0x9E3779B97F4A7C15) & mask
        h ^= h >> 30
        h = h * 0xBF58476D1CE4E5B9 & mask
        h ^= h >> 27
        h = h * 0x94D049BB133111EB & mask
        keys.append((h ^ (h >> 31), row))
    return sorted(row for _, row in sorted(keys)[:count])


@given(st.integers(0, 2**63), st.integers(1, 1000))
def test_rows_equal_the_naive_computation(seed, round_):
    assert proxy_rows(seed, round_, 60, 9).tolist() == naive_rows(seed, round_, 60, 9)


def test_every_row_is_drawn_equally_often():
    # 2,000 rounds x 10 of 100 rows: 200 each, standard deviation sqrt(2000 * .1 * .9) = 13.4; six of them are 80.
    counts = np.zeros(100)
    for round_ in range(2000):
        counts[proxy_rows(7, round_, 100, 10)] += 1
    assert np.abs(counts - 200).max() < 80


def test_splitmix64_is_the_published_one():
    # Steele et al.: seed 0 gives 0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F.
    golden = np.uint64(0x9E3779B97F4A7C15)
    mixed = splitmix64(np.arange(1, 4, dtype=np.uint64) * golden)
    assert [hex(int(value)) for value in mixed] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4", "0x6c45d188009454f"]


@pytest.mark.parametrize(("participation", "expected"), [(1.0, 30), (0.1, 3), (0.5, 15), (0.34, 11), (0.001, 1)])
def test_participation_is_rounded_up_and_never_nobody(participation, expected):
    names = [f"site-{i:03}" for i in range(30)]
    chosen = participants(3, 1, names, participation)
    assert len(chosen) == len(set(chosen)) == expected
    assert list(chosen) == sorted(chosen)
    assert set(chosen) <= set(names)
    assert participants(3, 1, names[::-1], participation) == chosen


def test_other_rounds_ask_other_clients():
    names = [f"site-{i:03}" for i in range(30)]
    assert len({participants(3, round_, names, 0.2) for round_ in range(1, 21)}) == 20
