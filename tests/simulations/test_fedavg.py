"""FedAvg: its weights are those of a plain loop, on any number of workers, and its bytes are those it would send."""

import csv
import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load
from torch import nn

from distillation.data import Samples, load_proxy, load_samples, save_samples
from distillation.learner import Diverged, Training
from distillation.models import build_model
from distillation.runtime import single_thread
from simulations import fedavg
from simulations.config import parse_config
from simulations.engines.in_process import WorkerError, WorkerPool
from simulations.experiment import run_experiment
from simulations.fedavg import Job, average, first_weights, learner_of, local_update, run_fedavg
from simulations.reporting.comparison import comparison_rows
from strategies.seeds import stream_seed
from strategies.selection import participants

ROWS = {"site-0": 5, "site-1": 30, "site-2": 12, "site-3": 21}
FIRST = first_weights("mlp", (4,), 3, seed=7)
JOB = Job("mlp", Training(lr=0.1, momentum=0.9, batch_size=10), epochs=2, seed=7, device="cpu")
PLAIN = Job("mlp", Training(lr=0.1, batch_size=10), epochs=2, seed=7, device="cpu")


@pytest.fixture
def study(make_sites):
    """Four sites with ROWS private rows, each of two of the three classes."""
    for name, path in make_sites(4).items():
        private = path.parent / "private.safetensors"
        samples = load_samples(private)
        first = Samples(samples.features[: ROWS[name]].clone(), samples.labels[: ROWS[name]].clone())
        save_samples(private, first)
        folder = path.parent.parent.parent
    return folder


def private(study, site):
    return load_samples(study / "sites" / site / "private.safetensors")


def rounds_of(study, job=JOB, *, rows=ROWS, workers=1, rounds=3, participation=1.0):
    with WorkerPool(study, rows, workers, timeout_s=60.0) as pool:
        return list(run_fedavg(pool, rows, FIRST, job, rounds=rounds, participation=participation))


def by_hand(study, participation, rounds):
    """The same in one process: nothing of ours but the model, the streams' names and the choice of sites."""
    single_thread()
    weights = load(FIRST)
    for round_ in range(1, rounds + 1):
        asked, trained = participants(7, round_, list(ROWS), participation), []
        for site in asked:
            samples = private(study, site)
            model = build_model("mlp", (4,), 3, seed=0)
            model.load_state_dict(weights)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            rng = torch.Generator().manual_seed(stream_seed(7, "fit", site, round_) % 2**32)
            for _ in range(2):
                for batch in torch.randperm(ROWS[site], generator=rng).split(10):
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(model(samples.features[batch]), samples.labels[batch]).backward()
                    optimizer.step()
            trained.append(model.state_dict())
        shares = [ROWS[site] for site in asked]
        weights = {
            name: torch.from_numpy(np.average([one[name].double() for one in trained], axis=0, weights=shares)).float()
            for name in weights
        }
    model.load_state_dict(weights)
    test = load_samples(study / "test.safetensors")
    return weights, float((model(test.features).argmax(1) == test.labels).float().mean())


@pytest.mark.parametrize("participation", [1.0, 0.5])
def test_the_weights_are_those_of_a_plain_loop(study, participation):
    expected, accuracy = by_hand(study, participation, rounds=3)
    row, weights = rounds_of(study, participation=participation)[-1]
    got = load(weights)
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, rtol=0, atol=1e-6)
    assert row.accuracy == pytest.approx(accuracy, abs=1e-6)
    # three classes, chance is 1/3; no site has all of them, so a single site's model cannot pass 2/3 by much
    assert row.accuracy > 0.8 or participation < 1


def test_the_number_of_workers_changes_no_byte(study):
    one, two = rounds_of(study, workers=1, rounds=2), rounds_of(study, workers=2, rounds=2)
    assert [weights for _, weights in one] == [weights for _, weights in two]
    assert [row.accuracy for row, _ in one] == [row.accuracy for row, _ in two]
    assert len({FIRST, *(weights for _, weights in one)}) == 3  # and every round changes some


def test_a_killed_worker_changes_no_byte(study):
    steady = [weights for _, weights in rounds_of(study, rounds=2)]
    with WorkerPool(study, ROWS, workers=1, timeout_s=60.0) as pool:
        got = []
        for _, weights in run_fedavg(pool, ROWS, FIRST, JOB, rounds=2, participation=1.0):
            got.append(weights)
            os.kill(pool.pids[0], signal.SIGKILL)  # the one that follows has to be told the weights again
    assert got == steady


def test_one_client_is_its_own_local_training(study):
    single_thread()
    learner = learner_of(FIRST, PLAIN, load_proxy(study / "proxy"), private(study, "site-1"))
    for round_ in (1, 2, 3):  # sgd without momentum has no state: one optimiser for all rounds is as good as three
        learner.fit(2, torch.Generator().manual_seed(stream_seed(7, "fit", "site-1", round_) % 2**32))
    _, weights = rounds_of(study, PLAIN, rows={"site-1": 30})[-1]
    assert weights == fedavg.encoded(learner.model.state_dict())


def test_the_student_begins_with_the_same_weights():
    student = build_model("mlp", (4,), 3, stream_seed(7, "model", "student"))
    assert fedavg.encoded(student.state_dict()) == FIRST


@pytest.mark.parametrize(("participation", "sites"), [(1.0, 4), (0.5, 2)])
def test_bytes_are_the_lengths_of_the_blobs(study, participation, sites):
    (first, weights), (second, _) = rounds_of(study, participation=participation, rounds=2)
    header = int.from_bytes(FIRST[:8], "little")
    mlp = 4 * 128 + 128 + 128 * 128 + 128 + 128 * 3 + 3
    assert len(FIRST) == len(weights) == 8 + header + 4 * mlp
    for row in (first, second):
        assert row.upload_bytes == row.download_bytes == sites * len(FIRST)


def test_weights_count_in_proportion_to_rows():
    small = {"w": torch.tensor([[0.0, 1.0]]), "b": torch.tensor([-1.0])}
    large = {"w": torch.tensor([[4.0, 2.0]]), "b": torch.tensor([1.0])}
    # 1 and 3 rows: (0 + 3*4) / 4 = 3, (1 + 3*2) / 4 = 1.75, (-1 + 3*1) / 4 = .5
    averaged = average([(1, small), (3, large)])
    assert averaged["w"].tolist() == [[3.0, 1.75]]
    assert averaged["b"].tolist() == [0.5]
    assert {tensor.dtype for tensor in averaged.values()} == {torch.float32}


def test_small_weights_are_not_lost_beside_large_ones():
    # float32 holds 2^24 + 1 as 2^24: summed in it, (2^24 + 1 + 1 - 2^24) / 4 would be 0
    updates = [(1, {"w": torch.tensor([value])}) for value in (2.0**24, 1.0, 1.0, -(2.0**24))]
    assert average(updates)["w"].tolist() == [0.5]


def test_running_statistics_are_averaged_and_counters_take_the_largest():
    def norm(mean, batches):
        state = nn.BatchNorm1d(2).state_dict()
        return {**state, "running_mean": torch.tensor(mean), "num_batches_tracked": torch.tensor(batches)}

    averaged = average([(1, norm([0.0, 2.0], 7)), (1, norm([1.0, 4.0], 9)), (2, norm([2.0, 1.0], 8))])
    assert averaged["running_mean"].tolist() == [1.25, 2.0]  # (0 + 1 + 2*2) / 4, (2 + 4 + 2*1) / 4
    assert averaged["running_var"].tolist() == [1.0, 1.0]
    assert averaged["num_batches_tracked"].dtype == torch.int64
    assert averaged["num_batches_tracked"].item() == 9
    nn.BatchNorm1d(2).load_state_dict(averaged)


@pytest.mark.parametrize("rows", [1, 3, 7, 999_983])
def test_one_sites_average_is_itself_bit_by_bit(rows):
    weights = {"w": torch.randn(1000, generator=torch.Generator().manual_seed(rows)) * 1e-3}
    assert torch.equal(average([(rows, weights)])["w"], weights["w"])


@pytest.mark.parametrize("updates", [[], [(0, {"w": torch.ones(1)})]])
def test_an_average_of_no_rows_is_refused(updates):
    with pytest.raises(ValueError, match="0 rows in all"):
        average(updates)


def test_a_model_that_diverges_ends_it_with_one_sentence(study):
    job = Job("mlp", Training(lr=1e30, batch_size=10), epochs=2, seed=7, device="cpu")
    with pytest.raises(WorkerError, match=r"^fedavg of site-\d: Diverged: the training loss is not finite: lower lr$"):
        rounds_of(study, job)


def test_a_last_step_that_overflows_is_noticed(study):
    job = Job("linear", Training(lr=3.4e38, batch_size=100), epochs=1, seed=7, device="cpu")  # one batch: one step
    first = first_weights("linear", (4,), 3, seed=7)
    with pytest.raises(Diverged, match=r"the weights after round 2 are not finite: lower lr"):
        local_update(first, job, "site-1", 2, load_proxy(study / "proxy"), private(study, "site-1"))


SMALL = {
    "federation": {"clients": 3, "rounds": 1, "rows_per_round": 100, "workers": 2},
    "data": {"name": "digits", "partition": "iid", "proxy": 200, "private": 300, "test": 200},
    "client": {"models": ["linear"], "local_epochs": 3, "distil_epochs": 1},
    "student": {"model": "mlp", "distil_epochs": 1},
    "baselines": {"fedavg": True, "fedavg_rounds": 4, "local_only": True},
}


def config(**changed):
    return parse_config({**SMALL, **{key: {**SMALL.get(key, {}), **value} for key, value in changed.items()}}, ".")


def table(out):
    with (out / "fedavg.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "out"
    return run_experiment(config(), out), out


def test_a_run_tells_what_fedavg_came_to(finished):
    run, out = finished
    rows, told = table(out), run["fedavg"]
    assert list(rows[0]) == ["round", "accuracy", "upload_bytes", "download_bytes", "seconds"]
    assert [row["round"] for row in rows] == ["1", "2", "3", "4"]
    assert set(told) == {"accuracy", "rounds", "upload_bytes", "download_bytes", "seconds"}
    assert told["accuracy"] == float(rows[-1]["accuracy"]) > 0.5  # ten classes, chance is .1
    assert told["rounds"] == 4
    blob = len(first_weights("mlp", (1, 8, 8), 10, seed=1))
    assert 4 * 26_122 < blob < 4 * 26_122 + 1000  # mlp on 64 inputs
    assert told["upload_bytes"] == sum(int(row["upload_bytes"]) for row in rows) == 4 * 3 * blob
    assert told["download_bytes"] == sum(int(row["download_bytes"]) for row in rows) == 4 * 3 * blob
    assert ">FedAvg<" in (out / "report.html").read_text()


def test_resuming_trains_nothing_again(finished, tmp_path, monkeypatch):
    before, out = finished[0], shutil.copytree(finished[1], tmp_path / "out")
    with monkeypatch.context() as patched:
        patched.setattr(fedavg, "run_fedavg", None)
        patched.setattr(WorkerPool, "tasks", None)
        without = run_experiment(config(baselines={"fedavg": False, "local_only": False}), out, resume=True)
        assert (without["fedavg"], without["local_only"]) == (None, None)
        assert not (out / "fedavg.csv").exists()
        assert ">FedAvg<" not in (out / "report.html").read_text()
        again = run_experiment(config(), out, resume=True)
        assert (again["fedavg"], again["local_only"]) == (before["fedavg"], before["local_only"])
        assert table(out) == table(finished[1])
    # another number of rounds is another FedAvg: now, with 0, the federation's 1
    shorter = run_experiment(config(baselines={"fedavg_rounds": 0}), out, resume=True)
    assert (shorter["fedavg"]["rounds"], len(table(out))) == (1, 1)
    assert table(out)[0]["accuracy"] == table(finished[1])[0]["accuracy"]
    # ... and so is another number of passes: three are what the clients take
    named = run_experiment(config(baselines={"fedavg_epochs": 3}), out, resume=True)
    assert named["fedavg"]["accuracy"] == before["fedavg"]["accuracy"]
    fewer = run_experiment(config(baselines={"fedavg_epochs": 1}), out, resume=True)
    assert fewer["fedavg"]["accuracy"] < before["fedavg"]["accuracy"]


def test_a_run_whose_fedavg_diverges_says_so(tmp_path):
    with pytest.raises(WorkerError, match="Diverged"):
        run_experiment(config(client={"lr": 1e30}, baselines={"local_only": False}), tmp_path / "out")
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["verdict"] == "failed"
    assert "fedavg of site-00" in run["reason"]
    assert "lower lr" in run["reason"]


def test_the_comparison_has_a_row_for_it_only_if_it_was_run():
    told = {"accuracy": 0.912, "rounds": 20, "upload_bytes": 3_000, "download_bytes": 2_000, "seconds": 1.0}
    rows = comparison_rows({"fedavg": told, "pooled": {"accuracy": 0.95}})
    names = [row.name for row in rows]
    assert names[-4:-2] == ["FedAvg (weights leave the sites)", "pooled data (upper bound)"]
    assert rows[-4].value == "91.2 %"
    assert rows[-4].note == "5.0 kB up and down in 20 rounds, the student's model at every client"
    assert all("FedAvg" not in row.name for row in comparison_rows({"fedavg": None}))
