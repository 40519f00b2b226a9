from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.config import PolicySection, SiteConfig, TrainingSection, write_site
from distillation.data import Samples, load_proxy, save_proxy, save_samples
from distillation.inputs import Column, TableInputs
from strategies.messages import RoundPlan


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real data sets; tests that need it skip where it is missing."""
    folder = Path(os.environ.get("CONSILIUM_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no data in {folder}: set CONSILIUM_DATA to a folder with mnist/, cifar10/, heart-disease/")
    return folder


@pytest.fixture
def make_sites(tmp_path: Path) -> Callable[..., dict[str, Path]]:
    """A function that writes a tiny study, three classes in the plane; returns site.toml by site name."""

    def make(count: int = 3, folder: Path = tmp_path / "study", model: str = "linear", **site: Any) -> dict[str, Path]:
        rng = np.random.default_rng(5)
        centres = np.array([[3.0, 0.0], [0.0, 3.0], [-3.0, -3.0]])

        def samples(rows: int, classes: list[int]) -> Samples:
            labels = rng.choice(classes, rows)
            points = centres[labels] + rng.normal(size=(rows, 2))
            features = np.stack([points[:, 0], np.zeros(rows), points[:, 1], np.zeros(rows)], axis=1)
            return Samples(torch.from_numpy(features.astype(np.float32)), torch.from_numpy(labels.astype(np.int64)))

        inputs = TableInputs((Column("x"), Column("y")))
        digest = save_proxy(folder / "proxy", samples(60, [0, 1, 2]), ("a", "b", "c"), inputs)
        save_samples(folder / "test.safetensors", samples(90, [0, 1, 2]))
        files = {}
        for index in range(count):
            name = f"site-{index}"
            home = folder / "sites" / name
            home.mkdir(parents=True)
            # Every site lacks one class; together they have all.
            save_samples(home / "private.safetensors", samples(30, [index % 3, (index + 1) % 3]))
            told: dict[str, Any] = {
                "site": name,
                "private": "private.safetensors",
                "proxy": "../../proxy",
                "seed": 11,
                "device": "cpu",
                "model": model,
                "training": TrainingSection(lr=0.1, distil_lr=0.1, batch_size=10, local_epochs=2, distil_epochs=2),
                "policy": PolicySection(proxy_sha256=[digest], max_rows_per_round=40, max_answers=10),
            }
            files[name] = home / "site.toml"
            write_site(files[name], SiteConfig(**{**told, **site}))
        return files

    return make


@pytest.fixture
def make_plan() -> Callable[..., RoundPlan]:
    """A function that makes a plan for the tiny study of `make_sites`."""

    def make(site_file: Path, **changed: Any) -> RoundPlan:
        proxy = load_proxy(site_file.parent / "../../proxy")
        told: dict[str, Any] = {
            "run": "ab" * 16,
            "round": 1,
            "proxy_sha256": proxy.sha256,
            "classes_sha256": proxy.classes_sha256,
            "classes": 3,
            "codec": "float32",
            "ask_rows": np.arange(0, 60, 2),
            "teacher": None,
        }
        return RoundPlan(**{**told, **changed})

    return make
