"""Heart disease at four hospitals: a natural federated split (Janosi et al. 1988, UCI Heart Disease)."""

from __future__ import annotations

import numpy as np

from distillation.data import DataError
from distillation.tables import read_csv
from simulations.datasets.source import Source, beside, data_path
from simulations.sections import DataSection

HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")
FILES = tuple(f"{name}.csv" for name in HOSPITALS)
# Codes, by UCI's description: chest pain, fasting sugar over 120 mg/dl, resting ECG, exercise angina, ST slope,
# thallium scan. `ca` counts coloured vessels, so it is a number.
CATEGORICAL = frozenset({"sex", "cp", "fbs", "restecg", "exang", "slope", "thal"})
NUMERIC = ("age", "trestbps", "chol", "thalach", "oldpeak", "ca")
TARGET = "num"


def load(settings: DataSection) -> Source:
    """920 rows of 13 columns, classes healthy and disease; every hospital is a site.

    Raises:
        DataError: a file or a column is missing, a value is text, or `num` is missing.
    """
    import pandas as pd

    folder = data_path(settings, "folder", ", ".join(FILES))
    paths = [beside(folder, name, FILES) for name in FILES]
    frames = [read_csv(path) for path in paths]
    for path, frame in zip(paths, frames, strict=True):
        missing = sorted({*CATEGORICAL, *NUMERIC, TARGET} - set(frame.columns))
        if missing:
            raise DataError(f"{path} has no column {', '.join(missing)}: UCI's header is expected")
        text = [str(name) for name in frame.columns if not pd.api.types.is_numeric_dtype(frame[name])]
        if text:
            raise DataError(f"{path}: column {text[0]!r} holds text: leave missing values empty")
        if frame[TARGET].isna().any():
            raise DataError(f"{path}: {int(frame[TARGET].isna().sum())} rows have no {TARGET!r}: remove them")
    rows = pd.concat(frames, ignore_index=True)
    # Three of the hospitals wrote 0 for a pressure or a cholesterol that was not measured.
    rows[["trestbps", "chol"]] = rows[["trestbps", "chol"]].astype(float).where(rows[["trestbps", "chol"]] != 0)
    return Source(
        classes=("healthy", "disease"),
        labels=(rows[TARGET].to_numpy() > 0).astype(np.int64),
        table=rows[[name for name in rows.columns if name in CATEGORICAL or name in NUMERIC]],
        categorical=CATEGORICAL,
        sites=np.repeat(np.array(HOSPITALS), [len(frame) for frame in frames]),
    )
