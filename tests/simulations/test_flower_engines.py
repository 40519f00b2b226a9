"""The law of three networks, over the real Flower."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import psutil
import pytest

from simulations.config import ExperimentConfig, parse_config
from simulations.experiment import run_experiment

pytestmark = pytest.mark.slow

SETTINGS: dict[str, Any] = {
    "federation": {"clients": 3, "rounds": 2, "rows_per_round": 100, "device": "cpu"},
    "data": {"name": "digits", "proxy": 0.2, "test": 0.2},
    "client": {"models": ["mlp", "linear"], "local_epochs": 1, "distil_epochs": 1},
    "student": {"model": "linear", "distil_epochs": 1},
    # A baseline opens a site in a worker before the nodes train it: its model there must not be evaluated.
    "baselines": {"local_only": True},
}


def config(engine: str) -> ExperimentConfig:
    return parse_config({**SETTINGS, "federation": {**SETTINGS["federation"], "engine": engine}}, base=".")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_experiment(config("in-process"), tmp_path_factory.mktemp("reference") / "out")


def begun_here(token: str) -> list[str]:
    """Command lines of the living processes that inherited the token."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("CONSILIUM_TEST") == token and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except (psutil.Error, OSError):
            continue
    return found


@pytest.mark.parametrize("engine", ["flower-simulation", "deployment"])
def test_flower_gives_the_teacher_of_the_in_process_engine(
    engine: str, reference: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine == "flower-simulation":
        pytest.importorskip("ray")
    token = uuid.uuid4().hex
    monkeypatch.setenv("CONSILIUM_TEST", token)
    run = run_experiment(config(engine), tmp_path / "out")
    assert begun_here(token) == []
    assert run["verdict"] == "ok", run["reason"]
    assert run["teacher"] == reference["teacher"]
    assert run["student"] == reference["student"]
    assert run["clients"] == reference["clients"]
    assert run["upload_bytes"] == reference["upload_bytes"]


def test_an_interrupted_deployment_leaves_no_process_and_can_be_resumed(
    reference: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, out = uuid.uuid4().hex, tmp_path / "out"
    (tmp_path / "config.toml").write_text(
        "[federation]\nrounds = 2\nrows_per_round = 100\ndevice = 'cpu'\n"
        "[data]\nname = 'digits'\nproxy = 0.2\ntest = 0.2\n"
        "[client]\nmodels = ['mlp', 'linear']\nlocal_epochs = 1\ndistil_epochs = 1\n"
        "[student]\nmodel = 'linear'\ndistil_epochs = 1\n[baselines]\nlocal_only = true\n"
    )
    command = [str(Path(sys.executable).parent / "consilium"), "deploy", "local", "config.toml", "--nodes", "3"]
    process = subprocess.Popen(
        [*command, "--out", str(out)],
        cwd=tmp_path,
        env={**os.environ, "CONSILIUM_TEST": token},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith("round 1/"):
                break
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        process.stdout.read()
        assert process.wait(timeout=60) == 130
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    deadline = time.monotonic() + 5.0
    while begun_here(token) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert begun_here(token) == []
    resumed = run_experiment(config("deployment"), out, resume=True)
    assert resumed["teacher"] == reference["teacher"]
