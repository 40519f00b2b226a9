"""Rows and clients of a round are functions of (seed, round), the same everywhere."""

import hashlib
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.messages import Draw
from strategies.selection import CHOICES, disputed_rows, drawn, participants, proxy_draw, splitmix64


def proxy_rows(seed, round_, total, count, choice="random"):
    return drawn(proxy_draw(seed, round_, total, count, choice))


@given(
    st.integers(0, 2**63),
    st.integers(1, 1000),
    st.integers(1, 500),
    st.integers(1, 600),
    st.sampled_from(["random", "fixed", "epoch"]),
)
def test_rows_are_distinct_ascending_and_inside_the_proxy(seed, round_, total, count, choice):
    rows = proxy_rows(seed, round_, total, count, choice)
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


@given(st.integers(0, 2**64 - 1), st.integers(0, 200), st.data())
def test_consecutive_ranks_of_one_draw_share_no_row_and_together_have_all(seed, total, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, total), max_size=4)))
    edges = [0, *cuts, total]
    parts = [drawn(Draw(seed, total, low, high - low)) for low, high in itertools.pairwise(edges)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(total))


def test_a_draw_can_be_changed_by_who_asked_for_it():
    draw = Draw(1, 50, 0, 20)
    first = drawn(draw)
    first[:] = -1  # nobody else's array
    assert drawn(draw).min() >= 0


@pytest.mark.parametrize(("total", "count"), [(100, 10), (103, 10), (10, 10), (10, 30)])
def test_epoch_serves_each_row_once_an_epoch(total, count):
    blocks = total // min(count, total)
    for epoch in range(3):
        seen = np.concatenate(
            [proxy_rows(5, epoch * blocks + block + 1, total, count, "epoch") for block in range(blocks)]
        )
        assert len(seen) == len(set(seen.tolist())) == blocks * min(count, total)
    if blocks > 1:
        # Another order in another epoch.
        assert (
            proxy_rows(5, 1, total, count, "epoch").tolist()
            != proxy_rows(5, blocks + 1, total, count, "epoch").tolist()
        )


def test_rows_that_fill_no_block_have_their_turn_in_other_epochs():
    # 13 rows in blocks of 5: two blocks an epoch, 3 rows wait; in 40 epochs a row waits 40 * 3/13 = 9.2 times.
    seen = np.zeros(13)
    for round_ in range(1, 81):
        seen[proxy_rows(2, round_, 13, 5, "epoch")] += 1
    assert seen.sum() == 400
    assert seen.min() >= 20


def test_fixed_is_constant_and_another_seed_is_another_choice():
    told = {tuple(proxy_rows(3, round_, 100, 10, "fixed")) for round_ in range(1, 30)}
    assert len(told) == 1
    assert tuple(proxy_rows(4, 1, 100, 10, "fixed")) not in told


def test_disputed_rows_are_chosen_and_unknown_ones_are_drawn():
    nan = float("nan")
    disagreement = np.array([0.1, 0.9, nan, 0.5, nan, 0.0, 0.8, nan, nan, 0.2])
    # Four rows: the two most disputed are 1 (.9) and 6 (.8); two more are drawn among the other eight.
    drawn_too = set()
    for round_ in range(1, 60):
        rows = disputed_rows(7, round_, disagreement, 4)
        assert rows.tolist() == sorted(set(rows.tolist()))
        assert len(rows) == 4
        assert {1, 6} <= set(rows.tolist())
        drawn_too |= set(rows.tolist()) - {1, 6}
    assert drawn_too == {0, 2, 3, 4, 5, 7, 8, 9}


def test_where_nothing_is_known_rows_are_drawn():
    unknown = np.full(50, np.nan)
    told = [tuple(disputed_rows(7, round_, unknown, 10)) for round_ in (1, 2, 1)]
    assert told[0] == told[2] != told[1]
    assert len(told[0]) == 10


def test_equal_disputes_are_not_decided_by_the_row_number():
    chosen = np.zeros(40)
    for round_ in range(400):
        chosen[disputed_rows(7, round_, np.ones(40), 8)] += 1
    # 400 * 8/40 = 80 times each, standard deviation 8; five of them are 40.
    assert np.abs(chosen - 80).max() < 40


@given(st.integers(0, 30), st.integers(0, 40), st.integers(0, 99))
def test_disputed_rows_are_those_of_the_naive_choice(total, count, seed):
    rng = np.random.default_rng(seed)
    disagreement = np.where(rng.uniform(size=total) < 0.3, np.nan, rng.permutation(total).astype(float))
    rows = disputed_rows(1, 2, disagreement, count)
    assert len(rows) == min(total, count)
    known = sorted(
        (row for row in range(total) if disagreement[row] == disagreement[row]), key=lambda r: -disagreement[r]
    )
    assert set(known[: min(total, count) // 2]) <= set(rows.tolist())


def test_splitmix64_is_the_published_one():
    # Steele et al.: seed 0 gives 0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F.
    golden = np.uint64(0x9E3779B97F4A7C15)
    mixed = splitmix64(np.arange(1, 4, dtype=np.uint64) * golden)
    assert [hex(int(value)) for value in mixed] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4", "0x6c45d188009454f"]


@pytest.mark.parametrize(("participation", "expected"), [(1.0, 30), (0.1, 3), (0.5, 15), (0.34, 11), (0.001, 2)])
def test_participation_is_rounded_up_and_never_one_alone(participation, expected):
    names = [f"site-{i:03}" for i in range(30)]
    chosen = participants(3, 1, names, participation)
    assert len(chosen) == len(set(chosen)) == expected
    assert list(chosen) == sorted(chosen)
    assert set(chosen) <= set(names)
    assert participants(3, 1, names[::-1], participation) == chosen


def test_other_rounds_ask_other_clients():
    names = [f"site-{i:03}" for i in range(30)]
    assert len({participants(3, round_, names, 0.2) for round_ in range(1, 21)}) == 20


def test_every_choice_has_its_law_here():
    assert CHOICES == ("random", "fixed", "epoch", "disagreement")
