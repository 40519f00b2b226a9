"""The command `sweep`: one experiment over a grid of its settings."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from consilium.display import print_next
from consilium.exits import FAILED, INTERRUPTED, Format, exit_codes, print_json
from consilium.options import ConfigFile, Out, Overrides, Reporting, free_folder
from simulations.reporting.comparison import percent

if TYPE_CHECKING:
    from simulations.sweep import Sweep
    from simulations.sweeps.grid import Point
    from simulations.sweeps.outcomes import Outcome

Grids = Annotated[
    list[str],
    typer.Option(
        "--grid",
        metavar="KEY=VALUE,VALUE,...",
        help="An axis: any setting, or short seed, rounds, clients, preset, aggregator; repeatable, all are combined.",
    ),
]
Parallel = Annotated[
    int | None,
    typer.Option(
        min=1, help="Points at once, each with its share of the cores; as many as suit the machine by default."
    ),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the sweep in --out; it may have more values than before.")
]


def add_to(app: typer.Typer) -> None:
    """Give the command line this command."""
    app.command("sweep")(sweep)


def sweep(
    config: ConfigFile,
    grid: Grids,
    parallel: Parallel = None,
    out: Out = None,
    overrides: Overrides = None,
    resume: Resume = False,
    reporting: Reporting = Format.text,
) -> None:
    """Run an experiment at every point of a grid: one table, plots with error bars over the seeds.

    For example --grid privacy.epsilon=0.5,1,2,4,8,inf --grid seed=1,2,3.
    """
    with exit_codes(reporting):
        from simulations.config import ConfigError
        from simulations.sweep import run_sweep
        from simulations.sweeps.grid import axes_of, points_of

        if resume and out is None:
            raise ConfigError("--resume needs --out: name the folder of the sweep to go on with")
        axes = axes_of(grid)
        points = points_of(config, overrides or (), axes)
        folder = free_folder(out, f"{config.stem}-sweep")
        again = _Command(config, grid, overrides or (), parallel)
        console = Console(stderr=reporting is Format.json)
        try:
            with SweepView(console) as view:
                done = run_sweep(points, axes, folder, parallel=parallel, resume=resume, watch=view)
        except KeyboardInterrupt:
            _say_interrupted(console, again, folder, reporting)
            raise typer.Exit(INTERRUPTED) from None
        code = FAILED if done.failed else 0
        if reporting is Format.json:
            print_json("error" if code else "ok", code, {**done.as_json(), "out": str(folder)})
        else:
            _print_means(console, done)
            _say_where(console, done, folder)
            print_next(console, again.after(done, folder))
        if code:
            raise typer.Exit(code)


class SweepView:
    """A sweep while it runs; a context manager. A bar on a TTY; a line for each finished point everywhere."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        columns = (TextColumn("points"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._bar = self._progress.add_task("points", left="")
        self._started = clock()
        self._total = self._done = 0
        self._rounds: dict[str, float] = {}  # of this session's points, by slug
        self._planned = 0.0

    def __enter__(self) -> SweepView:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begun(self, outcomes: Sequence[Outcome], parallel: int, price: str | None) -> None:
        """Say what will be run, and what it would cost on real private data."""
        todo = [outcome.point for outcome in outcomes if not outcome.finished]
        self._total, self._done = len(outcomes), len(outcomes) - len(todo)
        self._planned = float(sum(point.config.federation.rounds for point in todo))
        self._started = self._clock()
        kept = f", {self._done} of them finished before" if self._done else ""
        self._say(f"{self._total} points{kept}" + (f"; {parallel} at once" if todo else ""))
        if price is not None:
            self._say(price, "bold yellow")
        self._show()

    def round(self, point: Point, round_: int) -> None:
        """A point has finished a round."""
        self._rounds[point.slug] = float(round_)
        self._show()

    def finished(self, outcome: Outcome) -> None:
        """A point has ended."""
        self._rounds[outcome.point.slug] = float(outcome.point.config.federation.rounds)
        self._done += 1
        scores = [
            f"{name} {percent(value)}"
            for name, measure in (
                ("student", "student_accuracy"),
                ("teacher", "teacher_accuracy"),
                ("clients", "client_accuracy_mean"),
            )
            if (value := outcome.measure(measure)) is not None
        ]
        told = [f"{self._done}/{self._total}", f"{outcome.point.label}:", outcome.verdict, *scores]
        if outcome.reason is not None:
            told.append(f"({outcome.reason})")
        self._say("  ".join([*told, *filter(None, [self._left()])]), "red" if outcome.reason else "")
        self._show()

    def _left(self) -> str:
        """The time that is left if the rest goes as what was done: by rounds, so that longer points count as such."""
        rounds = sum(self._rounds.values())
        if not rounds or rounds >= self._planned:
            return ""
        return f"about {_duration((self._clock() - self._started) * (self._planned - rounds) / rounds)} left"

    def _show(self) -> None:
        self._progress.update(self._bar, completed=self._done, total=self._total, left=self._left())

    def _say(self, line: str, style: str = "") -> None:
        self._console.print(line, style=style or None, markup=False, highlight=False, emoji=False, soft_wrap=True)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class _Command:
    """This command, to be typed again."""

    def __init__(self, config: Path, grids: Sequence[str], overrides: Sequence[str], parallel: int | None) -> None:
        self._words = ["consilium", "sweep", str(config)]
        self._grids, self._rest = list(grids), [word for told in overrides for word in ("--set", told)]
        self._rest += [] if parallel is None else ["--parallel", str(parallel)]

    def resumed(self, out: Path, grids: Sequence[str] = ()) -> str:
        """With --resume, perhaps over a larger grid."""
        return self._with(grids or self._grids, "--out", str(out), "--resume")

    def anew(self, *grids: str) -> str:
        """In another folder, with further axes."""
        return self._with([*self._grids, *grids])

    def after(self, done: Sweep, out: Path) -> str:
        """What most want next: what was spent, failed points again, enough seeds for error bars, another method."""
        from simulations.sweeps.grid import SEED

        seeds = next((axis for axis in done.axes if axis.key == SEED), None)
        if done.failed and len(done.spent) == done.failed:
            return shlex.join(["consilium", "budget", "show", str(out / "points" / done.spent[0])])
        if done.failed:
            return self.resumed(out)
        if seeds is None:
            return self.anew("seed=1,2,3")
        if len(seeds.values) >= 5 and not any(axis.key.startswith("strategy.") for axis in done.axes):
            return self.anew("preset=ds-fl,fedmd,fed-et")
        fresh = [seed for seed in range(1, len(seeds.values) + 3) if seed not in seeds.values]
        wider = f"{SEED}={','.join(map(str, [*seeds.values, *fresh[:2]]))}"
        axes = zip(done.axes, self._grids, strict=True)
        return self.resumed(out, [wider if axis.key == SEED else grid for axis, grid in axes])

    def _with(self, grids: Sequence[str], *last: str) -> str:
        return shlex.join([*self._words, *(word for grid in grids for word in ("--grid", grid)), *self._rest, *last])


def _say_interrupted(console: Console, again: _Command, out: Path, reporting: Format) -> None:
    console.print("interrupted", style="bold red")
    begun = (out / "sweep.json").is_file()
    print_next(console, again.resumed(out) if begun else again.anew())
    if reporting is Format.json:
        print_json("error", INTERRUPTED, {"message": "interrupted", "out": str(out)})


def _print_means(console: Console, done: Sweep) -> None:
    """The means over seeds, a row for each combination of the other axes."""
    from simulations.reporting.sweep_report import spread_text
    from simulations.sweeps.grid import SEED, label, short_names
    from simulations.sweeps.outcomes import groups_of, promises_of

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    names = short_names([axis.key for axis in done.axes if axis.key != SEED])
    for heading in (*names.values(), "seeds", "student", "teacher", "clients"):
        table.add_column(heading, justify="right")
    for group in groups_of(done.outcomes):
        measures = ("student_accuracy", "teacher_accuracy", "client_accuracy_mean")
        cells = [*map(label, group.values.values()), str(sum(outcome.finished for outcome in group.outcomes))]
        table.add_row(*cells, *(spread_text(group.spread(measure)) for measure in measures))
    console.print(table, markup=False, highlight=False)
    if promise := promises_of(done.outcomes):
        console.print(promise, markup=False, highlight=False, soft_wrap=True)


def _say_where(console: Console, done: Sweep, out: Path) -> None:
    failed = f"{done.failed} of {len(done.outcomes)} points failed: see {out / 'sweep.csv'} for the reasons, and "
    for line, style in (
        (f"{failed}{out / 'logs'}" if done.failed else "", "bold red"),
        (done.price or "", "bold yellow"),
        (f"Results in {out}: open {out / 'report.html'}", ""),
    ):
        if line:
            console.print(line, style=style or None, markup=False, highlight=False, soft_wrap=True)
