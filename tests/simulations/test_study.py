from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.data import load_private
from distillation import data as data_module
from distillation.data import DataError, load_proxy, load_samples
from distillation.inputs import TableInputs
from simulations import study as study_module
from simulations.datasets import load_source
from simulations.partition import partition, split_rows
from simulations.sections import DataSection
from simulations.study import Study, prepare_study


def section(**values: Any) -> DataSection:
    return DataSection.model_validate(values)


def table(path: Path, changed: dict[int, str] | None = None) -> Path:
    """60 rows of a number, a name and two classes; `changed` replaces the number in some."""
    lines = [f"{(changed or {}).get(row, row)},{'pqr'[row % 3]},{'uv'[row % 2]}\n" for row in range(60)]
    path.write_text("x,name,y\n" + "".join(lines))
    return path


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_study_holds_exactly_the_split_that_the_seed_draws(tmp_path: Path) -> None:
    settings = section(proxy=200, private=900, test=100)
    study = prepare_study(settings, 3, 5, tmp_path / "study")
    source = load_source(settings)
    split = split_rows(source, settings, 5)
    parts = partition(source, split.private, settings, 3, 5)
    assert source.images is not None
    proxy = load_proxy(study.proxy)  # verifies the hash that the manifest names
    stored = [proxy.samples, load_samples(study.test), *(load_samples(study.private(name)) for name in study.names)]
    for samples, rows in zip(stored, [split.proxy, split.test, *parts], strict=True):
        assert samples.features.dtype == torch.uint8
        assert samples.features.numpy().tolist() == source.images[rows].tolist()
        assert samples.labels is not None
        assert samples.labels.numpy().tolist() == source.labels[rows].tolist()
    assert study.proxy_sha256 == proxy.sha256
    assert study.classes == proxy.classes
    assert study.shape == tuple(proxy.inputs.shape) == (1, 8, 8)
    assert (study.proxy_rows, study.test_rows, sum(study.sizes)) == (200, 100, 900)
    assert study.class_counts.sum(axis=1).tolist() == list(study.sizes)
    assert study.class_counts.sum(axis=0).tolist() == np.bincount(source.labels[split.private]).tolist()
    assert files(study.folder) == [
        "proxy/proxy.json",
        "proxy/proxy.safetensors",
        "sites/site-000/private.safetensors",
        "sites/site-001/private.safetensors",
        "sites/site-002/private.safetensors",
        "test.safetensors",
    ]


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    first, again = (prepare_study(section(), 3, 5, tmp_path / name) for name in "ab")
    for name in files(first.folder):
        assert (first.folder / name).read_bytes() == (again.folder / name).read_bytes()
    assert prepare_study(section(), 3, 6, tmp_path / "c").proxy_sha256 != first.proxy_sha256


def test_scaling_depends_on_proxy_rows_only(tmp_path: Path) -> None:
    settings = section(name="csv", path=str(table(tmp_path / "t.csv")), target="y", partition="iid")
    split = split_rows(load_source(settings), settings, 1)

    def written(changed: dict[int, str], folder: str) -> tuple[bytes, Study]:
        table(tmp_path / "t.csv", changed)
        study = prepare_study(settings, 2, 1, tmp_path / folder)
        return (study.proxy / "proxy.json").read_bytes(), study

    before, study = written({}, "before")
    hidden = {int(split.private[0]): "1e6", int(split.private[1]): "", int(split.test[0]): "-1e6"}
    assert written(hidden, "hidden")[0] == before
    assert written({int(split.proxy[0]): "1e6"}, "public")[0] != before
    proxy = load_proxy(study.proxy)
    assert isinstance(proxy.inputs, TableInputs)
    # x is the row number: its mean over the public rows is theirs
    assert proxy.inputs.columns[0].mean == pytest.approx(split.proxy.mean())
    assert proxy.samples.features[:, 0].mean().item() == pytest.approx(0.0, abs=1e-6)


def test_a_site_that_reads_its_own_file_gets_the_rows_that_the_study_wrote(tmp_path: Path) -> None:
    lines = ["x,flag,name,code,y\n"]
    for row in range(60):
        lines.append(
            f"{row if row % 7 else ''},{row % 4 == 0},{'pqr'[row % 3] if row % 5 else ''},{row % 4},{row % 2}\n"
        )
    (tmp_path / "t.csv").write_text("".join(lines))
    settings = section(name="csv", path=str(tmp_path / "t.csv"), target="y", categorical=["code"], partition="iid")
    study = prepare_study(settings, 3, 1, tmp_path / "study")
    source = load_source(settings)
    parts = partition(source, split_rows(source, settings, 1).private, settings, 3, 1)
    for name, rows in zip(study.names, parts, strict=True):
        (tmp_path / "own.csv").write_text(lines[0] + "".join(lines[1 + row] for row in rows))
        own, dealt = load_private(tmp_path / "own.csv", "y", load_proxy(study.proxy)), load_samples(study.private(name))
        assert own.labels is not None
        assert dealt.labels is not None
        assert torch.equal(own.features, dealt.features)
        assert torch.equal(own.labels, dealt.labels)


def test_natural_sites_are_folders_of_their_own_names(tmp_path: Path, shared_data: Path) -> None:
    settings = section(name="heart-disease", path=str(shared_data / "heart-disease"))
    study = prepare_study(settings, 4, 1, tmp_path / "study")
    assert study.names == ("cleveland", "hungarian", "switzerland", "va")
    # 6 numbers become 12 features; 2 + 4 + 2 + 3 + 2 + 3 + 3 codes are 19
    assert study.shape == (31,)
    for name, size in zip(study.names, study.sizes, strict=True):
        features = load_samples(study.private(name)).features
        assert features.shape == (size, 31)
        assert torch.isfinite(features).all()


def test_an_empty_folder_is_filled_and_a_full_one_left_alone(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert prepare_study(section(), 2, 1, tmp_path / "empty").test_rows == 449
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("kept")
    with pytest.raises(DataError, match="full already exists: remove it, or name another folder"):
        prepare_study(section(), 2, 1, tmp_path / "full")
    assert files(tmp_path / "full") == ["mine"]


@pytest.mark.parametrize(
    ("values", "clients"),
    [
        ({"proxy": 5000}, 3),
        ({"partition": "natural"}, 3),
        ({"alpha": 0.001, "min_rows": 50}, 10),
        ({"name": "csv", "path": "nowhere.csv", "target": "y"}, 3),
        ({"name": "csv"}, 3),
    ],
)
def test_what_cannot_be_prepared_leaves_nothing_behind(values: dict[str, Any], clients: int, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        prepare_study(section(**values), clients, 1, tmp_path / "deep" / "study")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def save(path: Path, samples: data_module.Samples) -> None:
        calls.append(path)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        data_module.save_samples(path, samples)

    monkeypatch.setattr(study_module, "save_samples", save)
    with pytest.raises(DataError, match=r"study cannot be written .*No space left on device"):
        prepare_study(section(), 3, 1, tmp_path / "study")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"study cannot be written .*: name another folder"):
        prepare_study(section(), 3, 1, tmp_path / "file" / "study")
