"""How much had to be sent for an accuracy: what methods with other messages can be compared by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from simulations.reporting.figures import finite


def bytes_to(rows: Iterable[Mapping[str, Any]], accuracy_column: str, threshold: float) -> tuple[int, int] | None:
    """Bytes up and down, all clients, until an accuracy is first reached; the round that reaches it counts.

    Args:
        rows: of metrics.csv or fedavg.csv in order of round, cells as text or as numbers.
        accuracy_column: for example `student_accuracy`; an empty cell was not measured and reaches nothing.
        threshold: in (0, 1].

    Returns:
        (upload_bytes, download_bytes), or None where no round reaches it.

    Raises:
        ValueError: the threshold is no share.
        KeyError: no such column.

    >>> rounds = [{"round": r, "accuracy": r / 10, "upload_bytes": 5, "download_bytes": 7} for r in (1, 2, 3)]
    >>> bytes_to(rounds, "accuracy", 0.2), bytes_to(rounds, "accuracy", 0.9)
    ((10, 14), None)
    """
    if not 0.0 < threshold <= 1.0:
        raise ValueError(f"threshold={threshold} must be in (0, 1]: an accuracy is a share, 0.9 and not 90")
    upload_bytes = download_bytes = 0
    for row in rows:
        if accuracy_column not in row:
            raise KeyError(f"no column {accuracy_column!r}; known: {', '.join(row)}")
        upload_bytes += int(row["upload_bytes"])
        download_bytes += int(row["download_bytes"])
        accuracy = finite(row[accuracy_column])
        if accuracy is not None and accuracy >= threshold:
            return upload_bytes, download_bytes
    return None
