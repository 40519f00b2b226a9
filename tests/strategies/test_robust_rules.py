"""Each robust rule against a loop over rows and clients, with masks, weights, ties and one-hots; its known traps."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from strategies.aggregator import Ballot
from strategies.aggregators import build_aggregator
from strategies.aggregators.geometric_median import _geometric_medians, _step
from strategies.aggregators.spectral_filter import outlier_scores
from strategies.aggregators.stacking import Block
from strategies.messages import ClientReport
from strategies.soft_labels import SoftLabels
from strategies.wire import believe_symbols, vote_symbols
from tests.strategies.trust import capped, mean

ROWS = 6
# Rows A and B of the design reference, as [2, C, K].
A_AND_B = np.array(
    [[[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.2, 0.7]], [[0.5, 0.4, 0.1], [0.2, 0.7, 0.1], [0.3, 0.3, 0.4]]]
).transpose(0, 2, 1)
ALL_VOTED = np.ones((2, 3), bool)


@st.composite
def rounds(draw, hard=True, most=13, smallest=1):
    """[K, n, C] votes, [K, n] who voted, [K, n] weights, voters needed: usual, tied, one-hot; masked or not."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    clients, classes = draw(st.integers(smallest, most)), draw(st.sampled_from([2, 3, 5, 100]))
    votes = rng.dirichlet(np.full(classes, 0.7), (clients, ROWS)) * (1 - 1e-6 * classes) + 1e-6
    if hard and draw(st.booleans()):  # some one-hots, some copies of another vote
        sure = rng.random((clients, ROWS)) < 0.4
        votes[sure] = np.eye(classes)[rng.integers(classes, size=sure.sum())] * (1 - 1e-7 * classes) + 1e-7
        votes[clients // 2 :] = votes[: clients - clients // 2]
    mask = rng.random((clients, ROWS)) < draw(st.sampled_from([1.0, 0.7, 0.3]))
    kind = draw(st.sampled_from(["equal", "by client", "by row", "lopsided"]))
    weights = {
        "equal": np.full((clients, ROWS), 0.3),
        "by client": np.repeat(rng.uniform(0.05, 1.0, (clients, 1)), ROWS, axis=1),
        "by row": rng.uniform(0.05, 1.0, (clients, ROWS)),
        "lopsided": 10.0 ** -rng.uniform(0.0, 9.0, (clients, ROWS)),
    }[kind]
    return votes, mask, weights, draw(st.integers(1, min(3, clients)))


def aggregated(name, values, case):
    votes, mask, weights, needed = case
    sent = [
        ClientReport(
            f"c{k:02}",
            1,
            SoftLabels.from_logits(np.flatnonzero(mask[k]), np.log(votes[k][mask[k]])),
            weights[k][mask[k]],
        )
        for k in range(len(votes))
    ]
    ballot = Ballot(np.arange(ROWS), votes.shape[2], len(votes), needed)
    return build_aggregator(name, values).aggregate({}, ballot, sent).teacher


def agrees(name, values, case, naive):
    """The rule's teacher is what `naive(votes [v, C], weights [v])` makes of each row's voters; None: no row."""
    votes, mask, weights, _ = case
    teacher, expected = aggregated(name, values, case), {}
    for row in range(ROWS):
        if taught(row, case):
            pooled = naive(as_sent(votes[mask[:, row], row]), weights[mask[:, row], row])
            if pooled is not None:
                expected[row] = pooled
    assert teacher.rows.tolist() == list(expected)
    if expected:
        np.testing.assert_allclose(teacher.probabilities(), list(expected.values()), atol=2e-6)


def taught(row, case):
    """Whether a row has enough voters."""
    _, mask, _, needed = case
    return mask[:, row].sum() >= needed


def as_sent(votes):
    """Votes as they arrive: float32 log-probabilities."""
    return SoftLabels.from_logits(np.arange(len(votes)), np.log(votes)).probabilities()


def normalised(pooled, votes, weights):
    nothing = pooled.sum() <= 2e-4 + 2e-7 * len(pooled)
    return mean(votes, weights) if nothing else pooled / pooled.sum()


def naive_median(votes, weights):
    pooled, weights = [], capped(weights)
    for column in votes.T:
        order = np.argsort(column, kind="stable")
        upto, half = np.cumsum(weights[order]), weights.sum() / 2
        low = next(i for i in range(len(order)) if upto[i] >= half - 1e-9 * half)
        high = next(i for i in range(len(order)) if upto[i] > half + 1e-9 * half)
        pooled.append((column[order[low]] + column[order[high]]) / 2)
    return normalised(np.array(pooled), votes, weights)


def naive_trimmed(votes, weights, trim):
    weights = capped(weights)
    share = np.floor(round(trim * len(votes), 9)) / len(votes) * weights.sum()
    pooled = []
    for column in votes.T:
        order = list(np.argsort(column, kind="stable"))
        left = weights.copy()
        for end in (order, order[::-1]):
            lost = share
            for client in end:
                taken = min(lost, left[client])
                left[client] -= taken
                lost -= taken
        pooled.append((left * column).sum() / left.sum())
    return normalised(np.array(pooled), votes, weights)


def naive_scores(votes, weights):
    weights = capped(weights)
    centred = votes - mean(votes, weights)
    # The first right singular vector of the [v, C] matrix; a different way to the same direction.
    direction = np.linalg.svd(np.sqrt(weights / weights.sum())[:, None] * centred)[2][0]
    return np.round(np.abs(centred @ direction), 9)


def naive_cronus(votes, weights, attackers):
    f = attackers or -(-len(votes) // 2) - 1
    if len(votes) < 2 * f + 1:
        return None
    for count in (-(-f // 2), f // 2):
        scores = naive_scores(votes, weights)
        worst = sorted(range(len(votes)), key=lambda k, s=scores: (s[k], k))[len(votes) - count :]
        votes, weights = np.delete(votes, worst, axis=0), np.delete(weights, worst)
    return mean(votes, weights)


def total_distance(point, votes, weights):
    return (weights * np.linalg.norm(votes - point, axis=1)).sum()


@given(rounds())
@settings(max_examples=150, deadline=None)
def test_the_median_is_the_loop_over_rows(case):
    agrees("median", {}, case, naive_median)


@given(rounds())
@settings(max_examples=50, deadline=None)
def test_with_equal_weights_the_median_is_numpys(case):
    votes, mask, _, needed = case
    equal = (votes, mask, np.full(mask.shape, 0.3), needed)
    agrees("median", {}, equal, lambda row, weights: normalised(np.median(row, axis=0), row, weights))


@given(rounds(), st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.34, 0.49]))
@settings(max_examples=150, deadline=None)
def test_the_trimmed_mean_is_the_loop_over_rows(case, trim):
    agrees("trimmed-mean", {"trim": trim}, case, lambda row, weights: naive_trimmed(row, weights, trim))


@given(rounds(), st.sampled_from([0.1, 0.2, 0.3, 0.34, 0.49]))
@settings(max_examples=50, deadline=None)
def test_with_equal_weights_the_trimmed_mean_drops_whole_voters(case, trim):
    def plain(row, weights):
        g = int(np.floor(round(trim * len(row), 9)))
        return normalised(np.sort(row, axis=0)[g : len(row) - g].mean(axis=0), row, weights)

    votes, mask, _, needed = case
    agrees("trimmed-mean", {"trim": trim}, (votes, mask, np.full(mask.shape, 0.3), needed), plain)


@pytest.mark.parametrize("rule", ["median", "trimmed-mean"])
@pytest.mark.parametrize("codec", ["float32", "float16", "quantised:1", "quantised:4", "quantised:8", "top-k:2"])
@pytest.mark.parametrize("classes", [4, 10, 100])
def test_without_a_majority_one_hots_that_travelled_are_their_mean(rule, codec, classes):
    # 4, 3, 3, 3 of 13 for four classes: no class has half of the votes, and what codecs add is nothing
    winners = np.repeat(np.arange(4), [4, 3, 3, 3])
    votes = [
        SoftLabels.from_logits(np.arange(1), np.where(np.arange(classes) == winner, 0.0, -30.0)[None])
        for winner in winners
    ]
    travelled = [believe_symbols(vote.rows, vote_symbols(vote, codec), codec, classes) for vote in votes]
    settings = {"trim": 0.45} if rule == "trimmed-mean" else {}
    found = one_row(rule, settings, [vote.probabilities()[0] for vote in travelled])
    np.testing.assert_allclose(found[:4], np.array([4, 3, 3, 3]) / 13, atol=2e-4)
    assert found[4:].max(initial=0.0) < 2e-4


@given(rounds())
@settings(max_examples=80, deadline=None)
def test_no_point_is_nearer_to_all_votes_than_the_geometric_median(case):
    votes, mask, weights, _ = case
    teacher = aggregated("geometric-median", {}, case)
    assert teacher.rows.tolist() == [row for row in range(ROWS) if taught(row, case)]
    rng = np.random.default_rng(0)
    for row, found in zip(teacher.rows, teacher.probabilities(), strict=True):
        own, trust = as_sent(votes[mask[:, row], row]), capped(weights[mask[:, row], row])
        best = total_distance(found, own, trust)
        others = [*own, *(rng.dirichlet(np.ones(len(own)), 20) @ own), *(found + 0.01 * (own - found))]
        # The function is convex: that no small step towards a vote helps is nearly enough.
        assert all(best <= total_distance(other, own, trust) + 2e-6 for other in others)


@given(rounds(), st.randoms(use_true_random=False))
@settings(max_examples=80, deadline=None)
def test_names_say_nothing_to_the_geometric_median(case, random):
    votes, mask, weights, needed = case
    order = random.sample(range(len(votes)), len(votes))
    renamed = aggregated("geometric-median", {}, (votes[order], mask[order], weights[order], needed))
    teacher = aggregated("geometric-median", {}, case)
    assert teacher.rows.tolist() == renamed.rows.tolist()
    np.testing.assert_allclose(renamed.probabilities(), teacher.probabilities(), atol=2e-5)


@pytest.mark.parametrize("each", [1, 2, 5, 32, 40])
@pytest.mark.parametrize("between", [0, 2])
def test_between_two_equal_camps_the_geometric_median_is_the_middle(each, between):
    a, b = np.array([0.8, 0.1, 0.1]), np.array([0.1, 0.3, 0.6])
    inside = [a + share * (b - a) for share in np.linspace(0.3, 0.7, between)]
    votes = [a] * each + [b] * each + inside
    ends = (inside[0] + inside[-1]) / 2 if inside else (a + b) / 2
    np.testing.assert_allclose(one_row("geometric-median", {}, votes), ends, atol=1e-6)
    np.testing.assert_allclose(one_row("geometric-median", {}, votes[::-1]), ends, atol=1e-6)
    # one more on a side and that side has it
    if not inside:
        np.testing.assert_allclose(one_row("geometric-median", {}, [*votes, b]), b, atol=1e-6)


@given(rounds(hard=False), st.sampled_from([0.25, 0.5, 0.8, 1.0]))
@settings(max_examples=100, deadline=None)
def test_the_spectral_filter_is_the_loop_over_rows(case, quantile):
    def naive(row, weights):
        scores = naive_scores(row, weights)
        kept = scores <= np.quantile(scores, quantile, method="higher")
        return mean(row[kept], weights[kept]) if kept.sum() >= min(case[3], 2) else None

    agrees("spectral-filter", {"quantile": quantile}, case, naive)


@given(rounds(hard=False), st.floats(0.01, 0.6))
@settings(max_examples=60, deadline=None)
def test_a_threshold_keeps_two_votes_or_leaves_the_row_out(case, threshold):
    def naive(row, weights):
        kept = naive_scores(row, weights) <= threshold
        return mean(row[kept], weights[kept]) if kept.sum() >= min(case[3], 2) else None

    agrees("spectral-filter", {"threshold": threshold}, case, naive)


@given(rounds(hard=False), st.sampled_from([0, 1, 2, 4]))
@settings(max_examples=100, deadline=None)
def test_cronus_is_the_loop_over_rows(case, attackers):
    agrees("cronus", {"attackers": attackers}, case, lambda row, w: naive_cronus(row, w, attackers))


@given(rounds(smallest=2), st.sampled_from([0.0, 0.15, 2.0]))
@settings(max_examples=60, deadline=None)
def test_the_cosine_filter_is_the_loop_over_clients(case, slack):
    votes, mask, weights, needed = case
    rows = [row for row in range(ROWS) if taught(row, case)]
    sent = np.array([as_sent(one) for one in votes])
    trust = {row: weights[mask[:, row], row] for row in rows}
    medians = {row: naive_median(sent[mask[:, row], row], trust[row]) for row in rows}
    cosines = {}
    for client in range(len(votes)):
        own = [row for row in rows if mask[client, row]]
        if own:
            a, b = (np.concatenate(x) for x in (sent[client, own], [medians[row] for row in own]))
            cosines[client] = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    cut = np.median(list(cosines.values())) - slack - 1e-9 if cosines else 0.0
    kept = np.array([cosines.get(client, -2.0) >= cut for client in range(len(votes))])
    if any(abs(cosine - cut) < 1e-7 for cosine in cosines.values()) and slack > 0:
        return  # on the edge either is right
    expected = {}
    for row in rows:
        voters = mask[:, row] & kept
        if voters.sum() >= min(needed, 2):
            expected[row] = mean(sent[voters, row], trust[row][kept[mask[:, row]]])
    teacher = aggregated("cosine-filter", {"slack": slack}, case)
    assert teacher.rows.tolist() == list(expected)
    if expected:
        np.testing.assert_allclose(teacher.probabilities(), list(expected.values()), atol=2e-6)


def one_row(name, values, votes, weights=None, needed=1):
    votes = np.asarray(votes, float)
    sent = [
        ClientReport(
            f"c{k:02}", 1, SoftLabels.from_logits(np.array([0]), np.log(np.maximum(vote, 1e-12))[None]), weight
        )
        for k, (vote, weight) in enumerate(zip(votes, weights or [1.0] * len(votes), strict=True))
    ]
    teacher = build_aggregator(name, values).aggregate(
        {}, Ballot(np.array([0]), votes.shape[1], len(votes), needed), sent
    )
    return teacher.teacher.probabilities()[0] if len(teacher.teacher.rows) else None


def two_classes(*first):
    return [[value, 1.0 - value] for value in first]


def test_one_far_vote_is_trimmed():
    votes = two_classes(0.1, 0.2, 0.3, 0.4, 1.0)
    # (.2 + .3 + .4) / 3 = .3 for class 1, and (.8 + .7 + .6) / 3 = .7
    np.testing.assert_allclose(one_row("trimmed-mean", {"trim": 0.2}, votes), [0.3, 0.7], atol=1e-4)
    np.testing.assert_allclose(one_row("mean", {}, votes), [0.4, 0.6], atol=1e-4)


@pytest.mark.parametrize("name", ["median", "trimmed-mean"])
def test_different_one_hots_have_no_middle_so_their_mean_is_taken(name):
    np.testing.assert_allclose(
        one_row(name, {"trim": 0.4} if name[0] == "t" else {}, np.eye(3)), [1 / 3] * 3, atol=1e-4
    )
    # by weight: .5, .3, .2 (none has more than half)
    settings = {"trim": 0.4} if name[0] == "t" else {}
    if name == "median":
        np.testing.assert_allclose(one_row(name, settings, np.eye(3), [0.45, 0.35, 0.2]), [0.45, 0.35, 0.2], atol=1e-4)


def test_ties_do_not_depend_on_which_of_equal_voters_is_heavy():
    votes = two_classes(0.1, 0.1, 0.1, 0.5, 0.9)
    one, other = (one_row("trimmed-mean", {}, votes, w) for w in ([1.0, 0.2, 0.2, 0.5, 0.5], [0.2, 0.2, 1.0, 0.5, 0.5]))
    np.testing.assert_allclose(one, other, atol=1e-7)


@pytest.mark.parametrize("weights", [None, [0.2, 0.2, 0.2, 0.2, 0.2]])
def test_the_geometric_median_leaves_a_mean_that_is_a_vote(weights):
    # The mean .3 is itself a vote; the objective is 1.6971 there and 1.4142 at .1.
    votes = np.array(two_classes(0.1, 0.1, 0.1, 0.3, 0.9))
    found = one_row("geometric-median", {}, votes, weights)
    np.testing.assert_allclose(found, [0.1, 0.9], atol=1e-6)
    assert total_distance([0.3, 0.7], votes, np.ones(5)) == pytest.approx(1.6971, abs=1e-4)
    assert total_distance(found, votes, np.ones(5)) == pytest.approx(1.4142, abs=1e-4)


def test_vardi_and_zhang_step_away_from_a_vote_that_is_not_the_median():
    # The same five votes on a line in three classes: at the third one Weiszfeld's weights are infinite.
    votes = np.array([[x, (1 - x) / 2, (1 - x) / 2] for x in (0.1, 0.1, 0.1, 0.3, 0.9)])
    after = _step(votes.T[None], np.ones((1, 5)), votes[3][None])[0]
    # The others pull with 3 - 1 = 2 unit vectors, the vote holds with 1: half of the way to their point, which is at
    # (3 * .1 / .2 + .9 / .6) / (3 / .2 + 1 / .6) = .18 -> .24
    assert after[0] == pytest.approx(0.24)
    np.testing.assert_allclose(one_row("geometric-median", {}, votes), votes[0], atol=1e-6)
    # Once at the median it stays.
    np.testing.assert_allclose(_step(votes.T[None], np.ones((1, 5)), votes[0][None])[0], votes[0], atol=1e-15)


@pytest.mark.parametrize(
    ("votes", "weights", "median"),
    [
        # two equal votes hold against two unit pulls, however hard those are
        (
            [[0.1001, 0.3975, 0.5024], [0.0036, 0.9391, 0.0573], [0.1403, 0.0209, 0.8388], [0.1403, 0.0209, 0.8388]],
            None,
            2,
        ),
        # a vote of weight 1 between two of .5
        ([[0.405, 0.127, 0.427, 0.041], [0.006, 0.992, 0.001, 0.001], [0.074, 0.857, 0.068, 0.001]], [0.5, 1, 0.5], 1),
    ],
)
def test_a_median_that_is_a_vote_far_from_the_mean_is_found(votes, weights, median):
    np.testing.assert_allclose(one_row("geometric-median", {}, votes, weights), votes[median], atol=1e-6)


@given(rounds(hard=False, smallest=3))
@settings(max_examples=50, deadline=None)
def test_two_equal_votes_of_four_are_the_geometric_median(case):
    votes = [*case[0][:3, 0], case[0][2, 0]]
    assume(len(votes[0]) > 2)  # on a line the middle of the inner two votes is as good
    np.testing.assert_allclose(one_row("geometric-median", {}, votes), as_sent(np.array(votes))[2], atol=1e-6)


def test_three_votes_of_one_client_weigh_like_one_of_three():
    found = one_row("geometric-median", {}, two_classes(0.1, 0.3, 0.9), [0.9, 0.3, 0.3])
    np.testing.assert_allclose(found, [0.1, 0.9], atol=1e-6)


def test_the_first_step_and_the_objective_of_the_geometric_median():
    step = _step(A_AND_B, np.ones((2, 3)), A_AND_B.mean(axis=2))
    np.testing.assert_allclose(step[0], [0.5344, 0.2441, 0.2215], atol=1e-4)
    for votes, limit, objective in (
        (A_AND_B[0].T, [0.6023, 0.2837, 0.1140], 0.9274),
        (A_AND_B[1].T, [0.3714, 0.4429, 0.1857], 0.7483),
    ):
        assert total_distance(np.array(limit), votes, np.ones(3)) == pytest.approx(objective, abs=1e-4)


@pytest.mark.parametrize("voters", [2, 3])
def test_a_median_at_a_vote_or_close_to_one_is_found_all_the_same(voters):
    # Weiszfeld alone crawls there: of 2,000 rows some are still 1e-6 too far after 500 rounds.
    rng = np.random.default_rng(0)
    votes, weights = rng.dirichlet(np.full(5, 0.7), (2000, voters)), rng.uniform(0.05, 1.0, (2000, voters))
    log_probs = np.log(votes).transpose(0, 2, 1).astype(np.float32)
    block = Block(np.arange(2000), log_probs, np.ones((2000, voters), bool), weights)
    votes, found = np.exp(log_probs.astype(float)).transpose(0, 2, 1), _geometric_medians(block)

    def objective(points):
        return (weights * np.linalg.norm(votes - points[:, None], axis=2)).sum(axis=1)

    best, points = np.minimum(objective(found), np.min([objective(votes[:, k]) for k in range(voters)], axis=0)), found
    for _ in range(2000):
        pulls = weights / np.maximum(np.linalg.norm(votes - points[:, None], axis=2), 1e-13)
        points = np.einsum("mk,mkc->mc", pulls, votes) / pulls.sum(axis=1, keepdims=True)
    assert (objective(found) - np.minimum(best, objective(points))).max() < 1e-8


def test_scores_along_the_main_direction_of_disagreement():
    scores = outlier_scores(A_AND_B, ALL_VOTED, np.ones((2, 3)))
    np.testing.assert_allclose(scores, [[0.3030, 0.2406, 0.5436], [0.0492, 0.2779, 0.2287]], atol=1e-4)


@pytest.mark.parametrize("classes", [2, 4, 100])
@given(seed=st.integers(0, 10**6), hard=st.booleans())
@settings(max_examples=30, deadline=None)
def test_no_row_with_different_votes_goes_unfiltered_for_lack_of_a_direction(classes, seed, hard):
    # Power iteration from all-ones finds the zero vector: votes sum to 1, so the covariance times 1 is 0.
    rng = np.random.default_rng(seed)
    votes = np.eye(classes)[rng.integers(classes, size=(5, 8))] if hard else rng.dirichlet(np.ones(classes), (5, 8))
    votes = votes.transpose(0, 2, 1)
    centred = votes - votes.mean(axis=2, keepdims=True)
    assert np.abs(np.einsum("mck,mdk->mcd", centred, centred).sum(axis=2)).max() < 1e-12
    differ = np.abs(centred).max(axis=(1, 2)) > 1e-9
    assert ((outlier_scores(votes, np.ones((5, 8), bool), np.ones((5, 8))) > 1e-3).any(axis=1) == differ).all()


@pytest.mark.parametrize(("name", "values"), [("spectral-filter", {"quantile": 0.6}), ("cronus", {"attackers": 2})])
def test_one_hot_attackers_in_two_classes_are_filtered(name, values):
    votes = two_classes(0.9, 0.8, 0.85, 0.9, 0.8, 0.85, 0.0, 0.0)
    assert one_row(name, values, votes)[0] >= 0.8
    assert one_row("mean", {}, votes)[0] < 0.65


def test_cronus_drops_exactly_f_of_the_voters_of_the_row():
    votes = [[0.9 - 0.001 * k, 0.1 + 0.001 * k] for k in range(7)] + [[0.1, 0.9]] * 3
    kept = np.array(votes[:7])
    # 10 voters, f = 3: 2 then 1; what stands out are the last three
    np.testing.assert_allclose(one_row("cronus", {"attackers": 3}, votes), kept.mean(axis=0), atol=1e-6)
    # 6 voters of whom 2 are malicious: f = 2 by default
    few = [*votes[:4], *votes[8:]]
    np.testing.assert_allclose(one_row("cronus", {}, few), kept[:4].mean(axis=0), atol=1e-6)


def test_of_equal_scores_the_last_name_is_dropped():
    votes = two_classes(*([0.9, 0.1] * 20))
    # all 40 stand out by .4; the last, .1, goes
    expected = (20 * 0.9 + 19 * 0.1) / 39
    assert one_row("cronus", {"attackers": 1}, votes)[0] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("attackers", "voters", "stays"), [(1, 2, False), (1, 3, True), (2, 4, False), (9, 3, False)])
def test_cronus_needs_more_honest_voters_than_assumed_attackers(attackers, voters, stays):
    # Row A with client 2 masked is a tie of (.7, .2, .1) and (.1, .2, .7) that f = 1 must refuse.
    votes = ([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]] * 2)[:voters]
    assert (one_row("cronus", {"attackers": attackers}, votes) is not None) == stays


@pytest.mark.parametrize("name", ["median", "spectral-filter", "cosine-filter", "cronus", "geometric-median"])
def test_the_least_likely_class_from_one_of_three_moves_the_mean_and_no_robust_rule_as_far(name):
    # y_H = (.65, .25, .10); the attacker says class 3, and the mean becomes (.4333, .1667, .4000).
    votes = [[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.0, 0.0, 1.0]]
    np.testing.assert_allclose(one_row("mean", {}, votes), [0.4333, 0.1667, 0.4000], atol=1e-4)
    assert one_row(name, {}, votes)[2] < 0.2


def test_a_cosine_filter_that_keeps_one_of_two_publishes_nobody():
    # The median, by weight, is the first vote; cosines 1 and .02, their median .51: the second goes, one is left.
    votes = [[0.98, 0.01, 0.01], [0.01, 0.01, 0.98]]
    assert one_row("cosine-filter", {"slack": 0.15}, votes, [1.0, 0.5], needed=2) is None
    np.testing.assert_allclose(one_row("cosine-filter", {}, votes, [1.0, 0.5], needed=1), votes[0], atol=1e-6)
