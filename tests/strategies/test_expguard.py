"""Trust over rounds: the reference's numbers, the multiplicative form, absentees, newcomers, thousands of rounds."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.aggregator import Ballot
from strategies.aggregators import build_aggregator
from strategies.aggregators.expguard import ExpGuard, _distances, _moved
from strategies.aggregators.median import Median
from strategies.aggregators.stacking import stacked
from strategies.messages import ClientReport
from strategies.soft_labels import SoftLabels

BOTH = np.arange(2)
VOTES = {
    "a": [[0.7, 0.2, 0.1], [0.5, 0.4, 0.1]],
    "b": [[0.6, 0.3, 0.1], [0.2, 0.7, 0.1]],
    "c": [[0.1, 0.2, 0.7], [0.3, 0.3, 0.4]],
}


def sent(votes, rows=BOTH):
    return [ClientReport(name, 1, SoftLabels.from_logits(rows, np.log(np.array(v)))) for name, v in votes.items()]


def ballot(clients, needed=1, classes=3):
    return Ballot(BOTH, classes, clients, needed)


def shares(state):
    trust = np.exp([float(state[key]) for key in sorted(state)])
    return trust / trust.sum()


def test_distances_to_the_median():
    stack = stacked(ballot(3), sent(VOTES))
    base = Median().aggregate({}, ballot(3), sent(VOTES)).teacher
    np.testing.assert_allclose(_distances(stack, base), [0.1018, 0.1850, 0.5829], atol=1e-4)


def test_two_rounds_with_the_same_votes():
    rule, state = ExpGuard(), {}
    for trust, row_a, row_b in (
        ([0.3940, 0.3625, 0.2435], [0.5176, 0.2363, 0.2461], [0.3425, 0.4844, 0.1731]),
        ([0.4487, 0.3799, 0.1714], [0.5592, 0.2380, 0.2029], None),
    ):
        outcome = rule.aggregate(state, ballot(3), sent(VOTES))
        state = outcome.state
        np.testing.assert_allclose(shares(state), trust, atol=1e-4)
        np.testing.assert_allclose(outcome.teacher.probabilities()[0], row_a, atol=1e-4)
        if row_b:
            np.testing.assert_allclose(outcome.teacher.probabilities()[1], row_b, atol=1e-4)
    assert sorted(state) == ["expguard.a", "expguard.b", "expguard.c"]
    assert all(value.dtype == np.float64 and value.shape == () for value in state.values())


@given(seed=st.integers(0, 10**6), step=st.sampled_from([0.1, 1.0, 10.0]))
@settings(max_examples=20, deadline=None)
def test_logs_equal_the_multiplicative_form(seed, step):
    rng, rule, state, weights = np.random.default_rng(seed), ExpGuard(step=step), {}, np.full(4, 0.25)
    for _ in range(15):
        votes = dict(zip("abcd", rng.dirichlet(np.ones(3), (4, 2)), strict=True))
        base = Median().aggregate({}, ballot(4), sent(votes)).teacher
        weights = weights * np.exp(-step * _distances(stacked(ballot(4), sent(votes)), base))
        weights = weights / weights.sum()
        state = rule.aggregate(state, ballot(4), sent(votes)).state
        np.testing.assert_allclose(shares(state), weights, rtol=1e-9, atol=1e-300)


def test_ten_thousand_rounds_stay_finite_and_one_more_forgives_nothing():
    # Multiplied weights in float32 are zero once step * distance sums to 103.
    losses, trust = np.array([0.1018, 0.1850, 0.5829]), np.zeros(3)
    for _ in range(10_000):
        trust = _moved(trust, losses)
    # Only differences count: exp(-10,000 * (.1850 - .1018)) and so on, with sum 3
    np.testing.assert_allclose(trust, np.log(3.0) - 10_000 * (losses - losses[0]), rtol=1e-9)
    state = {f"expguard.{name}": np.array(value) for name, value in zip("abc", trust, strict=True)}
    outcome = ExpGuard().aggregate(state, ballot(3), sent(VOTES))
    expected = 0.9 * np.array(VOTES["a"]) + 0.05 * np.array(VOTES["b"]) + 0.05 * np.array(VOTES["c"])
    np.testing.assert_allclose(outcome.teacher.probabilities(), expected, atol=1e-6)
    assert all(np.isfinite(value) for value in outcome.state.values())
    # Where only the mistrusted vote they still are the teacher, by what is left between them.
    alone = ExpGuard().aggregate(state, ballot(2), sent({"c": VOTES["c"]}))
    np.testing.assert_allclose(alone.teacher.probabilities(), VOTES["c"], atol=1e-6)


def test_staying_away_neither_wins_nor_costs_trust():
    honest = {name: [[0.8, 0.1, 0.1]] * 2 for name in ("a", "b", "d", "e")}
    attacker = {"z": [[0.0001, 0.0001, 0.9998]] * 2}
    rule, state = ExpGuard(), ExpGuard().aggregate({}, ballot(5), sent({**honest, **attacker})).state
    for _ in range(60):  # "e" is away
        state = rule.aggregate(state, ballot(5), sent({**{k: honest[k] for k in "abd"}, **attacker})).state
    trust = {key[-1]: float(value) for key, value in state.items()}
    assert trust["z"] < -50
    # With the plain mean of distances as the centre "a" would have gained 60 * .3 nats on "e".
    assert abs(trust["a"] - trust["e"]) < 0.2
    back = rule.aggregate(state, ballot(5), sent({**honest, "z": attacker["z"]}))
    np.testing.assert_allclose(back.teacher.probabilities(), honest["a"], atol=1e-4)


def test_a_newcomer_starts_below_the_mean_trust_of_the_known_and_an_attacker_gains_nothing_by_a_new_name():
    rule = ExpGuard(probation=2.0)
    known = {"expguard.a": np.array(0.5), "expguard.b": np.array(-300.0)}
    same = {"a": VOTES["a"], "new": VOTES["a"]}
    after = rule.aggregate(known, ballot(2), sent(same)).state
    # ln((e^.5 + e^-300) / 2) - 2; equal votes lose nothing
    assert float(after["expguard.new"]) == pytest.approx(0.5 - np.log(2.0) - 2.0)
    assert float(after["expguard.b"]) == -300.0
    assert float(after["expguard.a"]) == pytest.approx(0.5)


def test_a_client_without_a_vote_on_the_bases_rows_keeps_its_trust():
    few = [*sent({"a": VOTES["a"], "b": VOTES["b"]}, BOTH), *sent({"c": [VOTES["c"][0]]}, np.array([0]))]
    # Row 0 has three voters, row 1 two; with f = 1 Cronus has row 0 only.
    outcome = ExpGuard(base=build_aggregator("cronus", {"attackers": 1})).aggregate({}, ballot(3), few)
    assert outcome.teacher.rows.tolist() == [0]
    only_second = [*sent({"a": VOTES["a"], "b": VOTES["b"]}), *sent({"c": [VOTES["c"][1]]}, np.array([1]))]
    state = {"expguard.c": np.array(0.25)}
    dropped = [only_second[0], *sent({"b": [VOTES["b"][0]]}, np.array([0])), only_second[2]]
    after = ExpGuard().aggregate(state, Ballot(BOTH, 3, 3, 3), dropped)
    assert len(after.teacher.rows) == 0
    assert float(after.state["expguard.c"]) == 0.25


def test_votes_of_an_earlier_round_count_and_are_not_judged_again():
    known = {"expguard." + name: np.array(0.1) for name in "abc"}
    everybody = ExpGuard().aggregate(known, ballot(3), sent(VOTES))
    some = ExpGuard().aggregate(known, replace(ballot(3), heard=frozenset("bc")), sent(VOTES))
    assert float(some.state["expguard.a"]) == 0.1
    moved = [float(some.state["expguard." + name]) - 0.1 for name in "bc"]
    assert moved[0] > 0 > moved[1]
    assert np.exp(moved).sum() == pytest.approx(2.0)
    assert float(everybody.state["expguard.a"]) > 0.1
    assert len(some.teacher.rows) == 2


@pytest.mark.parametrize("lead", [5.0, 20.0, 740.0, 1e6])
def test_who_has_won_all_trust_still_has_nine_tenths_at_most(lead):
    known = {"expguard.a": np.array(lead), "expguard.b": np.array(0.0), "expguard.c": np.array(0.0)}
    teacher = ExpGuard(step=1e-9).aggregate(known, ballot(3), sent(VOTES)).teacher.probabilities()
    votes = {name: np.array(vote) for name, vote in VOTES.items()}
    np.testing.assert_allclose(teacher, 0.9 * votes["a"] + 0.05 * votes["b"] + 0.05 * votes["c"], atol=1e-6)


def test_weights_count_in_the_teacher_and_not_in_trust():
    light = [ClientReport(one.client, 1, one.soft_labels, 0.001 if one.client == "a" else 1.0) for one in sent(VOTES)]
    mean = build_aggregator("mean", {})
    one, other = (ExpGuard(base=mean).aggregate({}, ballot(3), reports) for reports in (sent(VOTES), light))
    assert one.teacher.probabilities()[0, 0] > other.teacher.probabilities()[0, 0] + 0.05
    trust = shares(other.state)
    pooled = (np.array([0.001, 1, 1]) * trust) @ np.array([VOTES[name] for name in "abc"]).transpose(1, 0, 2)
    pooled /= pooled.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(other.teacher.probabilities(), pooled, atol=1e-6)


def test_the_base_keeps_its_own_state_and_says_what_it_needs():
    inner = {"theirs": np.array([1.0])}
    after = ExpGuard().aggregate(inner, ballot(3), sent(VOTES)).state
    assert after["theirs"] is inner["theirs"]
    assert build_aggregator("expguard", {"base": "class-count"}).needs == ("counts",)
