"""A run: what is on disk after every round, resuming, and the student that never sees a private row."""

import csv
import json

import numpy as np
import pytest

from client.node import Node
from distillation.data import Samples, load_proxy, load_samples
from distillation.learner import Training
from server.checkpoint import CheckpointError, Progress, load_progress, save_progress
from server.config import FederationConfig, StudentSettings, read_job, write_job
from server.coordinator import coordinate
from server.rounds import Exchange, QuorumError, Reply
from server.student_job import scores

COLUMNS = [
    "round",
    "student_accuracy",
    "teacher_accuracy",
    "client_accuracy_mean",
    "client_accuracy_min",
    "replies",
    "rejected",
    "upload_bytes",
    "download_bytes",
    "seconds",
]


class DirectCohort:
    """Real nodes, called directly: the messages are the real ones."""

    def __init__(self, files, spoil=()):
        self.nodes = {name: Node.open(path, durable=False) for name, path in files.items()}
        self.clients, self.spoil = sorted(files), spoil

    def ask(self, plan, clients):
        for client in clients:
            answer = self.nodes[client].answer(plan)
            yield Reply(client, answer[:-1] if client in self.spoil else answer)


@pytest.fixture
def federation(make_sites):
    files = make_sites(3)
    folder = next(iter(files.values())).parent.parent.parent
    proxy = load_proxy(folder / "proxy")
    config = FederationConfig(
        exchange=Exchange("ab" * 16, 3, proxy.sha256, proxy.classes_sha256, 3, 60, "float16", 30, 0.5, 1.0),
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


@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(federation, make_sites, tmp_path, stop_after):
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
    assert resumed.teacher.log_probs.tobytes() == whole.teacher.log_probs.tobytes()
    for name in ("student.safetensors", "student-best.safetensors"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


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
    "changed", [{"aggregator": "mean"}, {"aggregator_settings": {"temperature": 0.2}}, {"device": "auto"}]
)
def test_a_checkpoint_of_another_configuration_is_refused(federation, tmp_path, changed):
    files, config, proxy, test = federation
    run(federation, tmp_path / "out", rounds=1)
    other = config.model_copy(update=changed)
    with pytest.raises(CheckpointError, match="another configuration or to other data"):
        coordinate(other, DirectCohort(files), proxy, test, tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"\x80\x04 pickle", None])
def test_a_broken_checkpoint_is_refused(federation, tmp_path, content):
    path = tmp_path / "server.safetensors"
    save_progress(path, federation[1], Progress())
    path.write_bytes(path.read_bytes()[:-5] if content is None else content)
    with pytest.raises(CheckpointError, match="broken"):
        load_progress(path, federation[1])


def test_rule_state_survives_a_checkpoint(federation, tmp_path):
    state = {"log_weights": np.array([0.1, -2.5]), "seen": np.array([[1.0]])}
    save_progress(tmp_path / "c", federation[1], Progress(state=state))
    got = load_progress(tmp_path / "c", federation[1]).state
    assert {key: value.tolist() for key, value in got.items()} == {"log_weights": [0.1, -2.5], "seen": [[1.0]]}


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


def test_a_job_file_comes_back_as_it_was(federation, tmp_path):
    write_job(tmp_path / "job.json", federation[1])
    assert read_job(tmp_path / "job.json") == federation[1]
    (tmp_path / "job.json").write_text("{}")
    with pytest.raises(ValueError, match="no federation's settings"):
        read_job(tmp_path / "job.json")
