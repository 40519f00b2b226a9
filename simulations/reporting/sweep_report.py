"""A sweep's results as one self-contained page and as plots of their own: no script, no link."""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distillation.export import write_atomically
from simulations.reporting.comparison import human_bytes, percent
from simulations.reporting.report import toml_text
from simulations.reporting.sweep_figures import standalone, sweep_figures
from simulations.sweeps.folder import common_settings, nested
from simulations.sweeps.grid import SEED, Axis, label
from simulations.sweeps.outcomes import Group, Outcome, Spread, groups_of

# Columns of the table of means: heading, measure.
SHARES = (
    ("student", "student_accuracy"),
    ("student macro F1", "student_macro_f1"),
    ("teacher", "teacher_accuracy"),
    ("clients", "client_accuracy_mean"),
    ("worst client", "client_accuracy_min"),
)


def write_sweep_report(out: Path, axes: Sequence[Axis], outcomes: Sequence[Outcome], price: str | None) -> Path:
    """Write report.html and accuracy*.svg into a sweep's folder; returns the page's path.

    Guarantees:
        The page loads nothing from anywhere and runs no script; all text from the runs is escaped.
    """
    import jinja2

    groups = groups_of(outcomes)
    figures = sweep_figures(groups, axes)
    for stale in out.glob("accuracy*.svg"):
        stale.unlink()
    for name, inline in figures.items():
        write_atomically(out / f"{name}.svg", standalone(inline).encode("utf-8", errors="replace"))
    template = importlib.resources.files("simulations.reporting").joinpath("sweep.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(template).render(**_page(axes, outcomes, groups, figures, price))
    path = out / "report.html"
    write_atomically(path, page.encode("utf-8", errors="replace"))
    return path


def _page(
    axes: Sequence[Axis],
    outcomes: Sequence[Outcome],
    groups: Sequence[Group],
    figures: dict[str, str],
    price: str | None,
) -> dict[str, Any]:
    """Everything the template shows; text stays text until the template escapes it."""
    keys = [axis.key for axis in axes]
    shown = [(head, measure) for head, measure in SHARES if any(group.spread(measure) for group in groups)]
    return {
        "verdict": verdict_of(outcomes),
        "words": _words(outcomes),
        "price": price,
        "facts": [(axis.key, ", ".join(map(label, axis.values))) for axis in axes],
        "figures": figures,
        "mean_heads": [*(key for key in keys if key != SEED), "seeds", *(head for head, _ in shown), "up", "down"],
        "means": [_mean_cells(group, [measure for _, measure in shown]) for group in groups],
        "point_heads": [*keys, "verdict", *(head for head, _ in shown), "epsilon charged", "seconds"],
        "points": [_point_cells(outcome, [measure for _, measure in shown]) for outcome in outcomes],
        "failures": [(outcome.point.slug, outcome.reason) for outcome in outcomes if outcome.verdict == "failed"],
        "statements": [(outcome.point.label, outcome.statement) for outcome in outcomes if outcome.statement],
        "worth": list(dict.fromkeys(worth for outcome in outcomes if (worth := _worth(outcome)))),
        "seeds": SEED in keys,
        "dealt_anew": any(outcome.point.config.data.seed is None for outcome in outcomes),
        "common": toml_text(nested(common_settings([outcome.point for outcome in outcomes]))),
    }


def verdict_of(outcomes: Sequence[Outcome]) -> str:
    """`failed` if any point has no result, else `degraded` if any is, else `ok`."""
    if not all(outcome.finished for outcome in outcomes):
        return "failed"
    return "degraded" if any(outcome.verdict == "degraded" for outcome in outcomes) else "ok"


def _words(outcomes: Sequence[Outcome]) -> str:
    count = f"{len(outcomes)} point{'' if len(outcomes) == 1 else 's'}"
    finished = sum(outcome.finished for outcome in outcomes)
    degraded = sum(outcome.verdict == "degraded" for outcome in outcomes)
    beside = f", {degraded} of them not as planned" if degraded else ""
    if finished == len(outcomes):
        return f"Finished {count}{beside}."
    return f"Finished {finished} of {count}{beside}: the others have no result and are in no mean."


def spread_text(over: Spread | None) -> str:
    """A share with its spread over the seeds.

    >>> spread_text(Spread(3, 0.8, 0.0123, 0.79, 0.81)), spread_text(Spread(1, 0.8, None, 0.8, 0.8)), spread_text(None)
    ('80.0 % ± 1.2', '80.0 %', '–')
    """
    if over is None:
        return "–"
    return percent(over.mean) + ("" if over.std is None else f" ± {100 * over.std:.1f}")


def _mean_cells(group: Group, measures: Sequence[str]) -> list[str]:
    finished = sum(outcome.finished for outcome in group.outcomes)
    seeds = str(finished) + (f" ({group.failed} failed)" if group.failed else "")
    return [
        *map(label, group.values.values()),
        seeds,
        *(spread_text(group.spread(measure)) for measure in measures),
        *(_size(group.spread(measure)) for measure in ("upload_bytes", "download_bytes")),
    ]


def _worth(outcome: Outcome) -> str:
    """What a mechanism is worth, in the words of run.json."""
    return str(((outcome.run or {}).get("privacy") or {}).get("worth") or "")


def _size(over: Spread | None) -> str:
    return "–" if over is None else human_bytes(over.mean)


def _point_cells(outcome: Outcome, measures: Sequence[str]) -> list[str]:
    epsilon, seconds = outcome.measure("epsilon"), outcome.measure("seconds")
    return [
        *map(label, outcome.point.values.values()),
        outcome.verdict or "not run",
        *(percent(outcome.measure(measure)) for measure in measures),
        "–" if epsilon is None else f"{epsilon:.4f}",
        "–" if seconds is None else f"{seconds:.1f}",
    ]
