"""What points came to, as numbers: one row a point, and means over seeds of those that differ in nothing else."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distillation.export import write_table
from simulations.reporting.figures import finite
from simulations.sweeps.grid import SEED, Axis, Point, label

# Columns of sweep.csv and measures of summary.csv, with where run.json has them.
MEASURES: dict[str, tuple[str, ...]] = {
    "student_accuracy": ("student", "accuracy"),
    "student_macro_f1": ("student", "macro_f1"),
    "teacher_accuracy": ("teacher", "accuracy"),
    "client_accuracy_mean": ("clients", "accuracy_mean"),
    "client_accuracy_min": ("clients", "accuracy_min"),
    "upload_bytes": ("upload_bytes",),
    "download_bytes": ("download_bytes",),
    "seconds": ("seconds",),
    "epsilon": ("privacy", "max", "epsilon"),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """A point and what became of it.

    Attributes:
        run: its run.json; None where there is none, yet or for good.
        reason: why it failed; None where it did not, or was not run yet.
    """

    point: Point
    run: Mapping[str, Any] | None = None
    reason: str | None = None

    @property
    def verdict(self) -> str:
        """`ok`, `degraded`, `failed`, or "" for a point that was not run yet."""
        if self.reason is not None:
            return "failed"
        return "" if self.run is None else str(self.run.get("verdict", "failed"))

    @property
    def finished(self) -> bool:
        """Whether it has a result."""
        return self.verdict in ("ok", "degraded")

    def measure(self, name: str) -> float | None:
        """One of MEASURES; None where it was not measured, and for a point without a result."""
        return finite(_at(self.run, MEASURES[name])) if self.finished else None

    @property
    def statement(self) -> str | None:
        """What was promised to the records of every client, as run.json says it."""
        told = _at(self.run, ("privacy", "max", "statement"))
        return None if told is None else str(told)


def _at(told: Any, path: Sequence[str]) -> Any:
    for key in path:
        told = told.get(key) if isinstance(told, Mapping) else None
    return told


@dataclass(frozen=True, slots=True)
class Spread:
    """A measure over the seeds.

    Attributes:
        n: seeds that have it.
        std: sample standard deviation (over n - 1); None for one seed.
        low, high: the smallest and the largest.
    """

    n: int
    mean: float
    std: float | None
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Group:
    """Points that differ in nothing but the seed.

    Attributes:
        values: by the axis' key, without the seed's.
    """

    values: Mapping[str, Any]
    outcomes: tuple[Outcome, ...]

    @property
    def failed(self) -> int:
        """Points of it that failed."""
        return sum(outcome.verdict == "failed" for outcome in self.outcomes)

    def spread(self, measure: str) -> Spread | None:
        """One of MEASURES over the seeds; None where no seed has it."""
        return spread([value for outcome in self.outcomes if (value := outcome.measure(measure)) is not None])


def spread(values: Sequence[float]) -> Spread | None:
    """Mean, sample standard deviation and range; None of nothing.

    >>> spread([1.0, 2.0, 6.0])  # squares of -2, -1, 3: 14 / 2 = 7
    Spread(n=3, mean=3.0, std=2.6457513110645907, low=1.0, high=6.0)
    """
    if not values:
        return None
    std = statistics.stdev(values) if len(values) > 1 else None
    return Spread(len(values), statistics.fmean(values), std, min(values), max(values))


def promises_of(outcomes: Iterable[Outcome]) -> str:
    """What every epsilon of these points stands for, for captions; "" where nothing was promised.

    For example "epsilon: record, zero-out, delta 1e-05, plan; SIMULATION, NOT PRIVATE".
    """
    told = [promise for one in outcomes if one.finished and (promise := _at(one.run, ("privacy", "max")))]
    if not told:
        return ""

    def each(key: str) -> str:
        return " or ".join(sorted({f"{one[key]:g}" if key == "delta" else str(one[key]) for one in told}))

    stated = [each("unit"), each("adjacency").replace("_", "-"), f"delta {each('delta')}", each("composition")]
    stamp = "; SIMULATION, NOT PRIVATE" if any(one["seeded"] for one in told) else ""
    return f"epsilon: {', '.join(stated)}{stamp}"


def groups_of(outcomes: Sequence[Outcome]) -> list[Group]:
    """Outcomes by all their values but the seed, in the order of their first appearance."""
    together: dict[tuple[tuple[str, str], ...], list[Outcome]] = {}
    for outcome in outcomes:
        values = tuple((key, repr(value)) for key, value in outcome.point.values.items() if key != SEED)
        together.setdefault(values, []).append(outcome)
    return [Group(_without_seed(alike[0].point.values), tuple(alike)) for alike in together.values()]


def _without_seed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != SEED}


def point_rows(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """One row a point: its values, verdict, measures, and the sentence on its privacy."""
    return [
        {
            "point": outcome.point.slug,
            **{key: label(value) for key, value in outcome.point.values.items()},
            "verdict": outcome.verdict,
            **{name: _whole(name, outcome.measure(name)) for name in MEASURES},
            "privacy": outcome.statement,
            "reason": outcome.reason,
        }
        for outcome in outcomes
    ]


def _whole(name: str, value: float | None) -> float | int | None:
    return int(value) if value is not None and name.endswith("_bytes") else value


def summary_rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """One row for each measure of each group that any seed has, with what its epsilons stand for."""
    return [
        {
            **{key: label(value) for key, value in group.values.items()},
            "measure": name,
            "mean": over.mean,
            "std": over.std,
            "min": over.low,
            "max": over.high,
            "n": over.n,
            "privacy": promises_of(group.outcomes),
        }
        for group in groups
        for name in MEASURES
        if (over := group.spread(name)) is not None
    ]


def write_tables(out: Path, axes: Sequence[Axis], outcomes: Sequence[Outcome]) -> None:
    """Write sweep.csv (a row a point) and summary.csv (a row for each measure of points that differ in the seed only).

    Guarantees:
        The same outcomes give the same bytes, in whatever order they came.
    """
    keys = [axis.key for axis in axes]
    _write(out / "sweep.csv", ["point", *keys, "verdict", *MEASURES, "privacy", "reason"], point_rows(outcomes))
    columns = [*(key for key in keys if key != SEED), "measure", "mean", "std", "min", "max", "n", "privacy"]
    _write(out / "summary.csv", columns, summary_rows(groups_of(outcomes)))


def _write(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    write_table(path, columns, ([row[column] for column in columns] for row in rows))
