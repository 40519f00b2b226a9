"""A site's state is one file, whole or as it was."""

import os
import signal
import subprocess
import sys

import pytest
import torch

from client.state import SiteState, StateError, StateStore


def state(round_=3, fill=1.5):
    return SiteState("ab" * 16, round_, "cd" * 32, round_, b"answer", {"model.w": torch.full((4, 2), fill)})


@pytest.mark.parametrize("durable", [True, False])
def test_what_was_saved_comes_back(tmp_path, durable):
    store = StateStore(tmp_path / "new", durable=durable)
    assert store.load() is None
    store.save(state(), after=0)
    got = StateStore(tmp_path / "new", durable=durable).load()
    assert (got.run, got.round, got.plan_sha256, got.answer) == ("ab" * 16, 3, "cd" * 32, b"answer")
    assert torch.equal(got.learner["model.w"], torch.full((4, 2), 1.5))
    assert sorted(os.listdir(tmp_path / "new")) == ["lock", "state.safetensors"]


@pytest.mark.parametrize("broken", [b"", b"not safetensors", b"\x80\x04pickle", None])
def test_a_broken_file_is_an_error_and_never_a_fresh_start(tmp_path, broken):
    store = StateStore(tmp_path, durable=False)
    store.save(state(), after=0)
    path = tmp_path / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-3] if broken is None else broken)
    with pytest.raises(StateError, match="broken"):
        store.load()


def test_another_schema_is_an_error(tmp_path):
    from safetensors.torch import save_file

    save_file({"answer": torch.zeros(1, dtype=torch.uint8)}, tmp_path / "state.safetensors", {"schema": "9"})
    with pytest.raises(StateError, match="schema '9'"):
        StateStore(tmp_path, durable=False).load()


def test_a_process_killed_while_saving_leaves_a_whole_state(tmp_path):
    script = """
import sys, torch
from pathlib import Path
from client.state import SiteState, StateStore
store = StateStore(Path(sys.argv[1]), durable=False)
found = store.load()
done = found.answered if found else 0
for round_ in range(done + 1, 10**6):
    tensors = {"model.w": torch.full((300, 300), float(round_))}
    store.save(SiteState("ab" * 16, round_, "cd" * 32, round_, b"x" * round_, tensors), after=done)
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
