"""One row an attack: hand-computed votes; then the laws that every attack obeys."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulations.attacks import ATTACKS, build_attack
from simulations.attacks.attack import Scene
from simulations.attacks.lie import hidden_z
from strategies.soft_labels import LOG_FLOOR, SoftLabels

# The reference's votes on rows A and B; clients 1 and 2 are honest, client 3 attacks.
HONEST = np.array([[[0.7, 0.2, 0.1], [0.5, 0.4, 0.1]], [[0.6, 0.3, 0.1], [0.2, 0.7, 0.1]]])
OWN = np.array([[0.1, 0.2, 0.7], [0.3, 0.3, 0.4]])
TEACHER = np.array([[0.4667, 0.2333, 0.3], [0.3333, 0.4667, 0.2]])
SCENE = Scene(HONEST, OWN, TEACHER, attackers=1, clients=3, round=2)
THIRD = [1 / 3, 1 / 3, 1 / 3]

# y_H: A (.65, .25, .10), B (.35, .55, .10). (attack, settings, expected [A, B])
EXAMPLES = [
    ("uniform", {}, [THIRD, THIRD]),
    ("replay", {}, TEACHER),
    # class 3 gives its .7 to class 1
    ("label-shift", {}, [[0.7, 0.1, 0.2], [0.4, 0.3, 0.3]]),
    ("label-shift", {"shift": 2}, [[0.2, 0.7, 0.1], [0.3, 0.4, 0.3]]),
    ("second-likeliest", {}, [[0, 1, 0], [1, 0, 0]]),
    ("least-likely", {}, [[0, 0, 1], [0, 0, 1]]),
    # four votes, mean (.4, .., ..): class 1 deviates by .2, 0, .1, -.3, class 2 by the opposite, class 3 never:
    # cov(1, 2) = -.14 / 4, cov(1, 3) = cov(2, 3) = 0
    ("class-covariance", {}, [[0, 1, 0], [1, 0, 0]]),
    # a = 1/3. A: client 1 -.65 ln .6667 - .25 ln .2333 = .62737, client 2 -.65 ln .6333 - .25 ln .2667 = .62733;
    # B: -.35 ln .4 - .55 ln .5 = .7019, -.35 ln .3 - .55 ln .6 = .7023; class 3 adds the same to all
    ("hips", {}, [[0.7, 0.2, 0.1], [0.2, 0.7, 0.1]]),
    # A: .035 (.7 - .2) = .0175 against .035 (.6 - .3) = .0105; B: .035 (.4 - .5) < .035 (.7 - .2); the least wins
    ("hips", {"aim": "class-covariance"}, [[0.6, 0.3, 0.1], [0.5, 0.4, 0.1]]),
    ("partial", {"share": 1.0}, [[0, 0, 1], [0, 0, 1]]),
    # own peaks .7 and .4 move to the runners-up, class 2 and (of equals) class 1; the others share .3 and .6
    ("peak-controlled", {}, [[0.15, 0.7, 0.15], [0.4, 0.3, 0.3]]),
    # logits 1 and -1: e^2 / (e^2 + 2) = .7870
    ("peak-controlled", {"peak": 0.7870}, [[0.1065, 0.7870, 0.1065], [0.7870, 0.1065, 0.1065]]),
    # on row A the honest mean already says class 1, so it gets class 2
    ("colluding", {}, [[0, 1, 0], [1, 0, 0]]),
    ("colluding", {"stay": True}, [[1, 0, 0], [1, 0, 0]]),
    ("colluding", {"target": 2}, [[0, 0, 1], [0, 0, 1]]),
    # K = 3, f = 1: e = 1, Phi(z) = (3 - 1 - 1) / 2, so z = 0
    ("lie", {}, [[0.65, 0.25, 0.10], [0.35, 0.55, 0.10]]),
    # std A (.05, .05, 0), B (.15, .15, 0): (.60, .20, .10) / .9 and (.20, .40, .10) / .7
    ("lie", {"z": 1.0}, [[0.6667, 0.2222, 0.1111], [0.2857, 0.5714, 0.1429]]),
    # (.35 - .45, .55 - .45, .10): what falls below 0 is cut off
    ("lie", {"z": 3.0}, [[0.7143, 0.1429, 0.1429], [0.0, 0.5, 0.5]]),
]
# What no simplex check may let through. ln .1, ln .2, ln .7 less their mean -1.42290; of B less -1.10808
BROKEN = [
    ("nan", {}, np.full((2, 3), np.nan)),
    ("nan", {"value": "-inf", "everywhere": False}, [[-np.inf, np.log(0.2), np.log(0.7)], np.log(OWN[1])]),
    ("scaled-logits", {}, [[-879.69, -186.54, 1066.22], [-95.89, -95.89, 191.79]]),
    ("scaled-logits", {"factor": 1.0}, [[-0.87969, -0.18654, 1.06622], [-0.09589, -0.09589, 0.19179]]),
]
DRAWN = {"random"}  # its numbers are drawn: see the test of its frequencies
WELL_FORMED = sorted({name for name, *_ in EXAMPLES} | DRAWN)
# These compute the same for every attacker; the others start from the own vote or from a draw.
SHARED = ["uniform", "replay", "second-likeliest", "least-likely", "class-covariance", "hips", "colluding", "lie"]


def rng(seed=0):
    return np.random.default_rng(seed)


def logits(name, scene, values=None, seed=0):
    return build_attack(name, values or {}).logits(scene, rng(seed))


def random_scene(seed, voters=3, rows=5, classes=4, attackers=2, clients=7):
    draw = np.random.default_rng(seed).dirichlet(np.ones(classes), (voters + 2, rows))
    draw.flags.writeable = False  # an attack that changed what it sees would change the round
    return Scene(draw[2:], draw[0], draw[1], attackers, clients, round=3)


scenes = st.builds(
    random_scene,
    seed=st.integers(0, 10**6),
    voters=st.integers(0, 5),
    rows=st.integers(0, 6),
    classes=st.integers(2, 5),
    attackers=st.integers(1, 7),
)


def test_every_attack_has_a_row():
    assert {name for name, *_ in EXAMPLES + BROKEN} | DRAWN == set(ATTACKS)


@pytest.mark.parametrize(("name", "values", "expected"), EXAMPLES)
def test_worked_examples(name, values, expected):
    np.testing.assert_allclose(np.exp(logits(name, SCENE, values)), expected, atol=1e-4)


@pytest.mark.parametrize(("name", "values", "expected"), BROKEN)
def test_broken_answers_are_broken_and_refused(name, values, expected):
    sent = logits(name, SCENE, values)
    np.testing.assert_allclose(sent, expected, atol=0.01, rtol=1e-4)
    with pytest.raises(ValueError, match=r"not finite|logsumexps"), np.errstate(over="ignore"):
        SoftLabels(np.arange(2), sent.astype(np.float32))


def test_the_mean_moves_as_the_reference_says():
    # LMA on row A: (.7 + .6 + 0, .2 + .3 + 0, .1 + .1 + 1) / 3
    mean = (HONEST.sum(axis=0) + np.exp(logits("least-likely", SCENE))) / 3
    np.testing.assert_allclose(mean[0], [0.4333, 0.1667, 0.4000], atol=1e-4)


def test_the_least_similar_class_is_neither_the_runner_up_nor_the_least_likely():
    # class 1 deviates from its mean .45 by .15, -.15, class 2 never, class 3 by -.15, .15: 1 and 3 exclude each other
    scene = Scene(np.array([[[0.6, 0.3, 0.1], [0.3, 0.3, 0.4]]]), OWN, None, 1, 2, 1)
    assert logits("class-covariance", scene).argmax(axis=1).tolist() == [2, 0]
    assert logits("second-likeliest", scene).argmax(axis=1).tolist() == [1, 0]
    assert logits("class-covariance", SCENE).argmax(axis=1).tolist() != logits("least-likely", SCENE).argmax(1).tolist()


@given(scene=scenes)
@settings(max_examples=40, deadline=None)
def test_the_least_similar_class_is_never_the_likeliest(scene):
    # also where one vote on one row, or none, leaves all covariances at 0
    sent = logits("class-covariance", scene)
    assert (sent.argmax(axis=1) != scene.honest_mean().argmax(axis=1)).all()


@pytest.mark.parametrize("name", WELL_FORMED)
@given(scene=scenes)
@settings(max_examples=30, deadline=None)
def test_well_formed_attacks_pass_the_simplex_check(name, scene):
    sent = logits(name, scene)
    assert sent.shape == scene.own.shape
    assert sent.dtype == np.float64
    assert np.isfinite(sent).all()
    np.testing.assert_allclose(np.log(np.exp(sent).sum(axis=1)), 0.0, atol=1e-12)
    assert (sent >= LOG_FLOOR - 1e-5).all()
    SoftLabels(np.arange(len(sent)), sent.astype(np.float32))


@pytest.mark.parametrize("name", sorted(ATTACKS))
@given(seed=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_an_attack_is_not_the_own_vote(name, seed):
    scene = random_scene(seed)
    assert not np.allclose(logits(name, scene), np.log(scene.own), atol=1e-6)  # NaN is close to nothing


@pytest.mark.parametrize("name", sorted(ATTACKS))
@given(scene=scenes, random=st.randoms(use_true_random=False))
@settings(max_examples=20, deadline=None)
def test_who_cast_which_honest_vote_changes_no_bit(name, scene, random):
    order = list(range(len(scene.honest)))
    random.shuffle(order)
    assert logits(name, scene).tobytes() == logits(name, replace(scene, honest=scene.honest[order])).tobytes()


@pytest.mark.parametrize("aim", ["loss", "class-covariance"])
def test_equally_harmful_honest_votes_are_told_apart_without_names(aim):
    # mirrored votes do the same harm to their mean, in whichever order they come
    honest = np.array([[[0.4, 0.4, 0.2], [0.6, 0.2, 0.2]], [[0.4, 0.2, 0.4], [0.6, 0.1, 0.3]]])
    first, second = (logits("hips", Scene(h, OWN, None, 1, 3, 1), {"aim": aim}) for h in (honest, honest[::-1]))
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize("name", SHARED)
def test_colluders_agree_without_talking(name):
    scene = random_scene(5)
    other = replace(scene, own=random_scene(6).own)
    assert logits(name, scene, seed=1).tobytes() == logits(name, other, seed=2).tobytes()


@pytest.mark.parametrize("name", sorted(set(ATTACKS) - DRAWN))
def test_only_the_random_attack_draws(name):
    np.testing.assert_array_equal(logits(name, random_scene(4), seed=1), logits(name, random_scene(4), seed=2))


def test_a_free_rider_without_teacher_answers_honestly():
    np.testing.assert_allclose(np.exp(logits("replay", replace(SCENE, teacher=None))), OWN)


def test_random_votes_are_certain_of_every_class_alike():
    scene = random_scene(1, voters=0, rows=6000, classes=3)
    sent = np.exp(logits("random", scene))
    assert (sent.max(axis=1) > 0.999).all()
    # standard deviation of a share: sqrt(1/3 * 2/3 / 6000) = .006
    np.testing.assert_allclose(sent.mean(axis=0), THIRD, atol=0.03)
    assert (logits("random", scene, seed=1) != logits("random", scene, seed=2)).any()


def test_made_up_votes_are_uniform_on_the_simplex():
    sent = np.exp(logits("random", random_scene(1, voters=0, rows=6000, classes=3), {"certain": False}))
    np.testing.assert_allclose(sent.mean(axis=0), THIRD, atol=0.02)
    # of three uniform spacings the largest has mean (1 + 1/2 + 1/3) / 3 = .611
    assert abs(sent.max(axis=1).mean() - 11 / 18) < 0.02


@given(
    seed=st.integers(0, 10**6), rows=st.integers(1, 60), share=st.floats(0.01, 1.0), attack=st.sampled_from(SHARED[2:])
)
@settings(max_examples=60, deadline=None)
def test_partial_touches_exactly_the_stated_share(seed, rows, share, attack):
    scene = random_scene(seed, rows=rows)
    sent = logits("partial", scene, {"attack": attack, "share": share})
    whole, own = logits(attack, scene), np.log(scene.own)
    touched = ~np.isclose(sent, own, atol=1e-5).all(axis=1)
    assert touched.sum() == max(1, round(share * rows))
    np.testing.assert_array_equal(sent[touched], whole[touched])


def test_partial_attackers_touch_the_same_rows_and_others_next_round():
    scene = random_scene(1, rows=50)
    other = replace(scene, own=random_scene(2, rows=50).own)
    ten = [(logits("partial", s, seed=s.round) < LOG_FLOOR + 1).any(axis=1) for s in (scene, other)]
    assert ten[0].sum() == 5  # one in ten by default
    np.testing.assert_array_equal(*ten)
    later = (logits("partial", replace(scene, round=4)) < LOG_FLOOR + 1).any(axis=1)
    assert (later != ten[0]).any()


@given(seed=st.integers(0, 10**6), share=st.floats(0.05, 1.0))
@settings(max_examples=30, deadline=None)
def test_partial_goes_by_the_numbers_of_the_rows_and_not_by_their_places(seed, share):
    draw = np.random.default_rng(seed)
    numbers, order = draw.permutation(1000)[:20], draw.permutation(20)
    scene = replace(random_scene(seed, rows=20), rows=numbers)
    attack = build_attack("partial", {"share": share})
    chosen = numbers[attack.rows(scene)]
    assert set(chosen) == set(numbers[order][attack.rows(replace(scene, rows=numbers[order]))])
    # without numbers the places are the numbers
    plain, named = replace(scene, rows=None), replace(scene, rows=np.arange(20))
    np.testing.assert_array_equal(attack.rows(plain), attack.rows(named))


def cross_entropy(mean, vote, share):
    """-sum y ln((1 - a) y + a p), term by term."""
    return -sum(y * math.log((1 - share) * y + share * p) for y, p in zip(mean, vote, strict=True) if y > 0)


@given(scene=scenes)
@settings(max_examples=60, deadline=None)
def test_hips_is_the_honest_answer_that_maximises_the_loss(scene):
    sent, share = np.exp(logits("hips", scene)), min(scene.attackers / scene.clients, 1 - 1e-12)
    for row in range(len(scene.own)):
        votes = [v[row] for v in scene.honest] or [scene.own[row]]
        losses = [cross_entropy(np.mean(votes, axis=0), vote, share) for vote in votes]
        chosen = int(np.argmin([np.abs(vote - sent[row]).max() for vote in votes]))
        np.testing.assert_allclose(sent[row], votes[chosen], atol=2e-6)  # an honest vote, up to the floor of 1e-7
        assert losses[chosen] >= max(losses) - 1e-12


def test_hips_weighs_the_mean_by_the_honest_share():
    # y = (.20, .55, .25), a = .2: -.2 ln .18 - .55 ln .49 - .25 ln .33 = 1.0125 for the second vote,
    # -.2 ln .17 - .55 ln .62 - .25 ln .21 = 1.0075 for the third; with a and 1 - a exchanged 1.2087 and 1.2096
    honest = np.array([[[0.45, 0.5, 0.05]], [[0.1, 0.25, 0.65]], [[0.05, 0.9, 0.05]]])
    scene = Scene(honest, OWN[:1], None, attackers=1, clients=5, round=1)
    np.testing.assert_allclose(np.exp(logits("hips", scene))[0], [0.1, 0.25, 0.65])
    np.testing.assert_allclose(np.exp(logits("hips", replace(scene, attackers=4)))[0], [0.05, 0.9, 0.05])


@given(seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_no_vote_harms_the_mean_more_than_lma(seed):
    scene = random_scene(seed, rows=1)
    mean, share = scene.honest.mean(axis=0)[0], scene.attackers / scene.clients
    most = cross_entropy(mean, np.exp(logits("least-likely", scene))[0], share)
    others = [*np.eye(4), *np.random.default_rng(seed).dirichlet(np.full(4, 0.3), 50)]
    assert most >= max(cross_entropy(mean, vote, share) for vote in others) - 1e-5  # the floor of 1e-7


def test_hips_among_corners_is_cpa():
    # row by row every corner has its voter, so nothing but the choice among corners is left
    nearly = 0.9 * np.eye(3)[:, None] + 0.1 * np.random.default_rng(2).dirichlet(np.ones(3), (3, 4))
    scene = Scene(nearly, np.full((4, 3), 1 / 3), None, 1, 4, 1)
    hidden = logits("hips", scene, {"aim": "class-covariance"})
    np.testing.assert_array_equal(hidden.argmax(axis=1), logits("class-covariance", scene).argmax(axis=1))


@pytest.mark.parametrize(
    ("clients", "attackers", "z"),
    [
        (10, 4, 0.4307),  # e = 2, Phi(z) = 4/6
        (10, 3, 0.1800),  # e = 3, 4/7
        (10, 2, 0.0),  # e = 4, 4/8
        (10, 1, -0.1397),  # e = 5, 4/9
        (10, 6, 0.6745),  # a majority: e = 1 instead of 0, 3/4
        (10, 9, 0.0),
        (1, 1, 0.0),
    ],
)
def test_a_little_is_as_much_as_the_reference_says(clients, attackers, z):
    assert hidden_z(clients, attackers) == pytest.approx(z, abs=1e-4)


def test_a_little_that_is_too_much_stays_at_the_mean():
    # mean .5, std .4: .5 - 4 * .4 leaves nothing of either class
    honest = np.array([[[0.9, 0.1]], [[0.1, 0.9]]])
    scene = Scene(honest, np.array([[0.5, 0.5]]), None, 1, 3, 1)
    np.testing.assert_allclose(np.exp(logits("lie", scene, {"z": 4.0})), [[0.5, 0.5]])


def test_a_peak_looks_like_the_own_confidence():
    scene = random_scene(9, rows=50)
    sent = np.exp(logits("peak-controlled", scene))
    np.testing.assert_allclose(sent.max(axis=1), scene.own.max(axis=1))
    assert (sent.argmax(axis=1) != scene.own.argmax(axis=1)).all()


@given(scene=scenes, target=st.integers(0, 1))
@settings(max_examples=40, deadline=None)
def test_colluders_are_wrong_on_every_row(scene, target):
    sent = logits("colluding", scene, {"target": target})
    honest = np.sort(scene.honest, axis=0).mean(axis=0) if len(scene.honest) else scene.own
    assert (sent.argmax(axis=1) != honest.argmax(axis=1)).all()


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("nan", {"value": "0"}, "value='0' must be nan, inf or -inf"),
        ("scaled-logits", {"factor": 0.0}, "factor=0.0 must be above 0 and finite"),
        ("scaled-logits", {"factor": math.inf}, "factor=inf must be above 0"),
        ("label-shift", {"shift": 0}, "shift=0 must be at least 1"),
        ("hips", {"aim": "spite"}, "aim='spite' must be one of loss, class-covariance"),
        ("partial", {"share": 0.0}, r"share=0.0 must be in \(0, 1\]"),
        ("partial", {"share": math.nan}, "share=nan"),
        ("partial", {"attack": {"name": "hips", "aim": "spite"}}, "aim='spite'"),
        ("partial", {"attack": 3}, "must be a name, or a table with a name"),
        ("peak-controlled", {"peak": 1.5}, r"peak=1.5 must be in \(0, 1\], or 0"),
        ("colluding", {"target": -1}, "target=-1 must be a class"),
        ("lie", {"z": -1.0}, "z=-1.0 must be at least 0"),
        ("uniform", {"share": 0.1}, "attack 'uniform' has no setting 'share'; known: none"),
        ("colluding", {"stay": 1}, "stay=1 must be true or false"),
        ("label-shift", {"shift": 1.5}, "shift=1.5 must be a whole number"),
    ],
)
def test_settings_out_of_bounds_are_refused(name, values, says):
    with pytest.raises(ValueError, match=says):
        build_attack(name, values)


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("label-shift", {"shift": 3}, "shift=3 of 3 classes leaves the vote honest"),
        ("peak-controlled", {"peak": 0.3}, "peak=0.3 is no peak among 3 classes"),
        ("colluding", {"target": 3}, "target=3 must be below 3"),
    ],
)
def test_settings_that_do_not_fit_the_classes_are_refused(name, values, says):
    with pytest.raises(ValueError, match=says):
        logits(name, SCENE, values)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"own": OWN[:1]}, "honest, own and teacher must be"),
        ({"honest": HONEST[0]}, "honest, own and teacher must be"),
        ({"teacher": TEACHER[:, :2]}, "honest, own and teacher must be"),
        ({"rows": np.arange(3)}, "rows must be 2 numbers, one for each row of own"),
        ({"attackers": 0}, r"attackers=0 must be in \[1, 3\]"),
        ({"attackers": 4}, r"attackers=4 must be in \[1, 3\]"),
    ],
)
def test_a_scene_that_cannot_be_is_refused(changed, says):
    with pytest.raises(ValueError, match=says):
        replace(SCENE, **changed)


def test_an_unknown_attack_lists_the_known_ones():
    with pytest.raises(KeyError, match="class-covariance, colluding, hips"):
        build_attack("backdoor", {})
