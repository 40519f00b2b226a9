"""A sweep's accuracies against its first axis, with the spread over seeds, as SVG for the page and as files."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from simulations.reporting.figures import ALONE, CLIENTS, FEDAVG, POOLED, STUDENT, TEACHER, WORST, figure_svg
from simulations.sweeps.grid import SEED, Axis, label, short_names
from simulations.sweeps.outcomes import Group, promises_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Who is judged: a name in files, what the plot says, the measure, a colour.
SUBJECTS = (
    ("student", "student", "student_accuracy", STUDENT),
    ("teacher", "ensemble teacher (proxy rows)", "teacher_accuracy", TEACHER),
    ("clients", "clients, mean", "client_accuracy_mean", CLIENTS),
)
_COLOURS = (STUDENT, TEACHER, CLIENTS, ALONE, POOLED, WORST, FEDAVG)
_LINES = ("-", "--", ":", "-.")
# Values of an axis that spans more than this stand on a logarithmic scale.
_LOG_RATIO = 10.0
_MOST_TICKS = 12


class Dot(NamedTuple):
    """One mean over seeds.

    Attributes:
        x: the axis' value, infinity too; of an axis without numbers the value's place.
        mean, std: accuracy; std is None for one seed.
    """

    x: float
    mean: float
    std: float | None
    n: int


class Curve(NamedTuple):
    """Dots in the order of x, under the name that the legend has."""

    name: str
    dots: tuple[Dot, ...]


def x_axis(axes: Sequence[Axis]) -> Axis | None:
    """What the plots are drawn against: the first axis with numbers that is no seed, else the first that is no seed."""
    others = [axis for axis in axes if axis.key != SEED]
    return next((axis for axis in others if axis.numeric), others[0] if others else None)


def curves(groups: Sequence[Group], axes: Sequence[Axis], measure: str) -> list[Curve]:
    """One curve for each combination of the axes beside the first; without one a single curve without a name."""
    across = x_axis(axes)
    if across is None:
        return []
    others = [axis.key for axis in axes if axis.key not in (SEED, across.key)]
    dots: dict[str, list[Dot]] = {}
    for group in groups:
        over = group.spread(measure)
        if over is not None:
            name = ", ".join(label(group.values[key]) for key in others)
            dots.setdefault(name, []).append(Dot(_place(across, group), over.mean, over.std, over.n))
    return [Curve(name, tuple(sorted(found))) for name, found in dots.items()]


def _place(across: Axis, group: Group) -> float:
    value = group.values[across.key]
    return float(value) if across.numeric else float(across.values.index(value))


def sweep_figures(groups: Sequence[Group], axes: Sequence[Axis]) -> dict[str, str]:
    """Plots as inline SVG by name: `accuracy` with all three subjects where there is one line, else one plot a subject.

    Nothing where there is no axis to draw against, or nothing was measured.
    """
    across = x_axis(axes)
    found = [(subject, curves(groups, axes, subject[2])) for subject in SUBJECTS]
    found = [(subject, lines) for subject, lines in found if lines]
    if across is None or not found:
        return {}
    caption = promises_of(outcome for group in groups for outcome in group.outcomes)
    if not any(curve.name for _, lines in found for curve in lines):
        named = [(Curve(said, lines[0].dots), colour, "-") for (_, said, _, colour), lines in found]
        return {"accuracy": _svg("sweep", across, named, "", "accuracy, %", caption)}
    styles = _styles(curve.name for _, lines in found for curve in lines)
    legend = ", ".join(short_names([axis.key for axis in axes if axis.key not in (SEED, across.key)]).values())
    return {
        f"accuracy-{name}": _svg(
            f"sweep-{name}",
            across,
            [(line, *styles[line.name]) for line in lines],
            legend,
            f"accuracy of {said}, %",
            caption,
        )
        for (name, said, _, _), lines in found
    }


def _styles(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """(colour, line style) by the name of a curve: the same in all plots."""
    styles = itertools.cycle((colour, line) for line in _LINES for colour in _COLOURS)
    return dict(zip(dict.fromkeys(names), styles, strict=False))


def _svg(
    name: str, across: Axis, lines: Sequence[tuple[Curve, str, str]], legend: str, y_title: str, caption: str
) -> str:
    return figure_svg(name, 9.6, 4.2, lambda figure: draw(figure, across, lines, legend, y_title, caption))


def draw(
    figure: Figure,
    across: Axis,
    lines: Sequence[tuple[Curve, str, str]],
    legend: str,
    y_title: str,
    caption: str = "",
) -> None:
    """Draw curves with error bars of one standard deviation.

    Args:
        lines: (curve, colour, line style).
        legend: title of the legend.
        caption: what its epsilons stand for; "" where there are none.
    """
    axes = figure.add_subplot()
    if caption:
        figure.supxlabel(caption, fontsize=8, parse_math=False)
    edge = _scale(axes, across)
    shown = []
    for curve, colour, style in lines:
        for dots, line in _joined(curve.dots, style if across.numeric else ""):
            bars = axes.errorbar(
                [edge if math.isinf(dot.x) else dot.x for dot in dots],
                [100 * dot.mean for dot in dots],
                yerr=[100 * (dot.std or 0.0) for dot in dots],
                fmt=f"o{line}",
                color=colour,
                capsize=3,
                label=curve.name,
            )
        shown.append(bars.lines[0])
    axes.set_ylabel(y_title)
    axes.grid(axis="y", linewidth=0.6)
    told = figure.legend(shown, ["."] * len(shown), loc="outside right upper", title=legend or None)
    for text, (curve, _, _) in zip(told.get_texts(), lines, strict=True):
        text.set(text=curve.name, parse_math=False)  # as a label, a name that begins with _ would be left out
    told.get_title().set_parse_math(False)


def _joined(dots: Sequence[Dot], style: str) -> list[tuple[Sequence[Dot], str]]:
    """Dots that a line joins, and those that none does: there is nothing between a number and infinity."""
    finite = [dot for dot in dots if not math.isinf(dot.x)]
    infinite = [dot for dot in dots if math.isinf(dot.x)]
    return [(part, line) for part, line in ((finite, style), (infinite, "")) if part]


def _scale(axes: Axes, across: Axis) -> float:
    """Scale, ticks and title of the axis; returns where infinity is drawn: beyond the largest value, by a step."""
    axes.set_xlabel(across.key, parse_math=False)
    if not across.numeric:
        axes.set_xticks(range(len(across.values)), [label(value) for value in across.values], parse_math=False)
        axes.margins(x=0.1)
        return 0.0
    numbers = sorted(float(value) for value in across.values if not math.isinf(value))
    logarithmic = bool(numbers) and numbers[0] > 0 and numbers[-1] / numbers[0] > _LOG_RATIO
    edge = _edge(numbers, logarithmic)
    if logarithmic:
        axes.set_xscale("log")
    ticks = {number: label(across.values[_index(across, number)]) for number in _thinned(numbers)}
    if len(numbers) < len(across.values):
        ticks[edge] = "no privacy" if across.key.endswith(".epsilon") else "inf"
        last = numbers[-1] if numbers else edge
        cut = math.sqrt(last * edge) if logarithmic else (last + edge) / 2
        axes.axvline(cut, color=FEDAVG, linestyle=":", linewidth=0.8)
    axes.set_xticks(list(ticks), list(ticks.values()), parse_math=False)
    axes.tick_params(axis="x", which="minor", length=0, labelbottom=False)
    return edge


def _edge(numbers: Sequence[float], logarithmic: bool) -> float:
    if not numbers:
        return 1.0
    low, high = numbers[0], numbers[-1]
    if logarithmic:
        return high * math.exp(0.2 * math.log(high / low))
    return high + 0.2 * ((high - low) or abs(high) or 1.0)


def _index(across: Axis, number: float) -> int:
    return [float(value) for value in across.values].index(number)


def _thinned(numbers: Sequence[float]) -> list[float]:
    """So many ticks as can be read, the first and the last among them."""
    if len(numbers) <= _MOST_TICKS:
        return list(numbers)
    step = (len(numbers) - 1) / (_MOST_TICKS - 1)
    return [numbers[round(step * place)] for place in range(_MOST_TICKS)]


def standalone(inline: str) -> str:
    """An inline figure as a file of its own: black on white, with nothing that only a page has."""
    head, body = inline.split(">", 1)
    view = head.partition('viewBox="')[2].partition('"')[0]
    width, height = view.split()[2:]
    body = body.replace(' href="#', ' xlink:href="#')
    for ours, plain in (("currentColor", "#000000"), ("var(--rule)", "#c8ccd2"), ("var(--sans)", "sans-serif")):
        body = body.replace(ours, plain)
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n'
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{width}pt" height="{height}pt" viewBox="{view}">\n'
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>{body}'
    )
