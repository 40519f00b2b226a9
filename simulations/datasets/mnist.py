"""MNIST, 28x28 grey digits, in the IDX files that torchvision stores (LeCun et al. 1998)."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillation.data import DataError
from distillation.inputs import ImageInputs
from simulations.datasets.source import Source, beside, data_path
from simulations.sections import DataSection

FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
INPUTS = ImageInputs((1, 28, 28), scale=1 / 255, mean=(0.0,), std=(1.0,))


def load(settings: DataSection) -> Source:
    """uint8 [n, 1, 28, 28], values 0 to 255; the t10k files are the test rows.

    Raises:
        DataError: a file is missing, no IDX of bytes, or the four do not fit together.
    """
    folder = data_path(settings, "folder", "the four IDX files of MNIST")
    images, labels, other_images, other_labels = (read_idx(_find(folder, name)) for name in FILES)
    for name, pixels, numbers in ((FILES[0], images, labels), (FILES[2], other_images, other_labels)):
        if pixels.shape[1:] != (28, 28) or numbers.shape != pixels.shape[:1]:
            raise DataError(
                f"{folder / name} holds {list(pixels.shape)} and its labels {list(numbers.shape)}: "
                "[n, 28, 28] and [n] expected; fetch both again"
            )
        if len(numbers) and numbers.max() > 9:
            raise DataError(f"the labels beside {folder / name} reach {numbers.max()}: 0 to 9 expected")
    return Source(
        classes=tuple(map(str, range(10))),
        labels=np.concatenate([labels, other_labels]).astype(np.int64),
        images=np.concatenate([images, other_images])[:, None],
        inputs=INPUTS,
        test_rows=np.arange(len(labels), len(labels) + len(other_labels), dtype=np.int64),
    )


def read_idx(path: Path) -> NDArray[np.uint8]:
    """An IDX file of unsigned bytes, gzipped where the name ends in .gz; as many dimensions as its header says.

    Raises:
        DataError: not gzip, not IDX, or shorter or longer than its header says.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read as gzip ({error}): fetch it again") from error
    # Magic number: two zero bytes, the type (8 = unsigned byte), the number of dimensions.
    if len(content) < 4 or content[:3] != b"\x00\x00\x08" or len(content) < 4 + 4 * content[3]:
        raise DataError(f"{path} is no IDX file of bytes: fetch it again")
    header: NDArray[Any] = np.frombuffer(content, ">u4", count=content[3], offset=4)
    shape = tuple(map(int, header))
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape))
    if values.size != int(np.prod(shape, dtype=object)):
        raise DataError(f"{path} holds {values.size} bytes where its header says {shape}: fetch it again")
    return values.reshape(shape)


def _find(folder: Path, name: str) -> Path:
    plain = folder / name.removesuffix(".gz")
    return plain if plain.is_file() else beside(folder, name, FILES)
