"""The convex head: solved as far as it says, and no record moves it further than its bound."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import check_grad

from privacy.audit.record_replay import Recorder, record_replay
from privacy.mechanisms.convex_head import ConvexHead, _objective, probabilities, with_intercept
from privacy.mechanisms.mechanism import GRID, DrawnNoise
from privacy.noise import Draw, SeededEntropy


def noise(*names):
    return DrawnNoise(Draw(SeededEntropy(1, *names)))


def records(n=60, inputs=4, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    return rng.normal(size=(n, inputs)) * 0.3 + np.eye(classes, inputs)[labels], labels


def solved(head, features, labels):
    recorder = Recorder(noise())
    head.release(features, labels, recorder)
    return recorder.calls[0].values


def gradient(head, weights, features, labels):
    """Written from the formula, one record after the other."""
    total = np.zeros_like(weights)
    for row, label in zip(features, labels, strict=True):
        x = np.append(row / max(1.0, np.linalg.norm(row)), 1.0) / math.sqrt(2.0)
        odds = np.exp(x @ weights)
        total += np.outer(x, odds / odds.sum() - np.eye(head.classes)[label])
    return total / len(features) + head.regularisation * weights


@pytest.mark.parametrize("regularisation", [1e-4, 1e-2, 1.0, 100.0])
@pytest.mark.parametrize("tolerance", [1e-3, 1e-9])
def test_the_solution_s_gradient_is_at_most_the_tolerance(regularisation, tolerance):
    features, labels = records()
    head = ConvexHead(1.0, 3, regularisation, tolerance)
    assert np.linalg.norm(gradient(head, solved(head, features, labels), features, labels)) <= tolerance * (1 + 1e-6)


def test_where_the_solver_gives_up_plain_descent_goes_on(monkeypatch):
    features, labels = records()
    head = ConvexHead(1.0, 3, 0.1, 1e-8)
    expected = solved(head, features, labels)
    started = []

    def gives_up(function, start, **options):
        started.append(start)
        return type("Found", (), {"x": start})()

    monkeypatch.setattr("scipy.optimize.minimize", gives_up)
    descended = solved(head, features, labels)
    assert len(started) == 1
    # Both are within tau / Lambda = 1e-7 of the optimum.
    assert np.linalg.norm(descended - expected) <= 2e-7


def test_the_objective_and_its_gradient_agree():
    features, labels = records()
    at = _objective(with_intercept(features), labels, 60, 3, 0.1)
    for seed in range(3):
        start = np.random.default_rng(seed).normal(size=15)
        wrong = check_grad(lambda w: at(w.reshape(5, 3))[0], lambda w: at(w.reshape(5, 3))[1].ravel(), start)
        assert wrong < 1e-6


@given(arrays(np.float64, (4, 3), elements=st.floats(-1e300, 1e300)))
def test_no_input_row_is_longer_than_one(features):
    rows = with_intercept(features)
    assert (np.linalg.norm(rows, axis=1) <= 1.0 + 1e-12).all()
    for row, before in zip(rows, features, strict=True):
        length = np.linalg.norm(before / max(1.0, np.abs(before).max())) * max(1.0, np.abs(before).max())
        np.testing.assert_allclose(row * math.sqrt(2.0), [*(before / max(1.0, length)), 1.0], rtol=1e-9, atol=1e-15)


def test_the_bound_is_the_formula():
    # (sqrt 2 / 200 + 2e-6) / .05
    assert ConvexHead(1.0, 10, 0.05).sensitivity(200) == pytest.approx(0.14146136, rel=1e-6)
    assert ConvexHead(1.0, 10, 0.05, 1e-3).sensitivity(200) == pytest.approx(0.18142136, rel=1e-6)


@pytest.mark.parametrize("n", [2, 10, 100])
def test_one_record_against_all_others_comes_near_the_bound(n):
    # At strong regularisation the weights hardly move from 0, where |p - e_y|^2 = 1 - 1/k: .7 of sqrt 2 for 50 classes.
    features, labels = np.full((n, 1), 1e9), np.zeros(n, np.int64)
    first, second = labels.copy(), labels.copy()
    first[-1], second[-1] = 1, -1  # -1 is no label: the record counts as nothing
    head = ConvexHead(1.0, 50, 10.0, 1e-9)
    found = record_replay(lambda told, noise: head.release(features, told, noise), first, second, noise())
    assert found.problems == ()
    assert 0.69 < found.worst < 1 / math.sqrt(2.0)


def test_a_sum_in_place_of_the_mean_is_found():
    class Sum(ConvexHead):
        """FedAUX's mistake (section 10): scikit-learn's loss is a sum, and C = 1/lambda."""

        def _solved(self, features, labels):
            mean = ConvexHead(1.0, self.classes, self.regularisation / len(features), self.tolerance)
            return mean._solved(features, labels)

    features, labels = np.full((100, 1), 1e9), np.arange(100) % 2
    first, second = labels.copy(), labels.copy()
    first[-1], second[-1] = 1, -1
    head = Sum(1.0, 2, 50.0)
    found = record_replay(lambda told, noise: head.release(features, told, noise), first, second, noise())
    assert found.worst > 5.0
    assert "input moved by" in found.problems[0]


def test_a_record_that_is_none_is_one_whose_loss_is_nothing():
    features, labels = records()
    broken, wrong = features.copy(), labels.copy()
    broken[7, 2] = np.nan
    wrong[7] = 3
    head = ConvexHead(1.0, 3, 0.1, 1e-9)
    one, other = solved(head, broken, labels), solved(head, features, wrong)
    assert one.tobytes() == other.tobytes()
    # The others' mean is still over all 60: 59 records at 59/60 of their weight.
    without = ConvexHead(1.0, 3, 0.1 * 60 / 59, 1e-9)
    rest = np.arange(60) != 7
    np.testing.assert_allclose(one, solved(without, features[rest], labels[rest]), rtol=0, atol=1e-7)


def test_labels_of_the_released_weights_are_good_with_little_noise_and_free():
    features, labels = records(600)
    head = ConvexHead(1e-6, 3, 1e-3)
    weights = head.release(features, labels, noise())
    fresh, truth = records(300, seed=1)
    assert (probabilities(weights, fresh).argmax(axis=1) == truth).mean() > 0.85  # chance is a third
    np.testing.assert_allclose(probabilities(weights, fresh).sum(axis=1), 1.0, rtol=0, atol=1e-12)


def test_the_grid_is_far_below_the_noise_and_public():
    for n in (60, 6000):
        features, labels = records(n)
        head = ConvexHead(1.3, 3, 0.1)
        recorder = Recorder(noise())
        weights = head.release(features, labels, recorder)
        grid, std = recorder.calls[0].parameters[2], 1.3 * head.sensitivity(n)
        assert std * GRID / 2 < grid <= std * GRID
        assert (weights / grid == np.rint(weights / grid)).all()


@pytest.mark.parametrize(
    ("features", "labels", "says"),
    [
        (np.zeros((0, 3)), np.zeros(0, np.int64), "records=0 must be a whole number, 1 or more"),
        (
            np.zeros((4, 3)),
            np.zeros(3, np.int64),
            r"features \[4, 3\] and labels \[3\]: \[n, inputs\] and \[n\] expected",
        ),
        (np.zeros(4), np.zeros(4, np.int64), r"\[n, inputs\] and \[n\] expected"),
    ],
)
def test_records_of_another_shape_are_refused(features, labels, says):
    with pytest.raises(ValueError, match=says):
        ConvexHead(1.0, 3, 0.1).release(features, labels, noise())


def test_a_tolerance_that_floats_cannot_reach_is_refused():
    with pytest.raises(ValueError, match="tolerance=1e-12 must be at least 1e-10"):
        ConvexHead(1.0, 3, 0.1, 1e-12)
    with pytest.raises(ValueError, match="classes=1 must be a whole number, 2 or more"):
        ConvexHead(1.0, 1, 0.1)
