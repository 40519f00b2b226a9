"""Tables of the user's own: CSV and parquet, with a target column and, perhaps, a column that names the site."""

from __future__ import annotations

import csv
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distillation.data import DataError
from distillation.inputs import category_names
from distillation.tables import read_csv, read_parquet
from simulations.datasets.source import Source, data_path
from simulations.sections import DataSection

if TYPE_CHECKING:
    import pandas as pd

# A numeric target with more values than this is a measurement, not a class.
MAX_NUMERIC_CLASSES = 50
# A column of names becomes one feature a name; more than this is an identifier or free text.
MAX_CATEGORIES = 1000
# From so many rows on, a column of names that never repeats is an identifier.
FEWEST_UNIQUE = 20


def load_csv(settings: DataSection) -> Source:
    """A CSV file with a header, UTF-8 with or without a byte order mark; empty = missing.

    Raises:
        DataError: no such file or column, text in a numeric column, a target that is missing or no class.
    """
    path = data_path(settings, "file", "comma-separated values and a header")
    return from_frame(read_csv(path), settings, path.name, lambda row: f"line {_line(path, row)}")


def load_parquet(settings: DataSection) -> Source:
    """A parquet file.

    Raises:
        DataError: no such file or column, text in a numeric column, a target that is missing or no class.
    """
    path = data_path(settings, "file", "a parquet table")
    frame = read_parquet(path)
    return from_frame(frame.reset_index(drop=True), settings, path.name, lambda row: f"row {row}")


def from_frame(frame: pd.DataFrame, settings: DataSection, file: str, place: Callable[[int], str]) -> Source:
    """Sort a table's columns into features, names, target and site.

    Args:
        frame: n rows, numbered from 0.
        file: its name, for errors.
        place: where a row stands in the file, for errors.

    Raises:
        DataError: as for load_csv.
    """
    frame = frame.rename(columns=str)
    if not settings.target:
        raise DataError(f"data.target is empty: name the column to predict; {file} has {_some(frame.columns)}")
    optional = (settings.site_column,) if settings.site_column else ()
    for key, names in (
        ("target", (settings.target,)),
        ("site_column", optional),
        ("drop", settings.drop),
        ("categorical", settings.categorical),
    ):
        for name in names:
            if name not in frame.columns:
                raise DataError(f"data.{key}: {file} has no column {name!r}; it has {_some(frame.columns)}")
    classes, labels = _classes(frame[settings.target], settings.target, file)
    left_out = {settings.target, *optional, *settings.drop}
    columns: dict[str, pd.Series[Any]] = {}
    categorical = set()
    for name in frame.columns:
        if name not in left_out:
            columns[name], is_name = _feature(frame[name], name in settings.categorical, file, place)
            if is_name:
                categorical.add(name)
    if not columns:
        raise DataError(f"{file} has no column beside target, site and dropped ones: at least one is needed")
    return Source(
        classes=classes,
        labels=labels,
        table=frame[list(columns)].assign(**columns),
        categorical=frozenset(categorical),
        sites=_names(frame[settings.site_column], "site_column", file) if optional else None,
    )


def _names(series: pd.Series[Any], key: str, file: str) -> NDArray[np.str_]:
    """[n] text of a column that must be complete."""
    names = category_names(series.astype(object))
    missing = int((names.isna() | (names == "")).sum())
    if missing:
        raise DataError(
            f"data.{key}={series.name!r}: {missing} of {len(series)} rows of {file} have no value there "
            "(empty, NA and None read as missing): fill them in, or remove those rows"
        )
    return names.to_numpy(np.str_)


def _classes(series: pd.Series[Any], target: str, file: str) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Class names sorted as text, and [n] class numbers."""
    import pandas as pd

    names = _names(series, "target", file)
    classes, labels = np.unique(names, return_inverse=True)
    if len(classes) < 2:
        raise DataError(f"data.target={target!r} has {len(classes)} different values in {file}: at least 2 needed")
    numeric = pd.to_numeric(pd.Series(classes), errors="coerce").notna().all()
    if numeric and len(classes) > MAX_NUMERIC_CLASSES:
        raise DataError(
            f"data.target={target!r} holds {len(classes)} different numbers, over {MAX_NUMERIC_CLASSES}: "
            "this is classification; put the values into classes first"
        )
    return tuple(map(str, classes)), labels.astype(np.int64)


def _feature(
    series: pd.Series[Any], named: bool, file: str, place: Callable[[int], str]
) -> tuple[pd.Series[Any], bool]:
    """A column as numbers or as names, and whether it holds names."""
    import pandas as pd

    types = pd.api.types
    if named or types.is_bool_dtype(series) or isinstance(series.dtype, pd.CategoricalDtype):
        return _categories(series, file), True
    if types.is_numeric_dtype(series) and not types.is_complex_dtype(series):
        return _finite(series.astype(np.float64), file, place), False
    present = series.astype(object)[series.notna().to_numpy()]
    kinds = set(present.map(type))
    if not kinds <= {str, int, float, bool, Decimal}:
        raise DataError(
            f"{file}: column {series.name!r} holds {series.dtype}, neither numbers nor names: "
            "list it in data.drop, or in data.categorical"
        )
    if kinds == {bool}:
        return _categories(series, file), True
    numbers = pd.to_numeric(present.astype(str).str.strip(), errors="coerce")
    text = numbers.isna()
    if not text.any():
        return _finite(numbers.astype(np.float64), file, place).reindex(series.index), False
    if text.mean() < 0.5:
        first = int(np.flatnonzero(text.to_numpy())[0])
        raise DataError(
            f"{file}: column {series.name!r} holds numbers, but {int(text.sum())} of {len(text)} values are text, "
            f"the first in {place(int(present.index[first]))}: "
            "clean them, or list the column in data.categorical"
        )
    return _categories(series, file), True


def _finite(numbers: pd.Series[Any], file: str, place: Callable[[int], str]) -> pd.Series[Any]:
    endless = np.flatnonzero(np.isinf(numbers.to_numpy()))
    if len(endless):
        raise DataError(
            f"{file}: column {numbers.name!r} holds {len(endless)} infinite values, the first in "
            f"{place(int(numbers.index[endless[0]]))}: leave such cells empty"
        )
    return numbers


def _categories(series: pd.Series[Any], file: str) -> pd.Series[Any]:
    names = category_names(series.astype(object))
    if names.nunique() > MAX_CATEGORIES:
        raise DataError(
            f"{file}: column {series.name!r} has {names.nunique()} different names, over {MAX_CATEGORIES}: "
            "identifiers and free text are no features; list it in data.drop"
        )
    known = names.dropna()
    if len(known) >= FEWEST_UNIQUE and known.nunique() == len(known):
        raise DataError(
            f"{file}: column {series.name!r} has another name in each of its {len(known)} rows: an identifier is no "
            "feature; list it in data.drop"
        )
    if len(known) and known.str.fullmatch(r"[-+]?\d+,\d+").mean() > 0.5:
        raise DataError(
            f"{file}: column {series.name!r} has numbers with a decimal comma: write them with a point, or list the "
            "column in data.drop"
        )
    return names


def _line(path: Path, row: int) -> int:
    """Line of the file, from 1, on which a data row ends; quoted fields may span lines and empty lines do not count."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        filled = -1
        for record in reader:
            filled += bool(record)
            if filled == row + 1:
                break
        return reader.line_num


def _some(columns: pd.Index[Any]) -> str:
    names = ", ".join(map(repr, columns[:20]))
    return f"{names} and {len(columns) - 20} more" if len(columns) > 20 else names
