"""The two engines over Flower: Ray on this machine, and a SuperLink with real SuperNodes on 127.0.0.1."""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from server.checks import Failure
from server.config import write_job
from server.launch import PENDING_S, LocalSuperLink, PlatformError, stage_app
from simulations.engines.in_process import WorkerPool
from simulations.prepared import RunFailed, Setup, View
from strategies.parts import PARTS_FOLDER

# Asking Flower for a run's status costs a second of processor time; the files that we watch cost nothing.
STATUS_S, LOOK_S = 8.0, 0.3
UNANSWERED = 3


def simulation(setup: Setup, pool: WorkerPool, view: View) -> dict[str, float]:
    """Rounds over Flower's Ray engine; returns every client's last test accuracy.

    Raises:
        RunFailed: the run did not complete.
        PlatformError: Flower did not start.
    """
    sites = {**_own_parts(), "CONSILIUM_SITES": str((setup.study.folder / "sites").resolve())}
    nodes = {"num-supernodes": len(setup.study.names), "client-resources-num-cpus": 1}
    if setup.config.federation.workers:
        nodes["init-args-num-cpus"] = setup.config.federation.workers
    view.phase("starting Flower")
    with LocalSuperLink(_logs(setup), simulation=True, environment=sites) as link:
        _run(setup, link, view, pool, nodes)
    return pool.evaluate()


def deployment(setup: Setup, pool: WorkerPool, view: View) -> dict[str, float]:
    """Rounds over a SuperLink and one SuperNode a client; returns every client's last test accuracy.

    Raises:
        RunFailed: the run did not complete.
        PlatformError: Flower did not start.
    """
    view.phase("starting Flower")
    with LocalSuperLink(_logs(setup), environment=_own_parts()) as link:
        for name, path in setup.site_files.items():
            link.start_node(name, path)
        _run(setup, link, view, pool, None)
    return pool.evaluate()


def _own_parts() -> dict[str, str]:
    """Where Flower's processes, which run elsewhere, find the user's own rules."""
    return {PARTS_FOLDER: os.environ.get(PARTS_FOLDER) or os.getcwd()}


def _logs(setup: Setup) -> Path:
    return setup.out / "checkpoint" / "logs"


def _run(setup: Setup, link: LocalSuperLink, view: View, pool: WorkerPool, nodes: dict[str, int] | None) -> None:
    """Submit the run and follow it to its end."""
    pool.forget()  # models of the baselines: the nodes' own states, on disk, are the ones to evaluate
    notes = setup.out.resolve() / "checkpoint"
    (notes / "job").mkdir(parents=True, exist_ok=True)
    write_job(notes / "job" / "federation.json", setup.federation)
    for name in ("failure.json", "sites.json"):
        (notes / name).unlink(missing_ok=True)
    config = {
        "job-dir": str(notes / "job"),
        "out-dir": str(setup.out.resolve()),
        "resume": (notes / "server.safetensors").exists(),
    }
    done = len(_rows(setup.out / "metrics.csv"))
    run = link.submit(stage_app(link.home), config, nodes)
    view.phase(f"waiting for {len(setup.study.names)} nodes")
    status, details = _follow(setup, link, view, run, done)
    if (notes / "failure.json").is_file():
        raise _failed(json.loads((notes / "failure.json").read_text()))
    if status != "finished:completed":
        raise RunFailed(f"Flower ended the run as {status} {details}".rstrip() + f": see {_logs(setup)}")


def _follow(setup: Setup, link: LocalSuperLink, view: View, run: str, done: int) -> tuple[str, str]:
    """Show rounds as they finish; returns Flower's last word on the run."""
    notes, table = setup.out / "checkpoint", setup.out / "metrics.csv"
    submitted, asked, begun, unanswered = time.monotonic(), time.monotonic(), False, 0
    while True:
        if not begun and (begun := (notes / "sites.json").is_file()):
            view.phase("rounds")
        for row in _rows(table)[done:]:
            view.row(row)
            done += 1
        # Before the first round every process is needed; later a lost node is one client's failure.
        if not begun or "superlink" in link.ended():
            link.check()
        over = done >= setup.federation.rounds or (notes / "failure.json").is_file()
        if time.monotonic() - asked > (1.0 if over else STATUS_S):
            status, details, unanswered = _status(link, run, unanswered)
            asked = time.monotonic()
            if status.startswith("finished"):
                for row in _rows(table)[done:]:
                    view.row(row)
                return status, details
            if status == "pending" and asked - submitted > PENDING_S:
                raise PlatformError(f"Flower has not begun the run after {PENDING_S:g} s: see {_logs(setup)}")
        time.sleep(LOOK_S)


def _status(link: LocalSuperLink, run: str, unanswered: int) -> tuple[str, str, int]:
    """Flower's word on the run, and how often in a row it had none; one slow answer must not end a healthy run."""
    try:
        return *link.status(run), 0
    except PlatformError:
        if unanswered + 1 >= UNANSWERED:
            raise
        return "unknown", "", unanswered + 1


def _rows(path: Path) -> list[dict[str, Any]]:
    """metrics.csv as numbers; None for an empty cell. It is replaced as a whole, so it is always readable."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [{key: _number(value) for key, value in row.items()} for row in csv.DictReader(file)]


def _number(text: str) -> int | float | None:
    if not text:
        return None
    read: Callable[[str], int | float] = float if "." in text or "n" in text else int
    return read(text)


def _failed(told: dict[str, Any]) -> RunFailed:
    failures = tuple((int(told["round"]), Failure(**failure)) for failure in told["failures"])
    return RunFailed(str(told["reason"]), failures, refused=told["refused"])
