"""What is left of a run without some clients: their votes out, the count of the others' checked."""

import numpy as np
import pytest

from server.forget import Counted, without
from server.votes import VotesError, VoteStore
from strategies.aggregator import Ballot
from strategies.messages import ClientReport
from strategies.soft_labels import SoftLabels

ROWS = np.array([2, 3, 5])


@pytest.fixture
def votes(tmp_path):
    """Two rounds of a, b and c; in the second one c has not answered."""
    store = VoteStore(tmp_path / "votes")
    for round_, clients in ((1, "abc"), (2, "ab")):
        for client in clients:
            labels = SoftLabels.from_logits(ROWS, np.random.default_rng(0).normal(size=(3, 2)))
            store.keep(ClientReport(client, round_, labels), Ballot(ROWS, 2, 3, round=round_))
    return store


def clients(remainder):
    return [[report.client for report in reports] for _, reports in remainder.rounds]


SYNC = [Counted(3, 0), Counted(2, 0)]


def test_nobody_else_is_left_out(votes):
    left = without(votes, ["c"], SYNC)
    assert (clients(left), left.gone) == ([["a", "b"], ["a", "b"]], {"c": {1}})
    assert [ballot.round for ballot, _ in left.rounds] == [1, 2]


def test_who_was_recorded_stays_out(votes):
    votes.record({"a": [1, 2]})
    left = without(votes, ["c"], SYNC)
    assert (clients(left), left.gone) == ([["b"], ["b"]], {"a": {1, 2}, "c": {1}})


def test_votes_of_a_later_round_do_not_count(votes):
    left = without(votes, ["b"], SYNC[:1])
    assert (clients(left), left.gone) == ([["a", "c"]], {"b": {1}})


# Two reports are kept of round 2. With a late answer they may be three answers, one client's late and fresh one being
# one report, or one answer, and a vote of an earlier round that counted again; but no fresh one is without a report.
@pytest.mark.parametrize(
    ("counted", "fits"),
    [
        ((2, 0), True),
        ((3, 0), False),
        ((1, 0), False),
        ((3, 1), True),
        ((4, 1), False),
        ((2, 2), True),
        ((1, 1), True),
    ],
)
def test_as_many_votes_must_be_kept_as_were_counted(votes, counted, fits):
    said = [SYNC[0], Counted(*counted)]
    if fits:
        assert len(without(votes, ["a"], said).rounds) == 2
    else:
        says = f"round 2 of .* holds votes of 2 clients and metrics.csv counted {counted[0]} answers, {counted[1]} of"
        with pytest.raises(VotesError, match=says):
            without(votes, ["a"], said)


def test_a_round_in_which_nobody_answered_in_time_has_no_ballot(votes):
    assert without(votes, ["a"], [*SYNC, Counted(0, 0)]).rounds[2] == (None, [])


def test_deleted_files_of_a_recorded_client_are_not_missed_and_others_are(votes):
    votes.record({"a": [1, 2]})
    for path in votes.files_of({"a"}):
        path.unlink()
    assert clients(without(votes, ["a"], SYNC)) == [["b", "c"], ["b"]]
    (path,) = votes.files_of({"c"})
    path.unlink()
    with pytest.raises(VotesError, match=r"round 1 of .* holds votes of 2 clients and metrics.csv counted 3"):
        without(votes, ["a"], SYNC)


def test_who_has_no_vote_has_nothing_to_be_forgotten(votes):
    with pytest.raises(VotesError, match=r"client 'd' has no vote in .*: nothing is to be forgotten"):
        without(votes, ["a", "d"], SYNC)


def test_a_folder_without_votes_is_refused(tmp_path):
    with pytest.raises(VotesError, match=r"holds no votes: run with federation.keep_votes = true"):
        without(VoteStore(tmp_path), ["a"], SYNC)
