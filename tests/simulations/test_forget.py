"""Forgetting: what is left is what would have been there if the clients had refused every plan."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from distillation.export import load_student
from server.votes import VotesError, VoteStore
from simulations.experiment import run_experiment
from simulations.probes.forgetting import forget_in

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
    told = forget_in(tmp_path / "full", [GONE], tmp_path / "forgotten")
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


def student(folder):
    return (folder / "student.safetensors").read_bytes()


# Half of the clients a round, and four voters a row: without one of them rows have no quorum and are asked again.
@pytest.mark.parametrize(
    ("seed", "gone", "exact"), [(3, "site-002", False), (11, "site-003", False), (11, "site-004", True)]
)
def test_with_a_cache_it_is_exact_only_if_the_same_rows_would_have_been_asked(
    seed, gone, exact, tiny, inline, tmp_path
):
    half = {"clients": 8, "participation": 0.5, "rounds": 6, "seed": seed}
    cached = {"preset": "mean", "row_quorum": 4, "cache_rounds": 2, "choice": "fixed"}
    config = tiny(**merged(DEAF, {"federation": half, "strategy": cached, "data": {"private": 400}}))
    run_experiment(config, tmp_path / "full")
    told = forget_in(tmp_path / "full", [gone], tmp_path / "forgotten")
    inline.refusing = frozenset({gone})
    run_experiment(config, tmp_path / "refused")
    assert (student(tmp_path / "forgotten") == student(tmp_path / "refused")) is exact
    # in both cases the teachers have as many rows as they had
    rows = [[row["rows"] for row in rounds(tmp_path / name)] for name in ("full", "forgotten")]
    assert rows[0] == rows[1]
    assert told["exact"] is exact


# ---- more than one client ------------------------------------------------------------------------------------------
def test_clients_that_are_forgotten_one_by_one_are_as_forgotten_as_together(tiny, inline, tmp_path):
    config = tiny(**DEAF)
    run_experiment(config, tmp_path / "full")
    shutil.copytree(tmp_path / "full", tmp_path / "copy")
    forget_in(tmp_path / "full", ["site-000"], tmp_path / "first")
    told = forget_in(tmp_path / "full", [GONE], tmp_path / "both")
    assert told == {
        **forget_in(tmp_path / "copy", [GONE, "site-000"], tmp_path / "at-once"),
        "remains": told["remains"],
    }
    assert told["statement"] == f"This equals a run in which site-000, {GONE} had never answered."
    inline.refusing = frozenset({"site-000", GONE})
    run_experiment(config, tmp_path / "refused")
    assert student(tmp_path / "both") == student(tmp_path / "at-once") == student(tmp_path / "refused")
    assert student(tmp_path / "both") != student(tmp_path / "first")


def vote_files(run):
    return sorted(path.name for path in (run / "votes").rglob("client-*"))


def test_deleted_votes_are_gone_and_later_clients_can_still_be_forgotten(tiny, inline, tmp_path):
    run = tmp_path / "full"
    run_experiment(tiny(**DEAF), run)
    shutil.copytree(run, tmp_path / "copy")
    # a round that failed its quorum leaves votes, too
    shutil.copytree(run / "votes" / "round-00003", run / "votes" / "round-00004")
    kept = forget_in(run, [GONE], tmp_path / "kept")
    assert vote_files(run).count(f"client-{GONE}.safetensors") == 4
    assert kept["remains"].startswith(f"{run / 'votes'} still holds the votes of {GONE}; ")
    told = forget_in(run, [GONE], tmp_path / "deleted", delete_votes=True)
    assert vote_files(run) == sorted(f"client-site-00{index}.safetensors" for index in (0, 1, 3) for _ in range(4))
    assert told["remains"].startswith(f"{run / 'votes'} holds no vote of {GONE} any more. The run's own student ")
    assert told == {**kept, "remains": told["remains"]}
    assert student(tmp_path / "deleted") == student(tmp_path / "kept")
    both = forget_in(run, ["site-003"], tmp_path / "both")
    assert both["exact"] is True
    forget_in(tmp_path / "copy", [GONE, "site-003"], tmp_path / "at-once")
    assert student(tmp_path / "both") == student(tmp_path / "at-once")


def test_a_deletion_that_broke_off_can_be_done_again(tiny, inline, tmp_path, monkeypatch):
    run = tmp_path / "run"
    run_experiment(tiny(**DEAF), run)
    unlink, deleted = Path.unlink, []

    def second_fails(path, missing_ok=False):
        if path.name.startswith("client-"):
            deleted.append(path)
            if len(deleted) == 2:
                raise PermissionError(13, "Permission denied", str(path))
        unlink(path, missing_ok=missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", second_fails)
        with pytest.raises(PermissionError):
            forget_in(run, [GONE], tmp_path / "out", delete_votes=True)
    assert not (tmp_path / "out").exists()
    assert vote_files(run).count(f"client-{GONE}.safetensors") == 2
    assert forget_in(run, [GONE], tmp_path / "out", delete_votes=True)["exact"] is True
    assert f"client-{GONE}.safetensors" not in vote_files(run)


def test_what_cannot_be_forgotten_deletes_and_records_nothing(tiny, inline, tmp_path):
    run_experiment(tiny(**DEAF), tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    # a row needs max(2, ceil(0.3 * 4)) = 2 voters, and one is left
    with pytest.raises(VotesError, match="without 'site-000', 'site-001', 'site-002' no row of round 1 has the 2"):
        forget_in(tmp_path / "run", ["site-002", "site-001", "site-000"], tmp_path / "out", delete_votes=True)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_a_forgotten_client_that_answers_again_stays_forgotten(tiny, inline, tmp_path):
    short = merged(DEAF, {"federation": {"rounds": 2}})
    run_experiment(tiny(**short), tmp_path / "run")
    forget_in(tmp_path / "run", [GONE], tmp_path / "a", delete_votes=True)
    run_experiment(tiny(**DEAF), tmp_path / "run", resume=True)
    told = forget_in(tmp_path / "run", ["site-003"], tmp_path / "b")
    assert (told["rounds"], told["clients"]) == (3, [GONE, "site-003"])
    assert VoteStore(tmp_path / "run" / "votes").forgotten() == {GONE: [1, 2, 3], "site-003": [1, 2, 3]}
    assert [row["votes"] for row in rounds(tmp_path / "b")] == ["2", "2", "2"]


def test_what_is_written_can_be_used_and_read(tiny, inline, tmp_path):
    run_experiment(tiny(**DEAF), tmp_path / "run")
    before = sorted(path for path in (tmp_path / "run").rglob("*"))
    told = forget_in(tmp_path / "run", [GONE], tmp_path / "run" / "without")
    out = tmp_path / "run" / "without"
    assert sorted(path.name for path in out.iterdir()) == [
        *("forget.json", "metrics.csv", "student.json", "student.safetensors")
    ]
    after = sorted(path for path in (tmp_path / "run").rglob("*") if not path.is_relative_to(out))
    assert after == sorted([*before, tmp_path / "run" / "votes" / "forgotten.json"])
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
    told = forget_in(tmp_path / "run", [GONE], tmp_path / "without")
    assert told["exact"] is False
    assert told["statement"].startswith(
        f"No vote of {GONE} is in this student. What the others voted and were asked may still"
    )


def test_late_votes_are_forgotten_too(tiny, inline, tmp_path):
    late = {"federation": {"mode": "async"}, "stragglers": {"share": 0.25, "rounds": 1}}
    run = run_experiment(tiny(**merged(DEAF, late)), tmp_path / "run")
    (straggler,) = run["stragglers"]
    told = forget_in(tmp_path / "run", [straggler], tmp_path / "without")
    assert told["exact"] is False  # who is late changes what is on the ballot
    assert [row["votes"] for row in rounds(tmp_path / "without")] == ["3", "3", "3"]
    lost, other = sorted({"site-000", "site-001", "site-003"} - {straggler})[:2]
    (tmp_path / "run" / "votes" / "round-00001" / f"client-{lost}.safetensors").unlink()
    with pytest.raises(VotesError, match=r"round 1 of .*: restore the folder from a backup"):
        forget_in(tmp_path / "run", [other], tmp_path / "lost")


def test_votes_of_a_round_that_was_not_finished_do_not_count(tiny, inline, tmp_path):
    run_experiment(tiny(**DEAF), tmp_path / "run")
    expected = forget_in(tmp_path / "run", [GONE], tmp_path / "a")
    # as a round leaves them that failed its quorum
    shutil.copytree(tmp_path / "run" / "votes" / "round-00003", tmp_path / "run" / "votes" / "round-00004")
    assert forget_in(tmp_path / "run", [GONE], tmp_path / "b") == expected
    assert (tmp_path / "a" / "student.safetensors").read_bytes() == (
        tmp_path / "b" / "student.safetensors"
    ).read_bytes()
