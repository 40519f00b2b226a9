"""What must not be imported where; the layers themselves are import-linter's."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def imported_by(*modules):
    """Top-level packages in memory after importing `modules` in a process of its own."""
    script = f"import sys, {', '.join(modules)}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("modules", "forbidden"),
    [
        # a site: neither Flower's simulation nor plots nor anything of the coordinator
        (
            ("client.app", "client.node"),
            {"ray", "matplotlib", "transformers", "datasets", "flwr_datasets", "sklearn", "server", "simulations"}
            | {"scipy", "opacus", "dp_accounting"},  # seconds, for a site that promises nothing
        ),
        # a worker process of the in-process engine starts often and many times
        (("simulations.engines.worker", "simulations.baselines"), {"flwr", "ray", "matplotlib", "pandas", "sklearn"}),
        # what is exchanged and what may leave can be audited without torch
        (("strategies.wire", "strategies.aggregators", "privacy.policy"), {"torch", "flwr", "pandas", "pydantic"}),
        # the site's first words must be fast: every message is a process
        (("client.app",), {"torch"}),
    ],
)
def test_no_more_is_imported_than_is_needed(modules, forbidden):
    assert not imported_by(*modules) & forbidden


def test_no_test_folder_hides_a_package():
    assert not list((ROOT / "tests").rglob("__init__.py"))


@pytest.mark.parametrize("word", ["pickle", "torch.load", "allow_pickle", "trust_remote_code", "joblib"])
def test_nothing_that_runs_code_from_a_file_is_called(word):
    sources = [
        path
        for package in ("strategies", "privacy", "distillation", "client", "server", "simulations", "consilium")
        for path in (ROOT / package).rglob("*.py")
    ]
    assert len(sources) > 60
    calls = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sources
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if f"import {word}" in line or f"{word}(" in line or f"{word}=" in line
    ]
    assert calls == []


def test_no_source_file_is_longer_than_four_hundred_lines():
    packages = ("strategies", "privacy", "distillation", "client", "server", "simulations", "consilium")
    files = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    assert [path.name for path in files if len(path.read_text().splitlines()) >= 400] == []


def told(row):
    """The code words of a row of CONTRIBUTING's table of places."""
    (line,) = [line for line in (ROOT / "CONTRIBUTING.md").read_text().splitlines() if line.startswith(f"| {row} |")]
    return line.split("`")[1::2]


@pytest.mark.parametrize(
    ("row", "registry"),
    [
        ("aggregator", "AGGREGATORS"),
        ("codec", "CODECS"),
        ("model", "MODELS"),
        ("data set", "DATASETS"),
        ("mechanism", "MECHANISMS"),
        ("preset", "PRESETS"),
    ],
)
def test_whoever_adds_a_part_is_told_places_that_there_are(row, registry):
    words = told(row)
    files = [ROOT / word.replace("x.py", "__init__.py") for word in words if "/" in word]
    assert all(file.is_file() for file in files)
    names = [word for word in words if word.isupper()]
    assert registry in names
    assert all(any(f"{name}:" in text or f"{name} =" in text for text in map(Path.read_text, files)) for name in names)
    if row == "data set":
        assert any('"breast-cancer"' in file.read_text() for file in files if file.parent.name == "simulations")


def test_contributors_are_told_where_torch_and_opacus_are():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    below = [*ROOT.glob("privacy/**/*.py"), *ROOT.glob("strategies/**/*.py")]
    users = {str(file.relative_to(ROOT)) for file in below if "import torch" in file.read_text()}
    assert all(f"`{user}`" in text for user in users)
    assert users
