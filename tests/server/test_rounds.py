"""The round: quorum, failures, order of replies, memory; with a cohort that is a list of bytes."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from server.checks import Failure
from server.rounds import QuorumError, Reply, RuleError, run_rounds
from strategies.aggregator import Outcome
from strategies.aggregators import AGGREGATORS
from strategies.aggregators.enhanced_era import EnhancedEra
from strategies.aggregators.mean import Mean
from strategies.aggregators.pipeline import Pipeline
from strategies.messages import Refusal
from strategies.soft_labels import SoftLabels
from strategies.wire import encode_refusal

ROOT = Path(__file__).resolve().parents[2]


def bad(blob):
    return blob[:-1]


def same(one, other):
    return one.rows.tolist() == other.rows.tolist() and one.log_probs.tobytes() == other.log_probs.tobytes()


@pytest.mark.parametrize("rule", sorted(AGGREGATORS))
def test_the_order_of_replies_changes_no_bit_of_any_teacher(rule, run, scripted):
    subject = "classes" if rule == "per-class" else "proxy"
    forward = run(scripted(), rule=rule, subject=subject)
    backward = run(scripted(order=-1), rule=rule, subject=subject)
    for one, other in zip(forward, backward, strict=True):
        assert same(one.teacher, other.teacher)
        told, again = one.standing.arrays(), other.standing.arrays()
        assert told.keys() == again.keys()
        assert all(told[key].tobytes() == again[key].tobytes() for key in told)


def test_each_plan_carries_the_teacher_of_the_round_before(run, scripted):
    cohort = scripted()
    results = run(cohort)
    assert cohort.plans[0]["c0000"].teachers == ()
    for plans, result in zip(cohort.plans[1:], results, strict=False):
        assert len({id(plan) for plan in plans.values()}) == 1  # one object for all
        (teacher,) = plans["c0000"].teachers
        np.testing.assert_allclose(teacher.log_probs, result.teacher.log_probs, atol=1e-6)
        assert teacher.rows.tolist() == result.teacher.rows.tolist()


def test_a_bad_reply_is_that_clients_failure_and_the_teacher_is_that_of_the_others(run, scripted):
    spoiled = run(scripted(misbehave={"c0001": bad}))
    without = scripted()
    without.clients.remove("c0001")
    clean = run(without)
    for one, other in zip(spoiled, clean, strict=True):
        assert same(one.teacher, other.teacher)
        assert [(failure.client, failure.reason) for failure in one.failures] == [("c0001", "truncated")]
        assert (one.replies, other.replies, other.failures) == (5, 5, ())


def test_under_quorum_the_round_fails_and_says_which_clients_and_why(run, scripted):
    wrong = {
        "c0000": bad,
        "c0001": lambda blob: Failure("c0001", "late"),
        "c0002": lambda blob: [],
        "c0003": lambda blob: encode_refusal(Refusal("c0003", 1, "need_key"), "ab" * 16),
    }
    with pytest.raises(QuorumError) as caught:
        run(scripted(misbehave=wrong))
    for told in ("c0000 (truncated)", "c0001 (late)", "c0002 (no_reply)", "c0003 (refused_need_key)"):
        assert told in str(caught.value)
    assert "2 of 6 answers were usable and the quorum is 3" in str(caught.value)
    assert [failure.client for failure in caught.value.failures] == ["c0000", "c0001", "c0002", "c0003"]
    assert caught.value.lost == {"c0003"}


@pytest.mark.parametrize(("quorum", "bad_clients", "holds"), [(0.5, 3, True), (0.5, 4, False), (1.0, 1, False)])
def test_the_quorum_is_a_share_of_the_asked_clients_rounded_up(quorum, bad_clients, holds, run, scripted):
    cohort = scripted(misbehave={f"c{i:04}": bad for i in range(bad_clients)})
    if holds:
        assert len(run(cohort, quorum=quorum)) == 3
    else:
        with pytest.raises(QuorumError):
            run(cohort, quorum=quorum)


@pytest.mark.parametrize(
    ("out", "gone", "refused"),
    [
        (4, 0, True),  # 2 of 6 could answer and the quorum is 3: nothing that comes back changes that
        (4, 2, True),
        (3, 1, False),  # the one that is gone may come back
        (0, 4, False),
    ],
)
def test_a_round_that_budgets_alone_forbid_says_that_to_resume_does_not_help(out, gone, refused, run, scripted):
    answers = ["refused_budget_out"] * out + ["no_reply"] * gone
    misbehave = {f"c{i:04}": lambda _, i=i, why=why: Failure(f"c{i:04}", why) for i, why in enumerate(answers)}
    with pytest.raises(QuorumError) as failed:
        list(run(scripted(6, misbehave)))
    assert failed.value.refused == refused
    assert ("another budget or policy is its owner's decision" in str(failed.value)) == refused


def test_nobody_at_all_is_a_failed_round_even_with_the_smallest_quorum(run, scripted):
    cohort = scripted(misbehave={f"c{i:04}": bad for i in range(6)})
    with pytest.raises(QuorumError, match="0 of 6"):
        run(cohort, quorum=0.01)


def test_a_second_answer_and_an_uninvited_one_change_nothing(run, scripted):
    clean = run(scripted())

    class Uninvited(scripted):
        def ask(self, plans):
            yield Reply("c9999", b"hello")
            yield Reply("c0003", b"of a round that nobody remembers", round=77)
            yield from super().ask(plans)

    noisy = run(Uninvited(misbehave={"c0002": lambda blob: [blob, blob, b"junk"]}))
    for one, other in zip(clean, noisy, strict=True):
        assert same(one.teacher, other.teacher)
        assert (one.upload_bytes, one.failures, one.replies) == (other.upload_bytes, other.failures, other.replies)


def test_bytes_are_those_of_the_real_messages(run, scripted):
    class Counting(scripted):
        up = down = 0

        def ask(self, plans):
            self.down += sum(map(len, plans.values()))
            for reply in super().ask(plans):
                self.up += len(reply.payload)
                yield reply

    cohort = Counting(misbehave={"c0003": bad})
    results = run(cohort, uplink="quantised:1+delta+entropy", downlink="float16+delta+entropy")
    assert sum(result.upload_bytes for result in results) == cohort.up
    assert sum(result.download_bytes for result in results) == cohort.down


def test_participation_asks_a_share(run, scripted):
    cohort = scripted(10)
    results = run(cohort, rounds=6, participation=0.3)
    asked = [tuple(plans) for plans in cohort.plans]
    assert {len(names) for names in asked} == {3}
    assert len(set(asked)) > 1
    assert {result.replies for result in results} == {3}


def test_a_client_that_joins_late_is_asked_from_then_on(run, scripted):
    class Growing(scripted):
        def ask(self, plans):
            yield from super().ask(plans)
            self.clients = [f"c{i:04}" for i in range(6 + len(self.plans))]

    cohort = Growing()
    results = run(cohort)
    assert [len(plans) for plans in cohort.plans] == [6, 7, 8]
    assert [result.replies for result in results] == [6, 7, 8]
    assert len(cohort.plans[1]["c0006"].teachers) == 1  # it begins with the others' teacher


def test_a_resumed_run_goes_on_where_it_stopped(run, scripted, exchange):
    whole = run(scripted(), rounds=5)
    rest = list(run_rounds(scripted(), Mean(), exchange(), 5, done=2, standing=whole[1].standing))
    assert [result.round for result in rest] == [3, 4, 5]
    for one, other in zip(whole[2:], rest, strict=True):
        assert same(one.teacher, other.teacher)


# ---- abstentions


def test_a_row_under_the_row_quorum_leaves_the_teacher(run, scripted):
    # Ten clients, a share of .3: three voters. The first two clients vote on all rows, the third on rows 10 to 29, the
    # others on nothing.
    def keeps(client, rows):
        if client in ("c0000", "c0001"):
            return rows
        return rows[(rows >= 10) & (rows < 30)] if client == "c0002" else rows[:0]

    cohort = scripted(10, keeps=keeps)
    (result,) = run(cohort, rounds=1, rows_per_round=50)
    assert result.ballot.needed == 3
    assert result.teacher.rows.tolist() == list(range(10, 30))
    assert result.replies == 10  # an abstention is an answer
    alone = scripted(3)
    (three,) = run(alone, rounds=1, rows_per_round=50)
    at = slice(10, 30)
    np.testing.assert_allclose(result.teacher.log_probs, three.teacher.log_probs[at], atol=1e-6)


@pytest.mark.parametrize(("row_quorum", "rows"), [(1, 50), (2, 30), (0.3, 30), (0.9, 10), (3, 10)])
def test_the_row_quorum_is_a_number_or_a_share(row_quorum, rows, run, scripted):
    # Three clients vote on rows 0..9, two of them up to 29, one on all.
    reach = {"c0000": 50, "c0001": 30, "c0002": 10}
    cohort = scripted(3, keeps=lambda client, asked: asked[asked < reach[client]])
    (result,) = run(cohort, rounds=1, rows_per_round=50, row_quorum=row_quorum)
    assert len(result.teacher.rows) == rows
    # a number means that number, however few are there
    with pytest.raises(QuorumError, match="a row needs 4 voters"):
        run(cohort, rounds=1, rows_per_round=50, row_quorum=4)


class TheirRule:
    """As a user writes it."""

    def __init__(self, fails):
        self.fails = fails

    def aggregate(self, state, ballot, reports):
        try:
            list(reports)
        except OSError:
            assert self.fails == "never"  # and goes on with what it has
        if self.fails == "raises":
            raise KeyError("boom")
        if self.fails == "strays":
            return Outcome(SoftLabels.from_logits(np.array([10**6]), np.zeros((1, ballot.classes))))
        return None if self.fails == "returns" else Mean().aggregate(state, ballot, reports)


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        (TheirRule("raises"), "KeyError: 'boom'"),
        (TheirRule("returns"), "it returned NoneType, not an Outcome with SoftLabels"),
        (TheirRule("strays"), "its teacher has other classes, or rows that are not on the ballot"),
        (Pipeline(TheirRule("raises"), then=EnhancedEra()), "KeyError: 'boom'"),
    ],
)
def test_a_rule_of_the_users_own_that_fails_is_named(rule, told, run, scripted):
    own = re.escape(f"{TheirRule.__module__}:TheirRule")
    says = rf"round 1: the rule {own} failed \({told}\): see what `consilium check-rule` says"
    with pytest.raises(RuleError, match=says):
        run(scripted(3), rounds=1, rule=rule)


def test_a_network_that_fails_is_not_the_rules_fault(run, scripted):
    class Broken(scripted):
        def ask(self, plans):
            yield from super().ask(dict(list(plans.items())[:1]))
            raise OSError("no route")

    with pytest.raises(OSError, match="no route"):
        run(Broken(3), rounds=1, rule=TheirRule("never"))


def test_no_row_with_enough_voters_is_a_failed_round_that_says_what_to_do(run, scripted):
    cohort = scripted(4, keeps=lambda client, rows: rows[rows % 4 == int(client[1:])])
    with pytest.raises(QuorumError, match=r"none of 50 rows is left.*needs 2 voters \(strategy.row_quorum\)") as caught:
        run(cohort, rounds=1, rows_per_round=50)
    assert caught.value.round == 1


# ---- rows


def test_a_cache_asks_for_what_is_not_fresh_and_teaches_all_drawn_rows(run, scripted):
    cohort = scripted(4)
    results = run(cohort, rounds=12, cache_rounds=4, proxy_rows=20)
    made = {}
    for result, plans in zip(results, cohort.plans, strict=True):
        rows = result.teacher.rows.tolist()
        assert len(rows) == 8
        asked = plans["c0000"].ask_rows.tolist()
        assert asked == [row for row in rows if result.round - made.get(row, -99) >= 4]
        made |= dict.fromkeys(asked, result.round)
    assert any(not len(plans["c0000"].ask_rows) or len(plans["c0000"].ask_rows) < 8 for plans in cohort.plans[1:])


def test_a_round_in_which_nothing_is_stale_is_a_round(run, scripted):
    cohort = scripted(4)
    results = run(cohort, rounds=4, cache_rounds=9, choice="fixed")
    assert [len(plans["c0000"].ask_rows) for plans in cohort.plans] == [8, 0, 0, 0]
    assert all(same(result.teacher, results[0].teacher) for result in results)
    assert [result.replies for result in results] == [4] * 4


@pytest.mark.parametrize("duration", [0, 1])
@pytest.mark.parametrize("choice", ["random", "fixed"])
def test_a_cache_that_uses_no_label_twice_is_the_uncached_run(duration, choice, run, scripted):
    # With abstentions: a row without a quorum leaves at once, too.
    def keeps(client, rows):
        return rows[(rows + int(client[1:])) % 3 > 0]

    def results(**changed):
        return run(scripted(4, keeps=keeps), rounds=6, row_quorum=3, choice=choice, **changed)

    plain, cached = results(), results(cache_rounds=duration)
    for one, other in zip(plain, cached, strict=True):
        assert same(one.teacher, other.teacher)
    assert len({len(result.teacher.rows) for result in plain}) > 1 or choice == "fixed"


@pytest.mark.parametrize("choice", ["fixed", "epoch", "disagreement"])
def test_each_choice_of_rows_is_the_one_that_was_asked(choice, run, scripted):
    cohort = scripted(3)
    results = run(cohort, rounds=6, choice=choice, proxy_rows=48)
    asked = [plans["c0000"].ask_rows.tolist() for plans in cohort.plans]
    if choice == "fixed":
        assert len(set(map(tuple, asked))) == 1
    elif choice == "epoch":
        assert sorted(row for rows in asked for row in rows) == list(range(48))
    else:
        for result, rows in zip(results, asked[1:], strict=False):
            known = result.standing.disagreement
            worst = np.argsort(np.where(np.isnan(known), -1, known))[::-1][:4]
            assert set(worst.tolist()) <= set(rows)


def test_disagreement_is_kept_for_rows_that_were_voted_on(run, scripted):
    results = run(scripted(3), rounds=2, choice="disagreement")
    for result in results:
        known = ~np.isnan(result.standing.disagreement)
        assert known[result.ballot.rows].all()
    assert known.sum() > 8
    assert np.isnan(results[0].standing.disagreement).sum() == 42


def test_a_row_that_nobody_votes_on_keeps_what_was_known_of_it(run, scripted):
    shy = set()

    class Shy(scripted):
        def ask(self, plans):
            if len(self.plans) == 1:
                shy.update([11, 22])
            yield from super().ask(plans)

    cohort = Shy(3, keeps=lambda client, rows: rows[[row not in shy for row in rows]])
    results = run(cohort, rounds=2, choice="disagreement", proxy_rows=30, rows_per_round=30)
    before, after = (result.standing.disagreement for result in results)
    assert before[[11, 22]].tolist() == after[[11, 22]].tolist()
    assert (before != after).sum() == 28


# ---- size


def test_a_thousand_replies_of_a_thousand_rows_are_streamed():
    # Held at once they would be 40 MB of float32 votes and 40 MB of messages, growing with every copy; the
    # process is measured as a whole, and its growth must stay far below one copy of them.
    script = """
import sys
sys.path[:0] = ["tests/server", "."]
from conftest import ScriptedCohort, _exchange
from server.rounds import run_rounds
from simulations.engines.worker import peak_bytes
from strategies.aggregators.era import Era
def peak(clients):
    cohort = ScriptedCohort(clients, classes=10, proxy_rows=1000)
    settings = _exchange(classes=10, proxy_rows=1000, rows_per_round=1000)
    list(run_rounds(cohort, Era(), settings, 1))
    return peak_bytes()
few, many = peak(10), peak(1000)
print(few, many)
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    few, many = map(int, told.split())
    assert many < 500e6
    assert many - few < 20e6
