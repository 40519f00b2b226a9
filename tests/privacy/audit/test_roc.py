"""Curves, areas and rates: compared with scikit-learn and with plain counting; intervals cover what they should."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score, roc_curve

from privacy.audit.roc import area, clopper_pearson, rate_at, roc


def guesses(seed, records=60, ties=False):
    rng = np.random.default_rng(seed)
    member = rng.permutation(np.arange(records) % 2 == 0)
    scores = rng.normal(size=records) + member
    return (np.round(scores) if ties else scores), member


@given(st.integers(0, 10**6), st.booleans())
def test_area_and_curve_are_those_of_scikit_learn(seed, ties):
    scores, member = guesses(seed, ties=ties)
    curve = roc(scores, member)
    wrong, right, _ = roc_curve(member, scores, drop_intermediate=False)
    assert area(scores, member).value == pytest.approx(roc_auc_score(member, scores), abs=1e-12)
    assert curve.false_positives == pytest.approx(wrong)
    assert curve.true_positives == pytest.approx(right)
    assert (curve.members, curve.strangers) == (30, 30)


@given(st.integers(0, 10**6), st.booleans(), st.sampled_from([0.0, 0.01, 0.1, 0.29, 1.0]))
def test_a_rate_is_the_best_that_counting_finds(seed, ties, share):
    scores, member = guesses(seed, records=200, ties=ties)
    best = 0
    for threshold in [*np.unique(scores), np.inf]:
        called = scores >= threshold
        if (called & ~member).sum() <= round(share * 100):
            best = max(best, int((called & member).sum()))
    found = rate_at(roc(scores, member), share)
    assert found.value == best / 100
    interval = binomtest(best, 100).proportion_ci(0.95, method="exact")
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_areas_interval_is_delongs():
    # members .9 .8 .4, strangers .7 .3 .2 .1: of 12 pairs .4 loses to .7 alone, so 11/12
    scores = np.array([0.9, 0.8, 0.4, 0.7, 0.3, 0.2, 0.1])
    member = np.arange(7) < 3
    found = area(scores, member)
    assert found.value == pytest.approx(11 / 12)
    # V10 = 1, 1, 3/4: off by 1/12, 1/12, -2/12, each over 3; V01 = 2/3, 1, 1, 1: off by -3/12, 1/12, 1/12, 1/12, each
    # over 4; squared, added over 7 records, times 7/6
    variance = 7 / 6 * ((1 + 1 + 4) / 144 / 9 + (9 + 1 + 1 + 1) / 144 / 16)
    assert found.low == pytest.approx(11 / 12 - 1.959964 * np.sqrt(variance), abs=1e-6)
    assert found.high == 1.0


def test_areas_interval_covers_the_truth_as_often_as_it_says():
    # N(1, 1) against N(0, 1): Phi(1/sqrt 2) = .760250. Of 400 intervals 95 % should cover: 380 +- 4.4
    covered = sum(low <= 0.760250 <= high for low, high in (_interval(seed) for seed in range(400)))
    assert 362 <= covered <= 396


def _interval(seed):
    rng = np.random.default_rng(seed)
    member = np.arange(300) < 150
    found = area(rng.normal(size=300) + member, member)
    return found.low, found.high


def test_guesses_on_the_same_records_by_many_models_do_not_narrow_the_interval_to_nothing():
    # What a record's score is depends on the record alone: 50 models that repeat it tell no more than two do.
    rng = np.random.default_rng(2)
    strength, member = rng.normal(size=(1, 200)), np.arange(200)[None] % 2 == 0
    once, often = ((np.repeat(strength + member, n, 0), np.repeat(member, n, 0)) for n in (1, 50))
    one, many = area(*once), area(*often)
    assert (one.value, one.low, one.high) == pytest.approx((many.value, many.low, many.high))


def test_perfect_and_reversed_attacks():
    scores, member = np.arange(10.0), np.arange(10) >= 5
    found, reverse = area(scores, member), area(-scores, member)
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)
    assert (reverse.value, reverse.low, reverse.high) == (0.0, 0.0, 0.0)
    assert rate_at(roc(scores, member), 0.0).value == 1.0
    assert rate_at(roc(-scores, member), 0.999).value == 0.0


@pytest.mark.parametrize(("hits", "trials"), [(0, 10), (1, 10), (5, 10), (10, 10), (37, 4000)])
def test_clopper_pearson_is_scipys_exact_interval(hits, trials):
    expected = binomtest(hits, trials).proportion_ci(0.95, method="exact")
    low, high = clopper_pearson(hits, trials, 0.025)
    assert (low, high) == pytest.approx((expected.low, expected.high))


MEMBER = np.arange(6) % 2 == 0


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: roc(np.ones(6), MEMBER), "all 6 scores are equal"),
        (lambda: area(np.ones(6), MEMBER), "all 6 scores are equal"),
        (lambda: roc(np.arange(6.0), np.arange(6) == 0), "1 members and 5 strangers: at least two of each"),
        (lambda: area(np.arange(6.0), np.arange(6) != 0), "5 members and 1 strangers"),
        (lambda: roc(np.arange(5.0), MEMBER), "one truth each"),
        (lambda: roc(np.arange(6.0), MEMBER.astype(int)), "one truth each"),
        (lambda: roc(np.full(6, np.nan), MEMBER), "a score is no number"),
        (lambda: rate_at(roc(np.arange(6.0), MEMBER), 1.5), "false_positives=1.5 must be in"),
    ],
)
def test_what_cannot_be_judged_is_refused_in_a_sentence(call, says):
    with pytest.raises(ValueError, match=says):
        call()
