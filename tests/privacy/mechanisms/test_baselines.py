"""The two baselines do what they say, which is little."""

import numpy as np
import pytest
from scipy.stats import chisquare

from privacy.mechanisms.gaussian import GaussianOutput
from privacy.mechanisms.krr import KRandomizedResponse
from privacy.mechanisms.mechanism import DrawnNoise, keep_probability
from privacy.noise import Draw, SeededEntropy


def noise(*names):
    return DrawnNoise(Draw(SeededEntropy(1, *names)))


@pytest.mark.parametrize(("classes", "label_epsilon"), [(2, 0.3), (4, 1.0), (10, 3.0)])
@pytest.mark.parametrize("true", [0, -1])
def test_labels_are_kept_or_replaced_with_the_stated_probabilities(classes, label_epsilon, true):
    n, label = 40_000, true % classes
    mechanism = KRandomizedResponse(label_epsilon, classes, posterior=False, allow_baseline=True)
    released = mechanism.release(np.tile(np.eye(classes)[label], (n, 1)), noise(classes, true)).argmax(axis=1)
    keep = np.exp(label_epsilon) / (np.exp(label_epsilon) + classes - 1)
    expected = np.full(classes, (1.0 - keep) / (classes - 1) * n)
    expected[label] = keep * n
    assert chisquare(np.bincount(released, minlength=classes), expected).pvalue > 1e-4


def test_no_output_is_likelier_than_the_label_epsilon_allows():
    # P / p0 = e^e0, for every pair of labels and every output
    for label_epsilon in (0.1, 1.0, 5.0):
        keep = keep_probability(label_epsilon, 7)
        assert keep / ((1.0 - keep) / 6) == pytest.approx(np.exp(label_epsilon), rel=1e-12)


def test_the_posterior_is_bayes_rule_under_equal_priors():
    keep = keep_probability(1.0, 3)
    likelihood = np.full((3, 3), (1.0 - keep) / 2) + np.eye(3) * (keep - (1.0 - keep) / 2)  # [true, released]
    released = KRandomizedResponse(1.0, 3, posterior=True, allow_baseline=True).release(np.eye(3), noise())
    hard = KRandomizedResponse(1.0, 3, posterior=False, allow_baseline=True).release(np.eye(3), noise())
    for row, label in zip(released, hard.argmax(axis=1), strict=True):
        np.testing.assert_allclose(row, likelihood[:, label] / likelihood[:, label].sum(), rtol=1e-12)
    assert set(np.unique(hard)) == {0.0, 1.0}


def test_the_most_probable_class_is_the_label_and_the_first_of_equal_ones():
    sure = KRandomizedResponse(700.0, 3, posterior=False, allow_baseline=True)
    probs = np.array([[0.2, 0.5, 0.3], [0.4, 0.2, 0.4], [np.nan, 0.0, 1.0]])
    assert sure.release(probs, noise()).argmax(axis=1).tolist() == [1, 0, 0]


@pytest.mark.parametrize("shape", [(4, 3), (4,), (2, 4, 2)])
def test_another_number_of_classes_is_refused(shape):
    with pytest.raises(ValueError, match="expected"):
        KRandomizedResponse(1.0, 2, allow_baseline=True).release(np.ones(shape), noise())


@pytest.mark.parametrize("classes", [1, 0, 2.0, True])
def test_a_number_of_classes_that_is_none_is_refused(classes):
    with pytest.raises(ValueError, match=f"classes={classes} must be a whole number, 2 or more"):
        KRandomizedResponse(1.0, classes, allow_baseline=True)


def test_gaussian_output_without_noise_to_speak_of_is_the_input():
    probs = np.random.default_rng(0).dirichlet(np.ones(5), 20)
    released = GaussianOutput(1e-9, allow_baseline=True).release(probs, noise())
    np.testing.assert_allclose(released, probs, rtol=0, atol=2.0**-12)  # the grid remains


def test_gaussian_output_at_a_usual_budget_is_useless():
    # 1000 rows, epsilon 3: noise 62 on each probability. The class that was certain wins one row in ten.
    mechanism = GaussianOutput(1.3906, allow_baseline=True)
    certain = np.tile(np.eye(10)[3], (1000, 1))
    kept = np.mean([(mechanism.release(certain, noise(seed)).argmax(axis=1) == 3).mean() for seed in range(10)])
    assert abs(kept - 0.1) < 5 * np.sqrt(0.1 * 0.9 / 10_000) + 0.01  # and a little for the signal


def test_a_randomised_label_at_a_usual_budget_is_useless():
    # 1000 rows of 10 classes, epsilon 3: kept with probability .1046 (section 3.4)
    mechanism = KRandomizedResponse(0.0503, 10, posterior=False, allow_baseline=True)
    released = mechanism.release(np.tile(np.eye(10)[3], (100_000, 1)), noise()).argmax(axis=1)
    assert abs((released == 3).mean() - 0.1046) < 5 * np.sqrt(0.1 * 0.9 / 100_000)


def test_a_matrix_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"\[n, classes\] expected"):
        GaussianOutput(1.0, allow_baseline=True).release(np.ones(4), noise())
