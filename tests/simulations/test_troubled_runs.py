"""Whole runs with liars, latecomers and newcomers: the same run again, resumed, on any number of workers."""

import csv

import pytest

from simulations.engines.cohorts import newcomers_of
from simulations.experiment import run_experiment


def untimed(out):
    with (out / "metrics.csv").open() as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


# Colluding needs two liars to agree, so one worker and two must see the same honest votes; half of the rest is late.
TROUBLE = {
    "federation": {"clients": 5, "rounds": 3, "mode": "async"},
    "attack": {"name": "hips", "clients": 2},
    "stragglers": {"share": 0.4, "rounds": 1},
}


def test_a_troubled_run_is_the_same_run_again(tiny, inline, tmp_path):
    runs = [run_experiment(tiny(**TROUBLE), tmp_path / name) for name in "ab"]
    assert untimed(tmp_path / "a") == untimed(tmp_path / "b")
    assert runs[0]["teacher"] == runs[1]["teacher"]
    assert len(runs[0]["attackers"]) == len(runs[0]["stragglers"]) == 2
    assert sum(int(row["late"]) for row in untimed(tmp_path / "a")) == 2
    other = run_experiment(tiny(**{**TROUBLE, "attack": {"name": "hips", "clients": 1}}), tmp_path / "other")
    assert other["teacher"] != runs[0]["teacher"]


def test_an_attacked_run_that_is_resumed_is_the_same_run(tiny, inline, tmp_path):
    attack = {"attack": {"name": "replay", "clients": 2}}
    steady = run_experiment(tiny(federation={"rounds": 3}, **attack), tmp_path / "steady")
    run_experiment(tiny(federation={"rounds": 2}, **attack), tmp_path / "out")
    resumed = run_experiment(tiny(federation={"rounds": 3}, **attack), tmp_path / "out", resume=True)
    assert untimed(tmp_path / "out") == untimed(tmp_path / "steady")
    assert resumed["teacher"] == steady["teacher"]


def test_newcomers_are_there_from_their_round_on_also_in_a_run_that_is_resumed(tiny, inline, tmp_path):
    joins = {"newcomers": {"share": 0.5, "round": 3}, "federation": {"clients": 4, "rounds": 4}}
    steady = run_experiment(tiny(**joins), tmp_path / "steady")
    assert [row["replies"] for row in untimed(tmp_path / "steady")] == ["2", "2", "4", "4"]
    for rounds in (3, 4):
        told = {**joins, "federation": {"clients": 4, "rounds": rounds}}
        run = run_experiment(tiny(**told), tmp_path / "out", resume=rounds > 3)
    assert untimed(tmp_path / "out") == untimed(tmp_path / "steady")
    assert (run["teacher"], run["newcomers"]) == (steady["teacher"], steady["newcomers"])


@pytest.mark.slow
def test_what_is_said_of_a_round_is_said_of_those_who_are_there(tiny, tmp_path):
    parts = {"federation": {"clients": 4, "rounds": 2}, "baselines": {"fedavg": True, "fedavg_rounds": 2}}
    whole = run_experiment(tiny(**parts), tmp_path / "whole")
    joins = run_experiment(tiny(**parts, newcomers={"share": 0.5, "round": 2}), tmp_path / "joins")
    assert 8 * joins["weights_bytes"] == 6 * whole["weights_bytes"]
    with (tmp_path / "joins" / "fedavg.csv").open() as file:
        first, second = (int(row["upload_bytes"]) for row in csv.DictReader(file))
    assert 2 * first == second
    # Before they join nobody looks at the newcomers' untrained models.
    (one, _), (other, _) = (untimed(tmp_path / name) for name in ("whole", "joins"))
    assert float(other["client_accuracy_min"]) >= float(one["client_accuracy_min"])


def test_somebody_is_always_there_from_the_beginning(tiny):
    names = [f"site-{number:03}" for number in range(4)]
    for share, expected in ((0.0, 0), (0.01, 1), (0.5, 2), (0.99, 3)):
        config = tiny(newcomers={"share": share, "round": 2})
        assert len(newcomers_of(config, names)) == expected
        assert set(newcomers_of(config, names)) <= set(names)


@pytest.mark.slow
def test_a_troubled_run_does_not_depend_on_the_number_of_workers(tiny, tmp_path):
    runs = {
        workers: run_experiment(
            tiny(**{**TROUBLE, "federation": {**TROUBLE["federation"], "workers": workers}}), tmp_path / str(workers)
        )
        for workers in (1, 2)
    }
    assert untimed(tmp_path / "1") == untimed(tmp_path / "2")
    assert runs[1]["teacher"] == runs[2]["teacher"]
    assert (runs[1]["attackers"], runs[1]["stragglers"]) == (runs[2]["attackers"], runs[2]["stragglers"])
