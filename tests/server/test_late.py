"""Late answers and those that they are late for, put together by client, compared with a table of single votes."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from server.late import Awaited, together
from strategies.messages import ClientReport, RoundPlan
from strategies.soft_labels import SoftLabels

ROUND = 6
REPORTS = st.dictionaries(
    st.tuples(st.sampled_from("abc"), st.integers(1, ROUND)),
    st.tuples(st.sets(st.integers(0, 5)), st.sampled_from([0.001, 0.25, 1.0]), st.booleans()),
    max_size=9,
)


@given(cast=REPORTS, scored=st.booleans(), order=st.randoms(use_true_random=False))
def test_on_every_row_a_client_has_its_newest_vote(cast, scored, order):
    def report(client, round_, rows, weight):
        rng = np.random.default_rng([ord(client), round_])
        rows = np.array(sorted(rows), np.int64)
        votes = SoftLabels.from_logits(rows, rng.normal(size=(6, 3))[rows])
        scores = rng.random(6)[rows] if scored else None
        return ClientReport(client, round_, votes, weight, scores, counts=np.full(3, float(round_)))

    reports = {key: report(*key, rows, weight) for key, (rows, weight, _) in cast.items()}
    new = {key for key, (_, _, comes) in cast.items() if comes or key[1] == ROUND}
    believed, held = ([reports[key] for key in cast if (key in new) is now] for now in (True, False))
    order.shuffle(believed), order.shuffle(held)
    got = {one.client: one for one in together(believed, held, ROUND, 0.5)}

    late = {row for client, round_ in new if round_ < ROUND for row in cast[client, round_][0]}
    for client in "abc":
        mine = sorted((round_ for name, round_ in cast if name == client), reverse=True)
        counted = {}  # row: round
        for round_ in mine:
            for row in cast[client, round_][0]:
                if row in late or round_ == ROUND:
                    counted.setdefault(row, round_)
        heard = [round_ for round_ in mine if (client, round_) in new or late & cast[client, round_][0]]
        assert (client in got) == bool(heard)
        if not heard:
            continue
        one = got[client]
        assert one.round == heard[0]
        assert one.counts.tolist() == [heard[0]] * 3
        assert one.soft_labels.rows.tolist() == sorted(counted)
        for index, (row, round_) in enumerate(sorted(counted.items())):
            origin = reports[client, round_]
            at = origin.soft_labels.rows.tolist().index(row)
            assert one.soft_labels.log_probs[index].tolist() == origin.soft_labels.log_probs[at].tolist()
            left = origin.weight * (1 + ROUND - round_) ** -0.5
            assert np.broadcast_to(one.weight, len(counted))[index] == left
            assert one.scores is None or one.scores[index] == origin.scores[at]


def test_reports_are_held_from_the_oldest_pending_plan_on():
    def plan(round_):
        return RoundPlan("ab" * 16, round_, "a1" * 32, "b2" * 32, 3, np.arange(2))

    def report(round_):
        return ClientReport("a", round_, SoftLabels.from_logits(np.arange(2), np.zeros((2, 3))))

    awaited = Awaited({"b": plan(2), "c": plan(4)}, [report(round_) for round_ in (1, 2, 3, 4)])
    assert awaited.closed(4, patience=3) == []
    assert [one.round for one in awaited.held] == [2, 3, 4]
    assert [(failure.client, failure.reason) for failure in awaited.closed(5, patience=3)] == [("b", "late")]
    assert (list(awaited.pending), [one.round for one in awaited.held]) == (["c"], [4])
    awaited.closed(7, patience=3)
    assert (awaited.pending, awaited.held) == ({}, [])
