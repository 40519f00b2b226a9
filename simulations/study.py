"""A study on disk: the public proxy set, the test set and every site's private rows, from one data set."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from distillation.data import DataError, Samples, save_proxy, save_samples
from distillation.inputs import Inputs, TableInputs, fit_table
from simulations.datasets import load_source
from simulations.datasets.source import Source
from simulations.partition import client_names, partition, split_rows
from simulations.sections import DataSection


@dataclass(frozen=True, slots=True, eq=False)
class Study:
    """What prepare_study wrote.

    Attributes:
        folder: holds proxy/, test.safetensors and sites/<name>/private.safetensors.
        names: the clients' names, in order.
        sizes: private rows of each client.
        class_counts: [clients, classes] private rows of each class.
        classes: class names, in the order of their numbers.
        shape: of one input to a model.
        proxy_sha256: identity of the proxy set.
        proxy_rows, test_rows: how many.
    """

    folder: Path
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    class_counts: NDArray[np.int64]
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    proxy_sha256: str
    proxy_rows: int
    test_rows: int

    @property
    def proxy(self) -> Path:
        """Folder of the proxy bundle; its labels are written too, since in a simulation they are public."""
        return self.folder / "proxy"

    @property
    def test(self) -> Path:
        """File of the held-out rows."""
        return self.folder / "test.safetensors"

    def private(self, name: str) -> Path:
        """File of one client's private rows."""
        return self.folder / "sites" / name / "private.safetensors"


def prepare_study(settings: DataSection, clients: int, seed: int, folder: Path) -> Study:
    """Load, split, deal out and write a data set.

    Args:
        clients: number of clients.
        seed: of the deal; splits and partitions are functions of it.
        folder: where to write; it must not exist yet, or be empty.

    Raises:
        DataError: the data cannot be read, split or dealt out as asked, or the folder cannot be written.

    Guarantees:
        The folder appears complete or not at all. A table's scaling and categories depend on proxy rows only.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise DataError(f"{folder} already exists: remove it, or name another folder")
    source = load_source(settings)
    split = split_rows(source, settings, seed)
    parts = partition(source, split.private, settings, clients, seed)
    names = client_names(source, settings, clients)
    inputs = _fit(source, split.proxy)
    proxy, test = _samples(source, inputs, split.proxy), _samples(source, inputs, split.test)
    sites = {name: _samples(source, inputs, rows) for name, rows in zip(names, parts, strict=True)}
    return Study(
        folder=folder,
        names=names,
        sizes=tuple(map(len, parts)),
        class_counts=np.stack(
            [np.bincount(source.labels[rows], minlength=len(source.classes)) for rows in parts]
        ).astype(np.int64),
        classes=source.classes,
        shape=tuple(inputs.shape),
        proxy_sha256=_write(folder, source.classes, inputs, proxy, test, sites),
        proxy_rows=len(proxy),
        test_rows=len(test),
    )


def _fit(source: Source, proxy_rows: NDArray[np.int64]) -> Inputs:
    if source.inputs is not None:
        return source.inputs
    assert source.table is not None  # noqa: S101 - a Source is images with inputs, or a table
    return fit_table(source.table.iloc[proxy_rows], set(source.categorical))


def _samples(source: Source, inputs: Inputs, rows: NDArray[np.int64]) -> Samples:
    labels = torch.from_numpy(source.labels[rows])
    if source.images is not None:
        return Samples(torch.from_numpy(source.images[rows]), labels)
    assert source.table is not None  # noqa: S101 - a Source is images or a table
    assert isinstance(inputs, TableInputs)  # noqa: S101 - as _fit made them
    return Samples(torch.from_numpy(inputs.encode(source.table.iloc[rows])), labels)


def _write(
    folder: Path, classes: tuple[str, ...], inputs: Inputs, proxy: Samples, test: Samples, sites: dict[str, Samples]
) -> str:
    """All files under a temporary name beside the folder, then renamed; returns the proxy's sha256."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise DataError(f"{folder} cannot be written ({error.strerror}): name another folder") from error
    try:
        digest = save_proxy(scratch / "proxy", proxy, classes, inputs)
        save_samples(scratch / "test.safetensors", test)
        for name, samples in sites.items():
            (scratch / "sites" / name).mkdir(parents=True)
            save_samples(scratch / "sites" / name / "private.safetensors", samples)
        scratch.replace(folder)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{folder} cannot be written ({error}): free some space, or name another folder") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return digest
