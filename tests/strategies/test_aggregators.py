"""One row a rule: hand-computed numbers; then the laws that every rule obeys."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.aggregators import AGGREGATORS, build_aggregator
from strategies.messages import ClientReport
from strategies.soft_labels import SoftLabels

# The reference's votes: row A (.7,.2,.1) (.6,.3,.1) (.1,.2,.7), row B (.5,.4,.1) (.2,.7,.1) (.3,.3,.4).
VOTES = np.array(
    [
        [[0.7, 0.2, 0.1], [0.5, 0.4, 0.1]],
        [[0.6, 0.3, 0.1], [0.2, 0.7, 0.1]],
        [[0.1, 0.2, 0.7], [0.3, 0.3, 0.4]],
    ]
)
# (rule, settings, weights, expected [A, B])
EXAMPLES = [
    # m = (1.4/3, .7/3, .9/3) and (1/3, 1.4/3, .6/3)
    ("mean", {}, [1, 1, 1], [[0.4667, 0.2333, 0.3000], [0.3333, 0.4667, 0.2000]]),
    # .5*.7+.3*.6+.2*.1 = .55 on row A; .5*.5+.3*.2+.2*.3 = .37 on row B
    ("mean", {}, [0.5, 0.3, 0.2], [[0.5500, 0.2300, 0.2200], [0.3700, 0.4700, 0.1600]]),
    # cube roots of (.042, .012, .007) over their sum; of (.03, .084, .004)
    ("logit-mean", {}, [1, 1, 1], [[0.4527, 0.2982, 0.2491], [0.3424, 0.4826, 0.1749]]),
    # odds e^((.4667-.3000)/.1) = e^(5/3)
    ("era", {"temperature": 0.1}, [1, 1, 1], [[0.7777, 0.0754, 0.1469], [0.1977, 0.7501, 0.0521]]),
    # squares of the mean over their sum: .2178, .0544, .09
    ("enhanced-era", {"exponent": 2.0}, [1, 1, 1], [[0.6012, 0.1503, 0.2485], [0.3012, 0.5904, 0.1084]]),
    ("enhanced-era", {"exponent": 0.5}, [1, 1, 1], [[0.3986, 0.2818, 0.3196], None]),
]
POOLS = ["mean", "logit-mean"]  # these give a single client's vote back


def reports(votes, weights=None, rows=None):
    rows = np.arange(votes.shape[1]) if rows is None else rows
    return [
        ClientReport(f"c{i}", 1, SoftLabels.from_logits(rows, np.log(vote)), 1.0 if weights is None else weights[i])
        for i, vote in enumerate(votes)
    ]


def random_votes(seed, clients, rows=5, classes=4):
    return np.random.default_rng(seed).dirichlet(np.ones(classes), (clients, rows))


def test_every_rule_has_a_row():
    assert {name for name, *_ in EXAMPLES} == set(AGGREGATORS)


@pytest.mark.parametrize(("name", "values", "weights", "expected"), EXAMPLES)
def test_worked_examples(name, values, weights, expected):
    teacher, state = build_aggregator(name, values).aggregate({}, reports(VOTES, weights))
    for row, numbers in enumerate(expected):
        if numbers is not None:
            np.testing.assert_allclose(teacher.probabilities()[row], numbers, atol=1e-4)
    assert state == {}


@pytest.mark.parametrize("name", sorted(AGGREGATORS))
@given(seed=st.integers(0, 10**6), clients=st.integers(1, 12), random=st.randoms(use_true_random=False))
@settings(max_examples=30)
def test_the_order_of_clients_changes_no_bit(name, seed, clients, random):
    rule, all_reports = build_aggregator(name, {}), reports(random_votes(seed, clients))
    shuffled = list(all_reports)
    random.shuffle(shuffled)
    before, after = rule.aggregate({}, all_reports)[0], rule.aggregate({}, shuffled)[0]
    assert before.log_probs.tobytes() == after.log_probs.tobytes()


@pytest.mark.parametrize("name", sorted(AGGREGATORS))
@given(seed=st.integers(0, 10**6))
@settings(max_examples=20)
def test_only_ratios_of_weights_matter(name, seed):
    votes, weights = random_votes(seed, 4), np.array([0.01, 0.05, 0.1, 0.14])
    rule = build_aggregator(name, {})
    one, seven = (rule.aggregate({}, reports(votes, w))[0] for w in (weights, 7 * weights))
    np.testing.assert_allclose(one.log_probs, seven.log_probs, atol=1e-5)


@pytest.mark.parametrize("name", sorted(AGGREGATORS))
def test_a_class_that_is_certain_or_impossible_stays_finite(name):
    votes = np.array([[[1.0, 1e-300, 1e-300]], [[1.0, 1e-300, 1e-300]]])
    teacher, _ = build_aggregator(name, {}).aggregate({}, reports(votes))
    assert np.isfinite(teacher.log_probs).all()
    assert teacher.probabilities()[0, 0] > 0.99


@pytest.mark.parametrize("name", POOLS)
def test_one_client_is_its_own_teacher(name):
    only = reports(random_votes(3, 1))
    teacher, _ = build_aggregator(name, {}).aggregate({}, only)
    np.testing.assert_allclose(teacher.log_probs, only[0].soft_labels.log_probs, atol=1e-6)


@pytest.mark.parametrize("name", sorted(AGGREGATORS))
def test_no_report_and_other_rows_are_refused(name):
    rule = build_aggregator(name, {})
    with pytest.raises(ValueError, match="no report"):
        rule.aggregate({}, [])
    mixed = [*reports(random_votes(1, 1)), *reports(random_votes(2, 1), rows=np.arange(1, 6))]
    with pytest.raises(ValueError, match="other rows"):
        rule.aggregate({}, mixed)


@pytest.mark.parametrize("name", sorted(AGGREGATORS))
def test_streaming_rules_hold_one_report_at_a_time(name):
    rows, classes, clients = 1000, 10, 200
    votes = np.random.default_rng(0).normal(size=(rows, classes))

    def stream():
        for client in range(clients):
            yield ClientReport(f"c{client}", 1, SoftLabels.from_logits(np.arange(rows), votes * (client % 7)))

    tracemalloc.start()
    build_aggregator(name, {}).aggregate({}, stream())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # One float64 block is 80 kB; all reports together would be 8 MB.
    assert peak < 20 * 8 * rows * classes


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("era", {"temperature": 0.0}, r"temperature=0.0 must be in \[0.001, 1\)"),
        ("era", {"temperature": 1.0}, r"temperature=1.0 must be in \[0.001, 1\)"),
        ("era", {"temperature": float("nan")}, "temperature=nan"),
        ("enhanced-era", {"exponent": 0.0}, r"exponent=0.0 must be in \(0, 100\]"),
        ("enhanced-era", {"exponent": float("inf")}, "exponent=inf"),
        ("mean", {"temperature": 0.1}, "has no setting 'temperature'"),
        ("era", {"temperature": "hot"}, "must be a number"),
        ("era", {"temperature": True}, "must be a number"),
    ],
)
def test_settings_out_of_bounds_are_refused(name, values, says):
    with pytest.raises(ValueError, match=says):
        build_aggregator(name, values)


def test_an_unknown_rule_lists_the_known_ones():
    with pytest.raises(KeyError, match="enhanced-era, era, logit-mean, mean"):
        build_aggregator("median-of-means", {})
