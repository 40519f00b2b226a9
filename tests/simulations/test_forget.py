"""Forgetting: what is left is what would have been there if the client had refused every plan."""

import csv
import json
import shutil

import pytest

from distillation.export import load_student
from server.votes import VotesError
from simulations.config import ConfigError
from simulations.experiment import run_experiment
from simulations.probes.commands import forget_in

GONE = "site-002"
# Votes that do not depend on the teacher: nobody learns from it.
DEAF = {"client": {"distil_epochs": 0}, "federation": {"rounds": 3, "keep_votes": True}}


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    monkeypatch.setattr("simulations.experiment.write_report", lambda folder: folder)


def merged(*parts):
    sections = {}
    for part in parts:
        for key, value in part.items():
            sections[key] = {**sections.get(key, {}), **value}
    return sections


def rounds(out):
    with (out / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def accuracies(out):
    keys = ("round", "rows", "student_accuracy", "teacher_accuracy")
    return [[float(row[key]) for key in keys] for row in rounds(out)]


LAWS = {
    "mean": {"strategy": {"preset": "mean"}},
    "era": {"strategy": {"aggregator": "era"}},
    "median": {"strategy": {"aggregator": "median"}},
    "hard-vote": {"strategy": {"aggregator": "hard-vote"}},
    "a rule with a memory": {"strategy": {"aggregator": "expguard"}},
    "a rule that needs counts": {"strategy": {"aggregator": "class-count"}},
    "a rule that needs scores": {"strategy": {"aggregator": "sample-weighted"}, "client": {"selector": "certainty"}},
    "mean, cached": {"strategy": {"preset": "mean", "cache_rounds": 2}},
    "era, cached": {"strategy": {"aggregator": "era", "cache_rounds": 3}},
    "median, cached": {"strategy": {"aggregator": "median", "cache_rounds": 2}},
    "hard-vote, cached": {"strategy": {"aggregator": "hard-vote", "cache_rounds": 2}},
    "one bit and differences": {"strategy": {"preset": "cfd"}},
    "a student that begins anew": {"student": {"restart": True}},
    "some of the clients a round": {"federation": {"participation": 0.75, "quorum": 0.3}},
    "clients that abstain": {"client": {"selector": {"name": "kmeans-ratio", "quantile": 0.5}}},
    "one round, of clients that would have listened": {
        "federation": {"rounds": 1},
        "client": {"distil_epochs": 2},
    },
}


@pytest.mark.parametrize("law", LAWS)
def test_the_student_is_that_of_a_run_in_which_the_client_refused_every_plan(law, tiny, inline, tmp_path):
    config = tiny(**merged(DEAF, LAWS[law]))
    full = run_experiment(config, tmp_path / "full")
    told = forget_in(tmp_path / "full", GONE, tmp_path / "forgotten")
    inline.refusing = frozenset({GONE})
    refused = run_experiment(config, tmp_path / "refused")
    assert {failure["client"] for failure in refused["failures"]} == {GONE}
    left, expected = ((tmp_path / name / "student.safetensors").read_bytes() for name in ("forgotten", "refused"))
    assert left == expected
    assert left != (tmp_path / "full" / "student.safetensors").read_bytes()
    # metrics.csv of a run has six decimals
    for row, other in zip(accuracies(tmp_path / "forgotten"), accuracies(tmp_path / "refused"), strict=True):
        assert row == pytest.approx(other, abs=1e-6)
    assert told["exact"] is True
    assert told["statement"] == f"This equals a run in which {GONE} had never answered."
    assert told["student_accuracy_before"] == full["student"]["accuracy"]
    assert told["student_accuracy"] == refused["student"]["accuracy"]


def test_what_is_written_can_be_used_and_read(tiny, inline, tmp_path):
    run_experiment(tiny(**DEAF), tmp_path / "run")
    before = sorted(path for path in (tmp_path / "run").rglob("*"))
    told = forget_in(tmp_path / "run", GONE, tmp_path / "run" / "without")
    out = tmp_path / "run" / "without"
    assert sorted(path.name for path in out.iterdir()) == [
        *("forget.json", "metrics.csv", "student.json", "student.safetensors")
    ]
    assert sorted(path for path in (tmp_path / "run").rglob("*") if not path.is_relative_to(out)) == before
    assert json.loads((out / "forget.json").read_text()) == told
    student = load_student(out)
    assert (student.card.round, student.card.accuracy) == (3, told["student_accuracy"])
    assert [(row["round"], row["asked"], row["votes"]) for row in rounds(out)] == [
        *(("1", "4", "3"), ("2", "4", "3"), ("3", "4", "3"))
    ]


@pytest.mark.parametrize(
    "changed",
    [
        {"client": {"distil_epochs": 1}},  # the others have learnt from teachers with the client in them
        {"strategy": {"choice": "disagreement"}},  # and were asked other rows
        {"federation": {"quorum": 1.0}},  # without it there would have been no second round
        {"attack": {"name": "lie"}},  # liars have seen its votes
    ],
)
def test_what_may_still_depend_on_the_client_is_said(changed, tiny, inline, tmp_path):
    run_experiment(tiny(**merged(DEAF, changed)), tmp_path / "run")
    told = forget_in(tmp_path / "run", GONE, tmp_path / "without")
    assert told["exact"] is False
    assert told["statement"].startswith(f"No vote of {GONE} is left. What the others voted and were asked may still")


def test_late_votes_are_forgotten_too(tiny, inline, tmp_path):
    late = {"federation": {"mode": "async"}, "stragglers": {"share": 0.25, "rounds": 1}}
    run = run_experiment(tiny(**merged(DEAF, late)), tmp_path / "run")
    (straggler,) = run["stragglers"]
    told = forget_in(tmp_path / "run", straggler, tmp_path / "without")
    assert told["exact"] is False  # who is late changes what is on the ballot
    assert [row["votes"] for row in rounds(tmp_path / "without")] == ["3", "3", "3"]


def test_votes_of_a_round_that_was_not_finished_do_not_count(tiny, inline, tmp_path):
    run_experiment(tiny(**DEAF), tmp_path / "run")
    expected = forget_in(tmp_path / "run", GONE, tmp_path / "a")
    # as a round leaves them that failed its quorum
    shutil.copytree(tmp_path / "run" / "votes" / "round-00003", tmp_path / "run" / "votes" / "round-00004")
    assert forget_in(tmp_path / "run", GONE, tmp_path / "b") == expected
    assert (tmp_path / "a" / "student.safetensors").read_bytes() == (
        tmp_path / "b" / "student.safetensors"
    ).read_bytes()


@pytest.fixture
def kept(tiny, inline, tmp_path):
    run_experiment(tiny(**merged(DEAF, {"federation": {"rounds": 1}})), tmp_path / "run")
    return tmp_path / "run"


def refused(run, client, tmp_path, error, says):
    """It is refused, and neither the run nor the folder of results is touched."""
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} if run.exists() else {}
    with pytest.raises(error, match=says) as raised:
        forget_in(run, client, tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()
    assert {path: path.read_bytes() for path in before} == before


def test_a_folder_without_a_run_is_refused(tmp_path, inline):
    refused(tmp_path / "nowhere", GONE, tmp_path, ConfigError, "holds no run: name the folder of results")


def test_a_run_that_goes_on_is_refused(kept, tmp_path):
    (kept / "run.json").unlink()
    refused(kept, GONE, tmp_path, ConfigError, f"is not finished: .*--out {kept} --resume")


@pytest.mark.parametrize("name", ["run.json", "config.json"])
@pytest.mark.parametrize("content", [b"{", b"\xff", b'{"federation": 3}', b"[]"])
def test_a_broken_file_is_refused(name, content, kept, tmp_path):
    (kept / name).write_bytes(content)
    refused(kept, GONE, tmp_path, ConfigError, rf"{name} is ")


def test_an_unknown_client_is_refused_with_the_known_ones(kept, tmp_path):
    refused(kept, "site-9", tmp_path, ConfigError, "no client is called 'site-9': the names are site-000, site-001")
    refused(kept, "../../site-001", tmp_path, ConfigError, "no client is called '../../site-001'")


def test_a_run_that_kept_no_votes_is_refused_with_the_key(tiny, inline, tmp_path):
    run_experiment(tiny(), tmp_path / "run")
    refused(tmp_path / "run", GONE, tmp_path, VotesError, "kept no votes: run it with --set federation.keep_votes=true")


def test_a_client_that_never_answered_is_refused(tiny, inline, tmp_path):
    inline.refusing = frozenset({GONE})
    run_experiment(tiny(**DEAF), tmp_path / "run")
    refused(
        tmp_path / "run", GONE, tmp_path, VotesError, f"client '{GONE}' has no vote in .*nothing is to be forgotten"
    )


def test_votes_that_teach_nothing_without_the_client_are_refused(tiny, inline, tmp_path):
    # two clients: a row needs max(2, ceil(0.3 * 2)) = 2 voters, and one is left
    run_experiment(tiny(**merged(DEAF, {"federation": {"clients": 2}})), tmp_path / "run")
    refused(
        *(tmp_path / "run", "site-001", tmp_path, VotesError),
        "without 'site-001' no row of round 1 has the 2 voters that it needs",
    )


def test_class_tables_have_nothing_to_teach_anew(tiny, inline, tmp_path):
    run_experiment(tiny(**merged(DEAF, {"strategy": {"preset": "feddistill"}})), tmp_path / "run")
    refused(tmp_path / "run", GONE, tmp_path, VotesError, "class tables teach no student")


def test_a_cache_of_disputed_rows_cannot_be_redone(tiny, inline, tmp_path):
    run_experiment(tiny(**merged(DEAF, {"strategy": {"choice": "disagreement", "cache_rounds": 2}})), tmp_path / "run")
    refused(tmp_path / "run", GONE, tmp_path, VotesError, "rows chosen by disagreement depend on the forgotten votes")


def test_broken_votes_are_refused(kept, tmp_path):
    (kept / "votes" / "round-00001" / "client-site-001.safetensors").write_bytes(b"short")
    refused(kept, GONE, tmp_path, VotesError, "round-00001 is broken .*: restore it from a backup")


def test_other_data_than_the_runs_is_refused(tmp_path, tiny, inline):
    lines = [f"{row % 7},{row % 3},{row % 2}\n" for row in range(90)]
    (tmp_path / "t.csv").write_text("a,b,y\n" + "".join(lines))
    table = {"name": "csv", "path": str(tmp_path / "t.csv"), "target": "y", "private": 40, "proxy": 30, "test": 20}
    run_experiment(tiny(**merged(DEAF, {"data": table})), tmp_path / "run")
    (tmp_path / "t.csv").write_text("a,b,y\n" + "".join(line.replace("6,", "5,") for line in lines))
    refused(tmp_path / "run", GONE, tmp_path, ConfigError, "the data is no longer that of .*: put the files back")


def test_a_folder_in_use_is_left_alone(kept, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="out is no empty folder: name another --out"):
        forget_in(kept, GONE, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]
