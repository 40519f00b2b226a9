"""One experiment from its configuration to its folder of results, on any engine."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from client.config import PolicySection, SiteConfig, TrainingSection, write_site
from distillation.data import classes_sha256, load_proxy, load_samples
from distillation.export import write_atomically
from distillation.learner import Diverged, Training
from distillation.models import MODELS, build_model
from distillation.runtime import device_named
from server.checkpoint import load_progress
from server.config import FederationConfig, StudentSettings
from server.coordinator import coordinate
from server.rounds import Exchange, QuorumError
from simulations.config import ConfigError, ExperimentConfig
from simulations.in_process import WorkerPool
from simulations.prepared import RunFailed, Setup, View, alone, claim, release, run_id, write_config
from simulations.report import write_report
from simulations.study import Study, prepare_study
from simulations.summary import summary
from strategies.aggregators import build_aggregator
from strategies.codecs import codec_named

# A dead node is noticed by Flower after 50 to 63 s: a shorter exchange would call it late.
SHORTEST_DEPLOYMENT_S = 70.0


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
    _check(config)
    fresh = claim(out, config, resume)
    with alone(out):
        view.phase("preparing data")
        try:
            setup = prepare(config, out)
        except BaseException:
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
            dict(zip(setup.study.names, setup.study.sizes, strict=True)),
            config.federation.workers,
            config.federation.timeout_s,
        ) as pool:
            baselines = _baselines(setup, pool, view)
            each = _engine(config.federation.engine)(setup, pool, view)
    except RunFailed as error:
        failed = error
    except QuorumError as error:
        failed = RunFailed(str(error), tuple((error.round, failure) for failure in error.failures))
    except Diverged as error:
        failed = RunFailed(f"the student diverged ({error}): lower student.lr or student.distil_lr")
    except Exception as error:
        failed, other = RunFailed(f"{type(error).__name__}: {error}"), error
    progress = load_progress(checkpoint, setup.federation)
    told = summary(setup, progress, baselines, each, failed, time.perf_counter() - started)
    write_atomically(out / "run.json", (json.dumps(told, indent=1, allow_nan=False) + "\n").encode())
    view.phase("writing the report")
    write_report(out)
    if other is not None:
        raise other
    return told


def prepare(config: ExperimentConfig, out: Path) -> Setup:
    """Data dealt out, site files written, the coordinator's settings complete.

    Raises:
        ConfigError, DataError: what was asked for cannot be had.
    """
    federation = config.federation
    folder = out.resolve() / "checkpoint" / "study"
    shutil.rmtree(folder, ignore_errors=True)  # of the run that is resumed; it is written anew, the same
    study = prepare_study(config.data, federation.clients, federation.seed, folder)
    models = _models(config, study)
    student = _student_model(config, study)
    settings = FederationConfig(
        exchange=Exchange(
            run=run_id(config, study.proxy_sha256),
            seed=federation.seed,
            proxy_sha256=study.proxy_sha256,
            classes_sha256=classes_sha256(study.classes),
            classes=len(study.classes),
            proxy_rows=study.proxy_rows,
            codec=config.strategy.codec,
            rows_per_round=federation.rows_per_round,
            quorum=federation.quorum,
            participation=federation.participation,
        ),
        rounds=federation.rounds,
        clients=federation.clients,
        aggregator=config.strategy.aggregator.name,
        aggregator_settings=config.strategy.aggregator.settings,
        student=StudentSettings(
            model=student,
            training=training_of(config.student),
            distil_epochs=config.student.distil_epochs,
            best_metric=config.student.best_metric,
        ),
        proxy=str(study.proxy),
        test=str(study.test),
        device=federation.device,
        timeout_s=federation.timeout_s,
    )
    setup = Setup(config, study, settings, models, out)
    for name, path in setup.site_files.items():
        write_site(path, _site(config, study, name, models[name], out))
    return setup


def training_of(section: Any) -> Training:
    """The learner's settings of a [client] or [student] section."""
    return Training(
        section.optimizer,
        section.lr,
        section.distil_lr or section.lr,
        section.momentum,
        section.weight_decay,
        section.batch_size,
        section.distil_loss,
        section.temperature,
    )


def in_process(setup: Setup, pool: WorkerPool, view: View) -> dict[str, float]:
    """Rounds over the worker pool; returns every client's last test accuracy."""
    latest: dict[str, float] = {}
    every, last = setup.config.federation.evaluate_every, setup.federation.rounds

    def evaluate(round_: int) -> tuple[float, float] | None:
        if round_ != last and (every == 0 or round_ % every):
            return None
        latest.update(pool.evaluate())
        values = [latest[name] for name in sorted(latest)]
        return float(np.mean(values)), min(values)

    view.phase("rounds")
    coordinate(
        setup.federation,
        pool,
        load_proxy(Path(setup.federation.proxy), verify=False),
        load_samples(Path(setup.federation.test)),
        setup.out,
        evaluate=evaluate,
        on_round=lambda row: view.row(asdict(row)),
    )
    return latest or pool.evaluate()


Engine = Callable[[Setup, WorkerPool, View], dict[str, float]]


def _engine(name: str) -> Engine:
    if name == "in-process":
        return in_process
    from simulations import flower_engine

    return flower_engine.simulation if name == "flower-simulation" else flower_engine.deployment


def _check(config: ExperimentConfig) -> None:
    """What can be refused before any data is read."""
    try:
        build_aggregator(config.strategy.aggregator.name, config.strategy.aggregator.settings)
        codec_named(config.strategy.codec)
        device_named(config.federation.device)
    except (KeyError, ValueError) as error:
        raise ConfigError(str(error.args[0])) from None
    for name, section in (("client", config.client), ("student", config.student)):
        try:
            training_of(section)
        except ValueError as error:
            raise ConfigError(f"{name}: {error}") from None
    for name in (*config.client.models, config.student.model):
        if name != "auto" and name not in MODELS:
            raise ConfigError(f"unknown model {name!r}; known: auto, {', '.join(sorted(MODELS))}")
    if config.federation.engine == "flower-simulation" and find_spec("ray") is None:
        raise ModuleNotFoundError("the flower-simulation engine needs Ray", name="ray")
    engine, timeout_s = config.federation.engine, config.federation.timeout_s
    if engine != "in-process" and timeout_s < SHORTEST_DEPLOYMENT_S:
        raise ConfigError(
            f"federation.timeout_s = {timeout_s:g} must be at least {SHORTEST_DEPLOYMENT_S:g} with the {engine} "
            "engine: Flower needs up to 63 s to notice a dead node"
        )


def _default_model(study: Study) -> str:
    return "cnn-small" if len(study.shape) == 3 and min(study.shape[1:]) >= 4 else "mlp"


def _built(name: str, study: Study) -> str:
    try:
        build_model(name, tuple(study.shape), len(study.classes), seed=0)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return name


def _models(config: ExperimentConfig, study: Study) -> dict[str, str]:
    dealt = [_default_model(study) if name == "auto" else name for name in config.client.models]
    for name in set(dealt):
        _built(name, study)
    return {name: dealt[index % len(dealt)] for index, name in enumerate(study.names)}


def _student_model(config: ExperimentConfig, study: Study) -> str:
    name = config.student.model
    return _built(_default_model(study) if name == "auto" else name, study)


def _site(config: ExperimentConfig, study: Study, name: str, model: str, out: Path) -> SiteConfig:
    client = config.client
    return SiteConfig(
        site=name,
        private="private.safetensors",
        proxy=str(study.proxy),
        state=str(out.resolve() / "checkpoint" / "sites" / name),
        seed=config.federation.seed,
        device=config.federation.device,
        model=model,
        training=TrainingSection(
            **asdict(training_of(client)),
            distil_epochs=client.distil_epochs,
            local_epochs=client.local_epochs,
            public_epochs=client.public_epochs,
            warmup_epochs=client.warmup_epochs,
        ),
        policy=PolicySection(
            proxy_sha256=[study.proxy_sha256],
            max_rows_per_round=config.federation.rows_per_round,
            max_answers=config.federation.rounds,
        ),
    )


def _baselines(setup: Setup, pool: WorkerPool, view: View) -> dict[str, Any]:
    """Local-only and pooled accuracies as configured; kept beside the checkpoint, so that resuming is cheap."""
    wanted, federation = setup.config.baselines, setup.config.federation
    kept = setup.out / "checkpoint" / "baselines.json"
    key = {**wanted.model_dump(), "rounds": federation.rounds}
    if kept.is_file():
        stored: dict[str, Any] = json.loads(kept.read_text())
        if stored.pop("key") == key:
            return stored
    commands: list[dict[str, Any]] = []
    if wanted.local_only:
        commands += [{"do": "local_only", "site": name, "rounds": federation.rounds} for name in setup.study.names]
    if wanted.pooled:
        commands.append(
            {
                "do": "pooled",
                "model": setup.federation.student.model,
                "training": asdict(training_of(setup.config.client)),
                "epochs": wanted.pooled_epochs or federation.rounds * setup.config.client.local_epochs,
                "seed": federation.seed,
                "device": federation.device,
            }
        )
    local: dict[str, float] = {}
    result: dict[str, Any] = {"local_only": None, "pooled": None}
    for done, (command, accuracy) in enumerate(pool.tasks(commands), start=1):
        view.phase(f"baselines {done}/{len(commands)}")
        if command["do"] == "pooled":
            result["pooled"] = {"accuracy": accuracy}
        else:
            local[command["site"]] = accuracy
    if local:
        values = [local[name] for name in sorted(local)]
        result["local_only"] = {"accuracy_mean": float(np.mean(values)), "accuracy_min": min(values)}
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(kept, json.dumps({"key": key, **result}).encode())
    return result
