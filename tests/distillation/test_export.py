"""A student read back is the student; files of others are refused."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

import consilium
from distillation.data import DataError, Samples, load_proxy, load_samples, save_samples
from distillation.export import StudentCard, save_student, write_atomically
from distillation.inputs import Column, ImageInputs, TableInputs
from distillation.models import build_model

TABLE = TableInputs((Column("x", mean=1.0, std=2.0), Column("c", categories=("p", "q"))))
CARD = StudentCard("mlp", ("no", "yes"), 7, 0.9, 0.8, "a1" * 32)


def test_a_table_student_predicts_from_raw_columns(tmp_path):
    model = build_model("mlp", TABLE.shape, 2, 3)
    save_student(tmp_path, "student", model, TABLE, CARD)
    student = consilium.load_student(tmp_path)
    frame = pd.DataFrame({"c": ["q", "p"], "x": [5.0, np.nan]})
    # x: (5 - 1) / 2 = 2; missing: the fill 0, (0 - 1) / 2, and the flag
    rows = torch.tensor([[2.0, 0.0, 0.0, 1.0], [-0.5, 1.0, 1.0, 0.0]])
    expected = torch.softmax(model(rows), 1).detach().numpy()
    np.testing.assert_allclose(student.predict_proba(frame), expected, atol=1e-6)
    assert student.predict(frame) == [("no", "yes")[i] for i in expected.argmax(1)]
    assert student.card == CARD


@pytest.mark.parametrize("path", ["student.json", "student.safetensors", ""])
def test_images_come_in_the_range_of_the_files(tmp_path, path):
    inputs = ImageInputs((1, 8, 8), 1 / 16, (0.3,), (0.4,))
    model = build_model("cnn-small", (1, 8, 8), 2, 3)
    save_student(tmp_path, "student", model, inputs, StudentCard("cnn-small", ("a", "b"), 1, 1.0, 1.0, "a1" * 32))
    student = consilium.load_student(tmp_path / path)
    images = np.random.default_rng(0).integers(0, 17, (3, 8, 8)).astype(np.uint8)
    expected = torch.softmax(model((torch.from_numpy(images)[:, None] / 16 - 0.3) / 0.4), 1).detach().numpy()
    np.testing.assert_allclose(student.predict_proba(images), expected, atol=1e-5)
    with pytest.raises(ValueError, match="expected"):
        student.predict_proba(images[:, :4])
    for value in (np.nan, np.inf):
        spoilt = images.astype(np.float64)
        spoilt[1, 2, 3] = value
        with pytest.raises(ValueError, match="1 rows hold a value that is not finite, the first is row 1"):
            student.predict(spoilt)


def test_wrong_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="is not there"):
        consilium.load_student(tmp_path)
    save_student(tmp_path, "student", build_model("mlp", TABLE.shape, 2, 3), TABLE, CARD)
    weights = tmp_path / "student.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + b"!")
    with pytest.raises(DataError, match="is not the file"):
        consilium.load_student(tmp_path)
    weights.write_bytes(whole)
    card = json.loads((tmp_path / "student.json").read_text())
    del card["classes"]
    (tmp_path / "student.json").write_text(json.dumps(card))
    with pytest.raises(DataError, match="no student's card"):
        consilium.load_student(tmp_path)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old", durable=True)
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_proxy_that_is_not_the_one_of_its_manifest_is_refused(make_sites):
    folder = make_sites(1)["site-0"].parent / "../../proxy"
    samples = load_samples(folder / "proxy.safetensors")
    swapped = Samples(samples.features.flip(0).contiguous(), samples.labels)
    save_samples(folder / "proxy.safetensors", swapped)
    with pytest.raises(DataError, match="install both anew"):
        load_proxy(folder)
    (folder / "proxy.json").write_text("{}")
    with pytest.raises(DataError, match="no proxy manifest"):
        load_proxy(folder)
    (folder / "proxy.json").unlink()
    with pytest.raises(DataError, match="is not there"):
        load_proxy(folder)


@pytest.mark.parametrize("content", [b"", b"\x80\x04 pickle", b"PK\x03\x04"])
def test_files_that_are_no_safetensors_are_refused(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(DataError, match="no safetensors"):
        load_samples(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("features", "labels", "says"),
    [
        (torch.zeros(2, 3, dtype=torch.float64), None, "uint8 or float32"),
        (torch.zeros(2, 3), torch.zeros(2), "int64"),
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64), "int64"),
    ],
)
def test_samples_of_other_types_are_refused(features, labels, says):
    with pytest.raises(DataError, match=says):
        Samples(features, labels)
