"""`consilium sweep`: what it prints, how it ends, and that its last line is the next command."""

import csv
import io
import json
import re
import shlex
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from consilium.cli import app
from consilium.sweeps import SweepView
from simulations.sweeps.grid import axes_of, points_of
from simulations.sweeps.outcomes import Outcome
from simulations.sweeps.runner import run_point

RUNNER = CliRunner()
TINY = """
[federation]
clients = 3
rounds = 2
rows_per_round = 30
workers = 1
device = "cpu"
[data]
name = "digits"
partition = "iid"
proxy = 50
private = 90
test = 60
[client]
models = ["linear"]
batch_size = 10
local_epochs = 1
distil_epochs = 1
[student]
model = "linear"
batch_size = 10
distil_epochs = 2
"""


class Jobs:
    """simulations.sweeps.pool.run_jobs in this very process; Ctrl-C comes before the point `cut`."""

    cut = ""

    def __call__(self, jobs, parallel):
        for job in jobs:
            if job["out"].endswith(f"/{self.cut}"):
                raise KeyboardInterrupt
            news = []
            run_point(job, news.append)
            for told in news:
                yield job, told


@pytest.fixture
def jobs(tmp_path, monkeypatch, inline):
    """A study in the working directory, and points without processes."""
    monkeypatch.chdir(tmp_path)
    Path("study.toml").write_text(TINY)
    found = Jobs()
    monkeypatch.setattr("simulations.sweep.run_jobs", found)
    monkeypatch.setattr("simulations.experiment.write_report", lambda folder: folder)
    return found


def sweep(*arguments):
    return RUNNER.invoke(app, ["sweep", "study.toml", *arguments])


def next_line(done):
    return done.stdout.strip().splitlines()[-1]


def table(name):
    with open(f"runs/study-sweep-1/{name}", newline="") as file:
        return list(csv.DictReader(file))


def assert_refused(done, code, says):
    """One sentence, no traceback, the code that goes with it."""
    assert done.exit_code == code, done.output
    assert says in done.output
    assert "Traceback" not in done.output
    assert len([line for line in done.output.splitlines() if line.startswith("error: ")]) == 1


def test_a_sweep_says_where_it_is_and_ends_with_a_table_and_the_next_command(jobs):
    done = sweep("--grid", "client.local_epochs=1,2", "--grid", "seed=1,2", "--set", "client.lr=0.2", "--parallel", "1")
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0] == "4 points; 1 at once"
    pattern = r"{}/4  local_epochs={} seed={}:  ok  student \d+\.\d %  teacher \d+\.\d %  clients \d+\.\d %"
    for number, (epochs, seed) in enumerate([(1, 1), (1, 2), (2, 1), (2, 2)], start=1):
        left = r"  about \d+ s left" if number < 4 else ""
        assert re.fullmatch(pattern.format(number, epochs, seed) + left, lines[number])
    for epochs in ("1", "2"):
        (row,) = [line.split() for line in lines if re.match(rf"\s*{epochs}\s+2\s", line)]
        (student,) = [
            told
            for told in table("summary.csv")
            if (told["client.local_epochs"], told["measure"]) == (epochs, "student_accuracy")
        ]
        assert row[2:6] == [f"{100 * float(student['mean']):.1f}", "%", "±", f"{100 * float(student['std']):.1f}"]
    assert "Results in runs/study-sweep-1: open runs/study-sweep-1/report.html" in lines
    assert next_line(done) == (
        "next: consilium sweep study.toml --grid client.local_epochs=1,2 --grid federation.seed=1,2,3,4 "
        "--set client.lr=0.2 --parallel 1 --out runs/study-sweep-1 --resume"
    )
    assert {path.name for path in Path("runs/study-sweep-1").iterdir()} == {
        *("sweep.json", "sweep.csv", "summary.csv", "report.html", "accuracy.svg"),
        *("points", "logs", "checkpoint.lock"),
    }


def test_points_that_budgets_ended_lead_to_the_budget_and_not_to_resuming(jobs, monkeypatch, tmp_path):
    def spent(jobs, parallel):
        for job in jobs:
            folder = Path(job["out"])
            folder.mkdir(parents=True)
            told = {"verdict": "failed", "reason": "no", "refused": folder.name in ("seed=2", "seed=7")}
            (folder / "run.json").write_text(json.dumps({**told, "config": job["config"]}))
            yield job, {"do": "done"}

    monkeypatch.setattr("simulations.sweep.run_jobs", spent)
    assert next_line(sweep("--grid", "seed=7", "--out", "out")) == "next: consilium budget show out/points/seed=7"
    mixed = next_line(sweep("--grid", "seed=1,2", "--out", "more"))
    assert mixed == "next: consilium sweep study.toml --grid seed=1,2 --out more --resume"


@pytest.mark.parametrize(
    ("grids", "command"),
    [
        (["rounds=1"], "consilium sweep study.toml --grid rounds=1 --grid seed=1,2,3"),
        (["seed=7"], "consilium sweep study.toml --grid federation.seed=7,1,2 --out out --resume"),
        (["seed=1,2,3,4,5"], "consilium sweep study.toml --grid seed=1,2,3,4,5 --grid preset=ds-fl,fedmd,fed-et"),
        (
            ["seed=1,2,3,4,5", "preset=mean"],
            "consilium sweep study.toml --grid federation.seed=1,2,3,4,5,6,7 --grid preset=mean --out out --resume",
        ),
    ],
)
def test_the_next_command_brings_more_seeds_and_then_another_method(jobs, monkeypatch, grids, command):
    def quick(jobs, parallel):
        for job in jobs:
            folder = Path(job["out"])
            folder.mkdir(parents=True)
            (folder / "run.json").write_text(json.dumps({"verdict": "ok", "config": job["config"]}))
            yield job, {"do": "done"}

    monkeypatch.setattr("simulations.sweep.run_jobs", quick)
    done = sweep(*(word for grid in grids for word in ("--grid", grid)), "--out", "out")
    assert next_line(done) == f"next: {command}"
    words = shlex.split(command)[1:]  # it can be typed
    assert RUNNER.invoke(app, words).exit_code == 0


def test_json_is_one_object_and_everything_else_goes_to_stderr(jobs):
    done = sweep("--grid", "seed=1,2", "--grid", "data.alpha=0.5,inf", "--format", "json")
    assert_refused(done, 2, "the point federation.seed=1 data.alpha=inf cannot be run, so nothing was begun")
    assert json.loads(done.stdout)["status"] == "error"
    assert not Path("runs").exists()
    done = sweep("--grid", "seed=1,2", "--format", "json")
    told = json.loads(done.stdout)
    assert (told["schema"], told["status"], told["code"]) == (1, "ok", 0)
    data = told["data"]
    assert set(data) == {"axes", "points", "summary", "failed", "price", "out"}
    assert (data["axes"], data["out"]) == ({"federation.seed": [1, 2]}, "runs/study-sweep-1")
    rows = table("sweep.csv")
    assert [list(point) for point in data["points"]] == [list(row) for row in rows]
    assert [f"{point['student_accuracy']:.6f}" for point in data["points"]] == [row["student_accuracy"] for row in rows]
    assert data["price"] is None


def test_a_failed_point_is_told_and_its_sweep_exits_with_3(jobs):
    arguments = ("--grid", "data.proxy=50,5000", "--out", "out")
    done = sweep(*arguments)
    assert done.exit_code == 3, done.output
    assert re.search(r"2/2  proxy=5000:  failed  \(.*5000.*\)", done.output)
    assert "1 of 2 points failed: see out/sweep.csv for the reasons, and out/logs" in done.output
    assert next_line(done) == "next: consilium sweep study.toml --grid data.proxy=50,5000 --out out --resume"
    assert "ValueError" not in Path("out/report.html").read_text()
    told = json.loads(sweep(*arguments, "--resume", "--format", "json").stdout)
    assert (told["status"], told["code"], told["data"]["failed"]) == ("error", 3, 1)


def test_an_interrupted_sweep_says_how_to_go_on_and_does(jobs):
    jobs.cut = "seed=2"
    done = sweep("--grid", "seed=1,2,3", "--out", "out")
    assert done.exit_code == 130
    assert "interrupted" in done.output
    command = next_line(done).removeprefix("next: ")
    assert command == "consilium sweep study.toml --grid seed=1,2,3 --out out --resume"
    told = json.loads(sweep("--grid", "seed=1,2,3", "--out", "out", "--resume", "--format", "json").stdout)
    assert (told["status"], told["code"], told["data"]) == ("error", 130, {"message": "interrupted", "out": "out"})
    jobs.cut = ""
    done = RUNNER.invoke(app, shlex.split(command)[1:])
    assert done.exit_code == 0
    assert done.output.startswith("3 points, 1 of them finished before; ")
    assert "seed=1:" not in done.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--grid", "epsilon=1"), "must read key=value,value with a key as section.key or one of seed, rounds"),
        (("--grid", "seed=1,1"), "--grid federation.seed has the value 1 twice"),
        (("--grid", "seed=1", "--grid", "federation.seed=2"), "--grid federation.seed stands 2 times"),
        (("--grid", "client.modles=mlp"), "unknown key 'client.modles'"),
        (("--grid", "seed=1", "--set", "client.lr=0"), "client.lr"),
        (("--grid", "seed=1", "--resume"), "--resume needs --out: name the folder of the sweep to go on with"),
        (("--grid", "seed=1", "--resume", "--out", "none"), "nothing to resume in none"),
        (
            ("--grid", "privacy.epsilon=1,2", "--set", "privacy.ledgers=kept"),
            "the 2 private points share the ledgers in privacy.ledgers",
        ),
        (
            ("--grid", "seed=1,2", "--set", "privacy.epsilon=1", "--set", "privacy.ledgers=kept"),
            "and the points deal them differently: set data.seed",
        ),
        (("--grid", "seed=1", "--out", "study.toml"), "study.toml is no empty folder and holds no sweep"),
    ],
)
def test_what_cannot_be_swept_is_refused_and_nothing_is_written(jobs, arguments, says):
    assert_refused(sweep(*arguments), 2, says)
    assert [path.name for path in Path().iterdir()] == ["study.toml"]


def test_a_sweep_without_an_axis_is_a_usage_error(jobs):
    assert sweep().exit_code == 2


def test_the_price_of_private_points_is_said_before_the_first_one_runs(jobs, monkeypatch):
    jobs.cut = "epsilon=1_seed=1"
    done = sweep("--grid", "privacy.epsilon=1,3", "--grid", "seed=1,2", "--set", "privacy.delta=1e-5", "--out", "out")
    assert done.exit_code == 130
    price = (
        "Price of the whole sweep: on real private data each of its 4 points is another release of the same records, "
        "seeds and failures too, and together they cost at most epsilon 8.0000 and delta 4e-05, unit record, "
        "by adding up what each point's dearest client pays"
    )
    assert done.output.splitlines()[1].startswith(price)
    assert json.loads(Path("out/sweep.json").read_bytes())["price"].startswith(price)


# ---- while it runs -------------------------------------------------------------------------------------------------
@pytest.fixture
def points(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(TINY)
    return points_of(path, [], axes_of(["rounds=10,30", "seed=1,2"]))


def test_the_time_that_is_left_counts_rounds_and_not_points(points):
    now = [100.0]
    out = io.StringIO()
    with SweepView(Console(file=out, width=200), clock=lambda: now[0]) as view:
        view.begun([Outcome(point) for point in points], 2, None)
        now[0] += 20
        view.round(points[1], 10)  # of 10: the second point is all but done
        view.finished(Outcome(points[0], {"verdict": "ok", "student": {"accuracy": 0.5}}))
        now[0] += 30
        view.finished(Outcome(points[1], None, "no space"))
    # 10 + 10 of 80 rounds in 20 s: 60 more take 60 s; then 20 rounds in 50 s: 60 more take 150 s
    assert out.getvalue().splitlines() == [
        "4 points; 2 at once",
        "1/4  rounds=10 seed=1:  ok  student 50.0 %  about 60 s left",
        "2/4  rounds=10 seed=2:  failed  (no space)  about 2 min left",
    ]


def test_on_a_terminal_there_is_a_bar_besides(points):
    out = io.StringIO()
    with SweepView(Console(file=out, width=100, force_terminal=True)) as view:
        view.begun([Outcome(point) for point in points], 2, "Price: much")
        view.finished(Outcome(points[0], {"verdict": "ok"}))
    shown = out.getvalue()
    assert "1/4" in shown
    assert "points" in shown
    assert "━" in shown
    assert "Price: much" in shown
