"""What the README's tables are made of: runs that are kept, and rows that say what was not reached."""

import json

import pytest

from simulations.benchmarks import presets, runs
from simulations.benchmarks.runs import Kept, kept_run

STUDY = """
[federation]
clients = 3
rounds = 2
rows_per_round = 30
workers = 1
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
local_epochs = 1
[student]
model = "linear"
"""


@pytest.fixture
def study(tmp_path, monkeypatch, inline):
    (tmp_path / "study.toml").write_text(STUDY)
    monkeypatch.setattr(runs, "CONFIGS", tmp_path)
    monkeypatch.setattr("simulations.experiment.write_report", lambda folder: folder)
    return tmp_path / "kept"


def test_a_run_is_made_once_and_kept(study, inline, monkeypatch):
    first = kept_run("one", "study", folder=study)
    assert [row["round"] for row in first.metrics] == ["1", "2"]
    assert first.fedavg == []
    monkeypatch.setattr(inline, "ask", lambda *_: 1 / 0)
    assert kept_run("one", "study", folder=study) == first
    with pytest.raises(ZeroDivisionError):
        kept_run("two", "study", folder=study)


def test_an_interrupted_run_goes_on_where_it_stopped(study, inline):
    expected, honest, asked = kept_run("steady", "study", folder=study), inline.ask, []

    def ask(self, plans):
        asked.append(plans)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return honest(self, plans)

    inline.ask = ask
    with pytest.raises(KeyboardInterrupt):
        kept_run("broken", "study", folder=study)
    again = kept_run("broken", "study", folder=study)
    assert len(asked) == 3  # the second round anew, the first not
    assert again.run["teacher"] == expected.run["teacher"]


def test_a_kept_run_of_other_settings_is_not_taken_for_this_one(study):
    kept_run("one", "study", folder=study)
    with pytest.raises(RuntimeError, match=r"one was made with other settings than study\.toml has now: remove it"):
        kept_run("one", "study", ["federation.seed=2"], folder=study)


def test_a_failed_run_is_no_result(study):
    diverges = ["client.lr=1e30", 'client.models=["mlp"]']
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"one failed: round 1: 0 of 3 answers .*; remove it to try again"):
            kept_run("one", "study", diverges, folder=study)


def kept(accuracies, clients=0.5, fedavg=()):
    """A run whose student had these accuracies; 100 bytes up and 1,000 down in each round of 2 s."""
    bytes_ = {"upload_bytes": "100", "download_bytes": "1000", "seconds": "2.0"}
    metrics = [{"round": str(r), "student_accuracy": a, **bytes_} for r, a in enumerate(accuracies, start=1)]
    averaged = [{"round": str(r), "accuracy": a, **bytes_} for r, a in enumerate(fedavg, start=1)]
    last = float(accuracies[-1]) if accuracies[-1] else None
    told = {
        "student": {"accuracy": last},
        "clients": {"accuracy_mean": clients},
        "local_only": {"accuracy_mean": 0.2},
        "pooled": {"accuracy": 0.97},
        "fedavg": {"accuracy": 0.95, "upload_bytes": 300, "download_bytes": 3000, "seconds": 6.0},
        "upload_bytes": 100 * len(metrics),
        "download_bytes": 1000 * len(metrics),
    }
    return Kept(json.loads(json.dumps(told)), metrics, averaged)


def cells(line):
    return [cell.strip() for cell in line.strip("| ").split(" | ")]


def test_the_table_of_presets_is_ranked_and_says_what_was_not_reached(monkeypatch, capsys):
    given = {
        "mnist-mean": kept(["0.5", "0.7"]),
        "mnist-ds-fl": kept(["0.5", "0.92", "0.91"], fedavg=["0.8", "0.95"]),
        "mnist-feddistill": kept(["", ""], clients=0.6),
    }
    asked = []

    def kept_run(name, config, overrides=()):
        asked.append((name, *overrides))
        return given[config]

    monkeypatch.setattr(presets, "kept_run", kept_run)
    monkeypatch.setattr("sys.argv", ["presets.py", "--only", "mean,ds-fl,feddistill"])
    presets.main()
    lines = [cells(line) for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    ds_fl, mean, tables, averaged, alone, pooled = lines[2:]
    # 90 % in round 2: 2 x 100 B up, 2 x 1,000 B down
    spread = "91.0 % (91.0 % to 91.0 %)"
    assert ds_fl == ["`ds-fl`", "91.0 %", spread, "50.0 %", "200 B", "2.0 kB", "300 B", "3.0 kB", "6"]
    assert mean[:6] == ["`mean`", "70.0 %", "70.0 % (70.0 % to 70.0 %)", "50.0 %", "not reached", "not reached"]
    assert tables[:6] == ["`feddistill`", "–", "", "60.0 %", "not reached", "not reached"]
    assert averaged[:6] == ["FedAvg (weights leave)", "95.0 %", "", "", "200 B", "2.0 kB"]
    assert (alone[3], pooled[1]) == ("20.0 %", "97.0 %")
    assert ("mnist-ds-fl-3", "federation.seed=3") in [run[:2] for run in asked]
    assert not any(name.startswith("mnist-feddistill-2") for name, *_ in asked)
