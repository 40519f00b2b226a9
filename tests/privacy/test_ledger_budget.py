"""A release that does not fit what is left is refused, and stays refused; what was spent is never given back."""

import math
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy import budget
from privacy.accounting import epsilon_of
from privacy.events import Gaussian, PoissonGaussian, RandomizedResponse, merged, times
from privacy.ledger import BudgetExceeded, KeyConflict, Ledger, Request, Sealed, Terms
from privacy.tally import Reserved, Tally

COUNT = Terms("record", "zero_out", "count", None, None, None, False)
FILTER = Terms("record", "zero_out", "filter", 3.0, 1e-5, 7, False)
PLAN = Terms("record", "zero_out", "plan", 3.0, 1e-5, None, False)
# privacy.md 4.8: with the labels PLD 2.7591.
MIXED = (
    PoissonGaussian(0.05, 1.5, 200),
    Gaussian(20.0, 3),
    Gaussian(100.0, 80),
    Gaussian(40.0 / math.sqrt(2.0), 50),
)
LABELS = RandomizedResponse(0.1, 10, 20)


def request(round_=1, attempt=0, run="run"):
    return Request(run, round_, attempt, "site-a", "dp-sgd", "{}", "ab" * 32)


@pytest.fixture
def make(tmp_path):
    def make(terms, name="ledger.sqlite", **more):
        return Ledger.create(tmp_path / name, terms, durable=False, **more)

    return make


# ---- mode plan


def test_the_mixed_ledger_of_the_reference_costs_the_same_in_another_process(make, tmp_path):
    with make(PLAN) as ledger:
        ledger.plan("all", (*MIXED, LABELS))
        ledger.reserve(request(1), (replace(MIXED[0], count=120), *MIXED[1:]))
        ledger.reserve(request(2), (LABELS, replace(MIXED[0], count=80)))
        assert ledger.epsilon() == pytest.approx(2.7591, abs=5e-5)
        assert ledger.charged() == (ledger.epsilon(), 1e-5)
        told = ledger.epsilon()
    script = "import sys; from pathlib import Path; from privacy.ledger import Ledger\n"
    script += "with Ledger.open(Path(sys.argv[1])) as ledger: print(ledger.epsilon().hex())"
    command = [sys.executable, "-c", script, str(tmp_path / "ledger.sqlite")]
    read = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert float.fromhex(read) == pytest.approx(told, abs=1e-12)
    assert epsilon_of((*MIXED, LABELS), 1e-5) == pytest.approx(told, abs=1e-12)


def test_a_plan_is_charged_as_a_whole_before_its_first_release(make):
    plan = (PoissonGaussian(0.1, 1.6747, 100),)  # 4.6: calibrated to epsilon 3
    with make(PLAN) as ledger:
        assert (ledger.charged(), ledger.epsilon(), ledger.plans()) == ((0.0, 0.0), 0.0, {})
        ledger.plan("all", plan)
        assert ledger.charged() == (pytest.approx(2.9999, abs=5e-5), 1e-5)
        assert ledger.epsilon() == 0.0
        ledger.reserve(request(), (replace(plan[0], count=10),))
        assert 0.0 < ledger.epsilon() < 1.5  # ten of a hundred steps
        assert ledger.charged() == (pytest.approx(2.9999, abs=5e-5), 1e-5)


@pytest.mark.parametrize(("group_size", "epsilon"), [(1, 0.9351), (2, 2.0161), (5, 5.7599)])
def test_a_ledger_of_groups_charges_what_all_records_of_one_lose(make, group_size, epsilon):
    plan = (PoissonGaussian(0.05, 3.0, 200),)  # 4.5 of the reference
    with make(replace(PLAN, epsilon=6.0, group_size=group_size)) as ledger:
        ledger.plan("all", plan)
        ledger.reserve(request(1), plan)
        assert ledger.charged()[0] == pytest.approx(epsilon, abs=5e-5)
        assert ledger.epsilon() == ledger.charged()[0]
    short = make(replace(PLAN, epsilon=epsilon - 1e-3, group_size=group_size), "short.sqlite")
    with short as ledger, pytest.raises(BudgetExceeded, match=r"brings epsilon from 0\.0000 to"):
        ledger.plan("all", plan)


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ({"group_size": 0}, r"records=0 must be a whole number in 1\.\.1000"),
        ({"group_size": True}, "records=True must be a whole number"),
        ({"group_size": 2, "unit": "client"}, "group_size=2 needs unit 'record' and mode 'plan', not 'client'"),
        ({"group_size": 2, "mode": "filter", "order": 8}, "not 'record' and 'filter': a filter counts single records"),
    ],
)
def test_groups_that_no_ledger_can_account_for_are_refused(told, sentence):
    with pytest.raises(ValueError, match=sentence):
        replace(PLAN, **told)


def test_a_ledger_from_before_there_were_groups_is_one_of_single_records(make):
    with make(PLAN) as ledger:
        (opened,) = ledger.rows()
    assert opened.body["terms"].pop("group_size") == 1
    assert Terms.read(opened.body["terms"]) == PLAN


def test_the_same_plan_again_is_no_second_one(make):
    with make(PLAN) as ledger:
        ledger.plan("all", (Gaussian(5.0, 2), Gaussian(5.0, 1)))
        before = ledger.head()
        ledger.plan("all", (Gaussian(5.0, 3),))
        ledger.plan("all", (Gaussian(5.0, 3),), delta=1e-5)
        assert ledger.head() == before
        for events, delta in (((Gaussian(5.0, 4),), None), ((Gaussian(6.0, 3),), None), ((Gaussian(5.0, 3),), 5e-6)):
            with pytest.raises(KeyConflict, match="plan 'all' was reserved with other events or another delta"):
                ledger.plan("all", events, delta)
        assert ledger.head() == before


def test_plans_add_their_epsilons_and_deltas_against_the_totals(make):
    first, second = (Gaussian(5.0, 1),), (Gaussian(4.0, 1),)
    with make(PLAN) as ledger:
        ledger.plan("first", first, 4e-6)
        ledger.plan("second", second)  # all that is left: 6e-6
        each = epsilon_of(first, 4e-6), epsilon_of(second, 1e-5 - 4e-6)
        assert ledger.charged() == (pytest.approx(sum(each), abs=1e-12), 1e-5)
        assert [plan.delta for plan in ledger.plans().values()] == [4e-6, 1e-5 - 4e-6]
        for delta in (None, 1e-9):
            with pytest.raises(BudgetExceeded, match=r"the plans before it left 0 of 1e-05"):
                ledger.plan("third", (Gaussian(1e6, 1),), delta)


@settings(max_examples=50, deadline=None)
@given(st.floats(1e-6, 1e-2), st.floats(1e-3, 0.999))
def test_what_is_left_of_delta_always_fits(total, part):
    tally = Tally()
    tally.terms = replace(PLAN, delta=total)
    tally.plans = {"first": Reserved((Gaussian(1e9, 1),), total * part)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget, "_epsilon_of", lambda *_: 0.1)
        share = budget.share_of(tally, "second", (Gaussian(1e9, 1),), None)
    assert total * (1.0 - 1e-12) <= math.fsum([total * part, share]) <= total


def test_a_plan_that_does_not_fit_is_refused_and_reserves_nothing(make):
    with make(PLAN) as ledger:
        ledger.plan("first", (Gaussian(2.0, 1),), 5e-6)  # 4.1: 1.9938 at 1e-5, so a little above 2 at 5e-6
        before = ledger.head()
        with pytest.raises(BudgetExceeded, match=r"brings epsilon from 2\.\d+ to 4\.\d+, above 3.0: plan more noise"):
            ledger.plan("second", (Gaussian(2.0, 1),), 5e-6)
        with pytest.raises(BudgetExceeded, match="plan 'second' was not reserved"):
            ledger.reserve(request(), (Gaussian(2.0, 1),), plan="second")
        assert ledger.head() == before
        assert list(ledger.plans()) == ["first"]


def test_a_release_draws_exactly_what_was_planned_or_is_refused(make):
    step = PoissonGaussian(0.1, 2.0, 1)
    with make(PLAN) as ledger:
        with pytest.raises(BudgetExceeded, match="plan None was not reserved"):
            ledger.reserve(request(), (step,))
        ledger.plan("all", (times(step, 30), Gaussian(50.0, 1)))
        # Less noise, but also more noise or fewer records: what was charged is this plan and no other (I7).
        for other in (
            replace(step, noise_multiplier=1.9),
            replace(step, noise_multiplier=2.1),
            replace(step, sample_rate=0.05),
        ):
            with pytest.raises(BudgetExceeded, match="left, and"):
                ledger.reserve(request(), (other,))
        assert ledger.left((times(step, 10),)) == 3
        for round_ in (1, 2, 3):
            ledger.store(ledger.reserve(request(round_), (times(step, 10),)), b"%d" % round_)
        assert (ledger.left((step,)), ledger.left((Gaussian(50.0, 1),))) == (0, 1)
        assert ledger.left((Gaussian(50.0, 1), step)) == 0
        for _ in range(2):
            with pytest.raises(BudgetExceeded):
                ledger.reserve(request(4), (step,))
        assert ledger.reserve(request(3), (times(step, 10),)) == Sealed(8, b"3")  # what was paid can be sent again
        assert ledger.events() == (times(step, 30),)
        assert ledger.left(()) is None
        ledger.reserve(request(5), ())  # computed from earlier releases alone: free, and still a row
        assert ledger.count() == 4


def test_a_release_is_drawn_from_the_plan_it_names_or_from_the_last_one(make):
    event = Gaussian(20.0, 1)
    with make(PLAN) as ledger:
        for name in ("old", "new"):
            ledger.plan(name, (times(event, 2),), 5e-6)
        ledger.reserve(request(1), (event,))
        ledger.reserve(request(2), (event,), plan="old")
        ledger.reserve(request(3), (event,), plan="old")
        drawn = {name: dict(plan.drawn) for name, plan in ledger.plans().items()}
        assert drawn == {"old": {event: 2}, "new": {event: 1}}
        with pytest.raises(BudgetExceeded, match="plan 'old' has"):
            ledger.reserve(request(4), (event,), plan="old")
        with pytest.raises(BudgetExceeded, match="plan 'none' was not reserved"):
            ledger.left((event,), plan="none")
        assert ledger.epsilon() == pytest.approx(
            epsilon_of((times(event, 2),), 5e-6) + epsilon_of((event,), 5e-6), abs=1e-12
        )


@pytest.mark.parametrize(
    ("terms", "name", "events"),
    [(FILTER, "all", (Gaussian(9.0, 1),)), (PLAN, "", (Gaussian(9.0, 1),)), (PLAN, "all", ())],
)
def test_a_plan_needs_a_name_events_and_a_ledger_of_plans(make, terms, name, events):
    with make(terms) as ledger, pytest.raises(ValueError, match="name events, in mode 'plan'"):
        ledger.plan(name, events)


@pytest.mark.parametrize("delta", [0.0, -1e-6, 1.0, math.nan])
def test_a_share_of_delta_is_a_probability(make, delta):
    with make(PLAN) as ledger, pytest.raises(ValueError, match=r"must be in \[1e-12, 1\)"):
        ledger.plan("all", (Gaussian(9.0, 1),), delta)


# ---- mode filter


def test_the_filter_takes_as_many_steps_as_the_reference_says(make):
    step = PoissonGaussian(0.05, 3.0, 1)  # 4.7: a*=7, B=1.5596, R=1.058971e-3, 1472 steps
    with make(FILTER) as ledger:
        assert ledger.left((step,)) == 1472
        for round_ in range(1, 15):
            ledger.reserve(request(round_), (times(step, 100),))
        assert ledger.left((times(step, 10),)) == 7
        assert ledger.left((times(step, 100),)) == 0
        with pytest.raises(BudgetExceeded, match=r"does not pass the filter of epsilon=3.0 at order 7"):
            ledger.reserve(request(15), (times(step, 73),))
        ledger.reserve(request(15), (times(step, 72),))
        with pytest.raises(BudgetExceeded):
            ledger.reserve(request(16), (step,))
        # 1472 * 1.058971e-3 + conv(7) = 1.55881 + 1.44035
        assert ledger.epsilon() == pytest.approx(2.99916, abs=5e-5)
        assert ledger.charged() == (3.0, 1e-5)


def test_a_filter_that_lets_nothing_pass_is_refused_when_it_is_made(make, tmp_path):
    with pytest.raises(ValueError, match="order=4"):  # 4.7: B = -.0879
        make(replace(FILTER, order=4))
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.floats(2.0, 30.0), st.integers(1, 4)), min_size=1, max_size=12))
def test_the_filter_accepts_what_a_naive_sum_accepts_and_never_forgets(tmp_path_factory, asked):
    # Gaussian R(7) = 7 / (2 s^2), B = 3 - conv(7); conv(7) = ln(6/7) - (ln 1e-5 + ln 7)/6
    room, spent, taken = 3.0 - (math.log(6 / 7) - (math.log(1e-5) + math.log(7)) / 6), 0.0, []
    path = tmp_path_factory.mktemp("filter") / "ledger.sqlite"
    Ledger.create(path, FILTER, durable=False).close()
    for round_, (noise, count) in enumerate(asked):
        price = count * 7 / (2 * noise**2)
        if abs(spent + price - room) < 1e-9:
            continue
        with Ledger.open(path, durable=False) as ledger:
            before = ledger.epsilon()
            if spent + price < room:
                ledger.reserve(request(round_), (Gaussian(noise, count),))
                spent, taken = spent + price, [*taken, Gaussian(noise, count)]
            else:
                with pytest.raises(BudgetExceeded):
                    ledger.reserve(request(round_), (Gaussian(noise, count),))
            assert ledger.events() == merged(taken)
            assert 3.0 - room + spent == pytest.approx(ledger.epsilon(), abs=1e-9) or not taken
            assert before <= ledger.epsilon() <= 3.0


# ---- mode count


def test_where_nothing_is_accounted_rounds_are_counted_and_epsilon_is_infinite(make):
    with make(COUNT) as ledger:
        assert (ledger.epsilon(), ledger.charged(), ledger.count()) == (0.0, (0.0, 0.0), 0)
        for run, round_, attempt in (("a", 1, 0), ("a", 1, 1), ("a", 2, 0), ("b", 1, 0)):
            ledger.reserve(request(round_, attempt, run), ())
        assert (ledger.count(), ledger.count("a"), ledger.count("b")) == (3, 2, 1)
        assert (ledger.epsilon(), ledger.charged(), ledger.left(())) == (math.inf, (math.inf, 0.0), None)
        with pytest.raises(ValueError, match="accounts for none: pass no events"):
            ledger.reserve(request(3), (Gaussian(1.0, 1),))


def test_events_are_told_by_run(make):
    with make(FILTER) as ledger:
        for run, noise in (("a", 20.0), ("b", 30.0), ("a", 20.0)):
            ledger.reserve(request(ledger.count(), run=run), (Gaussian(noise, 1),))
        assert ledger.events("a") == (Gaussian(20.0, 2),)
        assert ledger.events("b") == (Gaussian(30.0, 1),)
        assert ledger.events("c") == ()
        assert ledger.events() == (Gaussian(20.0, 2), Gaussian(30.0, 1))


def test_epsilon_is_computed_from_rows_and_not_kept_in_one(make):
    with make(PLAN) as ledger:
        ledger.plan("all", (Gaussian(5.0, 3),))
        ledger.reserve(request(), (Gaussian(5.0, 3),))
        names = {name for row in ledger.rows() for name in row.body}
        assert "epsilon" not in names
        assert ledger.epsilon() == epsilon_of((Gaussian(5.0, 3),), 1e-5)
