"""The grid attack x aggregator: how much accuracy each rule loses to each attack, on the sites of one study."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from client.config import load_site
from client.data import load_private
from client.node import Node
from client.state import SiteState
from distillation.data import Proxy, Samples
from distillation.learner import Diverged
from server.config import read_job
from server.coordinator import coordinate
from server.rounds import Cohort, QuorumError, Reply
from simulations.attacks import build_attack
from simulations.config import ConfigError
from simulations.engines.cohorts import LIARS, AttackedCohort, some_clients
from simulations.engines.in_process import WorkerPool
from strategies.presets import PRESETS

# Rules as `--set strategy.aggregator=` takes them; a row of the grid each.
RULES: dict[str, dict[str, Any]] = {
    "mean": {"name": "mean"},
    "era": {"name": "era"},
    "logit-mean": {"name": "logit-mean"},
    "entropy": {"name": "entropy"},
    "hard-vote": {"name": "hard-vote"},
    "median": {"name": "median"},
    "trimmed-mean": {"name": "trimmed-mean"},
    "geometric-median": {"name": "geometric-median"},
    "spectral-filter": {"name": "spectral-filter"},
    "cronus": {"name": "cronus"},
    "cosine-filter": {"name": "cosine-filter"},
    "expguard": {"name": "expguard"},
    "guarded": dict(PRESETS["guarded"].strategy["aggregator"]),
}
# (attack, attackers of 10)
CASES: tuple[tuple[str, int], ...] = (
    ("nan", 1),
    ("scaled-logits", 1),
    ("random", 3),
    ("uniform", 5),
    ("replay", 3),
    ("label-shift", 4),
    ("second-likeliest", 4),
    ("least-likely", 4),
    ("class-covariance", 4),
    ("hips", 4),
    ("lie", 4),
    ("partial", 4),
    ("peak-controlled", 4),
    ("colluding", 2),
    ("colluding", 4),
)


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of the grid.

    Attributes:
        attack, attackers: "" and 0 for nobody.
        rule: its name in the grid.
        accuracy: of the student on the test rows; None where a round failed, which it does under an attack only.
        failed: why.
    """

    attack: str
    attackers: int
    rule: str
    accuracy: float | None
    failed: str = ""


class _InMemory:
    """A site's state that nobody needs after the cell."""

    def __init__(self) -> None:
        self._state: SiteState | None = None

    def load(self) -> SiteState | None:
        """The last saved state."""
        return self._state

    def save(self, state: SiteState, after: int) -> None:
        """Keep it as it is now: the model goes on learning in its own tensors."""
        self._state = replace(state, learner={key: value.clone() for key, value in state.learner.items()})


class _DirectCohort:
    """The sites of a study in this very process; messages are the real ones."""

    def __init__(self, sites: Mapping[str, Path], proxy: Proxy) -> None:
        self._nodes = {}
        for name, path in sites.items():
            config = load_site(path).model_copy(update={"privacy": None})  # the grid measures lies, not noise
            private = load_private(path.parent / config.private, config.target, proxy)
            self._nodes[name] = Node(config, proxy, private, _InMemory())  # type: ignore[arg-type]
        self.clients: Sequence[str] = sorted(sites)

    def ask(self, plans: Mapping[str, bytes]) -> Iterator[Reply]:
        """One exchange."""
        for client, plan in plans.items():
            yield Reply(client, self._nodes[client].answer(plan))


def run_cell(study: Path, command: Mapping[str, Any], proxy: Proxy, test: Samples) -> dict[str, Any]:
    """One run of the grid, in one process: all rounds, one rule, one attack.

    Args:
        study: holds federation.json beside the sites.
        command: `part`, the rule as a table with a name; `attack`, "" for none; `attackers`, how many.
    """
    told = read_job(study / "federation.json")
    rule = dict(command["part"])
    changed = {"aggregator": rule.pop("name"), "aggregator_settings": rule, "keep_votes": False}
    config = told.model_copy(update=changed)
    sites = {path.parent.name: path for path in sorted((study / "sites").glob("*/site.toml"))}
    cohort: Cohort = _DirectCohort(sites, proxy)
    if command["attack"]:
        seed = config.exchange.seed
        liars = some_clients(cohort.clients, command["attackers"], seed, LIARS)
        attack = build_attack(command["attack"], {})
        cohort = AttackedCohort(cohort, liars, attack, seed, config.exchange.proxy_rows)
    with tempfile.TemporaryDirectory() as out:
        try:
            done = coordinate(config, cohort, proxy, test, Path(out))
        except (QuorumError, Diverged) as error:
            return {"accuracy": None, "failed": str(error)}
    return {"accuracy": done.last.accuracy if done.last else None, "failed": ""}


def run_grid(
    study: Path,
    sizes: Mapping[str, int],
    rules: Mapping[str, Mapping[str, Any]],
    cases: Sequence[tuple[str, int]],
    workers: int,
) -> Iterator[Cell]:
    """Every rule without an attack, then under each, as they finish; cells run side by side over the workers.

    Args:
        study: folder of a prepared study with federation.json beside it.
        rules: tables with a name, by their name in the grid.
        cases: (attack, number of attackers).

    Raises:
        WorkerError: a cell could not be run.
        ConfigError: a rule fails where nobody attacks; these cells come first.
    """
    commands = [
        {"do": "robustness", "attack": attack, "attackers": attackers, "rule": rule, "part": dict(part)}
        for attack, attackers in [("", 0), *cases]
        for rule, part in rules.items()
    ]
    with WorkerPool(study, sizes, workers, timeout_s=3600.0) as pool:
        for command, header, _ in pool.answers(commands):
            if not command["attack"] and header["accuracy"] is None:
                raise ConfigError(
                    f"rule {command['rule']!r} fails where nobody attacks ({header['failed']}): leave it out, or "
                    "change the study"
                )
            yield Cell(command["attack"], command["attackers"], command["rule"], header["accuracy"], header["failed"])


def lost(cells: Sequence[Cell]) -> dict[tuple[str, str], float | None]:
    """Points of accuracy that a rule loses to an attack, by (attack with its number, rule); None where a round failed.

    >>> cells = [Cell("", 0, "mean", 0.9), Cell("random", 3, "mean", 0.85)]
    >>> round(lost(cells)[("random (3)", "mean")], 6)
    5.0
    """
    clean = {cell.rule: cell.accuracy for cell in cells if not cell.attack}
    points: dict[tuple[str, str], float | None] = {}
    for cell in cells:
        before = clean.get(cell.rule)
        if cell.attack:
            missing = cell.accuracy is None or before is None
            points[(f"{cell.attack} ({cell.attackers})", cell.rule)] = (
                None if missing else 100.0 * (before - cell.accuracy)  # type: ignore[operator]
            )
    return points


def write_cells(path: Path, cells: Sequence[Cell]) -> None:
    """Every cell as one line of JSON, for those who want to look closer."""
    path.write_text("".join(json.dumps(asdict(cell)) + "\n" for cell in cells))
