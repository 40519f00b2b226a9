"""One experiment from its configuration to its folder of results, on any engine."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from distillation.data import load_proxy, load_samples
from distillation.export import state_privacy, write_atomically
from distillation.learner import Diverged
from server.checkpoint import load_progress
from server.coordinator import coordinate
from server.rounds import Cohort, QuorumError
from simulations.baselines import run_baselines
from simulations.config import ExperimentConfig
from simulations.deals import keep_deal
from simulations.engines.cohorts import (
    AttackedCohort,
    GrowingCohort,
    LateCohort,
    late_of,
    liars_of,
    newcomers_of,
    there,
)
from simulations.engines.in_process import WorkerPool
from simulations.preparation import attack_of, check_config, prepare, training_of
from simulations.prepared import RunFailed, Setup, View, alone, claim, release, write_config
from simulations.promises import TEST_ROWS
from simulations.reporting.report import write_report
from simulations.reporting.summary import summary


class Silence:
    """Nobody watches."""

    def phase(self, text: str) -> None:
        """Nothing."""

    def row(self, metrics: Mapping[str, Any]) -> None:
        """Nothing."""


def run_experiment(
    config: ExperimentConfig, out: Path, *, resume: bool = False, view: View | None = None
) -> dict[str, Any]:
    """Run an experiment and write its folder.

    Args:
        config: complete settings.
        out: made if missing; must not hold another run, or with `resume` must hold this one.
        view: told of phases and rounds.

    Returns:
        What run.json holds; its `verdict` is ok, degraded or failed.

    Raises:
        ConfigError, DataError: nothing was begun.
        CheckpointError: `resume` and the folder belongs to another configuration.
        PlatformError: Flower could not be started; the folder says so, too.
    """
    started = time.perf_counter()
    view = view or Silence()
    check_config(config)
    fresh = claim(out, config, resume)
    with alone(out):
        view.phase("preparing data")
        try:
            setup = prepare(config, out)
            keep_deal(config, setup.study)
        except BaseException:
            shutil.rmtree(out / "checkpoint" / "study", ignore_errors=True)
            if fresh:
                release(out)
            raise
        try:
            return _run(setup, view, started)
        finally:
            shutil.rmtree(setup.study.folder, ignore_errors=True)


def _run(setup: Setup, view: View, started: float) -> dict[str, Any]:
    """Rounds on the engine, and what is told of them; a run that could not end well says so before it raises."""
    config, out = setup.config, setup.out
    checkpoint = out / "checkpoint" / "server.safetensors"
    load_progress(checkpoint, setup.federation)  # refused here, if it is another run's
    for stale in ("run.json", "report.html"):
        (out / stale).unlink(missing_ok=True)
    write_config(out, config)
    baselines: dict[str, Any] = {}
    each: dict[str, float] = {}
    failed: RunFailed | None = None
    other: Exception | None = None
    try:
        with WorkerPool(
            setup.study.folder,
            setup.sizes,
            config.federation.workers,
            config.federation.timeout_s,
        ) as pool:
            baselines = run_baselines(setup, pool, view, training_of(config.client))
            each = _engine(config.federation.engine)(setup, pool, view)
    except RunFailed as error:
        failed = error
    except QuorumError as error:
        missing = tuple((error.round, failure) for failure in error.failures)
        failed = RunFailed(str(error), missing, refused=error.refused)
    except Diverged as error:
        failed = RunFailed(f"the student diverged ({error}): lower student.lr or student.distil_lr")
    except Exception as error:
        failed, other = RunFailed(f"{type(error).__name__}: {error}"), error
    progress = load_progress(checkpoint, setup.federation)
    told = summary(setup, progress, baselines, each, failed, time.perf_counter() - started)
    write_atomically(out / "run.json", (json.dumps(told, indent=1, allow_nan=False) + "\n").encode())
    if (most := (told["privacy"] or {}).get("max")) is not None:
        for stem in ("student", "student-best"):
            state_privacy(out, stem, most["statement"], TEST_ROWS)
    view.phase("writing the report")
    write_report(out)
    if other is not None:
        raise other
    return told


def in_process(setup: Setup, pool: WorkerPool, view: View) -> dict[str, float]:
    """Rounds over the worker pool; returns every client's last test accuracy."""
    latest: dict[str, float] = {}
    every, last = setup.config.federation.evaluate_every, setup.federation.rounds

    def evaluate(round_: int) -> tuple[float, float] | None:
        if round_ != last and (every == 0 or round_ % every):
            return None
        latest.update(pool.evaluate())
        values = [latest[name] for name in there(setup.config, setup.study.names, round_)]
        return float(np.mean(values)), min(values)

    view.phase("rounds")
    coordinate(
        setup.federation,
        _around(setup, pool),
        load_proxy(Path(setup.federation.proxy), verify=False),
        load_samples(Path(setup.federation.test)),
        setup.out,
        evaluate=evaluate,
        on_round=lambda row: view.row(asdict(row)),
    )
    return latest or pool.evaluate()


def _around(setup: Setup, pool: WorkerPool) -> Cohort:
    """The pool, with the liars and the latecomers that the configuration puts between it and the coordinator."""
    config, study = setup.config, setup.study
    cohort: Cohort = pool
    if (attack := attack_of(config)) is not None:
        liars = liars_of(config, study.names)
        cohort = AttackedCohort(pool, liars, attack, config.federation.seed, study.proxy_rows)
    if late := late_of(config, study.names):
        cohort = LateCohort(cohort, late, config.stragglers.rounds)
    if newcomers_of(config, study.names):
        done = len(load_progress(setup.out / "checkpoint" / "server.safetensors", setup.federation).rounds)
        cohort = GrowingCohort(cohort, lambda round_: there(config, study.names, round_), done)
    return cohort


Engine = Callable[[Setup, WorkerPool, View], dict[str, float]]


def _engine(name: str) -> Engine:
    if name == "in-process":
        return in_process
    from simulations.engines import flower as flower_engine

    return flower_engine.simulation if name == "flower-simulation" else flower_engine.deployment
