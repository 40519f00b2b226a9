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

from simulations.config import ExperimentConfig, load_config
from simulations.experiment import run_experiment

pytestmark = pytest.mark.slow

DEMO = Path(__file__).resolve().parents[2] / "simulations" / "configs" / "demo.toml"


def config(engine: str) -> ExperimentConfig:
    """The demo's own configuration at three sites; a node of a deployment starts a process for every message."""
    # local_only stays on: it opens a site in a worker before the nodes train it, and that model must not be evaluated.
    overrides = [
        f'federation.engine="{engine}"',
        "federation.clients=3",
        "federation.rounds=4",
        "baselines.pooled=false",
    ]
    return load_config(DEMO, [*overrides, 'federation.device="cpu"'])


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_experiment(config("in-process"), tmp_path_factory.mktemp("reference") / "out")


SMALL = (
    "[federation]\nclients = 3\nrounds = 2\nrows_per_round = 100\ndevice = 'cpu'\n"
    "[data]\nname = 'digits'\nproxy = 0.2\ntest = 0.2\n"
    "[client]\nmodels = ['mlp', 'linear']\nlocal_epochs = 1\ndistil_epochs = 1\n"
    "[student]\nmodel = 'linear'\ndistil_epochs = 1\n[baselines]\nlocal_only = true\n"
    # a rule of the user's own, beside the study: Flower's processes run elsewhere
    "[strategy]\npreset = 'ds-fl'\naggregator = 'deployed_rules:Ours'\n"
)


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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, out = uuid.uuid4().hex, tmp_path / "out"
    (tmp_path / "config.toml").write_text(SMALL)
    (tmp_path / "deployed_rules.py").write_text("from strategies.aggregators.median import Median as Ours\n")
    monkeypatch.chdir(tmp_path)
    command = [str(Path(sys.executable).parent / "consilium"), "deploy", "local", "config.toml", "--nodes", "3"]
    process = subprocess.Popen(
        [*command, "--out", str(out)],
        cwd=tmp_path,
        env={**os.environ, "CONSILIUM_TEST": token},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A background job inherits an ignored SIGINT; the user's terminal does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
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
    steady = run_experiment(load_config(tmp_path / "config.toml"), tmp_path / "steady")
    deployed = load_config(tmp_path / "config.toml", ['federation.engine="deployment"'])
    assert run_experiment(deployed, out, resume=True)["teacher"] == steady["teacher"]
