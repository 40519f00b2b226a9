"""Tables of classes instead of proxy rows: leave-one-out means, by heads and by counts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.aggregator import Ballot
from strategies.aggregators import build_aggregator
from strategies.messages import ClientReport
from strategies.soft_labels import SoftLabels
from tests.strategies.trust import capped


def table(client, rows, counts):
    """A report: class -> mean softmax on the client's own samples of it."""
    labels = SoftLabels.from_logits(np.array(sorted(rows), np.int64), np.log([rows[c] for c in sorted(rows)]))
    return ClientReport(client, 1, labels, counts=np.array(counts, float))


# The design reference: class 1 counts 30, 50, 20; class 2 counts 10, none, 30.
REPORTS = [
    table("1", {0: (0.9, 0.1), 1: (0.2, 0.8)}, [30, 10]),
    table("2", {0: (0.7, 0.3)}, [50, 0]),
    table("3", {0: (0.8, 0.2), 1: (0.4, 0.6)}, [20, 30]),
]
BALLOT = Ballot(np.arange(2), 2, 3, 2)


def personal(values, client, reports=REPORTS, ballot=BALLOT):
    labels = build_aggregator("per-class", values).aggregate({}, ballot, reports).personal[client]
    return dict(zip(labels.rows.tolist(), labels.probabilities(), strict=True))


@pytest.mark.parametrize(
    ("values", "client", "expected"),
    [
        # (.7 + .8) / 2; nobody but 3
        ({}, "1", {0: (0.75, 0.25), 1: (0.4, 0.6)}),
        # (.9 + .8) / 2; (.2 + .4) / 2
        ({}, "2", {0: (0.85, 0.15), 1: (0.3, 0.7)}),
        ({}, "3", {0: (0.8, 0.2), 1: (0.2, 0.8)}),
        # (50 * .7 + 20 * .8) / 70 = .7286
        ({"by_count": True}, "1", {0: (0.7286, 0.2714), 1: (0.4, 0.6)}),
        # (10 * .2 + 30 * .4) / 40 = .35
        ({"by_count": True}, "2", {1: (0.35, 0.65)}),
    ],
)
def test_worked_examples(values, client, expected):
    found = personal(values, client)
    for row, numbers in expected.items():
        np.testing.assert_allclose(found[row], numbers, atol=1e-4)


def test_the_student_learns_the_mean_over_all():
    teacher = build_aggregator("per-class", {}).aggregate({}, BALLOT, REPORTS).teacher
    # (.9 + .7 + .8) / 3, (.2 + .4) / 2
    np.testing.assert_allclose(teacher.probabilities(), [[0.8, 0.2], [0.3, 0.7]], atol=1e-6)
    teacher = build_aggregator("per-class", {"by_count": True}).aggregate({}, BALLOT, REPORTS).teacher
    # (27 + 35 + 16) / 100, (2 + 12) / 40
    np.testing.assert_allclose(teacher.probabilities(), [[0.78, 0.22], [0.35, 0.65]], atol=1e-6)


def test_a_class_that_nobody_else_has_gives_no_term():
    reports = [REPORTS[0], REPORTS[1]]
    assert list(personal({}, "1", reports, Ballot(np.arange(2), 2, 2, 1))) == [0]
    assert list(personal({}, "2", reports, Ballot(np.arange(2), 2, 2, 1))) == [0, 1]
    # With a quorum of two, class 2 of one client alone is nobody's teacher.
    assert list(personal({}, "2", reports, Ballot(np.arange(2), 2, 2, 2))) == [0]


def test_what_it_needs_depends_on_its_weights():
    assert build_aggregator("per-class", {}).needs == ()
    assert build_aggregator("per-class", {"by_count": True}).needs == ("counts",)
    bare = [ClientReport(one.client, 1, one.soft_labels) for one in REPORTS]
    with pytest.raises(ValueError, match="'1' sent no counts"):
        build_aggregator("per-class", {"by_count": True}).aggregate({}, BALLOT, bare)


def test_proxy_rows_are_no_classes():
    with pytest.raises(ValueError, match="row 2 is none of 2 classes"):
        build_aggregator("per-class", {}).aggregate({}, Ballot(np.arange(3), 2, 3, 2), REPORTS)


@pytest.mark.parametrize("counts", [([0, 0], [0, 0], [0, 0]), ([1e300, 1], [1, 0], [1, 1e300])])
def test_counts_of_nothing_or_of_far_too_much_stay_finite(counts):
    reports = [
        table(one.client, {0: (0.9, 0.1), 1: (0.2, 0.8)}, count) for one, count in zip(REPORTS, counts, strict=True)
    ]
    assert personal({"by_count": True}, "2", reports)[0][0] == pytest.approx(0.9, abs=1e-6)


@given(seed=st.integers(0, 10**6), clients=st.integers(1, 9), by_count=st.booleans())
@settings(max_examples=50, deadline=None)
def test_it_is_the_loop_over_clients_and_classes(seed, clients, by_count):
    rng, classes = np.random.default_rng(seed), 5
    tables, has = rng.dirichlet(np.ones(classes), (clients, classes)), rng.random((clients, classes)) < 0.6
    counts = rng.integers(1, 10**6, (clients, classes)) * has.astype(float)
    reports = [
        table(f"c{k}", {c: tables[k, c] for c in range(classes) if has[k, c]}, counts[k])
        for k in range(clients)
        if has[k].any()
    ]
    if not reports:
        return
    outcome = build_aggregator("per-class", {"by_count": by_count}).aggregate(
        {}, Ballot(np.arange(classes), classes, clients, 1), reports
    )
    weights = counts if by_count else has.astype(float)
    for k in range(clients):
        if not has[k].any():
            assert f"c{k}" not in outcome.personal
            continue
        found = outcome.personal[f"c{k}"]
        expected = {}
        for c in range(classes):
            others = [j for j in range(clients) if j != k and has[j, c]]
            if others:
                expected[c] = np.average(tables[others, c], axis=0, weights=capped(weights[others, c]))
        assert found.rows.tolist() == list(expected)
        if expected:
            np.testing.assert_allclose(found.probabilities(), list(expected.values()), atol=2e-6)
