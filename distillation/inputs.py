"""From stored features to a model's inputs, and from a table's columns to features; all of it plain JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class ImageInputs:
    """Images: uint8 [n, channels, height, width] to float32, (value * scale - mean) / std per channel."""

    shape: tuple[int, ...]
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def tensor(self, features: torch.Tensor) -> torch.Tensor:
        """[n, channels, height, width] float32."""
        mean = torch.tensor(self.mean).view(1, -1, 1, 1)
        std = torch.tensor(self.std).view(1, -1, 1, 1)
        return (features.to(torch.float32) * self.scale).sub_(mean).div_(std)


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    Attributes:
        name: as in the file's header.
        categories: the known values of a categorical column; empty for a numeric one.
        fill: what stands in for a missing number, before scaling.
        mean, std: of a numeric column.
    """

    name: str
    categories: tuple[str, ...] = ()
    fill: float = 0.0
    mean: float = 0.0
    std: float = 1.0

    @property
    def width(self) -> int:
        """Features that this column becomes: one a category, or value and is-missing for a number."""
        return len(self.categories) or 2


@dataclass(frozen=True, slots=True)
class TableInputs:
    """Tables: numbers scaled, with a flag for missing ones; categories one-hot, unknown or missing ones all zero."""

    columns: tuple[Column, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one encoded row."""
        return (sum(column.width for column in self.columns),)

    def encode(self, frame: pd.DataFrame) -> np.ndarray[Any, np.dtype[np.float32]]:
        """[n, features] float32 of the frame's columns, which may stand in any order beside others.

        Raises:
            ValueError: a column is missing, or a numeric one holds text.
        """
        parts = [_encode(column, frame) for column in self.columns]
        return np.concatenate(parts, axis=1, dtype=np.float32)

    def tensor(self, features: torch.Tensor) -> torch.Tensor:
        """Encoded rows are the model's inputs."""
        return features.to(torch.float32)


Inputs = ImageInputs | TableInputs


def fit_table(frame: pd.DataFrame, categorical: set[str]) -> TableInputs:
    """Scaling and categories of every column, from public rows only.

    Args:
        frame: the proxy rows, without target and site columns.
        categorical: the columns that hold names; all others hold numbers.
    """
    columns = []
    for name in map(str, frame.columns):
        if name in categorical:
            values = sorted(category_names(frame[name]).dropna().unique())
            columns.append(Column(name, categories=tuple(values) or ("(none seen)",)))
            continue
        numbers = _numbers(name, frame)
        known = numbers[~np.isnan(numbers)]
        fill, mean, std = (np.median(known), known.mean(), known.std()) if len(known) else (0.0, 0.0, 1.0)
        # Rounding leaves a constant column a spread of 1e-17, which would blow up any other value.
        std = std if std > 1e-12 * abs(mean) else 1.0
        columns.append(Column(name, fill=float(fill), mean=float(mean), std=float(std)))
    return TableInputs(tuple(columns))


def category_names(series: pd.Series[Any]) -> pd.Series[Any]:
    """A categorical column as text, missing values kept missing.

    1, 1.0, "1" and "01" are one category: whether a file's column is read as numbers or as text depends on its
    other rows, and two sites must agree.
    """
    names = series[series.notna()].map(_category)
    return names.reindex(series.index)


def _category(value: object) -> str:
    text = str(value).strip()
    try:
        number = float(text)
    except ValueError:
        return text
    return str(int(number)) if number.is_integer() and abs(number) < 1e15 else text


def _numbers(name: str, frame: pd.DataFrame) -> np.ndarray[Any, np.dtype[np.float64]]:
    import pandas as pd

    if name not in frame.columns:
        raise ValueError(f"column {name!r} is missing; there are: {', '.join(map(str, frame.columns))}")
    numbers = pd.to_numeric(frame[name], errors="coerce")
    text = numbers.isna() & frame[name].notna()
    if text.any():
        raise ValueError(f"column {name!r} must hold numbers: {int(text.sum())} of {len(text)} values are text")
    values: np.ndarray[Any, np.dtype[np.float64]] = numbers.to_numpy(np.float64, copy=True)
    # Nothing measured is beyond float32; a mean over such a value would overflow.
    values[~(np.abs(values) < np.finfo(np.float32).max)] = np.nan
    return values


def _encode(column: Column, frame: pd.DataFrame) -> np.ndarray[Any, np.dtype[np.float32]]:
    if column.categories:
        if column.name not in frame.columns:
            raise ValueError(f"column {column.name!r} is missing; there are: {', '.join(map(str, frame.columns))}")
        names = category_names(frame[column.name]).to_numpy(object)
        hits = names[:, None] == np.array(column.categories, object)[None, :]
        return np.asarray(hits, np.float32)
    numbers = _numbers(column.name, frame)
    missing = np.isnan(numbers)
    # A unit a hundred standard deviations away is a broken sensor, and would drown every other column.
    scaled = np.clip((np.where(missing, column.fill, numbers) - column.mean) / column.std, -100.0, 100.0)
    return np.stack([scaled, missing], axis=1).astype(np.float32)


def inputs_to_json(inputs: Inputs) -> dict[str, Any]:
    """A JSON object that inputs_from_json reads back exactly."""
    return {"kind": "images" if isinstance(inputs, ImageInputs) else "table", **asdict(inputs)}


def inputs_from_json(data: Mapping[str, Any]) -> Inputs:
    """The inputs that inputs_to_json described.

    Raises:
        KeyError, TypeError, ValueError: not such an object.
    """
    if data["kind"] == "images":
        return ImageInputs(tuple(data["shape"]), float(data["scale"]), tuple(data["mean"]), tuple(data["std"]))
    if data["kind"] == "table":
        return TableInputs(
            tuple(Column(**{**column, "categories": tuple(column["categories"])}) for column in data["columns"])
        )
    raise ValueError(f"inputs of kind {data['kind']!r}; images and table are known")
