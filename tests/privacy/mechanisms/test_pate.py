"""PATE: who teaches what, who is asked, and what comes out."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.audit.record_replay import Recorder, record_replay
from privacy.events import Gaussian
from privacy.mechanisms.mechanism import DrawnNoise
from privacy.mechanisms.pate import Pate, shards
from privacy.noise import Draw, SeededEntropy

KEYS = st.lists(st.one_of(st.text(max_size=5), st.integers()), max_size=30)


class Still:
    """Noise that adds nothing, to see what is done around it."""

    def gaussian(self, values, sensitivity, multiplier, grid=0.0):
        return values


def noise(*names):
    return DrawnNoise(Draw(SeededEntropy(1, *names)))


@given(KEYS, st.integers(1, 6), st.randoms())
def test_one_patient_has_one_teacher_whoever_else_is_there(keys, teachers, random):
    dealt = shards(len(keys), teachers, keys)
    by_key = dict(zip(map(str, keys), dealt.tolist(), strict=True))
    order = random.sample(range(len(keys)), len(keys) // 2)
    some = shards(len(order), teachers, [keys[index] for index in order])
    assert some.tolist() == [by_key[str(keys[index])] for index in order]
    assert set(dealt.tolist()) <= set(range(teachers))


def test_patients_are_spread_over_all_teachers():
    counts = Counter(shards(5000, 10, range(5000)).tolist())
    # chi-square with 9 degrees of freedom; 33.7 has p = 1e-4
    assert sum((counts[k] - 500) ** 2 / 500 for k in range(10)) < 33.7


def test_without_keys_records_are_dealt_by_position():
    assert shards(7, 3).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert shards(0, 3).tolist() == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((5, 0), "teachers=0 must be a whole number, 1 or more"),
        ((-1, 2), "records=-1 must be a whole number, 0 or more"),
        ((3, 2, ["a"]), "keys has 1 entries for 3 records: one each"),
    ],
)
def test_shards_that_cannot_be_are_refused(arguments, says):
    with pytest.raises(ValueError, match=says):
        shards(*arguments)


def test_without_noise_the_teacher_is_the_mean_vote():
    votes = np.random.default_rng(0).dirichlet(np.ones(4), (5, 7))
    np.testing.assert_allclose(Pate(5, 1.0).release(votes, Still()), votes.mean(axis=0), rtol=0, atol=1e-12)
    hard = Pate(5, 1.0, hard=True).release(votes, Still())
    assert (hard == np.eye(4)[votes.sum(axis=0).argmax(axis=1)]).all()


def test_noise_beyond_the_votes_is_cut_off_and_the_rest_renormalised():
    class Given(Still):
        def gaussian(self, values, sensitivity, multiplier, grid=0.0):
            # two rows of four entries: sqrt(2 * 2) = 2; the noise per entry is vote_std
            assert (values.shape, sensitivity, sensitivity * multiplier) == ((2, 4), 2.0, 3.0)
            return np.array([[9.0, -4.0, 3.0, 0.0], [-1.0, -2.0, -3.0, -4.0]])

    released = Pate(6, 3.0).release(np.full((6, 2, 4), 0.25), Given())
    # 9 is cut to K = 6: 6/9 and 3/9; a row without a vote left says nothing
    np.testing.assert_allclose(released, [[6 / 9, 0.0, 3 / 9, 0.0], [0.25] * 4], rtol=0, atol=1e-15)


def test_the_gate_answers_where_teachers_agree():
    votes = np.zeros((10, 2, 2))
    votes[:, 0, 0] = 1.0  # all ten agree
    votes[:5, 1, 0] = votes[5:, 1, 1] = 1.0  # five against five
    gate = Pate(10, 1.0, gate_std=0.5, threshold=7.5)
    # 10 and 5 votes, each 5 standard deviations from the threshold
    for seed in range(50):
        assert gate.gate(votes, noise(seed)).tolist() == [True, False]
    assert Pate(10, 1.0).gate(votes, noise()).tolist() == [True, True]


def test_a_row_at_the_threshold_is_answered_half_of_the_time():
    votes = np.zeros((4, 4000, 2))
    votes[..., 0] = 1.0
    answered = Pate(4, 1.0, gate_std=9.0, threshold=4.0).gate(votes, noise("half")).sum()
    assert abs(answered - 2000) < 5 * np.sqrt(1000)


def test_a_plan_charges_every_asked_row_and_a_filter_the_answered_ones():
    gated = Pate(10, vote_std=2.0, gate_std=5.0, threshold=7.0)
    vote = 2.0 / np.sqrt(2.0)
    assert gated.events(9) == (Gaussian(5.0, 9), Gaussian(vote, 9))
    assert gated.gate_events(9) + gated.vote_events(4) == (Gaussian(5.0, 9), Gaussian(vote, 4))
    assert gated.gate_events(9) + gated.vote_events(0) == (Gaussian(5.0, 9),)
    assert Pate(10, 2.0).gate_events(9) == ()


def test_one_teacher_s_bad_rows_count_as_uniform_and_hurt_nobody_else():
    votes = np.random.default_rng(1).dirichlet(np.ones(3), (4, 5))
    broken = votes.copy()
    broken[2, 3] = [np.nan, np.inf, 0.0]
    votes[2, 3] = 1 / 3
    assert Pate(4, 1.0).release(broken, Still()).tobytes() == Pate(4, 1.0).release(votes, Still()).tobytes()


def test_two_records_in_two_shards_are_twice_as_far_apart():
    # group(k): vote sensitivity times k (section 2.1); one key per patient keeps its rows in one shard
    first, second = np.zeros((3, 4, 2)), np.zeros((3, 4, 2))
    first[..., 0] = second[..., 0] = 1.0
    second[:2] = [0.0, 1.0]
    found = record_replay(Pate(3, 1.0).release, first, second, noise())
    assert found.worst == pytest.approx(2.0, rel=1e-12)
    assert found.problems == ("call 1: gaussian input moved by 5.65685, declared 2.82843",)


def test_the_gate_and_the_votes_draw_their_noise_apart():
    recorder = Recorder(noise("apart"))
    votes = np.full((4, 300, 2), 0.5)
    mechanism = Pate(4, 1.0, gate_std=1.0, threshold=1.0)
    mechanism.gate(votes, recorder)
    mechanism.release(votes, recorder)
    gate, vote = ((call.released - call.values) for call in recorder.calls)
    assert abs(np.corrcoef(gate, vote[:, 0])[0, 1]) < 5 / np.sqrt(300)


@pytest.mark.parametrize("shape", [(3, 5, 2), (5, 2), (4, 5, 1), (4,)])
def test_votes_of_another_shape_are_refused(shape):
    for ask in (Pate(4, 1.0).release, Pate(4, 1.0, gate_std=1.0, threshold=1.0).gate):
        with pytest.raises(ValueError, match="expected"):
            ask(np.ones(shape), noise())


@pytest.mark.parametrize("half", [{"gate_std": 1.0}, {"threshold": 1.0}])
def test_half_a_gate_is_refused(half):
    with pytest.raises(ValueError, match="must be given together"):
        Pate(4, 1.0, **half)


@pytest.mark.parametrize("teachers", [0, 2.0, True])
def test_a_number_of_teachers_that_is_none_is_refused(teachers):
    with pytest.raises(ValueError, match=f"teachers={teachers} must be a whole number, 1 or more"):
        Pate(teachers, 1.0)
