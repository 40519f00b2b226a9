"""Tables from files: the one reader that a study and a site share, so that both see the same columns."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from distillation.data import DataError

if TYPE_CHECKING:
    import pandas as pd


def read_csv(path: Path) -> pd.DataFrame:
    """The file as pandas sees it, every row with as many fields as the header.

    Raises:
        DataError: not UTF-8, no CSV, or rows longer than the header.
    """
    import pandas as pd

    try:
        with warnings.catch_warnings():
            # Without these two a row longer than the header shifts every column by one, silently.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return pd.read_csv(path, encoding="utf-8-sig", index_col=False, low_memory=False)
    except pd.errors.ParserWarning as error:
        raise DataError(
            f"{path}: rows have more fields than the header: name every column in the first line"
        ) from error
    except (ValueError, OSError) as error:
        raise DataError(
            f"{path} cannot be read as CSV ({str(error).strip()}): save it as UTF-8, comma-separated, with a header"
        ) from error


def read_parquet(path: Path) -> pd.DataFrame:
    """The file as pandas sees it.

    Raises:
        DataError: no parquet.
    """
    import pandas as pd
    import pyarrow

    try:
        return pd.read_parquet(path)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as parquet: check that it is one") from error
