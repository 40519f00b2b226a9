"""The data sets an experiment can name; each file reads one."""

from __future__ import annotations

from collections.abc import Callable

from simulations.datasets import (
    breast_cancer,
    cifar10,
    digits,
    heart_disease,
    imagefolder,
    mnist,
    tabular,
)
from simulations.datasets.source import Source
from simulations.sections import DataSection

DATASETS: dict[str, Callable[[DataSection], Source]] = {
    "digits": digits.load,
    "breast-cancer": breast_cancer.load,
    "mnist": mnist.load,
    "cifar10": cifar10.load,
    "heart-disease": heart_disease.load,
    "csv": tabular.load_csv,
    "parquet": tabular.load_parquet,
    "imagefolder": imagefolder.load,
}


def load_source(settings: DataSection) -> Source:
    """Read the data set that `settings.name` names, all of it.

    Raises:
        DataError: no such file, another format, a missing column, or labels that are no classes.
    """
    return DATASETS[settings.name](settings)
