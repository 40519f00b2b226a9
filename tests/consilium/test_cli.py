"""The command line: exit codes that tell the truth, sentences instead of tracebacks, help without torch."""

import errno
import json
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from consilium.cli import app
from consilium.exits import Format, exit_codes
from simulations.engines.in_process import WorkerError

RUNNER = CliRunner()
FAST = """
[federation]
clients = 2
rounds = 1
[data]
name = "breast-cancer"
partition = "iid"
[client]
models = ["linear"]
local_epochs = 1
"""


def invoke(*arguments):
    return RUNNER.invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(FAST)
    return path


def test_help_needs_neither_torch_nor_flower():
    script = (
        "import sys\nfrom typer.testing import CliRunner\nfrom consilium.cli import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "heavy = {'torch', 'sklearn', 'flwr', 'pandas', 'numpy', 'flwr_datasets', 'datasets', 'ray', 'matplotlib'}\n"
        "sys.exit(str(sorted(heavy & set(sys.modules)) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr == "\n" or done.returncode == 0, done.stderr


def test_a_run_says_where_its_results_are_and_what_to_try_next(file, tmp_path, monkeypatch):
    arguments = ["run", str(file), "--set", "federation.seed=2", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["consilium", *arguments])
    done = invoke(*arguments)
    assert done.exit_code == 0, done.output
    lines = done.output.strip().splitlines()
    assert f"Results in {tmp_path / 'out'}" in done.output
    assert lines[-1] == f"next: consilium run {file} --set federation.seed=2 --set strategy.aggregator=mean"
    assert "weight averaging" in done.output


def test_json_is_one_object_on_standard_output_and_nothing_else(file, tmp_path):
    done = invoke("run", file, "--out", tmp_path / "out", "--format", "json")
    told = json.loads(done.stdout)
    assert (told["schema"], told["status"], told["code"]) == (1, "ok", 0)
    assert told["data"]["verdict"] == "ok"
    assert told["data"]["student"] == json.loads((tmp_path / "out" / "run.json").read_text())["student"]


def test_an_error_in_json_is_an_object_too(file, tmp_path):
    done = invoke("run", file, "--out", tmp_path / "out", "--format", "json", "--set", "federation.rounds=0")
    told = json.loads(done.stdout)
    assert (told["status"], told["code"], done.exit_code) == ("error", 2, 2)
    assert "federation.rounds = 0" in told["data"]["message"]


@pytest.mark.parametrize(
    ("overrides", "code", "says"),
    [
        (["federation.roundss=3"], 2, "unknown key 'federation.roundss'"),
        (["nonsense"], 2, "section.key=value"),
        (["strategy.preset=fedavg"], 2, "unknown preset"),
        (["strategy.uplink=zip"], 2, "unknown codec 'zip'"),
        (["strategy.aggregator=nowhere:Rule"], 2, "aggregator 'nowhere:Rule' cannot be imported"),
        (["attack.name=backdoor"], 2, "unknown attack 'backdoor'"),
        (["attack.name=lie", "attack.clients=3"], 2, "clients=3 must be at most 2"),
        (["strategy.preset=one-shot", "federation.mode=async"], 2, "'one-shot' does not go with async"),
        (["strategy.uplink=top-k:2"], 2, "k=2 must be below the 2 classes"),
        (["data.name=csv"], 7, "path"),
        (["data.name=csv", "data.path=missing.csv", "data.target=y"], 7, "missing.csv"),
        (["data.proxy=5000"], 7, "5000"),
        (["federation.clients=500"], 7, "500"),
        (["strategy.row_quorum=9"], 2, "strategy.row_quorum=9 must be at most 2"),
        (["client.lr=1e30", 'client.models=["mlp"]'], 3, "refused_diverged"),
    ],
)
def test_every_failure_has_its_exit_code_and_one_sentence(file, tmp_path, overrides, code, says):
    flags = [flag for override in overrides for flag in ("--set", override)]
    done = invoke("run", file, "--out", tmp_path / "out", *flags)
    assert done.exit_code == code, done.output
    assert says in done.output
    assert "Traceback" not in done.output
    assert (tmp_path / "out").exists() == (code == 3)


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (OSError(errno.ENOSPC, "full", "out/metrics.csv"), 9, "out/metrics.csv: no space left on device; finished"),
        (OSError(errno.ENOSPC, "full"), 9, "the disk: no space left on device; finished rounds are safe"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), 9, "Connection refused"),
        (WorkerError("evaluate of a: StateError: broken", ["StateError", "RuntimeError"]), 8, "evaluate of a"),
        (WorkerError("evaluate of a: IsADirectoryError: x", ["IsADirectoryError", "OSError"]), 9, "evaluate of a"),
        (WorkerError("its worker process died twice"), 3, "died twice"),
    ],
)
def test_what_the_machine_or_a_worker_met_has_its_code(error, code, says, capsys):
    with pytest.raises(typer.Exit) as ended, exit_codes(Format.text):
        raise error
    told = capsys.readouterr().err
    assert (ended.value.exit_code, says in told, "Traceback" in told) == (code, True, False)
    assert ("--resume" in told) == (getattr(error, "errno", None) == errno.ENOSPC)


def test_a_failed_run_never_exits_with_0_even_in_json(file, tmp_path):
    done = invoke(
        "run",
        file,
        "--out",
        tmp_path / "out",
        "--set",
        "client.lr=1e30",
        "--set",
        'client.models=["mlp"]',
        "--format",
        "json",
    )
    assert done.exit_code == json.loads(done.stdout)["code"] == 3


PRIVATE = "[privacy]\nepsilon = 8.0\n"


@pytest.mark.parametrize("mechanism", ['{ name = "client-sum", clip = 2.0 }', '{ name = "dp-sgd" }'])
def test_a_run_whose_budget_is_spent_exits_5_and_leads_to_the_budget(file, inline, tmp_path, monkeypatch, mechanism):
    file.write_text(f"{FAST}{PRIVATE}mechanism = {mechanism}\nledgers = '{tmp_path / 'kept'}'\n")
    assert invoke("run", file, "--out", tmp_path / "one").exit_code == 0
    again = ("run", file, "--out", tmp_path / "two", "--set", "federation.rows_per_round=50")
    monkeypatch.setattr("sys.argv", ["consilium", *map(str, again)])
    told = invoke(*again)
    assert told.exit_code == 5
    said = " ".join(told.output.split())
    assert "another budget or policy is its owner's decision, and --resume does not help" in said
    assert f"next: consilium budget show {tmp_path / 'two'}" in said
    told = invoke(*again, "--resume", "--format", "json")
    assert told.exit_code == json.loads(told.stdout)["code"] == 5


@pytest.mark.parametrize("mechanism", ['{ name = "client-sum", clip = 2.0 }', '{ name = "dp-sgd" }'])
def test_another_promise_for_the_same_ledger_is_a_wrong_configuration(file, inline, tmp_path, mechanism):
    file.write_text(f"{FAST}{PRIVATE}mechanism = {mechanism}\nledgers = '{tmp_path / 'kept'}'\n")
    assert invoke("run", file, "--out", tmp_path / "one").exit_code == 0
    done = invoke("run", file, "--out", tmp_path / "two", "--set", "privacy.epsilon=4.0")
    assert done.exit_code == 2
    assert "epsilon=8.0 and is asked for epsilon=4.0" in done.stderr
    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize(
    ("rows", "flags", "code", "says"),
    [
        ("x,y\n1,a\n2,b\n", ["data.target=z"], 7, "'z'"),
        ("x,y\n" + "1,a\n2,b\n" * 40 + "oops,a\n", ["data.target=y"], 7, "text"),
        ("x,y\n" + "1,a\n" * 40, ["data.target=y"], 7, "at least 2"),
    ],
)
def test_bad_tables_are_data_errors(file, tmp_path, rows, flags, code, says):
    (tmp_path / "own.csv").write_text(rows)
    sets = [part for flag in ["data.name=csv", "data.path=own.csv", *flags] for part in ("--set", flag)]
    done = invoke("run", file, "--out", tmp_path / "out", *sets)
    assert done.exit_code == code, done.output
    assert says in done.output
    assert not (tmp_path / "out").exists()


@pytest.fixture
def asked(monkeypatch):
    """Configurations that would have been run."""
    import simulations.experiment

    seen = []

    def run(config, out, **_):
        seen.append(config)
        return {"verdict": "ok", "reason": None, "failures": []}

    monkeypatch.setattr(simulations.experiment, "run_experiment", run)
    return seen


@pytest.mark.parametrize(
    ("command", "preset"),
    [
        (("run",), "ds-fl"),
        (("run", "--engine", "flower-simulation"), "ds-fl"),
        (("run", "--engine", "deployment"), "guarded"),
        (("deploy", "local"), "guarded"),
        (("deploy", "local", "--set", "strategy.preset=mean"), "mean"),
    ],
)
def test_a_deployment_is_guarded_unless_a_method_is_named(file, asked, command, preset):
    words = [word for word in command if word in ("run", "deploy", "local")]
    done = invoke(*words, file, *command[len(words) :])
    assert done.exit_code == 0, done.output
    assert [config.strategy.preset for config in asked] == [preset]


@pytest.mark.parametrize(
    ("overrides", "change"),
    [
        ((), "strategy.aggregator=mean"),
        (("strategy.preset=mean",), "strategy.aggregator=era"),
        (("strategy.preset=feddistill",), "strategy.preset=ds-fl"),
        (("attack.name=lie",), "strategy.preset=guarded"),
        # a preset does not change a rule that the command names
        (("attack.name=lie", "strategy.aggregator=median"), "strategy.aggregator=mean"),
        (("attack.name=lie", "strategy.preset=guarded"), "strategy.aggregator=mean"),
    ],
)
def test_what_to_try_next_is_another_method(file, asked, monkeypatch, overrides, change):
    arguments = ["run", str(file), *(word for override in overrides for word in ("--set", override))]
    monkeypatch.setattr(sys, "argv", ["consilium", *arguments])
    lines = invoke(*arguments).output.strip().splitlines()
    assert lines[-1] == " ".join(["next: consilium", *arguments, "--set", change])


def test_an_attack_is_warned_of_in_the_terminal(file, inline, tmp_path):
    done = invoke("run", file, "--set", "attack.name=uniform", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    (liar,) = json.loads((tmp_path / "out" / "run.json").read_text())["attackers"]
    assert f"An attack was simulated: 1 of 2 clients ({liar}) sent 'uniform' votes." in done.output


def test_resume_wants_the_folder(file):
    done = invoke("run", file, "--resume")
    assert done.exit_code == 2
    assert "--resume needs --out" in done.output


def test_strict_turns_degraded_into_4(file, tmp_path, monkeypatch):
    import simulations.experiment

    degraded = {
        "verdict": "degraded",
        "reason": None,
        "failures": [{"round": 1, "client": "c", "reason": "late", "detail": ""}],
    }
    real = simulations.experiment.run_experiment
    monkeypatch.setattr(simulations.experiment, "run_experiment", lambda *a, **k: {**real(*a, **k), **degraded})
    assert invoke("run", file, "--out", tmp_path / "a").exit_code == 0
    assert invoke("run", file, "--out", tmp_path / "b", "--strict").exit_code == 4


def test_new_makes_a_project_that_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert invoke("new", "tabular", "study").exit_code == 0
    done = invoke("run", "study/config.toml", "--out", "out", "--set", "federation.rounds=1")
    assert done.exit_code == 0, done.output
    refused = invoke("new", "tabular", "study")
    assert refused.exit_code == 2
    assert "study" in refused.output


def test_an_unknown_command_is_usage():
    assert invoke("fly").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "a b.toml", "--set", "x.y=1"], "consilium run 'a b.toml' --set x.y=1 --out runs/a-1 --resume"),
        (["run", "a.toml", "--out", "o", "--resume"], "consilium run a.toml --out runs/a-1 --resume"),
        (
            ["deploy", "local", "a.toml", "--nodes", "2"],
            "consilium deploy local a.toml --nodes 2 --out runs/a-1 --resume",
        ),
    ],
)
def test_after_an_interruption_the_same_command_resumes(arguments, expected):
    from pathlib import Path

    from consilium.cli import _resume_command

    assert _resume_command(arguments, Path("runs/a-1")) == expected
