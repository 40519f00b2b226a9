"""Runs of a benchmark, kept in a folder: a benchmark that was interrupted goes on where it stopped."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from simulations.config import load_config, parse_config
from simulations.experiment import run_experiment
from simulations.reporting.comparison import percent

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
KEPT = Path("runs") / "benchmarks"


class Kept(NamedTuple):
    """A finished run: run.json, the rows of metrics.csv, and those of fedavg.csv if it has one."""

    run: dict[str, Any]
    metrics: list[dict[str, str]]
    fedavg: list[dict[str, str]]


class Lines:
    """A line a round, so that a long benchmark shows that it lives."""

    def __init__(self, name: str) -> None:
        self._name = name

    def phase(self, text: str) -> None:
        """What happens now."""

    def row(self, metrics: Mapping[str, Any]) -> None:
        """One finished round."""
        if metrics["round"] % 10 == 0:
            told = f"student {percent(metrics['student_accuracy'])} clients {percent(metrics['client_accuracy_mean'])}"
            print(f"{self._name} round {metrics['round']}: {told}", flush=True)


def kept_run(name: str, config: str, overrides: Sequence[str] = (), folder: Path = KEPT) -> Kept:
    """The run `name` of a configuration, from the folder or made now.

    Raises:
        RuntimeError: it failed, or what is kept is the run of another configuration.
    """
    out, wanted = folder / name, load_config(CONFIGS / f"{config}.toml", overrides)
    if not (out / "run.json").is_file():
        begun = (out / "config.json").is_file()
        run_experiment(wanted, out, resume=begun, view=Lines(name))
    told = json.loads((out / "run.json").read_text())
    # Read anew, so that a key which is newer than the run counts with its default.
    if parse_config(told["config"], base=".").resolved() != wanted.resolved():
        raise RuntimeError(f"{out} was made with other settings than {config}.toml has now: remove it to measure anew")
    if told["verdict"] == "failed":
        raise RuntimeError(f"{out} failed: {told['reason']}; remove it to try again")
    return Kept(told, _rows(out / "metrics.csv"), _rows(out / "fedavg.csv"))


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
