"""`consilium new`: a folder that runs as it is, offline, and is made to be changed."""

from __future__ import annotations

import csv
import importlib.resources
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

SEED = 20_250_101
TABLE_ROWS = 600
IMAGES_PER_CLASS = 300
IMAGE_SIDE = 16
# What the template texts call the project.
PLACEHOLDER = "my_study"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class ProjectError(ValueError):
    """A project that cannot be made; one sentence."""


def create_project(kind: str, target: Path) -> list[Path]:
    """Make a project: configuration, README and made-up data.

    Args:
        kind: `tabular` or `images`.
        target: a folder that does not exist yet, or is empty.

    Returns:
        What now lies in the folder, sorted by name.

    Raises:
        ProjectError: an unknown kind, a name that is not allowed, a folder with something in it, a full disk.

    Guarantees:
        Made elsewhere and renamed: after an error the target is as it was.
    """
    if kind not in KINDS:
        raise ProjectError(f"unknown kind {kind!r}; known: {', '.join(sorted(KINDS))}")
    target = Path(os.path.abspath(target))
    if not NAME.fullmatch(target.name):
        raise ProjectError(f"name {target.name!r} must be letters, digits, - and _, and start with a letter or a digit")
    if target == Path.cwd():
        raise ProjectError(f"{target} is the folder you are in: name a new one")
    if os.path.lexists(target) and (target.is_symlink() or not target.is_dir() or any(target.iterdir())):
        raise ProjectError(f"{target} exists already and is no empty folder: choose another name")
    draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        draft.mkdir()
        _copy_texts(kind, target.name, draft)
        KINDS[kind](draft)
        if target.is_dir():
            target.rmdir()  # empty; on Windows a rename does not replace it
        draft.rename(target)
    except OSError as error:
        raise ProjectError(f"{target} cannot be made: {error.strerror or error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return sorted(target.iterdir())


def _copy_texts(kind: str, name: str, folder: Path) -> None:
    shipped = importlib.resources.files("consilium").joinpath("templates", kind)
    for file in ("README.md", "config.toml"):
        text = shipped.joinpath(file).read_text(encoding="utf-8").replace(PLACEHOLDER, name)
        (folder / file).write_text(text, encoding="utf-8", newline="\n")


# ---- tabular: machines of four made-up plants ------------------------------------------------------------


def write_table(folder: Path) -> None:
    """Write `data.csv`: wear of made-up machines at four plants that differ, as sites do.

    The state follows a weighted sum of the columns with noise, cut into three; about one row in ten is on the
    wrong side of a cut by that noise, so no model is right about everything.
    """
    random = np.random.default_rng(SEED)
    plants = np.array(["north", "south", "east", "west"])
    plant = random.choice(4, TABLE_ROWS, p=[0.35, 0.3, 0.2, 0.15])
    age = random.gamma(2.5, 14.0, TABLE_ROWS)
    temperature = random.normal(np.array([61.0, 72.0, 66.0, 64.0])[plant], 6.0)
    vibration = random.gamma(4.0, 0.5, TABLE_ROWS)
    load = random.uniform(20.0, 100.0, TABLE_ROWS)
    coating = random.choice(3, TABLE_ROWS, p=[0.4, 0.35, 0.25])
    shift = random.choice(2, TABLE_ROWS)
    wear = (
        0.8 * (age - 35.0) / 22.0
        + 0.9 * (temperature - 66.0) / 7.5
        + 1.1 * (vibration - 2.0)
        + 0.6 * (load - 60.0) / 23.0
        + np.array([0.9, 0.0, -0.9])[coating]
        + random.normal(0.0, 0.3, TABLE_ROWS)
    )
    state = np.digitize(wear, [-0.6, 1.5])
    # East's vibration sensor fails often; elsewhere cells go missing now and then.
    missing = random.random((4, TABLE_ROWS)) < 0.02
    missing[1] |= (plant == 2) & (random.random(TABLE_ROWS) < 0.15)
    numbers = [temperature, vibration, load, age]
    cells = [[f"{value:.1f}" for value in column] for column in numbers]
    cells = [["" if gone[i] else cell for i, cell in enumerate(c)] for c, gone in zip(cells, missing, strict=True)]
    with (folder / "data.csv").open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        heading = ("machine_id", "site", "temperature_c", "vibration_mm_s", "load_percent", "age_months")
        writer.writerow((*heading, "coating", "shift", "state"))
        for i in range(TABLE_ROWS):
            writer.writerow(
                (
                    f"m{i:04d}",
                    plants[plant[i]],
                    *(column[i] for column in cells),
                    ("bare", "paint", "zinc")[coating[i]],
                    ("day", "night")[shift[i]],
                    ("good", "worn", "broken")[state[i]],
                )
            )


# ---- images: four shapes ---------------------------------------------------------------------------------


def write_images(folder: Path) -> None:
    """Write `images/<class>/<number>.png`: noisy grey shapes that differ in place, size and brightness."""
    from PIL import Image

    random = np.random.default_rng(SEED)
    for name, shape in SHAPES.items():
        (folder / "images" / name).mkdir(parents=True)
        for number in range(IMAGES_PER_CLASS):
            pixels = _picture(shape, random)
            Image.fromarray(pixels).save(folder / "images" / name / f"{number:03d}.png")


def _picture(
    shape: Callable[[Float64, Float64, float], NDArray[np.bool_]], random: np.random.Generator
) -> NDArray[np.uint8]:
    middle_x, middle_y = random.uniform(5.5, 9.5, 2)
    size, light = random.uniform(3.5, 5.5), random.uniform(60.0, 150.0)
    y, x = np.mgrid[:IMAGE_SIDE, :IMAGE_SIDE].astype(np.float64)
    on = shape(x - middle_x, y - middle_y, size)
    noisy = 50.0 + light * on + random.normal(0.0, 30.0, on.shape)
    return noisy.clip(0, 255).astype(np.uint8)


def _bar(x: Float64, y: Float64, size: float) -> NDArray[np.bool_]:
    return (np.abs(y) < 1.2) & (np.abs(x) < size)


def _cross(x: Float64, y: Float64, size: float) -> NDArray[np.bool_]:
    return _bar(x, y, size) | _bar(y, x, size)


def _disc(x: Float64, y: Float64, size: float) -> NDArray[np.bool_]:
    return np.hypot(x, y) < size


def _ring(x: Float64, y: Float64, size: float) -> NDArray[np.bool_]:
    return np.abs(np.hypot(x, y) - size + 1.0) < 1.0


SHAPES = {"bar": _bar, "cross": _cross, "disc": _disc, "ring": _ring}
KINDS: dict[str, Callable[[Path], None]] = {"images": write_images, "tabular": write_table}
