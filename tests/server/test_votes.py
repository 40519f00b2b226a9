"""Kept votes come back as they counted."""

import os
from dataclasses import replace

import numpy as np
import pytest

from server.votes import VotesError, VoteStore
from strategies.aggregator import Ballot
from strategies.messages import ClientReport
from strategies.soft_labels import SoftLabels

BALLOT = Ballot(np.array([2, 3, 5]), 3, clients=7, needed=2, round=4, seed=2**63)


def report(client="a", rows=(2, 5), round_=4, **told):
    votes = SoftLabels.from_logits(np.array(rows, np.int64), np.random.default_rng(0).normal(size=(len(rows), 3)))
    return ClientReport(client, round_, votes, **told)


def test_reports_and_ballot_come_back_bit_for_bit(tmp_path):
    store = VoteStore(tmp_path / "votes")
    kept = [
        report("b", weight=0.3, scores=np.array([0.1, 1 / 3]), counts=np.array([1.0, 0.0, 2.5])),
        report("ballot", rows=(), round_=3),  # late, and abstained from everything
        report("a-b"),
        report("a"),
        report("a.b", weight=np.array([0.5, 0.25])),
    ]
    for one in kept:
        store.keep(one, BALLOT)
    ((ballot, got),) = VoteStore(tmp_path / "votes").rounds()
    assert ballot.rows.tolist() == [2, 3, 5]
    assert (ballot.classes, ballot.clients, ballot.needed, ballot.round, ballot.seed) == (3, 7, 2, 4, 2**63)
    assert [one.client for one in got] == ["a", "a-b", "a.b", "b", "ballot"]
    for one in got:
        other = next(other for other in kept if other.client == one.client)
        assert one.round == other.round
        assert one.soft_labels.rows.tolist() == other.soft_labels.rows.tolist()
        assert one.soft_labels.log_probs.tobytes() == other.soft_labels.log_probs.tobytes()
        assert np.array_equal(one.weight, other.weight)
        for name in ("scores", "counts"):
            mine, theirs = getattr(one, name), getattr(other, name)
            assert (mine is None and theirs is None) or mine.tobytes() == theirs.tobytes()


def test_who_was_heard_in_the_round_comes_back(tmp_path):
    for round_, heard in ((1, None), (2, frozenset()), (3, frozenset({"a", "b c"}))):
        VoteStore(tmp_path).keep(report("a", round_=round_), replace(BALLOT, round=round_, heard=heard))
    assert [ballot.heard for ballot, _ in VoteStore(tmp_path).rounds()] == [None, frozenset(), {"a", "b c"}]


def test_rounds_come_in_their_order(tmp_path):
    store = VoteStore(tmp_path)
    for round_ in (100_000, 9, 10, 99_999):
        store.keep(report(round_=round_), Ballot(BALLOT.rows, 3, 1, round=round_))
    assert [ballot.round for ballot, _ in store.rounds()] == [9, 10, 99_999, 100_000]


def test_what_was_begun_and_not_finished_is_cut(tmp_path):
    store = VoteStore(tmp_path)
    for round_ in (1, 2, 3):
        store.keep(report(round_=round_), Ballot(BALLOT.rows, 3, 1, round=round_))
    store.cut(2)
    assert [ballot.round for ballot, _ in store.rounds()] == [1, 2]
    store.cut(0)
    assert list(store.rounds()) == []
    VoteStore(tmp_path / "nowhere").cut(5)


@pytest.mark.parametrize("name", ["ballot.safetensors", "client-a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"\x80\x04 pickle", None])
def test_a_broken_file_is_an_error(tmp_path, name, content):
    store = VoteStore(tmp_path)
    store.keep(report(), BALLOT)
    path = tmp_path / "round-00004" / name
    path.write_bytes(path.read_bytes()[:-5] if content is None else content)
    with pytest.raises(VotesError, match="round-00004 is broken"):
        list(store.rounds())


def test_a_missing_ballot_is_an_error(tmp_path):
    store = VoteStore(tmp_path)
    store.keep(report(), BALLOT)
    (tmp_path / "round-00004" / "ballot.safetensors").unlink()
    with pytest.raises(VotesError, match="is broken"):
        list(store.rounds())


def test_votes_of_another_ballot_are_an_error(tmp_path):
    store = VoteStore(tmp_path)
    store.keep(report(rows=(2, 4)), BALLOT)
    with pytest.raises(VotesError, match=r"round-00004 is broken .*rows"):
        list(store.rounds())


@pytest.mark.parametrize("name", ["round-old", "round-", "round-4", "round-00000", "round-00004 (copy)"])
@pytest.mark.parametrize("use", [lambda store: list(store.rounds()), lambda store: store.cut(0)])
def test_a_folder_that_is_no_rounds_is_an_error_and_stays(tmp_path, name, use):
    store = VoteStore(tmp_path)
    store.keep(report(), BALLOT)
    (tmp_path / name).mkdir()
    with pytest.raises(VotesError, match="is no folder of a round's votes: move it out of"):
        use(store)
    assert (tmp_path / name).is_dir()


def test_what_is_kept_is_synced_before_it_is_named(tmp_path, monkeypatch):
    # of each file and of its folder: a ballot and two votes are 6, the record 2 more
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    store = VoteStore(tmp_path)
    for client in "ab":
        store.keep(report(client), BALLOT)
    assert len(synced) == 6
    store.record({"a": [4]})
    assert len(synced) == 8


def test_the_record_of_the_forgotten_comes_back(tmp_path):
    store = VoteStore(tmp_path)
    assert store.forgotten() == {}
    store.record({"b": {3, 1}, "a": []})
    assert store.forgotten() == {"a": [], "b": [1, 3]}
    assert list(store.rounds()) == []


def test_the_files_of_some_clients_are_theirs_alone(tmp_path):
    store = VoteStore(tmp_path)
    for round_ in (1, 2):
        for client in ("a", "a-b", "ballot"):
            store.keep(report(client, round_=round_), Ballot(BALLOT.rows, 3, 3, round=round_))
    found = [path.relative_to(tmp_path).as_posix() for path in store.files_of({"a", "ballot", "nobody"})]
    assert sorted(found) == [
        *("round-00001/client-a.safetensors", "round-00001/client-ballot.safetensors"),
        *("round-00002/client-a.safetensors", "round-00002/client-ballot.safetensors"),
    ]
