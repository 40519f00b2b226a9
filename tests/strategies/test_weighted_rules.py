"""Rules that weigh votes, and votes of one word: each against a loop, with masks, weights, ties and extremes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.aggregator import Ballot
from strategies.aggregators import build_aggregator
from strategies.messages import ClientReport
from strategies.soft_labels import SoftLabels
from tests.strategies.trust import capped, mean

ROWS = 5


@st.composite
def rounds(draw, hard=True):
    """Reports with scores, counts and weights of all kinds, as a dictionary of arrays; and the voters needed."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    clients, classes = draw(st.integers(1, 9)), draw(st.sampled_from([2, 3, 12]))
    votes = rng.dirichlet(np.full(classes, 0.7), (clients, ROWS)) * (1 - 1e-6 * classes) + 1e-6
    if hard and draw(st.booleans()):
        sure = rng.random((clients, ROWS)) < 0.5
        votes[sure] = np.eye(classes)[rng.integers(classes, size=sure.sum())] * (1 - 1e-7 * classes) + 1e-7
    case = {
        "votes": votes,
        "mask": rng.random((clients, ROWS)) < draw(st.sampled_from([1.0, 0.6])),
        "weights": rng.uniform(0.05, 1.0, (clients, ROWS)) ** draw(st.sampled_from([0, 1])),
        "scores": rng.uniform(0.0, 1.0, (clients, ROWS))
        * (rng.random((clients, ROWS)) < draw(st.sampled_from([1.0, 0.5]))),
        "counts": np.floor(rng.uniform(0.0, 4.0, (clients, classes))) * 10.0 ** rng.integers(-3, 7),
    }
    return case, draw(st.integers(1, min(clients, 3)))


def aggregated(name, values, case, needed, seed=0):
    votes, mask = case["votes"], case["mask"]
    sent = [
        ClientReport(
            f"c{k}",
            1,
            SoftLabels.from_logits(np.flatnonzero(mask[k]), np.log(votes[k][mask[k]])),
            case["weights"][k][mask[k]],
            case["scores"][k][mask[k]],
            case["counts"][k],
        )
        for k in range(len(votes))
    ]
    ballot = Ballot(np.arange(ROWS), votes.shape[2], len(votes), needed, seed=seed)
    return build_aggregator(name, values).aggregate({}, ballot, sent).teacher


def agrees(name, values, case, needed, naive, atol=3e-6):
    """The teacher is what naive(votes, weights, scores, counts) makes of each row's voters; None: no row."""
    teacher, expected = aggregated(name, values, case, needed), {}
    for row in range(ROWS):
        voters = case["mask"][:, row]
        if voters.sum() >= needed:
            own = SoftLabels.from_logits(np.arange(voters.sum()), np.log(case["votes"][voters, row])).probabilities()
            pooled = naive(own, case["weights"][voters, row], case["scores"][voters, row], case["counts"][voters])
            if pooled is not None:
                expected[row] = pooled
    assert teacher.rows.tolist() == list(expected)
    if expected:
        np.testing.assert_allclose(teacher.probabilities(), list(expected.values()), atol=atol)


def softmax(logits):
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def logit_pool(votes, weights):
    return softmax(mean(np.log(np.maximum(votes, 1e-7)), weights))


@given(rounds())
@settings(max_examples=80, deadline=None)
def test_variance_is_the_loop_over_rows(round_):
    def naive(votes, weights, scores, counts):
        spread = np.array([np.var(np.log(np.maximum(vote, 1e-4))) for vote in votes])
        trust = np.minimum(spread, 3 * np.median(spread))
        return logit_pool(votes, weights * (trust if np.median(spread) > 0 else 1.0))

    agrees("variance", {}, *round_, naive)


def test_one_sure_vote_among_unsure_ones_has_at_most_three_times_their_weight():
    votes = np.repeat(np.array([[[0.4, 0.6]], [[0.4, 0.6]], [[0.999, 0.001]]]), ROWS, axis=1)
    case = full(votes)
    # spreads .041, .041 and 11.9, capped at .123: weights 1, 1, 3; .999 / .001 has log-odds 6.907, .4 / .6 -.405
    log_odds = (2 * np.log(0.4 / 0.6) + 3 * np.log(999)) / 5
    found = aggregated("variance", {}, case, 1).probabilities()[0]
    np.testing.assert_allclose(found[0], 1 / (1 + np.exp(-log_odds)), atol=1e-5)
    # Lent to another rule that cap is not there, 11.9 to .041, and nine tenths are the most.
    lent = aggregated("logit-mean", {"weight": "variance"}, case, 1).probabilities()[0]
    np.testing.assert_allclose(lent[0], 1 / (1 + np.exp(-0.9 * np.log(999) - 0.1 * np.log(0.4 / 0.6))), atol=1e-5)


@pytest.mark.parametrize("pool", ["logits", "probabilities"])
@given(round_=rounds())
@settings(max_examples=60, deadline=None)
def test_sample_weighted_is_the_loop_over_rows(pool, round_):
    case, needed = round_

    def naive(votes, weights, scores, counts):
        trust = np.maximum(weights * scores, 1e-18)
        return logit_pool(votes, trust) if pool == "logits" else mean(votes, trust)

    agrees("sample-weighted", {"pool": pool}, case, needed, naive)


def full(votes, **more):
    votes = np.asarray(votes, float)
    clients, rows, classes = votes.shape
    ones = np.ones((clients, rows))
    return {
        "votes": votes,
        "mask": ones > 0,
        "weights": ones,
        "scores": ones,
        "counts": np.ones((clients, classes)),
        **more,
    }


@pytest.mark.parametrize(
    ("scores", "share"),
    [
        ([1.0, 1.0, 1.0], 1 / 3),
        ([0.1, 0.1, 0.1], 1 / 3),
        ([0.0, 0.0, 0.0], 1 / 3),  # no trust at all: all alike
        ([1.0, 0.06, 0.06], 1 / 1.12),  # .893
        ([1.0, 0.05, 0.05], 0.9),  # .909
        ([0.3, 0.0, 0.001], 0.9),
        ([1.0, 1e-8, 1e-8], 0.9),
        ([1.0, 0.0, 0.0], 0.9),
        ([1e-8, 0.0, 0.0], 0.9),
    ],
)
@pytest.mark.parametrize("needed", [1, 2, 3])
def test_one_of_several_has_at_most_nine_tenths(scores, share, needed):
    votes = np.repeat(np.array([[0.8, 0.1, 0.1], [0.2, 0.2, 0.6], [0.2, 0.2, 0.6]])[:, None], ROWS, axis=1)
    case = full(votes, scores=np.repeat(np.array(scores)[:, None], ROWS, axis=1))
    expected = share * votes[0] + (1 - share) * votes[1]
    for name, values in (
        ("sample-weighted", {"pool": "probabilities"}),
        ("mean", {"weight": "sample-weighted"}),
        ("spectral-filter", {"weight": "sample-weighted", "quantile": 1.0}),
        ("cosine-filter", {"weight": "sample-weighted", "slack": 2.0}),
        ("expguard", {"weight": "sample-weighted", "step": 1e-9}),
        ("trimmed-mean", {"weight": "sample-weighted", "trim": 0.0}),
        ("clustered", {"weight": "sample-weighted"}),
    ):
        np.testing.assert_allclose(aggregated(name, values, case, needed).probabilities(), expected, atol=1e-6)
    # where it votes alone it has all
    case["mask"][1:, 2] = False
    found = aggregated("sample-weighted", {}, case, needed)
    assert (2 in found.rows) == (needed == 1)
    if needed == 1:
        np.testing.assert_allclose(found.probabilities()[2], votes[0, 0], atol=1e-6)


def test_nine_tenths_also_of_who_has_a_weight_of_one_where_the_others_have_next_to_none():
    rows = np.arange(2)

    def sent(name, vote, weight):
        return ClientReport(name, 1, SoftLabels.from_logits(rows, np.log([vote, vote])), weight)

    first, others = [0.8, 0.1, 0.1], [0.2, 0.2, 0.6]
    trusts = (0.001, np.array([0.001, 1.0])), (np.array([1e-9, 1.0]), np.array([1e-9, 0.0]))
    for b, c in trusts:
        reports = [sent("a", first, 1.0), sent("b", others, b), sent("c", others, c)]
        for order in ([0, 1, 2], [1, 2, 0], [2, 0, 1]):
            ballot = Ballot(rows, 3, 3, 2)
            teacher = build_aggregator("mean", {}).aggregate({}, ballot, [reports[i] for i in order]).teacher
            np.testing.assert_allclose(teacher.probabilities()[0], [0.74, 0.11, 0.15], atol=1e-6)


def test_one_sure_vote_among_uniform_ones_is_not_published_as_it_is():
    votes = np.repeat(np.array([[0.93, 0.05, 0.02], *[[1 / 3] * 3] * 3])[:, None], ROWS, axis=1)
    case = full(votes, counts=np.array([[5.0] * 3, *[[0.0] * 3] * 3]))
    expected = 0.9 * votes[0] + 0.1 / 3
    for name, values in (("entropy", {}), ("cosine-filter", {"weight": {"name": "entropy", "cap": 0.2}, "slack": 2.0})):
        np.testing.assert_allclose(aggregated(name, values, case, 2).probabilities(), expected, atol=1e-6)
    np.testing.assert_allclose(aggregated("class-count", {}, case, 2).probabilities(), expected, atol=1e-6)


@pytest.mark.parametrize("weight", [1e-6, 1e-3, 0.05, 0.5])
def test_a_late_vote_with_as_many_rows_still_has_a_tenth(weight):
    votes = np.repeat(np.array([[0.98, 0.01, 0.01], [0.01, 0.98, 0.01]])[:, None], ROWS, axis=1)
    case = full(votes, counts=np.full((2, 3), 50.0))
    case["weights"] = np.repeat([[1.0], [weight]], ROWS, axis=1)
    share = min(0.9, 1 / (1 + weight))
    expected = share * votes[0] + (1 - share) * votes[1]
    for name in ("class-count", "mean", "sample-weighted", "variance"):
        if name in ("class-count", "mean"):
            np.testing.assert_allclose(aggregated(name, {}, case, 2).probabilities(), expected, atol=1e-6)
        else:
            pooled = logit_pool(votes[:, 0], [1.0, weight])
            np.testing.assert_allclose(aggregated(name, {}, case, 2).probabilities()[0], pooled, atol=1e-6)


def test_no_liar_decides_which_rows_there_are():
    rng = np.random.default_rng(0)
    votes = rng.dirichlet(np.full(10, 60.0), (5, ROWS))
    votes[0] = np.eye(10)[3] * (1 - 1e-6) + 1e-7
    case = full(votes, counts=np.array([[3e38] * 10, *[[50.0] * 10] * 4]))
    for name, values in (
        ("entropy", {}),
        ("class-count", {}),
        ("variance", {}),
        ("cosine-filter", {"weight": "entropy"}),
    ):
        assert aggregated(name, values, case, 2).rows.tolist() == list(range(ROWS)), name


def test_only_ratios_of_tiny_scores_and_of_tiny_weights_matter():
    votes = np.repeat(np.array([[[0.9, 0.1]], [[0.1, 0.9]]]), ROWS, axis=1)
    for scale in (1.0, 1e-3, 1e-6, 1e-12):
        case = full(votes, scores=np.repeat(np.array([[0.5], [1.0]]), ROWS, axis=1) * scale)
        for weight in (1.0, 1e-3):
            case["weights"] = np.full((2, ROWS), weight)
            found = aggregated("sample-weighted", {"pool": "probabilities"}, case, 1).probabilities()[0]
            np.testing.assert_allclose(found, [1.1 / 3, 1.9 / 3], atol=1e-6)


def test_a_sure_vote_counts_by_a_high_power_of_its_confidence():
    votes = np.repeat(np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.2, 0.7]])[:, None], ROWS, axis=1)
    trust = np.array([0.7, 0.6, 0.7]) ** 16
    found = aggregated("confidence", {"exponent": 16.0}, full(votes), 2).probabilities()[0]
    np.testing.assert_allclose(found, trust @ votes[:, 0] / trust.sum(), atol=1e-6)


@given(rounds())
@settings(max_examples=80, deadline=None)
def test_class_count_is_the_loop_over_rows_and_classes(round_):
    def naive(votes, weights, scores, counts):
        raw = []
        for c in range(votes.shape[1]):
            own = weights * np.minimum(counts[:, c], 2.0**30)
            pooled = mean(votes, weights)[c]
            if len(votes) > 1 and max(own) > 0.9 * sum(own):
                top = own.argmax()
                others = np.delete(votes[:, c], top) @ np.delete(weights, top) / np.delete(weights, top).sum()
                pooled = 0.9 * votes[top, c] + 0.1 * others
            elif own.sum() > 0:
                pooled = np.average(votes[:, c], weights=own)
            raw.append(pooled)
        return np.array(raw) / np.sum(raw)

    agrees("class-count", {}, *round_, naive)


def test_only_ratios_of_counts_matter_from_grades_to_billions():
    rng = np.random.default_rng(1)
    case = full(rng.dirichlet(np.ones(4), (5, ROWS)), counts=np.floor(rng.uniform(0, 9, (5, 4))))
    expected = aggregated("class-count", {}, case, 1).probabilities()
    for scale in (1e-6, 0.1, 1e7):
        found = aggregated("class-count", {}, {**case, "counts": scale * case["counts"]}, 1).probabilities()
        np.testing.assert_allclose(found, expected, atol=1e-6)
    # More than 2^30 rows of a class count as that many.
    huge = aggregated("class-count", {}, {**case, "counts": np.full((5, 4), 1e300)}, 1).probabilities()
    np.testing.assert_allclose(huge, aggregated("mean", {}, case, 1).probabilities(), atol=1e-6)


@given(rounds(), st.booleans(), st.sampled_from([0.0, 0.3]))
@settings(max_examples=100, deadline=None)
def test_hard_vote_is_the_loop_over_rows(round_, soft, margin):
    def naive(votes, weights, scores, counts):
        classes, weights = votes.shape[1], capped(weights)
        shares = sum(weight * np.eye(classes)[vote.argmax()] for vote, weight in zip(votes, weights, strict=True))
        shares = shares / weights.sum()
        first, second = np.sort(shares)[::-1][:2]
        if margin > 0 and first - second <= margin + 1e-6:
            return None
        if soft:
            return shares
        mean = np.average(votes, axis=0, weights=weights)
        return np.eye(classes)[max(range(classes), key=lambda c: (shares[c] >= first - 1e-6, mean[c]))]

    case, needed = round_
    # Two one-hots of equal weight tie in their means as well; the lot that decides is tested below.
    case["weights"] = case["weights"] * np.linspace(0.9, 1.0, len(case["votes"]))[:, None]
    agrees("hard-vote", {"soft": soft, "margin": margin}, case, needed, naive)


def test_fedkts_margin_of_two_votes():
    # Ten parties, 6 to 4 and 7 to 3 votes: .2 is not more than .2
    votes = np.full((10, ROWS, 2), 0.1)
    for row, first in enumerate([6, 7, 10, 5, 3]):
        votes[:first, row, 0], votes[first:, row, 1] = 0.9, 0.9
    assert aggregated("hard-vote", {"margin": 0.2}, full(votes), 1).rows.tolist() == [1, 2, 4]
    assert aggregated("hard-vote", {}, full(votes), 1).rows.tolist() == [0, 1, 2, 3, 4]


def test_a_voter_between_two_classes_gives_half_a_vote_to_each():
    case = full(np.repeat([[[0.45, 0.45, 0.1]], [[0.1, 0.8, 0.1]]], ROWS, axis=1))
    # (.5, .5, 0) and (0, 1, 0)
    np.testing.assert_allclose(aggregated("hard-vote", {}, case, 1).probabilities()[0], [0.25, 0.75, 0.0], atol=1e-6)


def ties(rows, seed, classes=4):
    sent = [ClientReport("a", 1, SoftLabels.from_logits(rows, np.zeros((len(rows), classes))))]
    rule = build_aggregator("hard-vote", {"soft": False})
    return rule.aggregate({}, Ballot(rows, classes, 1, seed=seed), sent).teacher.log_probs.argmax(axis=1)


def test_a_full_tie_is_drawn_and_favours_no_class():
    winners = ties(np.arange(4000), 7)
    # 1,000 each, standard deviation sqrt(4000 * .25 * .75) = 27
    assert np.abs(np.bincount(winners, minlength=4) - 1000).max() < 5 * 27
    assert (winners != ties(np.arange(4000), 8)).mean() > 0.6
    # The lot is the row's own: the same whatever else is asked.
    assert ties(np.arange(0, 4000, 7), 7).tolist() == winners[::7].tolist()


def test_a_tie_of_some_classes_is_drawn_among_those():
    votes = np.repeat([[[0.6, 0.2, 0.1, 0.1]], [[0.2, 0.6, 0.1, 0.1]]], ROWS, axis=1)
    winners = {
        int(row.argmax())
        for seed in range(8)
        for row in aggregated("hard-vote", {"soft": False}, full(votes), 1, seed).log_probs
    }
    assert winners == {0, 1}
