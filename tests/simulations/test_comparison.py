"""Laws of the comparison's rows."""

from __future__ import annotations

from typing import Any

import pytest

from simulations.reporting.comparison import attack_warning, comparison_rows, findings, human_bytes, percent, times


def _run(**changes: Any) -> dict[str, Any]:
    run: dict[str, Any] = {
        "student": {"accuracy": 0.8, "best": {"round": 4, "accuracy": 0.85}},
        "teacher": {"accuracy": 0.9},
        "clients": {"accuracy_mean": 0.75, "accuracy_min": 0.6},
        "local_only": {"accuracy_mean": 0.5, "accuracy_min": 0.25},
        "pooled": {"accuracy": 0.95},
        "upload_bytes": 3_000,
        "download_bytes": 1_000,
        "weights_bytes": 50_000,
        "confusion": [[40, 10], [10, 40]],
    }
    return {**run, **changes}


def _row(run: dict[str, Any], start: str) -> tuple[str, str]:
    (row,) = [row for row in comparison_rows(run) if row.name.startswith(start)]
    return row.value, row.note


def test_every_score_stands_in_its_own_row() -> None:
    assert _row(_run(), "each client alone")[0] == "50.0 %, worst 25.0 %"
    assert _row(_run(), "clients after")[0] == "75.0 %, worst 60.0 %"
    assert _row(_run(), "ensemble")[0] == "90.0 %"
    assert _row(_run(), "student (last")[0] == "80.0 %"
    assert _row(_run(), "student (best")[0] == "85.0 %"
    assert _row(_run(), "pooled")[0] == "95.0 %"


def test_the_ratio_of_bytes_counts_both_directions() -> None:
    # up 3 kB + down 1 kB = 4 kB; 50 / 4 = 12.5
    value, note = _row(_run(), "all bytes")
    assert value == "4.0 kB / 50.0 kB"
    assert note == "weight averaging would send 12.5 times as much"


def test_votes_and_teachers_are_told_apart() -> None:
    value, note = _row(_run(), "bytes up")
    assert value == "3.0 kB / 1.0 kB"
    assert note == "votes / teachers; all clients and rounds"


def _tables(**changes: Any) -> dict[str, Any]:
    """A run of class tables: no student, no teacher on proxy rows."""
    nobody: dict[str, Any] = {"accuracy": None, "best": None}
    return _run(subject="classes", student=nobody, teacher={"accuracy": None}, confusion=None, **changes)


def test_a_method_without_a_student_says_so_and_compares_the_clients() -> None:
    names = [row.name for row in comparison_rows(_tables())]
    assert _row(_tables(), "student")[1].startswith("none: class tables teach the clients only")
    assert "ensemble teacher" not in names
    said = findings(_tables())
    assert said[0] == "This method trains no student: the clients' own models are its result."
    assert said[1] == "The average client is 25.0 points above itself trained alone."  # .75 - .50
    assert len(said) == 2


def test_a_method_without_a_student_that_did_not_help_is_said() -> None:
    alone = {"accuracy_mean": 0.75, "accuracy_min": 0.6}
    assert findings(_tables(local_only=alone))[1:] == [
        "The average client is level with itself trained alone.",
        "By this measure federation did not help here.",
    ]
    assert "does not show whether federation helped" in findings(_tables(local_only=None))[1]


def test_an_attack_is_warned_of_with_who_and_what() -> None:
    assert attack_warning(_run()) is None
    assert attack_warning(_run(config={"attack": None})) is None
    clients = {"accuracy_mean": 0.5, "each": [{"client": f"site-{i:03}"} for i in range(30)]}
    attacked = {"config": {"attack": {"name": "lie", "clients": 2}}, "clients": clients}
    assert attack_warning(_run(**attacked, attackers=["site-001", "site-004"])) == (
        "An attack was simulated: 2 of 30 clients (site-001, site-004) sent 'lie' votes. "
        "These numbers are a test of the rule."
    )
    many = attack_warning(_run(**attacked, attackers=[f"site-{i:03}" for i in range(12)]))
    assert many is not None
    assert "12 of 30 clients (site-000," in many
    assert "site-009 and others)" in many
    # a run that failed before anybody was drawn
    assert attack_warning({"config": {"attack": {"name": "lie"}}}) == (
        "An attack was simulated: Some clients sent 'lie' votes. These numbers are a test of the rule."
    )


def test_cheaper_weight_averaging_is_said() -> None:
    # 1 kB / 4 kB = 0.25
    assert "would send less: 0.25 times" in _row(_run(weights_bytes=1_000), "all bytes")[1]


@pytest.mark.parametrize("changes", [{"weights_bytes": 0}, {"upload_bytes": 0, "download_bytes": 0}])
def test_no_ratio_is_made_of_nothing(changes: dict[str, int]) -> None:
    assert "times" not in _row(_run(**changes), "all bytes")[1]


def test_a_best_round_is_called_optimistic() -> None:
    assert _row(_run(), "student (best")[1] == "round 4; chosen by accuracy on the test rows, so it is optimistic"


def test_what_was_not_run_names_the_key_that_runs_it() -> None:
    run = _run(local_only=None, pooled=None)
    assert _row(run, "each client alone") == ("–", "not run: set baselines.local_only = true")
    assert _row(run, "pooled") == ("–", "not run: set baselines.pooled = true")
    assert "does not show whether federation helped" in findings(run)[0]


def test_an_empty_run_has_every_row_and_no_number() -> None:
    values = [row.value for row in comparison_rows({})]
    assert values == ["–"] * 6 + ["0 B / 0 B"] * 2
    assert findings({}) == ["There is no trained student, so there is nothing to compare."]


def test_a_bound_that_is_passed_is_not_called_one() -> None:
    assert _row(_run(), "pooled")[1] == "all private rows in one place"
    assert "no bound here" in _row(_run(pooled={"accuracy": 0.79}), "pooled")[1]


def test_differences_are_said_with_their_direction() -> None:
    said = " ".join(findings(_run()))
    assert "student is 30.0 points above the average client trained alone" in said  # .80 - .50
    assert "average client is 25.0 points above itself" in said  # .75 - .50
    assert "student is 15.0 points below the same model on all data" in said  # .80 - .95


@pytest.mark.parametrize("alone", [0.8, 0.9])
def test_a_federation_that_did_not_help_is_said(alone: float) -> None:
    said = " ".join(findings(_run(local_only={"accuracy_mean": alone, "accuracy_min": alone})))
    assert "federation did not help" in said


def test_the_spread_of_an_accuracy_is_binomial() -> None:
    # 100 rows at .8: 1.96 * sqrt(.8 * .2 / 100) = 7.84 points
    assert "The test has 100 rows" in findings(_run())[-1]
    assert "±7.8 points" in findings(_run())[-1]


def test_a_perfect_score_is_not_called_certain() -> None:
    assert "±1.0 points" in findings(_run(student={"accuracy": 1.0}))[-1]  # one of 100 rows


def test_numbers_change_units_where_they_would_round_up() -> None:
    assert [human_bytes(n) for n in (0, 999.4, 999.6, 1e6, 999_950_000, 5e12)] == [
        *("0 B", "999 B", "1.0 kB", "1.0 MB", "1.0 GB", "5.0 TB")
    ]
    assert percent(float("nan")) == "–"
    assert [times(ratio) for ratio in (99.96, 100.0, 365.6, 12_345.0)] == ["100", "100", "366", "12,300"]
