from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from distillation.data import DataError
from distillation.inputs import ImageInputs
from simulations.datasets import DATASETS, load_source
from simulations.datasets.source import Source
from simulations.sections import DataSection


def read(name: str, path: Path | str = "", **settings: Any) -> Source:
    return load_source(DataSection.model_validate({"name": name, "path": str(path), **settings}))


def idx(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    return header + values.astype(np.uint8).tobytes()


def gzipped(content: bytes) -> bytes:
    """The same bytes at any time: they are in the names of tests."""
    return gzip.compress(content, mtime=0)


def write_mnist(folder: Path, train: int = 30, test: int = 10) -> Path:
    folder.mkdir(exist_ok=True)
    for part, rows in (("train", train), ("t10k", test)):
        numbers = np.arange(rows) % 10
        pixels = np.broadcast_to(numbers[:, None, None], (rows, 28, 28))
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels)))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(numbers)))
    return folder


def test_pixels_are_scaled_by_the_constants_that_the_configuration_names(tmp_path: Path) -> None:
    folder = write_mnist(tmp_path / "mnist")
    assert read("mnist", folder).inputs == ImageInputs((1, 28, 28), 1 / 255, (0.0,), (1.0,))
    named = read("mnist", folder, mean=0.1307, std=[0.3081])
    assert named.inputs == ImageInputs((1, 28, 28), 1 / 255, (0.1307,), (0.3081,))
    colours = read("cifar10", write_cifar(tmp_path / "cifar"), mean=0.5).inputs
    assert colours is not None
    assert (colours.mean, colours.std) == ((0.5,) * 3, read("cifar10", tmp_path / "cifar").inputs.std)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "told", "sentence"),
    [
        ("digits", {"mean": [0.1, 0.2]}, r"data.mean=\[0.1, 0.2\] must be one number, or 1: one a channel"),
        ("breast-cancer", {"std": 2.0}, "data.std is for images, and data.name='breast-cancer' is a table"),
    ],
)
def test_a_scaling_that_does_not_fit_is_refused(name: str, told: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        read(name, **told)


def encoded(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def write_cifar(folder: Path, train: int = 30, test: int = 10, side: int = 32) -> Path:
    folder.mkdir(exist_ok=True)
    for part, rows in (("train", train), ("test", test)):
        images = [np.full((side, side, 3), [row, 2 * row, 3 * row], np.uint8) for row in range(rows)]
        cells = [{"bytes": encoded(image), "path": None} for image in images]
        pd.DataFrame({"image": cells, "label": np.arange(rows) % 10}).to_parquet(folder / f"{part}.parquet")
    return folder


HEART = "age,sex,cp,trestbps,chol,fbs,restecg,thalach,exang,oldpeak,slope,ca,thal,num\n"


def write_heart(folder: Path, rows: int = 6) -> Path:
    folder.mkdir(exist_ok=True)
    for age, name in enumerate(("cleveland", "hungarian", "switzerland", "va")):
        lines = [f"{30 + age},1,4,120,{row % 2 * 200},0,0,150,0,1.5,,,,{row % 3}\n" for row in range(rows)]
        (folder / f"{name}.csv").write_text(HEART + "".join(lines))
    return folder


def write_images(folder: Path, classes: str = "ab", rows: int = 3, side: int = 4) -> Path:
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for row in range(rows):
            Image.fromarray(np.full((side, side), 10 * number + row, np.uint8)).save(folder / name / f"{row}.png")
    return folder


def write_parquet(path: Path) -> Path:
    pd.DataFrame({"a": [1, 2, 3], "y": ["u", "v", "u"]}).to_parquet(path)
    return path


# name: (make a small one, classes, rows, rows set aside for testing)
EXPECTED: dict[str, tuple[Callable[[Path], dict[str, Any]], int, int, int]] = {
    "digits": (lambda folder: {}, 10, 1797, 0),
    "breast-cancer": (lambda folder: {}, 2, 569, 0),
    "mnist": (lambda folder: {"path": write_mnist(folder)}, 10, 40, 10),
    "cifar10": (lambda folder: {"path": write_cifar(folder)}, 10, 40, 10),
    "heart-disease": (lambda folder: {"path": write_heart(folder)}, 2, 24, 0),
    "csv": (lambda folder: {"path": _csv_file(folder), "target": "y"}, 2, 3, 0),
    "parquet": (lambda folder: {"path": write_parquet(folder / "t.parquet"), "target": "y"}, 2, 3, 0),
    "imagefolder": (lambda folder: {"path": write_images(folder)}, 2, 6, 0),
}


def _csv_file(folder: Path) -> Path:
    (folder / "t.csv").write_text("a,y\n1,u\n2,v\n3,u\n")
    return folder / "t.csv"


def test_every_data_set_has_a_row_here() -> None:
    assert set(EXPECTED) == set(DATASETS)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_source_is_labelled_images_with_inputs_or_a_labelled_table(name: str, tmp_path: Path) -> None:
    make, classes, rows, test_rows = EXPECTED[name]
    source = read(name, **make(tmp_path))
    assert (len(source.classes), len(source)) == (classes, rows)
    assert source.labels.dtype == np.int64
    assert set(source.labels.tolist()) == set(range(classes))
    assert (0 if source.test_rows is None else len(source.test_rows)) == test_rows
    if source.images is not None:
        assert source.table is None
        assert source.inputs is not None
        assert source.images.dtype == np.uint8
        assert source.images.shape == (rows, *source.inputs.shape)
    else:
        assert source.table is not None
        assert source.inputs is None
        assert len(source.table) == rows
        assert source.categorical <= set(source.table.columns)


def test_importing_the_registry_imports_no_data_library() -> None:
    code = "import json, sys, simulations.study; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert not {"sklearn", "datasets", "flwr_datasets", "pandas", "PIL", "pyarrow"} & set(loaded)


# ---- the real files ------------------------------------------------------------------------------------------


def test_the_four_hospitals_are_the_sites_and_num_over_zero_is_disease(shared_data: Path) -> None:
    source = read("heart-disease", shared_data / "heart-disease")
    assert source.sites is not None
    assert source.table is not None
    # rows and diseased by hospital: 303-164, 294-188, 123-8, 200-51 (healthy ones counted in the files)
    for site, rows, diseased in (
        ("cleveland", 303, 139),
        ("hungarian", 294, 106),
        ("switzerland", 123, 115),
        ("va", 200, 149),
    ):
        here = source.sites == site
        assert (int(here.sum()), int(source.labels[here].sum())) == (rows, diseased)
    assert source.table["chol"][source.sites == "switzerland"].isna().all()  # 0 in the file: never measured
    assert "num" not in source.table.columns


def test_the_real_mnist_is_read_whole(shared_data: Path) -> None:
    source = read("mnist", shared_data / "mnist")
    assert source.images is not None
    assert source.images.shape == (70_000, 1, 28, 28)
    assert source.test_rows is not None
    assert source.test_rows.tolist() == list(range(60_000, 70_000))
    # A one is a stroke and a zero a ring: the mean ink of all zeros is more than twice that of all ones.
    ink = [source.images[source.labels == digit].mean() for digit in (0, 1)]
    assert ink[0] > 2 * ink[1]


def test_the_real_cifar_is_read_whole(shared_data: Path) -> None:
    source = read("cifar10", shared_data / "cifar10")
    assert np.bincount(source.labels).tolist() == [6000] * 10
    assert source.images is not None
    red, _, blue = source.images[source.labels == source.classes.index("ship")].mean(axis=(0, 2, 3))
    assert blue > red  # sea and sky: the channels stand in the order red, green, blue


# ---- image formats -------------------------------------------------------------------------------------------


def test_idx_files_hold_what_was_written_gzipped_or_not(tmp_path: Path) -> None:
    source = read("mnist", write_mnist(tmp_path))
    for path in list(tmp_path.glob("*.gz")):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    plain = read("mnist", tmp_path)
    for found in (source, plain):
        assert found.images is not None
        assert found.images[13].tolist() == [[[3] * 28] * 28]
        assert found.labels[13] == 3
        assert found.inputs == ImageInputs((1, 28, 28), 1 / 255, (0.0,), (1.0,))


def test_parquet_images_come_with_their_channels_first(tmp_path: Path) -> None:
    images = read("cifar10", write_cifar(tmp_path)).images
    assert images is not None
    assert images[7, :, 0, 0].tolist() == [7, 14, 21]


def test_images_of_a_folder_come_in_the_order_of_names(tmp_path: Path) -> None:
    (write_images(tmp_path) / "a" / ".DS_Store").write_text("")
    source = read("imagefolder", tmp_path)
    assert source.images is not None
    assert source.images[:, 0, 0, 0].tolist() == [0, 1, 2, 10, 11, 12]
    assert source.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert source.test_rows is None


def test_a_test_folder_becomes_the_test_rows(tmp_path: Path) -> None:
    write_images(tmp_path / "train")
    write_images(tmp_path / "test", classes="b", rows=2)
    source = read("imagefolder", tmp_path)
    assert source.labels.tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert source.test_rows is not None
    assert source.test_rows.tolist() == [6, 7]


def test_colour_images_have_three_channels(tmp_path: Path) -> None:
    for name, red in (("a", 200), ("b", 100)):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((4, 6, 3), [red, 1, 2], np.uint8)).save(tmp_path / name / "x.PNG")
    images = read("imagefolder", tmp_path).images
    assert images is not None
    assert images.shape == (2, 3, 4, 6)
    assert images[:, :, 0, 0].tolist() == [[200, 1, 2], [100, 1, 2]]


# ---- wrong files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mnist", "cifar10", "heart-disease", "csv", "parquet", "imagefolder"])
def test_a_path_is_needed_and_must_be_there(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"data.path is empty: data.name='{name}' needs a (file|folder) with "):
        read(name)
    with pytest.raises(DataError, match=r"data.path=.*nowhere is no (file|folder): name a"):
        read(name, tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["mnist", "cifar10", "heart-disease"])
def test_an_empty_folder_is_told_which_files_belong_there(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not there: data.path must be a folder with \w"):
        read(name, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not gzip", "cannot be read as gzip"),
        (gzipped(idx(np.zeros((30, 28, 28))))[:-20], "cannot be read as gzip"),
        (gzipped(b"hello world"), "no IDX file of bytes"),
        (gzipped(idx(np.zeros((30, 28, 28)))[:10]), "no IDX file of bytes"),
        (gzipped(idx(np.zeros((30, 28, 28)))[:-1]), "holds 23519 bytes where its header says"),
        (gzipped(idx(np.zeros((29, 28, 28)))), r"holds \[29, 28, 28\] and its labels \[30\]"),
        (gzipped(idx(np.zeros((30, 27, 28)))), r"\[n, 28, 28\] and \[n\] expected"),
    ],
)
def test_a_broken_idx_file_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (write_mnist(tmp_path) / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read("mnist", tmp_path)


def test_mnist_labels_beyond_nine_are_refused(tmp_path: Path) -> None:
    (write_mnist(tmp_path) / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.arange(5, 15))))
    with pytest.raises(DataError, match="reach 14: 0 to 9 expected"):
        read("mnist", tmp_path)


def test_parquet_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_text("a,y\n1,u\n")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        read("parquet", tmp_path / "t.parquet", target="y")


def test_cifar_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    (tmp_path / "train.parquet").write_text("no parquet")
    with pytest.raises(DataError, match="no parquet file with encoded images"):
        read("cifar10", tmp_path)
    write_parquet(tmp_path / "train.parquet")
    with pytest.raises(DataError, match="no parquet file with encoded images"):
        read("cifar10", tmp_path)


@pytest.mark.parametrize(
    ("image", "label", "message"),
    [
        (b"no image", 1, "image in row 0 cannot be decoded"),
        (None, 1, "image in row 0 cannot be decoded"),
        (encoded(np.zeros((16, 32, 3), np.uint8)), 1, "row 0 is 32x16: 32x32 expected"),
        (encoded(np.zeros((32, 32, 3), np.uint8)), 10, "labels go from 10 to 10: 0 to 9 expected"),
    ],
)
def test_a_wrong_cifar_row_is_refused(image: bytes | None, label: int, message: str, tmp_path: Path) -> None:
    write_cifar(tmp_path)
    import pyarrow as pa
    from pyarrow import parquet

    cell = pa.array([{"bytes": image, "path": None}], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    parquet.write_table(pa.table({"image": cell, "label": [label]}), tmp_path / "test.parquet")
    with pytest.raises(DataError, match=message):
        read("cifar10", tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("age,num\n1,0\n", "no column ca, chol, cp"),
        (HEART + "63,1,4,?,200,0,0,150,0,1.5,,,,1\n", "column 'trestbps' holds text"),
        (HEART + "63,1,4,1,200,0,0,150,0,1.5,,,,\n", "1 rows have no 'num'"),
    ],
)
def test_a_wrong_hospital_file_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (write_heart(tmp_path) / "va.csv").write_text(text)
    with pytest.raises(DataError, match=rf"va\.csv.*{message}"):
        read("heart-disease", tmp_path)


def save(folder: Path, name: str, mode: str, size: tuple[int, int]) -> None:
    Image.new(mode, size).save(folder / name)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: save(root / "b", "0.png", "L", (4, 5)), r"b/0\.png is 4x5 grey and 0\.png is 4x4 grey"),
        (lambda root: save(root / "b", "0.png", "RGB", (4, 4)), r"b/0\.png is 4x4 RGB and 0\.png is 4x4 grey"),
        (lambda root: save(root / "a", "0.png", "RGBA", (4, 4)), r"a/0\.png has mode RGBA: convert"),
        (lambda root: (root / "b" / "1.png").write_text("x"), r"b/1\.png cannot be read as an image"),
        (lambda root: (root / "b" / "1.gif").write_text("x"), r"b/1\.gif is no \.png or \.jpg image"),
        (lambda root: (root / "c").mkdir(), r"c holds no images"),
        (lambda root: (root / "b").rename(root / ".b"), "holds 1 class folders: at least two"),
    ],
)
def test_a_wrong_image_folder_is_refused(spoil: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    spoil(write_images(tmp_path))
    with pytest.raises(DataError, match=message):
        read("imagefolder", tmp_path)


def test_a_test_class_that_was_never_trained_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "train")
    write_images(tmp_path / "test", classes="c")
    with pytest.raises(DataError, match="c has no counterpart in train"):
        read("imagefolder", tmp_path)
