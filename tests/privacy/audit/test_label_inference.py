"""Label-distribution inference: exact where a model answers by its prior, and its distances by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy

from privacy.audit.label_inference import balanced_mean, infer_labels, kl_nats


def test_a_site_that_answers_with_its_own_shares_is_read_exactly():
    counts = np.array([70, 20, 10])
    found = infer_labels(np.tile([0.7, 0.2, 0.1], (50, 1)), counts)
    assert found.guess == pytest.approx((0.7, 0.2, 0.1))
    assert found.kl_nats == pytest.approx(0.0, abs=1e-12)
    # ln 3 - H(.7, .2, .1) = 1.098612 - .801819
    assert found.uniform_kl_nats == pytest.approx(0.296794, abs=1e-6)
    assert found.found == pytest.approx(1.0)


def test_even_answers_tell_no_more_than_a_uniform_guess():
    found = infer_labels(np.full((50, 3), 1 / 3), np.array([70, 20, 10]))
    assert found.kl_nats == pytest.approx(found.uniform_kl_nats)
    assert found.found == pytest.approx(0.0, abs=1e-12)
    assert np.isnan(infer_labels(np.full((50, 2), 0.5), np.array([5, 5])).found)


def test_rows_of_a_frequent_proxy_class_count_no_more_than_those_of_a_rare_one():
    probabilities = np.array([[0.9, 0.1]] * 9 + [[0.3, 0.7]])
    labels = np.array([0] * 9 + [1])
    assert balanced_mean(probabilities, labels) == pytest.approx([0.6, 0.4])  # (.9 + .3)/2
    assert balanced_mean(probabilities, None) == pytest.approx([0.84, 0.16])  # (9 * .9 + .3)/10


@given(st.integers(0, 10**6))
def test_the_distance_is_scipys_relative_entropy(seed):
    rng = np.random.default_rng(seed)
    truth, guess = rng.dirichlet(np.ones(5)), rng.dirichlet(np.full(5, 3.0))
    assert kl_nats(truth, guess) == pytest.approx(entropy(truth, np.maximum(guess, 1e-6)), rel=1e-5, abs=1e-9)


def test_classes_that_are_not_there_cost_nothing_and_missed_ones_not_infinity():
    assert kl_nats(np.array([0.5, 0.5, 0.0]), np.array([0.5, 0.25, 0.25])) == pytest.approx(0.5 * np.log(2.0))
    # .5 ln(.5/1e-6) + .5 ln(.5/1)
    assert kl_nats(np.array([0.5, 0.5]), np.array([0.0, 1.0])) == pytest.approx(6.214608, abs=1e-4)


@pytest.mark.parametrize(
    ("probabilities", "counts", "says"),
    [
        (np.empty((0, 2)), np.array([1, 1]), "with at least one row"),
        (np.full((3, 2), 0.5), np.array([1, 1, 1]), r"probabilities are \[3, 2\] and counts \[3\]"),
        (np.full((3, 2), 0.5), np.array([0, 0]), "the site has no record"),
        (np.full((3, 2), 0.5), np.array([-1, 3]), "the site has no record"),
    ],
)
def test_what_has_no_distribution_is_refused(probabilities, counts, says):
    with pytest.raises(ValueError, match=says):
        infer_labels(probabilities, counts)
