"""Rounds for the robust rules, and each rule as a loop over rows and clients."""

import numpy as np
from hypothesis import strategies as st

from strategies.aggregator import Ballot
from strategies.aggregators import build_aggregator
from strategies.messages import ClientReport
from strategies.soft_labels import SoftLabels
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
