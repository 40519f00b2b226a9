"""The grid attack x rule: its arithmetic, and that every cell is the run that a user would have started."""

import csv
import json

import pytest

from simulations.config import ConfigError
from simulations.engines.cohorts import LIARS, some_clients
from simulations.experiment import run_experiment
from simulations.probes.commands import robustness_of
from simulations.probes.robustness import CASES, RULES, Cell, lost
from strategies.aggregators import AGGREGATORS, build_aggregator

# Its quantile leaves sites hardly a row to vote on.
NOBODY = {"name": "kmeans-ratio", "quantile": 0.99}
# Votes far apart and few rows, so that an attack is seen in two rounds.
SMALL = {
    "strategy": {"preset": "mean"},
    "data": {"partition": "dirichlet", "alpha": 1.0, "min_rows": 10},
    "client": {"models": ["linear", "mlp"]},
}


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    monkeypatch.setattr("simulations.experiment.write_report", lambda folder: folder)


def test_points_lost_are_those_of_the_same_rule_without_an_attack():
    cells = [
        Cell("", 0, "mean", 0.9),
        Cell("", 0, "median", 0.8),
        Cell("random", 3, "mean", 0.85),
        Cell("random", 3, "median", 0.82),
        Cell("nan", 1, "median", None, "round 1: 0 of 4 answers were usable"),
    ]
    points = lost(cells)
    assert points == {
        ("random (3)", "mean"): pytest.approx(5.0),
        ("random (3)", "median"): pytest.approx(-2.0),  # below 0: gained
        ("nan (1)", "median"): None,
    }


def test_nothing_is_lost_to_a_rule_that_failed_without_an_attack():
    assert lost([Cell("", 0, "mean", None, "x"), Cell("random", 3, "mean", 0.5)]) == {("random (3)", "mean"): None}
    assert lost([Cell("random", 3, "mean", 0.5)]) == {("random (3)", "mean"): None}


def test_the_grid_names_rules_and_attacks_that_there_are():
    from simulations.attacks import build_attack

    for told in RULES.values():
        rule = dict(told)
        build_aggregator(rule.pop("name"), rule)
    for name, count in CASES:
        build_attack(name, {})
        assert 1 <= count <= 5  # of 10
    assert len(set(CASES)) == len(CASES)


def cells(out):
    return [json.loads(line) for line in (out / "cells.jsonl").read_text().splitlines()]


RULE_NAMES, ATTACK_NAMES = ("mean", "median"), ("colluding", "uniform")


@pytest.fixture(scope="module")
def grid(tmp_path_factory, tiny, inline_module):
    """Two rules, two attacks, made once; `colluding` is in the grid with two numbers of attackers."""
    out, seen = tmp_path_factory.mktemp("grid") / "out", []
    told = robustness_of(tiny(**SMALL), out, RULE_NAMES, ATTACK_NAMES, on_cell=lambda *done: seen.append(done))
    return told, out, seen


def test_a_grid_has_every_rule_and_attack_once(grid):
    told, out, seen = grid
    # 4 clients: 5 of 10 uniform are 2; 2 and 4 of 10 colluding are 1 and 2
    assert told["attacks"] == ["uniform (2)", "colluding (1)", "colluding (2)"]
    assert told["rules"] == ["mean", "median"]
    assert seen == [(number, 8) for number in range(1, 9)]
    order = [("", 0), ("uniform", 2), ("colluding", 1), ("colluding", 2)]
    assert [(cell["rule"], cell["attack"], cell["attackers"]) for cell in cells(out)] == [
        (rule, *case) for rule in RULE_NAMES for case in order
    ]
    assert all(cell["failed"] == "" and 0.0 <= cell["accuracy"] <= 1.0 for cell in cells(out))


def test_the_files_say_what_is_returned_and_nothing_else_is_left(grid):
    told, out, _ = grid
    assert sorted(path.name for path in out.rglob("*")) == ["cells.jsonl", "robustness.csv", "robustness.svg"]
    with (out / "robustness.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["attack"] for row in rows] == told["attacks"]
    by_case = {(cell["rule"], cell["attack"], cell["attackers"]): cell["accuracy"] for cell in cells(out)}
    for row in rows:
        name, _, count = row["attack"].rstrip(")").partition(" (")
        for rule in RULE_NAMES:
            points = 100 * (by_case[rule, "", 0] - by_case[rule, name, int(count)])
            assert told["lost"][row["attack"]][rule] == pytest.approx(points)
            assert float(row[rule]) == pytest.approx(points, abs=0.0051)
            assert told["accuracy"][rule] == by_case[rule, "", 0]
    assert b"colluding" in (out / "robustness.svg").read_bytes()


def test_the_same_grid_gives_the_same_bytes(grid, tiny, tmp_path):
    robustness_of(tiny(**SMALL), tmp_path / "again", RULE_NAMES, ATTACK_NAMES)
    for name in ("cells.jsonl", "robustness.csv", "robustness.svg"):
        assert (tmp_path / "again" / name).read_bytes() == (grid[1] / name).read_bytes()


@pytest.mark.parametrize("rule", RULE_NAMES)
@pytest.mark.parametrize(("attack", "count"), [("", 0), ("colluding", 2)])
def test_a_cell_is_the_run_that_a_user_would_have_started(rule, attack, count, grid, tiny, tmp_path):
    sections = {**SMALL, "strategy": {"preset": "mean", "aggregator": rule}}
    if attack:
        sections["attack"] = {"name": attack, "clients": count}
    run = run_experiment(tiny(**sections), tmp_path / "out")
    (cell,) = [c for c in cells(grid[1]) if (c["rule"], c["attack"], c["attackers"]) == (rule, attack, count)]
    assert cell["accuracy"] == run["student"]["accuracy"]


def test_a_cell_teaches_its_student_as_the_run_does(inline_module, tiny, tmp_path):
    odd = {**SMALL, "student": {"restart": True, "speaks": True}, "federation": {"participation": 0.75}}
    told = robustness_of(tiny(**odd), tmp_path / "grid", ("median",), ("uniform",))
    run = run_experiment(tiny(**{**odd, "strategy": {"aggregator": "median"}}), tmp_path / "run")
    assert told["accuracy"]["median"] == run["student"]["accuracy"]


def test_an_attack_that_is_refused_at_the_door_costs_the_answer_and_no_more(inline, tiny, tmp_path):
    config = tiny(**SMALL)
    robustness_of(config, tmp_path / "out", ("mean",), ("nan", "scaled-logits"))
    clean, nan, scaled = cells(tmp_path / "out")
    # the run in which the same client refuses every plan
    inline.refusing = frozenset(some_clients([f"site-{index:03}" for index in range(4)], 1, 1, LIARS))
    run = run_experiment(config, tmp_path / "run")
    assert run["failures"]
    assert nan["accuracy"] == scaled["accuracy"] == run["student"]["accuracy"]
    assert nan["accuracy"] != clean["accuracy"]
    assert {cell["failed"] for cell in (clean, nan, scaled)} == {""}


def test_sites_release_what_any_rule_of_the_grid_needs(inline_module, tiny, tmp_path):
    sections = {**SMALL, "client": {"models": ["linear"], "selector": {"name": "kmeans-ratio", "quantile": 0.0}}}
    rules = ("mean", "class-count", "sample-weighted", "confidence")
    told = robustness_of(tiny(**sections), tmp_path / "out", rules, ("uniform",))
    assert told["rules"] == list(rules)
    assert all(cell["failed"] == "" for cell in cells(tmp_path / "out"))
    for rule in rules:
        alone = {**sections, "strategy": {"preset": "mean", "aggregator": rule}}
        run = run_experiment(tiny(**alone), tmp_path / rule)
        assert told["accuracy"][rule] == run["student"]["accuracy"]


def test_every_rule_with_a_student_can_be_a_column(inline_module, tiny, tmp_path):
    sections = {**SMALL, "federation": {"rounds": 1}, "client": {"models": ["linear"], "selector": "certainty"}}
    rules = sorted(set(AGGREGATORS) - {"per-class"})  # which is refused: see below
    told = robustness_of(tiny(**sections), tmp_path / "out", rules, ("nan",))
    assert told["rules"] == rules
    assert min(told["accuracy"].values()) > 0.15  # ten classes


def test_a_round_that_fails_is_said_and_is_no_number(inline_module, tiny, tmp_path):
    # one of four answers is refused, and all four were wanted
    quorum = {**SMALL, "federation": {"quorum": 1.0}}
    told = robustness_of(tiny(**quorum), tmp_path / "out", ("mean",), ("nan",))
    assert told["lost"] == {"nan (1)": {"mean": None}}
    assert "the quorum is 4" in cells(tmp_path / "out")[1]["failed"]


def test_seeds_are_averaged(inline_module, tiny, tmp_path):
    told = robustness_of(tiny(**SMALL), tmp_path / "both", ("mean",), ("uniform",), seeds=2)
    each = [
        robustness_of(tiny(**{**SMALL, "federation": {"seed": seed}}), tmp_path / str(seed), ("mean",), ("uniform",))
        for seed in (1, 2)
    ]
    assert told["accuracy"]["mean"] == pytest.approx(sum(one["accuracy"]["mean"] for one in each) / 2)
    points = [one["lost"]["uniform (2)"]["mean"] for one in each]
    assert told["lost"]["uniform (2)"]["mean"] == pytest.approx(sum(points) / 2)
    assert len(cells(tmp_path / "both")) == 4
    assert sorted(path.name for path in (tmp_path / "both").iterdir()) == [
        *("cells.jsonl", "robustness.csv", "robustness.svg")
    ]


@pytest.mark.parametrize(
    ("rules", "attacks", "sections", "says"),
    [
        (("krum",), (), {}, "unknown rule 'krum'; known: mean, era, .*guarded, .*confidence, .*, and module:Name"),
        (("sample-weighted",), (), {}, "'sample-weighted' needs the clients' scores, and without client.selector"),
        (("clustered",), ("nan",), {"strategy": {"cache_rounds": 3}}, "'clustered' gives clients .* of their own"),
        (("mean", "per-class"), (), {}, "'per-class' trains no student, and .* take another rule"),
        (("mean",), ("nan",), {"strategy": {"preset": "feddistill"}}, "'per-class' trains no student"),
        (
            ("mean", "median"),
            ("nan",),
            {"strategy": {"row_quorum": 4}, "client": {"models": ["linear"], "selector": NOBODY}},
            r"rule 'mean' fails where nobody attacks \(round 1: none of 40 rows .*\): leave it out, or change",
        ),
        ((), ("backdoor",), {}, "unknown attack 'backdoor'; known: class-covariance"),
        (("no_such_module:Rule",), (), {}, "aggregator 'no_such_module:Rule' cannot be imported"),
        (
            (),
            (),
            {"attack": {"name": "lie"}},
            r"attack.name='lie': the grid has attacks of its own; take \[attack\] out",
        ),
        ((), (), {"stragglers": {"share": 0.5}}, "stragglers.share=0.5: nobody is late in the grid; set it to 0"),
        ((), (), {"newcomers": {"share": 0.5}}, "newcomers.share=0.5: nobody joins later in the grid; set it to 0"),
        ((), (), {"strategy": {"uplink": "float16+delta+entropy"}}, "needs votes that stand alone"),
        ((), ("replay",), {"strategy": {"cache_rounds": 3}}, "'replay' sends the last teacher back"),
        ((), ("nan",), {"strategy": {"uplink": "quantised:1"}}, "attack.name='nan': it sends what is no distribution"),
        ((), (), {"federation": {"engine": "deployment"}}, "goes with the in-process engine only"),
    ],
)
def test_what_no_cell_can_be_is_refused_and_leaves_nothing(rules, attacks, sections, says, inline, tiny, tmp_path):
    with pytest.raises(ConfigError, match=says) as refused:
        robustness_of(tiny(**{**SMALL, **sections}), tmp_path / "out", rules, attacks)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_rule_of_ones_own_is_a_column_like_the_others(inline, tiny, tmp_path, monkeypatch):
    (tmp_path / "grids_own_rule.py").write_text("from strategies.aggregators.mean import Mean as Ours\n")
    monkeypatch.chdir(tmp_path)
    told = robustness_of(tiny(**SMALL), tmp_path / "out", ("mean", "grids_own_rule:Ours"), ("uniform",))
    assert told["rules"] == ["mean", "grids_own_rule:Ours"]
    one, other = (told["accuracy"][rule] for rule in told["rules"])
    assert one == other


@pytest.mark.slow
def test_a_grid_over_worker_processes_is_the_same_grid(grid, tiny, tmp_path, monkeypatch):
    from simulations.engines import in_process
    from simulations.probes import commands as studies
    from simulations.probes import robustness

    for module in (robustness, studies):
        monkeypatch.setattr(module, "WorkerPool", in_process.WorkerPool)
    (tmp_path / "workers_own_rule.py").write_text("from strategies.aggregators.median import Median as Ours\n")
    monkeypatch.chdir(tmp_path)
    config = tiny(**{**SMALL, "federation": {"workers": 2}})
    told = robustness_of(config, tmp_path / "out", (*RULE_NAMES, "workers_own_rule:Ours"), ATTACK_NAMES)
    here, there = cells(grid[1]), cells(tmp_path / "out")
    assert there[: len(here)] == here
    assert [told["lost"][name]["workers_own_rule:Ours"] for name in told["attacks"]] == [
        told["lost"][name]["median"] for name in told["attacks"]
    ]
