"""Each robust rule against a loop over rows and clients, with masks, weights, ties and one-hots; its known traps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.aggregators.spectral_filter import outlier_scores
from strategies.believing import believe_symbols, vote_symbols
from strategies.soft_labels import SoftLabels
from tests.strategies.robust_rounds import (
    A_AND_B,
    ALL_VOTED,
    ROWS,
    aggregated,
    agrees,
    as_sent,
    naive_cronus,
    naive_median,
    naive_scores,
    naive_trimmed,
    normalised,
    one_row,
    rounds,
    taught,
    two_classes,
)
from tests.strategies.trust import mean


@given(rounds())
@settings(max_examples=150, deadline=None)
def test_the_median_is_the_loop_over_rows(case):
    agrees("median", {}, case, naive_median)


@given(rounds())
@settings(max_examples=50, deadline=None)
def test_with_equal_weights_the_median_is_numpys(case):
    votes, mask, _, needed = case
    equal = (votes, mask, np.full(mask.shape, 0.3), needed)
    agrees("median", {}, equal, lambda row, weights: normalised(np.median(row, axis=0), row, weights))


@given(rounds(), st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.34, 0.49]))
@settings(max_examples=150, deadline=None)
def test_the_trimmed_mean_is_the_loop_over_rows(case, trim):
    agrees("trimmed-mean", {"trim": trim}, case, lambda row, weights: naive_trimmed(row, weights, trim))


@given(rounds(), st.sampled_from([0.1, 0.2, 0.3, 0.34, 0.49]))
@settings(max_examples=50, deadline=None)
def test_with_equal_weights_the_trimmed_mean_drops_whole_voters(case, trim):
    def plain(row, weights):
        g = int(np.floor(round(trim * len(row), 9)))
        return normalised(np.sort(row, axis=0)[g : len(row) - g].mean(axis=0), row, weights)

    votes, mask, _, needed = case
    agrees("trimmed-mean", {"trim": trim}, (votes, mask, np.full(mask.shape, 0.3), needed), plain)


@pytest.mark.parametrize("rule", ["median", "trimmed-mean"])
@pytest.mark.parametrize("codec", ["float32", "float16", "quantised:1", "quantised:4", "quantised:8", "top-k:2"])
@pytest.mark.parametrize("classes", [4, 10, 100])
def test_without_a_majority_one_hots_that_travelled_are_their_mean(rule, codec, classes):
    # 4, 3, 3, 3 of 13 for four classes: no class has half of the votes, and what codecs add is nothing
    winners = np.repeat(np.arange(4), [4, 3, 3, 3])
    votes = [
        SoftLabels.from_logits(np.arange(1), np.where(np.arange(classes) == winner, 0.0, -30.0)[None])
        for winner in winners
    ]
    travelled = [believe_symbols(vote.rows, vote_symbols(vote, codec), codec, classes) for vote in votes]
    settings = {"trim": 0.45} if rule == "trimmed-mean" else {}
    found = one_row(rule, settings, [vote.probabilities()[0] for vote in travelled])
    np.testing.assert_allclose(found[:4], np.array([4, 3, 3, 3]) / 13, atol=2e-4)
    assert found[4:].max(initial=0.0) < 2e-4


@given(rounds(hard=False), st.sampled_from([0.25, 0.5, 0.8, 1.0]))
@settings(max_examples=100, deadline=None)
def test_the_spectral_filter_is_the_loop_over_rows(case, quantile):
    def naive(row, weights):
        scores = naive_scores(row, weights)
        kept = scores <= np.quantile(scores, quantile, method="higher")
        return mean(row[kept], weights[kept]) if kept.sum() >= min(case[3], 2) else None

    agrees("spectral-filter", {"quantile": quantile}, case, naive)


@given(rounds(hard=False), st.floats(0.01, 0.6))
@settings(max_examples=60, deadline=None)
def test_a_threshold_keeps_two_votes_or_leaves_the_row_out(case, threshold):
    def naive(row, weights):
        kept = naive_scores(row, weights) <= threshold
        return mean(row[kept], weights[kept]) if kept.sum() >= min(case[3], 2) else None

    agrees("spectral-filter", {"threshold": threshold}, case, naive)


@given(rounds(hard=False), st.sampled_from([0, 1, 2, 4]))
@settings(max_examples=100, deadline=None)
def test_cronus_is_the_loop_over_rows(case, attackers):
    agrees("cronus", {"attackers": attackers}, case, lambda row, w: naive_cronus(row, w, attackers))


@given(rounds(smallest=2), st.sampled_from([0.0, 0.15, 2.0]))
@settings(max_examples=60, deadline=None)
def test_the_cosine_filter_is_the_loop_over_clients(case, slack):
    votes, mask, weights, needed = case
    rows = [row for row in range(ROWS) if taught(row, case)]
    sent = np.array([as_sent(one) for one in votes])
    trust = {row: weights[mask[:, row], row] for row in rows}
    medians = {row: naive_median(sent[mask[:, row], row], trust[row]) for row in rows}
    cosines = {}
    for client in range(len(votes)):
        own = [row for row in rows if mask[client, row]]
        if own:
            a, b = (np.concatenate(x) for x in (sent[client, own], [medians[row] for row in own]))
            cosines[client] = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    cut = np.median(list(cosines.values())) - slack - 1e-9 if cosines else 0.0
    kept = np.array([cosines.get(client, -2.0) >= cut for client in range(len(votes))])
    if any(abs(cosine - cut) < 1e-7 for cosine in cosines.values()) and slack > 0:
        return  # on the edge either is right
    expected = {}
    for row in rows:
        voters = mask[:, row] & kept
        if voters.sum() >= min(needed, 2):
            expected[row] = mean(sent[voters, row], trust[row][kept[mask[:, row]]])
    teacher = aggregated("cosine-filter", {"slack": slack}, case)
    assert teacher.rows.tolist() == list(expected)
    if expected:
        np.testing.assert_allclose(teacher.probabilities(), list(expected.values()), atol=2e-6)


def test_one_far_vote_is_trimmed():
    votes = two_classes(0.1, 0.2, 0.3, 0.4, 1.0)
    # (.2 + .3 + .4) / 3 = .3 for class 1, and (.8 + .7 + .6) / 3 = .7
    np.testing.assert_allclose(one_row("trimmed-mean", {"trim": 0.2}, votes), [0.3, 0.7], atol=1e-4)
    np.testing.assert_allclose(one_row("mean", {}, votes), [0.4, 0.6], atol=1e-4)


@pytest.mark.parametrize("name", ["median", "trimmed-mean"])
def test_different_one_hots_have_no_middle_so_their_mean_is_taken(name):
    np.testing.assert_allclose(
        one_row(name, {"trim": 0.4} if name[0] == "t" else {}, np.eye(3)), [1 / 3] * 3, atol=1e-4
    )
    # by weight: .5, .3, .2 (none has more than half)
    settings = {"trim": 0.4} if name[0] == "t" else {}
    if name == "median":
        np.testing.assert_allclose(one_row(name, settings, np.eye(3), [0.45, 0.35, 0.2]), [0.45, 0.35, 0.2], atol=1e-4)


def test_ties_do_not_depend_on_which_of_equal_voters_is_heavy():
    votes = two_classes(0.1, 0.1, 0.1, 0.5, 0.9)
    one, other = (one_row("trimmed-mean", {}, votes, w) for w in ([1.0, 0.2, 0.2, 0.5, 0.5], [0.2, 0.2, 1.0, 0.5, 0.5]))
    np.testing.assert_allclose(one, other, atol=1e-7)


def test_scores_along_the_main_direction_of_disagreement():
    scores = outlier_scores(A_AND_B, ALL_VOTED, np.ones((2, 3)))
    np.testing.assert_allclose(scores, [[0.3030, 0.2406, 0.5436], [0.0492, 0.2779, 0.2287]], atol=1e-4)


@pytest.mark.parametrize("classes", [2, 4, 100])
@given(seed=st.integers(0, 10**6), hard=st.booleans())
@settings(max_examples=30, deadline=None)
def test_no_row_with_different_votes_goes_unfiltered_for_lack_of_a_direction(classes, seed, hard):
    # Power iteration from all-ones finds the zero vector: votes sum to 1, so the covariance times 1 is 0.
    rng = np.random.default_rng(seed)
    votes = np.eye(classes)[rng.integers(classes, size=(5, 8))] if hard else rng.dirichlet(np.ones(classes), (5, 8))
    votes = votes.transpose(0, 2, 1)
    centred = votes - votes.mean(axis=2, keepdims=True)
    assert np.abs(np.einsum("mck,mdk->mcd", centred, centred).sum(axis=2)).max() < 1e-12
    differ = np.abs(centred).max(axis=(1, 2)) > 1e-9
    assert ((outlier_scores(votes, np.ones((5, 8), bool), np.ones((5, 8))) > 1e-3).any(axis=1) == differ).all()


@pytest.mark.parametrize(("name", "values"), [("spectral-filter", {"quantile": 0.6}), ("cronus", {"attackers": 2})])
def test_one_hot_attackers_in_two_classes_are_filtered(name, values):
    votes = two_classes(0.9, 0.8, 0.85, 0.9, 0.8, 0.85, 0.0, 0.0)
    assert one_row(name, values, votes)[0] >= 0.8
    assert one_row("mean", {}, votes)[0] < 0.65


def test_cronus_drops_exactly_f_of_the_voters_of_the_row():
    votes = [[0.9 - 0.001 * k, 0.1 + 0.001 * k] for k in range(7)] + [[0.1, 0.9]] * 3
    kept = np.array(votes[:7])
    # 10 voters, f = 3: 2 then 1; what stands out are the last three
    np.testing.assert_allclose(one_row("cronus", {"attackers": 3}, votes), kept.mean(axis=0), atol=1e-6)
    # 6 voters of whom 2 are malicious: f = 2 by default
    few = [*votes[:4], *votes[8:]]
    np.testing.assert_allclose(one_row("cronus", {}, few), kept[:4].mean(axis=0), atol=1e-6)


def test_of_equal_scores_the_last_name_is_dropped():
    votes = two_classes(*([0.9, 0.1] * 20))
    # all 40 stand out by .4; the last, .1, goes
    expected = (20 * 0.9 + 19 * 0.1) / 39
    assert one_row("cronus", {"attackers": 1}, votes)[0] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("attackers", "voters", "stays"), [(1, 2, False), (1, 3, True), (2, 4, False), (9, 3, False)])
def test_cronus_needs_more_honest_voters_than_assumed_attackers(attackers, voters, stays):
    # Row A with client 2 masked is a tie of (.7, .2, .1) and (.1, .2, .7) that f = 1 must refuse.
    votes = ([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]] * 2)[:voters]
    assert (one_row("cronus", {"attackers": attackers}, votes) is not None) == stays


def test_a_cosine_filter_that_keeps_one_of_two_publishes_nobody():
    # The median, by weight, is the first vote; cosines 1 and .02, their median .51: the second goes, one is left.
    votes = [[0.98, 0.01, 0.01], [0.01, 0.01, 0.98]]
    assert one_row("cosine-filter", {"slack": 0.15}, votes, [1.0, 0.5], needed=2) is None
    np.testing.assert_allclose(one_row("cosine-filter", {}, votes, [1.0, 0.5], needed=1), votes[0], atol=1e-6)


@pytest.mark.parametrize("name", ["median", "spectral-filter", "cosine-filter", "cronus", "geometric-median"])
def test_the_least_likely_class_from_one_of_three_moves_the_mean_and_no_robust_rule_as_far(name):
    # y_H = (.65, .25, .10); the attacker says class 3, and the mean becomes (.4333, .1667, .4000).
    votes = [[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.0, 0.0, 1.0]]
    np.testing.assert_allclose(one_row("mean", {}, votes), [0.4333, 0.1667, 0.4000], atol=1e-4)
    assert one_row(name, {}, votes)[2] < 0.2
