"""Client-level noise in the rounds: one sum, one noise, one payment a round, and the same bytes ever after."""

import math

import numpy as np
import pytest

from distillation.learner import Training
from privacy.accounting import epsilon_of
from privacy.events import Gaussian
from privacy.ledger import Ledger, TermsDiffer
from privacy.mechanisms import mechanism
from privacy.mechanisms.mechanism import DrawnNoise
from privacy.noise import Draw, SeededEntropy
from server.client_sum import ClientSumRule, SplitSumSettings, calibrated
from server.config import FederationConfig, StudentSettings
from server.replies import QuorumError
from server.rounds import run_rounds
from strategies.aggregator import Ballot
from strategies.aggregators import build_aggregator
from strategies.messages import ClientReport
from strategies.seeds import stream_seed
from strategies.soft_labels import SoftLabels

CLIP, CLIENTS, ROUNDS = 0.8, 6, 3


def settings(noise=0.5, rounds=ROUNDS, seeded=True, clip=CLIP, clients=CLIENTS):
    return calibrated(clip, clients, rounds, None, 1e-3, noise, seeded=seeded)


@pytest.fixture
def rule(exchange, tmp_path):
    """A function: the rule with its ledger in this test's folder."""

    def make(of="mean", more=None, name="ledger.sqlite", **told):
        return ClientSumRule(build_aggregator(of, more or {}), settings(**told), exchange(), tmp_path / name)

    return make


def by_hand(base, answers, seed, noise, clients=CLIENTS, clip=CLIP):
    """[rows, classes] the next teacher: clipped differences, a float sum, noise, division by M, projection."""
    total = np.zeros_like(base)
    for answer in answers:
        difference = answer - base
        total += difference * min(1.0, clip / np.linalg.norm(difference))
    noised = DrawnNoise(Draw(SeededEntropy(seed, "client-sum"))).gaussian(total, clip, noise)
    return mechanism.projected(base + noised / clients)


def noise_seed(round_, attempt=0):
    return stream_seed(3, "noise", "coordinator", "ab" * 16, round_, attempt)


def events(path):
    with Ledger.open(path, durable=False) as ledger:
        return [row.kind for row in ledger.rows()], ledger.events()


def test_the_teacher_is_the_noised_clipped_sum_around_the_last_one_over_all_clients(exchange, scripted, rule):
    """Rows that were never let out are uniform; the others are what was let out last, in whichever round."""
    cohort = scripted(CLIENTS)
    rows = {}
    for result in run_rounds(cohort, rule(), exchange(rows_per_round=30), ROUNDS):
        plan = cohort.plans[-1]["c0000"]
        base = np.array([rows.get(row, np.full(3, 1 / 3)) for row in plan.ask_rows])
        answers = [cohort.votes(name, plan).probabilities() for name in cohort.clients]
        mean = by_hand(base, answers, noise_seed(result.round), 0.5)
        # Noise is rounded to 2^-12 after the sum, so that a last bit of the sum may show as a step of it over M.
        np.testing.assert_allclose(
            result.teacher.probabilities(), np.maximum(mean, 1e-12), atol=2**-12 / CLIENTS + 1e-6
        )
        rows.update(zip(plan.ask_rows.tolist(), mean, strict=True))
    assert len(rows) > 40


def test_order_changes_no_bit(exchange, scripted, rule):
    one, other = (
        [
            result.teacher.log_probs.tobytes()
            for result in run_rounds(scripted(CLIENTS, order=order), rule(name=str(order)), exchange(), 2)
        ]
        for order in (1, -1)
    )
    assert one == other


def test_who_is_absent_or_abstains_adds_nothing_and_the_divisor_stays(exchange, scripted, rule):
    gone = {name: lambda blob: [] for name in ("c0000", "c0001")}
    cohort = scripted(CLIENTS, gone, keeps=lambda name, rows: rows[:3] if name == "c0002" else rows)
    (result,) = run_rounds(cohort, rule(), exchange(), 1)
    plan = cohort.plans[0]["c0000"]
    base = np.full((8, 3), 1 / 3)
    answers = [base.copy()]
    answers[0][:3] = cohort.votes("c0002", plan).probabilities()
    answers += [cohort.votes(name, plan).probabilities() for name in cohort.clients[3:]]
    mean = by_hand(base, answers, noise_seed(1), 0.5)
    np.testing.assert_allclose(result.teacher.probabilities(), np.maximum(mean, 1e-12), atol=2**-12 / CLIENTS + 1e-6)
    np.testing.assert_array_equal(result.teacher.rows, plan.ask_rows)  # also rows on which one client alone voted


def test_the_noise_has_the_moments_that_are_charged(exchange, tmp_path):
    """With M = 10^4 the teacher stays inside the simplex, and projecting takes each row's mean off."""
    told = calibrated(1.0, 10_000, 400, None, 1e-5, 40.0, seeded=True)
    many = ClientSumRule(build_aggregator("mean", {}), told, exchange(), tmp_path / "ledger.sqlite")
    uniform = SoftLabels.from_logits(np.arange(50), np.zeros((50, 3)))
    ballot = Ballot(np.arange(50), 3, 10_000, round=1)
    noise = []
    for round_ in range(1, 5):
        ballot = Ballot(np.arange(50), 3, 10_000, round=round_)
        outcome = many.aggregate({}, ballot, [ClientReport("c0000", round_, uniform)])
        noise.append((outcome.state["told"] - 1 / 3) * 10_000)
    z = np.stack(noise) / 40.0
    degrees = 4 * 50 * 2
    # chi-square: 400 degrees of freedom have a standard deviation of sqrt(800); 4 of them are p = 6e-5
    assert abs((z**2).sum() - degrees) < 4 * math.sqrt(2 * degrees)
    assert abs(np.corrcoef(z[0].ravel(), z[1].ravel())[0, 1]) < 5 / math.sqrt(150)


def test_a_round_is_paid_before_it_is_summed_and_once(exchange, scripted, rule, tmp_path):
    list(run_rounds(scripted(CLIENTS), rule(), exchange(), ROUNDS))
    kinds, spent = events(tmp_path / "ledger.sqlite")
    assert kinds == ["OPEN", "PLAN", *["SPENT", "SEALED"] * ROUNDS]
    assert spent == (Gaussian(0.5, ROUNDS),)
    with Ledger.open(tmp_path / "ledger.sqlite", durable=False) as ledger:
        assert (ledger.terms.unit, ledger.terms.adjacency) == ("client", "zero_out")
        assert ledger.charged() == (pytest.approx(epsilon_of(spent, 1e-3)), 1e-3)


@pytest.mark.parametrize("seeded", [True, False])
def test_a_round_that_is_done_again_gets_the_bytes_that_were_let_out(exchange, scripted, rule, tmp_path, seeded):
    """The coordinator died after the release and before its checkpoint; other clients answer now."""
    (first,) = run_rounds(scripted(CLIENTS), rule(seeded=seeded), exchange(), 1)
    gone = {"c0004": lambda blob: []}
    (again,) = run_rounds(scripted(CLIENTS, gone), rule(seeded=seeded), exchange(), 1)
    assert again.teacher.log_probs.tobytes() == first.teacher.log_probs.tobytes()
    assert events(tmp_path / "ledger.sqlite")[1] == (Gaussian(0.5, 1),)


def test_noise_that_is_not_seeded_is_never_the_same(exchange, scripted, rule):
    told = [
        next(run_rounds(scripted(CLIENTS), rule(seeded=False, name=name), exchange(), 1)).teacher.probabilities()
        for name in ("a", "b")
    ]
    assert np.abs(told[0] - told[1]).max() > 1e-3


def lose(path):
    """The coordinator dies between paying and storing: the release was never sealed."""

    class Dead(Exception):
        pass

    def reports():
        raise Dead
        yield

    return Dead, reports


def test_a_release_that_was_lost_is_paid_again_until_the_budget_is_out(exchange, rule, tmp_path):
    dead, reports = lose(tmp_path)
    own = rule(seeded=False)
    uniform = SoftLabels.from_logits(np.arange(8), np.zeros((8, 3)))

    def aggregate(round_):
        report = ClientReport("c0000", round_, uniform)
        return own.aggregate({}, Ballot(np.arange(8), 3, CLIENTS, round=round_), [report])

    with pytest.raises(dead):
        own.aggregate({}, Ballot(np.arange(8), 3, CLIENTS, round=1), reports())
    aggregate(1)
    aggregate(2)
    with pytest.raises(QuorumError, match="round 3: the budget of coordinator is out"):
        aggregate(3)
    assert events(tmp_path / "ledger.sqlite")[0] == ["OPEN", "PLAN", "SPENT", *["SPENT", "SEALED"] * 2]


def test_a_round_beyond_the_budget_fails_the_run_and_is_not_noised_less(exchange, scripted, rule, tmp_path):
    run = run_rounds(scripted(CLIENTS), rule(), exchange(), ROUNDS + 1)
    assert [next(run).round for _ in range(ROUNDS)] == [1, 2, 3]
    with pytest.raises(QuorumError, match="round 4: the budget of coordinator is out"):
        next(run)
    assert events(tmp_path / "ledger.sqlite")[1] == (Gaussian(0.5, ROUNDS),)


def test_a_ledger_of_another_promise_is_not_drawn_from(exchange, scripted, rule, tmp_path):
    list(run_rounds(scripted(CLIENTS), rule(), exchange(), 1))
    with pytest.raises(TermsDiffer):
        list(run_rounds(scripted(CLIENTS), rule(noise=0.9), exchange(), 1))


def test_sharpening_follows_the_noise(exchange, scripted, rule):
    plain, sharp = (
        next(run_rounds(scripted(CLIENTS), rule(*of, name=of[0]), exchange(), 1))
        for of in (("mean", {}), ("era", {"temperature": 0.5}))
    )
    expected = SoftLabels.from_logits(plain.teacher.rows, plain.teacher.probabilities() / 0.5)
    np.testing.assert_allclose(sharp.teacher.log_probs, expected.log_probs, atol=1e-5)
    np.testing.assert_array_equal(sharp.standing.state["told"], plain.standing.state["told"])  # clipped around the mean


def test_the_noise_is_calibrated_to_all_rounds_together():
    """20 rounds at epsilon 3 and delta 1e-5: s / sqrt(20) is the 1.3906 of one release (reference, 4.1)."""
    told = calibrated(1.0, 1000, 20, 3.0, 1e-5, 0.0, seeded=False)
    assert told.noise_multiplier / math.sqrt(20) == pytest.approx(1.3906, abs=2e-4)
    assert calibrated(1.0, 1000, 20, 3.0, 0.0, 0.0, seeded=False).delta == 1e-5
    assert calibrated(1.0, 10**6, 20, 3.0, 0.0, 0.0, seeded=False).delta == 1e-7
    assert calibrated(1.0, 1000, 20, None, 1e-5, 5.0, seeded=False).epsilon == pytest.approx(3.8486, abs=1e-3)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ((1.0, 10, 5, None, 0.0, 0.0), "give epsilon, noise_multiplier, or both"),
        ((1.0, 10, 5, 1.0, 0.0, 0.1), "noise_multiplier=0.1 costs .* in 5 rounds and epsilon=1.0: give more noise"),
        ((0.0, 10, 5, 1.0, 0.0, 0.0), "clip=0.0 must be a finite number above 0"),
        ((1.0, 10, 5, 1.0, 0.2, 0.0), "delta=0.2"),
    ],
)
def test_what_cannot_be_promised_is_refused(told, said):
    with pytest.raises(ValueError, match=said):
        calibrated(*told, seeded=True)


def test_the_coordinators_view_of_split_noise_is_the_sites():
    split = SplitSumSettings(clip=1.0, noise_multiplier=2.0, clients=10, least=7, colluding=0.1).mechanism(3)
    assert (split.honest, split.classes, split.clients) == (7, 3, 10)  # ceil(.9 * 7)


def federation(exchange, aggregator="mean", keep_votes=False, private=True, split=False, **changed):
    told = {"clip": 1.0, "noise_multiplier": 2.0, "clients": 5, "least": 4, "colluding": 0.0}
    return FederationConfig(
        exchange=exchange(**changed),
        rounds=1,
        clients=5,
        aggregator=aggregator,
        aggregator_settings={},
        student=StudentSettings(model="linear", training=Training(), distil_epochs=1, best_metric="accuracy"),
        proxy="p",
        test="",
        device="cpu",
        timeout_s=70.0,
        keep_votes=keep_votes,
        client_sum=settings() if private else None,
        split_sum=SplitSumSettings(**told) if split else None,
    )


SPLIT = {"private": False, "split": True, "secure_sum": True}


def test_a_coordinators_settings_refuse_what_the_noise_does_not_pay_for(exchange):
    assert federation(exchange).client_sum == settings()
    assert federation(exchange, **SPLIT).split_sum is not None
    for said, changed in (
        ("'median' needs single votes or weights, which no noise pays for", {"aggregator": "median"}),
        ("mode='async' counts a vote in more than one round", {"mode": "async"}),
        ("choice='disagreement' chooses rows by single votes", {"choice": "disagreement"}),
        ("keep_votes=true would teach students anew without noise", {"keep_votes": True}),
        ("client-sum adds its noise at the coordinator, which sees all votes", {"secure_sum": True}),
        ("secure_sum=false shows its votes alone, with too little noise", {"private": False, "split": True}),
        (
            "downlink='float32\\+delta\\+entropy' send what changed of it",
            {**SPLIT, "downlink": "float32+delta+entropy"},
        ),
        ("cache_rounds=3 and .* send what changed of it", {**SPLIT, "cache_rounds": 3}),
    ):
        with pytest.raises(ValueError, match=said):
            federation(exchange, **changed)
