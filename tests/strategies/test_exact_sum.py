"""The order-free sum: the same bits in every order, and the right value."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.exact_sum import OrderFreeSum, WideOrderFreeSum

TERMS = st.lists(st.floats(-16.2, 16.2), min_size=1, max_size=30)
# From a millionth to a billion, and both signs.
WIDE_TERMS = st.lists(
    st.builds(lambda digits, power: digits * 10.0**power, st.floats(-9.9, 9.9), st.integers(-6, 8)),
    min_size=1,
    max_size=30,
)


def total(values, accumulator=None):
    accumulator = accumulator or OrderFreeSum((1,))
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


@given(WIDE_TERMS, st.randoms(use_true_random=False))
def test_a_wide_sum_is_free_of_order_too(values, random):
    shuffled = list(values)
    random.shuffle(shuffled)
    one, other = (total(terms, WideOrderFreeSum((1,), 2.0**31)) for terms in (values, shuffled))
    assert one.tobytes() == other.tobytes()


@given(WIDE_TERMS)
def test_a_wide_sum_keeps_small_terms_beside_large_ones(values):
    # Each term to a multiple of 2^31 * 2^-90, the two parts and the total to float64.
    exact = sum(map(Fraction, values))
    found = Fraction(float(total(values, WideOrderFreeSum((1,), 2.0**31))))
    assert abs(found - exact) <= Fraction(len(values), 2**59) + abs(exact) / 2**51


@pytest.mark.parametrize("value", [np.nan, np.inf, 2.0**31, -(2.0**31)])
def test_a_wide_sum_refuses_terms_out_of_range_and_stays_as_it_was(value):
    accumulator = WideOrderFreeSum((2,), 2.0**31)
    accumulator.add(np.array([1.0, 2.0]))
    with pytest.raises(ValueError, match="not finite or not below"):
        accumulator.add(np.array([1.0, value]))
    assert accumulator.value().tolist() == [1.0, 2.0]


def test_float32_terms_are_added_in_float64():
    accumulator = OrderFreeSum((1,), 2.0)
    values = np.float32([0.1, 0.7, 1e-6])
    for value in values:
        accumulator.add(value[None])
    # Each to a multiple of 2 * 2^-45; float32 beside the anchor of 384 would keep multiples of 2^-15.
    assert accumulator.value()[0] == pytest.approx(float(values.astype(np.float64).sum()), abs=1e-12)


@given(st.lists(st.tuples(st.integers(0, 2**5 - 1), st.floats(-1, 1)), max_size=20), st.randoms(use_true_random=False))
def test_terms_of_some_entries_and_of_all_mix_in_any_order(terms, random):
    def summed(terms):
        accumulator = OrderFreeSum((5, 2), 2.0)
        for bits, value in terms:
            rows = np.flatnonzero([bits >> row & 1 for row in range(5)])
            at = slice(None) if bits == 31 else rows
            accumulator.add(np.full((len(rows), 2), value), at)
        return accumulator.value()

    expected = np.zeros((5, 2))
    for bits, value in terms:
        expected[[bool(bits >> row & 1) for row in range(5)]] += value
    np.testing.assert_allclose(summed(terms), expected, atol=1e-12)
    shuffled = list(terms)
    random.shuffle(shuffled)
    assert summed(terms).tobytes() == summed(shuffled).tobytes()
