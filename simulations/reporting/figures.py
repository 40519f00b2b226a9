"""The report's figures as inline SVG that follows the page's light, dark or printed colours."""

from __future__ import annotations

import io
import itertools
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from simulations.reporting.comparison import human_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Drawn in these two colours, shown in the page's own: so a figure follows light, dark and print.
INK, RULE = "#010203", "#010204"
STUDENT, TEACHER, CLIENTS, WORST, ALONE, POOLED, FEDAVG = (
    "#2b7de9", "#d9822b", "#2a9d6f", "#8fbf5a", "#c2477f", "#8a6fd1", "#8a8f98",
)  # fmt: skip
CURVES = (
    ("student_accuracy", "student", STUDENT, "-"),
    ("teacher_accuracy", "ensemble teacher (proxy rows)", TEACHER, "-"),
    ("client_accuracy_mean", "clients, mean", CLIENTS, "-"),
    ("client_accuracy_min", "clients, worst", WORST, "--"),
)
LABEL_LENGTH = 18
# A cell of a map carries its number as long as that number stays readable.
NUMBERED_CELLS = 200

Metrics = list[dict[str, float | None]]


def finite(cell: Any) -> float | None:
    """A cell or JSON value as a number; None where it is empty or no finite number."""
    try:
        number = float(cell)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def learning_figure(run: Mapping[str, Any], metrics: Metrics, fedavg: Metrics) -> str:
    """Accuracies by round, FedAvg's beside the student's, the other baselines as level lines."""
    return figure_svg("learning", 9.6, 4.2, lambda f: _learning(f, run, metrics, fedavg))


def cost_figure(run: Mapping[str, Any], metrics: Metrics, fedavg: Metrics) -> str:
    """Bytes so far by round, beside those of weight averaging, computed and, as FedAvg, run."""
    return figure_svg("cost", 9.6, 3.4, lambda f: _cost(f, run, metrics, fedavg))


def figure_svg(name: str, width: float, height: float, draw: Callable[[Figure], None]) -> str:
    """A figure as inline SVG; made without pyplot, so its global state and the user's settings stay out."""
    import matplotlib.style
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings: dict[str, Any] = {
        "svg.fonttype": "none",  # text stays text: searchable, and shown in the page's font
        "svg.hashsalt": f"consilium-{name}",  # ids are unique in the page, and the same in every run
        "font.size": 9,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": RULE,
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 9,
        "xtick.color": INK,
        "ytick.color": INK,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "grid.color": RULE,
        "legend.frameon": False,
        "lines.linewidth": 1.8,
        "lines.markersize": 4,
    }
    out = io.StringIO()
    # A class name in a script that matplotlib's own font lacks is measured roughly, but shown by the browser.
    with matplotlib.style.context(["default", settings]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.patch.set_visible(False)
        FigureCanvasSVG(figure)
        draw(figure)
        figure.savefig(out, format="svg", metadata={"Date": None})
    return _inline(out.getvalue(), width)


def _inline(svg: str, width: float) -> str:
    """What a page needs of an SVG file: no prologue, metadata, namespaces or ids that nothing refers to."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, count=1, flags=re.DOTALL)
    head, body = svg.split(">", 1)
    view = re.search(r'viewBox="[^"]*"', head)
    used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', body))
    kept = {name for pair in used for name in pair if name}
    body = re.sub(r' id="([^"]*)"', lambda m: m.group(0) if m.group(1) in kept else "", body)
    body = body.replace("xlink:href", "href")
    body = re.sub(r"font-family: '[^;\"<]*(?=[;\"])", "font-family: var(--sans)", body)
    body = body.replace(INK, "currentColor").replace(RULE, "var(--rule)")
    shape = view.group(0) if view else ""
    return f'<svg {shape} style="max-width: {width * 96:.0f}px" role="img">{body}'


def _learning(figure: Figure, run: Mapping[str, Any], metrics: Metrics, fedavg: Metrics) -> None:
    axes = figure.add_subplot()
    curves = [(_points(metrics, key), label, colour, style) for key, label, colour, style in CURVES]
    for points, label, colour, style in (*curves, (_points(fedavg, "accuracy"), "FedAvg", FEDAVG, "-")):
        if points:
            rounds, shares = zip(*points, strict=True)
            percents = [100 * share for share in shares]
            axes.plot(rounds, percents, style, color=colour, label=label, marker=_marker(points))
    for part, key, label, colour in (
        ("local_only", "accuracy_mean", "each client alone, mean", ALONE),
        ("pooled", "accuracy", "pooled data", POOLED),
    ):
        level = finite((run.get(part) or {}).get(key))
        if level is not None:
            axes.axhline(100 * level, color=colour, linestyle=":", label=label)
    axes.set_xlabel("round")
    axes.set_ylabel("accuracy, %")
    axes.grid(axis="y", linewidth=0.6)
    _whole_rounds(axes, [*metrics, *fedavg])
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside right upper")


def _points(metrics: Metrics, key: str) -> list[tuple[float, float]]:
    """(round, value) where there is a value; rounds between evaluations are bridged by the line."""
    pairs = [(row.get("round"), row.get(key)) for row in metrics]
    return [(number, value) for number, value in pairs if number is not None and value is not None]


def _marker(points: Sequence[object]) -> str:
    return "o" if len(points) <= 30 else ""


def _whole_rounds(axes: Axes, metrics: Metrics) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
    rounds = {row.get("round") or 0.0 for row in metrics}
    if len(rounds) == 1:  # a lone point would sit on an axis of fractions of a round
        axes.set_xlim(min(rounds) - 1, max(rounds) + 1)


def has_bytes(metrics: Metrics) -> bool:
    """Whether anything was sent."""
    return any(row.get("upload_bytes") or row.get("download_bytes") for row in metrics)


def _cost(figure: Figure, run: Mapping[str, Any], metrics: Metrics, fedavg: Metrics) -> None:
    """Bytes so far; weight averaging sends the same in every round, so its total is spread evenly."""
    from matplotlib.ticker import FuncFormatter

    axes = figure.add_subplot()
    points = _sent(metrics)
    rounds, totals = zip(*points, strict=True)
    axes.plot(rounds, totals, color=STUDENT, label="this run, soft labels", marker=_marker(points))
    for key, label, style in (("upload_bytes", "of these up", "--"), ("download_bytes", "of these down", ":")):
        if one_way := _sent(metrics, key):
            axes.plot(*zip(*one_way, strict=True), style, color=STUDENT, label=label)
    if averaged := _sent(fedavg):
        axes.plot(*zip(*averaged, strict=True), color=FEDAVG, label="FedAvg, as run", marker=_marker(averaged))
    weights, last = run.get("weights_bytes") or 0, run.get("rounds_done") or 0
    if weights and last:
        line = [weights * number / last for number in rounds]
        axes.plot(rounds, line, color=ALONE, label="weight averaging", marker=_marker(points))
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda size, _: human_bytes(size)))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda size, _: ""))
    axes.tick_params(which="minor", length=0)
    axes.set_xlabel("round")
    axes.set_ylabel("bytes so far, log scale")
    axes.grid(axis="y", linewidth=0.6)
    _whole_rounds(axes, [*metrics, *fedavg])
    figure.legend(loc="outside right upper")


def _sent(metrics: Metrics, *keys: str) -> list[tuple[float, float]]:
    """(round, bytes so far), both ways unless told; on a log scale there is no zero: rounds before a byte go."""
    numbers = [row.get("round") or 0.0 for row in metrics]
    sent = [sum(row.get(key) or 0.0 for key in keys or ("upload_bytes", "download_bytes")) for row in metrics]
    return [(r, t) for r, t in zip(numbers, itertools.accumulate(sent), strict=True) if t > 0]


def counts_figure(counts: Sequence[Sequence[int]], clients: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> str:
    """Private rows by client and class."""
    names = [str(client.get("client", "")) for client in clients if client.get("class_counts")]
    # Many clients share the height: 100 rows of 0.09 inch are still told apart, every fifth or so is named.
    height = max(1.6, min(0.28 * len(counts), 9.0) + 1.1)
    return figure_svg("counts", 9.6, height, lambda f: _map(f, counts, counts, names, classes, "", "client"))


def confusion_figure(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """Test rows by true and named class; the shade is the share of the true class."""
    totals = [sum(row) or 1 for row in confusion]
    shares = [[cell / total for cell in row] for row, total in zip(confusion, totals, strict=True)]
    side = max(3.0, min(0.42 * len(confusion) + 1.6, 8.4))
    return figure_svg(
        "confusion",
        min(side + 1.2, 9.6),
        side,
        lambda f: _map(f, shares, confusion, classes, classes, "student says", "truth"),
    )


def _map(
    figure: Figure,
    depths: Sequence[Sequence[float]],
    numbers: Sequence[Sequence[int]],
    row_names: Sequence[str],
    column_names: Sequence[str],
    column_title: str,
    row_title: str,
) -> None:
    """A table of counts as a picture; from clear to blue, so that it reads on white and on black."""
    import numpy as np
    from matplotlib.colors import LinearSegmentedColormap

    grid = np.asarray(depths, dtype=float)
    axes = figure.add_subplot()
    blue = LinearSegmentedColormap.from_list("clear-blue", [(0.17, 0.49, 0.91, 0.0), (0.17, 0.49, 0.91, 0.8)])
    axes.imshow(grid, cmap=blue, vmin=0, vmax=max(float(grid.max()), 1e-9), aspect="auto", interpolation="none")
    for spine in axes.spines.values():
        spine.set_visible(True)
    _names(axes, "x", column_names, grid.shape[1], 34)
    _names(axes, "y", row_names, grid.shape[0], 34)
    axes.set_xlabel(column_title)
    axes.set_ylabel(row_title)
    if grid.size <= NUMBERED_CELLS:
        for (row, column), _ in np.ndenumerate(grid):
            text = f"{numbers[row][column]:,}"
            axes.text(column, row, text, ha="center", va="center", fontsize=7.5, parse_math=False)


def _names(axes: Axes, which: str, names: Sequence[str], count: int, most: int) -> None:
    """Name the rows or columns, every n-th where there are too many; a `$` in a name is no formula."""
    step = -(-count // most)
    shown = range(0, count, step)
    labels = [_short(names[index]) if index < len(names) else str(index) for index in shown]
    set_ticks = axes.set_xticks if which == "x" else axes.set_yticks
    set_ticks(list(shown), labels, parse_math=False)
    if which == "x" and (sum(map(len, labels)) > 70 or len(labels) > 20):
        axes.tick_params(axis="x", rotation=90)


def _short(name: str) -> str:
    flat = "".join(letter if letter.isprintable() else "\ufffd" for letter in name)
    if len(flat) <= LABEL_LENGTH:
        return flat
    half = LABEL_LENGTH // 2  # the middle goes: names that are long often differ only in their end
    return f"{flat[:half]}…{flat[1 - half :]}"
