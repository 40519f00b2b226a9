"""What a sweep would cost on real private data, before and after: said whenever a point is private, never too low."""

import math

import pytest

from privacy.events import Gaussian, PoissonGaussian, to_json
from simulations.config import parse_config
from simulations.sweeps.grid import Point
from simulations.sweeps.outcomes import Outcome
from simulations.sweeps.price import price_of

EVENTS = (PoissonGaussian(0.1, 1.6747, 100),)


def planned(slug="a", sections=None, **privacy):
    sections = {"data": {"name": "digits"}, **(sections or {}), **({"privacy": privacy} if privacy else {})}
    return Outcome(Point(slug, {}, (), parse_config(sections, ".")))


def run(point, each):
    """The point after a run in which these clients paid."""
    largest = max(each, key=lambda one: one["epsilon"]) if each else None
    told = {"verdict": "ok", "privacy": {"each": each, "max": largest}}
    return Outcome(point.point, told)


def paid(client="site-0", data_set="x", seq=1, events=EVENTS, epsilon=2.9999, delta=1e-5, composition="plan"):
    return {
        "client": client,
        "data_set": data_set,
        "ledger_seq": seq,
        "events": to_json(events),
        "epsilon": epsilon,
        "delta": delta,
        "composition": composition,
    }


def test_without_a_promise_there_is_no_price():
    assert price_of([planned(), planned()]) is None
    assert price_of([planned(epsilon=math.inf), planned(mechanism="none")]) is None


def test_before_a_run_the_price_is_bounded_by_adding_up():
    told = price_of([planned(epsilon=epsilon, delta=1e-5) for epsilon in (1.0, 3.0, 8.0)])
    assert "each of its 3 points is another release of the same records, seeds and failures too" in told
    assert "together they cost at most epsilon 12.0000 and delta 3e-05, unit record, by adding up; composed" in told
    assert "No ledger counts them together: set privacy.ledgers for real data" in told


def test_what_a_run_chooses_itself_is_not_guessed():
    assert "at most epsilon 4.0000, unit record, by adding up" in price_of([planned(epsilon=1.0), planned(epsilon=3.0)])
    assert "together they cost what their noise comes to" in price_of([planned(noise_multiplier=1.1)])
    assert "its one point is another release" in price_of([planned(noise_multiplier=1.1)])


def test_a_point_without_a_mechanism_leaves_the_whole_without_a_bound():
    told = price_of([planned(epsilon=1.0), planned(epsilon=math.inf), planned(epsilon=2.0)])
    assert "one of them has no privacy mechanism, so nothing bounds the whole; the others together cost at most" in told
    assert "epsilon 3.0000" in told
    assert "2 of them have no privacy" in price_of([planned(epsilon=1.0), planned(), planned(epsilon=math.inf)])


def test_ledgers_that_all_points_share_are_named():
    shared = [planned(epsilon=1.0, ledgers="/kept"), planned(epsilon=2.0, ledgers="/kept")]
    assert "The ledgers in privacy.ledgers count them together" in price_of(shared)
    assert "No ledger counts them" in price_of([*shared, planned(epsilon=2.0)])
    assert "No ledger counts them" in price_of([*shared, planned(epsilon=2.0, ledgers="/other")])


@pytest.mark.parametrize(
    "broken", [None, {}, {"max": None, "each": []}, {"each": [{"client": "a"}]}, {"each": 3}, "no"]
)
def test_a_run_that_does_not_tell_what_it_released_is_charged_as_planned(broken):
    point = planned(epsilon=2.0, delta=1e-5)
    told = price_of([Outcome(point.point, {"verdict": "failed", "privacy": broken}, "x")])
    assert "at most epsilon 2.0000 and delta 1e-05, unit record, by adding up" in told


def test_what_was_charged_counts_where_one_point_tells_no_events():
    # 2.5 charged instead of the 3 planned, and 1 planned: 3.5
    known = run(planned(epsilon=3.0, delta=1e-6), [paid(epsilon=2.5, delta=1e-5)])
    assert "at most epsilon 3.5000 and delta 1.1e-05" in price_of([known, planned("b", epsilon=1.0, delta=1e-6)])


# ---- with an accountant --------------------------------------------------------------------------------------------
@pytest.fixture
def accountant(monkeypatch):
    """Instead of privacy.accounting: epsilon is the number of steps of DP-SGD; what it is asked is kept."""
    import sys
    import types

    asked = []

    def group_epsilon_of(events, delta, records):
        asked.append((events, delta, records))
        return sum(event.count for event in events) / 100 + 1e-6

    stand_in = types.ModuleType("privacy.accounting")
    stand_in.group_epsilon_of = group_epsilon_of
    monkeypatch.setitem(sys.modules, "privacy.accounting", stand_in)
    return asked


def test_after_the_run_the_price_is_the_composition_of_all_events_of_the_client_that_pays_most(accountant):
    few, many = (PoissonGaussian(0.1, 2.0, 100),), (PoissonGaussian(0.1, 3.0, 250), Gaussian(5.0, 7))
    points = [
        run(planned("a", epsilon=3.0), [paid("one", "1a", events=few), paid("two", "2a", events=few, delta=2e-5)]),
        run(planned("b", epsilon=3.0), [paid("one", "1b", events=few), paid("two", "2b", events=many)]),
    ]
    told = price_of(points)
    # two: 100 + 250 + 7 = 357 -> 3.57 + 1e-6, rounded up
    assert "together they cost (epsilon 3.5701, delta 2e-05), unit record, composed of the events of all." in told
    assert set(accountant) == {((PoissonGaussian(0.1, 2.0, 200),), 2e-5, 1), ((*few, *many), 2e-5, 1)}


def test_a_ledger_that_several_points_share_is_counted_once(accountant):
    first = run(planned("a", epsilon=3.0), [paid(seq=1, events=EVENTS)])
    second = run(planned("b", epsilon=3.0), [paid(seq=5, events=(PoissonGaussian(0.1, 1.6747, 300),))])
    for points in ([first, second], [second, first]):
        assert "(epsilon 3.0001, delta 1e-05)" in price_of(points)  # 300 steps, not 400


def test_a_client_that_one_point_does_not_name_leaves_the_price_to_adding_up(accountant):
    points = [
        run(planned("a", epsilon=3.0, delta=1e-5), [paid("one", "1a"), paid("two", "2a")]),
        run(planned("b", epsilon=3.0, delta=1e-5), [paid("one", "1b")]),
    ]
    assert "at most epsilon 5.9998 and delta 2e-05, unit record, by adding up" in price_of(points)
    assert accountant == []


def test_the_composition_is_the_references():
    """privacy.md 2.5: five trials at epsilon 3 (q=.1, T=100), all kept, cost 7.1157."""
    accounting = pytest.importorskip("privacy.accounting")
    points = [run(planned(str(trial), epsilon=3.0), [paid(data_set=trial)]) for trial in range(5)]
    told = price_of(points)
    epsilon = float(told.partition("(epsilon ")[2].partition(",")[0])
    assert epsilon == pytest.approx(7.1157, abs=2e-4)
    assert epsilon >= accounting.epsilon_of((PoissonGaussian(0.1, 1.6747, 500),), 1e-5)


# --- who a record is, from point to point ------------------------------------------------------------------------
def seeded(seed, deal=None, **privacy):
    sections = {"federation": {"seed": seed}, "data": {"name": "digits", **({} if deal is None else {"seed": deal})}}
    return planned(f"seed={seed}", sections, epsilon=3.0, delta=1e-5, **privacy)


def test_points_that_deal_rows_anew_cost_what_their_dearest_clients_cost_together(accountant):
    """Client 0's record of seed 1 is client 1's of seed 2: no client's own events are that record's."""
    cheap, dear = (PoissonGaussian(0.1, 2.0, 100),), (PoissonGaussian(0.1, 2.0, 250),)
    points = [
        run(seeded(1), [paid("one", "1a", events=cheap, epsilon=1.0), paid("two", "2a", events=dear, epsilon=2.5)]),
        run(seeded(2), [paid("one", "1b", events=dear, epsilon=2.5), paid("two", "2b", events=cheap, epsilon=1.0)]),
    ]
    told = price_of(points)
    assert "at most epsilon 5.0000 and delta 2e-05, unit record, by adding up what each point's dearest" in told
    assert "a row that is private at one point may be public at another, which no epsilon covers; set data.seed" in told
    assert accountant == []
    fixed = [Outcome(seeded(seed, deal=1).point, point.run) for seed, point in zip((1, 2), points, strict=True)]
    assert "(epsilon 3.5001, delta 1e-05), unit record, composed" in price_of(fixed)
    assert "set data.seed" not in price_of(fixed)


def test_ledgers_count_together_what_is_dealt_alike_only():
    kept = {"ledgers": "/kept", "noise_multiplier": 4.0, "composition": "filter"}
    told = price_of([seeded(seed, deal=1, **kept) for seed in (1, 2, 3)])
    # three points, one budget
    assert "at most epsilon 3.0000 and delta 1e-05, unit record: the budget of their ledgers. The ledgers in" in told
    told = price_of([seeded(seed, **kept) for seed in (1, 2, 3)])
    assert "at most epsilon 9.0000 and delta 3e-05, unit record, by adding up" in told
    assert "No ledger counts them together" in told


def test_what_passed_a_filter_is_not_composed_as_if_it_had_been_planned(accountant):
    filtered = {"composition": "filter", "noise_multiplier": 4.0}
    points = [
        run(seeded(seed, deal=1, **filtered), [paid(data_set=seed, epsilon=3.0, composition="filter(alpha=8, B=1.8)")])
        for seed in (1, 2)
    ]
    told = price_of(points)
    assert "at most epsilon 6.0000 and delta 2e-05, unit record, by adding up. No ledger" in told
    assert accountant == []


def test_a_group_pays_more_than_one_record_and_the_price_says_whose_it_is():
    accounting = pytest.importorskip("privacy.accounting")
    point = run(planned(epsilon=3.0, group_size=4), [paid()])
    told = price_of([point])
    epsilon = float(told.partition("(epsilon ")[2].partition(",")[0])
    exact = accounting.group_epsilon_of(EVENTS, 1e-5, 4)
    assert exact <= epsilon < exact + 2e-4
    assert epsilon > 3 * accounting.epsilon_of(EVENTS, 1e-5)  # 3 would be one record's
    assert "delta 1e-05), unit group(4), composed" in told
    assert "unit group(4), by adding up" in price_of([planned(epsilon=3.0, group_size=4)])
    # A group's epsilon covers one record, and not the other way.
    mixed = price_of([planned(epsilon=3.0, group_size=4), planned(epsilon=1.0)])
    assert "at most epsilon 4.0000, unit record, by adding up." in mixed


def test_records_and_whole_clients_are_priced_apart():
    central = {"mechanism": {"name": "client-sum", "clip": 1.0}}
    told = price_of([planned(epsilon=1.0), planned(epsilon=2.0), planned(epsilon=8.0, **central)])
    assert "at most epsilon 3.0000, unit record, by adding up" in told
    assert "and apart from these, which do not add up, at most epsilon 8.0000, unit client, by adding up" in told


def test_deltas_are_never_rounded_down():
    told = price_of([planned(epsilon=1.0, delta=delta) for delta in (1.00004e-6, 1e-6)])
    assert "delta 2.001e-06" in told
