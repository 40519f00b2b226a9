"""The order-free sum: the same bits in every order, and the right value."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.exact_sum import OrderFreeSum

TERMS = st.lists(st.floats(-16.2, 16.2), min_size=1, max_size=30)


def total(values):
    accumulator = OrderFreeSum((1,))
    for value in values:
        accumulator.add(np.array([value]))
    return accumulator.value()[0]


@given(TERMS, st.randoms(use_true_random=False))
def test_every_order_gives_the_same_bits(values, random):
    shuffled = list(values)
    random.shuffle(shuffled)
    assert total(values).tobytes() == total(shuffled).tobytes()


@given(TERMS)
def test_the_error_is_half_a_unit_of_two_to_the_minus_forty_a_term(values):
    exact = sum(map(Fraction, values))
    assert abs(Fraction(float(total(values))) - exact) <= Fraction(len(values), 2**41) + abs(exact) / 2**52


def test_a_plain_float_sum_would_depend_on_the_order():
    values = [0.1, 0.2, 0.3]
    assert sum(values) != sum(reversed(values))
    assert total(values) == total(values[::-1])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 32.0, -32.0, 1e300])
def test_terms_out_of_range_are_refused_and_leave_the_sum_as_it_was(value):
    accumulator = OrderFreeSum((2,))
    accumulator.add(np.array([1.0, 2.0]))
    with pytest.raises(ValueError, match="below 32"):
        accumulator.add(np.array([1.0, value]))
    assert accumulator.value().tolist() == [1.0, 2.0]


def test_too_many_terms_are_refused(monkeypatch):
    monkeypatch.setattr("strategies.exact_sum.MOST_TERMS", 1)
    accumulator = OrderFreeSum(())
    accumulator.add(np.float64(1.0).reshape(()))
    with pytest.raises(ValueError, match="terms"):
        accumulator.add(np.float64(1.0).reshape(()))
