"""SCARLET's cache: one predicate for who is asked, what is filed and what is sent."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.cache import LabelCache
from strategies.selection import drawn, proxy_draw
from strategies.soft_labels import SoftLabels


def labels(rows, round_):
    """Labels from which row and round can be read."""
    rows = np.asarray(rows, np.int64)
    return SoftLabels.from_logits(rows, np.stack([rows * 0.01, np.full(len(rows), round_ * 0.1)], axis=1))


class NaiveCache:
    """The protocol of the design reference, 5.8, one row at a time."""

    def __init__(self, duration):
        self.duration, self.label, self.made = duration, {}, {}

    def fresh(self, row, round_):
        return row in self.made and round_ - self.made[row] < self.duration

    def round(self, rows, round_, answered):
        asked = [row for row in rows if not self.fresh(row, round_)]
        for row, label in zip(asked, labels(asked, round_).log_probs.tolist(), strict=True):
            if row in answered:
                self.label[row], self.made[row] = label, round_
        reach = 2 * self.duration if self.duration > 1 else 1
        teacher = [row for row in rows if row in self.made and round_ - self.made[row] < reach]
        return asked, {row: self.label[row] for row in teacher}


@given(
    st.integers(0, 6),
    st.lists(st.tuples(st.sets(st.integers(0, 11)), st.sets(st.integers(0, 11))), min_size=1, max_size=25),
)
@settings(max_examples=200)
def test_asked_filed_and_sent_are_those_of_the_naive_cache(duration, rounds):
    cache, naive = LabelCache.empty(12, 2, duration), NaiveCache(duration)
    for round_, (drawn_rows, answered) in enumerate(rounds, start=1):
        rows = np.array(sorted(drawn_rows), np.int64)
        asked = cache.stale(rows, round_)
        met = np.array([row for row in asked if row in answered], np.int64)
        before = cache.made.copy()
        cache = cache.filed(labels(met, round_), round_)
        teacher = cache.teacher(rows, round_)
        naive_asked, naive_teacher = naive.round(sorted(drawn_rows), round_, answered)
        assert asked.tolist() == naive_asked
        assert dict(zip(teacher.rows.tolist(), teacher.log_probs.tolist(), strict=True)) == naive_teacher
        # asked <=> filed, for who met the quorum; nothing else is touched, nothing is blanked
        assert set(np.flatnonzero(cache.made != before).tolist()) == set(met.tolist())
        assert (cache.made >= before).all()
        # fresh <=> not asked, and everything that is fresh is sent
        assert set(rows[cache.fresh(rows, round_)].tolist()) <= set(teacher.rows.tolist())


@pytest.mark.parametrize("duration", [0, 1])
def test_no_label_is_used_twice_where_the_duration_is_none_or_one(duration):
    cache = LabelCache.empty(5, 2, duration)
    rows = np.arange(5)
    for round_ in range(1, 6):
        assert cache.stale(rows, round_).tolist() == rows.tolist()
        answered = rows[: round_ % 5]
        cache = cache.filed(labels(answered, round_), round_)
        teacher = cache.teacher(rows, round_)
        assert teacher.rows.tolist() == answered.tolist()
        assert teacher.log_probs.tobytes() == labels(answered, round_).log_probs.tobytes()


@pytest.mark.parametrize("duration", [2, 5, 50])
def test_a_row_without_quorum_keeps_its_label_until_twice_the_duration_and_then_leaves(duration):
    row = np.array([3])
    cache = LabelCache.empty(5, 2, duration).filed(labels(row, 1), 1)
    for round_ in range(1, 3 * duration):
        age = round_ - 1
        assert bool(cache.fresh(row, round_)[0]) == (age < duration)
        assert len(cache.stale(row, round_)) == (age >= duration)
        teacher = cache.teacher(row, round_)  # nobody answered
        assert len(teacher.rows) == (age < 2 * duration)
    # and comes back with its next label
    assert cache.filed(labels(row, 99), 99).teacher(row, 99).log_probs.tobytes() == labels(row, 99).log_probs.tobytes()


@pytest.mark.parametrize("duration", [10, 50, 200])
def test_the_share_of_asked_rows_is_the_expected_one(duration):
    # Rows are drawn with rate phi = .1; a row is asked, is fresh for D - 1 rounds, then waits 1/phi for its next draw:
    # asked once in D - 1 + 1/phi rounds, drawn phi (D - 1) + 1 times meanwhile. So 1 / (1 + .1 (D - 1)):
    # .5263, .1695, .0478. SCARLET's code with two comparisons and blanks would need .3000 at D = 50.
    total, count, rounds = 2000, 200, 12 * duration + 200
    cache, asked, all_drawn = LabelCache.empty(total, 2, duration), 0, 0
    for round_ in range(1, rounds + 1):
        rows = drawn(proxy_draw(11, round_, total, count))
        stale = cache.stale(rows, round_)
        cache = cache.filed(labels(stale, round_), round_)
        assert len(cache.teacher(rows, round_).rows) == count
        if round_ > 2 * duration:  # once the first labels have spread out
            asked, all_drawn = asked + len(stale), all_drawn + count
    assert asked / all_drawn == pytest.approx(1 / (1 + 0.1 * (duration - 1)), rel=0.05)
