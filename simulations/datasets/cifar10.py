"""CIFAR-10, 32x32 colour photos, as parquet files with encoded images (Krizhevsky 2009)."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distillation.data import DataError
from distillation.inputs import ImageInputs
from simulations.datasets.source import Source, beside, data_path
from simulations.sections import DataSection

FILES = ("train.parquet", "test.parquet")
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
INPUTS = ImageInputs((3, 32, 32), scale=1 / 255, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def load(settings: DataSection) -> Source:
    """uint8 [n, 3, 32, 32]; the rows of test.parquet are the test rows.

    Raises:
        DataError: a file is missing, no parquet with `image` and `label`, or an image is not 32x32.
    """
    folder = data_path(settings, "folder", " and ".join(FILES))
    (images, labels), (other_images, other_labels) = (_read(beside(folder, name, FILES)) for name in FILES)
    return Source(
        classes=CLASSES,
        labels=np.concatenate([labels, other_labels]),
        images=np.concatenate([images, other_images]),
        inputs=INPUTS,
        test_rows=np.arange(len(labels), len(labels) + len(other_labels), dtype=np.int64),
    )


def _read(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    import pyarrow
    from pyarrow import compute, parquet

    try:
        table = parquet.read_table(path, columns=["image", "label"])
        encoded = compute.struct_field(table["image"], "bytes").to_pylist()
        labels = table["label"].to_numpy().astype(np.int64)
    except (pyarrow.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} is no parquet file with encoded images in `image` and numbers in `label`: fetch it again"
        ) from error
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(CLASSES):
        raise DataError(f"{path}: labels go from {labels.min()} to {labels.max()}: 0 to 9 expected")
    images = np.empty((len(labels), *INPUTS.shape), np.uint8)
    for row, content in enumerate(encoded):
        images[row] = _decode(path, row, content)
    return images, labels


def _decode(path: Path, row: int, content: bytes | None) -> NDArray[np.uint8]:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content or b"")) as image:
            pixels = np.asarray(image.convert("RGB"), np.uint8)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: the image in row {row} cannot be decoded: fetch the file again") from error
    if pixels.shape != (32, 32, 3):
        raise DataError(f"{path}: the image in row {row} is {pixels.shape[1]}x{pixels.shape[0]}: 32x32 expected")
    return pixels.transpose(2, 0, 1)
