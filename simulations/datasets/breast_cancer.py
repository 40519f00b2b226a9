"""Wisconsin diagnostic breast cancer, 569 rows of 30 numbers, carried by scikit-learn (Street et al. 1993, UCI)."""

from __future__ import annotations

import numpy as np

from simulations.datasets.source import Source
from simulations.sections import DataSection


def load(settings: DataSection) -> Source:
    """30 numeric columns, classes malignant and benign; no setting is read."""
    from sklearn.datasets import load_breast_cancer

    bunch = load_breast_cancer(as_frame=True)
    return Source(
        classes=tuple(map(str, bunch.target_names)),
        labels=bunch.target.to_numpy(np.int64, copy=True),
        table=bunch.data,
    )
