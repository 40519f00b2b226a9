"""Members found against false alarms, both on log scales: few false alarms are what matters (Carlini et al. 2022)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from distillation.export import write_atomically
from privacy.accounting import round_up
from privacy.audit.bounds import most_true_positives
from privacy.statement import shown_delta
from simulations.probes.membership import Found, Membership

_COLOURS = ("#2b7de9", "#d9822b", "#2a9d6f", "#c2477f", "#8a6fd1", "#8fbf5a", "#8a8f98")


def write_roc(path: Path, found: Membership) -> None:
    """Write the curves of all attacks on the model, and of LiRA on each kind of soft labels, as SVG.

    Guarantees:
        The same numbers give the same bytes with the same matplotlib.
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    out = io.BytesIO()
    # A style from scratch: the user's own matplotlibrc changes no byte.
    settings = {"svg.hashsalt": "consilium", "font.size": 9, "legend.frameon": False}
    with matplotlib.style.context(["default", settings]):
        figure = Figure(figsize=(6.4, 4.8), layout="constrained")
        axes = figure.add_subplot()
        least = 0.5 / found.strangers
        alarms = np.geomspace(least, 1.0, 200)
        axes.plot(alarms, alarms, ":", color="#8a8f98", label="guessing")
        if found.epsilon is not None:
            bound = most_true_positives(alarms, found.epsilon, found.delta)
            label = f"bound of ({round_up(found.epsilon):g}, {shown_delta(found.delta)}), record, zero-out"
            axes.plot(alarms, np.maximum(bound, least), "--", color="#000000", label=label)
        for colour, (label, each) in zip(_COLOURS * 2, shown(found.found), strict=False):
            curve = each.curve
            wrong, right = np.maximum(curve.false_positives, least), np.maximum(curve.true_positives, least)
            axes.plot(wrong, right, drawstyle="steps-post", color=colour, linewidth=1.4, label=label)
        axes.set(xscale="log", yscale="log", xlim=(least, 1.0), ylim=(least, 1.0))
        axes.set(xlabel="false alarms: share of strangers called members", ylabel="share of members found")
        axes.grid(linewidth=0.4)
        axes.legend(fontsize=8)
        figure.savefig(out, format="svg", metadata={"Date": None})
    write_atomically(path, out.getvalue())


def shown(found: Sequence[Found]) -> list[tuple[str, Found]]:
    """The curves that a picture can hold, with their names."""
    return [
        (f"{each.attack} on {'the model' if each.seen == 'model' else f'soft labels, {each.seen}'}", each)
        for each in found
        if each.seen == "model" or each.attack == "lira"
    ]
