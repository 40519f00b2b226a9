"""What releases cost: the library and dumber computations agree, and nothing depends on the bookkeeping."""

import math
from dataclasses import replace
from itertools import pairwise

import dp_accounting
import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent
from dp_accounting.dp_event import RepeatAndSelectDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.pld import privacy_loss_distribution as laws
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import binom, norm

from privacy import accounting
from privacy.accounting import (
    accountant,
    analytic_gaussian_delta,
    best_of_epsilon,
    delta_of,
    epsilon_of,
    group_epsilon_of,
    rdp_epsilon,
    rdp_of,
    rough_epsilon_of,
)
from privacy.events import Gaussian, PoissonGaussian, RandomizedResponse, from_json, times, to_json
from privacy.groups import group_law

DELTA = 1e-5
ZERO_OUT = NeighboringRelation.REPLACE_SPECIAL
CHEAP = (PoissonGaussian(0.05, 4.0, 30), Gaussian(20.0, 3), Gaussian(90.0, 8), RandomizedResponse(0.05, 10, 4))
ONE_OF_EACH = (PoissonGaussian(0.1, 3.0, 1), Gaussian(9.0, 1), RandomizedResponse(0.3, 5, 1))
POSITIVE = st.floats(min_value=1e-300, max_value=1e300)
EVENTS = st.one_of(
    st.builds(PoissonGaussian, st.floats(min_value=1e-300, max_value=1.0), POSITIVE, st.integers(1, 10**9)),
    st.builds(Gaussian, POSITIVE, st.integers(1, 10**9)),
    st.builds(RandomizedResponse, POSITIVE, st.integers(2, 10**6), st.integers(1, 10**9)),
)


def library(event):
    noise = GaussianDpEvent(event.noise_multiplier)
    return PoissonSampledDpEvent(event.sample_rate, noise) if isinstance(event, PoissonGaussian) else noise


def by_library(events):
    judge = PLDAccountant(neighboring_relation=ZERO_OUT)
    for event in events:
        judge.compose(library(event), event.count)
    return judge.get_epsilon(DELTA)


# ---- the accountant of record -----------------------------------------------------------------------------------


def test_the_accountant_says_its_name():
    assert accounting.INTERVAL == 1e-4
    assert accountant() == "dp-accounting 0.6.0 PLD, REPLACE_SPECIAL, interval 1e-4"


def test_no_events_cost_nothing():
    assert epsilon_of([], DELTA) == delta_of([], 0.0) == rdp_of([], 2) == rdp_epsilon([], DELTA) == 0.0
    assert group_epsilon_of([], DELTA, 3) == best_of_epsilon([], DELTA, 5) == 0.0


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4, 5), (5, 3, 0, 4, 2, 1), (2, 4, 1, 0, 5, 3)])
def test_a_mixed_ledger_costs_what_the_library_says_in_whatever_order(order):
    events = [*CHEAP[:3], PoissonGaussian(0.05, 4.0, 20), PoissonGaussian(0.2, 6.0, 5), Gaussian(20.0, 2)]
    events = [events[place] for place in order]
    assert epsilon_of(events, DELTA) == pytest.approx(by_library(events), abs=1e-6)


def test_one_kind_of_event_costs_what_the_library_says_to_the_ninth_digit():
    for event in (PoissonGaussian(0.05, 4.0, 30), Gaussian(20.0, 3)):
        assert epsilon_of([event], DELTA) == pytest.approx(by_library([event]), abs=1e-10)


@given(st.permutations(CHEAP), st.integers(1, 2), st.randoms(use_true_random=False))
@settings(max_examples=15, deadline=None)
def test_neither_order_nor_split_of_counts_changes_a_bit(events, cut, chance):
    parts = [replace(event, count=count) for event in events for count in (cut, event.count - cut)]
    chance.shuffle(parts)
    accounting._epsilon.cache_clear()
    assert epsilon_of(parts, DELTA) == epsilon_of(CHEAP, DELTA)


@pytest.mark.parametrize("one", ONE_OF_EACH)
def test_a_count_of_n_costs_what_n_events_cost(one):
    # The library is asked to compose one by one, so that the merging is not compared with itself.
    single = accounting._law(one, 1, accounting.INTERVAL)
    composed = single
    for _ in range(6):
        composed = composed.compose(single)
    assert epsilon_of([times(one, 7)], DELTA) == pytest.approx(composed.get_epsilon_for_delta(DELTA), abs=1e-6)
    assert epsilon_of([times(one, 7)], DELTA) == epsilon_of([one] * 7, DELTA)
    assert rdp_of([times(one, 7)], 6) == pytest.approx(7 * rdp_of([one], 6), rel=1e-12)
    assert group_epsilon_of([times(one, 7)], DELTA, 2) == group_epsilon_of([one] * 7, DELTA, 2)


def test_more_releases_than_one_chunk_are_composed_alike(monkeypatch):
    event = PoissonGaussian(0.01, 2.0, 1003)
    whole = epsilon_of([event], DELTA)
    monkeypatch.setattr(accounting, "_CHUNK", 100)
    accounting._epsilon.cache_clear()
    assert epsilon_of([event], DELTA) == pytest.approx(whole, abs=1e-9)


def test_a_million_rare_steps_are_answered():
    # The library's own loop computes 3 ** 10^6 first. A bound by RDP: nothing can be far above it.
    events = [PoissonGaussian(1e-3, 5.0, 10**6)]
    assert 0.7 < epsilon_of(events, DELTA) < rdp_epsilon(events, DELTA)


def test_a_rough_epsilon_is_near_enough_to_search_with():
    for events in (CHEAP[:3], [PoissonGaussian(0.1, 1.5, 50)], [Gaussian(2.0, 2)]):
        assert epsilon_of(events, DELTA) < rough_epsilon_of(events, DELTA) < 1.001 * epsilon_of(events, DELTA)


def test_a_sample_of_everybody_is_no_sample():
    assert epsilon_of([PoissonGaussian(1.0, 5.0, 10)], DELTA) == epsilon_of([Gaussian(5.0, 10)], DELTA)
    assert rdp_of([PoissonGaussian(1.0, 5.0, 10)], 4) == rdp_of([Gaussian(5.0, 10)], 4)


def test_events_cost_the_same_after_they_were_written_and_read():
    assert epsilon_of(from_json(to_json(CHEAP)), DELTA) == epsilon_of(CHEAP, DELTA)


def test_delta_and_epsilon_are_inverse():
    for events in (CHEAP, CHEAP[:1]):
        assert delta_of(events, epsilon_of(events, DELTA)) == pytest.approx(DELTA, rel=1e-6)
    assert delta_of([Gaussian(5.0, 10)], 1.0) == pytest.approx(
        analytic_gaussian_delta(5.0 / math.sqrt(10), 1.0), rel=1e-4
    )


def test_cost_rises_with_steps_and_rate_and_falls_with_noise():
    def cost(q=0.1, s=2.0, steps=20):
        return epsilon_of([PoissonGaussian(q, s, steps)], DELTA)

    for costs in (
        [cost(steps=t) for t in (1, 2, 20, 40)],
        [cost(q=q) for q in (0.001, 0.1, 0.5, 1.0)],
        [cost(s=s) for s in (50.0, 8.0, 4.0, 2.0)],
        [epsilon_of([RandomizedResponse(e, 10, 9)], DELTA) for e in (0.01, 0.1, 0.3, 1.0)],
        [epsilon_of([Gaussian(s, 2)], DELTA) for s in (100.0, 10.0, 3.0, 1.0)],
        [group_epsilon_of([PoissonGaussian(0.05, 9.0, 20)], DELTA, k) for k in (1, 2, 3, 9)],
        [best_of_epsilon([PoissonGaussian(0.1, 3.0, 20)], DELTA, mean) for mean in (1.5, 4, 20)],
    ):
        assert all(low < high for low, high in pairwise(costs)), costs


def test_the_plan_is_never_dearer_than_the_bound_by_renyi_divergence():
    for events in (CHEAP, [PoissonGaussian(0.2, 2.0, 50)], [RandomizedResponse(0.5, 3, 40)], [Gaussian(1.0, 2)]):
        assert epsilon_of(events, DELTA) < rdp_epsilon(events, DELTA) < 1.6 * epsilon_of(events, DELTA)


@pytest.mark.parametrize(
    "event",
    [
        Gaussian(0.099, 1),
        Gaussian(0.5, 26),  # 26 / (2 x .25) = 52 nats
        PoissonGaussian(1e-9, 0.05, 1),
        PoissonGaussian(0.5, 1.0, 10**8 + 1),
        Gaussian(1e9, 10**8 + 1),
        RandomizedResponse(60.0, 2, 1),
        RandomizedResponse(1e300, 2, 1),
    ],
)
def test_what_hides_nothing_is_told_as_infinite(event):
    assert epsilon_of([*CHEAP, event], DELTA) == math.inf
    assert delta_of([*CHEAP, event], 1.0) == 1.0


# ---- dumber computations -------------------------------------------------------------------------------------------


def test_a_few_steps_lie_between_naive_bounds():
    q, s, steps, cell = 0.2, 1.5, 4, 2e-3
    x = np.linspace(-14.0, 15.0, 200_001)
    loss = np.log1p(q * np.expm1((2 * x - 1) / (2 * s * s)))
    with_record = np.diff((1 - q) * norm.cdf(x, 0, s) + q * norm.cdf(x, 1, s))
    without = np.diff(norm.cdf(x, 0, s))

    def naive(losses, weights, rounding):
        cells = rounding(losses / cell).astype(int)
        one = np.bincount(cells - cells.min(), weights)
        law = one
        for _ in range(steps - 1):
            law = np.convolve(law, one)
        values = (np.arange(len(law)) + steps * cells.min()) * cell

        def excess(epsilon):
            return (law * np.maximum(0.0, -np.expm1(np.minimum(0.0, epsilon - values)))).sum() - DELTA

        return brentq(excess, 0.0, 50.0)

    low = max(naive(loss[:-1], with_record, np.floor), naive(-loss[1:], without, np.floor))
    high = max(naive(loss[1:], with_record, np.ceil), naive(-loss[:-1], without, np.ceil))
    assert low < epsilon_of([PoissonGaussian(q, s, steps)], DELTA) < high
    assert high - low < 0.04


@pytest.mark.parametrize(("label_epsilon", "classes", "labels"), [(0.5, 3, 6), (0.1, 10, 20), (2.0, 2, 3)])
def test_randomised_labels_cost_what_every_outcome_together_says(label_epsilon, classes, labels):
    keep = math.exp(label_epsilon) / (math.exp(label_epsilon) + classes - 1)
    other = (1 - keep) / (classes - 1)
    law = np.ones(1)
    for _ in range(labels):  # a label's loss is e0, -e0 or 0
        law = np.convolve(law, [other, 1 - keep - other, keep])
    losses = np.arange(-labels, labels + 1) * label_epsilon
    exact = brentq(lambda e: (law * np.maximum(0, -np.expm1(np.minimum(0, e - losses)))).sum() - DELTA, 0, 99)
    assert (
        exact - 1e-9 < epsilon_of([RandomizedResponse(label_epsilon, classes, labels)], DELTA) < exact + 2e-4 * labels
    )
    for order in (2, 8):
        ratios = np.array(
            [keep**order * other ** (1 - order), other**order * keep ** (1 - order), (classes - 2) * other]
        )
        naive = labels * math.log(ratios.sum()) / (order - 1)
        assert rdp_of([RandomizedResponse(label_epsilon, classes, labels)], order) == pytest.approx(naive, rel=1e-10)


@pytest.mark.parametrize(("q", "s", "records"), [(0.3, 8.0, 3), (0.9, 12.0, 2), (0.05, 20.0, 2)])
def test_a_groups_law_is_the_librarys_mixture(q, s, records):
    shares = binom.pmf(range(records + 1), records, q).tolist()
    own = group_law(q, s, records, 1e-3).self_compose(50)
    slow = laws.from_mixture_gaussian_mechanism(
        s, list(range(records + 1)), shares, value_discretization_interval=1e-3
    ).self_compose(50)
    assert own.get_epsilon_for_delta(DELTA) == pytest.approx(slow.get_epsilon_for_delta(DELTA), abs=1e-7)


def test_a_group_of_one_is_a_record():
    law = group_law(0.05, 3.0, 1, 1e-4).self_compose(200)
    assert law.get_epsilon_for_delta(DELTA) == pytest.approx(
        epsilon_of([PoissonGaussian(0.05, 3.0, 200)], DELTA), abs=1e-8
    )


def test_a_group_moves_a_gaussian_as_far_and_randomised_labels_no_further():
    assert group_epsilon_of([Gaussian(12.0, 5)], DELTA, 3) == pytest.approx(
        epsilon_of([Gaussian(4.0, 5)], DELTA), abs=1e-12
    )
    labels = [RandomizedResponse(0.2, 10, 30)]
    assert group_epsilon_of(labels, DELTA, 7) == epsilon_of(labels, DELTA)


def test_the_best_of_many_costs_less_than_all_and_more_than_one():
    trial = (PoissonGaussian(0.1, 3.0, 50), Gaussian(30.0, 2))
    best = best_of_epsilon(trial, DELTA, 10)
    assert epsilon_of(trial, DELTA) < best < epsilon_of([times(event, 10) for event in trial], DELTA)
    judge = RdpAccountant(neighboring_relation=ZERO_OUT)
    told = dp_accounting.ComposedDpEvent([dp_accounting.SelfComposedDpEvent(library(e), e.count) for e in trial])
    assert best == pytest.approx(judge.compose(RepeatAndSelectDpEvent(told, 10, 1)).get_epsilon(DELTA), abs=1e-9)


@pytest.mark.parametrize("event", CHEAP[:2])
def test_an_event_that_the_installed_library_cannot_account_is_an_error(monkeypatch, event):
    accounting._law.cache_clear()
    accounting._epsilon.cache_clear()
    monkeypatch.setattr(PLDAccountant, "supports", lambda *_: False)
    with pytest.raises(ValueError, match="does not support"):
        epsilon_of([event], DELTA)
