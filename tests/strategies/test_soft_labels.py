"""Soft labels are distributions or they are refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from strategies.soft_labels import SoftLabels, log_softmax

LOGITS = arrays(np.float64, (3, 4), elements=st.floats(-1e4, 1e4))


@given(LOGITS, st.floats(-1e3, 1e3))
def test_a_constant_added_to_a_row_of_logits_changes_nothing(logits, constant):
    np.testing.assert_allclose(log_softmax(logits), log_softmax(logits + constant), atol=1e-9)


@given(LOGITS)
def test_log_softmax_is_the_naive_formula_where_that_one_survives(logits):
    small = logits / 100
    naive = np.log(np.exp(small) / np.exp(small).sum(1, keepdims=True))
    np.testing.assert_allclose(log_softmax(small), naive, atol=1e-9)


@given(LOGITS)
def test_soft_labels_of_any_finite_logits_are_distributions(logits):
    soft = SoftLabels.from_logits(np.arange(3), logits)
    np.testing.assert_allclose(soft.probabilities().sum(1), 1.0, atol=1e-5)
    assert (soft.log_probs.argmax(1) == logits.astype(np.float32).argmax(1)).all() or np.ptp(logits) > 0


@pytest.mark.parametrize(("most", "dtype"), [(3e38, np.float32), (3e38, np.float64), (1.7e308, np.float64)])
def test_logits_of_any_finite_size_are_distributions(most, dtype):
    logits = np.array([[most, -most, 0.0], [-most, -most, -most]], dtype)
    soft = SoftLabels.from_logits(np.arange(2), logits)
    least = np.finfo(np.float32).min  # further apart than that is as far apart as float32 can say
    assert soft.log_probs[0].tolist() == [0.0, least, np.float32(max(-most, float(least)))]
    np.testing.assert_allclose(soft.log_probs[1], np.log(1 / 3), rtol=1e-6)
    assert np.isfinite(log_softmax(logits)).all()


def half(n=2):
    return np.full((n, 2), np.log(0.5), np.float32)


@pytest.mark.parametrize(
    ("rows", "log_probs", "says"),
    [
        (np.array([0, 1], np.int32), half(), "int64"),
        (np.array([[0], [1]]), half(), "int64"),
        (np.array([0, 1]), half().astype(np.float64), "float32"),
        (np.array([0, 1]), half()[:, 0], "float32"),
        (np.array([0]), half(), "one each"),
        (np.array([1, 0]), half(), "strictly increasing"),
        (np.array([1, 1]), half(), "strictly increasing"),
        (np.array([-1, 1]), half(), "strictly increasing"),
        (np.array([0, 1]), half() * np.float32(np.nan), "not finite"),
        (np.array([0, 1]), half() - np.float32(np.inf), "not finite"),
        (np.array([0, 1]), half() + np.float32(0.01), "logsumexps"),
    ],
)
def test_what_is_no_soft_label_is_refused_with_its_reason(rows, log_probs, says):
    with pytest.raises(ValueError, match=says):
        SoftLabels(rows, log_probs)
