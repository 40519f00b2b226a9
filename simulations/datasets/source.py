"""What every data set is read into, before anything is split or scaled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from distillation.data import DataError
from distillation.inputs import ImageInputs
from simulations.sections import DataSection

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A whole data set; either images or a table.

    Attributes:
        classes: class names, in the order of their numbers.
        labels: [n] class numbers.
        images: [n, channels, height, width] raw pixels, or None.
        table: n rows of feature columns, without target and site columns, or None.
        categorical: the table's columns that hold names.
        inputs: how images become a model's inputs; a table's are fitted on proxy rows later.
        sites: [n] name of the site that each row comes from, where the data has natural sites.
        test_rows: row numbers that the data's authors set aside for testing, ascending.
    """

    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    images: NDArray[np.uint8] | None = None
    table: pd.DataFrame | None = None
    categorical: frozenset[str] = frozenset()
    inputs: ImageInputs | None = None
    sites: NDArray[np.str_] | None = None
    test_rows: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.labels)


def data_path(settings: DataSection, kind: Literal["file", "folder"], holds: str) -> Path:
    """`settings.path`, checked.

    Args:
        kind: what the path must be.
        holds: what is expected there, as the error should say it.

    Raises:
        DataError: no path given, or nothing of that kind there.
    """
    if not settings.path:
        raise DataError(f"data.path is empty: data.name={settings.name!r} needs a {kind} with {holds}")
    path = Path(settings.path)
    if not (path.is_file() if kind == "file" else path.is_dir()):
        raise DataError(f"data.path={settings.path} is no {kind}: name a {kind} with {holds}")
    return path


def beside(folder: Path, name: str, files: Sequence[str]) -> Path:
    """The file `name` in `folder`.

    Raises:
        DataError: it is not there; the message lists all `files` that belong there.
    """
    path = folder / name
    if not path.is_file():
        raise DataError(f"{path} is not there: data.path must be a folder with {', '.join(files)}")
    return path
