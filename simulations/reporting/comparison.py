"""What a run achieved beside what it is compared with: the rows of report and terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

_NOT_ALONE = (
    "The clients were not trained alone, so this run does not show whether federation helped "
    "(baselines.local_only = true)."
)


class Row(NamedTuple):
    """One line of the comparison, ready to be shown."""

    name: str
    value: str
    note: str


def percent(fraction: float | None) -> str:
    """A share as text, or a dash where nothing was measured.

    >>> percent(0.9123), percent(None), percent(float("nan"))
    ('91.2 %', '–', '–')
    """
    return "–" if fraction is None or math.isnan(fraction) else f"{100 * fraction:.1f} %"


def human_bytes(count: float) -> str:
    """Bytes in decimal units.

    >>> human_bytes(999), human_bytes(1000), human_bytes(999_960), human_bytes(2_345_678)
    ('999 B', '1.0 kB', '1.0 MB', '2.3 MB')
    """
    if round(count) < 1000:
        return f"{round(count)} B"
    size = float(count)
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if round(size, 1) < 1000:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} TB"


def comparison_rows(run: Mapping[str, Any]) -> list[Row]:
    """Rows of the comparison table, weakest knowledge first.

    Args:
        run: a run's `run.json`; a part that is missing or null was not measured, and its row says so.
    """
    clients, alone, pooled = run.get("clients") or {}, run.get("local_only"), run.get("pooled")
    return [
        Row(
            "each client alone",
            _mean_and_worst(alone or {}),
            "private data only, no teacher" if alone else "not run: set baselines.local_only = true",
        ),
        Row("clients after federation", _mean_and_worst(clients), "private data and the teacher's soft labels"),
        *(_tables_rows() if _without_student(run) else _teacher_and_student_rows(run)),
        *_fedavg_rows(run),
        Row(
            "pooled data (upper bound)",
            percent((pooled or {}).get("accuracy")),
            _pooled_note(run),
        ),
        Row(
            "bytes up / down",
            f"{human_bytes(run.get('upload_bytes') or 0)} / {human_bytes(run.get('download_bytes') or 0)}",
            "votes / teachers; all clients and rounds",
        ),
        _bytes_row(run),
    ]


def attack_warning(run: Mapping[str, Any]) -> str | None:
    """What must stand above the numbers of a run in which clients were made to lie; None where nobody was."""
    attack = (run.get("config") or {}).get("attack")
    if not attack:
        return None
    liars, clients = run.get("attackers") or [], (run.get("clients") or {}).get("each") or []
    who = f"{len(liars)} of {len(clients)} clients" if liars and clients else "Some clients"
    named = f" ({', '.join(map(str, liars[:10]))}{' and others' if len(liars) > 10 else ''})" if liars else ""
    what = f"{who}{named} sent {attack.get('name')!r} votes"
    return f"An attack was simulated: {what}. These numbers are a test of the rule."


def _without_student(run: Mapping[str, Any]) -> bool:
    """Whether the method exchanged class tables, which name no proxy rows that a student could learn from."""
    return run.get("subject") == "classes"


def _teacher_and_student_rows(run: Mapping[str, Any]) -> list[Row]:
    return [
        Row(
            "ensemble teacher",
            percent(_score(run, "teacher", "accuracy")),
            "all votes together, on the last round's proxy rows; no model to keep",
        ),
        Row("student (last round)", percent(_score(run, "student", "accuracy")), "the model to keep"),
        _best_row(run),
    ]


def _tables_rows() -> list[Row]:
    return [Row("student", "–", "none: class tables teach the clients only; their own models are what is kept")]


def sent_bytes(run: Mapping[str, Any]) -> int:
    """Bytes of the whole run, or of a part of it that counts its own: up and down, all clients."""
    return int(run.get("upload_bytes") or 0) + int(run.get("download_bytes") or 0)


def times(ratio: float) -> str:
    """A ratio with three significant digits and no exponent.

    >>> times(1234.5), times(12.345), times(0.0512)
    ('1,230', '12.3', '0.0512')
    """
    if ratio >= 100:
        digits = len(str(int(ratio))) - 3
        return f"{round(ratio, -digits):,.0f}"
    return f"{ratio:.3g}"


def findings(run: Mapping[str, Any]) -> list[str]:
    """The comparison in words, also where federation did not help."""
    student = _score(run, "student", "accuracy")
    alone, after = _score(run, "local_only", "accuracy_mean"), _score(run, "clients", "accuracy_mean")
    if _without_student(run):
        return _findings_of_clients(alone, after)
    if student is None:
        return ["There is no trained student, so there is nothing to compare."]
    sentences = []
    if alone is None:
        sentences.append(_NOT_ALONE)
    else:
        sentences.append(f"The student is {_points(student - alone)} the average client trained alone.")
        if student <= alone:
            sentences.append("By this measure federation did not help here.")
    if alone is not None and after is not None:
        sentences.append(f"The average client is {_points(after - alone)} itself trained alone.")
    pooled = _score(run, "pooled", "accuracy")
    if pooled is not None:
        sentences.append(f"The student is {_points(student - pooled)} the same model on all data in one place.")
    rows = sum(map(sum, run.get("confusion") or []))
    if rows:
        # Binomial, normal approximation; at 0 or 1 it would claim certainty, hence the floor of one row.
        half = max(1.96 * math.sqrt(student * (1 - student) / rows), 1 / rows)
        sentences.append(
            f"The test has {rows:,} rows: drawing other rows alone would move an accuracy like the student's "
            f"by about ±{100 * half:.1f} points, and another seed moves it again."
        )
    return sentences


def _findings_of_clients(alone: float | None, after: float | None) -> list[str]:
    """What can be said where class tables were exchanged."""
    sentences = ["This method trains no student: the clients' own models are its result."]
    if alone is None:
        sentences.append(_NOT_ALONE)
    elif after is not None:
        sentences.append(f"The average client is {_points(after - alone)} itself trained alone.")
        if after <= alone:
            sentences.append("By this measure federation did not help here.")
    return sentences


def _score(run: Mapping[str, Any], part: str, key: str) -> float | None:
    value = (run.get(part) or {}).get(key)
    return None if value is None or math.isnan(value) else float(value)


def _pooled_note(run: Mapping[str, Any]) -> str:
    pooled, student = _score(run, "pooled", "accuracy"), _score(run, "student", "accuracy")
    if pooled is None:
        return "not run: set baselines.pooled = true"
    beaten = student is not None and student > pooled
    return "all private rows in one place" + ("; no bound here, the student is above it" if beaten else "")


def _points(difference: float) -> str:
    text = f"{abs(100 * difference):.1f}"
    if text == "0.0":
        return "level with"
    return f"{text} points {'above' if difference > 0 else 'below'}"


def _mean_and_worst(scores: Mapping[str, Any]) -> str:
    mean, worst = scores.get("accuracy_mean"), scores.get("accuracy_min")
    return "–" if percent(mean) == "–" else f"{percent(mean)}, worst {percent(worst)}"


def _best_row(run: Mapping[str, Any]) -> Row:
    best = (run.get("student") or {}).get("best") or {}
    where = f"round {best['round']}; " if best.get("round") is not None else ""
    metric = ((run.get("config") or {}).get("student") or {}).get("best_metric", "accuracy")
    return Row(
        "student (best round)",
        percent(best.get("accuracy")),
        f"{where}chosen by {metric.replace('_', ' ')} on the test rows, so it is optimistic",
    )


def _fedavg_rows(run: Mapping[str, Any]) -> list[Row]:
    """One row if it was run, none if not: it is no baseline that every run should have."""
    fedavg = run.get("fedavg")
    if not fedavg:
        return []
    sent, rounds = sent_bytes(fedavg), int(fedavg.get("rounds") or 0)
    note = f"{human_bytes(sent)} up and down in {rounds} round{'' if rounds == 1 else 's'}, the student's model"
    return [Row("FedAvg (weights leave the sites)", percent(fedavg.get("accuracy")), f"{note} at every client")]


def _bytes_row(run: Mapping[str, Any]) -> Row:
    sent, weights = sent_bytes(run), int(run.get("weights_bytes") or 0)
    value = f"{human_bytes(sent)} / {human_bytes(weights)}"
    if not sent or not weights:
        note = "up and down, all clients and rounds"
    elif weights >= sent:
        note = f"weight averaging would send {times(weights / sent)} times as much"
    else:
        note = f"weight averaging would send less: {times(weights / sent)} times as much"
    return Row("all bytes / weight averaging would send", value, note)
