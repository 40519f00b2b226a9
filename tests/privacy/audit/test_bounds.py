"""What a guarantee allows an attacker: the reference's values, and that only broken claims are refuted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.audit.bounds import epsilon_lower_bound, most_true_positives
from privacy.audit.roc import clopper_pearson, roc

DELTA = 1e-5


@pytest.mark.parametrize(("epsilon", "most"), [(1.0, 0.0272), (3.0, 0.2009), (8.0, 0.9997)])
def test_most_true_positives_at_one_percent_false_alarms(epsilon, most):
    assert round(float(most_true_positives(0.01, epsilon, DELTA)), 4) == most


@given(st.floats(0, 8), st.floats(0, 0.5), st.floats(0, 1))
def test_the_bound_is_between_guessing_and_everything_and_grows_with_epsilon(epsilon, delta, alarms):
    bound = float(most_true_positives(alarms, epsilon, delta))
    assert min(alarms, 1.0) - 1e-12 <= bound <= 1.0
    assert bound <= float(most_true_positives(alarms, epsilon + 0.1, delta)) + 1e-12
    # turned round: calling strangers members and members strangers is an attack, too; e^8 magnifies rounding
    assert 1.0 - alarms <= float(most_true_positives(1.0 - bound, epsilon, delta)) + 1e-9


def test_no_guarantee_is_no_bound_and_perfect_privacy_is_guessing():
    assert most_true_positives([0.0, 0.3, 1.0], float("inf"), 0.0).tolist() == [0.0, 1.0, 1.0]
    assert most_true_positives([0.0, 0.3, 1.0], 0.0, 0.0) == pytest.approx([0.0, 0.3, 1.0])


def gaussian_attack(seed, mu, count=4000):
    """The best attack on one Gaussian release of sensitivity mu standard deviations."""
    rng = np.random.default_rng(seed)
    member = rng.random(count) < 0.5
    return roc(rng.normal(size=count) + mu * member, member)


# mu = 1 / (sigma/D) of reference 4.1 at delta 1e-5
@pytest.mark.parametrize(("epsilon", "sigma"), [(0.1, 30.7496), (1.0, 3.7306), (3.0, 1.3906), (8.0, 0.6002)])
def test_a_correct_gaussian_mechanism_is_never_refuted_on_twenty_seeds(epsilon, sigma):
    assert max(epsilon_lower_bound(gaussian_attack(seed, 1.0 / sigma), DELTA) for seed in range(20)) <= epsilon


def test_no_noise_and_half_of_it_are_refuted():
    # mu = 1/.5 claims epsilon 9.9973 at most; claimed as 3 with sigma 1.3906 / 4
    assert min(epsilon_lower_bound(gaussian_attack(seed, 4 / 1.3906), DELTA) for seed in range(5)) > 3.0
    assert epsilon_lower_bound(gaussian_attack(0, 100.0), DELTA) > 5.0


def test_the_bound_is_what_checking_every_threshold_by_hand_finds():
    curve = gaussian_attack(1, 2.0, 300)
    found = epsilon_lower_bound(curve, 0.01)
    each = 0.05 / (2 * (len(curve.hits) - 2))

    def stands(epsilon):
        return all(
            clopper_pearson(hits, curve.members, each)[0]
            <= most_true_positives(clopper_pearson(alarms, curve.strangers, each)[1], epsilon, 0.01) + 1e-12
            for hits, alarms in zip(curve.hits, curve.alarms, strict=True)
        )

    assert found > 0.5
    assert stands(found + 1e-9)
    assert not stands(found - 1e-6)


def test_an_attack_that_is_perfectly_wrong_refutes_as_much():
    rng = np.random.default_rng(4)
    member = rng.random(2000) < 0.5
    scores = rng.normal(size=2000) + 3.0 * member
    right, wrong = epsilon_lower_bound(roc(scores, member), DELTA), epsilon_lower_bound(roc(-scores, ~member), DELTA)
    assert right > 2.0
    assert wrong == pytest.approx(right, rel=0.2)


def test_one_threshold_that_is_no_choice_shows_nothing():
    assert epsilon_lower_bound(roc(np.array([0.0, 0.0, 1.0, 1.0]), np.array([False, False, True, True])), DELTA) == 0.0


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: most_true_positives(0.1, -1.0, DELTA), "epsilon=-1.0 must be 0 or more"),
        (lambda: most_true_positives(0.1, float("nan"), DELTA), "epsilon=nan must be 0 or more"),
        (lambda: most_true_positives(0.1, 1.0, 2.0), "delta=2.0 must be in"),
        (lambda: epsilon_lower_bound(gaussian_attack(0, 1.0, 20), -0.1), "delta=-0.1 must be in"),
    ],
)
def test_what_is_no_guarantee_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()
