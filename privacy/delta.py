"""Delta, far below one record's share and never guessed in silence; and how many records one guarantee may cover."""

from __future__ import annotations

# Below this the convolutions of epsilon_of are no better than float64's rounding.
LEAST_DELTA = 1e-12
MOST_RECORDS = 1000


def default_delta(records: int) -> float:
    """min(1e-5, 1 / (10 records)): for who asks for a default by name.

    Args:
        records: n, public: rows of the data set, or patients, whatever the unit is.

    Raises:
        ValueError: records is below 1.

    >>> default_delta(60_000), default_delta(5)
    (1.6666666666666667e-06, 1e-05)
    """
    _check_records(records)
    return min(1e-5, 1.0 / (10.0 * records))


def check_delta(delta: float, records: int | None = None) -> None:
    """Raise unless a guarantee with this delta says something.

    Args:
        records: n, where it is known: publishing one random record satisfies (0, 1/n).

    Raises:
        ValueError: delta is not in [1e-12, 1) or above 1 / records; records is below 1.
    """
    if not LEAST_DELTA <= delta < 1.0:
        raise ValueError(
            f"delta={delta} must be in [{LEAST_DELTA}, 1): it is a probability, and float64 shows none below; "
            "min(1e-5, 1/(10 n)) is usual"
        )
    if records is None:
        return
    _check_records(records)
    if delta * records > 1.0:
        raise ValueError(
            f"delta={delta} must be at most 1/n={1.0 / records:g} for n={records} records, or publishing one of them "
            f"would satisfy it: give {default_delta(records):g}"
        )


def check_group(records: int) -> None:
    """Raise unless a group of so many records can be accounted for.

    Raises:
        ValueError: it is not in 1..1000.
    """
    if isinstance(records, bool) or not isinstance(records, int) or not 1 <= records <= MOST_RECORDS:
        raise ValueError(
            f"records={records} must be a whole number in 1..{MOST_RECORDS}: for more, protect the whole client"
        )


def _check_records(records: int) -> None:
    if isinstance(records, bool) or not isinstance(records, int) or records < 1:
        raise ValueError(f"records={records} must be a whole number, 1 or more")
