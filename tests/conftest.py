from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch

from client.config import PolicySection, SiteConfig, TrainingSection, load_site, write_site
from client.identity import IDENTITY, own_key, read_identity, write_registry
from distillation.data import Samples, load_proxy, save_proxy, save_samples
from distillation.inputs import Column, TableInputs
from privacy.secure_sum.keys import identity_key
from privacy.secure_sum.session import Site
from server.rounds import Reply
from simulations.config import ExperimentConfig, parse_config
from simulations.engines.in_process import WorkerError
from simulations.engines.worker import _Worker
from strategies.messages import Refusal, RoundPlan
from strategies.wire import decode_plan, encode_refusal

# How long an example takes says more about the machine than about the code.
hypothesis.settings.register_profile("consilium", deadline=None)
hypothesis.settings.load_profile("consilium")


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
def register() -> Callable[..., dict[str, Site]]:
    """A function that gives sites keys of their own and one registry of all; returns everybody as a party of sums."""

    def make(files: Mapping[str, Path], others: Sequence[str] = ()) -> dict[str, Site]:
        private = {name: os.urandom(32) for name in others}
        for name, path in files.items():
            own_key(path.parent / IDENTITY)
            private[name] = read_identity(path.parent / IDENTITY)
        registry = {name: identity_key(key) for name, key in private.items()}
        for path in files.values():
            write_registry(path.parent / "registry.json", registry)
            config = load_site(path)
            assert config.policy is not None
            told = {"sum_registry": "registry.json", "sum_identity": IDENTITY}
            write_site(path, config.model_copy(update={"policy": config.policy.model_copy(update=told)}))
        return {name: Site(name, registry=registry, identity=key, agreement=True) for name, key in private.items()}

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
            "ask_rows": np.arange(0, 60, 2),
        }
        return RoundPlan(**{**told, **changed})

    return make


TINY: dict[str, Any] = {
    "federation": {"clients": 4, "rounds": 2, "rows_per_round": 40, "workers": 1, "device": "cpu"},
    "data": {"name": "digits", "partition": "iid", "proxy": 60, "private": 200, "test": 100},
    "client": {"models": ["linear"], "batch_size": 10, "local_epochs": 2, "distil_epochs": 1},
    "student": {"model": "linear", "batch_size": 10, "distil_epochs": 3},
}


class InlinePool:
    """simulations.engines.in_process.WorkerPool with its worker in this very process: no start-up, the same answers.

    Attributes:
        refusing: sites that decline every plan without looking at it.
    """

    refusing: frozenset[str] = frozenset()

    def __init__(self, study: Path, sizes: Mapping[str, int], workers: int, timeout_s: float) -> None:
        self._worker, self._sizes = _Worker(study), sizes

    def __enter__(self) -> InlinePool:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def clients(self) -> Sequence[str]:
        return sorted(self._sizes)

    def ask(self, plans: Mapping[str, bytes]) -> Iterator[Reply]:
        for site, blob in plans.items():
            if site in self.refusing:
                plan = decode_plan(blob, len(self._worker._proxy.samples))
                yield Reply(site, encode_refusal(Refusal(site, plan.round, "no_policy"), plan.run))
            else:
                yield Reply(site, self._worker.do({"do": "answer", "site": site}, blob)[1])

    def answers(self, commands: Sequence[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any], bytes]]:
        for command in commands:
            try:
                header, blob = self._worker.do(command, b"")
            except Exception as error:  # as serve and the pool do
                site = command.get("site") or "all sites"
                raise WorkerError(f"{command['do']} of {site}: {type(error).__name__}: {error}") from None
            yield command, header, blob

    def tasks(self, commands: Sequence[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], float]]:
        for command, header, _ in self.answers(commands):
            yield command, float(header["accuracy"])

    def evaluate(self) -> dict[str, float]:
        return {
            command["site"]: score
            for command, score in self.tasks([{"do": "evaluate", "site": s} for s in sorted(self._sizes)])
        }


def _without_processes(patch: pytest.MonkeyPatch) -> type[InlinePool]:
    pool = type("Inline", (InlinePool,), {})
    for module in ("experiment", "probes.commands", "probes.robustness"):
        patch.setattr(f"simulations.{module}.WorkerPool", pool)
    return pool


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> type[InlinePool]:
    """Experiments and studies without worker processes; what is set in the returned class is this test's own."""
    return _without_processes(monkeypatch)


@pytest.fixture(scope="module")
def inline_module() -> Iterator[None]:
    """The same for what a whole module shares."""
    with pytest.MonkeyPatch.context() as patch:
        _without_processes(patch)
        yield


@pytest.fixture(scope="session")
def tiny() -> Callable[..., ExperimentConfig]:
    """A function that makes a configuration of four sites with digits, two rounds in a second; sections as keywords."""

    def make(**changed: Mapping[str, Any]) -> ExperimentConfig:
        sections = {**TINY, **{key: {**TINY.get(key, {}), **value} for key, value in changed.items()}}
        return parse_config(sections, ".")

    return make
