"""Sums over clients: what each may put in, who counts, and noise that is split."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.audit.record_replay import Recorder, record_replay
from privacy.events import Gaussian
from privacy.mechanisms.client_sum import ClientSum, difference, public_teacher
from privacy.mechanisms.distributed_sum import DistributedClientSum
from privacy.mechanisms.mechanism import DrawnNoise, projected
from privacy.noise import Draw, SeededEntropy


class Still:
    """Noise that adds nothing."""

    def gaussian(self, values, sensitivity, multiplier, grid=0.0):
        return values

    def discrete_gaussian(self, values, sensitivity, multiplier):
        return values


def noise(*names):
    return DrawnNoise(Draw(SeededEntropy(1, *names)))


def votes(clients, rows, classes, seed=0):
    return np.random.default_rng(seed).dirichlet(np.ones(classes), (clients, rows))


UNIFORM = np.full((6, 4), 0.25)


def test_without_noise_and_with_everybody_there_it_is_the_mean_of_clipped_answers():
    answers, previous = votes(5, 6, 4), votes(1, 6, 4, seed=9)[0]
    mean = np.mean([np.linalg.norm(answer - previous) for answer in answers])
    for clip in (mean, 100.0):
        naive = previous.copy()
        for answer in answers:
            change = answer - previous
            naive += change * min(1.0, clip / np.linalg.norm(change)) / 5
        released = ClientSum(clip, 1.0, 5).release(answers, previous, Still())
        np.testing.assert_allclose(released, projected(naive), rtol=0, atol=1e-12)
    np.testing.assert_allclose(released, answers.mean(axis=0), rtol=0, atol=1e-12)


def test_an_absent_client_is_one_that_repeats_the_previous_teacher():
    answers, previous = votes(3, 6, 4), votes(1, 6, 4, seed=9)[0]
    mechanism = ClientSum(0.7, 2.0, 5)
    absent = mechanism.release(answers, previous, noise("same"))
    repeating = mechanism.release([*answers, previous, previous], previous, noise("same"))
    np.testing.assert_allclose(absent, repeating, rtol=0, atol=1e-12)


def test_the_divisor_is_the_public_number_of_clients():
    # One of four says (1, 0) after (.5, .5): a quarter of the way.
    released = ClientSum(10.0, 1.0, 4).release([np.array([[1.0, 0.0]])], np.array([[0.5, 0.5]]), Still())
    np.testing.assert_allclose(released, [[0.625, 0.375]], rtol=0, atol=1e-15)


def test_nobody_there_is_the_previous_teacher_and_noise():
    previous = votes(1, 6, 4)[0]
    np.testing.assert_allclose(ClientSum(1.0, 1.0, 4).release([], previous, Still()), previous, rtol=0, atol=1e-12)
    assert (ClientSum(1.0, 1.0, 4).release([], previous, noise()) != previous).any()


def test_a_client_s_bad_rows_count_as_the_previous_teacher_s():
    previous, answer = votes(1, 6, 4, seed=2)[0], votes(1, 6, 4)[0]
    broken, mended = answer.copy(), answer.copy()
    broken[1], mended[1] = [np.nan, 0.0, 0.0, 1.0], previous[1]
    np.testing.assert_allclose(difference(broken, previous, 9.0), mended - previous, rtol=0, atol=1e-15)


def test_dividing_by_the_number_of_replies_is_found():
    def by_replies(answers, noise):
        answers = [answer for answer in answers if answer is not None]
        total = sum(difference(answer, UNIFORM, 1.0) for answer in answers)
        return noise.gaussian(total / len(answers), 1.0 / 5, 1.0)  # the public M is 5

    answers = list(np.tile(np.eye(4)[0], (5, 6, 1)))
    found = record_replay(by_replies, [*answers[:4], np.tile(np.eye(4)[1], (6, 1))], [*answers[:4], None], noise())
    assert found.worst > 1.2


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m: m.release([UNIFORM] * 4, UNIFORM, noise()), "clients=3 have sent 4 answers or more"),
        (lambda m: m.release([UNIFORM[:5]], UNIFORM, noise()), r"an answer has shape \[5, 4\]: \[6, 4\] expected"),
        (lambda m: m.release([UNIFORM], UNIFORM * np.nan, noise()), "previous has a value that is not finite"),
        (lambda m: m.release([UNIFORM], UNIFORM[0], noise()), r"\[n, classes\] expected"),
    ],
)
def test_sums_that_cannot_be_are_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call(ClientSum(1.0, 1.0, 3))


def test_the_previous_teacher_is_made_a_distribution():
    assert public_teacher(np.array([[1.0, 3.0]])).tolist() == [[0.25, 0.75]]


# ---- the noise split among clients ----


def split(**changed):
    told = {"clip": 1.0, "noise_multiplier": 2.0, "clients": 8, "least": 5, "colluding": 0.3, "classes": 4}
    return DistributedClientSum(**{**told, **changed})


@pytest.mark.parametrize(
    ("least", "colluding", "honest"),
    # ceil(.7 * 5 = 3.5), ceil(10), ceil(8), ceil(3) though (1 - .7) * 10 is a little more in floats, at least 1
    [(5, 0.3, 4), (10, 0.0, 10), (10, 0.2, 8), (10, 0.7, 3), (1, 0.99, 1), (8, 0.999, 1)],
)
def test_the_noise_is_split_among_the_honest_that_are_sure_to_arrive(least, colluding, honest):
    assert split(clients=10, least=least, colluding=colluding).honest == honest


def test_shares_add_up_to_the_noise_that_is_charged():
    mechanism = split(grid=2.0**-6, clients=4, least=4, colluding=0.0)
    sums = []
    for release in range(40):
        recorder = Recorder(noise("shares", release))
        for _ in range(mechanism.honest):
            mechanism.contribution(UNIFORM, UNIFORM, recorder)
        sums.append(sum(call.released - call.values for call in recorder.calls).ravel())
    # s D in steps of the grid, D = B + grid sqrt(24)/2: 2 (64 + 2.449); each share's was rounded up to 1/1024
    declared = 2.0 * (64 + math.sqrt(24) / 2)
    total = np.concatenate(sums)
    assert total.std() == pytest.approx(declared, abs=5 * declared / math.sqrt(2 * len(total)))


def test_the_sum_is_the_central_one_up_to_the_grid():
    answers, previous = votes(6, 6, 4), votes(1, 6, 4, seed=9)[0]
    mechanism = split(clip=0.6, grid=2.0**-10)
    total = sum(mechanism.contribution(answer, previous, Still()) for answer in answers)
    central = ClientSum(0.6, 1.0, 8).release(answers, previous, Still())
    # six terms, each rounded by half a step, divided by M = 8; the projection moves points no further apart
    apart = np.linalg.norm(mechanism.release(total, previous) - central)
    assert apart <= 6 / 8 * 2.0**-11 * math.sqrt(24)


@given(st.integers(0, 2**32), st.floats(0.01, 3.0), st.sampled_from([2.0**-12, 2.0**-4, 0.3]))
def test_rounding_adds_at_most_half_a_step_in_each_entry(seed, clip, grid):
    mechanism = split(clip=clip, grid=grid, noise_multiplier=1e6)
    recorder = Recorder(Still())
    mechanism.contribution(votes(1, 6, 4, seed)[0], UNIFORM, recorder)
    (call,) = recorder.calls
    assert call.sensitivity == pytest.approx((clip + grid * math.sqrt(24) / 2) / grid, rel=1e-12)
    assert np.linalg.norm(call.values) <= call.sensitivity * (1 + 1e-12)


def test_the_order_of_contributions_changes_no_bit_and_sums_wrap_around():
    mechanism, answers = split(), votes(5, 6, 4)
    parts = [mechanism.contribution(answer, UNIFORM, noise(index)) for index, answer in enumerate(answers)]
    with np.errstate(over="ignore"):
        masked = parts[0] + np.int64(2**63 - 1) + parts[1] - np.int64(2**63 - 1) + sum(parts[2:])
    assert masked.tolist() == sum(reversed(parts)).tolist()


def test_fewer_honest_clients_are_charged_for_and_more_are_no_cheaper():
    mechanism = split(least=8, colluding=0.0)
    assert mechanism.events_with(6, 2) == (Gaussian(2.0 * math.sqrt(2 / 8), 1),)  # half the noise
    assert mechanism.events_with(6, 8) == mechanism.events_with(6, 11) == (Gaussian(2.0, 1),)
    with pytest.raises(ValueError, match="honest=0 must be a whole number, 1 or more"):
        mechanism.events_with(6, 0)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"least": 9}, "least=9 must be at most clients=8"),
        ({"least": 0}, "least=0 must be a whole number, 1 or more"),
        ({"clients": 0, "least": 1}, "clients=0 must be a whole number, 1 or more"),
        ({"classes": 1}, "classes=1 must be a whole number, 2 or more"),
        ({"colluding": 1.0}, r"colluding=1.0 must be in \[0, 1\)"),
        ({"colluding": math.nan}, r"colluding=nan must be in \[0, 1\)"),
    ],
)
def test_shares_that_cannot_be_are_refused(changed, says):
    with pytest.raises(ValueError, match=says):
        split(**changed)


def test_a_grid_that_is_too_coarse_for_the_noise_is_refused():
    # D = 1 + .5 sqrt(24)/2 = 2.22; a share has 2.22/sqrt(4) = 1.11 times s = 1: two steps of .5, where four are needed
    with pytest.raises(ValueError, match=r"grid=0.5 must be at most a quarter of a client's noise, 1.11"):
        split(grid=0.5, noise_multiplier=1.0).contribution(UNIFORM, UNIFORM, noise())


def test_contributions_and_totals_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="previous has 4 columns: classes=3 expected"):
        split(classes=3).contribution(UNIFORM, UNIFORM, noise())
    with pytest.raises(ValueError, match=r"total has shape \[2, 4\]: \[6, 4\] expected"):
        split().release(np.zeros((2, 4), np.int64), UNIFORM)
