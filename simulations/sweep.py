"""A sweep: one experiment at every point of a grid, side by side, resumable, to one table and one page."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from distillation.runtime import device_named
from simulations.config import ConfigError
from simulations.engines.in_process import available_cores
from simulations.prepared import alone
from simulations.reporting.sweep_report import write_sweep_report
from simulations.sweeps.folder import claim_sweep, folder_of, outcome_of, write_manifest
from simulations.sweeps.grid import Axis, Point, plain
from simulations.sweeps.outcomes import Outcome, groups_of, point_rows, summary_rows, write_tables
from simulations.sweeps.pool import Job, run_jobs
from simulations.sweeps.price import price_of
from simulations.sweeps.shared import refuse_unpayable

# What a point's processes take at least: its coordinator and a worker, each with torch.
_POINT_BYTES = 2 * 2**30


class Watch(Protocol):
    """Who watches: consilium.sweeps, or nobody."""

    def begun(self, outcomes: Sequence[Outcome], parallel: int, price: str | None) -> None: ...
    def round(self, point: Point, round_: int) -> None: ...
    def finished(self, outcome: Outcome) -> None: ...


class Silence:
    """Nobody watches."""

    def begun(self, outcomes: Sequence[Outcome], parallel: int, price: str | None) -> None:
        """Nothing."""

    def round(self, point: Point, round_: int) -> None:
        """Nothing."""

    def finished(self, outcome: Outcome) -> None:
        """Nothing."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """A finished sweep.

    Attributes:
        outcomes: one a point, in the grid's order.
        price: of all of it on real private data; None where no point is private.
    """

    axes: tuple[Axis, ...]
    outcomes: tuple[Outcome, ...]
    price: str | None

    @property
    def failed(self) -> int:
        """Points without a result."""
        return sum(not outcome.finished for outcome in self.outcomes)

    @property
    def spent(self) -> tuple[str, ...]:
        """Points that budgets or policies ended, which no resuming changes: their folders' names."""
        return tuple(one.point.slug for one in self.outcomes if one.run is not None and one.run.get("refused"))

    def as_json(self) -> dict[str, Any]:
        """Axes, a row a point, means over seeds, price: what sweep.csv, summary.csv and sweep.json say."""
        return {
            "axes": {axis.key: [plain(value) for value in axis.values] for axis in self.axes},
            "points": point_rows(self.outcomes),
            "summary": summary_rows(groups_of(self.outcomes)),
            "failed": self.failed,
            "price": self.price,
        }


def run_sweep(
    points: Sequence[Point],
    axes: Sequence[Axis],
    out: Path,
    *,
    parallel: int | None = None,
    resume: bool = False,
    watch: Watch | None = None,
) -> Sweep:
    """Run every point into OUT/points/ and write sweep.json, sweep.csv, summary.csv, report.html and its plots as SVG.

    A point that fails is recorded, and the others go on. With `resume`, points with a result are not run again;
    begun and failed ones go on after their last finished round.

    Args:
        points: of simulations.sweeps.grid.points_of, all checked.
        parallel: points at once, each with its share of the cores; None: as many as suit the machine.

    Raises:
        ConfigError: the folder holds another sweep, the engine cannot run two points at once, or points that share
            their ledgers cannot all pay from them; nothing was begun.

    Guarantees:
        No number but seconds depends on `parallel`, or on how often the sweep was interrupted; but a ledger that
        several points share (privacy.ledgers) is spent in the order in which they come.
    """
    watch = watch or Silence()
    _refuse_side_by_side(points, parallel)
    refuse_unpayable([point.config for point in points])
    claim_sweep(out, axes, points, resume)
    with alone(out):
        done = {point.slug: outcome_of(out, point) for point in points}
        todo = [point for point in points if not done[point.slug].finished]
        slots = min(parallel or _suitable(points), len(todo))
        price = price_of([Outcome(point) for point in points])
        write_manifest(out, axes, list(done.values()), price)
        watch.begun(list(done.values()), slots, price)
        try:
            if todo:
                _run(out, axes, done, todo, slots, watch)
            price = price_of(list(done.values()))
        finally:
            write_manifest(out, axes, list(done.values()), price)
        write_tables(out, axes, list(done.values()))
        write_sweep_report(out, axes, list(done.values()), price)
    return Sweep(tuple(axes), tuple(done.values()), price)


def _run(
    out: Path, axes: Sequence[Axis], done: dict[str, Outcome], todo: Sequence[Point], slots: int, watch: Watch
) -> None:
    """Run what is left; the tables hold what there is after each point, so that an interrupted sweep has some, too."""
    by_out = {str(folder_of(out, point).resolve()): point for point in todo}
    (out / "logs").mkdir(exist_ok=True)
    share = max(1, available_cores() // slots)
    with closing(run_jobs([_job(out, point, share) for point in todo], slots)) as news:
        for job, told in news:
            point = by_out[job["out"]]
            if told["do"] == "round":
                watch.round(point, told["round"])
                continue
            done[point.slug] = _came_to(out, point, told.get("error"))
            log = Path(job["log"])
            if log.is_file() and not log.stat().st_size:
                log.unlink()
            write_tables(out, axes, list(done.values()))
            watch.finished(done[point.slug])


def _job(out: Path, point: Point, share: int) -> Job:
    """A point as its process is told of it, with its share of the cores."""
    config: dict[str, Any] = point.config.resolved()
    own = config["federation"]["workers"]
    config["federation"]["workers"] = min(own or share, share)
    log = out / "logs" / f"{point.slug}.log"
    return {"out": str(folder_of(out, point).resolve()), "log": str(log.resolve()), "config": config}


def _came_to(out: Path, point: Point, error: str | None) -> Outcome:
    """A point's outcome after it ran: what its folder says, or else what its process said."""
    try:
        outcome = outcome_of(out, point, error)
    except ConfigError as broken:
        return Outcome(point, None, error or str(broken))
    return outcome if outcome.run is not None or error else Outcome(point, None, "it left no run.json")


def _refuse_side_by_side(points: Sequence[Point], parallel: int | None) -> None:
    engines = sorted({point.config.federation.engine for point in points} - {"in-process"})
    if engines and parallel is not None and parallel > 1:
        raise ConfigError(
            f"--parallel {parallel} must be 1 with federation.engine={engines[0]!r}: Flower's processes use the same "
            "ports of this machine"
        )


def _suitable(points: Sequence[Point]) -> int:
    """Points at once: one a core while memory suffices; one at all over Flower's engines or on one GPU."""
    import psutil

    if any(point.config.federation.engine != "in-process" for point in points):
        return 1
    if any(device_named(name).type != "cpu" for name in {point.config.federation.device for point in points}):
        return 1
    return max(1, min(available_cores(), int(psutil.virtual_memory().available) // _POINT_BYTES))
