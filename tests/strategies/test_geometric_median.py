"""The geometric median: no point is nearer, whatever the names; where it is a vote, and where it is a stretch."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from strategies.aggregators.geometric_median import _geometric_medians, _step
from strategies.aggregators.stacking import Block
from tests.strategies.robust_rounds import (
    A_AND_B,
    ROWS,
    aggregated,
    as_sent,
    one_row,
    rounds,
    taught,
    total_distance,
    two_classes,
)
from tests.strategies.trust import capped


@given(rounds())
@settings(max_examples=80, deadline=None)
def test_no_point_is_nearer_to_all_votes_than_the_geometric_median(case):
    votes, mask, weights, _ = case
    teacher = aggregated("geometric-median", {}, case)
    assert teacher.rows.tolist() == [row for row in range(ROWS) if taught(row, case)]
    rng = np.random.default_rng(0)
    for row, found in zip(teacher.rows, teacher.probabilities(), strict=True):
        own, trust = as_sent(votes[mask[:, row], row]), capped(weights[mask[:, row], row])
        best = total_distance(found, own, trust)
        others = [*own, *(rng.dirichlet(np.ones(len(own)), 20) @ own), *(found + 0.01 * (own - found))]
        # The function is convex: that no small step towards a vote helps is nearly enough.
        assert all(best <= total_distance(other, own, trust) + 2e-6 for other in others)


@given(rounds(), st.randoms(use_true_random=False))
@settings(max_examples=80, deadline=None)
def test_names_say_nothing_to_the_geometric_median(case, random):
    votes, mask, weights, needed = case
    order = random.sample(range(len(votes)), len(votes))
    renamed = aggregated("geometric-median", {}, (votes[order], mask[order], weights[order], needed))
    teacher = aggregated("geometric-median", {}, case)
    assert teacher.rows.tolist() == renamed.rows.tolist()
    np.testing.assert_allclose(renamed.probabilities(), teacher.probabilities(), atol=2e-5)


@pytest.mark.parametrize("each", [1, 2, 5, 32, 40])
@pytest.mark.parametrize("between", [0, 2])
def test_between_two_equal_camps_the_geometric_median_is_the_middle(each, between):
    a, b = np.array([0.8, 0.1, 0.1]), np.array([0.1, 0.3, 0.6])
    inside = [a + share * (b - a) for share in np.linspace(0.3, 0.7, between)]
    votes = [a] * each + [b] * each + inside
    ends = (inside[0] + inside[-1]) / 2 if inside else (a + b) / 2
    np.testing.assert_allclose(one_row("geometric-median", {}, votes), ends, atol=1e-6)
    np.testing.assert_allclose(one_row("geometric-median", {}, votes[::-1]), ends, atol=1e-6)
    # one more on a side and that side has it
    if not inside:
        np.testing.assert_allclose(one_row("geometric-median", {}, [*votes, b]), b, atol=1e-6)


@pytest.mark.parametrize("weights", [None, [0.2, 0.2, 0.2, 0.2, 0.2]])
def test_the_geometric_median_leaves_a_mean_that_is_a_vote(weights):
    # The mean .3 is itself a vote; the objective is 1.6971 there and 1.4142 at .1.
    votes = np.array(two_classes(0.1, 0.1, 0.1, 0.3, 0.9))
    found = one_row("geometric-median", {}, votes, weights)
    np.testing.assert_allclose(found, [0.1, 0.9], atol=1e-6)
    assert total_distance([0.3, 0.7], votes, np.ones(5)) == pytest.approx(1.6971, abs=1e-4)
    assert total_distance(found, votes, np.ones(5)) == pytest.approx(1.4142, abs=1e-4)


def test_vardi_and_zhang_step_away_from_a_vote_that_is_not_the_median():
    # The same five votes on a line in three classes: at the third one Weiszfeld's weights are infinite.
    votes = np.array([[x, (1 - x) / 2, (1 - x) / 2] for x in (0.1, 0.1, 0.1, 0.3, 0.9)])
    after = _step(votes.T[None], np.ones((1, 5)), votes[3][None])[0]
    # The others pull with 3 - 1 = 2 unit vectors, the vote holds with 1: half of the way to their point, which is at
    # (3 * .1 / .2 + .9 / .6) / (3 / .2 + 1 / .6) = .18 -> .24
    assert after[0] == pytest.approx(0.24)
    np.testing.assert_allclose(one_row("geometric-median", {}, votes), votes[0], atol=1e-6)
    # Once at the median it stays.
    np.testing.assert_allclose(_step(votes.T[None], np.ones((1, 5)), votes[0][None])[0], votes[0], atol=1e-15)


@pytest.mark.parametrize(
    ("votes", "weights", "median"),
    [
        # two equal votes hold against two unit pulls, however hard those are
        (
            [[0.1001, 0.3975, 0.5024], [0.0036, 0.9391, 0.0573], [0.1403, 0.0209, 0.8388], [0.1403, 0.0209, 0.8388]],
            None,
            2,
        ),
        # a vote of weight 1 between two of .5
        ([[0.405, 0.127, 0.427, 0.041], [0.006, 0.992, 0.001, 0.001], [0.074, 0.857, 0.068, 0.001]], [0.5, 1, 0.5], 1),
    ],
)
def test_a_median_that_is_a_vote_far_from_the_mean_is_found(votes, weights, median):
    np.testing.assert_allclose(one_row("geometric-median", {}, votes, weights), votes[median], atol=1e-6)


@given(rounds(hard=False, smallest=3))
@settings(max_examples=50, deadline=None)
def test_two_equal_votes_of_four_are_the_geometric_median(case):
    votes = [*case[0][:3, 0], case[0][2, 0]]
    assume(len(votes[0]) > 2)  # on a line the middle of the inner two votes is as good
    np.testing.assert_allclose(one_row("geometric-median", {}, votes), as_sent(np.array(votes))[2], atol=1e-6)


def test_three_votes_of_one_client_weigh_like_one_of_three():
    found = one_row("geometric-median", {}, two_classes(0.1, 0.3, 0.9), [0.9, 0.3, 0.3])
    np.testing.assert_allclose(found, [0.1, 0.9], atol=1e-6)


def test_the_first_step_and_the_objective_of_the_geometric_median():
    step = _step(A_AND_B, np.ones((2, 3)), A_AND_B.mean(axis=2))
    np.testing.assert_allclose(step[0], [0.5344, 0.2441, 0.2215], atol=1e-4)
    for votes, limit, objective in (
        (A_AND_B[0].T, [0.6023, 0.2837, 0.1140], 0.9274),
        (A_AND_B[1].T, [0.3714, 0.4429, 0.1857], 0.7483),
    ):
        assert total_distance(np.array(limit), votes, np.ones(3)) == pytest.approx(objective, abs=1e-4)


@pytest.mark.parametrize("voters", [2, 3])
def test_a_median_at_a_vote_or_close_to_one_is_found_all_the_same(voters):
    # Weiszfeld alone crawls there: of 2,000 rows some are still 1e-6 too far after 500 rounds.
    rng = np.random.default_rng(0)
    votes, weights = rng.dirichlet(np.full(5, 0.7), (2000, voters)), rng.uniform(0.05, 1.0, (2000, voters))
    log_probs = np.log(votes).transpose(0, 2, 1).astype(np.float32)
    block = Block(np.arange(2000), log_probs, np.ones((2000, voters), bool), weights)
    votes, found = np.exp(log_probs.astype(float)).transpose(0, 2, 1), _geometric_medians(block)

    def objective(points):
        return (weights * np.linalg.norm(votes - points[:, None], axis=2)).sum(axis=1)

    best, points = np.minimum(objective(found), np.min([objective(votes[:, k]) for k in range(voters)], axis=0)), found
    for _ in range(2000):
        pulls = weights / np.maximum(np.linalg.norm(votes - points[:, None], axis=2), 1e-13)
        points = np.einsum("mk,mkc->mc", pulls, votes) / pulls.sum(axis=1, keepdims=True)
    assert (objective(found) - np.minimum(best, objective(points))).max() < 1e-8
