"""KuLSIF: the numbers of the reference, its system solved, and the width that it finds by itself."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillation.selectors.kulsif import Kulsif, fit_ratio, kernel, median_distance, ratios


def rng(seed=0):
    return np.random.default_rng(seed)


def test_kulsif_is_the_worked_example_and_multiplying_instead_of_solving_is_not():
    local, points = np.array([[0.0], [0.5]]), np.array([[-1.0], [0.0], [1.0], [2.0]])
    weights = fit_ratio(local, points, 1.0, 0.5)
    np.testing.assert_allclose(weights, [-0.1900, -0.5111, -0.3735, -0.0541], atol=1e-4)
    asked = np.array([[0.0], [0.25], [1.5]])
    np.testing.assert_allclose(ratios(asked, local, points, weights, 1.0, 0.5), [1.0223, 1.0624, 0.3796], atol=1e-4)
    # The authors' code: (K/4 + I/2) times the right-hand side.
    matrix = kernel(points, points, 1.0) / 4 + 0.5 * np.eye(4)
    wrong = matrix @ (-kernel(points, local, 1.0).sum(axis=1) / (4 * 2 * 0.5))
    np.testing.assert_allclose(ratios(asked[2:], local, points, wrong, 1.0, 0.5), [0.3019], atol=1e-4)


@given(seed=st.integers(0, 10**6), ridge=st.sampled_from([1e-6, 1e-3, 0.06, 1.0]), copies=st.integers(1, 4))
@settings(max_examples=20)
def test_kulsif_solves_its_system(seed, ridge, copies):
    draw = rng(seed)
    points, local = np.repeat(draw.normal(size=(20, 3)), copies, axis=0), draw.normal(size=(7, 3))
    weights = fit_ratio(local, points, 1.3, ridge)
    right = -kernel(points, local, 1.3).sum(axis=1) / (len(points) * 7 * ridge)
    residual = (kernel(points, points, 1.3) / len(points) + ridge * np.eye(len(points))) @ weights - right
    assert np.linalg.norm(residual) < 1e-8 * max(1.0, np.linalg.norm(right))


def test_kulsif_is_the_plain_sum_over_points_also_across_blocks():
    draw = rng(3)
    local, points, asked = (draw.normal(size=(count, 2)) for count in (4, 3, 2005))
    weights = fit_ratio(local, points, 0.8, 0.1)
    found = ratios(asked, local, points, weights, 0.8, 0.1)
    for row in (0, 1999, 2000, 2004):
        near = [np.exp(-sum((asked[row] - other) ** 2) / (2 * 0.8**2)) for other in (*points, *local)]
        plain = sum(a * k for a, k in zip(weights, near[:3], strict=True)) + sum(near[3:]) / (4 * 0.1)
        assert found[row] == pytest.approx(max(plain, 0.0), abs=1e-10)


def test_the_width_is_the_median_distance():
    # Distances between 0, 1 and 4 are 1, 3 and 4.
    assert median_distance(np.array([[0.0], [1.0], [4.0]]), rng()) == pytest.approx(3.0)
    assert median_distance(np.zeros((5, 2)), rng()) == 1.0
    assert median_distance(np.zeros((1, 2)), rng()) == 1.0


def plain_distances(rows):
    """Distances between all pairs, one by one, without those of equal rows."""
    pairs = [np.linalg.norm(one - other) for at, one in enumerate(rows) for other in rows[:at]]
    return [distance for distance in pairs if distance > 0]


def mostly_alike(seed, scale=1.0, shift=0.0):
    """40 proxy rows of which 32 are one and the same: 496 of 780 distances are 0. No value is exact in binary."""
    rows = np.concatenate([np.tile([0.1, 0.7, 1 / 3], (32, 1)), rng(seed).normal(size=(8, 3))])
    return ((rows + shift) * scale).astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
def test_rows_that_are_the_same_do_not_narrow_the_width(seed):
    rows = mostly_alike(seed).astype(np.float64)
    assert median_distance(rows, rng()) == pytest.approx(np.median(plain_distances(rows)), rel=1e-9)
    # Equal but for rounding, as a network's outputs for the same picture in two batches.
    noisy = rows + rng(seed).normal(scale=1e-9, size=rows.shape)
    assert median_distance(noisy, rng()) == pytest.approx(median_distance(rows, rng()), rel=1e-6)


@pytest.mark.parametrize("auxiliary_from", ["box", "proxy"])
@pytest.mark.parametrize(("scale", "shift"), [(7.0, 0.0), (0.01, 0.0), (1.0, 0.3), (7.0, -2.1)])
@pytest.mark.parametrize("seed", range(3))
def test_unit_and_origin_do_not_matter_where_most_proxy_rows_are_the_same(auxiliary_from, scale, shift, seed):
    private = rng(seed + 50).normal(size=(60, 3))
    selector, labels = Kulsif(auxiliary_from=auxiliary_from, known=0.5), np.zeros(60, np.int64)
    one, other = (
        selector.select(((private + by) * unit).astype(np.float32), labels, mostly_alike(seed, unit, by), rng())
        for unit, by in ((1.0, 0.0), (scale, shift))
    )
    np.testing.assert_allclose(one.scores, other.scores, rtol=1e-3, atol=1e-6)
    assert (one.kept == other.kept).mean() > 0.98


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e6 + 0.1, 1e-9])
def test_rows_that_are_all_the_same_have_width_1(value):
    assert median_distance(np.full((9, 3), value), rng()) == 1.0
