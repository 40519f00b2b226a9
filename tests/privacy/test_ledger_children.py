"""A data set that shares records with another one: its ledger begins with what that one has paid, and closes it."""

import json
import math
import sqlite3
from dataclasses import replace

import pytest

from privacy.chain import canonical, chained
from privacy.events import Gaussian, merged, times
from privacy.ledger import BudgetExceeded, Ledger, LedgerUnavailable, Request, Terms, TermsDiffer

COUNT = Terms("record", "zero_out", "count", None, None, None, False)
FILTER = Terms("record", "zero_out", "filter", 3.0, 1e-5, 7, False)
PLAN = Terms("record", "zero_out", "plan", 3.0, 1e-5, None, False)


def request(round_=1, attempt=0, run="run"):
    return Request(run, round_, attempt, "site-a", "dp-sgd", "{}", "ab" * 32)


@pytest.fixture
def make(tmp_path):
    def make(terms, name="ledger.sqlite", **more):
        return Ledger.create(tmp_path / name, terms, durable=False, **more)

    return make


def test_a_ledger_says_from_whom_it_comes_to_whom_it_went_and_what_nobody_paid(make, tmp_path):
    make(FILTER, "first", unpaid_before=2).close()
    make(FILTER, "second", parent=tmp_path / "first", unpaid_before=3).close()
    make(FILTER, "third", parent=tmp_path / "second").close()
    first, second, third = (Ledger.open(tmp_path / name, durable=False) for name in ("first", "second", "third"))
    assert first.lineage == (first.data_set,)
    assert third.lineage == (third.data_set, second.data_set, first.data_set)
    assert (first.child, second.child, third.child) == (second.data_set, third.data_set, "")
    assert (first.unpaid_before, second.unpaid_before, third.unpaid_before) == (2, 5, 5)


def test_a_ledger_that_was_made_before_these_were_written_says_none(make, tmp_path):
    """Its first row, as it was: without a line of ancestors and without a number of unpaid answers."""
    make(FILTER, "first").close()
    make(FILTER, "second", parent=tmp_path / "first").close()
    with sqlite3.connect(tmp_path / "second") as db:
        db.execute("DROP TRIGGER rows_no_update")
        (text,) = db.execute("SELECT body FROM rows WHERE seq = 1").fetchone()
        told = json.loads(text)
        del told["unpaid_before"], told["parent"]["lineage"]
        body = canonical(told)
        head = chained(bytes(32), 1, b"OPEN", b"", body.encode())
        db.execute("UPDATE rows SET body = ?, head = ? WHERE seq = 1", (body, head))
        db.execute(
            "CREATE TRIGGER rows_no_update BEFORE UPDATE ON rows BEGIN SELECT RAISE(ABORT, 'rows are only added'); END"
        )
    db.close()
    with Ledger.open(tmp_path / "first", durable=False) as old, Ledger.open(tmp_path / "second") as ledger:
        assert (ledger.unpaid_before, ledger.lineage) == (0, (ledger.data_set, old.data_set))


def test_only_the_child_that_a_ledger_was_closed_for_is_its_child(make, tmp_path):
    path = tmp_path / "ledger.sqlite"
    make(PLAN).close()
    make(PLAN, "stranger").close()
    with pytest.raises(TermsDiffer, match=r"was not made from .*, and what that one has spent is not in it"):
        Ledger.open_or_create(tmp_path / "stranger", PLAN, parent=path, durable=False)
    child = Ledger.open_or_create(tmp_path / "child", PLAN, parent=path, durable=False)
    child.insist(PLAN, path)
    child.close()
    Ledger.open_or_create(tmp_path / "child", PLAN, parent=path, durable=False).close()
    with pytest.raises(LedgerUnavailable), child:
        child.insist(PLAN, tmp_path / "moved")
    with pytest.raises(TermsDiffer, match="was not made from"):
        Ledger.open_or_create(tmp_path / "stranger", PLAN, parent=tmp_path / "child", durable=False)


def test_a_child_begins_with_all_that_its_parent_spent_and_continues_its_plans(make, tmp_path):
    event = Gaussian(20.0, 1)
    with make(PLAN) as parent:
        for name in ("old", "new"):
            parent.plan(name, (times(event, 3),), 5e-6)
        parent.reserve(request(1), (times(event, 2),))
        parent.reserve(request(2), (event,), plan="old")
        told = parent.charged(), parent.epsilon(), parent.events(), parent.plans()
    with make(PLAN, "child", parent=tmp_path / "ledger.sqlite") as child:
        assert (child.charged(), child.epsilon(), child.events(), child.plans()) == told
        assert child.data_set != parent.data_set
        assert (child.count(), child.count("run")) == (2, 0)
        assert [row.body.get("inherited") for row in child.rows()] == [None, *4 * [parent.data_set]]
        child.store(child.reserve(request(1), (event,)), b"votes")
        with pytest.raises(BudgetExceeded):
            child.reserve(request(2), (event,))
        child.reserve(request(2), (times(event, 2),), plan="old")
        child.verify()


@pytest.mark.parametrize("terms", [FILTER, COUNT])
def test_a_childs_child_has_paid_for_both(make, tmp_path, terms):
    events = (Gaussian(20.0, 1),) if terms.mode == "filter" else ()
    parent, names = None, ("first", "second", "third")
    for name in names:
        with make(terms, name, parent=parent) as ledger:
            ledger.reserve(request(1), events)
            parent = tmp_path / name
    with Ledger.open(parent, durable=False) as last:
        assert last.events() == merged(events * 3)
        assert last.count() == 3
        assert last.epsilon() == (
            math.inf if terms.mode == "count" else pytest.approx(3 * 7 / 800 + 1.440352, abs=1e-6)
        )


def test_a_parent_answers_no_more_but_still_sends_again(make, tmp_path):
    with make(PLAN) as parent:
        parent.plan("all", (Gaussian(20.0, 9),), 5e-6)
        parent.store(parent.reserve(request(1), (Gaussian(20.0, 1),)), b"votes")
        open_token = parent.reserve(request(2), (Gaussian(20.0, 1),))
        make(PLAN, "child", parent=tmp_path / "ledger.sqlite").close()
        for spend in (
            lambda: parent.reserve(request(3), (Gaussian(20.0, 1),)),
            lambda: parent.reserve(request(3), ()),
            lambda: parent.plan("more", (Gaussian(90.0, 1),), 1e-6),
        ):
            with pytest.raises(BudgetExceeded, match="was handed on to data set"):
                spend()
        assert parent.left((Gaussian(20.0, 1),)) == 0
        parent.plan("all", (Gaussian(20.0, 9),))
        assert parent.reserve(request(1), (Gaussian(20.0, 1),)).payload == b"votes"
        parent.store(open_token, b"late votes")
        parent.verify()
    with pytest.raises(BudgetExceeded, match="was handed on"):
        make(PLAN, "second child", parent=tmp_path / "ledger.sqlite")
    with Ledger.open(tmp_path / "child", durable=False) as child:
        assert child.events() == (Gaussian(20.0, 2),)


def test_a_child_that_was_not_made_before_its_process_died_is_made_the_next_time(make, tmp_path, monkeypatch):
    with make(FILTER) as parent:
        parent.reserve(request(1), (Gaussian(20.0, 1),))
    with monkeypatch.context() as patch:
        patch.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError("the disk is gone")))
        with pytest.raises(LedgerUnavailable, match="the disk is gone"):
            make(FILTER, "child", parent=tmp_path / "ledger.sqlite")
    assert [file.name for file in tmp_path.iterdir()] == ["ledger.sqlite"]
    with make(FILTER, "child", parent=tmp_path / "ledger.sqlite") as child, parent:
        assert child.events() == parent.events() == (Gaussian(20.0, 1),)
        assert next(reversed(list(parent.rows()))).body["child"] == child.data_set


def test_a_parent_stays_in_use_if_its_child_has_no_place(make, tmp_path):
    path = tmp_path / "ledger.sqlite"
    with make(FILTER):
        pass
    with pytest.raises(LedgerUnavailable, match="there is a ledger at"):
        make(FILTER, parent=path)
    with Ledger.open(path, durable=False) as ledger:
        ledger.reserve(request(1), (Gaussian(20.0, 1),))


@pytest.mark.parametrize("changed", [{"epsilon": 8.0}, {"delta": 1e-6}, {"unit": "patient"}, {"seeded": True}])
def test_a_child_has_its_parents_terms(make, tmp_path, changed):
    with make(FILTER) as parent:
        before = parent.head()
    with pytest.raises(TermsDiffer, match=next(iter(changed))):
        make(replace(FILTER, **changed), "child", parent=tmp_path / "ledger.sqlite")
    with parent:
        assert parent.head() == before
    assert [file.name for file in tmp_path.iterdir()] == ["ledger.sqlite"]
