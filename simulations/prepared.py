"""What is known before the first round: a prepared experiment, its identity, and its folder of results."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from distillation.export import locked, write_atomically
from server.checkpoint import refuse_lost
from server.checks import Failure
from server.config import FederationConfig
from simulations.config import ConfigError, ExperimentConfig
from simulations.study import Study

# What a resumed run may change: how much is done and how it is carried out, not what any round computes.
FREE = frozenset(
    [
        *(f"federation.{key}" for key in ("rounds", "workers", "timeout_s", "evaluate_every", "engine")),
        *(f"baselines.{key}" for key in ("local_only", "pooled", "pooled_epochs")),
        *(f"baselines.{key}" for key in ("fedavg", "fedavg_rounds", "fedavg_epochs")),
        "privacy.tuning",
    ]
)


class View(Protocol):
    """Who watches: consilium.display, or nobody."""

    def phase(self, text: str) -> None: ...
    def row(self, metrics: Mapping[str, Any]) -> None: ...


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

    @property
    def sizes(self) -> dict[str, int]:
        """Private rows of each site."""
        return dict(zip(self.study.names, self.study.sizes, strict=True))

    @property
    def states(self) -> dict[str, Path]:
        """Folder of each site's model and, in a private run, of its ledger."""
        return {name: self.out.resolve() / "checkpoint" / "sites" / name for name in self.study.names}


class RunFailed(RuntimeError):
    """The run ended without a result: quorum, platform or abort; what was done is in the folder of results.

    Attributes:
        refused: by privacy budgets or policies alone: to resume cannot help.
    """

    def __init__(self, reason: str, failures: tuple[tuple[int, Failure], ...] = (), *, refused: bool = False) -> None:
        super().__init__(reason)
        self.failures, self.refused = failures, refused


def run_id(config: ExperimentConfig, proxy_sha256: str) -> str:
    """32 hex digits: the same for a resumed run, another for another experiment."""
    kept = {key: value for key, value in _flat(config).items() if key not in {*_free(config), "data.path"}}
    if kept["data.seed"] is None:  # as before there was such a key, so that the same experiment has the same noise
        del kept["data.seed"]
    return hashlib.sha256((json.dumps(kept, sort_keys=True) + proxy_sha256).encode()).hexdigest()[:32]


def _free(config: ExperimentConfig) -> frozenset[str]:
    """What a resumed run may change: with a promise not how many rounds the budget is for."""
    promises = config.privacy is not None and config.privacy.promises
    return FREE - {"federation.rounds"} if promises else FREE


def claim(out: Path, config: ExperimentConfig, resume: bool) -> bool:
    """Make `out` this run's; True where it is new.

    Raises:
        ConfigError: the folder holds another run, or something else, or with `resume` no run.
        CheckpointError: with `resume`, a run that has finished rounds and no checkpoint.
    """
    try:
        return _claimed(out, config, resume)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written ({error.strerror}): name another --out") from None


def _claimed(out: Path, config: ExperimentConfig, resume: bool) -> bool:
    begun = out / "config.json"
    if resume:
        if not begun.is_file():
            raise ConfigError(f"nothing to resume in {out}: run without --resume, or name the --out of the run")
        refuse_lost(out)
        before = _flat(read_config(out))
        after = _flat(config)
        free = _free(config)
        changed = [key for key in {**before, **after} if before.get(key) != after.get(key) and key not in free]
        if changed:
            raise ConfigError(
                f"{out} was begun with another {', '.join(changed)}: resume with the same configuration, "
                "or name another --out"
            )
        return False
    if begun.exists():
        raise ConfigError(f"{out} already holds a run: add --resume to go on with it, or name another --out")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is no empty folder and holds no run: name another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_config(out, config)
    return True


def write_config(out: Path, config: ExperimentConfig) -> None:
    """Say what the folder's run was begun with, or goes on with."""
    write_atomically(out / "config.json", (json.dumps(config.resolved(), indent=1) + "\n").encode())


def read_config(out: Path) -> ExperimentConfig:
    """What write_config wrote.

    Raises:
        ConfigError: it is broken, or of another version.
        OSError: it is not there.
    """
    path = out / "config.json"
    try:
        return ExperimentConfig.model_validate(json.loads(path.read_bytes()))
    except ValueError as error:  # no JSON, no text, or not our keys
        raise ConfigError(f"{path} is no configuration of this version: name another folder of results") from error


def release(out: Path) -> None:
    """Take back what claim and a failed preparation made in a folder that was empty."""
    shutil.rmtree(out / "checkpoint", ignore_errors=True)
    for name in ("config.json", "checkpoint.lock"):
        (out / name).unlink(missing_ok=True)
    if not any(out.iterdir()):
        out.rmdir()


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Only one process runs in a folder.

    Raises:
        ConfigError: another one does.
    """
    with ExitStack() as held:
        try:
            held.enter_context(locked(out / "checkpoint.lock", wait=False))
        except BlockingIOError:
            raise ConfigError(f"{out} is being written by another run: wait for it, or name another --out") from None
        yield


def _flat(config: ExperimentConfig) -> dict[str, object]:
    """`section.key` to value."""
    return {
        f"{section}.{key}": value
        for section, values in config.resolved().items()
        for key, value in (values or {}).items()
    }
