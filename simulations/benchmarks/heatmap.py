"""Attacks against rules as a table of numbers and as a picture of the same numbers."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from distillation.export import write_atomically
from strategies.soft_labels import Float64

# The darkest shade stands for at least this much: where nothing was lost, noise must not look like damage.
_LEAST_POINTS = 5.0


def write_heatmap(
    stem: Path, attacks: Sequence[str], rules: Sequence[str], lost: Sequence[Sequence[float | None]]
) -> None:
    """Write `stem`.csv and `stem`.svg.

    Args:
        lost: [attacks, rules] accuracy lost to the attack, in points; below 0: gained; None or NaN: not measured.

    Raises:
        ValueError: another shape, no cell, an infinite value, or a name that stands twice.

    Guarantees:
        The same numbers give the same bytes with the same matplotlib.
    """
    if not attacks or not rules or [len(row) for row in lost] != [len(rules)] * len(attacks):
        raise ValueError(f"lost must be {len(attacks)} rows of {len(rules)} cells, one row an attack, and not empty")
    cells = np.array([[np.nan if cell is None else cell for cell in row] for row in lost], dtype=np.float64)
    if np.isinf(cells).any():
        raise ValueError("lost has an infinite value: None stands for what was not measured")
    for kind, names in (("attack", attacks), ("rule", rules)):
        if len(set(names)) < len(names):
            raise ValueError(f"{kind}s {', '.join(names)} name one twice: merge its rows first")
    write_atomically(stem.with_name(f"{stem.name}.csv"), _csv(attacks, rules, cells))
    write_atomically(stem.with_name(f"{stem.name}.svg"), _svg(attacks, rules, cells))


def _csv(attacks: Sequence[str], rules: Sequence[str], lost: Float64) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["attack", *rules])
    for attack, row in zip(attacks, lost, strict=True):
        writer.writerow([attack, *(points(cell, 2) for cell in row)])
    return text.getvalue().encode()


def points(cell: float, digits: int) -> str:
    """A number of points as text; nothing where nothing was measured, and no minus before a zero.

    >>> points(12.345, 1), points(-0.01, 1), points(float("nan"), 1)
    ('12.3', '0.0', '')
    """
    return "" if np.isnan(cell) else f"{round(float(cell), digits) + 0.0:.{digits}f}"


def _svg(attacks: Sequence[str], rules: Sequence[str], lost: Float64) -> bytes:
    import matplotlib.style
    from matplotlib import colormaps
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    # Orange and purple stay apart for colour-blind eyes; white is 0, grey was not measured.
    shades = colormaps["PuOr_r"].with_extremes(bad="#dddddd")
    known = np.abs(lost[~np.isnan(lost)])
    limit = max(float(known.max(initial=0.0)), _LEAST_POINTS)
    out = io.BytesIO()
    # A style from scratch: the user's own matplotlibrc changes no byte.
    with matplotlib.style.context(["default", {"svg.hashsalt": "consilium", "font.size": 9}]):
        figure = Figure(figsize=(2.4 + 0.85 * len(rules), 1.5 + 0.32 * len(attacks)), layout="constrained")
        axes = figure.add_subplot()
        image = axes.imshow(lost, cmap=shades, norm=Normalize(-limit, limit), aspect="auto", interpolation="none")
        axes.set_xticks(range(len(rules)), rules, rotation=30, ha="right", rotation_mode="anchor", parse_math=False)
        axes.set_yticks(range(len(attacks)), attacks, parse_math=False)
        axes.tick_params(length=0)
        for (row, column), cell in np.ndenumerate(lost):
            ink = readable_ink(image.to_rgba(np.array([cell]))[0])
            axes.text(column, row, points(cell, 1) or "–", ha="center", va="center", color=ink)
        figure.colorbar(image, ax=axes, label="accuracy lost, points")
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def readable_ink(colour: Float64) -> str:
    """Black or white, whichever has the higher contrast to a background (WCAG 2 relative luminance).

    Args:
        colour: [at least 3] red, green, blue in [0, 1], sRGB.

    >>> readable_ink(np.array([1.0, 1.0, 1.0])), readable_ink(np.array([0.2, 0.0, 0.3]))
    ('black', 'white')
    """
    return "black" if luminance(colour) > 0.179 else "white"  # there both contrasts are 4.6


def luminance(colour: Float64) -> float:
    """Relative luminance in [0, 1] of an sRGB colour, as in WCAG 2."""
    linear = np.where(colour[:3] <= 0.04045, colour[:3] / 12.92, ((colour[:3] + 0.055) / 1.055) ** 2.4)
    return float(linear @ np.array([0.2126, 0.7152, 0.0722]))
