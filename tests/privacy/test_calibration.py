"""Calibration never claims less than is spent, and wastes less than the last digit."""

import math

import pytest

from privacy.accounting import analytic_gaussian_noise, epsilon_of, group_epsilon_of
from privacy.calibration import MOST_ROUNDS, noise_for_events, steps_for
from privacy.events import Gaussian, PoissonGaussian, RandomizedResponse, times

DELTA = 1e-5


def noise_for(epsilon, delta, sample_rate, steps):
    """Of so many steps of DP-SGD."""
    return noise_for_events(epsilon, delta, lambda noise: (PoissonGaussian(sample_rate, noise, steps),))


# q, T, delta: the nearest noise of four decimals for epsilon 1, 3, 8 (privacy.md 4.6)
TABLE = {
    (0.1, 100, 1e-5): (3.9417, 1.6747, 0.9359),
    (0.05, 400, 1e-5): (3.8744, 1.6207, 0.9158),
    (0.1, 100, 5e-5): (3.5552, 1.5507, 0.8847),
    (1.0, 10, 1e-5): (11.7973, 4.3974, 1.8981),
    (512 / 12000, 937, 1e-5): (4.9749, 1.9912, 1.0526),
    (2048 / 60000, 1171, 1e-5): (4.4608, 1.8076, 0.9822),
    (256 / 60000, 14062, 1e-5): (2.0251, 0.9684, 0.6557),
}


@pytest.mark.parametrize("plan", TABLE)
def test_the_references_noise_is_the_nearest_one(plan):
    q, steps, delta = plan
    for epsilon, noise in zip((1.0, 3.0, 8.0), TABLE[plan], strict=True):
        assert epsilon_of([PoissonGaussian(q, noise + 6e-5, steps)], delta) < epsilon
        assert epsilon_of([PoissonGaussian(q, noise - 6e-5, steps)], delta) > epsilon


def test_the_nearest_noise_may_be_too_little():
    assert epsilon_of([PoissonGaussian(0.1, 0.9359, 100)], DELTA) == pytest.approx(8.0004, abs=5e-5)


@pytest.mark.parametrize(
    ("q", "steps", "epsilon", "noise"),
    [
        (0.1, 100, 1.0, 3.9417),
        (0.1, 100, 3.0, 1.6747),
        (0.1, 100, 8.0, 0.9360),  # .9359 is too little
        (1.0, 10, 3.0, 4.3975),  # 4.3974 is too little
        (256 / 60000, 14062, 8.0, 0.6558),  # .6557 is too little
    ],
)
def test_noise_is_rounded_up_until_it_fits(q, steps, epsilon, noise):
    assert noise_for(epsilon, DELTA, q, steps) == noise
    assert epsilon_of([PoissonGaussian(q, noise, steps)], DELTA) <= epsilon
    assert epsilon_of([PoissonGaussian(q, noise - 1e-4, steps)], DELTA) > epsilon


@pytest.mark.parametrize("epsilon", [0.01, 0.3, 6.0])
def test_a_single_gaussian_has_the_closed_forms_noise(epsilon):
    noise = noise_for(epsilon, DELTA, 1.0, 1)
    assert 0.0 <= noise - analytic_gaussian_noise(epsilon, DELTA) <= 1.001e-4 + 1e-6 * noise


def test_noise_of_a_mixed_plan_covers_all_of_it():
    def plan(noise):
        return PoissonGaussian(0.05, noise, 40), Gaussian(3.0 * noise, 5)

    noise = noise_for_events(2.0, DELTA, plan)
    assert epsilon_of(plan(noise), DELTA) <= 2.0 < epsilon_of(plan(noise - 1e-4), DELTA)
    assert noise > noise_for(2.0, DELTA, 0.05, 40)


@pytest.mark.parametrize("records", [2, 5])
def test_noise_for_a_patients_rows_covers_all_of_them_and_no_more(records):
    def plan(noise):
        return (PoissonGaussian(0.05, noise, 40),)

    noise = noise_for_events(3.0, DELTA, plan, records)
    assert group_epsilon_of(plan(noise), DELTA, records) <= 3.0 < group_epsilon_of(plan(noise - 1e-4), DELTA, records)
    # The group is sampled row by row: less noise than `records` times a single record's, more than one's.
    assert noise_for(3.0, DELTA, 0.05, 40) < noise < records * noise_for(3.0, DELTA, 0.05, 40)
    rounds = steps_for(3.0, DELTA, (PoissonGaussian(0.05, noise, 1),), records)
    assert rounds == 40


def test_a_groups_plain_gaussian_takes_noise_as_many_times_larger():
    one, five = (noise_for_events(3.0, DELTA, lambda s: (Gaussian(s, 3),), k) for k in (1, 5))
    assert five == pytest.approx(5 * one, abs=6e-4)


def test_noise_of_randomised_labels_is_one_over_their_epsilon():
    def labels(noise):
        return (RandomizedResponse(1.0 / noise, 10, 100),)

    noise = noise_for_events(3.0, DELTA, labels)
    assert epsilon_of(labels(noise), DELTA) <= 3.0
    keep = math.exp(1 / noise) / (math.exp(1 / noise) + 9)
    assert 0.1140 < keep <= 0.1148  # 3.4: .1147 without the rounding of each loss up to 1e-4


def test_a_plan_that_no_order_of_renyi_divergence_can_certify_is_calibrated_all_the_same():
    # Below .0084 nothing fits by RDP at any order up to 512.
    noise = noise_for(0.002, DELTA, 0.01, 10)
    assert epsilon_of([PoissonGaussian(0.01, noise, 10)], DELTA) <= 0.002


@pytest.mark.parametrize("event", [PoissonGaussian(0.1, 4.0, 5), Gaussian(30.0, 1), RandomizedResponse(0.1, 10, 5)])
def test_rounds_are_as_many_as_fit(event):
    rounds = steps_for(2.0, DELTA, (event, Gaussian(60.0, 1)))
    assert rounds > 3
    for one_more, fits in ((0, True), (1, False)):
        whole = [times(event, rounds + one_more), Gaussian(60.0, rounds + one_more)]
        assert (epsilon_of(whole, DELTA) <= 2.0) is fits


def test_noise_and_rounds_are_inverse():
    noise = noise_for(2.0, DELTA, 0.1, 60)
    assert steps_for(2.0, DELTA, (PoissonGaussian(0.1, noise, 1),)) == 60
    assert steps_for(2.0, DELTA, (PoissonGaussian(0.1, noise, 20),)) == 3


def test_no_round_fits_where_one_is_too_dear():
    assert steps_for(1.0, DELTA, (Gaussian(3.73, 1),)) == 0  # 3.7306 would fit once
    assert steps_for(1.0, DELTA, (Gaussian(3.7307, 1),)) == 1
    assert steps_for(1.0, DELTA, (Gaussian(0.01, 1),)) == 0


def test_rounds_without_end_end_at_a_million():
    assert steps_for(1.0, DELTA, (Gaussian(1e6, 1),)) == MOST_ROUNDS


@pytest.mark.parametrize("epsilon", [0.0, -1.0, 50.1, math.inf, math.nan])
def test_an_epsilon_that_promises_nothing_or_too_much_is_refused(epsilon):
    for use in (
        lambda: noise_for(epsilon, DELTA, 0.1, 10),
        lambda: noise_for_events(epsilon, DELTA, lambda noise: (Gaussian(noise, 1),)),
        lambda: steps_for(epsilon, DELTA, (Gaussian(5.0, 1),)),
    ):
        with pytest.raises(ValueError, match=rf"epsilon={epsilon} must be in \(0, 50\]"):
            use()


@pytest.mark.parametrize("delta", [0.0, 1.0, -0.1, math.nan])
def test_a_delta_that_is_no_small_probability_is_refused(delta):
    for use in (
        lambda: noise_for(1.0, delta, 0.1, 10),
        lambda: noise_for_events(1.0, delta, lambda noise: (Gaussian(noise, 1),)),
        lambda: steps_for(1.0, delta, (Gaussian(5.0, 1),)),
    ):
        with pytest.raises(ValueError, match="must be in"):
            use()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: noise_for(1.0, DELTA, 0.0, 10), r"sample_rate=0.0 must be in \(0, 1\]"),
        (lambda: noise_for(1.0, DELTA, 0.1, 0), "count=0 must be a whole number"),
        (lambda: noise_for(1e-9, 1e-12, 1.0, 1000), r"epsilon=1e-09 is not met with noise 1e\+06: plan fewer rounds"),
        # At noise .1 this is a Gaussian of 5: epsilon .7255.
        (
            lambda: noise_for_events(1.0, DELTA, lambda noise: (Gaussian(50 * noise, 1),)),
            "epsilon=1.0 is met with noise 0.1, below which nothing is hidden",
        ),
        (lambda: noise_for_events(1.0, DELTA, lambda _: ()), "events_at returns no events"),
        (lambda: steps_for(1.0, DELTA, ()), "event_per_round is empty"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_in_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
