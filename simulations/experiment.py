"""One experiment from its configuration to its folder of results, on any engine."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from client.config import PolicySection, SiteConfig, TrainingSection, write_site
from distillation.data import classes_sha256, load_proxy, load_samples
from distillation.export import write_atomically
from distillation.learner import Training
from distillation.models import MODELS, build_model, parameter_count
from distillation.runtime import device_named
from server.checkpoint import Progress, RoundMetrics, load_progress
from server.checks import Failure
from server.config import FederationConfig, StudentSettings
from server.coordinator import coordinate
from server.launch import PlatformError
from server.rounds import Exchange, QuorumError
from server.student_job import predicted
from simulations.config import ConfigError, ExperimentConfig
from simulations.in_process import WorkerPool
from simulations.report import write_report
from simulations.study import Study, prepare_study
from strategies.aggregators import build_aggregator
from strategies.codecs import codec_named
from strategies.selection import participants

# A dead node is noticed by Flower after 50 to 63 s: a shorter exchange would call it late.
SHORTEST_DEPLOYMENT_S = 70.0


class View(Protocol):
    """Who watches: consilium.display, or nobody."""

    def phase(self, text: str) -> None: ...
    def row(self, metrics: Mapping[str, Any]) -> None: ...


class Silence:
    """Nobody watches."""

    def phase(self, text: str) -> None:
        """Nothing."""

    def row(self, metrics: Mapping[str, Any]) -> None:
        """Nothing."""


@dataclass(frozen=True, slots=True)
class Setup:
    """A prepared experiment: everything an engine needs.

    Attributes:
        config: the experiment's file, complete.
        study: sites, proxy and test rows on disk.
        federation: the coordinator's settings.
        models: architecture of each site, by name.
        out: the folder of results.
    """

    config: ExperimentConfig
    study: Study
    federation: FederationConfig
    models: Mapping[str, str]
    out: Path

    @property
    def site_files(self) -> dict[str, Path]:
        """site.toml of each site."""
        return {name: self.study.folder / "sites" / name / "site.toml" for name in self.study.names}


class RunFailed(RuntimeError):
    """The run ended without a result: quorum, platform or abort; what was done is in the folder of results."""

    def __init__(self, reason: str, failures: tuple[tuple[int, Failure], ...] = ()) -> None:
        super().__init__(reason)
        self.failures = failures


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
    _claim(out, config, resume)
    view.phase("preparing data")
    try:
        setup = prepare(config, out)
    except BaseException:
        if not resume:
            _release(out)
        raise
    baselines: dict[str, Any] = {}
    failed: RunFailed | None = None
    platform: PlatformError | None = None
    each: dict[str, float] = {}
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
    except PlatformError as error:
        failed, platform = RunFailed(str(error)), error
    except QuorumError as error:
        failed = RunFailed(str(error), tuple((error.round, failure) for failure in error.failures))
    progress = load_progress(out / "checkpoint" / "server.safetensors", setup.federation)
    run = _summary(setup, progress, baselines, each, failed, time.perf_counter() - started)
    write_atomically(out / "run.json", (json.dumps(run, indent=1) + "\n").encode())
    view.phase("writing the report")
    write_report(out)
    shutil.rmtree(setup.study.folder, ignore_errors=True)
    if platform is not None:
        raise platform
    return run


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
            run=_run_id(config, study),
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
        proxy=str(study.folder / "proxy"),
        test=str(study.folder / "test.safetensors"),
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
    for name in (*config.client.models, config.student.model):
        if name != "auto" and name not in MODELS:
            raise ConfigError(f"unknown model {name!r}; known: auto, {', '.join(sorted(MODELS))}")
    engine, timeout_s = config.federation.engine, config.federation.timeout_s
    if engine != "in-process" and timeout_s < SHORTEST_DEPLOYMENT_S:
        raise ConfigError(
            f"federation.timeout_s = {timeout_s:g} must be at least {SHORTEST_DEPLOYMENT_S:g} with the {engine} "
            "engine: Flower needs up to 63 s to notice a dead node"
        )


def _claim(out: Path, config: ExperimentConfig, resume: bool) -> None:
    """Make `out` this run's, or refuse a folder that holds another one."""
    begun = out / "config.json"
    told = json.dumps(config.resolved(), indent=1) + "\n"
    if resume:
        if not begun.is_file():
            raise ConfigError(f"nothing to resume in {out}: run without --resume, or name the --out of the run")
        before = json.loads(begun.read_text())
        after = json.loads(told)
        for free in ("rounds", "workers", "timeout_s", "evaluate_every", "device", "engine"):
            before["federation"].pop(free, None)
            after["federation"].pop(free, None)
        changed = [
            f"{section}.{key}"
            for section in after
            for key in after[section]
            if before.get(section, {}).get(key) != after[section][key] and section != "baselines"
        ]
        if changed:
            raise ConfigError(
                f"{out} was begun with another {', '.join(changed)}: resume with the same configuration, "
                "or name another --out"
            )
    elif begun.exists():
        raise ConfigError(f"{out} already holds a run: add --resume to go on with it, or name another --out")
    elif out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty and holds no run: name another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(begun, told.encode())


def _release(out: Path) -> None:
    """Take back what _claim and a failed preparation made; the folder was empty before."""
    shutil.rmtree(out / "checkpoint", ignore_errors=True)
    (out / "config.json").unlink(missing_ok=True)
    if not any(out.iterdir()):
        out.rmdir()


def _run_id(config: ExperimentConfig, study: Study) -> str:
    told = config.resolved()
    for free in ("rounds", "workers", "timeout_s", "evaluate_every", "device", "engine"):
        told["federation"].pop(free)
    told["data"].pop("path")
    told.pop("baselines")
    return hashlib.sha256((json.dumps(told, sort_keys=True) + study.proxy_sha256).encode()).hexdigest()[:32]


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
        proxy=str(study.folder / "proxy"),
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
            max_rounds=config.federation.rounds,
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


def _summary(
    setup: Setup,
    progress: Progress,
    baselines: Mapping[str, Any],
    each: Mapping[str, float],
    failed: RunFailed | None,
    seconds: float,
) -> dict[str, Any]:
    """run.json; its keys are promised in the README."""
    study, config = setup.study, setup.config
    rows, last = progress.rounds, progress.rounds[-1] if progress.rounds else None
    failures = (*progress.failures, *(failed.failures if failed else ()))
    verdict = "failed" if failed else "degraded" if failures else "ok"
    parameters = {
        name: parameter_count(build_model(name, tuple(study.shape), len(study.classes), seed=0))
        for name in {*setup.models.values(), setup.federation.student.model}
    }
    return {
        "schema": 1,
        "verdict": verdict,
        "reason": str(failed) if failed else None,
        "config": config.resolved(),
        "engine": config.federation.engine,
        "seed": config.federation.seed,
        "versions": versions(),
        "proxy_sha256": study.proxy_sha256,
        "classes": list(study.classes),
        "rounds_done": len(rows),
        "student": _student_summary(setup, progress, parameters),
        "teacher": _teacher_summary(progress),
        "clients": {
            "accuracy_mean": float(np.mean([each[name] for name in sorted(each)])) if each else None,
            "accuracy_min": min(each.values()) if each else None,
            "each": [
                {
                    "client": name,
                    "model": setup.models[name],
                    "parameters": parameters[setup.models[name]],
                    "rows": int(study.sizes[index]),
                    "class_counts": [int(count) for count in study.class_counts[index]],
                    "accuracy": each.get(name),
                }
                for index, name in enumerate(study.names)
            ],
        },
        "local_only": baselines.get("local_only"),
        "pooled": baselines.get("pooled"),
        "failures": [{"round": round_, **asdict(failure)} for round_, failure in failures],
        "upload_bytes": sum(row.upload_bytes for row in rows),
        "download_bytes": sum(row.download_bytes for row in rows),
        "weights_bytes": _weights_bytes(setup, rows, parameters),
        "seconds": round(seconds, 3),
        "confusion": _confusion(setup, progress),
        "last_round": asdict(last) if last else None,
    }


def _student_summary(setup: Setup, progress: Progress, parameters: Mapping[str, int]) -> dict[str, Any]:
    model = setup.federation.student.model
    told: dict[str, Any] = {
        "model": model,
        "parameters": parameters[model],
        "accuracy": None,
        "macro_f1": None,
    }
    if progress.rounds:
        card = json.loads((setup.out / "student.json").read_text())
        told |= {"accuracy": card["accuracy"], "macro_f1": card["macro_f1"]}
    return {**told, "best": asdict(progress.best) if progress.best else None}


def _teacher_summary(progress: Progress) -> dict[str, Any]:
    if progress.teacher is None:
        return {"accuracy": None, "entropy_nats": None, "sha256": None}
    probabilities = progress.teacher.probabilities()
    digest = hashlib.sha256(progress.teacher.rows.tobytes() + progress.teacher.log_probs.tobytes())
    return {
        "accuracy": progress.rounds[-1].teacher_accuracy,
        "entropy_nats": float(-(probabilities * progress.teacher.log_probs).sum(axis=1).mean()),
        "sha256": digest.hexdigest(),
    }


def _weights_bytes(setup: Setup, rows: tuple[RoundMetrics, ...], parameters: Mapping[str, int]) -> int:
    """What sending float32 weights down and up would have cost the same clients in the same rounds."""
    exchange = setup.federation.exchange
    return sum(
        2 * 4 * parameters[setup.models[name]]
        for row in rows
        for name in participants(exchange.seed, row.round, setup.study.names, exchange.participation)
    )


def _confusion(setup: Setup, progress: Progress) -> list[list[int]] | None:
    """Test rows by (true class, class that the last student says)."""
    from server.student_job import build_student

    test = load_samples(setup.study.folder / "test.safetensors")
    if not progress.student or test.labels is None:
        return None
    student = build_student(setup.federation, load_proxy(setup.study.folder / "proxy", verify=False))
    student.restore(progress.student)
    counts = np.zeros((len(setup.study.classes),) * 2, np.int64)
    np.add.at(counts, (test.labels.numpy(), predicted(student, test)), 1)
    return [[int(count) for count in row] for row in counts]


def versions() -> dict[str, str]:
    """Versions that a repetition should match."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("consilium", "flwr", "numpy", "torch")},
    }


def with_clients(config: ExperimentConfig, clients: int, engine: str) -> ExperimentConfig:
    """The same experiment with another number of clients on another engine."""
    federation = config.federation.model_copy(update={"clients": clients, "engine": engine})
    return config.model_copy(update={"federation": federation})
