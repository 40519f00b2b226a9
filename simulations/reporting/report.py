"""A run's folder as one self-contained page: no script, no link; the same inputs give the same bytes."""

from __future__ import annotations

import csv
import importlib.resources
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distillation.export import write_atomically
from simulations.reporting.audits_part import Part, audits_part
from simulations.reporting.comparison import attack_warning, comparison_rows, findings, human_bytes, percent
from simulations.reporting.figures import (
    CURVES,
    Metrics,
    confusion_figure,
    cost_figure,
    counts_figure,
    finite,
    has_bytes,
    learning_figure,
)
from simulations.reporting.privacy_part import privacy_part

LISTED_CLASSES = 30


def write_report(folder: Path) -> Path:
    """Write `report.html` into a run's folder.

    Args:
        folder: holds `run.json`, and `metrics.csv` unless the run failed before its first round, `fedavg.csv` if that
            baseline was run, and `audits/` if the run was audited.

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
    fedavg = _read_metrics(folder / "fedavg.csv") if run.get("fedavg") else []
    template = importlib.resources.files("simulations.reporting").joinpath("report.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(template).render(**_page(run, metrics, fedavg, audits_part(folder)))
    path = folder / "report.html"
    write_atomically(path, page.encode("utf-8", errors="replace"))
    return path


def _read_metrics(path: Path) -> Metrics:
    """Rows of metrics.csv or fedavg.csv as numbers; None where a cell is empty or no finite number."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as lines:
        return [{key: finite(cell) for key, cell in row.items()} for row in csv.DictReader(lines)]


def _page(run: Mapping[str, Any], metrics: Metrics, fedavg: Metrics, audits: Sequence[Part]) -> dict[str, Any]:
    """Everything the template shows; text stays text until the template escapes it."""
    clients: Sequence[Mapping[str, Any]] = (run.get("clients") or {}).get("each") or []
    classes = [str(name) for name in run.get("classes") or []]
    counts = [list(client["class_counts"]) for client in clients if client.get("class_counts")]
    confusion = run.get("confusion") or []
    return {
        "run": run,
        "verdict": run.get("verdict", "failed"),
        "verdict_words": _verdict_words(run),
        "warning": attack_warning(run),
        "facts": _facts(run, clients, classes),
        "comparison": comparison_rows(run),
        "findings": findings(run),
        "privacy": privacy_part(run.get("privacy")),
        "audits": audits,
        "learning": learning_figure(run, metrics, fedavg) if metrics else "",
        "cost": cost_figure(run, metrics, fedavg) if has_bytes(metrics) else "",
        "counts": counts_figure(counts, clients, classes) if counts else "",
        "clients": [_client_cells(client) for client in clients],
        "confusion": confusion_figure(confusion, classes) if confusion else "",
        "failures": run.get("failures") or [],
        "rounds": [_round_cells(row) for row in metrics],
        "config": toml_text(run.get("config") or {}),
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
    data, federation = config.get("data") or {}, config.get("federation") or {}
    planned = federation.get("rounds")
    student, teacher = run.get("student") or {}, run.get("teacher") or {}
    facts: list[tuple[str, Any]] = [
        ("Dataset", data.get("name")),
        ("Sites", len(clients) or federation.get("clients")),
        ("Classes", _class_list(classes) if classes else None),
        ("Rounds", f"{run.get('rounds_done') or 0} of {planned}" if planned else run.get("rounds_done")),
        *_exchange_facts(run, config),
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


def _exchange_facts(run: Mapping[str, Any], config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The parts of the exchange; what is off is left out."""
    strategy, tables = config.get("strategy") or {}, run.get("subject") == "classes"
    cached, late = strategy.get("cache_rounds"), run.get("stragglers")
    delay = (config.get("stragglers") or {}).get("rounds")
    newcomers, joined = run.get("newcomers"), (config.get("newcomers") or {}).get("round")
    return [
        ("Method", strategy.get("preset")),
        ("Rule for votes", _part(strategy.get("aggregator"))),
        ("Votes travel as", strategy.get("uplink")),
        ("Teachers travel as", strategy.get("downlink")),
        ("Rows of a round", "no proxy rows: one row a class" if tables else CHOICES.get(strategy.get("choice", ""))),
        ("Clients vote on", _part((config.get("client") or {}).get("selector"), "rows like their own, by ")),
        ("Cache", f"a label is used again for {cached} rounds" if cached else None),
        ("Late votes", _late_text(config.get("federation") or {})),
        ("Newcomers", f"from round {joined}: {', '.join(newcomers)}" if newcomers else None),
        ("Stragglers", f"late by {delay} round{'' if delay == 1 else 's'}: {', '.join(late)}" if late else None),
        ("Attack", _part(config.get("attack"))),
    ]


# How a round's proxy rows are chosen, in words.
CHOICES = {
    "random": "drawn anew",
    "fixed": "the same in all rounds",
    "epoch": "all in turn",
    "disagreement": "half of them where voters disagreed most",
}


def _part(part: Mapping[str, Any] | None, before: str = "") -> str | None:
    """A part with its settings, the parts inside it too: `mean, weight entropy, then enhanced-era (exponent 2)`."""
    if not part:
        return None
    return ", ".join([before + str(part.get("name", "")), *_settings(part)])


def _settings(part: Mapping[str, Any]) -> list[str]:
    return [f"{key} {_inner(value)}" for key, value in part.items() if key != "name"]


def _inner(value: Any) -> str:
    if not isinstance(value, Mapping):
        return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    settings = _settings(value)
    return str(value.get("name", "")) + (f" ({', '.join(settings)})" if settings else "")


def _late_text(federation: Mapping[str, Any]) -> str | None:
    if federation.get("mode") != "async":
        return None
    return f"count in the round in which they come, s rounds late as (1 + s)^-{federation.get('staleness')}"


def _class_list(classes: Sequence[str]) -> str:
    rest = len(classes) - LISTED_CLASSES
    return f"{len(classes)}: {', '.join(classes[:LISTED_CLASSES])}" + (f" and {rest} more" if rest > 0 else "")


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
        whole("late"),
        whole("rejected"),
        whole("rows"),
        size("upload_bytes"),
        size("download_bytes"),
        "–" if seconds is None else f"{seconds:.1f} s",
    ]


def toml_text(config: Mapping[str, Any]) -> str:
    import tomli_w

    def known(value: Any) -> Any:  # TOML has no null
        if isinstance(value, Mapping):
            return {key: known(inner) for key, inner in value.items() if inner is not None}
        return value

    return tomli_w.dumps(known(config)).strip()
