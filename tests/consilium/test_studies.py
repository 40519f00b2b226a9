"""Commands around a run: what they print, the exit codes that tell the truth, and that a refusal leaves nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from consilium.cli import app
from strategies.contract import LAWS
from strategies.presets import PRESETS

RUNNER = CliRunner()
TINY = """
[federation]
clients = 3
rounds = 2
rows_per_round = 30
workers = 1
keep_votes = true
device = "cpu"
[data]
name = "digits"
partition = "iid"
proxy = 50
private = 150
test = 80
[strategy]
preset = "mean"
[client]
models = ["linear"]
batch_size = 10
local_epochs = 2
distil_epochs = 0
[student]
model = "linear"
batch_size = 10
distil_epochs = 2
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A study in a folder that is the working directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "study.toml"
    path.write_text(TINY)
    return path


def invoke(*arguments):
    return RUNNER.invoke(app, [str(argument) for argument in arguments])


def next_line(done):
    return done.output.strip().splitlines()[-1]


def assert_refused(done, code, says):
    """One sentence, no traceback, the code that goes with it."""
    assert done.exit_code == code, done.output
    assert says in done.output
    assert "Traceback" not in done.output
    assert len([line for line in done.output.splitlines() if line.startswith("error: ")]) == 1


# ---- presets -------------------------------------------------------------------------------------------------------
def test_every_preset_is_listed_with_its_source_and_what_it_refuses():
    done = invoke("presets")
    assert done.exit_code == 0
    text = " ".join(done.output.split())
    for name, preset in PRESETS.items():
        assert f"{name} {preset.source}" in text
        assert " ".join(preset.idea.split()) in text
        for capability, why in preset.refuses.items():
            assert f"not with {capability}: {why}" in text
    assert next_line(done) == "next: consilium demo --set strategy.preset=scarlet"


def test_what_a_preset_sets_can_be_typed_as_it_is_printed(tmp_path):
    from simulations.config import load_config

    (tmp_path / "c.toml").write_text("")
    for name, preset in PRESETS.items():
        told = json.loads(invoke("presets", name, "--format", "json").stdout)["data"][name]
        assert (told["idea"], told["refuses"]) == (preset.idea, dict(preset.refuses))
        lines = [line.strip() for line in invoke("presets", name).output.splitlines()]
        typed = [line.replace(" = ", "=", 1) for line in lines if line.partition(" = ")[0] in told["sets"]]
        assert len(typed) == len(told["sets"])
        by_hand = load_config(tmp_path / "c.toml", typed)
        by_name = load_config(tmp_path / "c.toml", [f"strategy.preset={name}"])
        assert by_hand.client == by_name.client
        assert by_hand.student == by_name.student
        assert by_hand.federation == by_name.federation
        assert by_hand.strategy == by_name.strategy.model_copy(update={"preset": "ds-fl"})


def test_an_unknown_preset_is_refused_with_the_known_ones():
    assert_refused(invoke("presets", "fedsgd"), 2, "unknown preset 'fedsgd'; known: cfd, comet")
    told = json.loads(invoke("presets", "fedsgd", "--format", "json").stdout)
    assert (told["status"], told["code"]) == ("error", 2)
    assert "fedsgd" in told["data"]["message"]


# ---- proxy-fit -----------------------------------------------------------------------------------------------------
def test_proxy_fit_ends_with_a_verdict_and_the_run_that_was_asked_about(file, inline):
    done = invoke("proxy-fit", file, "--set", "client.local_epochs=8", "--out", "fit")
    assert done.exit_code == 0, done.output
    lines = done.output.strip().splitlines()
    assert any(line.startswith("verdict: ") for line in lines)
    assert sum(line.strip().startswith(("suitable:", "doubtful:", "unsuitable:")) for line in lines) == 5
    assert all(f"site-00{index}" in done.output for index in range(3))
    assert next_line(done) == f"next: consilium run {file} --set client.local_epochs=8"
    told = json.loads(invoke("proxy-fit", file, "--set", "client.local_epochs=8", "--format", "json").stdout)
    assert told["data"].pop("out") == "runs/study-proxy-fit-1"
    assert told["data"] == json.loads(Path("fit/proxy-fit.json").read_text())
    (ensemble,) = [line.split() for line in lines if line.strip().startswith("ensemble ")]
    assert ensemble[-2:] == [f"{told['data'][key]:.2f}" for key in ("entropy_nats", "test_entropy_nats")]


@pytest.mark.parametrize(
    ("override", "code", "says"),
    [
        ("data.proxy=5000", 7, "5000"),
        ("client.selector=nearest", 2, "unknown selector 'nearest'"),
        ("strategy.preset=feddistill", 2, "federation.keep_votes=true keeps votes for `consilium forget`"),
        ("client.lr=1e30", 3, "Diverged"),
    ],
)
def test_a_proxy_fit_that_cannot_be_leaves_nothing(file, inline, override, code, says):
    models = ["--set", 'client.models=["mlp"]']
    assert_refused(invoke("proxy-fit", file, "--set", override, *models, "--out", "fit"), code, says)
    assert not Path("fit").exists()


# ---- forget --------------------------------------------------------------------------------------------------------
@pytest.fixture
def run(file, inline, monkeypatch):
    monkeypatch.setattr("simulations.experiment.write_report", lambda folder: folder)
    assert invoke("run", file, "--out", "run").exit_code == 0
    return Path("run")


def test_forgetting_says_what_it_did_and_how_to_use_what_is_left(run):
    done = invoke("forget", run, "--client", "site-001")
    assert done.exit_code == 0, done.output
    assert "This equals a run in which site-001 had never answered." in done.output
    assert "student with site-001: " in done.output
    assert "run/votes still holds the votes of site-001; " in done.output
    command = next_line(done).removeprefix("next: ")
    assert command == (
        """python -c 'import consilium; print(consilium.load_student("run/without-site-001").classes)'"""
    )
    arguments = ("--client", "site-001", "--delete-votes", "--out", "again", "--format", "json")
    told = json.loads(invoke("forget", run, *arguments).stdout)
    assert (told["code"], told["data"]["clients"], told["data"]["exact"]) == (0, ["site-001"], True)
    assert told["data"]["out"] == "again"
    assert told["data"]["remains"].startswith("run/votes holds no vote of site-001 any more.")
    assert not list(run.rglob("client-site-001.safetensors"))


def test_several_clients_are_forgotten_into_one_folder(run):
    done = invoke("forget", run, "--client", "site-002", "--client", "site-001", "--client", "site-002")
    # three clients: a row needs max(2, ceil(0.3 * 3)) = 2 voters, and one is left
    assert_refused(done, 8, "without 'site-001', 'site-002' no row of round 1 has the 2 voters that it needs")
    assert not (run / "votes" / "forgotten.json").exists()
    told = json.loads(invoke("forget", run, *(("--client", "site-001") * 2), "--format", "json").stdout)
    assert told["data"]["out"] == "run/without-site-001"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("nowhere", "--client", "site-001"), 2, "nowhere holds no run"),
        (("run", "--client", "site-009"), 2, "no client is called 'site-009'"),
        (("run", "--client", "site-001", "--client", "site-009"), 2, "no client is called 'site-009'"),
        (("run", "--client", "[/bold]"), 2, "no client is called '[/bold]'"),
        (("run", "--client", "site-001", "--out", "used"), 2, "used is no empty folder"),
    ],
)
def test_what_cannot_be_forgotten_is_refused_and_nothing_is_written(run, arguments, code, says):
    Path("used").mkdir()
    Path("used/thesis.txt").write_text("mine")
    before = sorted(Path().rglob("*"))
    assert_refused(invoke("forget", *arguments), code, says)
    assert sorted(Path().rglob("*")) == before


def test_stray_files_and_lost_counts_are_told_in_one_sentence(run):
    (run / "votes" / "round-old").mkdir()
    assert_refused(invoke("forget", run, "--client", "site-001"), 8, "round-old is no folder of a round's votes")
    (run / "votes" / "round-old").rmdir()
    (run / "metrics.csv").unlink()
    assert_refused(invoke("forget", run, "--client", "site-001"), 2, "metrics.csv is not there")


def test_votes_that_were_not_kept_are_a_state_that_is_missing(file, inline, monkeypatch):
    monkeypatch.setattr("simulations.experiment.write_report", lambda folder: folder)
    assert invoke("run", file, "--out", "run", "--set", "federation.keep_votes=false").exit_code == 0
    assert_refused(invoke("forget", "run", "--client", "site-001"), 8, "--set federation.keep_votes=true")
    assert not Path("run/without-site-001").exists()


# ---- rules of one's own --------------------------------------------------------------------------------------------
BORDA = '''
"""Borda count: a vote gives each class as many points as classes that it ranks below."""

from dataclasses import dataclass

import numpy as np

from strategies.aggregator import Outcome
from strategies.aggregators.pooling import log_of, pool
from strategies.soft_labels import SoftLabels


@dataclass(frozen=True)
class Borda:
    floor: float = 0.01

    def __post_init__(self):
        if not self.floor > 0.0:
            raise ValueError(f"floor={self.floor} must be above 0: it is what the last class keeps")

    def aggregate(self, state, ballot, reports):
        def points(votes):
            ranks = votes.log_probs.argsort(axis=1).argsort(axis=1)
            return (ranks + self.floor) / (ranks + self.floor).sum(axis=1, keepdims=True)

        pooled = pool(ballot, reports, points, 2.0)
        return Outcome(SoftLabels.from_logits(pooled.rows, log_of(pooled.mean)), state)


@dataclass(frozen=True)
class Last(Borda):
    """The order of arrival decides."""

    def aggregate(self, state, ballot, reports):
        last = list(reports)[-1]
        return Outcome(last.soft_labels, state)


@dataclass(frozen=True)
class Failing(Borda):
    def __post_init__(self):
        raise RuntimeError("no licence")


class Bare:
    def __init__(self, weight):
        self.weight = weight

    def aggregate(self, state, ballot, reports):
        return None
'''


@pytest.fixture
def own(file):
    """A module of rules beside the study, of another name in every test: modules are imported once."""
    own.count = getattr(own, "count", 0) + 1
    name = f"rules_of_test_{own.count}"
    Path(f"{name}.py").write_text(BORDA)
    return name


def test_a_rule_that_keeps_the_laws_passes(own):
    done = invoke("check-rule", f"{own}:Borda", "--set", "floor=0.5")
    assert done.exit_code == 0, done.output
    assert "broke none of the laws of all rules:\n" in done.output
    assert "\n  the order of reports changes no bit\n" in done.output
    assert next_line(done) == (
        f"next: consilium demo --set strategy.aggregator={own}:Borda --set strategy.aggregator.floor=0.5"
    )
    told = json.loads(invoke("check-rule", "median", "--format", "json").stdout)
    assert told["code"] == 0
    assert told["data"] == {"rule": "median", "laws": list(LAWS), "broken": []}
    assert "equal votes are confirmed" in LAWS


def test_a_rule_that_breaks_a_law_is_told_which(own):
    done = invoke("check-rule", f"{own}:Last")
    assert_refused(done, 2, f"{own}:Last breaks ")
    assert "the order of reports changes no bit" in done.output
    told = json.loads(invoke("check-rule", f"{own}:Last", "--format", "json").stdout)
    assert (told["status"], told["code"]) == ("error", 2)


@pytest.mark.parametrize(
    ("rule", "settings", "says"),
    [
        ("krum", (), "unknown aggregator 'krum'; known: class-count"),
        ("nowhere:Rule", (), "aggregator 'nowhere:Rule' cannot be imported (ModuleNotFoundError"),
        ("{own}:Condorcet", (), "cannot be imported (AttributeError"),
        ("{own}:BORDA", (), "cannot be imported (AttributeError"),
        ("{own}:np", (), "is no class"),
        ("broken_module:Rule", (), "aggregator 'broken_module:Rule' cannot be imported (SyntaxError"),
        ("raising_module:Rule", (), "cannot be imported (ZeroDivisionError"),
        ("{own}:Bare", (), "make it a frozen dataclass"),
        ("{own}:Failing", (), ":Failing' cannot be made (RuntimeError: no licence)"),
        ("{own}:Borda", ("floor=0",), "floor=0 must be above 0"),
        ("{own}:Borda", ("ceiling=1",), "has no setting 'ceiling'; known: floor"),
        ("{own}:Borda", ("floor",), "--set 'floor' must read key=value"),
        ("era", ("temperature=nan",), "temperature='nan' must be a number"),
    ],
)
def test_a_rule_that_there_is_not_is_refused(own, rule, settings, says):
    Path("broken_module.py").write_text("class Rule(:\n")
    Path("raising_module.py").write_text("1 / 0\n")
    flags = [word for setting in settings for word in ("--set", setting)]
    assert_refused(invoke("check-rule", rule.format(own=own), *flags), 2, says)


def test_a_module_of_the_working_directory_hides_no_other(own):
    # a user's folder may hold anything; `queue` is one of Python's own
    Path("queue.py").write_text("raise RuntimeError('foreign code ran')\n")
    script = f"from consilium.cli import app; app(['check-rule', '{own}:Borda'])"
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_console_script_finds_a_rule_in_the_working_directory(own, tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    script = Path(sys.executable).parent / "consilium"
    rule = f"strategy.aggregator={own}:Borda"

    command = [
        str(script),
        "run",
        "study.toml",
        "--set",
        rule,
        "--set",
        "strategy.aggregator.floor=0.5",
        "--out",
        "out",
    ]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "out" / "run.json").read_text())
    assert told["config"]["strategy"]["aggregator"] == {"name": f"{own}:Borda", "floor": 0.5}
    assert told["student"]["accuracy"] > 0.2  # ten classes


# ---- bench robustness ----------------------------------------------------------------------------------------------
def test_the_grid_is_a_table_and_says_where_its_picture_is(file, inline):
    done = RUNNER.invoke(
        app,
        ["bench", "robustness", str(file), "--rules", "mean, median", "--attacks", "nan,uniform", "--out", "grid"],
        env={"COLUMNS": "200"},
    )
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    (heading,) = [line for line in lines if "points lost to" in line]
    assert heading.split()[-2:] == ["mean", "median"]
    (clean,) = [line for line in lines if "nobody: accuracy" in line]
    assert clean.count("%") == 2
    assert any(line.strip().startswith("uniform (2)") for line in lines)  # five of ten are two of three
    assert "open grid/robustness.svg" in done.output
    assert next_line(done) == f"next: consilium run {file} --set strategy.preset=guarded"
    told = json.loads(
        invoke("bench", "robustness", file, "--rules", "mean", "--attacks", "uniform", "--format", "json").stdout
    )
    assert told["data"]["rules"] == ["mean"]
    assert told["data"]["out"] == "runs/robustness-1"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--rules", "krum"), "unknown rule 'krum'; known: mean, era"),
        (("--attacks", "backdoor"), "unknown attack 'backdoor'"),
        (("--set", "attack.name=lie"), "the grid has attacks of its own"),
        (("--seeds", "0"), "Invalid value"),
    ],
)
def test_a_grid_that_cannot_be_is_refused_and_leaves_nothing(file, inline, flags, says):
    done = invoke("bench", "robustness", file, *flags, "--out", "grid")
    assert done.exit_code == 2, done.output
    assert says in done.output
    assert not Path("grid").exists()


def test_the_grids_own_study_is_one_that_can_be_run():
    import simulations
    from simulations.config import load_config
    from simulations.preparation import check_config

    config = load_config(Path(simulations.__file__).parent / "configs" / "robustness.toml")
    check_config(config)
    assert (config.federation.clients, config.data.alpha) == (10, 1.0)
