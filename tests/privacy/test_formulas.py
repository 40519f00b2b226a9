"""Our own formulas are the integrals, the inverses and the bounds that they claim to be."""

import math

import pytest
from dp_accounting import GaussianDpEvent, LaplaceDpEvent, NeighboringRelation, PoissonSampledDpEvent
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.stats import norm

from privacy.accounting import (
    analytic_gaussian_delta,
    analytic_gaussian_epsilon,
    analytic_gaussian_noise,
    best_of_epsilon,
    check_delta,
    conversion,
    default_delta,
    delta_of,
    epsilon_of,
    filter_budget,
    filter_order,
    group_epsilon_of,
    rdp_epsilon,
    rdp_of,
    round_up,
)
from privacy.events import Gaussian, PoissonGaussian, RandomizedResponse, times

DELTA = 1e-5
CHEAP = (PoissonGaussian(0.05, 4.0, 30), Gaussian(20.0, 3), Gaussian(90.0, 8), RandomizedResponse(0.05, 10, 4))
POSITIVE = st.floats(min_value=1e-300, max_value=1e300)
EVENTS = st.one_of(
    st.builds(PoissonGaussian, st.floats(min_value=1e-300, max_value=1.0), POSITIVE, st.integers(1, 10**9)),
    st.builds(Gaussian, POSITIVE, st.integers(1, 10**9)),
    st.builds(RandomizedResponse, POSITIVE, st.integers(2, 10**6), st.integers(1, 10**9)),
)


@given(EVENTS)
@settings(max_examples=60)
def test_renyi_divergence_is_finite_or_infinite_but_never_nothing_known(event):
    for order in (2, 64):
        assert rdp_of([event], order) >= 0.0
    filter_order([event], 3.0, DELTA)


@pytest.mark.parametrize(("q", "s"), [(0.3, 0.8), (0.01, 1.0), (0.9, 3.0)])
def test_the_divergence_of_a_sampled_gaussian_is_its_integral(q, s):
    for order in (2, 5, 9):

        def integrand(x, order=order):
            ratio = math.log1p(q * math.expm1((2 * x - 1) / (2 * s * s)))
            return math.exp(order * ratio + norm.logpdf(x, 0, s))

        integral, _ = quad(integrand, -12 * s, order + 12 * s, epsabs=0, epsrel=1e-12, limit=500, points=[0, 1, order])
        assert rdp_of([PoissonGaussian(q, s, 1)], order) == pytest.approx(math.log(integral) / (order - 1), rel=1e-8)


def test_our_divergences_are_the_librarys_at_whole_orders():
    orders = [2, 3, 8, 33, 64]
    for event in (PoissonGaussian(0.004, 1.1, 1), PoissonGaussian(0.5, 0.6, 1), Gaussian(3.0, 1)):
        noise = GaussianDpEvent(event.noise_multiplier)
        told = PoissonSampledDpEvent(event.sample_rate, noise) if isinstance(event, PoissonGaussian) else noise
        judge = RdpAccountant(orders=orders, neighboring_relation=NeighboringRelation.REPLACE_SPECIAL).compose(told, 50)
        assert [rdp_of([times(event, 50)], order) for order in orders] == pytest.approx(list(judge.rdp), rel=1e-8)


def test_pure_mechanisms_lie_below_their_bounds():
    # 4.3: Laplace of scale 2, R(8) = ln[8/15 e^(7/2) + 7/15 e^(-8/2)] / 7
    laplace = math.log(8 / 15 * math.exp(3.5) + 7 / 15 * math.exp(-4.0)) / 7
    assert laplace == pytest.approx(0.410268, abs=5e-7)
    judge = RdpAccountant(orders=[8], neighboring_relation=NeighboringRelation.REPLACE_SPECIAL)
    assert judge.compose(LaplaceDpEvent(2.0)).rdp[0] == pytest.approx(laplace, rel=1e-9)
    for e0, divergence in (
        (0.5, laplace),
        *((e0, rdp_of([RandomizedResponse(e0, 2, 1)], 8)) for e0 in (0.1, 1.0, 3.0)),
    ):
        assert divergence <= min(e0, 8 * e0**2 / 2)


def test_a_groups_own_law_is_tighter_than_the_bound_for_any_two_records():
    # (e, d) for one record is (2e, (1 + e^e) d) for two; 4.5 has 2.0386 where the law has 2.0161.
    plan = [PoissonGaussian(0.05, 3.0, 200)]
    one = brentq(lambda e: (1 + math.exp(e)) * delta_of(plan, e) - DELTA, 0.5, 2.0)
    assert 2 * one == pytest.approx(2.0386, abs=5e-5)
    assert group_epsilon_of(plan, DELTA, 2) < 2 * one


def test_rare_samples_keep_their_digits():
    # Small q: R(2) = ln(1 + q^2 (e^(1/s^2) - 1)) = q^2 (e - 1) at s = 1, where 1 + q^2 is rounded to 1.
    assert rdp_of([PoissonGaussian(1e-12, 1.0, 1)], 2) == pytest.approx(1e-24 * (math.e - 1), rel=1e-6)
    # Small e0: R(a) = a e0^2 (P + p) / 2, and P = p = 1/k.
    assert rdp_of([RandomizedResponse(1e-9, 10, 1)], 2) == pytest.approx(2 * 1e-18 / 10, rel=1e-6)


# ---- the Gaussian in closed form ---------------------------------------------------------------------------------


@given(st.floats(0.05, 1e4), st.sampled_from([1e-10, 1e-5, 1e-2, 0.4]))
def test_noise_and_epsilon_of_a_gaussian_are_inverse(noise, delta):
    epsilon = analytic_gaussian_epsilon(noise, delta)
    assert analytic_gaussian_delta(noise, epsilon) <= delta
    if epsilon > 1e-6:
        assert analytic_gaussian_delta(noise, epsilon * (1 - 1e-6)) > delta * (1 - 1e-9)
        assert analytic_gaussian_noise(epsilon, delta) == pytest.approx(noise, rel=1e-5)


@pytest.mark.parametrize("noise", [0.5, 1.0, 2.0, 5.0, 20.0])
def test_the_library_agrees_with_the_closed_form_and_lies_above_it(noise):
    for count in (1, 7):
        excess = epsilon_of([Gaussian(noise, count)], DELTA) - analytic_gaussian_epsilon(
            noise / math.sqrt(count), DELTA
        )
        assert 0.0 <= excess < 2e-7


def test_noise_without_effect_costs_without_bound():
    assert analytic_gaussian_epsilon(1e-300, DELTA) == math.inf
    assert analytic_gaussian_epsilon(1e300, DELTA) == 0.0


# ---- rounding, delta, filters, refusals --------------------------------------------------------------------------


@given(st.floats(0.0, 1e6), st.integers(0, 6))
def test_rounding_up_never_claims_less_nor_a_digit_more(value, digits):
    rounded = round_up(value, digits)
    assert value <= rounded < value + 10.0**-digits + 1e-9
    assert round_up(rounded, digits) == rounded


@given(st.integers(1, 10**12))
def test_the_default_delta_is_a_tenth_of_a_record_at_most(records):
    delta = default_delta(records)
    assert delta == min(1e-5, 1 / (10 * records))
    if delta >= 1e-12:
        check_delta(delta, records)


@pytest.mark.parametrize("delta", [0.0, -1e-5, 1.0, 1e-13, math.nan, math.inf])
@pytest.mark.parametrize(
    "use",
    [
        check_delta,
        lambda delta: epsilon_of(CHEAP, delta),
        lambda delta: group_epsilon_of(CHEAP, delta, 2),
        lambda delta: best_of_epsilon(CHEAP[:1], delta, 2),
        lambda delta: rdp_epsilon(CHEAP, delta),
        lambda delta: conversion(8, delta),
        lambda delta: analytic_gaussian_epsilon(1.0, delta),
        lambda delta: analytic_gaussian_noise(1.0, delta),
    ],
)
def test_a_delta_that_is_no_small_probability_is_refused(use, delta):
    with pytest.raises(ValueError, match=r"delta=.* must be in"):
        use(delta)


def test_a_delta_above_one_record_in_all_is_refused():
    check_delta(1e-3, 1000)
    with pytest.raises(ValueError, match=r"delta=0.00101 must be at most 1/n=0.001 for n=1000 records"):
        check_delta(1.01e-3, 1000)


@pytest.mark.parametrize("records", [0, -1, 1.5, True])
def test_a_number_of_records_that_is_none_is_refused(records):
    for use in (default_delta, lambda n: check_delta(1e-5, n), lambda n: group_epsilon_of(CHEAP, DELTA, n)):
        with pytest.raises(ValueError, match="must be a whole number"):
            use(records)


def test_what_fits_through_a_filter_fits_into_the_plan():
    for event in (PoissonGaussian(0.1, 2.0, 1), Gaussian(20.0, 1), RandomizedResponse(0.1, 10, 1)):
        order = filter_order([event], 3.0, DELTA)
        fits = math.floor(filter_budget(3.0, DELTA, order) / rdp_of([event], order))
        assert fits > 10
        assert epsilon_of([times(event, fits)], DELTA) <= 3.0
        for other in (order - 1, order + 1):  # no neighbour lets more through
            assert filter_budget(3.0, DELTA, other) / rdp_of([event], other) <= filter_budget(
                3.0, DELTA, order
            ) / rdp_of([event], order)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: delta_of(CHEAP, -0.1), "epsilon=-0.1 must be 0 or more"),
        (lambda: delta_of(CHEAP, math.nan), "epsilon=nan must be 0 or more"),
        (lambda: group_epsilon_of(CHEAP, DELTA, 1001), "records=1001 must be a whole number in 1..1000"),
        (lambda: best_of_epsilon(CHEAP[:1], DELTA, 0.5), "mean_trials=0.5 must be a finite number, 1 or more"),
        (lambda: best_of_epsilon(CHEAP, DELTA, 5), "randomised response, whose best-of cost is not computed"),
        (lambda: round_up(math.nan), "value=nan must be a number"),
        (lambda: rdp_of(CHEAP, 1), "order=1 must be a whole number, 2 or more"),
        (lambda: conversion(2.5, DELTA), "order=2.5 must be a whole number"),
        (lambda: filter_budget(1.0, DELTA, True), "order=True must be a whole number"),
        (lambda: filter_order([], 1.0, DELTA), "events is empty"),
        (lambda: filter_order(CHEAP, 0.001, DELTA), "epsilon=0.001 must be above 0.0084, what the conversion costs"),
        (lambda: analytic_gaussian_epsilon(0.0, DELTA), "noise_multiplier=0.0 must be a finite number above 0"),
        (lambda: analytic_gaussian_noise(math.inf, DELTA), "epsilon=inf must be a finite number above 0"),
    ],
)
def test_what_cannot_be_computed_is_refused_in_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
