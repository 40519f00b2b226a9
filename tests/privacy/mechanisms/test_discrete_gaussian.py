"""The discrete Gaussian has exactly its law, whatever the standard deviation, and only integers are used."""

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import logsumexp

from privacy.accounting import analytic_gaussian_epsilon
from privacy.audit.noise_tests import discrete_p
from privacy.mechanisms.discrete_gaussian import DiscreteGaussian, _bernoulli_exp, _Bits, _laplace
from privacy.noise import OsEntropy, SeededEntropy


@pytest.mark.parametrize("std", [0.4, 1.0, 2.0, 3.7, 12.25])
def test_samples_have_the_stated_probabilities(std):
    samples = DiscreteGaussian(std).draw(SeededEntropy(11, str(std)), 15_000)
    assert discrete_p(samples, std) > 1e-4


@pytest.mark.parametrize(("std", "wrong"), [(3.7, 3.885), (1.0, 1.05), (3.7, 3.515)])
def test_five_per_cent_too_little_or_too_much_is_found(std, wrong):
    assert discrete_p(DiscreteGaussian(wrong).draw(SeededEntropy(12), 15_000), std) < 1e-4


def test_probabilities_are_a_law_with_the_odds_of_a_normal_one():
    law, values = DiscreteGaussian(2.0), np.arange(-60, 61)
    assert law.pmf(values).sum() == pytest.approx(1.0, abs=1e-12)
    assert law.pmf(np.array([3]))[0] / law.pmf(np.array([0]))[0] == pytest.approx(np.exp(-9 / 8), rel=1e-12)


@pytest.mark.parametrize("std", [0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("moved", [1, 3])
def test_renyi_divergences_are_at_most_a_normal_law_s(std, moved):
    values = np.arange(-int(40 * std) - 40, int(40 * std) + 41)
    law = DiscreteGaussian(std)
    for order in (2, 8):
        # sum of p(x - moved)^a p(x)^(1 - a), in logs: far out p underflows
        log_p = -((values - moved) ** 2) / (2 * std**2)
        log_q = -(values**2) / (2 * std**2)
        total = logsumexp(order * log_p + (1 - order) * log_q) + np.log(law.pmf(np.array([0]))[0])
        assert total / (order - 1) <= order * moved**2 / (2 * std**2) * (1 + 1e-9)


@pytest.mark.parametrize(("std", "moved", "apart"), [(4.0, 1, 4e-3), (4.0, 8, 4e-3), (64.0, 1, 2e-5), (64.0, 40, 2e-5)])
def test_its_epsilon_is_nearly_a_normal_law_s(std, moved, apart):
    values = np.arange(-int(14 * std), int(14 * std) + moved)
    law = DiscreteGaussian(std)

    def excess(epsilon):
        return np.maximum(law.pmf(values - moved) - np.exp(epsilon) * law.pmf(values), 0.0).sum() - 1e-5

    assert brentq(excess, 0.0, 30.0) == pytest.approx(analytic_gaussian_epsilon(std / moved, 1e-5), rel=apart)


@pytest.mark.parametrize("std", [1e3, 1e6, 2.0**32])
def test_large_noise_has_the_moments_of_a_normal_law(std):
    scaled = DiscreteGaussian(std).draw(SeededEntropy(13), 4000) / std
    assert abs(scaled.mean()) < 5 / np.sqrt(4000)
    assert abs((scaled**2).mean() - 1.0) < 5 * np.sqrt(2 / 4000)
    assert abs((scaled**4).mean() - 3.0) < 5 * np.sqrt(96 / 4000)


@pytest.mark.parametrize(("numerator", "denominator"), [(0, 7), (1, 3), (1, 1), (5, 2), (10**30, 3 * 10**30)])
def test_coins_fall_with_the_probability_of_an_exponential(numerator, denominator):
    bits, n = _Bits(SeededEntropy(14)), 8000
    heads = sum(_bernoulli_exp(bits, numerator, denominator) for _ in range(n))
    chance = np.exp(-numerator / denominator)
    assert abs(heads - n * chance) <= 5 * np.sqrt(n * chance * (1.0 - chance))


def test_laplace_draws_have_geometric_odds_and_no_double_zero():
    bits, n, ratio = _Bits(SeededEntropy(15)), 20_000, np.exp(-1 / 3)
    drawn = np.array([_laplace(bits, 3) for _ in range(n)])
    for value in range(-4, 5):
        chance = (1.0 - ratio) / (1.0 + ratio) * ratio ** abs(value)
        assert abs((drawn == value).sum() - n * chance) <= 5 * np.sqrt(n * chance)


@pytest.mark.parametrize("bound", [1, 2, 3, 256, 257, 10**30])
def test_whole_numbers_are_uniform_and_below_their_bound(bound):
    bits = _Bits(SeededEntropy(16))
    drawn = [bits.below(bound) for _ in range(4000)]
    assert 0 <= min(drawn) <= max(drawn) < bound
    if bound > 1:
        mean = sum(drawn) / len(drawn) / (bound - 1)
        assert abs(mean - 0.5) < 5 * np.sqrt((bound + 1) / (12 * (bound - 1)) / 4000)


def test_no_byte_is_used_twice_and_none_is_skipped_in_a_block():
    class Counting:
        private = False

        def __init__(self):
            self.blocks = 0

        def bytes(self, count):
            self.blocks += 1
            return bytes(value % 256 for value in range(count))

    entropy = Counting()
    bits = _Bits(entropy)
    assert [bits.below(256) for _ in range(4096)] == [value % 256 for value in range(4096)]
    assert entropy.blocks == 1
    assert (bits.below(256), entropy.blocks) == (0, 2)


def test_the_system_s_entropy_gives_other_samples_each_time():
    law = DiscreteGaussian(100.0)
    assert (law.draw(OsEntropy(), 50) != law.draw(OsEntropy(), 50)).any()
    seeded = [law.draw(SeededEntropy(1), 50).tolist() for _ in range(2)]
    assert seeded[0] == seeded[1]


@pytest.mark.parametrize("std", [0.0, -1.0, np.nan, np.inf, 2.0**33])
def test_a_standard_deviation_that_is_none_is_refused(std):
    with pytest.raises(ValueError, match=r"must be in \(0, 2\^32\]"):
        DiscreteGaussian(std)
