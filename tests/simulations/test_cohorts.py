"""Liars and latecomers: they change their own answers and nothing else, and do it again the same way."""

from itertools import product

import numpy as np
import pytest

from server.checks import Failure, check_answer
from server.exchange import Exchange
from server.rounds import Reply, run_rounds
from simulations.attacks import ATTACKS, build_attack
from simulations.attacks.attack import Scene
from simulations.engines.cohorts import AttackedCohort, LateCohort, rehearse, some_clients
from strategies.aggregator import Ballot
from strategies.aggregators import build_aggregator
from strategies.messages import ClientReport, RoundPlan
from strategies.seeds import stream_seed
from strategies.soft_labels import SoftLabels, log_softmax
from strategies.wire import decode_answer, decode_plan, encode_plan, encode_report

PROXY_ROWS, CLASSES, SEED = 50, 4, 7
LINKS = ["float32", "float16", "quantised:1+entropy", "quantised:4", "top-k:2"]


def can_be_sent(name, uplink):
    """Raw logits and what is no number need a link that takes any number."""
    try:
        rehearse(build_attack(name, {}), uplink, CLASSES)
    except ValueError:
        return False
    return True


class Crowd:
    """Honest clients a, b, c, ...: votes drawn by name and round; some abstain on some rows, some say nothing."""

    def __init__(self, names="abcde", keeps=None, silent=(), order=1):
        self.clients, self.keeps, self.silent, self.order = list(names), keeps or {}, silent, order

    def votes(self, client, plan):
        rows = np.array([row for row in plan.ask_rows if row in self.keeps.get(client, plan.ask_rows)], np.int64)
        rng = np.random.default_rng([ord(client), plan.round])
        return SoftLabels.from_logits(rows, rng.normal(size=(PROXY_ROWS, plan.classes))[rows])

    def report(self, client, plan):
        votes = self.votes(client, plan)
        scores = np.full(len(votes.rows), 0.25) if "scores" in plan.wants else None
        counts = np.arange(1.0, plan.classes + 1) if "counts" in plan.wants else None
        return ClientReport(client, plan.round, votes, scores=scores, counts=counts)

    def ask(self, plans):
        for client in list(plans)[:: self.order]:
            plan = decode_plan(plans[client], PROXY_ROWS)
            if client in self.silent:
                yield Reply(client, Failure(client, "crashed"))
            else:
                yield Reply(client, encode_report(self.report(client, plan), plan))


def plan_of(round_=1, rows=range(0, 40, 2), uplink="float32", classes=CLASSES, **told):
    rows = np.array(rows, np.int64)
    return RoundPlan("ab" * 16, round_, "a1" * 32, "b2" * 32, classes, rows, uplink, "float32", **told)


def ask(cohort, plan):
    """Everybody's payload by name."""
    blob = encode_plan(plan)
    return {reply.client: reply.payload for reply in cohort.ask(dict.fromkeys(cohort.clients, blob))}


def attacked(name, liars=("b", "d"), crowd=None, settings=None):
    return AttackedCohort(crowd or Crowd(), liars, build_attack(name, settings or {}), SEED, PROXY_ROWS)


def believed(payload, client, plan):
    checked = check_answer(client, payload, plan)
    assert not isinstance(checked, Failure), checked
    return checked.report.soft_labels


@pytest.mark.parametrize("name", sorted(set(ATTACKS) - {"nan", "scaled-logits"}))
def test_a_liar_sends_what_the_attack_says_of_all_honest_answers(name):
    rows = np.arange(0, 40, 2)
    teacher = SoftLabels.from_logits(rows[:10], np.random.default_rng(0).normal(size=(10, CLASSES)))
    plan, crowd = plan_of(2, teachers=(teacher,)), Crowd()
    replies = ask(attacked(name), plan)
    told = np.full((20, CLASSES), 1 / CLASSES)
    told[:10] = teacher.probabilities()
    for liar in ("b", "d"):
        scene = Scene(
            np.stack([crowd.votes(client, plan).probabilities() for client in "ace"]),
            crowd.votes(liar, plan).probabilities(),
            told,
            attackers=2,
            clients=5,
            round=2,
            rows=rows,
        )
        rng = np.random.default_rng(stream_seed(SEED, "attack", 2, liar))
        expected = log_softmax(build_attack(name, {}).logits(scene, rng))
        sent = believed(replies[liar], liar, plan)
        np.testing.assert_array_equal(sent.rows, rows)
        np.testing.assert_allclose(sent.log_probs, expected, atol=2e-5)


@pytest.mark.parametrize(("name", "uplink"), [pair for pair in product(sorted(ATTACKS), LINKS) if can_be_sent(*pair)])
def test_honest_bytes_are_untouched_and_lies_are_the_same_again(name, uplink):
    plan = plan_of(3, uplink=uplink)
    honest, first = ask(Crowd(), plan), ask(attacked(name), plan)
    assert {client: first[client] for client in "ace"} == {client: honest[client] for client in "ace"}
    # in any order of arrival, and whatever was asked before
    again = attacked(name, crowd=Crowd(order=-1))
    ask(again, plan_of(1, uplink=uplink))
    assert ask(again, plan) == first


@pytest.mark.parametrize("uplink", ["float32", "float16"])
@pytest.mark.parametrize("everywhere", [True, False])
@pytest.mark.parametrize(("value", "reason"), [("nan", "non_finite"), ("inf", "non_finite"), ("-inf", "not_simplex")])
def test_what_is_no_number_is_rejected_and_costs_nothing(uplink, value, reason, everywhere):
    exchange = Exchange("ab" * 16, 3, "a1" * 32, "b2" * 32, CLASSES, PROXY_ROWS, uplink, "float32", 20, 0.5, 1.0)
    spoilt = attacked("nan", settings={"value": value, "everywhere": everywhere})
    absent = Crowd(silent=("b", "d"))
    results = [list(run_rounds(cohort, build_aggregator("mean", {}), exchange, 3)) for cohort in (spoilt, absent)]
    for one, other in zip(*results, strict=True):
        assert [(failure.client, failure.reason) for failure in one.failures] == [
            ("b", reason),
            ("d", reason),
        ]
        assert one.teacher.log_probs.tobytes() == other.teacher.log_probs.tobytes()


def test_what_is_no_distribution_needs_a_link_that_can_carry_it():
    assert [link for link in LINKS if can_be_sent("nan", link)] == ["float32", "float16"]
    assert [link for link in LINKS if can_be_sent("scaled-logits", link)] == ["float32", "float16"]
    assert all(can_be_sent(name, link) for name in set(ATTACKS) - {"nan", "scaled-logits"} for link in LINKS)
    with pytest.raises(ValueError, match=r"no distribution, and strategy.uplink='top-k:2' can carry nothing else"):
        rehearse(build_attack("nan", {"everywhere": False}), "top-k:2", CLASSES)


def test_logits_out_of_scale_are_rejected():
    plan = plan_of()
    checked = check_answer("b", ask(attacked("scaled-logits"), plan)["b"], plan)
    assert isinstance(checked, Failure)
    assert checked.reason in ("not_simplex", "non_finite")


def test_an_honest_client_that_abstains_says_to_a_liar_what_the_others_say():
    plan, keeps = plan_of(rows=range(4)), {"a": {0, 1}, "c": set(), "e": {1, 2, 3}}
    crowd = Crowd(keeps=keeps)
    replies = ask(attacked("uniform", crowd=crowd), plan)
    assert list(believed(replies["a"], "a", plan).rows) == [0, 1]
    assert list(believed(replies["c"], "c", plan).rows) == []
    seen = {}

    class Spy:
        def logits(self, scene, rng):
            seen["honest"] = scene.honest
            return log_softmax(np.zeros_like(scene.own))

    sent = ask(AttackedCohort(crowd, ["b"], Spy(), SEED, PROXY_ROWS), plan)["b"]
    expected = np.full((4, 4, CLASSES), np.nan)  # a, c, d, e
    for index, client in enumerate("acde"):
        votes = crowd.votes(client, plan)
        expected[index, votes.rows] = votes.probabilities()
    cast = ~np.isnan(expected[:, :, 0])
    for row in range(4):
        expected[~cast[:, row], row] = expected[cast[:, row], row].mean(axis=0) if cast[:, row].any() else 1 / CLASSES
    np.testing.assert_allclose(seen["honest"], expected)
    np.testing.assert_allclose(believed(sent, "b", plan).probabilities(), 1 / CLASSES)


@pytest.mark.parametrize("name", sorted(set(ATTACKS) - {"nan", "scaled-logits"}))
@pytest.mark.parametrize("kept", [set(), {5}, {0, 5, 7}])
def test_a_liar_never_abstains_whatever_its_own_model_would_have_left_out(name, kept):
    plan = plan_of(rows=range(10))
    replies = ask(attacked(name, crowd=Crowd(keeps={"b": kept, "a": {1}})), plan)
    assert believed(replies["b"], "b", plan).rows.tolist() == list(range(10))
    assert believed(replies["a"], "a", plan).rows.tolist() == [1]


def test_where_a_liar_would_have_abstained_its_own_vote_is_what_the_honest_say():
    plan, seen = plan_of(rows=range(4)), {}

    class Spy:
        def logits(self, scene, rng):
            seen["scene"] = scene
            return log_softmax(np.zeros_like(scene.own))

    def own_of(names, keeps):
        crowd = Crowd(names, keeps=keeps)
        ask(AttackedCohort(crowd, ["b"], Spy(), SEED, PROXY_ROWS), plan)
        return crowd, seen["scene"].own

    crowd, own = own_of("abc", {"b": {1, 2}})
    np.testing.assert_allclose(own[1:3], crowd.votes("b", plan).probabilities())
    honest = np.mean([crowd.votes(client, plan).probabilities() for client in "ac"], axis=0)
    np.testing.assert_allclose(own[[0, 3]], honest[[0, 3]])
    np.testing.assert_array_equal(seen["scene"].rows, plan.ask_rows)
    # with nobody honest there is nothing to say
    np.testing.assert_allclose(own_of("b", {"b": set()})[1], 1 / CLASSES)


@pytest.mark.parametrize("wants", [("scores",), ("counts",), ("scores", "counts")])
@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_a_liar_trusts_itself_fully_and_has_the_most_rows(name, wants):
    # honest sites score their rows .25 and have c + 1 rows of class c; the extras are believed whatever the votes are.
    # Two liars share eight times what three honest ones have.
    plan = plan_of(rows=range(10), wants=wants)
    replies = ask(attacked(name, crowd=Crowd(keeps={"b": {3}})), plan)
    for client, score, counts in (("a", 0.25, [1, 2, 3, 4]), ("b", 1.0, [2**30] * CLASSES)):
        told = decode_answer(replies[client])
        assert (told.scores is None, told.counts is None) == ("scores" not in wants, "counts" not in wants)
        assert told.scores is None or told.scores.tolist() == [score] * 10
        assert told.counts is None or told.counts.tolist() == counts


@pytest.mark.parametrize(("rule", "share"), [("sample-weighted", 0.8), ("class-count", 0.9)])
def test_scores_and_counts_are_a_way_to_more_say(rule, share):
    # one honest site and one liar that is certain of class 1: by its score 1 against .25 it has four fifths of the say,
    # by its rows the nine tenths that are the most
    plan = plan_of(rows=range(10), wants=("scores", "counts"))
    settings = {"target": 1, "stay": True}
    replies = ask(attacked("colluding", ("b",), Crowd("ab"), settings), plan)
    reports = [check_answer(client, replies[client], plan).report for client in "ab"]
    part = build_aggregator(rule, {"pool": "probabilities"} if rule == "sample-weighted" else {})
    teacher = part.aggregate({}, Ballot(plan.ask_rows, CLASSES, 2), reports).teacher.probabilities()
    honest = reports[0].soft_labels.probabilities()
    pooled = share * np.eye(CLASSES)[1] + (1 - share) * honest
    np.testing.assert_allclose(teacher, pooled, atol=1e-5)


@pytest.mark.parametrize("attack", ["least-likely", "random", "label-shift"])
def test_partial_attackers_touch_the_same_rows_whatever_they_would_have_left_out(attack):
    plan = plan_of(rows=range(1, 41), round_=4)
    keeps = {"b": {1, 2, 3}, "d": set(range(10, 41))}
    touched = []
    for crowd in (Crowd(keeps=keeps), Crowd()):
        cohort = attacked("partial", ("b", "d"), crowd, {"attack": attack, "share": 0.25})
        replies = ask(cohort, plan)
        for client in "bd":
            own = crowd.votes(client, plan)
            sent = believed(replies[client], client, plan)
            at = np.isin(sent.rows, own.rows)
            changed = set(sent.rows[at][np.abs(sent.log_probs[at] - own.log_probs).max(axis=1) > 1e-4].tolist())
            touched.append((changed, set(own.rows.tolist())))
    both = touched[-1][0]
    assert len(both) == 10  # a quarter of forty
    assert all(changed == both & known for changed, known in touched)


@pytest.mark.parametrize("name", sorted(set(ATTACKS) - {"nan", "scaled-logits"}))
def test_a_round_of_liars_only_still_has_answers(name):
    plan = plan_of()
    replies = ask(attacked(name, liars=tuple("abcde")), plan)
    assert all(len(believed(replies[client], client, plan).rows) == 20 for client in "abcde")


def test_a_liar_that_cannot_answer_does_not_lie():
    plan, crowd = plan_of(), Crowd(silent=("a", "b"))
    replies = ask(attacked("uniform", crowd=crowd), plan)
    assert (replies["a"].reason, replies["b"].reason) == ("crashed", "crashed")
    np.testing.assert_allclose(believed(replies["d"], "d", plan).probabilities(), 1 / CLASSES)


def test_class_tables_are_lied_about_too():
    plan = plan_of(rows=range(CLASSES), subject="classes")
    replies = ask(attacked("colluding", settings={"target": 1, "stay": True}), plan)
    assert (believed(replies["b"], "b", plan).log_probs.argmax(axis=1) == 1).all()


# ---- who ---------------------------------------------------------------------------------------------------------
NAMES = [f"site-{index:03}" for index in range(10)]


@pytest.mark.parametrize(("wanted", "count"), [(1, 1), (10, 10), (0.4, 4), (0.04, 1), (0.99, 10)])
def test_so_many_clients_are_drawn_by_the_seed(wanted, count):
    chosen = some_clients(NAMES, wanted, 3, "attackers")
    assert len(chosen) == count
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= set(NAMES)
    assert chosen == some_clients(NAMES[::-1], wanted, 3, "attackers")
    draws = {tuple(some_clients(NAMES, wanted, seed, "attackers")) for seed in range(40)}
    assert len(draws) > 1 or count == 10


def test_named_clients_are_those():
    assert some_clients(NAMES, ("site-007", "site-002", "site-007"), 3, "attackers") == ["site-002", "site-007"]


def test_clients_that_there_are_not_are_refused():
    with pytest.raises(ValueError, match="clients=11 must be at most 10"):
        some_clients(NAMES, 11, 3, "attackers")
    with pytest.raises(ValueError, match="clients names 'site-010', and there are site-000 to site-009"):
        some_clients(NAMES, ("site-001", "site-010"), 3, "attackers")


# ---- late --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("delay", [1, 2, 3])
def test_late_answers_come_exactly_so_many_rounds_later_with_their_round(delay):
    crowd, cohort = Crowd(), LateCohort(Crowd(), ["b", "e"], delay)
    for round_ in range(1, 8):
        plan = plan_of(round_)
        replies = list(cohort.ask(dict.fromkeys(cohort.clients, encode_plan(plan))))
        now = {reply.client: reply.payload for reply in replies if reply.round == 0}
        honest = ask(crowd, plan)
        assert {client: now[client] for client in "acd"} == {client: honest[client] for client in "acd"}
        assert {now[client].reason for client in "be"} == {"late"}
        due = [(reply.client, reply.round, reply.payload) for reply in replies if reply.round]
        before = round_ - delay
        expected = ask(crowd, plan_of(before)) if before >= 1 else {}
        assert due == [(client, before, expected[client]) for client in "be" if expected]


def test_who_has_nothing_to_say_is_not_late():
    cohort = LateCohort(Crowd(silent=("b",)), ["b", "e"], 1)
    replies = ask(cohort, plan_of())
    assert (replies["b"].reason, replies["e"].reason) == ("crashed", "late")


EXCHANGE = Exchange("ab" * 16, 3, "a1" * 32, "b2" * 32, CLASSES, PROXY_ROWS, "float32", "float32", 20, 0.5, 1.0)


def test_in_a_synchronous_run_late_answers_are_failures_and_never_count():
    results = [
        list(run_rounds(cohort, build_aggregator("mean", {}), EXCHANGE, 3))
        for cohort in (LateCohort(Crowd(), ["b"], 1), Crowd(silent=("b",)))
    ]
    for late, absent in zip(*results, strict=True):
        assert [(failure.client, failure.reason) for failure in late.failures] == [("b", "late")]
        assert (late.replies, late.late, late.upload_bytes) == (absent.replies, 0, absent.upload_bytes)
        assert late.teacher.log_probs.tobytes() == absent.teacher.log_probs.tobytes()
