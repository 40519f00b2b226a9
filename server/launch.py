"""Flower on this machine: the app bundle, a SuperLink of our own, its SuperNodes, and an end to all of them.

Run as a program it is the guard: it waits until its parent is gone, however that happened, and then ends what the
parent had started. Hence nothing but the standard library is imported before it is needed.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# What a run ships to the sites; a test compares this with pyproject.toml.
PACKAGES = ("server", "client", "distillation", "strategies", "privacy")
COMPONENTS = {"serverapp": "server.app:app", "clientapp": "client.app:app"}
RUN_CONFIG = {"job-dir": "", "out-dir": "", "resume": False}

HOST = "127.0.0.1"
START_S, SUBMIT_S, PENDING_S = 90.0, 120.0, 120.0
# After a polite request to end, and after an impolite one.
TERMINATE_S, KILL_S = 5.0, 10.0

# Ray puts Unix sockets into its folder, whose paths must stay under 104 characters; it adds 65 of its own.
LONGEST_HOME = 34

# Every process below us inherits this variable, also one whose own parent is gone.
MARK = "CONSILIUM_PLATFORM"

_SETTINGS = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.3",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NO_COLOR": "1",
}


class PlatformError(RuntimeError):
    """Flower could not be started, or did not take the run; the message names the log."""


def manifest() -> dict[str, Any]:
    """The bundle's pyproject.toml."""
    return {
        "project": {
            "name": "consilium",
            "version": version("consilium"),
            "description": "Federated distillation on Flower",
            "license": "Apache-2.0",
        },
        "tool": {
            "flwr": {
                "app": {
                    "publisher": "consilium",
                    "fab-include": [f"{package}/**/*.py" for package in PACKAGES],
                    "components": dict(COMPONENTS),
                    "config": dict(RUN_CONFIG),
                }
            }
        },
    }


def stage_app(target: Path) -> Path:
    """Copy what a run ships out of the installed packages, so that a wheel's installation can submit it, too.

    Args:
        target: an existing folder.

    Returns:
        The new folder `consilium` in it; Flower reads the app's name from there.
    """
    import tomli_w

    app = target / "consilium"
    for package in PACKAGES:
        spec = find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise PlatformError(f"the package {package!r} is not installed: install consilium anew")
        root = Path(next(iter(spec.submodule_search_locations)))
        for source in sorted(root.rglob("*.py")):
            copied = app / package / source.relative_to(root)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copied)
    (app / "pyproject.toml").write_text(tomli_w.dumps(manifest()))
    return app


class LocalSuperLink:
    """A SuperLink of our own on 127.0.0.1, and what it and we start; a context manager.

    Any local user can submit a run to it while it is up: it has no login.

    Args:
        logs: folder for the output of every process.
        simulation: nodes are Ray's; otherwise they are started with `start_node`.
        environment: additional variables for all processes.

    Raises:
        PlatformError: it did not start.

    Guarantees:
        When the context ends, also by an exception, or when this process is killed, no process that was started
        below is left. No other process is touched.
    """

    def __init__(self, logs: Path, *, simulation: bool = False, environment: Mapping[str, str] | None = None) -> None:
        self._logs, self._simulation, self._extra = logs.resolve(), simulation, dict(environment or {})
        self._mark = secrets.token_hex(16)
        self._port = 0
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._guard: subprocess.Popen[bytes] | None = None
        self._home = Path()

    def __enter__(self) -> LocalSuperLink:
        self._logs.mkdir(parents=True, exist_ok=True)
        self._home = Path(tempfile.mkdtemp(prefix="csl-"))
        try:
            self._start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    @property
    def home(self) -> Path:
        """A folder that disappears with the platform."""
        return self._home

    @property
    def mark(self) -> str:
        """The value of CONSILIUM_PLATFORM in every process of this platform."""
        return self._mark

    def start_node(self, name: str, site_file: Path) -> None:
        """Start a SuperNode for one site; it is online some seconds later."""
        config = self._home / f"{name}.toml"  # a file: no quoting of paths
        config.write_text(_toml({"site": str(site_file.resolve())}))
        link, own = f"{HOST}:{self._port}", str(_free_port())
        options = ["--superlink", link, "--host", HOST, "--port", own, "--node-config", str(config)]
        self._spawn(f"node-{name}", ["flower-supernode", "--insecure", *options])

    def submit(self, app: Path, run_config: Mapping[str, Any], federation: Mapping[str, Any] | None = None) -> str:
        """Submit a run; returns its id.

        Args:
            app: what stage_app returned.
            run_config: some of RUN_CONFIG's keys.
            federation: of a simulation, Flower's own keys such as num-supernodes.
        """
        config = self._home / "run-config.toml"
        config.write_text(_toml(run_config))
        options = ["--run-config", str(config)]
        if federation:
            options += ["--federation-config", " ".join(f"{key}={value}" for key, value in federation.items())]
        told = self._flwr("run", str(app), "own", *options)
        if not told.get("run-id"):
            raise PlatformError(f"Flower did not take the run: see {self._logs / 'flwr.log'}")
        return str(told["run-id"])

    def status(self, run: str) -> tuple[str, str]:
        """(status, details) of a run: pending, starting, running, finished:completed|failed|stopped."""
        runs = self._flwr("list", "own", "--run-id", run).get("runs") or [{}]
        return str(runs[0].get("status", "unknown")), str(runs[0].get("status-details", ""))

    def check(self) -> None:
        """Raise PlatformError if a process that we started has ended by itself."""
        for name in self.ended():
            code = self._children[name].returncode
            raise PlatformError(f"{name} ended with code {code}: see {self._logs / name}.log")

    def ended(self) -> list[str]:
        """Names of the processes that have ended by themselves."""
        return [name for name, child in self._children.items() if child.poll() is not None]

    def _start(self) -> None:
        self._port = _free_port()
        if _healthy(self._port):
            raise PlatformError(f"port {self._port} answers already, and not to us: try again")
        empty, flower = self._home / "empty", self._home / "flower"
        empty.mkdir()
        flower.mkdir()
        own = {"address": f"{HOST}:{self._port}", "insecure": True}
        (flower / "config.toml").write_text(f'[superlink]\ndefault = "own"\n[superlink.own]\n{_toml(own)}')
        self._guard = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).resolve()), self._mark, str(self._home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        options = ["--host", HOST, "--port", str(self._port), "--disable-runtime-dependency-installation"]
        simulation = ["--simulation"] if self._simulation else []
        self._spawn("superlink", ["flower-superlink", "--insecure", *options, *simulation])
        deadline = time.monotonic() + START_S
        while not _healthy(self._port):
            self.check()
            if time.monotonic() > deadline:
                raise PlatformError(f"the SuperLink is silent after {START_S:g} s: see {self._logs / 'superlink.log'}")
            time.sleep(0.2)
        self.check()

    def _environment(self) -> dict[str, str]:
        scripts = str(Path(sys.executable).parent)
        environment = {
            **os.environ,
            **_SETTINGS,
            "FLWR_HOME": str(self._home / "flower"),
            "PATH": os.pathsep.join([scripts, os.environ.get("PATH", os.defpath)]),
            "NO_PROXY": ",".join(filter(None, [os.environ.get("NO_PROXY", ""), "127.0.0.1,localhost"])),
            MARK: self._mark,
            **self._extra,
        }
        if len(str(self._home)) <= LONGEST_HOME:
            environment["RAY_TMPDIR"] = str(self._home / "ray")
        # A foreign `client/` there would run in a simulation instead of the bundle's.
        environment.pop("PYTHONPATH", None)
        return environment

    def _spawn(self, name: str, command: Sequence[str]) -> None:
        executable = Path(sys.executable).parent / command[0]
        if not executable.exists():
            raise PlatformError(f"{executable} is not there: install flwr into the environment of consilium")
        with (self._logs / f"{name}.log").open("ab") as output:
            self._children[name] = subprocess.Popen(
                [str(executable), *command[1:]],
                cwd=self._home / "empty",
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is ours; we end them
            )

    def _flwr(self, *arguments: str) -> dict[str, Any]:
        """One `flwr` command with a JSON answer."""
        log = self._logs / "flwr.log"
        try:
            with log.open("ab") as errors:
                done = subprocess.run(
                    [str(Path(sys.executable).parent / "flwr"), *arguments, "--format", "json"],
                    cwd=self._home / "empty",
                    env=self._environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    start_new_session=True,
                    timeout=SUBMIT_S,
                    check=False,
                )
                errors.write(done.stdout)
        except subprocess.TimeoutExpired:
            raise PlatformError(f"`flwr {arguments[0]}` is silent after {SUBMIT_S:g} s: see {log}") from None
        text = done.stdout.decode(errors="replace")
        try:
            told: dict[str, Any] = json.loads(text[text.index("{") :])
        except ValueError:
            raise PlatformError(f"`flwr {arguments[0]}` ended with code {done.returncode}: see {log}") from None
        return told

    def _end(self) -> None:
        """End everything, also under a second Ctrl-C; then let the guard go."""
        with _uninterrupted():
            left = end_marked(self._mark, [child.pid for child in self._children.values()])
            for child in self._children.values():
                with suppress(subprocess.TimeoutExpired):
                    child.wait(timeout=1.0)
            shutil.rmtree(self._home, ignore_errors=True)
            if self._guard is not None and self._guard.stdin is not None:
                with suppress(BrokenPipeError):
                    self._guard.stdin.write(b"done")
                    self._guard.stdin.close()
                try:
                    self._guard.wait(timeout=KILL_S)
                except subprocess.TimeoutExpired:
                    self._guard.kill()
        if left:
            raise PlatformError(f"processes {left} did not end: kill them")


def marked(mark: str, parents: Sequence[int] = ()) -> list[Any]:
    """Living processes that carry `mark` in their environment, or descend from `parents`, as psutil.Process."""
    import psutil

    found: dict[int, Any] = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark and process.pid != os.getpid():
                found[process.pid] = process
    for parent in parents:
        with suppress(psutil.Error):
            above = psutil.Process(parent)
            found.update({process.pid: process for process in (above, *above.children(recursive=True))})
    return [process for process in found.values() if _lives(process)]


def end_marked(mark: str, parents: Sequence[int] = ()) -> list[int]:
    """End them, politely first; returns the pids that are left."""
    import psutil

    known = {process.pid: process for process in marked(mark, parents)}
    for process in known.values():
        with suppress(psutil.Error):
            process.terminate()
    _wait(known.values(), TERMINATE_S)
    deadline = time.monotonic() + KILL_S
    while True:
        # Again by the mark: one of them may have started another meanwhile.
        known.update({process.pid: process for process in marked(mark)})
        known = {pid: process for pid, process in known.items() if _lives(process)}
        if not known or time.monotonic() > deadline:
            return sorted(known)
        for process in known.values():
            with suppress(psutil.Error):
                process.kill()
        _wait(known.values(), 0.5)


def _wait(processes: Iterable[Any], timeout_s: float) -> None:
    """Until all have ended; one that is dead and that nobody collects, as in many containers, has."""
    deadline = time.monotonic() + timeout_s
    while any(map(_lives, processes)) and time.monotonic() < deadline:
        time.sleep(0.1)


def _lives(process: Any) -> bool:
    import psutil

    with suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _healthy(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=2.0)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _toml(values: Mapping[str, Any]) -> str:
    import tomli_w

    return tomli_w.dumps(dict(values))


@contextmanager
def _uninterrupted() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def guard(mark: str, home: Path) -> None:
    """Wait for the parent's word that all is ended, or for its death; then end what it had started."""
    if sys.stdin.buffer.read() != b"done":
        end_marked(mark)
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    guard(sys.argv[1], Path(sys.argv[2]))
