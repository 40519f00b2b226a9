"""Every mechanism has its neighbours, keeps its claim on them, and one with less noise does not."""

import numpy as np
import pytest

from privacy.accounting import analytic_gaussian_epsilon
from privacy.events import Gaussian
from privacy.mechanisms import MECHANISMS
from simulations.config import ConfigError
from simulations.probes.mechanisms import CASES, Case, audit_mechanisms


def test_every_mechanism_is_audited():
    assert set(CASES) == set(MECHANISMS)


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_sound_mechanism_keeps_its_claim(name):
    (found,) = audit_mechanisms([name], runs=300)
    assert (found.mechanism, found.runs, found.delta, found.unit) == (name, 300, 1e-5, MECHANISMS[name].UNIT)
    assert not found.refuted
    assert found.epsilon_low <= found.claimed
    if name != "k-rr":  # noise twice the sensitivity of a whole release
        assert found.claimed == pytest.approx(analytic_gaussian_epsilon(2.0, 1e-5), rel=1e-3)


@pytest.mark.parametrize("name", sorted(set(CASES) - {"k-rr", "dp-sgd", "client-sum-distributed"}))
def test_neighbours_are_as_far_apart_as_the_declared_sensitivity(name):
    noise = _Told()
    releases = CASES[name]().releases
    ((_, first),), ((_, second),) = list(releases(True, 1, noise)), list(releases(False, 1, noise))
    assert np.linalg.norm(first - second) == pytest.approx(noise.sensitivity, rel=1e-6)


class _Told:
    """No noise; it remembers the sensitivity that was declared."""

    sensitivity = 0.0

    def gaussian(self, values, sensitivity, multiplier, grid=0.0):
        self.sensitivity = sensitivity
        return values.copy()


def gaussian_case(std):
    def releases(first, times, noise):
        for _ in range(times):
            values = np.array([1.0, 0.0]) if first else np.zeros(2)
            yield noise.gaussian(values, 1.0, std), values

    return lambda: Case("record", (Gaussian(2.0, 1),), releases)


def test_half_the_noise_is_refuted_and_the_right_one_is_not_on_five_seeds():
    cases = {"sound": gaussian_case(2.0), "half": gaussian_case(1.0)}
    for seed in range(5):
        sound, half = audit_mechanisms(runs=1000, seed=seed, cases=cases)
        assert (sound.refuted, half.refuted) == (False, True)


def test_unknown_mechanisms_and_too_few_runs_are_refused():
    with pytest.raises(ConfigError, match="unknown mechanism 'magic'; known: client-sum"):
        audit_mechanisms(["magic"])
    with pytest.raises(ConfigError, match="runs=99 must be at least 100"):
        audit_mechanisms(runs=99)
