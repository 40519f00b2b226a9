"""From a plan to one teacher: the whole one, the nearest ones, or what a difference makes of what is held."""

from dataclasses import replace

import numpy as np
import pytest

from client.teaching import empty_table, teacher_of
from privacy.policy import PolicyError
from strategies.believing import believe_symbols, vote_symbols
from strategies.messages import RoundPlan, Sync
from strategies.soft_labels import SoftLabels
from strategies.tables import Table

SPEC = "quantised:2+delta+entropy"
ROWS = np.array([1, 4, 6])


def soft(rows=ROWS, seed=0):
    return SoftLabels.from_logits(np.array(rows), np.random.default_rng(seed).normal(size=(len(rows), 3)))


def plan(**changed):
    return RoundPlan("ab" * 16, 5, "a1" * 32, "b2" * 32, 3, np.arange(4), downlink=SPEC, **changed)


def nobody(rows):
    pytest.fail("there is nothing to choose")


def synced(base, labels, changed, round_=5):
    """A plan whose difference makes a table say `labels`."""
    symbols = vote_symbols(labels, SPEC)
    news = symbols[np.isin(labels.rows, changed)]
    digest = Table.empty(10, 2).changed(1, labels.rows, symbols).digest(labels.rows)
    return replace(plan(sync=Sync(base, labels.rows, digest, np.array(changed, np.int64), news)), round=round_)


def test_no_teacher_and_a_whole_one():
    assert teacher_of(plan(), None, 10, nobody) == (None, None)
    told = soft()
    table = Table.empty(10, 2)
    assert teacher_of(plan(teachers=(told,)), table, 10, nobody) == (told, table)


def test_of_several_teachers_the_nearest_is_taken_row_by_row_and_ties_go_to_the_first():
    first = SoftLabels.from_logits(ROWS, np.log([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.6, 0.2, 0.2]]))
    second = SoftLabels.from_logits(ROWS, np.log([[0.1, 0.1, 0.8], [0.2, 0.6, 0.2], [0.2, 0.6, 0.2]]))
    own = SoftLabels.from_logits(ROWS, np.log([[0.2, 0.2, 0.6], [0.1, 0.8, 0.1], [0.4, 0.4, 0.2]]))
    asked = []
    got, _ = teacher_of(plan(teachers=(first, second)), None, 10, lambda rows: asked.append(rows) or own)
    assert asked[0].tolist() == ROWS.tolist()
    assert got.rows.tolist() == ROWS.tolist()
    # the second is nearer on the first row; the last row is as far from both
    for row, expected in enumerate((second, first, first)):
        assert got.log_probs[row].tolist() == expected.log_probs[row].tolist()


def test_a_difference_to_nothing_needs_nothing_and_forgets_what_was_held():
    labels = soft()
    wrong = Table.empty(10, 2).changed(4, np.arange(10), np.full((10, 2), 3, np.uint8))
    for table in (None, wrong, Table.empty(3, 7)):
        teacher, after = teacher_of(synced(0, labels, ROWS), table, 10, nobody)
        meant = believe_symbols(ROWS, vote_symbols(labels, SPEC), SPEC, 3)
        assert teacher.log_probs.tobytes() == meant.log_probs.tobytes()
        assert after.round == 5
        assert not after.symbols[[0, 2, 3, 5, 7, 8, 9]].any()


def test_a_difference_changes_what_is_held_and_leaves_the_rest():
    before, now = soft(seed=1), soft(seed=2)
    held = Table.empty(10, 2).changed(3, ROWS, vote_symbols(before, SPEC))
    mixed = SoftLabels(ROWS, np.stack([before.log_probs[0], now.log_probs[1], now.log_probs[2]]))
    teacher, after = teacher_of(synced(3, mixed, ROWS[1:]), held, 10, nobody)
    meant = believe_symbols(ROWS, vote_symbols(mixed, SPEC), SPEC, 3)
    assert teacher.log_probs.tobytes() == meant.log_probs.tobytes()
    assert held.round == 3  # what is held is not changed in place: the answer may still fail
    assert held.symbols[ROWS].tobytes() == vote_symbols(before, SPEC).tobytes()
    assert after.digest(ROWS) == synced(3, mixed, ROWS[1:]).sync.digest
    # a table that already has it, and more, gives the same: the answer before was lost
    again, _ = teacher_of(synced(3, mixed, ROWS[1:]), replace(after, round=4), 10, nobody)
    assert again.log_probs.tobytes() == teacher.log_probs.tobytes()


@pytest.mark.parametrize(
    "table",
    [
        None,  # wiped
        Table.empty(10, 2),  # never told anything
        Table.empty(10, 2).changed(2, ROWS, vote_symbols(soft(), SPEC)),  # an older backup
        Table.empty(10, 1).changed(4, ROWS, np.ones((3, 1), np.uint8)),  # of another codec
        Table.empty(9, 2).changed(4, ROWS, vote_symbols(soft(), SPEC)),  # of another proxy set
        # the right round of another history: a coordinator that went back to an older checkpoint
        Table.empty(10, 2).changed(4, ROWS, vote_symbols(soft(seed=9), SPEC)),
    ],
)
def test_a_difference_to_something_else_is_refused(table):
    labels = soft()
    with pytest.raises(PolicyError) as caught:
        teacher_of(synced(3, labels, ROWS[:1]), table, 10, nobody)
    assert caught.value.code == "need_key"


def test_symbols_that_mean_no_distribution_are_a_bad_teacher():
    symbols = np.frombuffer(np.full((3, 3), np.nan, "<f2").tobytes(), np.uint8).reshape(3, 6)
    digest = Table.empty(10, 6).changed(1, ROWS, symbols).digest(ROWS)
    told = replace(plan(sync=Sync(0, ROWS, digest, ROWS, symbols)), downlink="float16")
    with pytest.raises(PolicyError) as caught:
        teacher_of(told, None, 10, nobody)
    assert caught.value.code == "bad_teacher"


def test_a_table_has_a_row_for_whatever_is_voted_on():
    assert empty_table(plan(), 10, "float16").symbols.shape == (10, 6)
    assert empty_table(plan(subject="classes"), 10, "quantised:1").symbols.shape == (3, 1)
