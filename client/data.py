"""The site's own rows, from its own file."""

from __future__ import annotations

from pathlib import Path

import torch

from distillation.data import DataError, Proxy, Samples, load_samples
from distillation.inputs import TableInputs, category_names
from distillation.tables import read_csv, read_parquet


def load_private(path: Path, target: str, proxy: Proxy) -> Samples:
    """The site's labelled rows, as the proxy's manifest says a model wants them.

    Args:
        path: `.safetensors`, `.csv` or `.parquet`.
        target: of a table, the column with the class names.
        proxy: the public set whose columns and classes these rows must have.

    Raises:
        DataError: a missing file, column or label, a class that the federation does not know, another shape.
    """
    if path.suffix == ".safetensors":
        samples = load_samples(path)
    elif path.suffix in (".csv", ".parquet"):
        samples = _load_table(path, target, proxy)
    else:
        raise DataError(f"{path.name}: private rows are .safetensors, .csv or .parquet")
    if samples.labels is None or len(samples) == 0:
        raise DataError(f"{path.name} has {len(samples)} labelled rows: a site needs at least one")
    if tuple(samples.features.shape[1:]) != tuple(proxy.inputs.shape):
        raise DataError(
            f"{path.name}: rows have shape {list(samples.features.shape[1:])}, "
            f"the proxy's {list(proxy.inputs.shape)}: prepare both the same way"
        )
    if int(samples.labels.min()) < 0 or int(samples.labels.max()) >= len(proxy.classes):
        raise DataError(f"{path.name}: labels must be class numbers from 0 to {len(proxy.classes) - 1}")
    return samples


def _load_table(path: Path, target: str, proxy: Proxy) -> Samples:
    if not isinstance(proxy.inputs, TableInputs):
        raise DataError(f"{path.name} is a table and this federation's proxy set holds images")
    if not path.is_file():
        raise DataError(f"{path} is not there: name the site's own file in `private`")
    frame = read_parquet(path) if path.suffix == ".parquet" else read_csv(path)
    if target not in frame.columns:
        raise DataError(f"{path.name} has no column {target!r}: name the column of class names in `target`")
    numbers = {name: index for index, name in enumerate(proxy.classes)}
    labels = category_names(frame[target]).map(numbers.get)
    if labels.isna().any():
        raise DataError(
            f"{path.name}: {int(labels.isna().sum())} rows have no class of this federation in {target!r}; "
            f"the classes are {', '.join(proxy.classes)}"
        )
    try:
        features = proxy.inputs.encode(frame)
    except ValueError as error:
        raise DataError(f"{path.name}: {error}") from error
    return Samples(torch.from_numpy(features), torch.from_numpy(labels.to_numpy("int64", copy=True)))
