"""Every published method from its configuration to its folder; with clients that are absent, late or different."""

import csv
import io
import json
import re

import pytest
from rich.console import Console

from consilium.display import RunView, print_comparison
from simulations.config import ConfigError
from simulations.experiment import run_experiment
from simulations.reporting.comparison import findings
from strategies.presets import CAPABILITIES, PRESETS

# What a preset sets for real data sets and a test cannot wait for.
SHORT = {
    "fedmd": {"client": {"public_epochs": 2, "warmup_epochs": 2}},
    "one-shot": {"federation": {"rounds": 1}, "client": {"local_epochs": 10}, "student": {"distil_epochs": 10}},
    "feddistill": {"student": {"distil_epochs": 0}},
    # after two epochs nobody is sure of anything: 1.0 would leave no row
    "selective-fd": {"strategy": {"aggregator": {"ambiguity": 1.9}}},
}
USES = {
    "partial participation": {"federation": {"participation": 0.5}},
    "async": {"federation": {"mode": "async"}, "stragglers": {"share": 0.25, "rounds": 1}},
    "different models": {"client": {"models": ["linear", "mlp"]}},
    "late joiners": {"newcomers": {"share": 0.25, "round": 2}},
}


def merged(*parts):
    sections = {}
    for part in parts:
        for key, value in part.items():
            sections[key] = {**sections.get(key, {}), **value}
    return sections


def configured(tiny, name, *parts):
    return tiny(
        **merged(*parts, SHORT.get(name, {}), {"strategy": {"preset": name, **SHORT.get(name, {}).get("strategy", {})}})
    )


def rows(out):
    with (out / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def no_report(monkeypatch):
    """Its figures take longer than the rounds; the first test below looks at it for every preset."""
    monkeypatch.setattr("simulations.experiment.write_report", lambda folder: folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_runs_to_its_end_with_different_models(name, tiny, inline, tmp_path):
    config, screen = configured(tiny, name, USES["different models"]), io.StringIO()
    console = Console(file=screen, force_terminal=False, width=200)
    with RunView(name, config.federation.rounds, console) as view:
        run = run_experiment(config, tmp_path / "out", view=view)
    assert (run["verdict"], run["reason"]) == ("ok", None)
    assert run["rounds_done"] == config.federation.rounds
    assert {each["model"] for each in run["clients"]["each"]} == {"linear", "mlp"}
    assert [int(row["replies"]) for row in rows(tmp_path / "out")] == [4] * config.federation.rounds
    assert (run["attackers"], run["stragglers"]) == ([], [])
    # ten classes: chance is .1; four sites of 50 IID rows each
    assert run["clients"]["accuracy_mean"] > 0.2
    print_comparison(console, run)
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"<dt>Method</dt><dd>{name}</dd>" in page
    if name == "feddistill":
        assert run["subject"] == "classes"
        assert set(run["student"].values()) == {None}
        assert not (tmp_path / "out" / "student.json").exists()
        assert "This method trains no student" in page
        assert findings(run)[0].startswith("This method trains no student")
        assert "student  –  none: class tables teach the clients only" in re.sub(" {2,}", "  ", screen.getvalue())
        assert all(row["student_accuracy"] == row["teacher_accuracy"] == "" for row in rows(tmp_path / "out"))
        assert json.loads((tmp_path / "out" / "run.json").read_text()) == run
    else:
        assert run["subject"] == "proxy"
        assert run["student"]["accuracy"] > 0.2
        assert run["teacher"]["accuracy"] > 0.2
        assert (tmp_path / "out" / "student.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["partial participation", "async"])
@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_bears_absence_and_delay_or_says_why_not(name, capability, tiny, inline, no_report, tmp_path):
    refused = PRESETS[name].refuses.get(capability)
    if refused is not None:
        with pytest.raises(ConfigError, match=re.escape(f"{name!r} does not go with {capability}: {refused}")):
            configured(tiny, name, USES[capability])
        return
    config = configured(tiny, name, USES[capability])
    run = run_experiment(config, tmp_path / "out")
    assert (run["verdict"], run["reason"]) == ("ok", None)
    replies = [(int(row["replies"]), int(row["late"])) for row in rows(tmp_path / "out")]
    if capability == "async":
        # one of four is a round late: three answer, then three and the first round's fourth
        assert replies == [(3, 0), (4, 1)]
        assert len(run["stragglers"]) == 1
    else:
        assert replies == [(2, 0)] * config.federation.rounds
    assert run["failures"] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_client_that_joins_late_is_asked_and_counted_unless_the_preset_says_why_not(
    name, tiny, inline, no_report, tmp_path
):
    # three rounds: the newcomer votes in the second, and distils from a teacher that it had a part in in the third
    parts = {"federation": {"rounds": 3}}, USES["late joiners"]
    if (refused := PRESETS[name].refuses.get("late joiners")) is not None:
        with pytest.raises(ConfigError, match=re.escape(f"{name!r} does not go with late joiners: {refused}")):
            configured(tiny, name, *parts)
        return
    config = configured(tiny, name, *parts)
    run = run_experiment(config, tmp_path / "out")
    assert (run["verdict"], run["reason"], run["failures"]) == ("ok", None, [])
    assert len(run["newcomers"]) == 1
    assert [int(row["replies"]) for row in rows(tmp_path / "out")] == [3, 4, 4]


def test_what_is_tried_here_is_what_presets_promise():
    assert set(USES) == set(CAPABILITIES)
