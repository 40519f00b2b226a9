"""Asynchronous rounds: a late vote counts where it arrives, with what weight is left to it, and never alone."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.checks import Failure
from server.rounds import QuorumError, Reply, run_rounds
from strategies.aggregators import build_aggregator
from strategies.aggregators.mean import Mean
from strategies.messages import ClientReport
from strategies.presets import PRESETS
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
    def go(cohort, rounds=6, rule=None, keep=lambda report, ballot: None, **changed):
        told = {"mode": "async", "choice": "fixed", "row_quorum": 1, **changed}
        return list(run_rounds(cohort, rule or Mean(), exchange(**told), rounds, keep=keep))

    return go


@pytest.fixture
def told(late):
    """A late cohort of two classes whose clients always say the same: client -> probability of the first class."""

    class Told(late):
        def __init__(self, shares, delays, **rest):
            super().__init__(delays, count=len(shares), classes=2, **rest)
            self.shares = dict(zip(self.clients, shares, strict=True))

        def votes(self, client, plan):
            rows = np.asarray(self.keeps(client, plan.ask_rows), np.int64)
            share = self.shares[client]
            return SoftLabels.from_logits(rows, np.log([[share, 1 - share]] * len(rows)).reshape(-1, 2))

    return Told


def reasons(results):
    return [[(failure.client, failure.reason) for failure in result.failures] for result in results]


def said(teacher, rows):
    """[n] probability of the first class on these rows of the teacher."""
    at = np.searchsorted(teacher.rows, np.asarray(rows, np.int64))
    assert teacher.rows[at].tolist() == list(rows)
    return teacher.probabilities()[at, 0]


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
def test_a_late_vote_weighs_by_its_age(staleness, lateness, expected, told, run):
    results = run(told([0.8, 0.4], {"c0001": lateness}), classes=2, staleness=staleness)
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
    assert [result.replies for result in results] == [3, 3, 4, 3, 3, 4, 3]
    assert reasons(results) == [[]] * 6 + [[("c0003", "late")]]  # nobody waits any longer for what was asked in 7


# ---- late votes and those that they are late for


def rows_asked(cohort, round_):
    """Rows of the plans that were sent in a round."""
    return next(iter(cohort.plans[round_ - 1].values())).ask_rows.tolist()


def test_a_late_vote_is_counted_with_those_that_were_in_time(told, run):
    # three in time with .9, .8, .7: mean .8; one late with .1: then (.9 + .8 + .7 + .1) / 4 = .625, whatever the weight
    # that is left to all four; the new rows of round 2 have the three again
    cohort = told([0.9, 0.8, 0.7, 0.1], {"c0003": 1})
    first, second = run(cohort, rounds=2, choice="epoch", row_quorum=3, classes=2)
    assert rows_asked(cohort, 1) != rows_asked(cohort, 2)
    np.testing.assert_allclose(said(first.teacher, rows_asked(cohort, 1)), 0.8, atol=1e-6)
    np.testing.assert_allclose(said(second.teacher, rows_asked(cohort, 1)), 0.625, atol=1e-6)
    np.testing.assert_allclose(said(second.teacher, rows_asked(cohort, 2)), 0.8, atol=1e-6)
    assert second.ballot.clients == 3 + 1
    assert (second.replies, second.late) == (4, 1)


def test_late_votes_are_counted_with_those_that_were_less_late(told, run):
    # .8 in time, .4 a round late, .3 two rounds late: .8, (.8 + .4) / 2 = .6, (.8 + .4 + .3) / 3 = .5
    cohort = told([0.8, 0.4, 0.3], {"c0001": 1, "c0002": 2})
    results = run(cohort, rounds=3, choice="epoch", classes=2)
    shares = [said(result.teacher, rows_asked(cohort, 1))[0] for result in results]
    np.testing.assert_allclose(shares, [0.8, 0.6, 0.5], atol=1e-6)


def test_rows_that_no_late_vote_is_on_are_not_taught_again(told, run):
    def keeps(client, rows):
        return rows[::2] if client == "c0002" else rows

    cohort = told([0.9, 0.8, 0.1], {"c0002": 1}, keeps=keeps)
    _, second = run(cohort, rounds=2, choice="epoch", classes=2)
    assert set(second.ballot.rows) == {*rows_asked(cohort, 1)[::2], *rows_asked(cohort, 2)}
    assert second.teacher.rows.tolist() == second.ballot.rows.tolist()


def test_late_rows_without_voters_enough_in_all_fall_out(told, run):
    # a row needs 3 voters; of eight rows a votes on all, b on the last four, c on the last six, late d on the first six
    def keeps(client, rows):
        return {"c0001": rows[4:], "c0002": rows[2:], "c0003": rows[:-2]}.get(client, rows)

    cohort = told([0.9, 0.8, 0.7, 0.1], {"c0003": 1}, keeps=keeps)
    first, second = run(cohort, rounds=2, choice="epoch", row_quorum=3, classes=2)
    asked, then = rows_asked(cohort, 1), rows_asked(cohort, 2)
    assert first.teacher.rows.tolist() == asked[4:]
    # the first two rows have a and d, the next two a, c and d, then two have all; the last two have no late vote
    assert sorted(set(second.teacher.rows) - set(then)) == asked[2:6]
    assert set(second.teacher.rows) & set(then) == set(then[4:])


def test_an_earlier_vote_counts_where_its_client_says_nothing_newer(told, run):
    # Fixed rows. Round 1: a .8 and b .6 in time. b is late in 2; c's answer to 1, .2, comes in 3: a's vote is new, b's
    # of round 1 counts beside c's, both two rounds old: (.8 + 3^-.5 (.6 + .2)) / (1 + 2 * 3^-.5) = 1.26188 / 2.15470
    class Once(told):
        def ask(self, plans):
            self.delays = {"c0002": 2} if self.exchanges == 0 else {"c0001": 9}
            yield from super().ask(plans)

    results = run(Once([0.8, 0.6, 0.2], {}), rounds=3, classes=2)
    assert [result.replies for result in results] == [2, 1, 2]
    np.testing.assert_allclose(results[2].teacher.probabilities()[:, 0], 0.58564, atol=1e-5)


GUARDED = dict(PRESETS["guarded"].strategy["aggregator"])
RULES = {
    "guarded": build_aggregator(GUARDED.pop("name"), GUARDED),
    "median": build_aggregator("median", {}),
    "cosine-filter": build_aggregator("cosine-filter", {}),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("delays", [(1, 1, 1, 1), (3, 3, 3, 3), (1, 2, 2, 3)])
@pytest.mark.parametrize("rows", [{"choice": "fixed", "cache_rounds": 4}, {"choice": "random"}, {"choice": "fixed"}])
def test_four_late_colluders_teach_their_class_nowhere(rule, delays, rows, late, run):
    """Six of ten answer in time, with .8 for class 0 or 1; four collude late, with .98 for class 2."""
    liars = dict(zip(["c0006", "c0007", "c0008", "c0009"], delays, strict=True))

    class Colluding(late):
        def votes(self, client, plan):
            shares = np.full((len(plan.ask_rows), 3), 0.01 if client in liars else 0.1)
            right = np.full(len(plan.ask_rows), 2) if client in liars else plan.ask_rows % 2
            shares[np.arange(len(right)), right] = 0.98 if client in liars else 0.8
            return SoftLabels.from_logits(plan.ask_rows, np.log(shares))

    results = run(Colluding(liars, count=10), rounds=8, rule=RULES[rule], row_quorum=0.3, **rows)
    assert sum(result.late for result in results) >= 4
    for result in results:
        assert len(result.teacher.rows) >= 8
        assert (result.teacher.log_probs.argmax(axis=1) == result.teacher.rows % 2).all()
        if (cache := result.standing.cache) is not None:
            known = np.flatnonzero(cache.made)
            assert (cache.log_probs[known].argmax(axis=1) == known % 2).all()


@pytest.mark.parametrize("rows", [{"choice": "random"}, {"choice": "epoch"}, {"choice": "fixed"}])
def test_what_is_kept_gives_the_teacher_again(rows, late, run):
    kept = {}

    def keep(report, ballot):
        assert (report.client, ballot.round) not in kept
        kept[report.client, ballot.round] = report

    results = run(late({"c0001": 1, "c0002": 2}, count=5), keep=keep, **rows)
    assert sum(result.late for result in results) > 3
    for result in results:
        reports = [report for (_, round_), report in kept.items() if round_ == result.round]
        again = Mean().aggregate({}, result.ballot, reports).teacher
        assert again.rows.tolist() == result.teacher.rows.tolist()
        assert again.log_probs.tobytes() == result.teacher.log_probs.tobytes()


def test_a_resumed_run_begins_without_pending_plans(late, exchange):
    cohort = late({"c0003": 1})
    told = exchange(mode="async", choice="epoch", row_quorum=1)
    (first,) = run_rounds(cohort, Mean(), told, 1)
    rest = list(run_rounds(cohort, Mean(), told, 3, done=1, standing=first.standing))
    # the answer to round 1 comes and nobody waits for it; its client was asked again
    assert ["c0003" in plans for plans in cohort.plans] == [True, True, False]
    assert [(result.replies, result.late) for result in rest] == [(3, 0), (4, 1)]
    assert rest[0].ballot.rows.tolist() == rows_asked(cohort, 2)
    assert rest[1].ballot.rows.tolist() == sorted([*rows_asked(cohort, 2), *rows_asked(cohort, 3)])


# ---- the end of waiting


def test_patience_ends_the_waiting(late, run):
    cohort = late({"c0003": 99})
    results = run(cohort, rounds=9, patience=3)
    # asked in round 1; waited for while at most 3 rounds old (2, 3, 4); asked again in 5, and in 9
    assert ["c0003" in plans for plans in cohort.plans] == [True, *[False] * 3, True, *[False] * 3, True]
    assert all(result.late == 0 for result in results)
    # in 4 and 8 the patience ends, in 9 the run
    gone = [("c0003", "late")]
    assert reasons(results) == [[], [], [], gone, [], [], [], gone, gone]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # the fixtures are classes and functions
@given(
    delays=st.dictionaries(st.sampled_from(["c0001", "c0002", "c0003"]), st.integers(0, 6)),
    rounds=st.integers(1, 9),
    patience=st.integers(1, 4),
)
def test_every_plan_is_answered_or_a_failure_in_the_end(delays, rounds, patience, late, run):
    cohort = late(delays)
    results = run(cohort, rounds=rounds, patience=patience, quorum=0.25)
    asked = sorted(client for plans in cohort.plans for client in plans)
    assert len(asked) == sum(result.replies + len(result.failures) for result in results)
    silent = {failure.client for result in results for failure in result.failures}
    assert silent <= {client for client, delay in delays.items() if delay}
    assert silent >= {client for client, delay in delays.items() if delay > patience}


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
        ["late"],
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


@pytest.mark.parametrize("cached", [0, 1, 2])
def test_with_a_cache_too_such_a_round_leaves_the_last_teacher(cached, late, run):
    class Slower(late):
        def ask(self, plans):
            self.delays = dict.fromkeys(self.clients, 2) if self.exchanges == 1 else {}
            yield from super().ask(plans)

    # one row a round, another one each: nothing that rounds 2, 3 and 4 are about is cached
    cohort = Slower({})
    results = run(cohort, rounds=5, choice="epoch", cache_rounds=cached, rows_per_round=1)
    assert [(result.replies, result.late) for result in results] == [(4, 0), (0, 0), (0, 0), (4, 4), (4, 0)]
    first, *silent, counted, last = (result.teacher for result in results)
    for teacher in silent:
        assert (teacher.rows.tolist(), teacher.log_probs.tobytes()) == (first.rows.tolist(), first.log_probs.tobytes())
    # what came late is on the row of round 2
    assert [counted.rows.tolist(), last.rows.tolist()] == [rows_asked(cohort, 2), rows_asked(cohort, 5)]


# ---- quorum


@pytest.mark.parametrize(("quorum", "dead", "ends"), [(0.5, 2, None), (0.75, 2, 4), (0.5, 3, 4), (0.25, 3, None)])
def test_who_may_still_answer_counts_for_the_quorum_until_the_patience_ends(quorum, dead, ends, late, run):
    # Four clients; so many of them never answer. Asked in round 1, they are waited for until 4 = 1 + patience.
    cohort = late({f"c{index:04}": 99 for index in range(dead)})
    if ends is None:
        assert len(run(cohort, rounds=9, patience=3, quorum=quorum)) == 9
        return
    usable = f"{4 - dead} of 4 answers were usable and the quorum is {round(4 * quorum)}"
    with pytest.raises(QuorumError, match=f"round {ends}: {usable}") as caught:
        run(cohort, rounds=9, patience=3, quorum=quorum)
    assert {(failure.client, failure.reason) for failure in caught.value.failures} == {
        (f"c{index:04}", "late") for index in range(dead)
    }


def test_when_everybody_is_gone_the_run_fails(late, run):
    class Dying(late):
        def ask(self, plans):
            self.delays = {} if self.exchanges == 0 else dict.fromkeys(self.clients, 99)
            yield from super().ask(plans)

    with pytest.raises(QuorumError, match=r"round 5: 0 of 4 answers were usable and the quorum is 1"):
        run(Dying({}), rounds=99, patience=3, quorum=0.01)


def test_too_long_a_silence_fails_the_run_although_answers_are_awaited(late, run):
    # One client is lost in round 1, the others in round 3; the first is asked again in 5, when its patience of 3 is
    # over. In 6, three rounds after it was asked in 3, everybody's patience has had its turn.
    class Dying(late):
        def ask(self, plans):
            self.delays = {"c0003": 99} if self.exchanges < 2 else dict.fromkeys(self.clients, 99)
            yield from super().ask(plans)

    says = r"round 6: 0 of 4 answers were usable, 1 may still come; the last 4 rounds had none and the patience is 3"
    with pytest.raises(QuorumError, match=says) as caught:
        run(Dying({}), rounds=99, patience=3, quorum=0.01)
    assert [failure.client for failure in caught.value.failures] == ["c0000", "c0001", "c0002", "c0003"]


def test_silence_within_the_patience_fails_no_run(late, run):
    class Slower(late):
        def ask(self, plans):
            self.delays = {} if self.exchanges == 0 else dict.fromkeys(self.clients, 3)
            yield from super().ask(plans)

    # asked in 2, silent in 2, 3 and 4, and all come in 5
    assert [result.replies for result in run(Slower({}), rounds=9, patience=3)] == [4, 0, 0, 0, 4, 0, 0, 0, 4]


def test_nobody_in_the_first_round_fails_the_run(late, run):
    says = "round 1: 0 of 4 answers were usable, 4 may still come and there is no teacher to go on with until then"
    with pytest.raises(QuorumError, match=says):
        run(late(dict.fromkeys([f"c{i:04}" for i in range(4)], 1)))


def test_differences_are_to_what_a_late_client_really_holds(late, run):
    """A late answer moves its client's link to the plan that it answers, not to the round in which it comes."""
    cohort = late({"c0003": 2})
    results = run(cohort, rounds=8, choice="random", downlink="quantised:2+delta+entropy")
    bases = [plans["c0003"].sync.base if plans["c0003"].sync else 0 for plans in cohort.plans if "c0003" in plans]
    # plans of 1 (no teacher yet), 4 and 7: before 4 nothing was applied, before 7 the plan of 4
    assert bases == [0, 0, 4]
    assert reasons(results) == [[]] * 7 + [[("c0003", "late")]]


def test_a_report_says_its_own_round(late, run):
    class Liar(late):
        def report(self, client, plan):
            honest = super().report(client, plan)
            return ClientReport(client, plan.round + 1, honest.soft_labels) if client == "c0003" else honest

    results = run(Liar({"c0003": 1}), rounds=2)
    assert [failure.reason for failure in results[1].failures] == ["wrong_round"]
