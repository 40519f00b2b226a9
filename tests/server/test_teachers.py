"""What a rule may ask of clients and tell them: extras, choices, teachers of their own; and the hooks around it."""

from dataclasses import dataclass

import numpy as np
import pytest

from client.teaching import teacher_of
from strategies.aggregator import Outcome
from strategies.aggregators.mean import Mean
from strategies.messages import ClientReport
from strategies.soft_labels import SoftLabels


def bad(blob):
    return blob[:-1]


def same(one, other):
    return one.rows.tolist() == other.rows.tolist() and one.log_probs.tobytes() == other.log_probs.tobytes()


@pytest.mark.parametrize(("needs", "missing"), [(("scores",), None), (("counts", "scores"), None), ((), "extras")])
def test_a_rule_gets_what_it_needs_and_nothing_else(needs, missing, run, scripted):
    got = []

    @dataclass(frozen=True)
    class Needy(Mean):
        def aggregate(self, state, ballot, reports):
            reports = list(reports)
            got.extend((report.scores is not None, report.counts is not None) for report in reports)
            return Mean().aggregate(state, ballot, reports)

    Needy.needs = needs

    class Generous(scripted):
        def report(self, client, plan):
            assert set(plan.wants) == set(needs)
            if client == "c0001" and not needs:  # says more than was asked
                return ClientReport(client, plan.round, self.votes(client, plan), counts=np.ones(3))
            return super().report(client, plan)

    (result,) = run(Generous(), rounds=1, rule=Needy())
    assert set(got) == {("scores" in needs, "counts" in needs)}
    assert [failure.reason for failure in result.failures] == ([missing] if missing else [])


@dataclass(frozen=True)
class Two:
    """Choices: the votes of the first two clients by name, and their mean as the teacher."""

    def aggregate(self, state, ballot, reports):
        reports = sorted(reports, key=lambda report: report.client)
        teacher = Mean().aggregate(state, ballot, reports).teacher
        return Outcome(teacher, state, choices=tuple(report.soft_labels for report in reports[:2]))


@dataclass(frozen=True)
class Own:
    """Personal: everybody is taught its own vote."""

    def aggregate(self, state, ballot, reports):
        reports = list(reports)
        teacher = Mean().aggregate(state, ballot, reports).teacher
        return Outcome(teacher, state, personal={report.client: report.soft_labels for report in reports})


def taught(plan, proxy_rows, own):
    """What a client makes of its plan."""
    teacher, _ = teacher_of(plan, None, proxy_rows, lambda rows: own)
    return teacher


def test_choices_travel_and_a_client_takes_the_nearest_row_by_row(run, scripted):
    cohort = scripted(3)
    results = run(cohort, rounds=2, rule=Two(), choice="fixed")
    first, second = results[0].standing.choices
    plan = cohort.plans[1]["c0002"]
    assert len(plan.teachers) == 2
    own = cohort.votes("c0002", cohort.plans[0]["c0002"])
    got = taught(plan, 50, own)
    for row in range(8):
        mine = np.exp(own.log_probs[row])
        apart = [float(((np.exp(told.log_probs[row]) - mine) ** 2).sum()) for told in (first, second)]
        nearest = (first, second)[apart.index(min(apart))]
        np.testing.assert_allclose(got.log_probs[row], nearest.log_probs[row], atol=1e-6)
    # client 0 is one of the choices itself
    mine = cohort.votes("c0000", cohort.plans[0]["c0000"])
    np.testing.assert_allclose(taught(plan, 50, mine).log_probs, mine.log_probs, atol=1e-6)


def test_personal_teachers_travel_to_their_owners(run, scripted):
    class Growing(scripted):
        def ask(self, plans):
            yield from super().ask(plans)
            self.clients = [f"c{i:04}" for i in range(4)]

    cohort = Growing(3, misbehave={"c0001": lambda blob: [] if len(cohort.plans) == 1 else blob})
    results = run(cohort, rounds=2, rule=Own(), choice="fixed")
    for client in ("c0000", "c0002"):
        (teacher,) = cohort.plans[1][client].teachers
        own = cohort.votes(client, cohort.plans[0][client])
        np.testing.assert_allclose(teacher.log_probs, own.log_probs, atol=1e-6)
    # who was absent or is new is taught what all said
    for client in ("c0001", "c0003"):
        (teacher,) = cohort.plans[1][client].teachers
        np.testing.assert_allclose(teacher.log_probs, results[0].teacher.log_probs, atol=1e-6)


def test_an_own_teacher_without_a_row_is_none(run, scripted):
    @dataclass(frozen=True)
    class Nothing(Own):
        def aggregate(self, state, ballot, reports):
            outcome = super().aggregate(state, ballot, reports)
            empty = SoftLabels.from_logits(np.empty(0, np.int64), np.empty((0, 3)))
            return Outcome(outcome.teacher, personal={**outcome.personal, "c0000": empty})

    cohort = scripted(3)
    run(cohort, rounds=2, rule=Nothing())
    assert cohort.plans[1]["c0000"].teachers == ()
    assert len(cohort.plans[1]["c0001"].teachers) == 1


@pytest.mark.parametrize("rule", [Two(), Own()])
def test_teachers_that_differ_between_clients_travel_whole_also_with_a_delta_downlink(rule, run, scripted):
    cohort = scripted(3)
    run(cohort, rounds=3, rule=rule, downlink="quantised:2+delta+entropy")
    for plans in cohort.plans[1:]:
        assert all(plan.sync is None and plan.teachers for plan in plans.values())


@pytest.mark.parametrize("rule", [Two(), Own()])
def test_teachers_that_differ_between_clients_cannot_be_cached(rule, run, scripted):
    with pytest.raises(ValueError, match="cache_rounds=3 must be 0 with this rule"):
        run(scripted(3), rule=rule, cache_rounds=3)


def test_class_tables_ask_for_classes(run, scripted):
    @dataclass(frozen=True)
    class Tables(Mean):
        pass

    Tables.subject = "classes"
    cohort = scripted(3, keeps=lambda client, rows: rows[rows != int(client[1:])])  # nobody has its own number's class
    results = run(cohort, rounds=2, rule=Tables(), row_quorum=2, proxy_rows=1)
    assert cohort.plans[0]["c0000"].ask_rows.tolist() == [0, 1, 2]
    assert results[0].teacher.rows.tolist() == [0, 1, 2]
    assert cohort.plans[1]["c0000"].subject == "classes"


def test_clients_hear_what_is_spoken_and_not_the_teacher(run, scripted):
    def speak(teacher):
        asked.append(teacher)
        return SoftLabels.from_logits(teacher.rows, -teacher.log_probs)

    asked = []
    cohort = scripted(3)
    results = run(cohort, speak=speak)
    assert [same(one, result.teacher) for one, result in zip(asked, results, strict=False)] == [True, True]
    for plans, result in zip(cohort.plans[1:], results, strict=False):
        (spoken,) = plans["c0000"].teachers
        expected = SoftLabels.from_logits(result.teacher.rows, -result.teacher.log_probs)
        np.testing.assert_allclose(spoken.log_probs, expected.log_probs, atol=1e-5)


def test_every_believed_report_is_kept_with_its_ballot_and_no_other(run, scripted):
    kept = []
    results = run(
        scripted(4, misbehave={"c0002": bad}), keep=lambda report, ballot: kept.append((report, ballot)), rounds=2
    )
    assert [(report.client, ballot.round) for report, ballot in kept] == [
        (client, round_) for round_ in (1, 2) for client in ("c0000", "c0001", "c0003")
    ]
    assert {id(ballot) for _, ballot in kept} == {id(result.ballot) for result in results}
