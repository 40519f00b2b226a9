"""Points in processes of their own: what a point comes to depends on nothing around it, and no process outlives it."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from simulations.experiment import run_experiment
from simulations.sweep import run_sweep
from simulations.sweeps.grid import axes_of, points_of
from simulations.sweeps.pool import run_jobs

TINY = """
[federation]
clients = 2
rounds = 40
rows_per_round = 30
workers = 1
device = "cpu"
evaluate_every = 0
[data]
name = "digits"
partition = "iid"
proxy = 50
private = 60
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
ROOT = str(Path(__file__).resolve().parents[2])


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Axes and points of two seeds, and where they were run uninterrupted, two at once."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "study.toml").write_text(TINY)
    axes = axes_of(["seed=1,2"])
    points = points_of(folder / "study.toml", [], axes)
    run_sweep(points, axes, folder / "whole", parallel=2)
    return axes, points, folder


def untimed(out):
    with (out / "sweep.csv").open(newline="") as table:
        return [{key: cell for key, cell in row.items() if key != "seconds"} for row in csv.DictReader(table)]


@pytest.mark.slow
def test_a_point_among_others_comes_to_what_it_comes_to_alone(study, inline, tmp_path, monkeypatch):
    monkeypatch.setattr("simulations.experiment.write_report", lambda folder: folder)
    _, (_, point), folder = study
    alone = run_experiment(point.config, tmp_path / "alone")
    kept = json.loads((folder / "whole/points/seed=2/run.json").read_bytes())
    assert (kept["verdict"], kept["rounds_done"]) == ("ok", 40)
    timed = {"seconds", "last_round"}
    assert {key: kept[key] for key in kept if key not in timed} == {
        key: alone[key] for key in alone if key not in timed
    }
    assert (folder / "whole/report.html").is_file()
    assert list((folder / "whole/logs").iterdir()) == []  # nothing was said


@pytest.mark.slow
def test_a_sweep_killed_hard_leaves_no_process_and_resumes_one_by_one_to_the_table_of_two_at_once(study):
    axes, points, folder = study
    words = ["sweep", str(folder / "study.toml"), "--grid", "seed=1,2", "--parallel", "1", "--out", str(folder / "cut")]
    child = subprocess.Popen(
        [sys.executable, "-P", "-c", f"from consilium.cli import app; app({words})"],
        env={**os.environ, "PYTHONPATH": ROOT},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    metrics = folder / "cut/points/seed=1/metrics.csv"
    deadline = time.monotonic() + 240
    while not metrics.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    others = psutil.Process(child.pid).children(recursive=True)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (folder / "cut/points/seed=1/run.json").exists()
    # at once, while the killed sweep's process may still be at work: the resumed one waits for it
    run_sweep(points, axes, folder / "cut", parallel=1, resume=True)
    gone, alive = psutil.wait_procs(others, timeout=60)
    assert (len(gone), alive) == (2, [])  # the point's process and its worker
    assert [row["verdict"] for row in untimed(folder / "whole")] == ["ok", "ok"]
    assert untimed(folder / "cut") == untimed(folder / "whole")


# ---- the pool, with jobs that do nothing: their log is a pipe that nobody reads, so that they wait before they begin
@pytest.fixture
def stuck(tmp_path):
    """A function that makes a job whose process waits for ever."""

    def job(name):
        os.mkfifo(tmp_path / f"{name}.log")
        return {"out": str(tmp_path / name), "log": str(tmp_path / f"{name}.log"), "config": {}}

    return job


def runners():
    found = [child for child in psutil.Process().children() if "simulations.sweeps.runner" in child.cmdline()]
    return [child for child in found if child.status() != psutil.STATUS_ZOMBIE]


def test_a_process_that_dies_costs_its_point_and_another_takes_its_place(stuck, tmp_path, monkeypatch):
    import simulations.sweeps.pool as pool

    jobs = [stuck("a"), {"out": str(tmp_path / "b"), "log": str(tmp_path / "no folder/b.log")}, stuck("c")]
    begun = []

    class Doomed(pool._Runner):
        def give(self, job):
            super().give(job)
            begun.append(self)
            if job and job["out"].endswith(("a", "c")):
                self._child.kill()

    monkeypatch.setattr(pool, "_Runner", Doomed)
    news = list(run_jobs(jobs, 1))
    assert [(job["out"][-1], told["do"], told["error"]) for job, told in news] == [
        ("a", "done", "its process died (signal 9): the machine may be out of memory"),
        ("b", "done", "its process died (exit code 1)"),
        ("c", "done", "its process died (signal 9): the machine may be out of memory"),
    ]
    assert len(set(begun)) == 3
    assert runners() == []


def test_an_interrupted_pool_ends_its_processes_whatever_they_do(stuck):
    jobs = run_jobs([stuck("a"), stuck("b"), stuck("c")], 2)
    with pytest.raises(KeyboardInterrupt):
        _interrupted(jobs)
    assert runners() == []


def test_ctrl_c_while_a_process_is_being_started_waits_until_it_can_be_ended(stuck, monkeypatch):
    import simulations.sweeps.pool as pool

    class Hit(pool._Runner):
        def __init__(self, inbox):
            super().__init__(inbox)
            signal.raise_signal(signal.SIGINT)  # it runs, and nobody has it yet

    monkeypatch.setattr(pool, "_Runner", Hit)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        next(run_jobs([stuck("a"), stuck("b")], 2))
    assert runners() == []
    assert signal.getsignal(signal.SIGINT) is before


def _interrupted(jobs):
    """Ctrl-C while the pool waits for news."""
    import threading

    def ctrl_c():
        while len(runners()) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=ctrl_c, daemon=True).start()
    next(jobs)
