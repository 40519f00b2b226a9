"""Asynchronous rounds: a late vote counts where it arrives, with what weight is left to it."""

import numpy as np
import pytest

from server.checks import Failure
from server.rounds import QuorumError, Reply, run_rounds
from strategies.aggregators.mean import Mean
from strategies.messages import ClientReport
from strategies.soft_labels import SoftLabels
from strategies.wire import plan_round


@pytest.fixture
def late(scripted):
    """A cohort some of whose clients answer every plan so many rounds later."""

    class Late(scripted):
        def __init__(self, delays, count=4, **rest):
            super().__init__(count, **rest)
            self.delays, self.held, self.exchanges = delays, [], 0

        def ask(self, plans):
            self.exchanges += 1
            due = [reply for when, reply in self.held if when <= self.exchanges]
            self.held = [(when, reply) for when, reply in self.held if when > self.exchanges]
            yield from due
            for reply in super().ask(plans):
                delay = self.delays.get(reply.client, 0)
                if delay:
                    round_ = plan_round(plans[reply.client])
                    self.held.append((self.exchanges + delay, Reply(reply.client, reply.payload, round_)))
                    yield Reply(reply.client, Failure(reply.client, "late"))
                else:
                    yield reply

    return Late


@pytest.fixture
def run(exchange):
    def go(cohort, rounds=6, **changed):
        told = {"mode": "async", "choice": "fixed", "row_quorum": 1, **changed}
        return list(run_rounds(cohort, Mean(), exchange(**told), rounds))

    return go


@pytest.mark.parametrize(
    ("staleness", "lateness", "expected"),
    [
        # a says .8/.2 and b, one round late, .4/.6 with weight 2^-a
        (0.5, 1, 0.63431),  # (.8 + .70711 * .4) / 1.70711
        (0.0, 1, 0.6),
        (1.0, 1, 0.66667),  # (.8 + .5 * .4) / 1.5
        # two rounds late: 3^-.5 = .57735
        (0.5, 2, 0.65359),
    ],
)
def test_a_late_vote_weighs_by_its_age(staleness, lateness, expected, late, run):
    class Told(late):
        def votes(self, client, plan):
            share = 0.8 if client == "c0000" else 0.4
            log_probs = np.log([[share, 1 - share]] * len(plan.ask_rows))
            return SoftLabels.from_logits(plan.ask_rows, log_probs)

    results = run(Told({"c0001": lateness}, count=2, classes=2), classes=2, staleness=staleness)
    first, counted = results[0], results[lateness]
    assert (first.replies, first.late) == (1, 0)
    np.testing.assert_allclose(first.teacher.probabilities()[:, 0], 0.8, atol=1e-6)
    assert (counted.replies, counted.late) == (2, 1)
    np.testing.assert_allclose(counted.teacher.probabilities()[:, 0], expected, atol=1e-5)


def test_a_client_with_a_pending_plan_is_not_asked(late, run):
    cohort = late({"c0003": 2})
    results = run(cohort, rounds=7)
    asked = ["c0003" in plans for plans in cohort.plans]
    # asked in 1, its answer comes in 3, asked again in 4, comes in 6, asked in 7
    assert asked == [True, False, False, True, False, False, True]
    assert [result.late for result in results] == [0, 0, 1, 0, 0, 1, 0]
    assert all(result.failures == () for result in results)
    assert [result.replies for result in results] == [3, 3, 4, 3, 3, 4, 3]


def test_late_rows_of_another_draw_count_where_they_find_enough_voters(late, run):
    cohort = late({"c0002": 1, "c0003": 1})
    results = run(cohort, rounds=2, choice="random", row_quorum=2)
    first, second = (set(plans["c0000"].ask_rows.tolist()) for plans in cohort.plans)
    assert set(results[1].ballot.rows.tolist()) == first | second
    assert results[1].ballot.clients == 2 + 2
    # two on-time clients vote on the second draw, two late ones on the first
    assert set(results[1].teacher.rows.tolist()) == first | second


def test_patience_ends_the_waiting(late, run):
    cohort = late({"c0003": 99})
    results = run(cohort, rounds=9, patience=3)
    # asked in round 1; waited for while at most 3 rounds old (2, 3, 4); asked again in 5, and in 9
    assert ["c0003" in plans for plans in cohort.plans] == [True, *[False] * 3, True, *[False] * 3, True]
    assert all(result.late == 0 for result in results)


def test_an_answer_after_the_patience_counts_nowhere(late, run):
    cohort = late({"c0003": 5})
    results = run(cohort, rounds=9, patience=2)
    assert all(result.late == 0 for result in results)
    assert all(result.replies == 3 for result in results)


def test_a_late_answer_to_another_plan_than_the_pending_one_counts_nowhere(late, run):
    class Confused(late):
        def ask(self, plans):
            for reply in super().ask(plans):
                yield Reply(reply.client, reply.payload, reply.round + 1) if reply.round else reply

    results = run(Confused({"c0003": 2}))
    assert all(result.late == 0 for result in results)


def test_a_late_failure_frees_its_client(late, run):
    class Dying(late):
        def ask(self, plans):
            for reply in super().ask(plans):
                yield Reply(reply.client, Failure(reply.client, "no_reply"), reply.round) if reply.round else reply

    cohort = Dying({"c0003": 1})
    results = run(cohort, rounds=5)
    assert [[failure.reason for failure in result.failures] for result in results] == [
        [],
        ["no_reply"],
        [],
        ["no_reply"],
        [],
    ]
    assert ["c0003" in plans for plans in cohort.plans] == [True, False, True, False, True]


def test_a_bad_late_answer_is_its_own_clients_failure(late, run):
    results = run(late({"c0003": 1}, misbehave={"c0003": lambda blob: blob[:-1]}), rounds=2)
    assert [(failure.client, failure.reason) for failure in results[1].failures] == [("c0003", "truncated")]
    assert results[1].replies == 3


def test_in_sync_mode_late_is_a_failure(late, run):
    cohort = late({"c0003": 1})
    results = run(cohort, rounds=3, mode="sync")
    assert [[failure.reason for failure in result.failures] for result in results] == [["late"]] * 3
    assert all("c0003" in plans for plans in cohort.plans)
    assert all(result.late == 0 for result in results)
    with pytest.raises(QuorumError, match="the quorum is 4"):
        run(late({"c0003": 1}), mode="sync", quorum=1.0)


def test_any_order_of_arrival_gives_the_same_bits(late, run):
    delays = {"c0001": 1, "c0004": 2, "c0005": 1}

    class Shuffled(late):
        def ask(self, plans):
            replies = list(super().ask(plans))
            yield from (replies[index] for index in np.random.default_rng(self.exchanges).permutation(len(replies)))

    runs = [run(cohort(delays, count=6), choice="random") for cohort in (late, late, Shuffled)]
    for others in runs[1:]:
        for one, other in zip(runs[0], others, strict=True):
            assert one.teacher.log_probs.tobytes() == other.teacher.log_probs.tobytes()
            assert (one.replies, one.late, one.upload_bytes) == (other.replies, other.late, other.upload_bytes)


def test_a_round_in_which_everybody_is_late_leaves_the_last_teacher(late, run):
    class Slower(late):
        def ask(self, plans):
            self.delays = {} if self.exchanges == 0 else dict.fromkeys(self.clients, 2)
            yield from super().ask(plans)

    cohort = Slower({})
    results = run(cohort, rounds=5)
    assert [(result.replies, result.late) for result in results] == [(4, 0), (0, 0), (0, 0), (4, 4), (0, 0)]
    assert [len(plans) for plans in cohort.plans] == [4, 4, 0, 0, 4]
    teachers = [result.teacher.log_probs.tobytes() for result in results]
    assert teachers[0] == teachers[1] == teachers[2] != teachers[3] == teachers[4]


def test_too_few_voters_leave_the_last_teacher_while_others_are_waited_for(late, run):
    class Slower(late):
        def ask(self, plans):
            self.delays = {} if self.exchanges == 0 else dict.fromkeys(self.clients[1:], 2)
            yield from super().ask(plans)

    results = run(Slower({}), rounds=4, row_quorum=2)
    assert [result.replies for result in results] == [4, 1, 1, 4]
    teachers = [result.teacher.log_probs.tobytes() for result in results]
    assert teachers[0] == teachers[1] == teachers[2] != teachers[3]


def test_nobody_in_the_first_round_fails_the_run(late, run):
    with pytest.raises(QuorumError, match="round 1: 0 of 4"):
        run(late(dict.fromkeys([f"c{i:04}" for i in range(4)], 1)))


def test_differences_are_to_what_a_late_client_really_holds(late, run):
    """A late answer moves its client's link to the plan that it answers, not to the round in which it comes."""
    cohort = late({"c0003": 2})
    results = run(cohort, rounds=8, choice="random", downlink="quantised:2+delta+entropy")
    bases = [plans["c0003"].sync.base if plans["c0003"].sync else 0 for plans in cohort.plans if "c0003" in plans]
    # plans of 1 (no teacher yet), 4 and 7: before 4 nothing was applied, before 7 the plan of 4
    assert bases == [0, 0, 4]
    assert all(result.failures == () for result in results)


def test_a_report_says_its_own_round(late, run):
    class Liar(late):
        def report(self, client, plan):
            honest = super().report(client, plan)
            return ClientReport(client, plan.round + 1, honest.soft_labels) if client == "c0003" else honest

    results = run(Liar({"c0003": 1}), rounds=2)
    assert [failure.reason for failure in results[1].failures] == ["wrong_round"]
