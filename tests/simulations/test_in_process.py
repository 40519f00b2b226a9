"""The worker pool: the same answers for any number of workers, and a dead or slow worker costs one answer."""

import os
import signal
import time

import numpy as np
import psutil
import pytest

from client.node import Node
from server.checks import Failure
from simulations.engines.in_process import WorkerError, WorkerPool
from strategies.wire import encode_plan


@pytest.fixture
def sites(make_sites):
    return make_sites(4)


def pool(sites, workers=2, timeout_s=60.0):
    study = next(iter(sites.values())).parent.parent.parent
    return WorkerPool(study, dict.fromkeys(sites, 30), workers, timeout_s)


def everyone(crowd, blob):
    """The same plan to all, as replies."""
    return crowd.ask(dict.fromkeys(crowd.clients, blob))


def two_plans(sites, make_plan):
    from strategies.soft_labels import SoftLabels

    site = sites["site-0"]
    rows = np.arange(0, 60, 2)
    teacher = SoftLabels.from_logits(rows, np.random.default_rng(0).normal(size=(30, 3)))
    return [encode_plan(make_plan(site)), encode_plan(make_plan(site, round=2, teachers=(teacher,)))]


def test_any_number_of_workers_gives_the_bytes_of_direct_calls(sites, make_sites, make_plan, tmp_path):
    blobs = two_plans(sites, make_plan)
    nodes = {name: Node.open(path) for name, path in make_sites(4, folder=tmp_path / "direct").items()}
    expected = [{name: node.answer(blob) for name, node in nodes.items()} for blob in blobs]
    for workers in (1, 3):
        fresh = make_sites(4, folder=tmp_path / f"pool-{workers}")
        with pool(fresh, workers) as crowd:
            got = [{reply.client: reply.payload for reply in everyone(crowd, blob)} for blob in blobs]
        assert got == expected


def test_a_killed_worker_is_replaced_and_no_answer_is_lost(sites, make_sites, make_plan, tmp_path):
    blobs = two_plans(sites, make_plan)
    with pool(make_sites(4, folder=tmp_path / "steady"), workers=1) as crowd:
        steady = [{reply.client: reply.payload for reply in everyone(crowd, blob)} for blob in blobs]
    with pool(sites, workers=1) as crowd:
        list(everyone(crowd, blobs[0]))
        before = crowd.evaluate()
        os.kill(crowd.pids[0], signal.SIGKILL)  # while it has nothing to do
        assert crowd.evaluate() == before
        replies = {}
        for reply in everyone(crowd, blobs[1]):
            if not replies:
                os.kill(crowd.pids[0], signal.SIGKILL)  # while it works on the next
            replies[reply.client] = reply.payload
    assert replies == steady[1]


def test_an_answer_that_kills_its_worker_twice_is_that_clients_failure(sites, make_plan, monkeypatch):
    blobs = two_plans(sites, make_plan)
    with pool(sites, workers=1) as crowd:
        original = crowd._restart

        def doomed(process):
            fresh = original(process)
            os.kill(fresh.pid, signal.SIGKILL)
            return fresh

        with monkeypatch.context() as patched:
            patched.setattr(crowd, "_restart", doomed)
            os.kill(crowd.pids[0], signal.SIGKILL)
            replies = list(everyone(crowd, blobs[0]))
        assert [reply.payload.reason for reply in replies] == ["crashed"] * 4
        assert all(isinstance(reply.payload, bytes) for reply in everyone(crowd, blobs[0]))


def test_a_stuck_worker_gives_no_reply_that_could_be_waited_for_and_answers_the_next_time(sites, make_plan):
    # `late` would keep its sites from being asked for a whole patience, for an answer that died with the worker
    blobs = two_plans(sites, make_plan)
    with pool(sites, workers=2) as crowd:
        list(everyone(crowd, blobs[0]))
        crowd._timeout_s = 2.0
        os.kill(crowd.pids[0], signal.SIGSTOP)
        replies = {reply.client: reply.payload for reply in everyone(crowd, blobs[1])}
        cut = [payload for payload in replies.values() if isinstance(payload, Failure)]
        assert cut
        assert len(cut) < 4
        assert {failure.reason for failure in cut} == {"no_reply"}
        crowd._timeout_s = 60.0
        assert all(isinstance(reply.payload, bytes) for reply in everyone(crowd, blobs[1]))


def test_nothing_is_left_running(sites, make_plan):
    with pool(sites) as crowd:
        list(everyone(crowd, two_plans(sites, make_plan)[0]))
        pids = crowd.pids
    deadline = time.monotonic() + 10
    while any(psutil.pid_exists(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_a_sentence_of_the_worker_reaches_the_caller(sites):
    sites["site-2"].write_text("nonsense")
    with pool(sites) as crowd, pytest.raises(WorkerError, match=r"evaluate of site-2: SiteConfigError.*no TOML"):
        crowd.evaluate()


def test_evaluation_and_baselines_are_those_of_the_site_itself(sites):
    from distillation.data import load_samples
    from simulations.baselines import accuracy, local_only

    test = load_samples(sites["site-0"].parent.parent.parent / "test.safetensors")
    node = Node.open(sites["site-0"])
    with pool(sites) as crowd:
        assert crowd.evaluate()["site-0"] == accuracy(node.learner, test)
        command = {"do": "local_only", "site": "site-0", "rounds": 3}
        assert list(crowd.tasks([command])) == [(command, local_only(node, 3, test))]
        assert all(50e6 < told["now_bytes"] <= told["peak_bytes"] for told in crowd.memory())


def test_a_worker_of_a_folder_with_a_foreign_client_runs_ours(sites, make_plan, tmp_path, monkeypatch):
    (tmp_path / "client").mkdir()
    (tmp_path / "client" / "__init__.py").write_text("raise RuntimeError('foreign code ran')")
    monkeypatch.chdir(tmp_path)
    with pool(sites) as crowd:
        replies = list(everyone(crowd, two_plans(sites, make_plan)[0]))
    assert all(isinstance(reply.payload, bytes) for reply in replies)
