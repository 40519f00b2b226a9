"""A site's own rows: read as the proxy's manifest says, or refused in one sentence."""

import pandas as pd
import pytest
import torch

from client.config import SiteConfigError, load_site
from client.data import load_private
from distillation.data import DataError, Samples, load_proxy, save_samples


@pytest.fixture
def proxy(make_sites):
    return load_proxy(make_sites(1)["site-0"].parent / "../../proxy")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_is_encoded_as_the_manifest_says(tmp_path, proxy, suffix):
    frame = pd.DataFrame({"y": [1.0, None], "x": [2.0, -1.0], "class": ["b", "c"], "name": ["n1", "n2"]})
    path = tmp_path / f"own{suffix}"
    frame.to_csv(path, index=False, encoding="utf-8-sig") if suffix == ".csv" else frame.to_parquet(path)
    got = load_private(path, "class", proxy)
    # x and y have mean 0 and deviation 1 in the manifest; each is followed by its missing flag.
    assert got.features.tolist() == [[2.0, 0.0, 1.0, 0.0], [-1.0, 0.0, 0.0, 1.0]]
    assert got.labels.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x,y\n1,2\n", "no column 'class'"),
        ("x,class\n1,a\n", "column 'y' is missing"),
        ("x,y,class\n1,2,zebra\n", "1 rows have no class"),
        ("x,y,class\nsecret,2,a\n", "1 of 1 values are text"),
        ("x,y,class\n", "0 labelled rows"),
    ],
)
def test_wrong_tables_are_refused_without_their_values(tmp_path, proxy, text, says):
    path = tmp_path / "own.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=says) as caught:
        load_private(path, "class", proxy)
    assert "secret" not in str(caught.value)
    assert "zebra" not in str(caught.value)


@pytest.mark.parametrize(
    ("samples", "says"),
    [
        (Samples(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)), "shape"),
        (Samples(torch.zeros(2, 4), torch.tensor([0, 3])), "from 0 to 2"),
        (Samples(torch.zeros(2, 4), None), "labelled rows"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path, proxy, samples, says):
    save_samples(tmp_path / "own.safetensors", samples)
    with pytest.raises(DataError, match=says):
        load_private(tmp_path / "own.safetensors", "", proxy)


@pytest.mark.parametrize(("name", "says"), [("no.csv", "is not there"), ("model.pt", "private rows are")])
def test_wrong_files_are_refused(tmp_path, proxy, name, says):
    with pytest.raises(DataError, match=says):
        load_private(tmp_path / name, "class", proxy)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("site = ", "no TOML"),
        ('site = "../up"\nprivate="p"\nproxy="q"\nseed=1\nmodel="mlp"', "site"),
        ('site = "a"\nprivate="p"\nproxy="q"\nseed=1\nmodel="mlp"\nnoise=0', "noise"),
        ('site = "a"\nprivate="p"\nproxy="q"\nseed=1\nmodel="mlp"\n[policy]\nmax_answers=0', "max_answers"),
    ],
)
def test_wrong_site_files_are_refused(tmp_path, text, says):
    (tmp_path / "site.toml").write_text(text)
    with pytest.raises(SiteConfigError, match=says):
        load_site(tmp_path / "site.toml")


def test_a_missing_site_file_is_refused(tmp_path):
    with pytest.raises(SiteConfigError, match="cannot be read"):
        load_site(tmp_path / "site.toml")
