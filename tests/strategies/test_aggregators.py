"""One row a rule: the design reference's worked numbers; then the laws that every rule obeys."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.aggregator import Ballot
from strategies.aggregators import AGGREGATORS, build_aggregator
from strategies.messages import ClientReport
from strategies.soft_labels import SoftLabels

# Row A (.7,.2,.1) (.6,.3,.1) (.1,.2,.7), row B (.5,.4,.1) (.2,.7,.1) (.3,.3,.4).
VOTES = np.array(
    [
        [[0.7, 0.2, 0.1], [0.5, 0.4, 0.1]],
        [[0.6, 0.3, 0.1], [0.2, 0.7, 0.1]],
        [[0.1, 0.2, 0.7], [0.3, 0.3, 0.4]],
    ]
)
SCORES = np.array([[0.9, 0.2], [0.6, 0.8], [0.1, 0.5]])
COUNTS = np.array([[10.0, 10, 0], [30, 10, 0], [0, 20, 0]])
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
    # weights .7, .6, .7 and .5, .7, .4 over their sums
    ("confidence", {}, [1, 1, 1], [[0.4600, 0.2300, 0.3100], [0.31875, 0.50625, 0.17500]]),
    # .2401, .1296, .2401 and .0625, .2401, .0256
    ("confidence", {"exponent": 4.0}, [1, 1, 1], [[0.4425, 0.2213, 0.3362], [0.2649, 0.6117, 0.1234]]),
    # weights (.3737, .2526, .3737) and (.3362, .6427, .0210)
    ("entropy", {}, [1, 1, 1], [[0.4505, 0.2253, 0.3242], [0.3030, 0.5907, 0.1063]]),
    # variances (.6485, .5442, .6485); on B shares (.4318, .5525, .0157)
    ("variance", {}, [1, 1, 1], [[0.4429, 0.2963, 0.2608], [0.3168, 0.5749, 0.1083]]),
    # .7^(.9/1.6) * .6^(.6/1.6) * .1^(.1/1.6) and so on, over their sum
    ("sample-weighted", {}, [1, 1, 1], [[0.6285, 0.2502, 0.1213], [0.2851, 0.5399, 0.1750]]),
    # (.9*.7+.6*.6+.1*.1)/1.6 = .625
    ("sample-weighted", {"pool": "probabilities"}, [1, 1, 1], [[0.6250, 0.2375, 0.1375], [0.2733, 0.5267, 0.2000]]),
    # (10*.7+30*.6)/40 = .625, (10*.2+10*.3+20*.2)/40 = .225, nobody has class 3: the mean .3; over their sum 1.15
    ("class-count", {}, [1, 1, 1], [[0.5435, 0.1957, 0.2609], [0.3056, 0.4722, 0.2222]]),
    # argmax: A 0, 0, 2; B 0, 1, 2
    ("hard-vote", {}, [1, 1, 1], [[0.6667, 0.0, 0.3333], [0.3333, 0.3333, 0.3333]]),
    # B is a tie of votes; the mean (.3333, .4667, .2) decides
    ("hard-vote", {"soft": False}, [1, 1, 1], [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
    # (.6, .2, .1) over .9; (.3, .4, .1) over .8
    ("median", {}, [1, 1, 1], [[0.6667, 0.2222, 0.1111], [0.3750, 0.5000, 0.1250]]),
    # client 1 has more than half of the weight: its vote is the median
    ("median", {}, [0.6, 0.2, 0.2], [[0.7, 0.2, 0.1], [0.5, 0.4, 0.1]]),
    # floor(.34 * 3) = 1 at each end: the median
    ("trimmed-mean", {"trim": 0.34}, [1, 1, 1], [[0.6667, 0.2222, 0.1111], [0.3750, 0.5000, 0.1250]]),
    # floor(.2 * 3) = 0: the mean
    ("trimmed-mean", {}, [1, 1, 1], [[0.4667, 0.2333, 0.3000], [0.3333, 0.4667, 0.2000]]),
    # a third of the weight at each end: class 1 of A, .1 (.2) .6 (.2) .7 (.6): what is left lies in (1/3, 2/3), that
    # is .6 with .4 - 1/3 and .7 with 2/3 - .4, over 1/3 -> .68; .2 of classes 2 and 3 alike: .2, .1; over .98
    ("trimmed-mean", {"trim": 0.34}, [0.6, 0.2, 0.2], [[0.6939, 0.2041, 0.1020], None]),
    ("geometric-median", {}, [1, 1, 1], [[0.6023, 0.2837, 0.1140], [0.3714, 0.4429, 0.1857]]),
    # |u| = (.3030, .2406, .5436) keeps 1, 2; (.0492, .2779, .2287) keeps 1, 3
    ("spectral-filter", {"quantile": 0.5}, [1, 1, 1], [[0.6500, 0.2500, 0.1000], [0.4000, 0.3500, 0.2500]]),
    # the cut itself: .25 keeps 2 alone, which would publish it, and on B 1 and 3
    ("spectral-filter", {"threshold": 0.25}, [1, 1, 1], [None, [0.4000, 0.3500, 0.2500]]),
    ("cronus", {"attackers": 1}, [1, 1, 1], [[0.6500, 0.2500, 0.1000], [0.4000, 0.3500, 0.2500]]),
    ("cronus", {}, [1, 1, 1], [[0.6500, 0.2500, 0.1000], [0.4000, 0.3500, 0.2500]]),
    # cosines to the medians (.6667, .2222, .1111), (.375, .5, .125): .9840, .9684, .6088; client 3 is under .9684 - .15
    ("cosine-filter", {}, [1, 1, 1], [[0.6500, 0.2500, 0.1000], [0.3500, 0.5500, 0.1000]]),
    ("cosine-filter", {"slack": 2.0}, [1, 1, 1], [[0.4667, 0.2333, 0.3000], [0.3333, 0.4667, 0.2000]]),
    # distances (.1018, .1850, .5829): trust (.3940, .3625, .2435)
    ("expguard", {}, [1, 1, 1], [[0.5176, 0.2363, 0.2461], [0.3425, 0.4844, 0.1731]]),
    # the student's teacher is the mean; the clients' choices are in test_clustered.py
    ("clustered", {}, [1, 1, 1], [[0.4667, 0.2333, 0.3000], [0.3333, 0.4667, 0.2000]]),
    # likewise; the leave-one-out tables are in test_per_class.py
    ("per-class", {}, [1, 1, 1], [[0.4667, 0.2333, 0.3000], [0.3333, 0.4667, 0.2000]]),
]
# These give a single client's vote back. (A hard vote and what sharpens do not.)
POOLS = sorted(set(AGGREGATORS) - {"era", "enhanced-era", "hard-vote"})
STREAMS = [
    "mean",
    "logit-mean",
    "era",
    "enhanced-era",
    "confidence",
    "entropy",
    "sample-weighted",
    "class-count",
    "hard-vote",
]
# What a rule that holds all votes may take, in stacks of float32 votes: per-class has leave-one-out tables in float64.
HOLDS = {name: 12.0 if name == "per-class" else 4.0 for name in sorted(set(AGGREGATORS) - set(STREAMS))}
BOTH = np.arange(2)


def reports(votes, weights=None, rows=None, scores=None, counts=None):
    rows = np.arange(votes.shape[1]) if rows is None else rows
    return [
        ClientReport(
            f"c{i}",
            1,
            SoftLabels.from_logits(rows, np.log(vote)),
            1.0 if weights is None else weights[i],
            np.ones(len(rows)) if scores is None else scores[i],
            np.ones(votes.shape[2]) if counts is None else counts[i],
        )
        for i, vote in enumerate(votes)
    ]


def random_votes(seed, clients, rows=4, classes=5):
    return np.random.default_rng(seed).dirichlet(np.ones(classes), (clients, rows))


def ballot_for(votes, needed=1):
    return Ballot(np.arange(votes.shape[1]), votes.shape[2], len(votes), min(needed, len(votes)))


def teacher_of(name, values, ballot, sent):
    return build_aggregator(name, values).aggregate({}, ballot, sent).teacher


def test_every_rule_has_a_row():
    assert {name for name, *_ in EXAMPLES} == set(AGGREGATORS)


@pytest.mark.parametrize(("name", "values", "weights", "expected"), EXAMPLES)
def test_worked_examples(name, values, weights, expected):
    teacher = teacher_of(name, values, Ballot(BOTH, 3, 3, 2), reports(VOTES, weights, None, SCORES, COUNTS))
    for row, numbers in zip(teacher.rows, teacher.probabilities(), strict=True):
        if expected[row] is not None:
            np.testing.assert_allclose(numbers, expected[row], atol=1e-4)
    assert {row for row in (0, 1) if expected[row] is not None} <= set(teacher.rows.tolist())


@pytest.mark.parametrize("name", sorted(AGGREGATORS))
@given(seed=st.integers(0, 10**6), clients=st.integers(1, 14), random=st.randoms(use_true_random=False))
@settings(max_examples=10, deadline=None)
def test_the_order_of_clients_changes_no_bit(name, seed, clients, random):
    votes = random_votes(seed, clients)
    rule, ballot = build_aggregator(name, {}), ballot_for(votes, 2)
    all_reports = reports(votes, np.random.default_rng(seed).uniform(0.1, 1.0, clients))
    shuffled = list(all_reports)
    random.shuffle(shuffled)
    before, after = rule.aggregate({}, ballot, all_reports), rule.aggregate({}, ballot, iter(shuffled))
    assert before.teacher.log_probs.tobytes() == after.teacher.log_probs.tobytes()
    assert [one.log_probs.tobytes() for one in before.choices] == [one.log_probs.tobytes() for one in after.choices]
    assert sorted(before.personal) == sorted(after.personal)


@pytest.mark.parametrize("name", sorted(AGGREGATORS))
@given(seed=st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_only_ratios_of_weights_matter(name, seed):
    votes, weights = random_votes(seed, 4), np.array([0.01, 0.05, 0.1, 0.14])
    one, seven = (teacher_of(name, {}, ballot_for(votes), reports(votes, w)) for w in (weights, 7 * weights))
    np.testing.assert_allclose(one.log_probs, seven.log_probs, atol=1e-5)


@pytest.mark.parametrize("name", sorted(AGGREGATORS))
@given(seed=st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_a_constant_added_to_logits_changes_nothing(name, seed):
    logits = np.random.default_rng(seed).normal(size=(5, 4, 5))

    def sent(values):
        return [
            ClientReport(f"c{i}", 1, SoftLabels.from_logits(np.arange(4), vote), 1.0, np.ones(4), np.ones(5))
            for i, vote in enumerate(values)
        ]

    ballot = Ballot(np.arange(4), 5, 5)
    plain, moved = (teacher_of(name, {}, ballot, sent(values)) for values in (logits, logits + 1000.0))
    np.testing.assert_allclose(plain.log_probs, moved.log_probs, atol=1e-5)


@pytest.mark.parametrize("name", sorted(AGGREGATORS))
@pytest.mark.parametrize("clients", [1, 2, 3, 14])
def test_a_class_that_is_certain_or_impossible_stays_finite(name, clients):
    votes = np.array([[[1.0, 1e-300, 1e-300]]] * clients)
    teacher = teacher_of(name, {}, ballot_for(votes, 2), reports(votes))
    assert np.isfinite(teacher.log_probs).all()
    assert teacher.probabilities()[0, 0] > 0.99


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("classes", [2, 3, 100])
def test_one_client_is_its_own_teacher(name, classes):
    votes = random_votes(3, 1, rows=2, classes=classes)
    only = reports(votes)
    teacher = teacher_of(name, {}, ballot_for(votes), only)
    np.testing.assert_allclose(teacher.probabilities(), only[0].soft_labels.probabilities(), atol=1e-6)


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("clients", [2, 3, 6, 13])
def test_equal_votes_are_the_teacher(name, clients):
    votes = np.repeat(random_votes(3, 1), clients, axis=0)
    teacher = teacher_of(name, {}, ballot_for(votes), reports(votes, np.linspace(0.1, 1.0, clients)))
    np.testing.assert_allclose(teacher.probabilities(), votes[0], atol=1e-6)


@pytest.mark.parametrize("name", sorted(AGGREGATORS))
@pytest.mark.parametrize("needed", [1, 2, 3])
def test_a_row_with_fewer_voters_than_needed_is_dropped(name, needed):
    votes = random_votes(4, 4, rows=5)
    # voters of rows 0..4: 0, 1, 2, 3, 4
    sent = [
        ClientReport(
            one.client, 1, SoftLabels(rows, one.soft_labels.log_probs[rows]), 1.0, np.ones(len(rows)), np.ones(5)
        )
        for i, one in enumerate(reports(votes))
        for rows in (np.arange(i + 1, 5),)
    ]
    teacher = teacher_of(name, {}, Ballot(np.arange(5), 5, 4, needed), sent)
    assert teacher.rows.tolist() == list(range(needed, 5))


@pytest.mark.parametrize("name", sorted(AGGREGATORS))
def test_what_cannot_be_pooled_is_refused(name):
    rule, votes = build_aggregator(name, {}), random_votes(1, 1)
    with pytest.raises(ValueError, match="no report"):
        rule.aggregate({}, ballot_for(votes), [])
    mixed = [reports(votes)[0], replace(reports(votes, rows=np.arange(1, 5))[0], client="other")]
    with pytest.raises(ValueError, match="not on the ballot"):
        rule.aggregate({}, ballot_for(votes), mixed)
    with pytest.raises(ValueError, match="classes, not 4"):
        rule.aggregate({}, Ballot(np.arange(4), 4, 1), reports(votes))


@pytest.mark.parametrize("name", sorted(HOLDS))
def test_a_client_that_votes_twice_is_refused(name):
    votes = random_votes(1, 1)
    with pytest.raises(ValueError, match="two reports of one client"):
        build_aggregator(name, {}).aggregate({}, ballot_for(votes), reports(votes) * 2)


@pytest.mark.parametrize(("name", "field"), [("sample-weighted", "scores"), ("class-count", "counts")])
def test_what_a_rule_needs_and_a_report_lacks_is_named(name, field):
    votes = random_votes(1, 2)
    bare = [ClientReport(one.client, 1, one.soft_labels) for one in reports(votes)]
    rule = build_aggregator(name, {})
    assert rule.needs == (field,)
    with pytest.raises(ValueError, match=f"'c0' sent no {field}"):
        rule.aggregate({}, ballot_for(votes), bare)


def peak_of(name, clients, rows, classes):
    votes = np.random.default_rng(0).normal(size=(rows, classes))

    def stream():
        for client in range(clients):
            labels = SoftLabels.from_logits(np.arange(rows), votes * (client % 7))
            yield ClientReport(f"c{client}", 1, labels, 1.0, np.ones(rows), np.ones(classes))

    rule, ballot = build_aggregator(name, {}), Ballot(np.arange(rows), classes, clients, 2)
    tracemalloc.start()
    rule.aggregate({}, ballot, stream())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("name", STREAMS)
def test_streaming_rules_hold_one_report_at_a_time(name):
    # One float64 block is 80 kB; all reports together would be 8 MB.
    assert peak_of(name, clients=200, rows=1000, classes=10) < 25 * 8 * 1000 * 10


@pytest.mark.parametrize("name", sorted(HOLDS))
def test_other_rules_hold_the_reports_and_about_as_much_again(name):
    rows = 10 if name == "per-class" else 500
    stack = 4 * 300 * rows * 10
    # The fixed part: a few blocks of a megabyte each, and the reports' own objects.
    assert peak_of(name, clients=300, rows=rows, classes=10) < HOLDS[name] * stack + 25e6


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("era", {"temperature": 0.0}, r"temperature=0.0 must be in \[0.001, 1\)"),
        ("era", {"temperature": 1.0}, r"temperature=1.0 must be in \[0.001, 1\)"),
        ("era", {"temperature": float("nan")}, "temperature=nan"),
        ("enhanced-era", {"exponent": 0.0}, r"exponent=0.0 must be in \(0, 100\]"),
        ("enhanced-era", {"exponent": float("inf")}, "exponent=inf"),
        ("confidence", {"exponent": -1.0}, r"exponent=-1.0 must be in \[0, 16\]"),
        ("entropy", {"cap": 0.0}, r"cap=0.0 must be in \(0, 1\]"),
        ("sample-weighted", {"pool": "votes"}, "pool='votes' must be 'logits' or 'probabilities'"),
        ("hard-vote", {"margin": 1.0}, r"margin=1.0 must be in \[0, 1\)"),
        ("trimmed-mean", {"trim": 0.5}, r"trim=0.5 must be in \[0, 0.5\)"),
        ("spectral-filter", {"quantile": 0.0}, r"quantile=0.0 must be in \(0, 1\]"),
        ("spectral-filter", {"threshold": 2.0}, r"threshold=2.0 must be in \[0, 2\)"),
        ("cosine-filter", {"slack": -0.1}, r"slack=-0.1 must be in \[0, 2\]"),
        ("cronus", {"attackers": -1}, "attackers=-1 must be at least 0"),
        ("expguard", {"step": 0.0}, r"step=0.0 must be in \(0, 100\]"),
        ("expguard", {"probation": -1.0}, r"probation=-1.0 must be in \[0, 100\]"),
        ("expguard", {"base": "expguard"}, "base=expguard would keep two books"),
        ("clustered", {"restarts": 0}, r"restarts=0 must be in \[1, 100\]"),
    ],
)
def test_settings_out_of_bounds_are_refused(name, values, says):
    with pytest.raises(ValueError, match=says):
        build_aggregator(name, values)


def test_era_sharpens_a_clear_pair_and_flattens_a_hundred_classes():
    one_hot = np.full((1, 1, 10), 1e-12)
    one_hot[0, 0, 3] = 1.0
    # odds at most e^(1 / .1): 1 / (1 + 9 e^-10) = .9996
    assert teacher_of("era", {}, ballot_for(one_hot), reports(one_hot)).probabilities().max() == pytest.approx(
        0.9996, abs=1e-4
    )
    uniform = np.full((1, 1, 10), 0.1)
    np.testing.assert_allclose(
        teacher_of("era", {}, ballot_for(uniform), reports(uniform)).probabilities(), 0.1, atol=1e-6
    )
    wide = np.full((1, 1, 100), 0.9 / 99)
    wide[0, 0, 0] = 0.1
    # e^1 / (e^1 + 99 e^(.0909)) = .0245 against .01 / (.01 + 99 * .00909^2) = .55
    assert teacher_of("era", {}, ballot_for(wide), reports(wide)).probabilities()[0, 0] == pytest.approx(
        0.0245, abs=1e-4
    )
    sharp = teacher_of("enhanced-era", {"exponent": 2.0}, ballot_for(wide), reports(wide))
    assert sharp.probabilities()[0, 0] == pytest.approx(0.55, abs=1e-4)


@given(seed=st.integers(0, 10**6), attackers=st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_a_share_of_attackers_moves_the_mean_by_at_most_twice_that_share(seed, attackers):
    honest = random_votes(seed, 10)
    attacked = honest.copy()
    attacked[:attackers] = 1e-12
    attacked[:attackers, :, 0] = 1.0
    before, after = (teacher_of("mean", {}, ballot_for(votes), reports(votes)) for votes in (honest, attacked))
    moved = np.abs(before.probabilities() - after.probabilities()).sum(axis=1)
    assert moved.max() <= 2 * attackers / 10 + 1e-6


def test_an_unknown_rule_lists_the_known_ones():
    with pytest.raises(KeyError, match="enhanced-era, entropy, era, expguard"):
        build_aggregator("median-of-means", {})
