"""Two teachers a row: the reference's example, all splits tried one by one, planted clusters, single votes withheld."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.aggregator import Ballot
from strategies.aggregators.clustered import ENUMERATED, Clustered
from strategies.messages import ClientReport
from strategies.soft_labels import SoftLabels
from tests.strategies.trust import capped

A_AND_B = np.array(
    [[[0.7, 0.2, 0.1], [0.5, 0.4, 0.1]], [[0.6, 0.3, 0.1], [0.2, 0.7, 0.1]], [[0.1, 0.2, 0.7], [0.3, 0.3, 0.4]]]
)


def aggregated(rule, votes, mask=None, weights=None, needed=1, seed=0):
    clients, rows, classes = votes.shape
    mask = np.ones((clients, rows), bool) if mask is None else mask
    weights = np.ones((clients, rows)) if weights is None else weights
    sent = [
        ClientReport(
            f"c{k:03}",
            1,
            SoftLabels.from_logits(np.flatnonzero(mask[k]), np.log(votes[k][mask[k]])),
            weights[k][mask[k]],
        )
        for k in range(clients)
    ]
    return rule.aggregate({}, Ballot(np.arange(rows), classes, clients, needed, seed=seed), sent)


def squared_error(votes, weights, members):
    error = 0.0
    for member in (members, ~members):
        if member.any():
            centre = np.average(votes[member], axis=0, weights=weights[member])
            error += (weights[member] * ((votes[member] - centre) ** 2).sum(axis=1)).sum()
    return error


def best_split(votes, weights):
    """The split of least squared error, all tried one by one; the first voter is in the first cluster."""
    splits = [np.array((False, *rest)) for rest in product([False, True], repeat=len(votes) - 1)][1:]
    return min(splits, key=lambda second: squared_error(votes, weights, second))


def test_the_worked_example():
    outcome = aggregated(Clustered(publish_single=True), A_AND_B)
    # A: {1, 2} and {3}; B: {1, 3} with squared error .07 and {2}
    np.testing.assert_allclose(outcome.choices[0].probabilities(), [[0.65, 0.25, 0.10], [0.40, 0.35, 0.25]], atol=1e-4)
    np.testing.assert_allclose(outcome.choices[1].probabilities(), [[0.10, 0.20, 0.70], [0.20, 0.70, 0.10]], atol=1e-4)
    errors = [squared_error(A_AND_B[:, 1], np.ones(3), np.arange(3) == alone) for alone in range(3)]
    np.testing.assert_allclose(errors, [0.1300, 0.0700, 0.0900], atol=1e-4)


def test_a_row_with_a_cluster_of_one_gives_everybody_the_mean():
    outcome = aggregated(Clustered(), A_AND_B)
    for choice in outcome.choices:
        assert choice.log_probs.tobytes() == outcome.teacher.log_probs.tobytes()
    # Why both: three times the mean minus twice the other cluster is the single vote.
    single = 3 * outcome.teacher.probabilities()[0] - 2 * np.array([0.65, 0.25, 0.10])
    np.testing.assert_allclose(single, A_AND_B[2, 0], atol=1e-4)


def test_two_against_two_is_published_as_two_teachers():
    votes = np.array([[[0.9, 0.1]], [[0.2, 0.8]], [[0.8, 0.2]], [[0.3, 0.7]]])
    first, second = aggregated(Clustered(), votes).choices
    # as heavy as each other: the one with the first name is the first
    np.testing.assert_allclose(first.probabilities(), [[0.85, 0.15]], atol=1e-6)
    np.testing.assert_allclose(second.probabilities(), [[0.25, 0.75]], atol=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_of_equal_clusters_the_one_with_the_first_name_is_the_first(seed):
    votes = np.array([[[0.9, 0.1]], [[0.2, 0.8]]] * 10)
    first, second = aggregated(Clustered(restarts=1), votes, seed=seed).choices
    assert (first.probabilities()[0, 0], second.probabilities()[0, 0]) == pytest.approx((0.9, 0.2), abs=1e-6)


def test_the_heavier_cluster_is_the_first():
    votes = np.array([[[0.9, 0.1]], [[0.2, 0.8]], [[0.8, 0.2]], [[0.3, 0.7]], [[0.25, 0.75]]])
    first, second = aggregated(Clustered(), votes).choices
    np.testing.assert_allclose(first.probabilities(), [[0.25, 0.75]], atol=1e-6)
    np.testing.assert_allclose(second.probabilities(), [[0.85, 0.15]], atol=1e-6)
    weights = np.array([[1.0], [0.1], [1.0], [0.1], [0.1]])
    assert aggregated(Clustered(), votes, weights=weights).choices[0].probabilities()[0, 0] > 0.8


@given(seed=st.integers(0, 10**6), clients=st.integers(1, 7), classes=st.sampled_from([2, 3, 6]), single=st.booleans())
@settings(max_examples=60, deadline=None)
def test_few_voters_get_the_best_of_all_splits(seed, clients, classes, single):
    rng = np.random.default_rng(seed)
    votes, weights = rng.dirichlet(np.ones(classes), (clients, 5)), rng.uniform(0.1, 1.0, (clients, 5))
    mask = rng.random((clients, 5)) < 0.8
    outcome = aggregated(Clustered(publish_single=single), votes, mask, weights)
    rows = np.flatnonzero(mask.any(axis=0))
    assert outcome.teacher.rows.tolist() == rows.tolist()
    for row, mean, *found in zip(rows, *(x.probabilities() for x in (outcome.teacher, *outcome.choices)), strict=True):
        own, trust = votes[mask[:, row], row], capped(weights[mask[:, row], row])
        np.testing.assert_allclose(mean, np.average(own, axis=0, weights=trust), atol=1e-6)
        second = best_split(own, trust) if len(own) > 1 else np.zeros(len(own), bool)
        if min(second.sum(), (~second).sum()) < (1 if single else 2):
            expected = [mean, mean]
        else:
            expected = [np.average(own[member], axis=0, weights=capped(trust[member])) for member in (~second, second)]
            if trust[second].sum() > trust[~second].sum():
                expected.reverse()
        np.testing.assert_allclose(found, expected, atol=1e-5)


@given(seed=st.integers(0, 10**6), clients=st.integers(ENUMERATED + 1, 40), classes=st.sampled_from([2, 5, 50]))
@settings(max_examples=30, deadline=None)
def test_many_voters_find_planted_clusters(seed, clients, classes):
    rng = np.random.default_rng(seed)
    second = rng.random(clients) < rng.uniform(0.2, 0.8)
    second[:2], second[-2:] = False, True
    centres = np.full((2, classes), 0.1 / classes) + 0.9 * np.eye(classes)[[0, 1]]
    votes = np.array([rng.dirichlet(200 * centres[int(member)]) + 1e-9 for member in second])[:, None]
    votes /= votes.sum(axis=2, keepdims=True)
    choices = aggregated(Clustered(), votes).choices
    found = np.array(sorted(tuple(choice.probabilities()[0]) for choice in choices))
    expected = np.array(sorted((tuple(votes[~second, 0].mean(axis=0)), tuple(votes[second, 0].mean(axis=0)))))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@given(seed=st.integers(0, 10**6), clients=st.integers(20, 40))
@settings(max_examples=20, deadline=None)
def test_on_two_classes_the_split_is_the_best_threshold(seed, clients):
    # Most of the votes wide apart, some close together: the best border is not at the mean.
    rng = np.random.default_rng(seed)
    first = np.sort(
        np.where(rng.random(clients) < 0.85, rng.uniform(0.05, 0.5, clients), rng.uniform(0.9, 0.95, clients))
    )
    votes = np.stack([first, 1 - first], axis=1)
    borders = [np.arange(clients) < border for border in range(1, clients)]
    best = min(borders, key=lambda member: squared_error(votes, np.ones(clients), member))
    if min(best.sum(), (~best).sum()) < 2:
        return
    choices = aggregated(Clustered(restarts=20), votes[:, None]).choices
    found = sorted(float(choice.probabilities()[0, 0]) for choice in choices)
    np.testing.assert_allclose(found, [first[best].mean(), first[~best].mean()], atol=1e-5)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=3, deadline=None)
def test_restarts_come_near_the_best_split_where_nothing_is_planted(seed):
    votes = np.random.default_rng(seed).dirichlet(np.ones(3), (13, 1))
    outcome = aggregated(Clustered(publish_single=True, restarts=20), votes)
    own, centres = votes[:, 0], np.array([choice.probabilities()[0] for choice in outcome.choices])
    distances = ((own[:, None] - centres) ** 2).sum(axis=2)
    best = squared_error(own, np.ones(13), best_split(own, np.ones(13)))
    assert distances.min(axis=1).sum() <= best * 1.02 + 1e-6


@pytest.mark.parametrize("clients", [1, 2, 5, 20])
def test_equal_votes_have_one_teacher(clients):
    votes = np.repeat(np.array([[[0.5, 0.3, 0.2], [1 - 2e-12, 1e-12, 1e-12]]]), clients, axis=0)
    for choice in aggregated(Clustered(publish_single=True), votes).choices:
        np.testing.assert_allclose(choice.probabilities(), votes[0], atol=1e-6)


def test_a_rows_clusters_do_not_depend_on_the_other_rows_that_are_asked():
    votes = np.random.default_rng(3).dirichlet(np.ones(4), (30, 6))
    whole = aggregated(Clustered(restarts=1), votes)
    mask = np.zeros((30, 6), bool)
    mask[:, [1, 4]] = True
    part = aggregated(Clustered(restarts=1), votes, mask)
    for one, other in zip(whole.choices, part.choices, strict=True):
        np.testing.assert_allclose(one.log_probs[[1, 4]], other.log_probs, atol=1e-6)
