"""What is done to rows before noise and after it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.optimize import minimize

from privacy.mechanisms.mechanism import (
    GRID,
    DrawnNoise,
    clipped,
    keep_probability,
    positive,
    projected,
    renormalised,
    simplex_rows,
    whole,
)
from privacy.noise import Draw, OsEntropy, SeededEntropy

ANYTHING = arrays(
    np.float64,
    array_shapes(min_dims=2, max_dims=3, min_side=2, max_side=5),
    elements=st.floats(allow_nan=True, allow_infinity=True),
)
FINITE = arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(2, 5)), elements=st.floats(-1e3, 1e3))


@given(ANYTHING)
def test_rows_are_distributions_whatever_comes_in_and_the_input_stays_as_it_was(values):
    before = values.copy()
    rows = simplex_rows(values)
    assert (rows >= 0.0).all()
    np.testing.assert_allclose(rows.sum(axis=-1), 1.0, rtol=0, atol=1e-12)
    assert np.array_equal(values, before, equal_nan=True)


@given(ANYTHING)
def test_a_row_does_not_depend_on_the_others(values):
    rows = simplex_rows(values)
    for index in np.ndindex(values.shape[:-1]):
        assert rows[index].tobytes() == simplex_rows(values[index][None])[0].tobytes()


def test_rows_that_say_nothing_become_the_public_ones():
    bad = np.array([[np.nan, 1.0], [np.inf, 0.0], [0.0, -3.0], [-np.inf, 1.0], [1.0, 3.0]])
    assert simplex_rows(bad).tolist() == [[0.5, 0.5]] * 4 + [[0.25, 0.75]]
    given_rows = np.array([[0.1, 0.9]] * 5)
    assert simplex_rows(bad, given_rows).tolist() == [[0.1, 0.9]] * 4 + [[0.25, 0.75]]


def test_huge_and_tiny_values_keep_their_ratio():
    # 1e308 + 3e307 overflows nothing: 1/(1 + .3); two least float64 are as likely as each other
    assert simplex_rows([[1e308, 3e307], [5e-324, 5e-324]]).round(12).tolist() == [
        [round(1 / 1.3, 12), round(0.3 / 1.3, 12)],
        [0.5, 0.5],
    ]


@pytest.mark.parametrize("shape", [(3,), (3, 1), ()])
def test_what_is_no_matrix_of_classes_is_refused(shape):
    with pytest.raises(ValueError, match=r"\[n, classes\] expected"):
        simplex_rows(np.ones(shape))


@given(FINITE)
def test_the_projection_is_the_nearest_distribution(values):
    nearest = projected(values)
    np.testing.assert_allclose(nearest.sum(axis=1), 1.0, rtol=0, atol=1e-12)
    # The projection p of v is the only distribution with (v - p)(q - p) <= 0 for every corner q.
    for v, p in zip(values, nearest, strict=True):
        assert max((v - p)[corner] - (v - p) @ p for corner in range(len(v))) <= 1e-9 * (1.0 + np.abs(v).max()) ** 2


def test_the_projection_agrees_with_a_general_solver():
    values = np.array([0.9, 0.5, -0.3, 0.2])
    found = minimize(
        lambda p: ((p - values) ** 2).sum(),
        np.full(4, 0.25),
        bounds=[(0, 1)] * 4,
        constraints={"type": "eq", "fun": lambda p: p.sum() - 1.0},
        tol=1e-14,
    )
    # .9 - .2 and .5 - .2 add up to 1, and .2 - .2 is 0
    np.testing.assert_allclose(projected(values[None])[0], [0.7, 0.3, 0.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(found.x, [0.7, 0.3, 0.0, 0.0], atol=1e-6)


def test_huge_noise_still_leaves_distributions():
    noisy = np.random.default_rng(0).normal(size=(50, 10)) * 2.0**32
    for rows in (projected(noisy), renormalised(noisy, 20.0)):
        np.testing.assert_allclose(rows.sum(axis=1), 1.0, rtol=0, atol=1e-12)
    # clipped to [0, 2], then divided by the sum: 2/(2 + 1); nothing above 0 is uniform
    assert renormalised(np.array([[9.0, 1.0], [-1.0, -7.0]]), 2.0).tolist() == [[2 / 3, 1 / 3], [0.5, 0.5]]


@given(FINITE, st.floats(1e-6, 1e6))
def test_clipping_shortens_what_is_too_long_and_leaves_the_rest_alone(values, bound):
    short, length = clipped(values, bound), float(np.linalg.norm(values))
    assert np.linalg.norm(short) <= bound * (1.0 + 1e-12)
    if length <= bound * (1.0 - 1e-12):
        assert short.tobytes() == values.tobytes()
    else:
        np.testing.assert_allclose(short, values * (bound / length), rtol=1e-9, atol=1e-300)


def test_noise_is_normal_around_the_values_and_on_the_grid():
    values = np.linspace(-3.0, 3.0, 20_000)
    noised = DrawnNoise(Draw(SeededEntropy(1))).gaussian(values, 2.0, 0.75)
    assert (noised / GRID == np.rint(noised / GRID)).all()
    noise = noised - values
    assert abs(noise.mean()) < 5 * 1.5 / np.sqrt(20_000)
    assert noise.std() == pytest.approx(1.5, abs=5 * 1.5 / np.sqrt(40_000))


def test_fresh_noise_is_never_the_same():
    noise = DrawnNoise(Draw(OsEntropy()))
    assert (noise.gaussian(np.zeros(50), 1.0, 1.0) != noise.gaussian(np.zeros(50), 1.0, 1.0)).any()
    assert (noise.discrete_gaussian(np.zeros(50, np.int64), 5.0, 1.0) != 0).any()


@pytest.mark.parametrize("multiplier", [0.0, -1.0, np.nan, np.inf, 1e300])
def test_noise_that_cannot_be_is_refused(multiplier):
    noise = DrawnNoise(Draw(SeededEntropy(1)))
    for add, zeros in ((noise.gaussian, np.zeros(2)), (noise.discrete_gaussian, np.zeros(2, np.int64))):
        with pytest.raises(ValueError, match=r"must be in \(0, 2\^32\]"):
            add(zeros, 1.0, multiplier)


def test_responses_are_exact_at_both_ends_of_the_generator():
    class Given:
        private = False

        def __init__(self, *words):
            self.words = list(words)

        def bytes(self, count):
            return np.array([self.words.pop(0) for _ in range(count // 8)], "<u8").tobytes()

    # The least uniform number keeps the label; the largest changes it, and moves it by the most steps: classes - 1.
    most = 2**64 - 1
    entropy = Given(0, most, most, 0, 0, most)  # two labels to keep or not and one, then their steps
    released = DrawnNoise(Draw(entropy)).responses(np.array([2, 2, 2]), 7, 1.0)
    assert released.tolist() == [2, (2 + 1) % 7, (2 + 6) % 7]


def test_keeping_is_the_odds_of_e_to_the_label_epsilon():
    assert keep_probability(np.log(9.0), 10) == pytest.approx(0.5, rel=1e-12)  # 9/(9 + 9)
    assert keep_probability(5000.0, 10) == 1.0


@pytest.mark.parametrize("bad", [0, -1, 1.0, True, None])
def test_numbers_that_are_not_whole_are_refused(bad):
    with pytest.raises(ValueError, match=f"clients={bad} must be a whole number, 1 or more"):
        whole("clients", bad, 1)


@pytest.mark.parametrize("bad", [0.0, -2.0, np.nan, np.inf])
def test_numbers_that_are_not_positive_are_refused(bad):
    with pytest.raises(ValueError, match=f"clip={bad} must be a finite number above 0"):
        positive("clip", bad)
