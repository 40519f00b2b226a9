"""What a run looks like in a terminal: a live table on a TTY, one plain line a round elsewhere."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from simulations.reporting.comparison import attack_warning, comparison_rows, human_bytes, percent

SHOWN_ROUNDS = 12

Metrics = Mapping[str, float | int | None]


class RunView:
    """A run while it runs; a context manager.

    On a TTY the last rounds stand in a table above a progress bar. Elsewhere every phase and round is one
    line without control codes, so that logs stay readable.
    """

    def __init__(self, title: str, rounds: int, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._title, self._rounds, self._console, self._clock = title, rounds, console, clock
        self._rows: deque[Metrics] = deque(maxlen=SHOWN_ROUNDS)
        self._durations: deque[float] = deque(maxlen=SHOWN_ROUNDS)
        self._phase = ""
        self._started = self._mark = clock()
        self._spinner = Spinner("dots")
        self._live: Live | None = None

    def __enter__(self) -> RunView:
        self._started = self._mark = self._clock()
        if self._console.is_terminal:
            self._live = Live(console=self._console, get_renderable=self._picture, refresh_per_second=4)
            self._live.start()
        else:
            _plain(self._console, self._title)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._phase = "" if kind is None else f"stopped: {self._phase or 'running'}"
            self._live.stop()
            self._live = None

    def phase(self, text: str) -> None:
        """Say what happens now, for example `baselines 3/10`."""
        if not self._rows:
            self._mark = self._clock()  # preparation is no part of a round's time
        if self._live is None and text and text != self._phase:
            _plain(self._console, text)
        self._phase = text

    def row(self, metrics: Metrics) -> None:
        """Add a finished round; the keys are those of `metrics.csv`, an absent one was not measured."""
        now = self._clock()
        self._durations.append(now - self._mark)
        self._mark = now
        self._rows.append(dict(metrics))
        if self._live is None:
            _plain(self._console, self._line(metrics))

    def _line(self, metrics: Metrics) -> str:
        done = int(metrics.get("round") or 0)
        parts = [f"round {done}/{self._rounds}"]
        for name, key in (
            ("student", "student_accuracy"),
            ("teacher", "teacher_accuracy"),
            ("clients", "client_accuracy_mean"),
            ("worst", "client_accuracy_min"),
        ):
            if percent(metrics.get(key)) != "–":
                parts.append(f"{name} {percent(metrics.get(key))}")
        parts.append(_replies(metrics))
        parts.append(f"up {_bytes(metrics, 'upload_bytes')}")
        parts.append(f"down {_bytes(metrics, 'download_bytes')}")
        parts.append(_seconds(metrics.get("seconds")))
        return "  ".join(parts)

    def _picture(self) -> RenderableType:
        parts: list[RenderableType] = [Text(self._title, style="bold")]
        if self._rows:
            parts.append(self._table())
        parts.append(self._progress())
        return Group(*parts)

    def _table(self) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1))  # fits 80 columns
        for heading in ("round", "student", "teacher", "clients", "worst", "replies", "up", "down", "time"):
            table.add_column(heading, justify="right", no_wrap=True)
        for metrics in self._rows:
            replies = Text(_number(metrics.get("replies")))
            if metrics.get("rejected"):
                replies.append(f" -{metrics['rejected']}", style="yellow")
            table.add_row(
                _number(metrics.get("round")),
                Text(percent(metrics.get("student_accuracy")), style="bold cyan"),
                percent(metrics.get("teacher_accuracy")),
                percent(metrics.get("client_accuracy_mean")),
                percent(metrics.get("client_accuracy_min")),
                replies,
                _bytes(metrics, "upload_bytes"),
                _bytes(metrics, "download_bytes"),
                _seconds(metrics.get("seconds")),
            )
        return table

    def _progress(self) -> Table:
        done = int(self._rows[-1].get("round") or 0) if self._rows else 0
        text = f"{done}/{self._rounds} rounds, {_clock_text(self._clock() - self._started)}"
        if self._durations and done < self._rounds:
            text += f", about {_clock_text(self._left(done))} left"
        bar = ProgressBar(total=max(self._rounds, 1), completed=done, width=24)
        line = Table.grid(padding=(0, 1))
        cells: list[RenderableType] = [bar, Text(text, no_wrap=True, overflow="ellipsis")]
        if self._phase:
            if self._live is not None:
                self._spinner.update(text=Text(self._phase))
            cells.append(self._spinner if self._live is not None else Text(self._phase))
        line.add_row(*cells)
        return line

    def _left(self, done: int) -> float:
        mean = sum(self._durations) / len(self._durations)
        return max(0.0, mean * (self._rounds - done) - (self._clock() - self._mark))


def print_comparison(console: Console, run: Mapping[str, Any]) -> None:
    """Print the comparison of a finished run; the same rows as the report's."""
    rows = comparison_rows(run)
    if (warning := attack_warning(run)) is not None:
        console.print(warning, style="bold red", markup=False, highlight=False, emoji=False, soft_wrap=True)
    if (most := (run.get("privacy") or {}).get("max")) is not None:
        style = "yellow" if most["seeded"] else "green"
        console.print(most["statement"], style=style, markup=False, highlight=False, emoji=False, soft_wrap=True)
        _plain(console, f"On the side: {run['privacy']['on_the_side'].rstrip('.')}.")
        each = run["privacy"]["each"]
        if whole := sum(one["sample_rate"] == 1.0 for one in each):
            _plain(
                console,
                f"{whole} of {len(each)} clients take all of their rows at every step (q = 1: batch_size is all of "
                "them, or more), and no sampling adds to their privacy",
            )
    if not console.is_terminal:
        names, values = max(len(row.name) for row in rows), max(len(row.value) for row in rows)
        for row in rows:
            _plain(console, f"{row.name:<{names}}  {row.value:<{values}}  {row.note}".rstrip())
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("accuracy")
    table.add_column("", justify="right")
    table.add_column("", style="dim")
    for row in rows:
        bold = "bold" if row.name.startswith("student (last") else ""
        table.add_row(Text(row.name, style=bold), Text(row.value, style=bold), Text(row.note))
    console.print(table)


def print_next(console: Console, command: str) -> None:
    """Print the last line of a command: the one to type next."""
    console.print(Text.assemble(("next: ", "dim"), (command, "bold")), soft_wrap=True)


def _plain(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, emoji=False, soft_wrap=True)


def _number(value: float | int | None) -> str:
    return "–" if value is None or math.isnan(value) else str(int(value))


def _replies(metrics: Metrics) -> str:
    notes = [f"{int(count)} {key}" for key in ("late", "rejected") if (count := metrics.get(key))]
    return f"replies {_number(metrics.get('replies'))}" + (f" ({', '.join(notes)})" if notes else "")


def _bytes(metrics: Metrics, key: str) -> str:
    value = metrics.get(key)
    return "–" if value is None or math.isnan(value) else human_bytes(value)


def _seconds(value: float | int | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.1f} s"


def _clock_text(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
