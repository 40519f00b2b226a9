"""Kept votes come back as they counted."""

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
