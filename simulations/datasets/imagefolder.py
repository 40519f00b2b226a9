"""A folder of images, one subfolder a class; with train/ and test/ above them where a test part is set aside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distillation.data import DataError
from distillation.inputs import ImageInputs
from simulations.datasets.source import Source, data_path
from simulations.sections import DataSection

SUFFIXES = (".png", ".jpg", ".jpeg")
CHANNELS = {"L": 1, "RGB": 3}


def load(settings: DataSection) -> Source:
    """uint8 [n, 1 or 3, height, width], rows in the order of class and file names.

    PIL reads the files: `datasets.load_dataset` would leave a copy of them in the user's cache.

    Raises:
        DataError: no classes, a class without images, a foreign file, or images of different size or mode.
    """
    root = data_path(settings, "folder", "one subfolder of .png or .jpg images a class")
    split = (root / "train").is_dir() and (root / "test").is_dir()
    files = _files(root / "train" if split else root)
    classes = tuple(sorted({folder for folder, _ in files}))
    test_files = _files(root / "test") if split else []
    unknown = sorted({folder for folder, _ in test_files} - set(classes))
    if unknown:
        raise DataError(f"{root / 'test' / unknown[0]} has no counterpart in train: a class needs training images")
    if len(classes) < 2:
        raise DataError(f"{root} holds {len(classes)} class folders: at least two are needed, one a class")
    images = _read([path for _, path in files + test_files])
    numbers = {name: number for number, name in enumerate(classes)}
    channels = images.shape[1]
    return Source(
        classes=classes,
        labels=np.array([numbers[folder] for folder, _ in files + test_files], np.int64),
        images=images,
        inputs=ImageInputs(images.shape[1:], 1 / 255, (0.5,) * channels, (0.25,) * channels),
        test_rows=np.arange(len(files), len(images), dtype=np.int64) if split else None,
    )


def _files(root: Path) -> list[tuple[str, Path]]:
    """(class, file) of every image, sorted; hidden files are passed over."""
    found = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        foreign = [path for path in files if path.suffix.lower() not in SUFFIXES]
        if foreign:
            raise DataError(f"{foreign[0]} is no .png or .jpg image: remove it, or convert it")
        if not files:
            raise DataError(f"{folder} holds no images: every class needs some, or remove the folder")
        found += [(folder.name, path) for path in files]
    return found


def _read(paths: list[Path]) -> NDArray[np.uint8]:
    """[n, channels, height, width]; all as the first image is."""
    first = _pixels(paths[0])
    images = np.empty((len(paths), *first.shape), np.uint8)
    for row, path in enumerate(paths):
        pixels = _pixels(path)
        if pixels.shape != first.shape:
            raise DataError(
                f"{path} is {_describe(pixels)} and {paths[0].name} is {_describe(first)}: "
                "bring all images to one size and mode"
            )
        images[row] = pixels
    return images


def _pixels(path: Path) -> NDArray[np.uint8]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            mode, pixels = image.mode, np.asarray(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as an image: remove it, or save it anew") from error
    if mode not in CHANNELS:
        raise DataError(f"{path} has mode {mode}: convert all images to grey (L) or RGB")
    return pixels.reshape(*pixels.shape[:2], CHANNELS[mode]).transpose(2, 0, 1)


def _describe(pixels: NDArray[np.uint8]) -> str:
    channels, height, width = pixels.shape
    return f"{width}x{height} {'grey' if channels == 1 else 'RGB'}"
