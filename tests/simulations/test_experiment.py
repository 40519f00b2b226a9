"""A whole experiment: what it leaves, that it repeats, that it resumes, and how it fails."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from server.checkpoint import CheckpointError
from server.checks import Failure
from server.rounds import Reply
from simulations.config import ConfigError, parse_config
from simulations.experiment import run_experiment

SMALL = {
    "federation": {"clients": 3, "rounds": 3, "rows_per_round": 100, "workers": 2},
    "data": {"name": "digits", "partition": "iid", "proxy": 200, "private": 300, "test": 200},
    "client": {"models": ["linear", "mlp"], "local_epochs": 3, "distil_epochs": 2},
    "student": {"model": "mlp", "distil_epochs": 10},
    "baselines": {"local_only": True, "pooled": True},
}


# The README promises these, and no other.
RUN_KEYS = {
    *(
        "schema",
        "verdict",
        "reason",
        "refused",
        "config",
        "engine",
        "seed",
        "versions",
        "proxy_sha256",
        "classes",
        "subject",
    ),
    *(
        "attackers",
        "stragglers",
        "newcomers",
        "rounds_done",
        "student",
        "teacher",
        "clients",
        "local_only",
        "pooled",
        "fedavg",
    ),
    *("privacy", "failures", "upload_bytes", "download_bytes", "weights_bytes", "seconds", "confusion", "last_round"),
}


def config(**changed):
    return parse_config({**SMALL, **{key: {**SMALL.get(key, {}), **value} for key, value in changed.items()}}, ".")


def untimed(out):
    with (out / "metrics.csv").open() as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "out"
    return run_experiment(config(), out), out


def test_run_json_holds_what_is_promised(finished):
    run, out = finished
    assert run == json.loads((out / "run.json").read_text())
    assert (run["schema"], run["verdict"], run["reason"], run["rounds_done"]) == (1, "ok", None, 3)
    assert set(run) == RUN_KEYS
    assert run["config"] == config().resolved()
    assert (run["subject"], run["attackers"], run["stragglers"]) == ("proxy", [], [])
    assert set(run["versions"]) >= {"python", "torch", "flwr", "consilium"}
    # ten classes, chance is .1; IID sites of 100 rows with a linear model or an mlp
    for accuracy in (
        run["student"]["accuracy"],
        run["teacher"]["accuracy"],
        run["clients"]["accuracy_mean"],
        run["local_only"]["accuracy_mean"],
        run["pooled"]["accuracy"],
    ):
        assert 0.4 < accuracy <= 1
    assert run["clients"]["accuracy_min"] <= run["clients"]["accuracy_mean"]
    assert run["student"]["best"]["accuracy"] >= run["student"]["accuracy"]
    # mlp on 64 inputs: 64*128+128 + 128*128+128 + 128*10+10; linear 650; two of three sites are linear
    mlp, linear = 26_122, 650
    assert run["student"]["parameters"] == mlp
    assert run["weights_bytes"] == 3 * 2 * 4 * (linear + mlp + linear)
    rows = untimed(out)
    assert run["upload_bytes"] == sum(int(row["upload_bytes"]) for row in rows)
    # 100 rows x 10 classes x 4 bytes from 3 clients in 3 rounds, and the fields of 9 messages
    assert 0 < run["upload_bytes"] - 3 * 3 * 4000 < 9 * 200
    assert sum(map(sum, run["confusion"])) == 200
    correct = sum(run["confusion"][i][i] for i in range(10))
    assert correct / 200 == run["student"]["accuracy"]


def test_the_folder_holds_what_is_promised_and_no_private_row(finished):
    _, out = finished
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert names >= {
        "run.json",
        "metrics.csv",
        "report.html",
        "student.safetensors",
        "student.json",
        "student-best.safetensors",
        "student-best.json",
        "checkpoint/server.safetensors",
    }
    assert not any("private" in name or "partial" in name for name in names)


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_no_number(finished, tmp_path, workers):
    _, out = finished
    run = run_experiment(config(federation={"workers": workers}, baselines={"local_only": False}), tmp_path / "out")
    assert untimed(tmp_path / "out") == untimed(out)
    assert run["teacher"]["sha256"] == finished[0]["teacher"]["sha256"]


def test_another_seed_is_another_run(finished, tmp_path):
    run = run_experiment(config(federation={"seed": 2, "rounds": 1}), tmp_path / "out")
    assert run["proxy_sha256"] != finished[0]["proxy_sha256"]


def test_a_run_killed_hard_resumes_to_the_same_metrics(finished, tmp_path):
    # -9 to the coordinator's process while rounds go on; its workers end by themselves.
    out, script = tmp_path / "out", tmp_path / "run.py"
    script.write_text(
        "import json, sys\nfrom pathlib import Path\nfrom simulations.config import parse_config\n"
        "from simulations.experiment import run_experiment\n"
        f"run_experiment(parse_config(json.loads({json.dumps(json.dumps(SMALL))}), '.'), Path(sys.argv[1]))\n"
    )
    root = str(Path(__file__).resolve().parents[2])
    child = subprocess.Popen([sys.executable, str(script), str(out)], env={**os.environ, "PYTHONPATH": root})
    deadline = time.monotonic() + 120
    while not ((out / "metrics.csv").exists() and len(untimed(out)) >= 1) and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (out / "run.json").exists()
    run = run_experiment(config(), out, resume=True)
    assert untimed(out) == untimed(finished[1])
    for key in ("teacher", "student", "clients", "upload_bytes", "local_only", "pooled", "confusion"):
        assert run[key] == finished[0][key]


def test_a_site_that_misses_a_round_degrades_the_run(inline, tmp_path, monkeypatch):
    original = inline.ask

    def ask(self, plans):
        for reply in original(self, plans):
            lost = reply.client == "site-001"
            yield Reply(reply.client, Failure(reply.client, "late")) if lost else reply

    monkeypatch.setattr(inline, "ask", ask)
    run = run_experiment(config(federation={"rounds": 1}), tmp_path / "out")
    assert run["verdict"] == "degraded"
    assert [(failure["round"], failure["client"], failure["reason"]) for failure in run["failures"]] == [
        (1, "site-001", "late")
    ]


def test_a_run_under_quorum_fails_with_names_and_reasons_and_can_be_looked_at(inline, tmp_path):
    run = run_experiment(
        config(client={"lr": 1e30, "models": ["mlp"]}, baselines={"local_only": False, "pooled": False}),
        tmp_path / "out",
    )
    assert run["verdict"] == "failed"
    assert "site-000 (refused_diverged)" in run["reason"]
    assert run["rounds_done"] == 0
    assert "refused_diverged" in (tmp_path / "out" / "report.html").read_text()


def test_a_student_that_diverges_fails_the_run_and_says_what_to_lower(inline, tmp_path):
    run = run_experiment(
        config(student={"lr": 3e38}, baselines={"local_only": False, "pooled": False}), tmp_path / "out"
    )
    assert run["verdict"] == "failed"
    assert "lower student.lr" in run["reason"]


def test_a_bug_in_the_middle_is_raised_and_told_in_run_json(inline, tmp_path):
    honest = inline.ask
    inline.ask = lambda *_: (_ for _ in ()).throw(ZeroDivisionError("by hand"))
    with pytest.raises(ZeroDivisionError):
        run_experiment(config(), tmp_path / "out")
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (run["verdict"], run["reason"]) == ("failed", "ZeroDivisionError: by hand")
    assert not (tmp_path / "out" / "checkpoint" / "study").exists()
    inline.ask = honest
    assert run_experiment(config(), tmp_path / "out", resume=True)["verdict"] == "ok"


def test_a_resumed_run_withdraws_what_the_old_one_said_until_it_is_done(inline, tmp_path, monkeypatch):
    out, small = tmp_path / "out", {"local_only": False, "pooled": False}
    run_experiment(config(federation={"rounds": 1}, baselines=small), out)
    told = []
    original = inline.ask

    def ask(self, plans):
        told.append((out / "run.json").exists())
        return original(self, plans)

    monkeypatch.setattr(inline, "ask", ask)
    assert run_experiment(config(federation={"rounds": 2}, baselines=small), out, resume=True)["rounds_done"] == 2
    assert told == [False]
    assert json.loads((out / "config.json").read_text())["federation"]["rounds"] == 2


def test_two_runs_in_one_folder_are_refused(inline, tmp_path):
    from simulations.prepared import alone

    out = tmp_path / "out"
    run_experiment(config(federation={"rounds": 1}, baselines={"local_only": False, "pooled": False}), out)
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from simulations.prepared import alone\n"
            "with alone(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()",
            str(out),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(ConfigError, match="being written by another run"):
        run_experiment(config(federation={"rounds": 1}), out, resume=True)
    holder.communicate()
    with alone(out):
        pass


def test_a_folder_that_holds_a_run_is_not_overwritten(finished):
    _, out = finished
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="already holds a run: add --resume"):
        run_experiment(config(), out)
    with pytest.raises(ConfigError, match=r"another federation.seed, client.lr"):
        run_experiment(config(federation={"seed": 9}, client={"lr": 0.5}), out, resume=True)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="no empty folder"):
        run_experiment(config(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_nothing_to_resume_is_said(tmp_path):
    with pytest.raises(ConfigError, match="nothing to resume"):
        run_experiment(config(), tmp_path / "out", resume=True)


def test_a_run_whose_checkpoint_is_gone_is_not_begun_anew(inline, tmp_path):
    out = tmp_path / "out"
    run_experiment(config(), out)
    metrics = (out / "metrics.csv").read_bytes()
    (out / "checkpoint" / "server.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"server.safetensors is gone, and .*metrics.csv has finished rounds"):
        run_experiment(config(), out, resume=True)
    assert (out / "metrics.csv").read_bytes() == metrics
    # where nothing was finished it begins at the beginning
    (out / "metrics.csv").write_bytes(metrics.splitlines(keepends=True)[0])
    shutil.rmtree(out / "checkpoint")
    assert run_experiment(config(), out, resume=True)["verdict"] == "ok"


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"strategy": {"row_quorum": 5}}, "strategy.row_quorum=5 must be at most 3, as many clients as"),
        (
            {"strategy": {"row_quorum": 3}, "federation": {"participation": 0.01}},
            "strategy.row_quorum=3 must be at most 2, as many clients as",
        ),
        ({"strategy": {"aggregator": "median-of-means"}}, "unknown aggregator"),
        ({"strategy": {"aggregator": {"name": "era", "temperature": 2.0}}}, r"temperature=2.0 must be in \[0.001, 1\)"),
        ({"strategy": {"uplink": "zip"}}, "unknown codec 'zip'; known: float16, float32"),
        ({"strategy": {"downlink": "float16+delta"}}, r"saves nothing.*write float16\+delta\+entropy"),
        ({"client": {"models": ["vgg"]}}, "unknown model 'vgg'; known: auto, cnn"),
        ({"federation": {"device": "gpu"}}, "device='gpu'"),
        ({"federation": {"engine": "deployment", "timeout_s": 10.0}}, "at least 70"),
        (
            {"data": {"name": "breast-cancer", "private": 0, "proxy": 0.2, "test": 0.2}, "student": {"model": "cnn"}},
            "use 'linear' or 'mlp'",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_and_nothing_is_written(tmp_path, changed, says):
    with pytest.raises(ConfigError, match=says):
        run_experiment(config(**changed), tmp_path / "out")
    assert not (tmp_path / "out").exists()
