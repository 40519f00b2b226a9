"""One data set has one ledger, or a line of them: a second one that begins anew is refused where it can be seen."""

import json
import logging
import shutil

import pytest

from client.config import SiteConfigError
from client.node import Node
from distillation.learner import TorchLearner
from privacy.ledger import Ledger
from strategies.messages import LedgerHead, Refusal
from strategies.wire import decode_answer, encode_plan

MARKER = "private.safetensors.ledger"


def ledger(site_file, name="ledger.sqlite"):
    return Ledger.open(site_file.parent / name, durable=False)


def data_set(site_file, name="ledger.sqlite"):
    with ledger(site_file, name) as opened:
        return opened.data_set


def told(site_file, plan):
    return decode_answer(Node.open(site_file).answer(encode_plan(plan)))


def answered(site_file, plan):
    return not isinstance(told(site_file, plan), Refusal)


@pytest.fixture
def paid(site_file, make_plan, promise):
    """A site that has given one of its three answers."""
    promise()
    assert answered(site_file, make_plan(site_file))
    return site_file


def test_the_marker_says_which_ledger_was_paid_into_before_a_row_is_touched(site_file, make_plan, promise, monkeypatch):
    promise()
    Node.open(site_file)
    marker, fit, seen = site_file.parent / MARKER, TorchLearner.fit, []
    assert not marker.exists()  # nothing is paid yet
    monkeypatch.setattr(TorchLearner, "fit", lambda *args, **more: seen.append(marker.exists()) or fit(*args, **more))
    assert answered(site_file, make_plan(site_file))
    assert seen == [True]
    assert json.loads(marker.read_text()) == {"data_set": data_set(site_file), "ledger": "ledger.sqlite"}


@pytest.mark.parametrize("there", [False, True])
def test_a_second_ledger_for_the_same_rows_is_refused_when_the_site_opens(paid, promise, there):
    if there:
        with ledger(paid) as opened:
            Ledger.create(paid.parent / "l2.sqlite", opened.terms, durable=False).close()
    promise(ledger="l2.sqlite")
    (paid.parent / "state" / "state.safetensors").unlink()
    found = "goes on from data set" if there else "is not there"
    sentence = rf"privacy\.ledger='l2\.sqlite' {found}.*put that one back; or, .*privacy\.parent='ledger\.sqlite'"
    with pytest.raises(SiteConfigError, match=sentence):
        Node.open(paid)
    assert (paid.parent / "l2.sqlite").exists() is there


def test_a_ledger_that_is_gone_is_missed_when_the_site_opens_and_while_it_is_open(paid, make_plan, code_of):
    node = Node.open(paid)
    (paid.parent / "ledger.sqlite").rename(paid.parent / "away")
    (paid.parent / "state" / "state.safetensors").unlink()
    with pytest.raises(SiteConfigError, match=r"is not there, and the private rows have paid .* put that one back$"):
        Node.open(paid)
    assert [code_of(node, make_plan(paid, round=2)) for _ in range(2)] == ["storage_error", "ledger_rolled_back"]
    assert not (paid.parent / "ledger.sqlite").exists()
    (paid.parent / "away").rename(paid.parent / "ledger.sqlite")
    assert answered(paid, make_plan(paid, round=2))


def test_a_site_that_was_open_before_another_ledger_was_paid_into_notices_it(
    site_file, make_plan, promise, change, code_of
):
    change(site_file, state="other")
    promise(ledger="l2.sqlite")
    early = Node.open(site_file)
    change(site_file, state="state")
    promise()
    assert answered(site_file, make_plan(site_file))
    assert code_of(early, make_plan(site_file, round=2)) == "ledger_rolled_back"
    assert not (site_file.parent / "l2.sqlite").exists()


def test_a_ledger_may_move_and_the_marker_follows(paid, make_plan, promise):
    (paid.parent / "ledger.sqlite").rename(paid.parent / "moved.sqlite")
    promise(ledger="moved.sqlite")
    assert answered(paid, make_plan(paid, round=2))
    assert json.loads((paid.parent / MARKER).read_text())["ledger"] == "moved.sqlite"


def test_rows_in_another_folder_are_a_copy_that_nothing_is_known_of(paid, make_plan, promise, change, tmp_path):
    shutil.copy(paid.parent / "private.safetensors", tmp_path / "copy.safetensors")
    change(paid, private=str(tmp_path / "copy.safetensors"), state="other")
    promise(ledger="l2.sqlite")
    assert answered(paid, make_plan(paid, round=2))


def test_where_the_folder_cannot_be_written_the_site_goes_on_and_says_so_once(
    site_file, make_plan, promise, monkeypatch, caplog
):
    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("client.marker.write_atomically", refuse)
    promise()
    with caplog.at_level(logging.WARNING, "consilium.node"):
        assert all(answered(site_file, make_plan(site_file, round=round_)) for round_ in (1, 2, 3))
    (said,) = (record.getMessage() for record in caplog.records if "second ledger" in record.getMessage())
    assert "cannot be written (Permission denied): nothing guards these rows" in said


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"data_set": "x"}'])
def test_a_marker_that_says_nothing_is_refused_and_not_taken_for_none(paid, content):
    (paid.parent / MARKER).write_text(content)
    with pytest.raises(SiteConfigError, match="should say which ledger the private rows have paid into: restore it"):
        Node.open(paid)


# ---- parents


def test_a_new_version_of_the_rows_goes_on_from_what_the_old_one_has_spent(paid, make_plan, promise, code_of):
    (paid.parent / "state" / "state.safetensors").unlink()
    promise(ledger="new.sqlite", parent="ledger.sqlite")
    old = data_set(paid)
    for round_ in (2, 3):
        assert answered(paid, make_plan(paid, round=round_))
    assert code_of(Node.open(paid), make_plan(paid, round=4)) == "budget_out"  # three answers in all
    with ledger(paid) as parent, ledger(paid, "new.sqlite") as child:
        assert child.lineage == (child.data_set, old)
        assert parent.child == child.data_set
        assert child.events()[0].count == 3 * 6
    assert json.loads((paid.parent / MARKER).read_text())["data_set"] == data_set(paid, "new.sqlite")


def test_the_coordinators_echo_of_the_old_ledger_is_looked_up_there(paid, make_plan, promise):
    with ledger(paid) as opened:
        head = opened.head()
    promise(ledger="new.sqlite", parent="ledger.sqlite")
    answer = told(paid, make_plan(paid, round=2, ledger=LedgerHead(head.seq, head.digest)))
    assert not isinstance(answer, Refusal)
    assert answered(paid, make_plan(paid, round=3, ledger=answer.ledger))
    invented = told(paid, make_plan(paid, round=4, ledger=LedgerHead(head.seq, bytes(32))))
    assert invented.code == "ledger_rolled_back"


def test_an_answer_that_the_parent_paid_for_and_never_sealed_is_its_own(paid, make_plan, promise, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "store", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            Node.open(paid).answer(encode_plan(make_plan(paid, round=2)))
    promise(ledger="new.sqlite", parent="ledger.sqlite")
    assert answered(paid, make_plan(paid, round=3))


def test_who_goes_back_to_the_parent_is_refused(paid, make_plan, promise):
    promise(ledger="new.sqlite", parent="ledger.sqlite")
    assert answered(paid, make_plan(paid, round=2))
    promise()
    with pytest.raises(SiteConfigError, match="have paid into that of data set"):
        Node.open(paid)


def test_a_child_that_is_gone_is_not_made_a_second_time(paid, make_plan, promise, code_of):
    promise(ledger="new.sqlite", parent="ledger.sqlite")
    assert answered(paid, make_plan(paid, round=2))
    (paid.parent / "new.sqlite").unlink()
    with pytest.raises(SiteConfigError, match=r"goes on from data set .*put that one back"):
        Node.open(paid)
    (paid.parent / MARKER).unlink()  # the site's own state still knows
    assert code_of(Node.open(paid), make_plan(paid, round=3)) == "ledger_rolled_back"
    assert not (paid.parent / "new.sqlite").exists()


def test_a_ledger_that_is_not_the_parents_child_is_refused(paid, promise):
    with ledger(paid) as opened:
        Ledger.create(paid.parent / "stranger.sqlite", opened.terms, durable=False).close()
    promise(parent="stranger.sqlite")
    with pytest.raises(SiteConfigError, match=r"privacy\.parent='stranger\.sqlite': .* was not made from .*stranger"):
        Node.open(paid)


@pytest.mark.parametrize("made", [False, True])
def test_a_parent_that_is_not_there_is_refused(paid, make_plan, promise, made):
    promise(ledger="new.sqlite", parent="ledger.sqlite")
    if made:
        assert answered(paid, make_plan(paid, round=2))
    (paid.parent / "ledger.sqlite").rename(paid.parent / "away")
    with pytest.raises(SiteConfigError, match=r"privacy\.parent='ledger\.sqlite' is not there: put it back"):
        Node.open(paid)


def test_nobody_is_its_own_parent(promise):
    with pytest.raises(ValueError, match=r"parent='ledger\.sqlite' is the ledger itself"):
        promise(parent="ledger.sqlite")


def test_a_parent_of_other_terms_has_no_such_child(paid, make_plan, promise, code_of):
    promise(ledger="new.sqlite", parent="ledger.sqlite", epsilon=8.0)
    assert code_of(Node.open(paid), make_plan(paid, round=2)) == "internal_error"
    assert not (paid.parent / "new.sqlite").exists()
