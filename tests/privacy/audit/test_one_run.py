"""The one-run audit: the published p-values, claims that are never wrongly refuted, and what it catches and misses."""

import numpy as np
import pytest
from scipy.stats import binom

from privacy.audit.one_run import audit, canaries, canary_scores, epsilon_lower_bound, p_value

DELTA = 1e-5


def naive_p_value(m, r, v, epsilon, delta):
    """Theorem 5.2 of Steinke et al. as it is printed, one term after another."""
    p1 = np.exp(epsilon) / (1.0 + np.exp(epsilon))
    beta = sum(binom.pmf(k, r, p1) for k in range(v, r + 1))
    alpha, between = 0.0, 0.0
    for i in range(1, v + 1):
        between += binom.pmf(v - i, r, p1)
        alpha = max(alpha, between / i)
    return min(1.0, beta + 2 * m * delta * alpha)


# ---- numbers of design reference 8.1 ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("m", "r", "v", "epsilon", "delta", "p", "digits"),
    [
        (500, 100, 80, 1.0, 1e-5, 0.0722827, 7),
        (1000, 1000, 700, 0.5, 1e-5, 1.86756e-4, 9),
        (300, 60, 60, 3.0, 0.0, 0.054191, 6),
    ],
)
def test_p_values_are_those_of_the_reference(m, r, v, epsilon, delta, p, digits):
    assert round(p_value(m, r, v, epsilon, delta), digits) == p


@pytest.mark.parametrize(
    ("m", "r", "v", "bound"),
    [
        (500, 100, 80, 0.9569),
        (1000, 1000, 700, 0.7317),
        (100, 100, 100, 3.4902),
        (300, 300, 300, 4.5935),
        (1000, 1000, 1000, 5.7823),
        (3000, 3000, 3000, 6.8284),
    ],
)
def test_lower_bounds_are_those_of_the_reference(m, r, v, bound):
    found = epsilon_lower_bound(m, r, v, DELTA)
    assert round(found, 4) == bound
    assert p_value(m, r, v, found, DELTA) <= 0.05 < p_value(m, r, v, found + 1e-6, DELTA)


@pytest.mark.parametrize(("m", "r", "v"), [(30, 10, 7), (30, 30, 30), (40, 20, 0), (200, 80, 41)])
@pytest.mark.parametrize("epsilon", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("delta", [0.0, 1e-4, 1e-2])
def test_p_values_are_the_theorems_terms_added_up(m, r, v, epsilon, delta):
    assert p_value(m, r, v, epsilon, delta) == pytest.approx(naive_p_value(m, r, v, epsilon, delta), rel=1e-9)


def test_guessing_no_better_than_a_coin_refutes_nothing():
    assert epsilon_lower_bound(100, 100, 50, DELTA) == 0.0
    assert p_value(100, 100, 0, 0.0, DELTA) == 1.0


# ---- the guesses -----------------------------------------------------------------------------------------------------
def test_the_highest_scores_are_guessed_in_and_the_lowest_out():
    scores = np.array([5.0, 1.0, 4.0, 2.0, 3.0, 0.0])
    # of r = 4: in 0 and 2, out 5 and 1; 0 and 1 are right, 2 and 5 are wrong
    included = np.array([True, False, False, True, True, True])
    found = audit(scores, included, 4, DELTA)
    assert (found.canaries, found.guesses, found.right) == (6, 4, 2)
    assert audit(scores, scores > 2.5, 6, DELTA).right == 6
    assert audit(scores, scores > 2.5, 6, 0.0).epsilon == audit(scores, scores > 2.5, 6, 0.0).ceiling
    # p1^6 = .05 -> p1 = .60696 -> ln(.60696 / .39304) = .43456
    assert audit(scores, scores > 2.5, 6, 0.0).ceiling == pytest.approx(0.43456, abs=1e-5)


def test_a_canarys_score_is_its_labels_logit_against_the_mean():
    # 3 - (1 + 2 + 3)/3 = 1; 0 - (0 + 6 + 0)/3 = -2
    assert canary_scores(np.array([[1.0, 2.0, 3.0], [0.0, 6.0, 0.0]]), np.array([2, 0])).tolist() == [1.0, -2.0]


def test_each_canary_has_a_column_of_its_own_and_a_fair_coin():
    drawn = canaries(2000, 3, 4, np.random.default_rng(0), 7.0)
    assert not drawn.features[:, :3].any()
    assert np.array_equal(drawn.features[:, 3:], 7.0 * np.eye(2000))
    # chi-square of 4 labels and of the coin: binomial, 5 standard deviations
    assert np.abs(np.bincount(drawn.labels, minlength=4) - 500).max() < 5 * np.sqrt(2000 * 3 / 16)
    assert abs(int(drawn.included.sum()) - 1000) < 5 * np.sqrt(500)


# ---- a toy mechanism: a noisy sum of which each canary is a coordinate -----------------------------------------------
def noisy_sum(seed, sigma):
    """The noisy sum has sensitivity 1 a canary: (analytic) epsilon 1 at delta 1e-5 is sigma 3.7306."""
    rng = np.random.default_rng(seed)
    included = rng.random(500) < 0.5
    return audit(included + sigma * rng.normal(size=500), included, 100, DELTA)


def test_a_correct_gaussian_mechanism_is_never_refuted_on_twenty_seeds():
    # sigma of reference 4.1 for epsilon .5, 1, 3 at delta 1e-5
    for sigma, claimed in ((7.0318, 0.5), (3.7306, 1.0), (1.3906, 3.0)):
        assert max(noisy_sum(seed, sigma).epsilon for seed in range(20)) <= claimed


def test_without_noise_every_guess_is_right_and_the_claim_is_refuted():
    for seed in range(20):
        found = noisy_sum(seed, 1e-9)
        assert (found.right, found.epsilon) == (100, found.ceiling)
        assert round(found.epsilon, 2) == 3.48


# ---- reference 8.2 at claimed epsilon 1: DP-SGD on a linear model, q = .1, T = 100, about 1250 records ---------------
RATE, STEPS, NOISE, CLIP = 0.1, 100, 3.9417, 1.0


def gradient_sum(rows, errors, bug, expected):
    if bug == "no clipping":
        return rows.T @ errors
    if bug == "batch clipped":
        mean = rows.T @ errors / expected
        return mean * min(1.0, CLIP / np.linalg.norm(mean)) * expected
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(errors, axis=1)
    return rows.T @ (errors * np.minimum(1.0, CLIP / np.maximum(lengths, 1e-12))[:, None])


def dp_sgd(features, labels, rng, bug):
    count, weights, wanted = len(features), np.zeros((features.shape[1], 10)), np.eye(10)[labels]
    expected = RATE * count
    std = (
        NOISE
        * CLIP
        / {"noise / sqrt(batch)": np.sqrt(expected), "noise / batch": expected, "half noise": 2}.get(bug, 1)
    )
    once = rng.normal(size=weights.shape)
    for step in range(10 * STEPS if bug == "ledger reset in each of 10 rounds" else STEPS):
        drawn = np.flatnonzero(rng.random(count) < RATE)
        if bug == "cyclic batches":
            drawn = np.arange(count)[step % 10 :: 10]
        logits = features[drawn] @ weights
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        errors = odds / odds.sum(axis=1, keepdims=True) - wanted[drawn]
        noise = once if bug == "same noise" else rng.normal(size=weights.shape)
        weights -= 2.0 * (gradient_sum(features[drawn], errors, bug, expected) + std * noise) / expected
    return weights


def trained_with_canaries(seed, bug):
    rng = np.random.default_rng(seed)
    labels = rng.integers(10, size=1000)
    rows = (rng.normal(size=(10, 20))[labels] + rng.normal(size=(1000, 20))) / np.sqrt(20)
    drawn = canaries(500, 20, 10, rng, 10.0)
    features = np.concatenate([np.pad(rows, ((0, 0), (0, 500))), drawn.features[drawn.included]])
    weights = dp_sgd(features, np.concatenate([labels, drawn.labels[drawn.included]]), rng, bug)
    return audit(canary_scores(drawn.features @ weights, drawn.labels), drawn.included, 100, DELTA).epsilon


def test_correct_dp_sgd_is_never_refuted_on_twenty_seeds():
    assert max(trained_with_canaries(seed, "") for seed in range(20)) <= 1.0


@pytest.mark.parametrize("bug", ["no clipping", "batch clipped", "noise / sqrt(batch)", "noise / batch"])
def test_gross_bugs_are_caught(bug):
    assert min(trained_with_canaries(seed, bug) for seed in range(5)) > 1.0


@pytest.mark.parametrize("bug", ["half noise", "same noise", "cyclic batches", "ledger reset in each of 10 rounds"])
def test_subtle_bugs_pass_which_is_why_other_detectors_exist(bug):
    assert max(trained_with_canaries(seed, bug) for seed in range(3)) <= 1.0


# ---- refusals --------------------------------------------------------------------------------------------------------
SCORES, COIN = np.arange(6.0), np.arange(6) % 2 == 0


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: audit(np.zeros(6), COIN, 4, DELTA), "all 6 scores are equal"),
        (lambda: audit(SCORES, COIN, 3, DELTA), "guesses=3 must be even, from 2 to 6"),
        (lambda: audit(SCORES, COIN, 8, DELTA), "guesses=8 must be even, from 2 to 6"),
        (lambda: audit(SCORES, COIN, 0, DELTA), "guesses=0 must be even"),
        (lambda: audit(SCORES[:1], COIN[:1], 2, DELTA), "all 1 scores are equal"),
        (lambda: audit(np.where(COIN, np.nan, SCORES), COIN, 4, DELTA), "a score is not finite"),
        (lambda: audit(SCORES, COIN[:5], 4, DELTA), r"scores are \[6\] and included \[5\]"),
        (lambda: p_value(10, 11, 5, 1.0, DELTA), "right=5, guesses=11, canaries=10"),
        (lambda: p_value(10, 5, 6, 1.0, DELTA), "right=6, guesses=5, canaries=10"),
        (lambda: p_value(10, 0, 0, 1.0, DELTA), "one guess or more"),
        (lambda: p_value(10, 5, 5, -1.0, DELTA), "epsilon=-1.0 must be in"),
        (lambda: p_value(10, 5, 5, float("nan"), DELTA), "epsilon=nan must be in"),
        (lambda: p_value(10, 5, 5, 1.0, 1.0), "delta=1.0 must be in"),
        (lambda: epsilon_lower_bound(10, 5, 5, DELTA, 0.0), "significance=0.0 must be in"),
        (lambda: canaries(1, 3, 2, np.random.default_rng(0)), "canaries=1 must be at least 2"),
        (lambda: canaries(5, 3, 1, np.random.default_rng(0)), "classes=1 must be at least 2"),
    ],
)
def test_what_cannot_be_audited_is_refused_in_a_sentence(call, says):
    with pytest.raises(ValueError, match=says):
        call()
