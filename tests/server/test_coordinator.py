"""A run: what is on disk after every round, resuming, and the student that never sees a private row."""

import csv
import dataclasses
import json

import numpy as np
import pytest

from client.config import PolicySection, load_site, write_site
from client.node import Node
from distillation.data import Samples, load_proxy, load_samples
from distillation.learner import Training
from server import coordinator
from server.checkpoint import CheckpointError, Progress, load_progress, save_progress
from server.config import FederationConfig, StudentSettings, read_job, write_job
from server.coordinator import coordinate
from server.exchange import Exchange
from server.rounds import QuorumError, Reply
from server.student_job import Scores, scores
from server.votes import VoteStore
from strategies.wire import decode_plan

COLUMNS = [
    "round",
    "student_accuracy",
    "teacher_accuracy",
    "client_accuracy_mean",
    "client_accuracy_min",
    "replies",
    "late",
    "rejected",
    "rows",
    "upload_bytes",
    "download_bytes",
    "seconds",
]


class DirectCohort:
    """Real nodes, called directly: the messages are the real ones."""

    def __init__(self, files, spoil=()):
        self.nodes = {name: Node.open(path, durable=False) for name, path in files.items()}
        self.clients, self.spoil, self.plans = sorted(files), spoil, []

    def ask(self, plans):
        for client, plan in plans.items():
            self.plans.append((client, decode_plan(plan, 60, 3)))
            answer = self.nodes[client].answer(plan)
            yield Reply(client, answer[:-1] if client in self.spoil else answer)


@pytest.fixture
def federation(make_sites):
    files = make_sites(3)
    folder = next(iter(files.values())).parent.parent.parent
    proxy = load_proxy(folder / "proxy")
    config = FederationConfig(
        exchange=Exchange(
            run="ab" * 16,
            seed=3,
            proxy_sha256=proxy.sha256,
            classes_sha256=proxy.classes_sha256,
            classes=3,
            proxy_rows=60,
            uplink="float16",
            downlink="float16",
            rows_per_round=30,
            quorum=0.5,
            participation=1.0,
        ),
        rounds=4,
        clients=3,
        aggregator="era",
        aggregator_settings={},
        student=StudentSettings(
            model="mlp", training=Training(optimizer="adam", distil_lr=0.01), distil_epochs=5, best_metric="accuracy"
        ),
        proxy=str(folder / "proxy"),
        test=str(folder / "test.safetensors"),
        device="cpu",
        timeout_s=60.0,
    )
    return files, config, proxy, load_samples(folder / "test.safetensors")


def run(federation, out, rounds=4, spoil=(), **hooks):
    files, config, proxy, test = federation
    config = config.model_copy(update={"rounds": rounds})
    return coordinate(config, DirectCohort(files, spoil), proxy, test, out, **hooks)


def changed(federation, exchange=None, student=None, **config):
    """The federation with other settings."""
    files, told, proxy, test = federation
    told = told.model_copy(
        update={
            "exchange": dataclasses.replace(told.exchange, **(exchange or {})),
            "student": told.student.model_copy(update=student or {}),
            **config,
        }
    )
    return files, told, proxy, test


def rows(out):
    with (out / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def untimed(out):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows(out)]


def test_a_run_learns_and_leaves_what_it_promises(federation, tmp_path):
    out = tmp_path / "out"
    progress = run(federation, out)
    assert list(rows(out)[0]) == COLUMNS
    assert [row["round"] for row in rows(out)] == ["1", "2", "3", "4"]
    # Three well separated classes: chance is 1/3, and every site alone lacks a class (2/3 at best).
    assert float(rows(out)[-1]["student_accuracy"]) > 0.8
    assert float(rows(out)[-1]["teacher_accuracy"]) > 0.8
    assert rows(out)[0]["client_accuracy_mean"] == ""
    card = json.loads((out / "student.json").read_text())
    assert card["round"] == 4
    assert card["accuracy"] == pytest.approx(float(rows(out)[-1]["student_accuracy"]), abs=1e-6)
    best = json.loads((out / "student-best.json").read_text())
    assert best["accuracy"] == max(row.student_accuracy for row in progress.rounds)
    assert best["round"] == progress.best.round


CFD = {"uplink": "quantised:1+delta+entropy", "downlink": "quantised:1+delta+entropy", "choice": "fixed"}


@pytest.mark.parametrize("stop_after", [1, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"exchange": {"cache_rounds": 2}},
        {"exchange": CFD, "student": {"speaks": True}},
        {"exchange": {"choice": "disagreement"}, "student": {"restart": True}},
        {"exchange": {"downlink": "float16+delta+entropy"}, "aggregator": "expguard"},
        {"aggregator": "clustered"},
    ],
)
def test_a_run_that_was_stopped_ends_as_one_that_was_not(federation, make_sites, tmp_path, stop_after, settings):
    federation = changed(federation, **settings)
    whole = run(federation, tmp_path / "whole")
    again = (make_sites(3, folder=tmp_path / "again"), *federation[1:])

    class Stopped(Exception):
        pass

    def stop(row):
        if row.round == stop_after:
            raise Stopped

    with pytest.raises(Stopped):
        run(again, tmp_path / "parts", on_round=stop)
    resumed = run(again, tmp_path / "parts")
    assert untimed(tmp_path / "parts") == untimed(tmp_path / "whole")
    assert not whole.failures
    told, other = whole.standing.arrays(), resumed.standing.arrays()
    assert told.keys() == other.keys()
    assert all(told[key].tobytes() == other[key].tobytes() for key in told)
    for name in ("student.safetensors", "student-best.safetensors"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("crash", ["save_progress", "student", "student-best", "write_metrics"])
def test_after_a_crash_anywhere_the_students_are_those_that_the_checkpoint_names(
    crash, federation, make_sites, tmp_path, monkeypatch
):
    """The best round is cut short while its files are written; asked again, its replies make it a bad one."""

    class Crash(Exception):
        pass

    def says(*accuracies):
        coming = iter(accuracies)
        monkeypatch.setattr("server.coordinator.scores", lambda *_: Scores(told := next(coming), told))

    def crashing(name, is_now):
        original = getattr(coordinator, name)

        def call(*told):
            if is_now(*told):
                raise Crash
            original(*told)

        return call

    out, weights = tmp_path / "out", {}
    points = {
        "save_progress": lambda path, config, progress: crash == "save_progress" and len(progress.rounds) == 3,
        "save_student": lambda folder, stem, model, inputs, card: crash == stem and card.round == 3,
        "write_metrics": lambda path, rows: crash == "write_metrics" and len(rows) == 3,
    }
    says(0.3, 0.5, 0.7, 0.2)
    written = tmp_path / "whole" / "student.safetensors"
    run(federation, written.parent, on_round=lambda row: weights.update({row.round: written.read_bytes()}))
    again = (make_sites(3, folder=tmp_path / "again"), *federation[1:])
    says(0.3, 0.5, 0.7)
    with monkeypatch.context() as patch:
        for name, is_now in points.items():
            patch.setattr(coordinator, name, crashing(name, is_now))
        with pytest.raises(Crash):
            run(again, out)
    kept = load_progress(out / "checkpoint" / "server.safetensors", federation[1])
    # what was not safe on disk is asked again, and is now worth .1
    assert len(kept.rounds) == (2 if crash == "save_progress" else 3)
    for rounds in (3, 4):
        says(*([0.1] if len(kept.rounds) < 3 else []), 0.2)
        kept = run(again, out, rounds=rounds)
        assert kept.best.round == (2 if crash == "save_progress" else 3)
        for name, judged in (("student", kept.last), ("student-best", kept.best)):
            card = json.loads((out / f"{name}.json").read_text())
            assert (card["round"], card["accuracy"]) == (judged.round, judged.accuracy)
            assert (out / f"{name}.safetensors").read_bytes() == weights[judged.round]


def test_a_finished_run_can_be_given_more_rounds(federation, make_sites, tmp_path):
    run(federation, tmp_path / "whole")
    again = (make_sites(3, folder=tmp_path / "again"), *federation[1:])
    run(again, tmp_path / "grown", rounds=2)
    run(again, tmp_path / "grown", rounds=4)
    assert untimed(tmp_path / "grown") == untimed(tmp_path / "whole")


def test_failures_are_counted_and_kept(federation, tmp_path):
    progress = run(federation, tmp_path / "out", spoil=("site-1",))
    assert [(row["replies"], row["rejected"]) for row in rows(tmp_path / "out")] == [("2", "1")] * 4
    assert [(round_, failure.client) for round_, failure in progress.failures] == [(r, "site-1") for r in (1, 2, 3, 4)]


def test_a_failed_round_keeps_what_was_done_before(federation, tmp_path):
    out = tmp_path / "out"
    run(federation, out, rounds=2)
    with pytest.raises(QuorumError):
        run(federation, out, spoil=("site-0", "site-1"))
    assert len(rows(out)) == 2
    assert len(load_progress(out / "checkpoint" / "server.safetensors", federation[1]).rounds) == 2


@pytest.mark.parametrize(
    "other", [{"aggregator": "mean"}, {"aggregator_settings": {"temperature": 0.2}}, {"device": "auto"}]
)
def test_a_checkpoint_of_another_configuration_is_refused(federation, tmp_path, other):
    files, config, proxy, test = federation
    run(federation, tmp_path / "out", rounds=1)
    other = config.model_copy(update=other)
    with pytest.raises(CheckpointError, match="another configuration or to other data"):
        coordinate(other, DirectCohort(files), proxy, test, tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"\x80\x04 pickle", None])
def test_a_broken_checkpoint_is_refused(federation, tmp_path, content):
    path = tmp_path / "server.safetensors"
    save_progress(path, federation[1], Progress())
    path.write_bytes(path.read_bytes()[:-5] if content is None else content)
    with pytest.raises(CheckpointError, match="broken"):
        load_progress(path, federation[1])


def test_sites_that_lost_their_disks_are_told_everything_when_the_run_is_resumed(federation, tmp_path):
    federation = changed(federation, exchange={"downlink": "float16+delta+entropy"})
    run(federation, tmp_path / "out", rounds=2)
    for file in federation[0].values():
        (file.parent / "state" / "state.safetensors").unlink()
    with pytest.raises(QuorumError, match=r"site-0 \(refused_need_key\)"):
        run(federation, tmp_path / "out")
    assert [row["round"] for row in rows(tmp_path / "out")] == ["1", "2"]
    progress = run(federation, tmp_path / "out")
    assert [row.replies for row in progress.rounds] == [3] * 4


def test_a_first_round_that_fails_leaves_no_checkpoint(federation, tmp_path):
    with pytest.raises(QuorumError):
        run(federation, tmp_path / "out", spoil=("site-0", "site-1"))
    assert not (tmp_path / "out" / "checkpoint").exists()


def test_a_student_that_speaks_is_what_the_clients_learn(federation, tmp_path):
    files, config, proxy, test = changed(federation, student={"speaks": True, "distil_epochs": 0})
    cohort = DirectCohort(files)
    coordinate(config, cohort, proxy, test, tmp_path / "out")
    told = [plan for client, plan in cohort.plans if client == "site-0"]
    # A student that learns nothing says the same of the same row in every round, whatever the votes were.
    said = {}
    for plan in told[1:]:
        for row, label in zip(plan.teachers[0].rows, plan.teachers[0].log_probs, strict=True):
            assert said.setdefault(int(row), label.tolist()) == label.tolist()
    assert len(said) > 30


def test_a_student_that_restarts_learns_its_last_teacher_only(federation, make_sites, tmp_path):
    # In a run of one round there is only that teacher: the student of round 1 is the same with and without restart.
    run(federation, tmp_path / "keeps", rounds=1)
    again = (make_sites(3, folder=tmp_path / "again"), *federation[1:])
    run(changed(again, student={"restart": True}), tmp_path / "restarts", rounds=1)
    third = (make_sites(3, folder=tmp_path / "third"), *federation[1:])
    run(changed(third, student={"restart": True}), tmp_path / "restarts-longer", rounds=3)
    weights = {name: (tmp_path / name / "student.safetensors").read_bytes() for name in ("keeps", "restarts")}
    assert weights["keeps"] == weights["restarts"]
    # 5 epochs of 30 rows from the first weights: as many optimiser steps after round 3 as after round 1.
    steps = [
        load_progress(
            tmp_path / name / "checkpoint" / "server.safetensors", changed(federation, student={"restart": True})[1]
        ).student["optimizer.0.step"]
        for name in ("restarts", "restarts-longer")
    ]
    assert steps[0] == steps[1] > 0


def test_kept_votes_are_those_that_were_counted(federation, tmp_path):
    federation = changed(federation, keep_votes=True)
    out = tmp_path / "out"

    class Stopped(Exception):
        pass

    def stop(row):
        if row.round == 2:
            raise Stopped

    with pytest.raises(Stopped):
        run(federation, out, on_round=stop, spoil=("site-2",))
    # a round that was begun: its votes go when the run is resumed
    (out / "votes" / "round-00003").mkdir()
    (out / "votes" / "round-00003" / "client-ghost.safetensors").write_bytes(b"half a vote")
    run(federation, out, rounds=3)
    kept = list(VoteStore(out / "votes").rounds())
    assert [(ballot.round, [one.client for one in reports]) for ballot, reports in kept] == [
        (1, ["site-0", "site-1"]),
        (2, ["site-0", "site-1"]),
        (3, ["site-0", "site-1", "site-2"]),
    ]


def test_class_tables_teach_the_clients_and_no_student(federation, tmp_path):
    files, config, proxy, test = changed(federation, exchange={"subject": "classes"}, aggregator="per-class")
    config = config.model_copy(update={"aggregator_settings": {}})
    for file in files.values():
        site = load_site(file)
        allowed = PolicySection(**{**site.policy.model_dump(), "release": ["class-tables"]})
        write_site(file, site.model_copy(update={"policy": allowed}))
    out = tmp_path / "out"
    cohort = DirectCohort(files)
    progress = coordinate(config, cohort, proxy, test, out)
    assert {row["student_accuracy"] for row in rows(out)} == {row["teacher_accuracy"] for row in rows(out)} == {""}
    assert [row["rows"] for row in rows(out)] == ["3"] * 4
    assert not list(out.glob("student*"))
    # every site lacks one class; two sites have each of the others, and each of them is taught what the other one says
    assert {name: labels.rows.tolist() for name, labels in progress.standing.personal.items()} == {
        f"site-{index}": [0, 1, 2] for index in range(3)
    }
    assert all(len(plan.teachers) == (plan.round > 1) for _, plan in cohort.plans)


def test_class_tables_have_no_student_that_could_speak(federation):
    _, config, _, _ = changed(federation, exchange={"subject": "classes"}, student={"speaks": True})
    with pytest.raises(ValueError, match=r"student\.speaks=true needs a student"):
        FederationConfig.model_validate(config.model_dump())


def test_without_labelled_test_rows_the_student_is_not_judged(federation, tmp_path):
    files, config, proxy, test = federation
    unlabelled = Samples(test.features[:0], None)
    coordinate(config, DirectCohort(files), proxy, unlabelled, tmp_path / "out")
    assert {row["student_accuracy"] for row in rows(tmp_path / "out")} == {""}
    card = json.loads((tmp_path / "out" / "student.json").read_text(), parse_constant=pytest.fail)
    assert (card["round"], card["accuracy"]) == (4, None)
    assert not (tmp_path / "out" / "student-best.json").exists()


def test_scores_are_those_computed_by_hand():
    import torch

    # truth 0 0 1 2, said 0 1 1 1: accuracy 2/4; F1 of 0: 2/3, of 1: 2/(1+3) = 1/2, of 2: 0; mean .3889
    test = Samples(torch.zeros(4, 1), torch.tensor([0, 0, 1, 2]))
    judged = scores(np.array([0, 1, 1, 1]), test, 3)
    assert (judged.accuracy, judged.macro_f1) == (0.5, pytest.approx(0.38889, abs=1e-5))


@pytest.mark.parametrize("row_quorum", [0.3, 1, 2])
def test_a_job_file_comes_back_as_it_was(federation, tmp_path, row_quorum):
    config = changed(federation, exchange={"row_quorum": row_quorum, "mode": "async"}, keep_votes=True)[1]
    write_job(tmp_path / "job.json", config)
    assert read_job(tmp_path / "job.json") == config
    # one voter is not a share of one: see strategies.aggregator.voters_needed
    assert type(read_job(tmp_path / "job.json").exchange.row_quorum) is type(row_quorum)
    (tmp_path / "job.json").write_text("{}")
    with pytest.raises(ValueError, match="no federation's settings"):
        read_job(tmp_path / "job.json")
