"""What releases cost, against the numbers of the design reference (sections 3 and 4; delta 1e-5 throughout)."""

import math

import numpy as np
import pytest
from scipy.optimize import brentq

from privacy.accounting import epsilon_of
from privacy.events import times
from privacy.mechanisms.client_sum import ClientSum
from privacy.mechanisms.distributed_sum import DistributedClientSum
from privacy.mechanisms.gaussian import GaussianOutput
from privacy.mechanisms.krr import KRandomizedResponse
from privacy.mechanisms.mechanism import keep_probability
from privacy.mechanisms.pate import Pate

DELTA = 1e-5


@pytest.mark.parametrize(
    ("rows", "stds"),
    [(100, (52.76, 19.67, 8.49)), (300, (91.38, 34.06, 14.70)), (1000, (166.84, 62.19, 26.84))],
)
def test_noise_per_pate_vote_and_per_gaussian_output_is_the_references(rows, stds):
    for epsilon, std in zip((1.0, 3.0, 8.0), stds, strict=True):
        # two decimals of the noise are three digits of epsilon
        assert epsilon_of(Pate(50, std).events(rows), DELTA) == pytest.approx(epsilon, rel=2e-3)
        output = GaussianOutput(std / math.sqrt(2.0 * rows), allow_baseline=True)
        assert output.sensitivity(rows) * output.noise_multiplier == pytest.approx(std, rel=1e-12)
        assert epsilon_of(output.events(rows), DELTA) == pytest.approx(epsilon, rel=2e-3)


def test_pate_on_mnist_costs_what_it_says_in_a_plan_and_less_where_a_filter_counts_answers():
    paper = Pate(250, vote_std=40.0, gate_std=150.0, threshold=200.0)
    answered = paper.gate_events(640) + paper.vote_events(286)
    assert epsilon_of(answered, DELTA) == pytest.approx(2.5426, abs=6e-4)
    assert epsilon_of(paper.events(640), DELTA) == pytest.approx(3.9267, abs=6e-4)


def test_the_paper_s_output_noise_has_the_reference_s_size():
    # 3.7306 sqrt(2000) = 166.8 and .6002 sqrt(200) = 8.49
    assert GaussianOutput(3.7306, allow_baseline=True).sensitivity(1000) * 3.7306 == pytest.approx(166.84, abs=0.01)
    assert GaussianOutput(0.6002, allow_baseline=True).sensitivity(100) * 0.6002 == pytest.approx(8.49, abs=0.01)


@pytest.mark.parametrize(
    ("classes", "rows", "label_epsilon", "keep", "epsilon"),
    [
        (10, 1000, 0.0189, 0.1017, 1.0),
        (10, 1000, 0.0503, 0.1046, 3.0),
        (10, 1000, 0.1149, 0.1108, 8.0),
        (10, 10, 1.0, 0.2320, 7.9933),  # e/(e + 9)
        (10, 100, 0.1, 0.1094, 1.8183),
    ],
)
def test_randomised_labels_cost_what_the_reference_says(classes, rows, label_epsilon, keep, epsilon):
    assert keep_probability(label_epsilon, classes) == pytest.approx(keep, abs=6e-5)
    exact = composed(label_epsilon, classes, rows)
    assert exact == pytest.approx(epsilon, rel=2e-3)  # the reference rounds e0 to 3 digits
    charged = epsilon_of(KRandomizedResponse(label_epsilon, classes, allow_baseline=True).events(rows), DELTA)
    # Each label's loss is rounded up to a multiple of 1e-4: never too little, and 1000 small ones a little too much.
    assert exact - 1e-6 <= charged <= exact + 0.02


def composed(label_epsilon, classes, labels):
    """Without a library: each label's loss is e0, -e0 or 0, so that the loss of all has 2 labels + 1 values."""
    keep = np.exp(label_epsilon) / (np.exp(label_epsilon) + classes - 1)
    other = (1.0 - keep) / (classes - 1)
    law = np.ones(1)
    for _ in range(labels):
        law = np.convolve(law, [other, 1.0 - keep - other, keep])
    losses = np.arange(-labels, labels + 1) * label_epsilon

    def excess(epsilon):
        return (law * np.maximum(0.0, 1.0 - np.exp(np.minimum(0.0, epsilon - losses)))).sum() - DELTA

    return brentq(excess, 0.0, labels * label_epsilon)


def test_twenty_sums_over_clients_cost_what_the_reference_says():
    (one,) = ClientSum(clip=1.0, noise_multiplier=5.0, clients=1000).events(500)
    assert epsilon_of([times(one, 20)], DELTA) == pytest.approx(3.8486, abs=6e-4)


@pytest.mark.parametrize(
    ("clients", "rows", "stds"), [(10, 1000, (11.8, 4.4, 1.9)), (1000, 1000, (0.118, 0.044, 0.019))]
)
def test_noise_per_averaged_probability_is_the_references(clients, rows, stds):
    for multiplier, std in zip((3.7306, 1.3906, 0.6002), stds, strict=True):
        # unclipped rows of distributions: B = sqrt(rows)
        mechanism = ClientSum(math.sqrt(rows), multiplier, clients)
        assert mechanism.sensitivity(rows) * multiplier / clients == pytest.approx(std, rel=0.02)


@pytest.mark.parametrize(("honest", "epsilon"), [(10, 3.0), (8, 3.4063), (5, 4.4634)])
def test_a_split_sum_in_which_honest_clients_are_missing_costs_more(honest, epsilon):
    mechanism = DistributedClientSum(1.0, 1.3906, clients=20, least=10, colluding=0.0, classes=10)
    assert epsilon_of(mechanism.events_with(100, honest), DELTA) == pytest.approx(epsilon, abs=6e-4)
    assert mechanism.events_with(100, 10) == mechanism.events_with(100, 17) == mechanism.events(100)


def test_the_shortcut_of_one_nth_is_nowhere():
    # One row's worth of noise for 1000 rows would be 3.73 / 1000 (section 3.5): the mechanism knows no such number.
    assert np.diff([GaussianOutput(1.0, allow_baseline=True).sensitivity(n) for n in (1, 4, 9, 1000)]).min() > 0
