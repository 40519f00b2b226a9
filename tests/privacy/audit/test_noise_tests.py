"""Noise tests pass noise that is what it says, and find the bugs of table 8.2 that are theirs."""

import math

import numpy as np
import pytest

from privacy.audit.noise_tests import discrete_p, examine, largest_correlation, standardised
from privacy.audit.record_replay import Recorder
from privacy.mechanisms.discrete_gaussian import DiscreteGaussian
from privacy.mechanisms.gaussian import GaussianOutput
from privacy.mechanisms.mechanism import DrawnNoise
from privacy.noise import Draw, SeededEntropy


class Halved(DrawnNoise):
    """Half of the declared noise."""

    def gaussian(self, values, sensitivity, multiplier, grid=2.0**-12):
        return DrawnNoise.gaussian(self, values, sensitivity, multiplier / 2, grid)


class VarianceAsStd(DrawnNoise):
    """A generator that takes a standard deviation, given a variance."""

    def gaussian(self, values, sensitivity, multiplier, grid=2.0**-12):
        return DrawnNoise.gaussian(self, values, 1.0, (sensitivity * multiplier) ** 2, grid)


class StdAsVariance(DrawnNoise):
    """One that takes a variance, given a standard deviation."""

    def gaussian(self, values, sensitivity, multiplier, grid=2.0**-12):
        return DrawnNoise.gaussian(self, values, 1.0, math.sqrt(sensitivity * multiplier), grid)


class TenPerCentLow(DrawnNoise):
    def gaussian(self, values, sensitivity, multiplier, grid=2.0**-12):
        return DrawnNoise.gaussian(self, values, sensitivity, 0.9 * multiplier, grid)


class FivePerCentLow(DrawnNoise):
    def gaussian(self, values, sensitivity, multiplier, grid=2.0**-12):
        return DrawnNoise.gaussian(self, values, sensitivity, 0.95 * multiplier, grid)


class Uniform(DrawnNoise):
    """The declared variance, another law."""

    def gaussian(self, values, sensitivity, multiplier, grid=2.0**-12):
        return values + sensitivity * multiplier * math.sqrt(12.0) * (self.draw.uniform(values.shape) - 0.5)


def released(kind, seed, rows, releases=1, restart=False):
    """Standardised noise of a real mechanism: [releases, rows * 10]."""
    mechanism, probs = GaussianOutput(1.0, allow_baseline=True), np.full((rows, 10), 0.1)
    noise, out = kind(Draw(SeededEntropy(seed, "noise"))), []
    for _ in range(releases):
        if restart:
            noise = kind(Draw(SeededEntropy(seed, "noise")))
        recorder = Recorder(noise)
        mechanism.release(probs, recorder)
        out.append(standardised(recorder.calls))
    return np.stack(out)


def test_clean_noise_passes_on_twenty_seeds():
    for seed in range(20):
        assert examine(released(DrawnNoise, seed, rows=100, releases=10)).problems() == ()


@pytest.mark.parametrize(
    ("kind", "values"),
    [(Halved, 500), (VarianceAsStd, 500), (StdAsVariance, 500), (TenPerCentLow, 3000), (FivePerCentLow, 10_000)],
)
def test_noise_of_another_size_is_found_on_twenty_seeds(kind, values):
    for seed in range(20):
        report = examine(released(kind, seed, rows=values // 10))
        assert report.variance_p < 1e-4
        assert "the noise has another variance than declared" in " ".join(report.problems())


def test_half_the_noise_fails_both_tests_at_five_hundred_values():
    report = examine(released(Halved, 0, rows=50))
    assert report.ks_p < 1e-8
    assert report.variance_p < 1e-50


def test_another_law_of_the_right_variance_is_found_by_its_shape():
    report = examine(released(Uniform, 0, rows=1000))
    assert report.ks_p < 1e-4 < report.variance_p
    assert len(report.problems()) == 1


@pytest.mark.parametrize("seed", range(3))
def test_the_same_noise_in_each_release_is_found_by_correlation_alone(seed):
    report = examine(released(DrawnNoise, seed, rows=1000, releases=2, restart=True))
    assert report.correlation == pytest.approx(1.0, abs=1e-12)
    assert report.correlation_limit == 0.05
    (problem,) = examine(released(DrawnNoise, seed, rows=1000, releases=2, restart=True)).problems(1e-9)
    assert problem == "two releases share noise: correlation 1.000, limit 0.050"


def test_shared_noise_is_found_among_many_and_with_either_sign():
    noise = released(DrawnNoise, 1, rows=100, releases=10)
    noise[7] = -noise[2]
    assert largest_correlation(noise) == pytest.approx(1.0, abs=1e-12)
    # noise that is half that of another release: 1/sqrt 2
    noise[7] = (noise[2] + released(DrawnNoise, 2, rows=100)[0]) / math.sqrt(2.0)
    assert largest_correlation(noise) == pytest.approx(1 / math.sqrt(2.0), abs=0.1)


def test_correlation_is_numpy_s():
    noise = np.random.default_rng(0).normal(size=(5, 200))
    table = np.abs(np.corrcoef(noise) - np.eye(5))
    assert largest_correlation(noise) == pytest.approx(table.max(), rel=1e-12)
    assert largest_correlation(noise[:1]) == 0.0


def test_no_noise_at_all_and_noise_that_is_not_finite_fail_everything():
    assert len(examine(np.zeros((2, 200))).problems()) == 3
    broken = np.random.default_rng(0).normal(size=(2, 200))
    broken[0, 0] = np.nan
    assert len(examine(broken).problems()) == 3


def test_the_declared_standard_deviation_is_what_noise_is_divided_by():
    recorder = Recorder(DrawnNoise(Draw(SeededEntropy(1))))
    gaussian = recorder.gaussian(np.full(50, 3.0), 2.0, 1.5)
    recorder.responses(np.zeros(5, np.int64), 3, 1.0)
    whole = recorder.discrete_gaussian(np.full(50, 7), 4.0, 2.0)
    expected = np.concatenate([(gaussian - 3.0) / 3.0, (whole - 7) / 8.0])
    np.testing.assert_allclose(standardised(recorder.calls), expected, rtol=1e-15)
    assert standardised([]).shape == (0,)


def test_the_variance_test_is_two_sided_and_exact():
    # A sum of squares at the median of chi-square has p = 1; 100 values of size 1: P(chi2_100 <= 100) = .5188
    report = examine(np.ones((1, 100)))
    assert report.variance_p == pytest.approx(2 * (1 - 0.518808), abs=1e-5)
    assert report.ks_p < 1e-4


@pytest.mark.parametrize("shape", [(100,), (2, 99), (1, 2, 100)])
def test_too_little_noise_to_judge_is_refused(shape):
    with pytest.raises(ValueError, match=r"\[releases, 100 values or more\] expected"):
        examine(np.zeros(shape))


def test_discrete_noise_is_judged_by_its_probabilities():
    clean = [discrete_p(DiscreteGaussian(3.0).draw(SeededEntropy(seed, "d"), 2000), 3.0) for seed in range(20)]
    assert min(clean) > 1e-4
    assert 0.2 < np.mean(clean) < 0.8  # uniform where nothing is wrong
    rounded = np.rint(np.random.default_rng(0).normal(size=15_000) * 0.8).astype(np.int64)  # not the discrete law
    assert discrete_p(rounded, 0.8) < 1e-4
    assert discrete_p(DiscreteGaussian(1.5).draw(SeededEntropy(1), 2000), 3.0) < 1e-50
