"""What every mechanism promises: one row each. A key without a row fails."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from privacy.audit.noise_tests import examine, standardised
from privacy.audit.record_replay import Recorder, adversarial_neighbours, record_replay
from privacy.events import Gaussian, RandomizedResponse
from privacy.mechanisms import MECHANISMS, build_mechanism
from privacy.mechanisms.client_sum import ClientSum
from privacy.mechanisms.distributed_sum import DistributedClientSum
from privacy.mechanisms.gaussian import GaussianOutput
from privacy.mechanisms.krr import KRandomizedResponse
from privacy.mechanisms.mechanism import DrawnNoise
from privacy.mechanisms.pate import Pate
from privacy.noise import Draw, SeededEntropy


def noise_of(*names):
    return DrawnNoise(Draw(SeededEntropy(3, *names)))


def others(count, shape):
    """What the other units put in, the same on both sides."""
    rows, classes = shape
    return np.random.default_rng(count).dirichlet(np.ones(classes), (count, rows)).reshape(count, rows, classes)


def pate(mechanism, matrix, noise):
    votes = np.concatenate([others(mechanism.teachers - 1, matrix.shape), matrix[None]])
    return mechanism.release(votes, noise)


def gated(mechanism, matrix, noise):
    votes = np.concatenate([others(mechanism.teachers - 1, matrix.shape), matrix[None]])
    answered = mechanism.gate(votes, noise)
    return answered, mechanism.release(votes[:, answered], noise)


def alone(mechanism, matrix, noise):
    return mechanism.release(matrix, noise)


def summed(mechanism, matrix, noise):
    return mechanism.release([*others(3, matrix.shape), matrix], *uniform(matrix), noise)


def shared(mechanism, matrix, noise):
    answers = [*others(2, matrix.shape), matrix]
    total = sum(mechanism.contribution(answer, *uniform(matrix), noise) for answer in answers)
    return mechanism.release(total, *uniform(matrix))


def uniform(matrix):
    return (np.full(matrix.shape, 1.0 / matrix.shape[1]),)


@dataclass(frozen=True)
class Row:
    make: Any  # classes -> mechanism
    run: Any
    noise: str  # the field that must be a finite number above 0
    attained: float = 1.0  # of the declared sensitivity, by the worst of the 200 cases
    numbers: tuple[str, ...] = ()  # the other such fields


ROWS = {
    "pate": Row(lambda classes: Pate(6, 4.0), pate, "vote_std"),
    "pate, gated": Row(lambda classes: Pate(6, 4.0, 3.0, 2.5), gated, "vote_std", 1.0, ("gate_std", "threshold")),
    "pate, hard": Row(lambda classes: Pate(6, 4.0, hard=True), pate, "vote_std"),
    "gaussian-output": Row(lambda classes: GaussianOutput(1.5, allow_baseline=True), alone, "noise_multiplier"),
    "k-rr": Row(lambda classes: KRandomizedResponse(1.2, classes, allow_baseline=True), alone, "label_epsilon"),
    "client-sum": Row(lambda classes: ClientSum(0.25, 2.0, 4), summed, "noise_multiplier", 1.0, ("clip",)),
    "client-sum-distributed": Row(
        lambda classes: DistributedClientSum(0.25, 2.0, 4, 3, 0.3, classes),
        shared,
        "noise_multiplier",
        0.99,  # rounding adds at most, and rarely exactly, grid sqrt(d)/2
        ("clip", "grid"),
    ),
}
NAMES = sorted(ROWS)


def zeroed(name, pair):
    """The pair as the mechanism's adjacency has it."""
    if MECHANISMS[name.partition(",")[0]].UNIT == "client":
        return pair.first, uniform(pair.second)[0]  # an absent client answers as the previous teacher does
    return pair.first, pair.second


def test_every_mechanism_has_a_row():
    # dp-sgd releases a model: its row is tests/privacy/test_dp_training.py.
    assert {name.partition(",")[0] for name in ROWS} == set(MECHANISMS) - {"dp-sgd"}


@pytest.mark.parametrize("name", NAMES)
def test_the_declared_sensitivity_is_attained_and_never_exceeded(name):
    row, worst = ROWS[name], 0.0
    for number, pair in enumerate(adversarial_neighbours(200, seed=1)):
        mechanism = row.make(pair.first.shape[1])
        first, second = zeroed(name, pair)
        found = record_replay(
            lambda data, noise, m=mechanism: row.run(m, data, noise), first, second, noise_of(name, number)
        )
        assert found.problems == (), pair.name
        worst = max(worst, found.worst)
    assert row.attained - 1e-9 <= worst <= 1.0 + 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_what_is_charged_is_what_is_drawn(name):
    mechanism, matrix = ROWS[name].make(4), others(1, (5, 4))[0]
    recorder = Recorder(noise_of(name))
    out = ROWS[name].run(mechanism, matrix, recorder)
    drawn, charged = recorder.cost(), mechanism.events(5)
    if name == "k-rr":
        assert drawn == charged == (RandomizedResponse(1.2, 4, 5),)
        return
    if name == "pate, gated":
        charged = mechanism.gate_events(5) + mechanism.vote_events(int(out[0].sum()))
        assert 0 < out[0].sum() < 5
    if name == "client-sum-distributed":  # the plan counts on the noise of h = ceil(.7 * 3) = 3 clients
        drawn = (Gaussian(recorder.calls[0].parameters[1] * math.sqrt(3), 1),)
    # Gaussians compose exactly: 1/multiplier^2 adds.
    assert precision(drawn) == pytest.approx(precision(charged), rel=1e-12)


def precision(events):
    return sum(event.count / event.noise_multiplier**2 for event in events)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"k-rr"}))
def test_clean_noise_passes_on_twenty_seeds(name):
    shape = (80, 10) if name == "pate, gated" else (12, 10)  # the gate lets about a third of the rows through
    mechanism, matrix = ROWS[name].make(10), others(1, shape)[0]
    for seed in range(20):
        noise, releases = DrawnNoise(Draw(SeededEntropy(seed, name))), []
        for _ in range(3):
            recorder = Recorder(noise)
            ROWS[name].run(mechanism, matrix, recorder)
            releases.append(standardised(recorder.calls))
        width = min(map(len, releases))  # another number of rows each time
        assert examine(np.stack([release[:width] for release in releases])).problems() == ()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_parameters_that_are_no_positive_numbers_are_refused(name, bad):
    row = ROWS[name]
    for field in (row.noise, *row.numbers):
        with pytest.raises(ValueError, match=rf"{field}={bad} must be a finite number above 0"):
            replace(row.make(3), **{field: bad})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [-1, 2.0, True])
def test_a_number_of_rows_that_is_none_is_refused(name, rows):
    with pytest.raises(ValueError, match=f"rows={rows} must be a whole number, 0 or more"):
        ROWS[name].make(3).events(rows)


@pytest.mark.parametrize("name", NAMES)
def test_no_rows_cost_nothing_and_release_nothing(name):
    mechanism = ROWS[name].make(4)
    assert mechanism.events(0) == ()
    out = ROWS[name].run(mechanism, np.empty((0, 4)), noise_of(name))
    assert (out[1] if name == "pate, gated" else out).shape == (0, 4)


@pytest.mark.parametrize("name", NAMES)
def test_releases_are_distributions_whatever_comes_in(name):
    for number, pair in enumerate(adversarial_neighbours(60, seed=2)):
        out = ROWS[name].run(ROWS[name].make(pair.first.shape[1]), pair.first, noise_of(name, number))
        probs = out[1] if isinstance(out, tuple) else out
        assert (probs >= 0.0).all(), pair.name
        np.testing.assert_allclose(probs.sum(axis=1), 1.0, rtol=0, atol=1e-12, err_msg=pair.name)


@pytest.mark.parametrize("name", sorted(MECHANISMS))
def test_every_mechanism_says_what_it_is_worth_and_baselines_must_be_switched_on(name):
    kind = MECHANISMS[name]
    assert len(kind.WORTH.split()) > 10
    assert kind.UNIT in ("record", "client")
    assert kind.ADJACENCY in ("zero_out", "replace_one")
    assert (name in ("k-rr", "gaussian-output")) == kind.BASELINE
    if kind.BASELINE:
        for allow in (False, 1, "yes"):
            with pytest.raises(ValueError, match=f"must be True to run {name}: a baseline"):
                build_mechanism(name, 1.0, 10, {"allow_baseline": allow})


@pytest.mark.parametrize(
    ("name", "settings", "events"),
    [
        ("pate", {"teachers": 5, "gate_std": 7.0, "threshold": 3.0}, (Gaussian(7.0, 4), Gaussian(2.0, 4))),
        ("gaussian-output", {"allow_baseline": True}, (Gaussian(2.0, 1),)),
        ("k-rr", {"allow_baseline": True}, (RandomizedResponse(0.5, 10, 4),)),
        ("client-sum", {"clip": 1.0, "clients": 1000}, (Gaussian(2.0, 1),)),
    ],
)
def test_a_mechanism_is_built_from_its_name_its_noise_and_its_settings(name, settings, events):
    assert build_mechanism(name, 2.0, 10, settings).events(4) == events


@pytest.mark.parametrize(
    ("name", "noise", "settings", "error", "says"),
    [
        ("dp-gsd", 1.0, {}, KeyError, "unknown mechanism 'dp-gsd'; known: client-sum, "),
        ("pate", 1.0, {"teachers": 5, "sigma": 2.0}, ValueError, "pate has no setting 'sigma'; it has: gate_std, hard"),
        ("pate", 1.0, {"teachers": 5, "vote_std": 2.0}, ValueError, "pate has no setting 'vote_std'"),
        ("pate", 1.0, {}, ValueError, "pate needs a setting 'teachers'"),
        ("client-sum", 1.0, {"clip": "one", "clients": 9}, ValueError, "client-sum: clip='one' must be a number"),
        ("pate", 1.0, {"teachers": 0}, ValueError, "teachers=0 must be a whole number, 1 or more"),
        ("dp-sgd", 0.0, {}, ValueError, "noise=0.0 must be a finite number above 0"),
        ("dp-sgd", math.nan, {}, ValueError, "noise=nan must be a finite number above 0"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_sentence(name, noise, settings, error, says):
    with pytest.raises(error, match=says):
        build_mechanism(name, noise, 10, settings)
