"""Disagreement is the generalised Jensen-Shannon divergence of a row's votes, whatever their order."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.aggregator import Ballot
from strategies.disagreement import DisagreementMeter
from strategies.messages import ClientReport
from strategies.soft_labels import SoftLabels


def reports(clients, rows, classes, seed):
    rng = np.random.default_rng(seed)
    told = []
    for client in range(clients):
        own = rows[rng.uniform(size=len(rows)) < 0.7]
        votes = SoftLabels.from_logits(own, rng.normal(size=(len(own), classes)) * rng.uniform(0, 20))
        told.append(ClientReport(f"c{client}", 1, votes, weight=float(rng.uniform(0.001, 1))))
    return told


def measured(ballot, told):
    meter = DisagreementMeter(ballot)
    assert list(meter.listen(told)) == told
    return meter.value()


def entropy(p):
    return -sum(value * math.log(max(value, 1e-12)) for value in p)


def naive(ballot, told):
    """H(mean) - mean H, one row and one voter at a time; weights do not count."""
    values = []
    for row in ballot.rows:
        votes = [
            np.exp(report.soft_labels.log_probs[report.soft_labels.rows == row][0].astype(float))
            for report in told
            if row in report.soft_labels.rows
        ]
        if not votes:
            values.append(math.nan)
            continue
        mean = sum(votes) / len(votes)
        values.append(max(0.0, entropy(mean) - sum(entropy(vote) for vote in votes) / len(votes)))
    return values


@given(st.integers(0, 6), st.lists(st.integers(0, 30), max_size=8, unique=True), st.integers(2, 5), st.integers(0, 999))
@settings(max_examples=60)
def test_it_is_the_naive_loop_in_every_order_bitwise(clients, rows, classes, seed):
    ballot = Ballot(np.array(sorted(rows), np.int64), classes, max(1, clients))
    told = reports(clients, ballot.rows, classes, seed)
    got = measured(ballot, told)
    np.testing.assert_allclose(got, naive(ballot, told), atol=1e-10)
    shuffled = [told[index] for index in np.random.default_rng(seed).permutation(clients)]
    assert measured(ballot, shuffled).tobytes() == got.tobytes()
    assert ((got >= 0) & (got <= math.log(classes) + 1e-9) | np.isnan(got)).all()


def votes(*rows):
    return SoftLabels.from_logits(np.arange(len(rows)), np.log(np.array(rows)))


def test_one_mind_is_no_dispute_and_opposite_certainty_is_the_largest():
    ballot = Ballot(np.arange(3), 2, 2)
    sure, unsure = 1 - 1e-9, 1e-9
    one = ClientReport("a", 1, votes([0.7, 0.3], [sure, unsure], [0.5, 0.5]))
    other = ClientReport("b", 1, votes([0.7, 0.3], [unsure, sure], [0.5, 0.5]))
    # H(.5, .5) - 0 = ln 2 on the second row; two who are unsure in the same way do not disagree.
    assert measured(ballot, [one, other]) == pytest.approx([0.0, math.log(2), 0.0], abs=1e-7)


def test_a_row_that_nobody_votes_on_is_not_known():
    assert np.isnan(measured(Ballot(np.array([4]), 2, 1), [])).all()
