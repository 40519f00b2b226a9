"""Attacks as pure functions: each is its formula, computed once more by a plain loop, and finds what is planted."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from privacy.audit.membership import (
    ATTACKS,
    References,
    each_in_turn,
    halves,
    lira_offline,
    lira_online,
    logit_scores,
    loss_threshold,
    rmia,
)
from privacy.audit.roc import area


def some(models=8, records=30, leak=1.5, seed=0):
    """Scores of models that remember what they were trained on by `leak`, and of one more to attack."""
    rng = np.random.default_rng(seed)
    taken = halves(models, records, rng)
    member = rng.random(records) < 0.5
    easy = 2.0 * rng.normal(size=records)
    scores = easy + leak * taken + rng.normal(size=taken.shape)
    return easy + leak * member + rng.normal(size=records), References(scores, taken), member


# ---- the naive loops -------------------------------------------------------------------------------------------------
def naive_moments(references, known):
    means, squares, free = [], 0.0, 0
    for record in range(references.scores.shape[1]):
        own = [
            row[record] for row, took in zip(references.scores, references.taken, strict=True) if took[record] == known
        ]
        means.append(sum(own) / len(own))
        squares += sum((score - means[-1]) ** 2 for score in own)
        free += len(own) - 1
    return means, math.sqrt(squares / free)


def naive_lira(scores, references):
    (mu_in, sd_in), (mu_out, sd_out) = naive_moments(references, True), naive_moments(references, False)
    return [
        norm.logpdf(score, mu_in[i], sd_in) - norm.logpdf(score, mu_out[i], sd_out) for i, score in enumerate(scores)
    ]


def naive_offline(scores, references):
    mu_out, sd_out = naive_moments(references, False)
    return [norm.cdf((score - mu_out[i]) / sd_out) for i, score in enumerate(scores)]


def naive_rmia(scores, references):
    def p(score):
        return 1.0 / (1.0 + math.exp(-score))

    def ratio(i):
        return p(scores[i]) / (sum(p(row[i]) for row in references.scores) / len(references.scores))

    shares = []
    for x in range(len(scores)):
        others = [z for z in range(len(scores)) if z != x]
        shares.append(sum(ratio(x) / ratio(z) >= 1.0 for z in others) / len(others))
    return shares


@pytest.mark.parametrize("seed", range(3))
def test_every_attack_is_its_formula(seed):
    scores, references, _ = some(seed=seed)
    assert lira_online(scores, references) == pytest.approx(naive_lira(scores, references), abs=1e-9)
    assert norm.cdf(lira_offline(scores, references)) == pytest.approx(naive_offline(scores, references), abs=1e-12)
    assert rmia(scores, references) == pytest.approx(naive_rmia(scores, references), abs=1e-12)
    assert loss_threshold(scores, references).tolist() == scores.tolist()


def test_by_hand():
    # record 0: in 2 and 4, out 0; record 1: in 1, out -1 and 3. v_in = 2/(3 - 2), v_out = 8/(3 - 2)
    references = References(
        np.array([[2.0, -1.0], [4.0, 3.0], [0.0, 1.0]]), np.array([[True, False], [True, False], [False, True]])
    )
    # record 0 at 3: 0.5 (9/8 + ln 8 - 0/2 - ln 2) = .5625 + .693147; record 1 at 1: 0.5 (0 + ln 8 - 0 - ln 2)
    assert lira_online(np.array([3.0, 1.0]), references) == pytest.approx([1.255647, 0.693147], abs=1e-6)
    assert lira_offline(np.array([3.0, 1.0]), references) == pytest.approx([3.0 / math.sqrt(8.0), 0.0])


def test_a_models_confidence_becomes_a_logit_that_is_never_infinite():
    log_probs = np.log([[0.75, 0.25, 1e-30], [1e-30, 1.0, 1e-30], [1.0, 1e-30, 1e-30]])
    # ln(.75/.25), then ln(.999999/.000001) and its negative
    expected = [math.log(3.0), 13.815510, -13.815510]
    assert logit_scores(log_probs, np.array([0, 1, 1])) == pytest.approx(expected, abs=1e-6)
    both = logit_scores(np.stack([log_probs, log_probs[::-1]]), np.array([0, 1, 1]))
    assert both.shape == (2, 3)
    assert both[0] == pytest.approx(expected, abs=1e-6)


# ---- what they find --------------------------------------------------------------------------------------------------
def test_attacks_with_references_see_past_how_easy_a_record_is_and_the_threshold_does_not():
    scores, references, member = some(models=16, records=2000)
    found = {name: area(attack(scores, references), member).value for name, attack in ATTACKS.items()}
    # of N(1.5, 1 + 1/8) against N(0, 1 + 1/8): Phi(1.5 / sqrt(2.25)) = .841; for the threshold Phi(1.5/sqrt(10)) = .682
    assert found["lira"] == pytest.approx(0.841, abs=0.03)
    assert found["lira-offline"] == pytest.approx(0.841, abs=0.03)
    assert found["loss"] == pytest.approx(0.682, abs=0.04)
    assert found["rmia"] > found["loss"] + 0.05


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_where_nothing_leaks_no_attack_is_better_than_a_coin(name):
    rng = np.random.default_rng(3)
    taken = halves(16, 500, rng)
    scores = 2.0 * rng.normal(size=500) + rng.normal(size=taken.shape)
    found = area(each_in_turn(ATTACKS[name], scores, taken), taken)
    # 8,000 guesses: a standard deviation is about .0065
    assert abs(found.value - 0.5) < 0.03


@given(st.integers(0, 10**6), st.sampled_from(sorted(ATTACKS)))
def test_the_order_of_records_and_of_references_changes_nothing(seed, name):
    rng = np.random.default_rng(seed)
    scores, references, _ = some(seed=seed % 7)
    rows, models = rng.permutation(30), rng.permutation(8)
    moved = References(references.scores[models][:, rows], references.taken[models][:, rows])
    expected = ATTACKS[name](scores, references)[rows]
    assert ATTACKS[name](scores[rows], moved) == pytest.approx(expected, abs=1e-9)


# ---- who trains on what ----------------------------------------------------------------------------------------------
@given(st.integers(3, 12), st.integers(2, 40), st.integers(0, 10**6))
def test_half_of_the_models_know_each_record_and_pairs_share_the_pool(pairs, records, seed):
    taken = halves(2 * pairs, records, np.random.default_rng(seed))
    assert (taken.sum(axis=0) == pairs).all()
    assert (taken[::2] == ~taken[1::2]).all()
    assert set(taken.sum(axis=1)) <= {records // 2, records - records // 2}


def test_each_model_is_attacked_by_all_others_but_its_complement():
    rng = np.random.default_rng(5)
    taken = halves(6, 10, rng)
    scores = rng.normal(size=(6, 10))
    seen = []

    def attack(target, references):
        seen.append((target.tolist(), references.scores.tolist(), references.taken.sum(axis=0).tolist()))
        return target

    assert each_in_turn(attack, scores, taken).tolist() == scores.tolist()
    for index, (target, others, known) in enumerate(seen):
        pair = {index, index ^ 1}
        assert target == scores[index].tolist()
        assert others == [scores[k].tolist() for k in range(6) if k not in pair]
        assert known == [2] * 10  # of four references, whoever is attacked


# ---- refusals --------------------------------------------------------------------------------------------------------
SCORES, TAKEN = np.random.default_rng(0).normal(size=(6, 4)), halves(6, 4, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: References(SCORES, TAKEN[:, :3]), r"scores are \[6, 4\] and taken \[6, 3\]"),
        (lambda: References(SCORES[:0], TAKEN[:0]), r"scores are \[0, 4\]"),
        (lambda: References(np.where(TAKEN, np.inf, SCORES), TAKEN), "a score is not finite"),
        (lambda: lira_online(SCORES[0], References(SCORES, TAKEN | True)), "no reference that was not trained on it"),
        (lambda: lira_online(SCORES[0], References(SCORES, TAKEN & False)), "no reference that was trained on it"),
        (lambda: lira_offline(SCORES[0], References(SCORES * 0.0, TAKEN)), "have no spread"),
        (lambda: lira_online(SCORES[0], References(SCORES[:2], TAKEN[:2])), "have no spread"),
        (lambda: rmia(SCORES[0, :1], References(SCORES[:, :1], TAKEN[:, :1])), "there are 1: take at least 2"),
        (lambda: halves(7, 10, np.random.default_rng(0)), "shadows=7 must be even and at least 6"),
        (lambda: halves(4, 10, np.random.default_rng(0)), "shadows=4 must be even and at least 6"),
        (lambda: halves(16, 1, np.random.default_rng(0)), "the pool has 1 rows"),
    ],
)
def test_what_cannot_be_attacked_is_refused_in_a_sentence(call, says):
    with pytest.raises(ValueError, match=says):
        call()
