"""A run's folder as one self-contained page: no script, no link; the same inputs give the same bytes."""

from __future__ import annotations

import csv
import importlib.resources
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distillation.export import write_atomically
from simulations.comparison import comparison_rows, findings, human_bytes, percent
from simulations.figures import (
    CURVES,
    Metrics,
    confusion_figure,
    cost_figure,
    counts_figure,
    finite,
    has_bytes,
    learning_figure,
)

LISTED_CLASSES = 30


def write_report(folder: Path) -> Path:
    """Write `report.html` into a run's folder.

    Args:
        folder: holds `run.json`, and `metrics.csv` unless the run failed before its first round.

    Returns:
        The page's path.

    Raises:
        FileNotFoundError: no run.json.

    Guarantees:
        The page loads nothing from anywhere and runs no script; all text from the run is escaped.
    """
    import jinja2

    run: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    metrics = _read_metrics(folder / "metrics.csv")
    template = importlib.resources.files("simulations").joinpath("report.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(template).render(**_page(run, metrics))
    path = folder / "report.html"
    write_atomically(path, page.encode("utf-8", errors="replace"))
    return path


def _read_metrics(path: Path) -> Metrics:
    """Rows of metrics.csv as numbers; None where a cell is empty or no finite number."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as lines:
        return [{key: finite(cell) for key, cell in row.items()} for row in csv.DictReader(lines)]


def _page(run: Mapping[str, Any], metrics: Metrics) -> dict[str, Any]:
    """Everything the template shows; text stays text until the template escapes it."""
    clients: Sequence[Mapping[str, Any]] = (run.get("clients") or {}).get("each") or []
    classes = [str(name) for name in run.get("classes") or []]
    counts = [list(client["class_counts"]) for client in clients if client.get("class_counts")]
    confusion = run.get("confusion") or []
    return {
        "run": run,
        "verdict": run.get("verdict", "failed"),
        "verdict_words": _verdict_words(run),
        "facts": _facts(run, clients, classes),
        "comparison": comparison_rows(run),
        "findings": findings(run),
        "learning": learning_figure(run, metrics) if metrics else "",
        "cost": cost_figure(run, metrics) if has_bytes(metrics) else "",
        "counts": counts_figure(counts, clients, classes) if counts else "",
        "clients": [_client_cells(client) for client in clients],
        "confusion": confusion_figure(confusion, classes) if confusion else "",
        "failures": run.get("failures") or [],
        "rounds": [_round_cells(row) for row in metrics],
        "config": _toml(run.get("config") or {}),
    }


def _verdict_words(run: Mapping[str, Any]) -> str:
    rounds, reason = run.get("rounds_done") or 0, run.get("reason")
    done = f"{rounds} round{'' if rounds == 1 else 's'}"
    lost = len(run.get("failures") or [])
    if not reason and lost:
        reason = f"{lost} answer{' was' if lost == 1 else 's were'} missing or refused"
    because = f": {reason}" if reason else "."
    match run.get("verdict"):
        case "ok":
            return f"Finished {done} as planned."
        case "degraded":
            return f"Finished {done}, but not as planned{because}"
        case _:
            return f"Failed after {done}{because}"


def _facts(
    run: Mapping[str, Any], clients: Sequence[Mapping[str, Any]], classes: Sequence[str]
) -> list[tuple[str, str]]:
    config = run.get("config") or {}
    data, strategy = config.get("data") or {}, config.get("strategy") or {}
    planned = (config.get("federation") or {}).get("rounds")
    rule = strategy.get("aggregator") or {}
    student, teacher = run.get("student") or {}, run.get("teacher") or {}
    facts: list[tuple[str, Any]] = [
        ("Dataset", data.get("name")),
        ("Sites", len(clients) or (config.get("federation") or {}).get("clients")),
        ("Classes", _class_list(classes) if classes else None),
        ("Rounds", f"{run.get('rounds_done') or 0} of {planned}" if planned else run.get("rounds_done")),
        ("Method", strategy.get("preset")),
        ("Rule for votes", ", ".join([str(rule.get("name", "")), *_settings(rule)]) if rule else None),
        ("Codec", strategy.get("codec")),
        ("Engine", run.get("engine")),
        ("Seed", run.get("seed")),
        ("Student", _model_text(student)),
        ("Teacher's entropy", _unit(teacher.get("entropy_nats"), "nats")),
        ("Time", _duration(run.get("seconds"))),
        ("Proxy set, SHA-256", run.get("proxy_sha256")),
        ("Last teacher, SHA-256", teacher.get("sha256")),
        ("Versions", ", ".join(f"{name} {number}" for name, number in (run.get("versions") or {}).items())),
    ]
    return [(name, str(value)) for name, value in facts if value not in (None, "")]


def _class_list(classes: Sequence[str]) -> str:
    rest = len(classes) - LISTED_CLASSES
    return f"{len(classes)}: {', '.join(classes[:LISTED_CLASSES])}" + (f" and {rest} more" if rest > 0 else "")


def _settings(rule: Mapping[str, Any]) -> list[str]:
    return [f"{key} {value}" for key, value in rule.items() if key != "name"]


def _model_text(student: Mapping[str, Any]) -> str | None:
    if not student.get("model"):
        return None
    f1 = finite(student.get("macro_f1"))
    size = f", {student['parameters']:,} parameters" if student.get("parameters") else ""
    return f"{student['model']}{size}" + (f", macro F1 {f1:.3f}" if f1 is not None else "")


def _unit(value: Any, unit: str) -> str | None:
    number = finite(value)
    return None if number is None else f"{number:.3f} {unit}"


def _duration(value: Any) -> str | None:
    seconds = finite(value)
    if seconds is None:
        return None
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def _client_cells(client: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    parameters, rows = client.get("parameters"), client.get("rows")
    return (
        str(client.get("client", "")),
        str(client.get("model", "")),
        "–" if parameters is None else f"{parameters:,}",
        "–" if rows is None else f"{rows:,}",
        percent(finite(client.get("accuracy"))),
    )


def _round_cells(row: Mapping[str, float | None]) -> list[str]:
    def whole(key: str) -> str:
        value = row.get(key)
        return "–" if value is None else f"{value:.0f}"

    def size(key: str) -> str:
        value = row.get(key)
        return "–" if value is None else human_bytes(value)

    seconds = row.get("seconds")
    return [
        whole("round"),
        *(percent(row.get(key)) for key, *_ in CURVES),
        whole("replies"),
        whole("rejected"),
        size("upload_bytes"),
        size("download_bytes"),
        "–" if seconds is None else f"{seconds:.1f} s",
    ]


def _toml(config: Mapping[str, Any]) -> str:
    import tomli_w

    def known(value: Any) -> Any:  # TOML has no null
        if isinstance(value, Mapping):
            return {key: known(inner) for key, inner in value.items() if inner is not None}
        return value

    return tomli_w.dumps(known(config)).strip()
