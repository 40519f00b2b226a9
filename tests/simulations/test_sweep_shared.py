"""Points that share ledgers: all of them can pay, or the sweep is refused before any of them has."""

import math

import pytest

from simulations import sweep as module
from simulations.config import ConfigError, parse_config
from simulations.sweep import run_sweep
from simulations.sweeps.grid import Axis, Point
from simulations.sweeps.runner import run_point
from simulations.sweeps.shared import refuse_unpayable

FILTER = {"epsilon": 20.0, "noise_multiplier": 4.0, "composition": "filter", "ledgers": "/kept"}


def point(tiny, seed, **sections):
    config = tiny(**{**sections, "federation": {**sections.get("federation", {}), "seed": seed}})
    return Point(f"seed={seed}", {"federation.seed": seed}, (f"federation.seed={seed}",), config)


def told(privacy=None, **sections):
    privacy = {**FILTER, **(privacy or {})}
    return parse_config({"data": {"name": "digits", "seed": 1}, "privacy": privacy, **sections}, ".")


def test_seeds_over_one_deal_share_their_ledgers_and_pay_once_each(tiny, inline, monkeypatch, tmp_path):
    def here(jobs, parallel):
        for job in jobs:
            news = []
            run_point(job, news.append)
            yield from ((job, frame) for frame in news)

    monkeypatch.setattr(module, "run_jobs", here)
    privacy = {**FILTER, "ledgers": str(tmp_path / "kept")}
    axes = (Axis("federation.seed", ("1", "2"), (1, 2)),)
    points = [point(tiny, seed, data={"seed": 1}, privacy=privacy) for seed in (1, 2)]
    done = run_sweep(points, axes, tmp_path / "out")
    assert [outcome.verdict for outcome in done.outcomes] == ["ok", "ok"]
    assert "at most epsilon 20.0000 and delta 1e-05, unit record: the budget of their ledgers" in done.price
    last = done.outcomes[1].run["privacy"]["each"]
    assert {(len(one["runs"]), one["steps"]) for one in last} == {(2, 2 * 20)}
    anew = [point(tiny, seed, privacy=privacy) for seed in (1, 2)]
    with pytest.raises(ConfigError, match=r"count one deal of rows, .* differently: set data\.seed"):
        run_sweep(anew, axes, tmp_path / "anew")
    assert not (tmp_path / "anew").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            [{"epsilon": 1.0}, {"epsilon": 2.0}],
            "the 2 private points share the ledgers in privacy.ledgers=.*kept, whose promise is fixed for ever, and "
            r"the points ask for several values of privacy.epsilon \(1.0 and 2.0\)",
        ),
        ([{}, {"delta": 1e-6}], "several values of privacy.delta"),
        ([{}, {"os_entropy": True}], "several values of privacy.os_entropy"),
        (
            [{}, {"mechanism": {"name": "k-rr"}, "allow_baseline": True}],
            "several values of privacy.mechanism .*zero_out.* and .*replace_one",
        ),
        (
            [{"composition": "plan"}, {"composition": "plan"}],
            'the first point reserves all of their delta: set "filter"',
        ),
        ([{"noise_multiplier": 0.0}, {"noise_multiplier": 0.0}], "lets one point take all of it: give both"),
        ([{"epsilon": None}, {"epsilon": None}], "privacy.epsilon=None with privacy.noise_multiplier=4.0"),
    ],
)
def test_points_that_cannot_all_pay_are_refused_beforehand(changes, says):
    with pytest.raises(ConfigError, match=says):
        refuse_unpayable([told(change) for change in changes])


@pytest.mark.parametrize(
    ("first", "second"),
    [({"federation": {"seed": 1}, "data": {"name": "digits"}}, {"federation": {"seed": 2}, "data": {"name": "digits"}}),
     ({}, {"data": {"name": "digits", "seed": 1, "alpha": 0.1}}),
     ({}, {"federation": {"clients": 5}})],
)  # fmt: skip
def test_points_that_deal_rows_differently_share_no_ledgers(first, second):
    with pytest.raises(ConfigError, match="the points deal them differently"):
        refuse_unpayable([told(**first), told(**second)])


def test_points_that_can_pay_are_not_refused():
    refuse_unpayable([told(federation={"seed": seed}) for seed in (1, 2)])
    refuse_unpayable([told({"noise_multiplier": noise}) for noise in (4.0, 8.0)])
    refuse_unpayable([told({"ledgers": "/one", "epsilon": 1.0}), told({"ledgers": "/other", "epsilon": 2.0})])
    refuse_unpayable([told({"ledgers": "", "epsilon": epsilon}) for epsilon in (1.0, 2.0)])
    refuse_unpayable([told({"epsilon": 1.0}), told({"epsilon": math.inf, "noise_multiplier": 0.0})])
    refuse_unpayable([told({"composition": "plan"})])
