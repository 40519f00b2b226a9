"""Every figure of the privacy reference, to the digits shown there; sections in brackets."""

import math

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent
from dp_accounting.pld import privacy_loss_distribution as laws
from dp_accounting.rdp import RdpAccountant
from scipy.optimize import brentq

from privacy.accounting import (
    analytic_gaussian_epsilon,
    analytic_gaussian_noise,
    best_of_epsilon,
    conversion,
    epsilon_of,
    filter_budget,
    filter_order,
    group_epsilon_of,
    rdp_epsilon,
    rdp_of,
    round_up,
)
from privacy.calibration import steps_for
from privacy.events import Gaussian, PoissonGaussian, RandomizedResponse

DELTA = 1e-5
MNIST = 256 / 60000
ORDERS = [1 + x / 10 for x in range(1, 100)] + list(range(12, 64))


def shown(value, digits=4):
    """Equal in the digits that are printed."""
    return pytest.approx(value, abs=0.5 * 10.0**-digits + 1e-9)


def figures(value, digits):
    """Equal in so many significant figures."""
    return pytest.approx(value, abs=0.501 * 10.0 ** (math.floor(math.log10(abs(value))) - digits + 1))


# ---- [4.1] Gaussian -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("delta", "noises"),
    [
        (1e-3, (17.4044, 4.6101, 2.5747, 1.4452, 1.0373, 0.6898, 0.4800, 0.4061)),
        (1e-5, (30.7496, 7.0318, 3.7306, 1.9938, 1.3906, 0.8919, 0.6002, 0.4999)),
        (1e-6, (36.3047, 8.0576, 4.2247, 2.2305, 1.5439, 0.9800, 0.6529, 0.5411)),
    ],
)
def test_the_noise_of_a_gaussian(delta, noises):
    for epsilon, noise in zip((0.1, 0.5, 1, 2, 3, 5, 8, 10), noises, strict=True):
        assert analytic_gaussian_noise(epsilon, delta) == shown(noise)


@pytest.mark.parametrize(
    ("noise", "epsilon"), [(0.5, 9.9973), (1, 4.3772), (2, 1.9931), (5, 0.7255), (10, 0.3407), (50, 0.0586)]
)
def test_the_epsilon_of_a_gaussian(noise, epsilon):
    assert analytic_gaussian_epsilon(noise, DELTA) == shown(epsilon)
    assert epsilon_of([Gaussian(float(noise), 1)], DELTA) == shown(epsilon)
    # 9 releases with 3 times the noise are one.
    assert epsilon_of([Gaussian(3.0 * noise, 1)] * 9, DELTA) == shown(epsilon)


@pytest.mark.parametrize(
    ("claim", "delta", "truth"),
    [
        (1, 1e-5, 0.7510),
        (8, 1e-5, 7.9144),
        (10, 1e-5, 10.3939),
        (20, 1e-5, 25.4426),
        (50, 1e-5, 96.4339),
        (8, 1e-3, 8.1787),
    ],
)
def test_the_textbook_noise_costs_something_else(claim, delta, truth):
    assert analytic_gaussian_epsilon(math.sqrt(2 * math.log(1.25 / delta)) / claim, delta) == shown(truth)


# ---- [4.2, 4.3] Renyi divergence ----------------------------------------------------------------------------------


def test_the_conversion():
    assert [conversion(order, DELTA) for order in (2, 4, 8, 16, 32)] == [
        shown(value) for value in (10.1266, 3.0879, 1.2141, 0.5182, 0.2278)
    ]


@pytest.mark.parametrize(
    ("q", "s", "divergences"),
    [
        (MNIST, 1.1, ((2.3396e-5, 5), (4.7533e-5, 5), (9.8341e-5, 5), (0.79189, 5), (7.5902, 5))),
        (0.1, 1.0, ((0.017037, 5), (0.058673, 5), (1.3784, 5), (5.5439, 5), (13.623, 5))),
        (0.05, 3.0, ((2.9375e-4, 5), (5.9439e-4, 5), (1.2177e-3, 5), (2.5633e-3, 5), (5.7787e-3, 5))),
    ],
)
def test_the_divergence_of_a_dp_sgd_step(q, s, divergences):
    for order, (value, digits) in zip((2, 4, 8, 16, 32), divergences, strict=True):
        assert rdp_of([PoissonGaussian(q, s, 1)], order) == figures(value, digits)


def test_the_divergence_of_randomised_response():
    assert rdp_of([RandomizedResponse(1.0, 10, 1)], 8) == shown(0.791647, 6)
    assert rdp_of([RandomizedResponse(1.0, 2, 1)], 8) == shown(0.955248, 6)
    for e0 in (0.1, 1.0, 3.0):  # any pure mechanism: at most e0, and at most a e0^2 / 2
        assert rdp_of([RandomizedResponse(e0, 2, 1)], 8) <= min(e0, 8 * e0**2 / 2)


@pytest.mark.parametrize(("e0", "epsilons"), [(1.0, (1.0000, 7.9933, 37.2058)), (0.1, (0.0999, 0.5418, 1.8183))])
def test_the_epsilon_of_randomised_response(e0, epsilons):
    for count, epsilon in zip((1, 10, 100), epsilons, strict=True):
        assert epsilon_of([RandomizedResponse(e0, 10, count)], DELTA) == shown(epsilon)
        assert epsilon_of([RandomizedResponse(e0, 10, 1)] * count, DELTA) == shown(epsilon)


# [6] keep .55 of 10 classes: e0 = ln(.55 / .05) = 2.3979; the library's own route says 2.3979 for every count.
@pytest.mark.parametrize(("count", "epsilon"), [(1, 2.3979), (10, 23.9750)])
def test_randomised_response_is_charged_by_count_and_by_replacement(count, epsilon):
    assert epsilon_of([RandomizedResponse(math.log(11), 10, count)], DELTA) == pytest.approx(epsilon, abs=2e-4 * count)


# [3.4] Exact on a fine grid; ours rounds each label's loss up to 1e-4, which shows at a thousand small ones.
@pytest.mark.parametrize(("e0", "keep", "epsilon"), [(0.0189, 0.1017, 1), (0.0503, 0.1046, 3), (0.1149, 0.1108, 8)])
def test_a_thousand_randomised_labels_tell_hardly_anything(e0, keep, epsilon):
    assert math.exp(e0) / (math.exp(e0) + 9) == shown(keep)

    assert exactly(e0 - 1e-4) < epsilon < exactly(e0 + 1e-4)
    assert exactly(e0) < epsilon_of([RandomizedResponse(e0, 10, 1000)], DELTA) < exactly(e0) + 0.02


def exactly(e0, classes=10, labels=1000):
    """Epsilon of k-RR without a grid: a label's loss is e0, -e0 or 0, so all together have 2 labels + 1 values."""
    keep = math.exp(e0) / (math.exp(e0) + classes - 1)
    other = (1 - keep) / (classes - 1)
    law = np.ones(1)
    for _ in range(labels):
        law = np.convolve(law, [other, 1 - keep - other, keep])
    losses = np.arange(-labels, labels + 1) * e0
    return brentq(lambda e: (law * np.maximum(0, -np.expm1(np.minimum(0, e - losses)))).sum() - DELTA, 0, labels * e0)


# ---- [4.4] DP-SGD -------------------------------------------------------------------------------------------------

# s, q, T: opacus rdp, opacus prv, dp-accounting RDP, PLD
DP_SGD = {
    (1.1, MNIST, 234): (0.7402, 0.3165, 0.7402, 0.3065),
    (1.1, MNIST, 3516): (1.2813, 1.1440, 1.2813, 1.1339),
    (1.1, MNIST, 7031): (1.7933, 1.6462, 1.7933, 1.6361),
    (1.1, MNIST, 14062): (2.5966, 2.3917, 2.5966, 2.3817),
    (1.1, 1 / 235, 14100): (2.5927, 2.3882, 2.5927, 2.3781),
    (1.0, 0.05, 200): (5.3676, 4.7762, 5.3679, 4.7659),
    (0.56, 0.02048, 488): (14.5741, 12.7040, 14.5860, 12.6931),
    (0.4, 0.05, 200): (50.0785, 44.6026, 59.6155, 44.5903),
    (20.0, 0.01, 100): (0.1037, 0.0228, 0.0149, 0.0127),
    (5.0, 1.0, 10): (2.8137, 2.6045, 2.8137, 2.5944),
}


@pytest.mark.parametrize("run", DP_SGD)
def test_the_epsilon_of_dp_sgd(run):
    s, q, steps = run
    *_, rdp, pld = DP_SGD[run]
    assert epsilon_of([PoissonGaussian(q, s, steps)], DELTA) == shown(pld)
    assert epsilon_of([PoissonGaussian(q, s, 1)] * steps, DELTA) == shown(pld)
    judge = RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_SPECIAL)
    event = PoissonSampledDpEvent(q, GaussianDpEvent(s)) if q < 1 else GaussianDpEvent(s)
    assert judge.compose(event, steps).get_epsilon(DELTA) == shown(rdp)
    # Ours at whole orders: near the library's where its best order is no fraction, and above the PLD.
    assert pld < rdp_epsilon([PoissonGaussian(q, s, steps)], DELTA) < max(1.05 * rdp, 200.0 if s < 0.6 else 0.0)


@pytest.mark.parametrize("run", [(1.1, MNIST, 14062), (1.0, 0.05, 200), (5.0, 1.0, 10)])
def test_opacus_says_the_same_or_a_little_more(run):
    from opacus.accountants import PRVAccountant, RDPAccountant

    s, q, steps = run
    rdp, prv, _, pld = DP_SGD[run]
    for kind, told in ((RDPAccountant, rdp), (PRVAccountant, prv)):
        judge = kind()
        judge.history = [(s, q, steps)]
        with np.errstate(divide="ignore"):  # PRV takes ln(1 - q)
            assert judge.get_epsilon(delta=DELTA) == shown(told)
        assert told > pld


@pytest.mark.parametrize(
    ("s", "q", "steps", "bound"),
    [(1.0, 0.05, 200, 4.7639), pytest.param(0.56, 0.02048, 488, 12.6882, marks=pytest.mark.slow)],
)
def test_the_true_epsilon_is_proven_to_lie_just_below(s, q, steps, bound):
    optimistic = laws.from_gaussian_mechanism(
        s, sampling_prob=q, pessimistic_estimate=False, value_discretization_interval=2e-5, use_connect_dots=False
    )
    assert optimistic.self_compose(steps).get_epsilon_for_delta(DELTA) == shown(bound)
    assert bound < epsilon_of([PoissonGaussian(q, s, steps)], DELTA) < bound + 0.006


# [4.4, 11] s, q, T: epsilon as published (older conversion), epsilon today
@pytest.mark.parametrize(
    ("s", "q", "steps", "published", "today"),
    [
        (0.7, 0.004, 11250, 6.8589, 5.4312),
        (1.1, 0.004, 15000, 2.9050, 2.2955),
        (1.3, 0.004, 3750, 1.1597, 0.8336),
        (1.1, MNIST, 14062, 3.0083, 2.3817),
    ],
)
def test_published_epsilons_and_what_they_are_today(s, q, steps, published, today):
    from opacus.accountants.analysis.rdp import compute_rdp

    divergences = compute_rdp(q=q, noise_multiplier=s, steps=steps, orders=ORDERS)
    old = min(rdp - math.log(DELTA) / (order - 1) for order, rdp in zip(ORDERS, divergences, strict=True))
    assert old == shown(published)
    assert epsilon_of([PoissonGaussian(q, s, steps)], DELTA) == shown(today)


# [11] TF-Privacy's MNIST page
@pytest.mark.parametrize(("s", "epochs", "today"), [(1.3, 15, 0.8645), (1.1, 60, 2.3817), (0.7, 45, 5.6394)])
def test_tf_privacys_rows_today(s, epochs, today):
    assert epsilon_of([PoissonGaussian(MNIST, s, int(epochs * 60000 / 256))], DELTA) == shown(today)


def test_rounds_add_up_in_one_ledger():
    one = PoissonGaussian(0.05, 1.0, 20)
    assert [epsilon_of([one] * rounds, DELTA) for rounds in (1, 2, 5, 10)] == [
        shown(value) for value in (1.9847, 2.4681, 3.5021, 4.7659)
    ]


# [5] clipping in bfloat16: norms up to 1.0055 C
def test_a_clip_that_is_a_little_too_long_is_charged():
    assert epsilon_of([PoissonGaussian(0.1, 1.6747 / 1.0055, 100)], DELTA) == shown(3.0240)


# [1.1] a patient in 1, 2, 3 hospitals
def test_a_patient_in_several_hospitals_pays_all_ledgers():
    plan = PoissonGaussian(0.05, 3.0, 200)
    assert [epsilon_of([plan] * places, DELTA) for places in (1, 2, 3)] == [shown(x) for x in (0.9351, 1.3517, 1.6820)]


# ---- [4.5] groups -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("records", "epsilon"), [(1, 0.9351), (2, 2.0161), (5, 5.7599), (10, 13.4152)])
def test_the_epsilon_of_a_group(records, epsilon):
    plan = PoissonGaussian(0.05, 3.0, 200)
    assert group_epsilon_of([plan], DELTA, records) == shown(epsilon)
    assert group_epsilon_of([PoissonGaussian(0.05, 3.0, 1)] * 200, DELTA, records) == shown(epsilon)


# ---- [4.7] plan and filter ----------------------------------------------------------------------------------------


def test_what_a_filter_may_spend():
    assert [filter_budget(3.0, DELTA, order) for order in (4, 8, 16, 32)] == [
        shown(value) for value in (-0.0879, 1.7859, 2.4818, 2.7722)
    ]


@pytest.mark.parametrize(
    ("epsilon", "order", "rho", "planned"),
    [(1, 18, 0.030553, 0.035926), (3, 8, 0.223236, 0.258565), (8, 4, 1.228035, 1.387829)],
)
def test_the_order_that_suits_gaussians(epsilon, order, rho, planned):
    assert filter_order([Gaussian(5.0, 1)], epsilon, DELTA) == order
    assert filter_budget(epsilon, DELTA, order) / order == shown(rho, 6)
    assert 0.5 / analytic_gaussian_noise(epsilon, DELTA) ** 2 == shown(planned, 6)


@pytest.mark.parametrize(
    ("event", "filtered", "planned"),
    [(PoissonGaussian(0.05, 3.0, 1), 1472, 1716), (PoissonGaussian(0.1, 2.0, 1), 134, 161)],
)
def test_how_many_dp_sgd_steps_fit(event, filtered, planned):
    assert filter_order([event], 3.0, DELTA) == 7
    assert filter_budget(3.0, DELTA, 7) == shown(1.5596)
    assert math.floor(filter_budget(3.0, DELTA, 7) / rdp_of([event], 7)) == filtered
    assert steps_for(3.0, DELTA, (event,)) == planned


def test_the_divergence_that_the_filter_counts():
    assert rdp_of([PoissonGaussian(0.05, 3.0, 1)], 7) == figures(1.058971e-3, 7)


# ---- [4.8] mixed ledger -------------------------------------------------------------------------------------------

MIXED = (PoissonGaussian(0.05, 1.5, 200), Gaussian(20.0, 3), Gaussian(100.0, 80), Gaussian(40 / math.sqrt(2), 50))
LABELS = RandomizedResponse(0.1, 10, 20)


def test_the_mixed_ledger():
    assert epsilon_of(MIXED, DELTA) == shown(2.6192)
    assert rdp_epsilon(MIXED, DELTA) == shown(2.8853, 3)  # the reference's orders have fractions
    with_labels = (*MIXED[:2], RandomizedResponse(0.1, 10, 7), *MIXED[2:], RandomizedResponse(0.1, 10, 13))
    assert epsilon_of(with_labels, DELTA) == epsilon_of((*MIXED, LABELS), DELTA) == shown(2.7591)
    assert rdp_epsilon(with_labels, DELTA) == shown(3.0330)


# ---- [2.5] several trials -----------------------------------------------------------------------------------------


def test_the_price_of_a_curve():
    curve = [PoissonGaussian(0.1, s, 100) for s in (3.9417, 1.6747, 0.9359)]
    assert epsilon_of(curve, DELTA) == shown(8.7308)


@pytest.mark.parametrize(
    ("noise", "epsilons"), [(1.6747, (7.1157, 10.6517, 16.2825)), (3.9417, (2.3815, 3.5050, 5.2089))]
)
def test_trials_that_are_all_kept(noise, epsilons):
    trial = PoissonGaussian(0.1, noise, 100)
    for trials, epsilon in zip((5, 10, 20), epsilons, strict=True):
        assert epsilon_of([trial] * trials, DELTA) == shown(epsilon)


@pytest.mark.parametrize(("mean", "epsilon"), [(5, 5.5695), (10, 6.1764), (20, 6.7261)])
def test_the_best_of_a_random_number_of_trials(mean, epsilon):
    assert best_of_epsilon([PoissonGaussian(0.1, 1.6747, 100)], DELTA, mean) == shown(epsilon)
    assert best_of_epsilon([PoissonGaussian(0.1, 1.6747, 1)] * 100, DELTA, mean) == shown(epsilon)


# ---- [3.2, 3.3, 3.5] mechanisms -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "noises"),
    [(100, (52.76, 19.67, 8.49)), (300, (91.38, 34.06, 14.70)), (1000, (166.84, 62.19, 26.84))],
)
def test_the_noise_per_vote_of_soft_votes(rows, noises):
    for epsilon, noise in zip((1, 3, 8), noises, strict=True):
        assert analytic_gaussian_noise(epsilon, DELTA) * math.sqrt(2 * rows) == shown(noise, 2)
        # The other way: so much noise on rows of sensitivity sqrt 2, one event a row.
        assert epsilon_of([Gaussian(noise / math.sqrt(2), rows)], DELTA) == pytest.approx(epsilon, rel=2e-3)


def test_pates_paper_setting():
    asked, answered = Gaussian(150.0, 640), Gaussian(40 / math.sqrt(2), 286)
    assert epsilon_of([asked, answered], DELTA) == shown(2.5426)
    assert epsilon_of([Gaussian(150.0, 1)] * 640 + [Gaussian(40 / math.sqrt(2), 1)] * 286, DELTA) == shown(2.5426)
    assert rdp_epsilon([asked, answered], DELTA) == shown(2.7579)
    assert epsilon_of([asked, Gaussian(40 / math.sqrt(2), 640)], DELTA) == shown(3.9267)


@pytest.mark.parametrize(
    ("event", "epsilon"),
    [
        (Gaussian(5.0, 20), 3.8486),
        (PoissonGaussian(0.1, 2.0, 200), 3.3597),
        (PoissonGaussian(0.1, 1.0, 100), 7.0466),
    ],
)
def test_sums_over_clients(event, epsilon):
    assert epsilon_of([event], DELTA) == shown(epsilon)


@pytest.mark.parametrize(("honest", "epsilon"), [(8, 3.4063), (5, 4.4634)])
def test_too_few_honest_clients_cost_more(honest, epsilon):
    noise = analytic_gaussian_noise(3.0, DELTA) * math.sqrt(honest / 10)
    assert epsilon_of([Gaussian(noise, 1)], DELTA) == shown(epsilon)


def test_noise_on_soft_labels_drowns_them():
    assert analytic_gaussian_noise(1.0, DELTA) * math.sqrt(2 * 1000) == shown(166.8, 1)
    assert analytic_gaussian_noise(8.0, DELTA) * math.sqrt(2 * 100) == shown(8.5, 1)
    # The sensitivity 1/n of papers: n = 1000, noise .0037 on a matrix whose diameter is sqrt 2000.
    assert analytic_gaussian_epsilon(0.0037306 / math.sqrt(2000), DELTA) == pytest.approx(7e7, rel=0.05)


# ---- [6, 10] what others print ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "epsilon"),
    [(Gaussian(5.0, 10), 2.5944), (PoissonGaussian(0.1, 1.0, 10), 2.8545), (PoissonGaussian(0.5, 2.0, 10), 3.9590)],
)
def test_ten_releases(event, epsilon):
    assert epsilon_of([event], DELTA) == shown(epsilon)


def test_replacing_a_record_is_a_shift_of_two():
    assert epsilon_of([Gaussian(10.0 / 2, 1)], DELTA) == shown(0.7255)


def test_a_hundred_messages_at_epsilon_one():
    classical = math.sqrt(2 * math.log(1.25 / DELTA))
    assert epsilon_of([Gaussian(classical, 100)], DELTA) == shown(10.39, 2)


def test_what_is_printed_is_rounded_up():
    assert round_up(epsilon_of([PoissonGaussian(0.1, 1.6747, 100)], DELTA)) == 2.9999
