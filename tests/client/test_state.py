"""A site's state is one file, whole or as it was."""

import os
import signal
import subprocess
import sys

import pytest
import torch

from client.state import SiteState, StateError, StateStore


def state(**changed):
    told = {
        "run": "ab" * 16,
        "round": 3,
        "plan_sha256": "cd" * 32,
        "counted": 5,
        "counted_sha256": "ef" * 32,
        "failed": "diverged",
        "revision": 1,
        "answer": b"answer",
        "spent": "5:ab:cd",
        "ledger": "cd",
        "trained": "{}",
        "learner": {"model.w": torch.full((4, 2), 1.5)},
        "memory": {"told.round": torch.tensor(2)},
    }
    return SiteState(**{**told, **changed})


@pytest.mark.parametrize("durable", [True, False])
def test_what_was_saved_comes_back(tmp_path, durable):
    store = StateStore(tmp_path / "new", durable=durable)
    assert store.load() is None
    store.save(state(), after=0)
    got, kept = StateStore(tmp_path / "new", durable=durable).load(), state()
    for name in (
        "run",
        "round",
        "plan_sha256",
        "counted",
        "counted_sha256",
        "failed",
        "revision",
        "answer",
        "spent",
        "ledger",
        "trained",
    ):
        assert getattr(got, name) == getattr(kept, name)
    for name in ("learner", "memory"):
        assert {key: value.tolist() for key, value in getattr(got, name).items()} == {
            key: value.tolist() for key, value in getattr(kept, name).items()
        }
    assert sorted(os.listdir(tmp_path / "new")) == ["lock", "state.safetensors"]


def test_a_count_before_the_first_answer_comes_back(tmp_path):
    store = StateStore(tmp_path, durable=False)
    store.save(SiteState(counted=1, counted_sha256="ef" * 32, revision=1), after=0)
    got = store.load()
    assert (got.counted, got.counted_sha256, got.plan_sha256, got.answer, got.learner) == (1, "ef" * 32, "", b"", {})


@pytest.mark.parametrize("after", [0, 1, 3])
def test_only_the_successor_of_what_is_stored_is_saved(tmp_path, after):
    store = StateStore(tmp_path, durable=False)
    store.save(state(revision=1), after=0)
    store.save(state(revision=2, counted=6), after=1)
    with pytest.raises(StateError, match="changed by another process"):
        store.save(state(revision=after + 1, counted=7), after=after)
    assert store.load().counted == 6


@pytest.mark.parametrize("broken", [b"", b"not safetensors", b"\x80\x04pickle", None])
def test_a_broken_file_is_an_error_and_never_a_fresh_start(tmp_path, broken):
    store = StateStore(tmp_path, durable=False)
    store.save(state(), after=0)
    path = tmp_path / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-3] if broken is None else broken)
    with pytest.raises(StateError, match="broken"):
        store.load()
    with pytest.raises(StateError, match="broken"):
        store.save(state(), after=1)


def test_another_schema_is_an_error(tmp_path):
    from safetensors.torch import save_file

    save_file({"answer": torch.zeros(1, dtype=torch.uint8)}, tmp_path / "state.safetensors", {"schema": "9"})
    with pytest.raises(StateError, match="schema '9' and this version reads '6': finish the run"):
        StateStore(tmp_path, durable=False).load()


def test_a_process_killed_while_saving_leaves_a_whole_state(tmp_path):
    script = """
import sys, torch
from pathlib import Path
from client.state import SiteState, StateStore
store = StateStore(Path(sys.argv[1]), durable=False)
found = store.load()
done = found.revision if found else 0
for round_ in range(done + 1, 10**6):
    tensors = {"model.w": torch.full((300, 300), float(round_))}
    store.save(SiteState("ab" * 16, round_, revision=round_, answer=b"x" * round_, learner=tensors), after=done)
    done = round_
    print("ready", flush=True)
"""
    for wait in (0.05, 0.11, 0.17):
        child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
        child.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(timeout=wait)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        found = StateStore(tmp_path, durable=False).load()
        assert (found.learner["model.w"] == found.round).all()
        assert len(found.answer) == found.round
