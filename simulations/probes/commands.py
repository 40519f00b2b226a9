"""What the commands around a run do: proxy-fit, bench robustness, check-rule; each leaves files."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from client.config import PartSection
from distillation.data import load_proxy
from distillation.export import write_atomically
from server.config import write_job
from simulations.attacks import ATTACKS
from simulations.benchmarks.heatmap import write_heatmap
from simulations.config import ConfigError, ExperimentConfig, toml_value
from simulations.engines.in_process import WorkerPool
from simulations.preparation import check_config, check_fits, prepare, rule_of
from simulations.prepared import Setup
from simulations.probes.proxy_fit import Fit, measure
from simulations.probes.robustness import CASES, RULES, Cell, lost, run_grid, write_cells
from simulations.sections import AttackSection
from strategies.aggregator import Aggregator, traits_of
from strategies.aggregators import AGGREGATORS, build_aggregator
from strategies.contract import check_aggregator


def fit_of(config: ExperimentConfig, out: Path) -> Fit:
    """Whether a configuration's proxy set suits its sites; writes proxy-fit.json and proxy-fit.csv.

    Raises:
        ConfigError, DataError, WorkerError: what was asked for cannot be had; nothing is left behind.
    """
    check_config(config)
    if traits_of(rule_of(config)).subject == "classes":
        raise ConfigError(
            f"strategy.aggregator {config.strategy.aggregator.name!r} needs no proxy rows, so that none can be judged: "
            "set another preset or rule, or run it"
        )
    with own_folder(out), _prepared(config, out) as setup:
        labels = load_proxy(setup.study.proxy, verify=False).samples.labels
        with WorkerPool(
            setup.study.folder, setup.sizes, config.federation.workers, config.federation.timeout_s
        ) as pool:
            fit = measure(setup, pool, None if labels is None else labels.numpy())
        write_atomically(out / "proxy-fit.json", (json.dumps(fit.as_json(), indent=1) + "\n").encode())
        write_csv(out / "proxy-fit.csv", fit.rows())
    return fit


def robustness_of(
    config: ExperimentConfig,
    out: Path,
    rules: Sequence[str] = (),
    attacks: Sequence[str] = (),
    seeds: int = 1,
    on_cell: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """The grid attack x aggregator; writes robustness.csv, robustness.svg and cells.jsonl.

    Args:
        rules: some of the grid's, of AGGREGATORS or module:Name; where empty all of the grid's.
        attacks: some of the grid's; all where empty.
        seeds: the grid is run with so many seeds, and the points are their mean.

    Raises:
        ConfigError: a rule or an attack that there is not, or that does not go with the study.
    """
    if unknown := [name for name in rules if name not in {*RULES, *AGGREGATORS} and ":" not in name]:
        known = ", ".join(dict.fromkeys([*RULES, *AGGREGATORS]))
        raise ConfigError(f"unknown rule {unknown[0]!r}; known: {known}, and module:Name")
    if unknown := [name for name in attacks if name not in ATTACKS]:
        raise ConfigError(f"unknown attack {unknown[0]!r}; known: {', '.join(sorted(ATTACKS))}")
    chosen = {name: RULES.get(name, {"name": name}) for name in rules or RULES}
    cases = [
        (name, max(1, round(count * config.federation.clients / 10)))
        for name, count in CASES
        if not attacks or name in attacks
    ]
    cases = list(dict.fromkeys(cases))  # 2 and 4 of 10 are both one of three
    every = list(_every_cell(config, chosen.values(), cases))
    for cell_config in (config, *every):
        check_config(cell_config)
    asked_by = [_rule_with_a_student(cell_config) for cell_config in (config, *every)][1:]
    grids: list[Mapping[tuple[str, str], float | None]] = []
    clean: list[dict[str, float | None]] = []
    everything: list[Cell] = []
    order = [(rule, attack, count) for rule in chosen for attack, count in [("", 0), *cases]]
    total = seeds * len(order)
    with own_folder(out):
        for seed in range(config.federation.seed, config.federation.seed + seeds):
            federation = config.federation.model_copy(update={"seed": seed})
            with _prepared(config.model_copy(update={"federation": federation}), out, asked_by) as setup:
                for cell_config in every:
                    check_fits(cell_config, setup.study)
                write_job(setup.study.folder / "federation.json", setup.federation)
                cells: list[Cell] = []
                for cell in run_grid(setup.study.folder, setup.sizes, chosen, cases, federation.workers):
                    cells.append(cell)
                    on_cell(len(everything) + len(cells), total)
            everything.extend(sorted(cells, key=lambda cell: order.index((cell.rule, cell.attack, cell.attackers))))
            grids.append(lost(cells))
            clean.append({cell.rule: cell.accuracy for cell in cells if not cell.attack})
        names = [f"{name} ({count})" for name, count in cases]
        points = {name: {rule: _mean([grid[name, rule] for grid in grids]) for rule in chosen} for name in names}
        accuracies = {rule: _mean([each[rule] for each in clean]) for rule in chosen}
        write_cells(out / "cells.jsonl", everything)
        table = [[points[name][rule] for rule in chosen] for name in names]
        write_heatmap(out / "robustness", names, list(chosen), table)
    return {"attacks": names, "rules": list(chosen), "lost": points, "accuracy": accuracies, "seeds": seeds}


def _every_cell(
    config: ExperimentConfig, rules: Iterable[Mapping[str, Any]], cases: Iterable[tuple[str, int]]
) -> Iterator[ExperimentConfig]:
    """The configuration of every cell that has an attack.

    Raises:
        ConfigError: what no cell would have.
    """
    if config.attack is not None:
        raise ConfigError(f"attack.name={config.attack.name!r}: the grid has attacks of its own; take [attack] out")
    if config.stragglers.share:
        raise ConfigError(f"stragglers.share={config.stragglers.share}: nobody is late in the grid; set it to 0")
    if config.newcomers.share:
        raise ConfigError(f"newcomers.share={config.newcomers.share}: nobody joins later in the grid; set it to 0")
    for rule in rules:
        strategy = config.strategy.model_copy(update={"aggregator": PartSection.model_validate(rule)})
        for name, count in cases:
            attack = AttackSection(name=name, clients=count)
            yield config.model_copy(update={"strategy": strategy, "attack": attack})


def _rule_with_a_student(config: ExperimentConfig) -> Aggregator:
    """The rule of a configuration.

    Raises:
        ConfigError: its method trains no student.
    """
    rule = rule_of(config)
    if traits_of(rule).subject == "classes":
        raise ConfigError(
            f"strategy.aggregator {config.strategy.aggregator.name!r} trains no student, and the grid compares "
            "accuracies of students: take another rule"
        )
    return rule


def check_rule_named(name: str, settings: Sequence[str]) -> None:
    """Try a rule against the laws of all rules: see strategies.contract.

    Raises:
        ConfigError: no such rule or setting, or the laws that it breaks.
    """
    told: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not (equals and key.strip()):
            raise ConfigError(f"--set {setting!r} must read key=value, for example temperature=0.5")
        told[key.strip()] = toml_value(text)
    try:
        broken = check_aggregator(build_aggregator(name, told))
    except (KeyError, ValueError) as error:
        raise ConfigError(str(error.args[0])) from None
    if broken:
        raise ConfigError(f"{name} breaks {len(broken)} of the laws of all rules: {'; '.join(broken)}")


@contextmanager
def own_folder(out: Path) -> Iterator[None]:
    """A folder of results that is this command's own; where it fails, nothing of it is left.

    Raises:
        ConfigError: it is in use, or cannot be made.
    """
    there = out.exists()
    if there and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is no empty folder: name another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written ({error.strerror}): name another --out") from None
    try:
        yield
    except BaseException:
        shutil.rmtree(out)
        if there:
            out.mkdir()
        raise


@contextmanager
def _prepared(config: ExperimentConfig, out: Path, rules: Sequence[Aggregator] = ()) -> Iterator[Setup]:
    """A study in `out` for as long as it is needed; its sites will be asked by these rules, else by its own."""
    try:
        yield prepare(config, out, rules) if rules else prepare(config, out)
    finally:
        shutil.rmtree(out / "checkpoint", ignore_errors=True)


@contextmanager
def study_in(config: ExperimentConfig, out: Path) -> Iterator[Setup]:
    """A study in a folder of its own, checked before anything is written."""
    check_config(config)
    with own_folder(out), _prepared(config, out) as setup:
        yield setup


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One line a mapping, all with the keys of the first."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())
