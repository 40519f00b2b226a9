"""The in-process engine: a pool of worker processes that answers as a cohort, every message through the real wire."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import simulations
from server.checks import Failure
from server.rounds import Reply
from simulations.engines.worker import read_frame, write_frame

# Commands that a worker may hold: one at work and one waiting, so that it never idles for the parent.
_AHEAD = 2


class WorkerError(RuntimeError):
    """A worker could not do what was asked; the message is the worker's own.

    Attributes:
        kinds: the names of what the worker met, an exception and its bases; empty where the worker itself was lost.
    """

    def __init__(self, message: str, kinds: Sequence[str] = ()) -> None:
        self.kinds = tuple(kinds)
        super().__init__(message)


class _Process:
    """One worker process, with a thread that moves its frames into the pool's queue."""

    def __init__(self, number: int, study: Path, inbox: queue.Queue[tuple[_Process, Any]]) -> None:
        self.number = number
        self.pending: deque[dict[str, Any]] = deque()
        root = str(Path(simulations.__file__).resolve().parent.parent)
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        # One thread a process, told before torch is imported; -P keeps a foreign `client/` of this folder out.
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", "simulations.engines.worker", str(study)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        self._listener = threading.Thread(target=self._listen, args=(inbox,), daemon=True)
        self._listener.start()

    def _listen(self, inbox: queue.Queue[tuple[_Process, Any]]) -> None:
        try:
            with suppress(ValueError, OSError):  # closed under us, or no frame of ours: as good as dead
                while (frame := read_frame(self._child.stdout)) is not None:  # type: ignore[arg-type]
                    inbox.put((self, frame))
        finally:
            inbox.put((self, None))

    def send(self, command: dict[str, Any], blob: bytes = b"") -> None:
        """Give the worker one command; a dead worker is noticed by its listener, not here."""
        with suppress(BrokenPipeError, ValueError):
            write_frame(self._child.stdin, command, blob)  # type: ignore[arg-type]

    def stop(self) -> None:
        """Close its input, which ends it; kill it if it is still at work."""
        with suppress(BrokenPipeError):
            self._child.stdin.close()  # type: ignore[union-attr]
        if self.pending:
            self._child.kill()
        try:
            self._child.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._listener.join(timeout=10)
        if self._child.stdout is not None and not self._listener.is_alive():
            self._child.stdout.close()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._child.pid


class WorkerPool:
    """Sites over worker processes; a cohort while rounds run, and a task pool for baselines and evaluation.

    Args:
        study: folder of simulations.study with a site.toml for every site.
        sizes: private rows by site: large sites start first.
        workers: processes; 0 = one a core, never more than sites.
        timeout_s: after it an exchange's missing answers are `no_reply` and their workers are started anew: an answer
            that was cut short never comes, so it is not `late`.

    Guarantees:
        A site stays in the worker that first opened it. Results do not depend on the number of workers. A
        worker that dies is started anew and its commands are given again; an answer that kills its worker twice
        is that client's failure.
    """

    def __init__(self, study: Path, sizes: Mapping[str, int], workers: int, timeout_s: float) -> None:
        self._study, self._timeout_s = study, timeout_s
        self._sizes = dict(sizes)
        self._inbox: queue.Queue[tuple[_Process, Any]] = queue.Queue()
        count = min(workers or available_cores(), len(sizes))
        self._processes = [_Process(number, study, self._inbox) for number in range(count)]
        self._home: dict[str, int] = {}
        self._plans: Mapping[str, bytes] = {}
        self._shared = b""

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.stop()

    @property
    def clients(self) -> Sequence[str]:
        """All sites, sorted."""
        return sorted(self._sizes)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [process.pid for process in self._processes]

    def ask(self, plans: Mapping[str, bytes]) -> Iterator[Reply]:
        """One exchange: see server.rounds.Cohort."""
        self._plans = plans
        for command, header, blob in self._run([{"do": "answer", "site": site} for site in plans]):
            site = command["site"]
            if "error" in header:
                yield Reply(site, Failure(site, header.get("reason", "crashed"), header["error"]))
            else:
                yield Reply(site, blob)

    def share(self, blob: bytes) -> None:
        """Give every worker, also one that is started anew, the bytes that the next commands work on."""
        self._shared = blob
        for process in self._processes:
            process.send({"do": "share"}, blob)

    def forget(self) -> None:
        """Close all sites: whoever is named next is opened anew, from its files."""
        for process in self._processes:
            process.send({"do": "forget"})

    def evaluate(self) -> dict[str, float]:
        """Test accuracy of every site's own model, looked at on the side.

        Raises:
            WorkerError: a worker could not.
        """
        done = self._results([{"do": "evaluate", "site": site} for site in self.clients])
        return {command["site"]: float(header["accuracy"]) for command, header in done}

    def tasks(self, commands: Sequence[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], float]]:
        """Baselines as (command, test accuracy), as they finish.

        Raises:
            WorkerError: a worker could not.
        """
        for command, header in self._results(commands):
            yield command, float(header["accuracy"])

    def memory(self) -> list[dict[str, int]]:
        """`now_bytes` and `peak_bytes` of resident memory of each worker.

        Raises:
            WorkerError: a worker could not.
        """
        commands = [{"do": "memory", "worker": process.number} for process in self._processes]
        told = {command["worker"]: header for command, header in self._results(commands)}
        return [{key: told[number][key] for key in ("now_bytes", "peak_bytes")} for number in sorted(told)]

    def answers(self, commands: Sequence[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any], bytes]]:
        """Commands with the headers and blobs of their answers, as they finish.

        Raises:
            WorkerError: a worker could not.
        """
        for command, header, blob in self._run(commands, patient=True):
            if "error" in header:
                told = f"{command['do']} of {command.get('site') or 'all sites'}: {header['error']}"
                raise WorkerError(told, header.get("kinds", ()))
            yield command, header, blob

    def _results(self, commands: Sequence[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        for command, header, _ in self.answers(commands):
            yield command, header

    def _run(
        self, commands: Sequence[dict[str, Any]], *, patient: bool = False
    ) -> Iterator[tuple[dict[str, Any], dict[str, Any], bytes]]:
        """Carry out commands, each on its site's worker; sites without one go to whoever is free first.

        A command whose worker dies is given to the next process once more: it may have died before it began, and
        all commands can be repeated.
        """
        deadline = None if patient else time.monotonic() + self._timeout_s
        ordered = sorted(commands, key=self._priority)
        homeless = deque(command for command in ordered if self._place(command) is None)
        queues = [
            deque(command for command in ordered if self._place(command) == process.number)
            for process in self._processes
        ]
        outstanding, retried = len(ordered), set[int]()
        for process in self._processes:
            self._feed(process, queues[process.number], homeless)
        while outstanding:
            try:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                process, frame = self._inbox.get(timeout=left)
            except queue.Empty:
                yield from self._give_up(queues, homeless)
                return
            if process is not self._processes[process.number]:
                continue  # an old process's last words
            if frame is None:
                failed = process.pending.popleft() if process.pending and id(process.pending[0]) in retried else None
                retried.update(id(command) for command in list(process.pending)[:1])
                process = self._restart(process)
                if failed is not None:
                    outstanding -= 1
                    yield failed, {"error": "its worker process died twice"}, b""
            else:
                outstanding -= 1
                yield process.pending.popleft(), *frame
            self._feed(process, queues[process.number], homeless)

    def _place(self, command: Mapping[str, Any]) -> int | None:
        """The worker that must do it; None where any can."""
        number: int | None = command.get("worker", self._home.get(command.get("site", "")))
        return number

    def _priority(self, command: Mapping[str, Any]) -> tuple[int, str]:
        site = command.get("site", "")
        return (-self._sizes.get(site, sum(self._sizes.values())), site)

    def _feed(self, process: _Process, own: deque[dict[str, Any]], homeless: deque[dict[str, Any]]) -> None:
        while len(process.pending) < _AHEAD and (own or homeless):
            command = own.popleft() if own else homeless.popleft()
            if command.get("site"):
                self._home[command["site"]] = process.number
            process.pending.append(command)
            process.send(command, self._plan(command))

    def _plan(self, command: Mapping[str, Any]) -> bytes:
        """The plan that goes with an `answer`; nothing with other commands."""
        return self._plans[command["site"]] if command["do"] == "answer" else b""

    def _restart(self, process: _Process) -> _Process:
        """A new process in the place of a dead or stuck one; its sites come back from their files."""
        waiting = list(process.pending)
        process.pending.append({})  # whatever it is doing: kill, do not wait
        process.stop()
        fresh = _Process(process.number, self._study, self._inbox)
        self._processes[process.number] = fresh
        fresh.send({"do": "share"}, self._shared)
        for command in waiting:
            fresh.pending.append(command)
            fresh.send(command, self._plan(command))
        return fresh

    def _give_up(
        self, queues: Sequence[deque[dict[str, Any]]], homeless: deque[dict[str, Any]]
    ) -> Iterator[tuple[dict[str, Any], dict[str, Any], bytes]]:
        """The deadline has passed: nothing unfinished will be answered, and stuck workers are started anew."""
        cut = [*homeless, *(command for own in queues for command in own)]
        for process in list(self._processes):
            if process.pending:
                cut.extend(process.pending)
                process.pending.clear()
                self._restart(process)
        for command in cut:
            yield command, {"error": f"no answer in {self._timeout_s:g} s", "reason": "no_reply"}, b""


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
