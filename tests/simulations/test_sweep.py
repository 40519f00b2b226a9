"""A sweep: what it leaves, that it resumes to the same bytes, that a failure costs one point, whose folder it is."""

import csv
import json
import re
import shutil
import statistics

import pytest

from server.checkpoint import CheckpointError
from simulations import sweep as module
from simulations.config import ConfigError
from simulations.experiment import run_experiment
from simulations.prepared import alone
from simulations.sweep import Silence, run_sweep
from simulations.sweeps.grid import axes_of, points_of
from simulations.sweeps.outcomes import MEASURES
from simulations.sweeps.runner import run_point

TINY = """
[federation]
clients = 3
rounds = 3
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
GRID = ("client.local_epochs=1,3", "seed=1,2,3")


class Here:
    """simulations.sweeps.pool.run_jobs in this very process, without worker processes either.

    Attributes:
        ran: slugs, in order.
        interrupt: (slug, round) at which Ctrl-C comes.
    """

    def __init__(self):
        self.ran, self.rounds, self.interrupt, self.parallel = [], {}, None, None

    def __call__(self, jobs, parallel):
        self.parallel = parallel
        for job in jobs:
            slug = job["out"].rpartition("/")[2]
            self.ran.append(slug)
            news = []

            def tell(frame, slug=slug, news=news):
                news.append(frame)
                if frame["do"] == "round":
                    self.rounds.setdefault(slug, []).append(frame["round"])
                    if (slug, frame["round"]) == self.interrupt:
                        raise KeyboardInterrupt

            run_point(job, tell)
            for frame in news:
                yield job, frame


@pytest.fixture
def here(inline, monkeypatch):
    jobs = Here()
    monkeypatch.setattr(module, "run_jobs", jobs)
    monkeypatch.setattr("simulations.experiment.write_report", lambda folder: folder)
    monkeypatch.setattr(module, "write_sweep_report", lambda *_: None)
    return jobs


@pytest.fixture
def sweep_of(tmp_path):
    """A function that runs a sweep of the tiny study."""
    file = tmp_path / "study.toml"
    file.write_text(TINY)

    def sweep(out, *grids, overrides=(), **options):
        axes = axes_of(grids or GRID)
        return run_sweep(points_of(file, overrides, axes), axes, tmp_path / out, **options)

    sweep.file, sweep.folder = file, tmp_path
    return sweep


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def untimed(out):
    """Bytes of sweep.csv but for its seconds."""
    lines = rows(out / "sweep.csv")
    return [{key: cell for key, cell in row.items() if key != "seconds"} for row in lines]


def test_each_point_is_the_run_that_a_user_would_have_started(here, sweep_of, tiny):
    sweep_of("out", "aggregator=mean,era", "seed=4")
    point = points_of(sweep_of.file, [], axes_of(["aggregator=mean", "seed=4"]))[0]
    run = run_experiment(point.config, sweep_of.folder / "alone")
    row, other = rows(sweep_of.folder / "out" / "sweep.csv")
    assert (row["strategy.aggregator"], row["federation.seed"], row["verdict"]) == ("mean", "4", "ok")
    assert row["student_accuracy"] == f"{run['student']['accuracy']:.6f}"
    assert row["student_macro_f1"] == f"{run['student']['macro_f1']:.6f}"
    assert row["teacher_accuracy"] == f"{run['teacher']['accuracy']:.6f}"
    assert row["client_accuracy_mean"] == f"{run['clients']['accuracy_mean']:.6f}"
    assert row["client_accuracy_min"] == f"{run['clients']['accuracy_min']:.6f}"
    assert (row["upload_bytes"], row["download_bytes"]) == (str(run["upload_bytes"]), str(run["download_bytes"]))
    assert (row["epsilon"], row["privacy"], row["reason"]) == ("", "", "")
    kept = json.loads((sweep_of.folder / "out/points/aggregator=mean_seed=4/run.json").read_bytes())
    assert kept["teacher"] == run["teacher"]
    assert other["strategy.aggregator"] == "era"


def test_the_summary_is_mean_and_sample_deviation_over_the_seeds(here, sweep_of):
    done = sweep_of("out")
    table = rows(sweep_of.folder / "out" / "sweep.csv")
    summary = rows(sweep_of.folder / "out" / "summary.csv")
    assert list(summary[0]) == ["client.local_epochs", "measure", "mean", "std", "min", "max", "n", "privacy"]
    assert len(summary) == 2 * (len(MEASURES) - 1)  # nobody charged an epsilon
    for epochs in ("1", "3"):
        cells = [float(row["student_accuracy"]) for row in table if row["client.local_epochs"] == epochs]
        (told,) = [
            row for row in summary if (row["client.local_epochs"], row["measure"]) == (epochs, "student_accuracy")
        ]
        mean = sum(cells) / 3
        variance = sum((cell - mean) ** 2 for cell in cells) / 2  # three seeds: over 3 - 1
        assert float(told["mean"]) == pytest.approx(mean, abs=2e-6)
        assert float(told["std"]) == pytest.approx(variance**0.5, abs=2e-6)
        assert (float(told["min"]), float(told["max"]), told["n"]) == (min(cells), max(cells), "3")
        assert statistics.stdev(cells) > 0
    assert done.failed == 0
    assert done.as_json()["axes"] == {"client.local_epochs": [1, 3], "federation.seed": [1, 2, 3]}


@pytest.mark.parametrize("cut", [("local_epochs=1_seed=1", 1), ("local_epochs=1_seed=3", 2)])
def test_an_interrupted_sweep_resumes_to_the_same_bytes(here, sweep_of, cut):
    whole = sweep_of("whole")
    before = len(here.ran)
    here.rounds.clear()
    here.interrupt = cut
    with pytest.raises(KeyboardInterrupt):
        sweep_of("cut")
    finished = [row["verdict"] for row in rows(sweep_of.folder / "cut/sweep.csv")] if before < len(here.ran) - 1 else []
    here.interrupt = None
    sweep_of("cut", resume=True)
    assert untimed(sweep_of.folder / "cut") == untimed(sweep_of.folder / "whole")
    assert here.ran[before:].count("local_epochs=1_seed=2") == 1  # what was finished is not run again
    assert finished.count("ok") == (2 if cut[0].endswith("3") else 0)
    # the half-done point went on after its last finished round instead of beginning anew
    assert sorted(here.rounds[cut[0]]) == [1, 2, 3]
    assert [outcome.verdict for outcome in whole.outcomes] == ["ok"] * 6


def test_a_finished_sweep_is_not_run_again_but_told_again(here, sweep_of):
    done = sweep_of("out")
    count = len(here.ran)
    tables = [(sweep_of.folder / "out" / name).read_bytes() for name in ("sweep.csv", "summary.csv", "sweep.json")]
    again = sweep_of("out", resume=True)
    assert len(here.ran) == count
    assert again == done
    assert tables == [
        (sweep_of.folder / "out" / name).read_bytes() for name in ("sweep.csv", "summary.csv", "sweep.json")
    ]


def test_a_sweep_may_grow(here, sweep_of):
    sweep_of("whole", "seed=1,2,3")
    sweep_of("out", "seed=1,3")
    count = len(here.ran)
    sweep_of("out", "seed=1,2,3", resume=True)
    assert here.ran[count:] == ["seed=2"]
    assert untimed(sweep_of.folder / "out") == untimed(sweep_of.folder / "whole")


def test_a_failed_point_costs_no_other_and_is_in_no_mean(here, sweep_of):
    done = sweep_of("out", "student.lr=0.1,1e30", "data.proxy=50,5000", overrides=['student.model="mlp"'])
    table = rows(sweep_of.folder / "out/sweep.csv")
    assert [row["verdict"] for row in table] == ["ok", "failed", "failed", "failed"]
    assert "5000" in table[1]["reason"]  # the data are too few: refused before its folder was made
    assert table[2]["reason"].startswith("the student diverged")
    assert table[2]["student_accuracy"] == table[2]["upload_bytes"] == ""
    assert done.failed == 3
    summary = rows(sweep_of.folder / "out/summary.csv")
    assert {(row["student.lr"], row["data.proxy"]) for row in summary} == {("0.1", "50")}
    told = json.loads((sweep_of.folder / "out/sweep.json").read_bytes())
    assert [point["verdict"] for point in told["points"]] == ["ok", "failed", "failed", "failed"]
    assert told["points"][2]["reason"] == table[2]["reason"]
    here.ran.clear()
    assert (
        sweep_of(
            "out", "student.lr=0.1,1e30", "data.proxy=50,5000", overrides=['student.model="mlp"'], resume=True
        ).failed
        == 3
    )
    assert here.ran == [row["point"] for row in table[1:]]  # what failed is tried again, what finished is not


def test_a_bug_in_a_point_is_told_with_its_kind(here, sweep_of, monkeypatch, capsys):
    def broken(*_, **__):
        raise KeyError("x")

    monkeypatch.setattr("simulations.experiment.coordinate", broken)
    done = sweep_of("out", "seed=1")
    assert [outcome.reason for outcome in done.outcomes] == ["KeyError: 'x'"]
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("grids", "overrides", "says"),
    [
        (("seed=1,2",), (), "holds a sweep over client.local_epochs, federation.seed: resume it with the same axes"),
        (("seed=1,2,3", "client.local_epochs=1,3"), (), "holds a sweep over client.local_epochs, federation.seed"),
        (
            ("client.local_epochs=1,3", "seed=1,2"),
            (),
            "holds a sweep with the point local_epochs=1_seed=3, which this grid has not",
        ),
        (GRID, ("client.lr=0.2",), "holds a sweep that was begun with another client.lr: resume it"),
        (GRID, ("federation.rounds=4",), "holds a sweep that was begun with another federation.rounds: resume it"),
    ],
)
def test_another_sweep_is_refused_and_nothing_is_run(here, sweep_of, grids, overrides, says):
    here.interrupt = ("local_epochs=1_seed=1", 1)
    with pytest.raises(KeyboardInterrupt):
        sweep_of("out")
    here.ran.clear()
    with pytest.raises(ConfigError, match=re.escape(says)):
        sweep_of("out", *grids, overrides=overrides, resume=True)
    with pytest.raises(ConfigError, match="already holds a sweep: add --resume"):
        sweep_of("out", *grids, overrides=overrides)
    assert here.ran == []


def test_how_many_cores_a_point_has_is_not_what_a_sweep_is(here, sweep_of):
    sweep_of("out", "seed=1")
    here.ran.clear()
    sweep_of("out", "seed=1", overrides=["federation.workers=2"], resume=True)
    assert here.ran == []


def test_other_folders_are_left_alone(here, sweep_of):
    out = sweep_of.folder / "out"
    with pytest.raises(ConfigError, match="nothing to resume in"):
        sweep_of("out", resume=True)
    assert not out.exists()
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is no empty folder and holds no sweep"):
        sweep_of("out")
    (out / "sweep.json").write_text('{"schema": 7}')
    with pytest.raises(ConfigError, match=r"sweep\.json is no sweep of this version"):
        sweep_of("out", resume=True)
    assert sorted(path.name for path in out.iterdir()) == ["sweep.json", "thesis.txt"]
    with pytest.raises(ConfigError, match=r"cannot be written \(.*\): name another --out"):
        sweep_of("study.toml/out")
    assert here.ran == []


def test_two_sweeps_in_one_folder_are_refused(here, sweep_of):
    sweep_of("out", "seed=1")
    with alone(sweep_of.folder / "out"), pytest.raises(ConfigError, match="is being written by another run"):
        sweep_of("out", "seed=1", resume=True)


def test_a_point_that_was_changed_by_hand_is_not_taken_for_the_sweeps(here, sweep_of):
    sweep_of("out", "seed=1,2")
    run = sweep_of.folder / "out/points/seed=2/run.json"
    told = json.loads(run.read_bytes())
    told["config"]["federation"]["rounds"] = 9
    run.write_text(json.dumps(told))
    with pytest.raises(ConfigError, match=r"run\.json was made with another federation\.rounds: remove its folder"):
        sweep_of("out", "seed=1,2", resume=True)
    run.write_text("{")
    with pytest.raises(ConfigError, match=r"run\.json is no run of this version: remove its folder"):
        sweep_of("out", "seed=1,2", resume=True)
    shutil.rmtree(run.parent)
    here.ran.clear()
    sweep_of("out", "seed=1,2", resume=True)
    assert here.ran == ["seed=2"]


def test_a_run_killed_before_it_had_a_name_is_begun_anew(here, sweep_of):
    here.interrupt = ("seed=1", 1)
    with pytest.raises(KeyboardInterrupt):
        sweep_of("out", "seed=1,2")
    point = sweep_of.folder / "out/points/seed=2"
    point.mkdir()
    (point / ".config.json.4711.partial").write_bytes(b"{")
    here.interrupt = None
    assert sweep_of("out", "seed=1,2", resume=True).failed == 0


def test_a_point_whose_checkpoint_is_lost_says_so_and_the_others_go_on(here, sweep_of):
    here.interrupt = ("seed=1", 2)
    with pytest.raises(KeyboardInterrupt):
        sweep_of("out", "seed=1,2")
    (sweep_of.folder / "out/points/seed=1/checkpoint/server.safetensors").unlink()
    here.interrupt = None
    done = sweep_of("out", "seed=1,2", resume=True)
    assert [outcome.verdict for outcome in done.outcomes] == ["failed", "ok"]
    assert "checkpoint" in done.outcomes[0].reason
    assert CheckpointError.__name__ not in done.outcomes[0].reason


# ---- cores ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("cores", "parallel", "workers", "slots", "each"),
    [
        (8, None, 0, 3, 2),  # one a core, but there are only three points; 8 // 3 workers each
        (8, 2, 0, 2, 4),
        (8, 2, 3, 2, 3),  # its own number where that is less
        (8, 2, 6, 2, 4),  # and its share where that is less
        (2, 3, 0, 3, 1),  # more points than cores: as told, one worker each
        (2, None, 0, 2, 1),
    ],
)
def test_cores_are_dealt_out_once(here, sweep_of, monkeypatch, cores, parallel, workers, slots, each):
    monkeypatch.setattr(module, "available_cores", lambda: cores)
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("M", (), {"available": 2**36}))
    given = []

    def jobs(jobs, parallel):
        given.extend((parallel, job["config"]["federation"]["workers"]) for job in jobs)
        yield from here(jobs, parallel)

    monkeypatch.setattr(module, "run_jobs", jobs)
    sweep_of("out", "seed=1,2,3", overrides=[f"federation.workers={workers}", "federation.rounds=1"], parallel=parallel)
    assert given == [(slots, each)] * 3


def test_without_a_word_memory_bounds_how_many_points_run_at_once(here, sweep_of, monkeypatch):
    monkeypatch.setattr(module, "available_cores", lambda: 64)
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("M", (), {"available": 5 * 2**30}))
    sweep_of("out", "seed=1,2,3", overrides=["federation.rounds=1"])
    assert here.parallel == 2  # 5 GiB at 2 GiB a point


def test_points_over_flower_run_one_at_a_time(here, sweep_of, monkeypatch):
    overrides = ['federation.engine="deployment"', "federation.timeout_s=100"]
    with pytest.raises(ConfigError, match=r"--parallel 2 must be 1 with federation\.engine='deployment'"):
        sweep_of("out", "seed=1,2", overrides=overrides, parallel=2)
    assert not (sweep_of.folder / "out").exists()
    monkeypatch.setattr(module, "run_jobs", lambda jobs, parallel: (given.append(parallel), (_ for _ in ()))[1])
    given = []
    sweep_of("out", "seed=1,2", overrides=overrides)
    assert given == [1]


def test_who_watches_hears_of_every_round_and_every_point(here, sweep_of):
    heard = []

    class Watch(Silence):
        def begun(self, outcomes, parallel, price):
            heard.append((len(outcomes), parallel, price))

        def round(self, point, round_):
            heard.append((point.slug, round_))

        def finished(self, outcome):
            heard.append((outcome.point.slug, outcome.verdict))

    sweep_of("out", "seed=1,2", overrides=["federation.rounds=2"], parallel=1, watch=Watch())
    assert heard == [
        (2, 1, None),
        *[("seed=1", 1), ("seed=1", 2), ("seed=1", "ok")],
        *[("seed=2", 1), ("seed=2", 2), ("seed=2", "ok")],
    ]
