from __future__ import annotations

import os
import subprocess
import sys
import time
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import server.launch
from server.launch import MARK, PACKAGES, LocalSuperLink, PlatformError, end_marked, manifest, marked, stage_app

ROOT = Path(__file__).resolve().parents[2]
# A process whose child outlives it: what a daemon does.
LEAVES_A_CHILD = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"


@pytest.fixture
def mark() -> Iterator[str]:
    """A mark of this test; whatever still carries it at the end is ended."""
    value = f"test-{os.getpid()}-{time.monotonic_ns()}"
    yield value
    end_marked(value)


def orphan(mark: str) -> int:
    """The pid of a process that carries the mark and whose parent is gone."""
    subprocess.run([sys.executable, "-c", LEAVES_A_CHILD], env={**os.environ, MARK: mark}, check=True)
    (process,) = marked(mark)
    return int(process.pid)


def test_the_bundle_says_what_pyproject_says() -> None:
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text())
    told = manifest()
    assert told["tool"]["flwr"] == ours["tool"]["flwr"]
    for key in ("name", "version", "license"):
        assert told["project"][key] == ours["project"][key]


def test_the_bundle_holds_the_allowed_files_and_no_others(tmp_path: Path) -> None:
    app = stage_app(tmp_path)
    environment = {**os.environ, "FLWR_HOME": str(tmp_path / "home"), "FLWR_TELEMETRY_ENABLED": "0"}
    flwr = str(Path(sys.executable).parent / "flwr")
    subprocess.run([flwr, "build", "--app", str(app)], cwd=tmp_path, env=environment, check=True, capture_output=True)
    (bundle,) = tmp_path.glob("*.fab")
    with zipfile.ZipFile(bundle) as archive:
        inside = {name for name in archive.namelist() if not name.startswith(".info/")}
    allowed = {file.relative_to(ROOT).as_posix() for package in PACKAGES for file in (ROOT / package).rglob("*.py")}
    assert inside == allowed | {"pyproject.toml"}
    assert {"server/app.py", "client/app.py", "distillation/models/mlp.py"} <= inside
    assert bundle.stat().st_size < 1_000_000  # Flower's limit is 10 MB


def test_an_orphan_is_found_by_its_mark_and_ended(mark: str) -> None:
    pid = orphan(mark)
    assert end_marked(mark) == []
    assert marked(mark) == []
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(("word", "survives"), [(b"done", True), (b"", False)])
def test_the_guard_ends_what_a_killed_parent_left(word: bytes, survives: bool, mark: str, tmp_path: Path) -> None:
    orphan(mark)
    home = tmp_path / "home"
    home.mkdir()
    command = [sys.executable, "-P", str(server.launch.__file__), mark, str(home)]
    subprocess.run(command, input=word, check=True, timeout=30)  # our end of the pipe closes
    assert bool(marked(mark)) == home.exists() == survives


def test_a_superlink_that_does_not_start_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.launch, "START_S", 0.0)
    link = LocalSuperLink(tmp_path / "logs")
    with pytest.raises(PlatformError, match=r"silent after 0 s: see .*superlink\.log"), link:
        pass
    assert marked(link.mark) == []
    assert not link.home.exists()


def test_an_answering_port_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.launch, "_healthy", lambda _: True)
    with pytest.raises(PlatformError, match="answers already, and not to us"), LocalSuperLink(tmp_path / "logs"):
        pass


def test_a_missing_flower_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = LocalSuperLink(tmp_path / "logs")
    empty = tmp_path / "bin" / "python"
    monkeypatch.setattr(server.launch.sys, "executable", str(empty))
    monkeypatch.setattr(link, "_home", tmp_path)
    (tmp_path / "logs").mkdir()
    with pytest.raises(PlatformError, match="install flwr into the environment"):
        link._spawn("superlink", ["flower-superlink"])
