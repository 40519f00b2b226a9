"""Handwritten digits, 8x8 grey, 1,797 rows, carried by scikit-learn (Alpaydin and Kaynak 1998, UCI)."""

from __future__ import annotations

import numpy as np

from distillation.inputs import ImageInputs
from simulations.datasets.source import Source
from simulations.sections import DataSection

# Mean and deviation of the published pixels, a fact about the public data set.
INPUTS = ImageInputs((1, 8, 8), scale=1 / 16, mean=(0.305,), std=(0.376,))


def load(settings: DataSection) -> Source:
    """uint8 [1797, 1, 8, 8], values 0 to 16; no setting is read."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return Source(
        classes=tuple(map(str, bunch.target_names)),
        labels=bunch.target.astype(np.int64),
        images=bunch.images[:, None].astype(np.uint8),
        inputs=INPUTS,
    )
