"""The data sets an experiment can name; each file reads one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from distillation.data import DataError
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
        DataError: no such file, another format, a missing column, labels that are no classes, or a scaling that does
            not fit.
    """
    source = DATASETS[settings.name](settings)
    scaling = {key: value for key in ("mean", "std") if (value := getattr(settings, key)) is not None}
    if not scaling:
        return source
    if source.inputs is None:
        raise DataError(
            f"data.{next(iter(scaling))} is for images, and data.name={settings.name!r} is a table: leave it out"
        )
    channels = source.inputs.shape[0]
    for key, value in scaling.items():
        if len(value) not in (1, channels):
            raise DataError(f"data.{key}={list(value)} must be one number, or {channels}: one a channel")
    wide = {key: value * (channels if len(value) == 1 else 1) for key, value in scaling.items()}
    return replace(source, inputs=replace(source.inputs, **wide))
