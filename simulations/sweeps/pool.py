"""Points side by side, each in a process of its own that outlives it: nothing of one can touch another.

Processes and not threads: a run pins torch's threads, draws from torch's global generator while it builds models, and
may run out of memory. A process runs point after point, because its imports take longer than a small point.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import simulations
from simulations.engines.worker import read_frame, write_frame

_STOP_S = 30.0

Job = dict[str, Any]


class _Runner:
    """One process, with a thread that moves its frames into the inbox."""

    def __init__(self, inbox: queue.Queue[tuple[_Runner, dict[str, Any] | None]]) -> None:
        self.job: Job | None = None
        root = str(Path(simulations.__file__).resolve().parent.parent)
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        # A session of its own: Ctrl-C reaches the sweep alone, which tells its processes by closing their input.
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", "simulations.sweeps.runner"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
        self._listener = threading.Thread(target=self._listen, args=(inbox,), daemon=True)
        self._listener.start()

    def _listen(self, inbox: queue.Queue[tuple[_Runner, dict[str, Any] | None]]) -> None:
        try:
            with suppress(ValueError, OSError):  # closed under us, or no frame of ours: as good as dead
                while (frame := read_frame(self._child.stdout)) is not None:  # type: ignore[arg-type]
                    inbox.put((self, frame[0]))
        finally:
            inbox.put((self, None))

    def give(self, job: Job | None) -> None:
        """Let it run a point, or end; one that has died is noticed by its listener, not here."""
        self.job = job
        with suppress(BrokenPipeError, ValueError):
            write_frame(self._child.stdin, job or {})  # type: ignore[arg-type]

    def ending(self) -> str:
        """How it died, in words."""
        code = self._child.wait()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        memory = ": the machine may be out of memory" if code == -9 else ""
        return f"its process died ({how}){memory}"

    def close(self) -> None:
        """Close its input, which interrupts it if it is still at work."""
        with suppress(BrokenPipeError):
            self._child.stdin.close()  # type: ignore[union-attr]

    def wait(self) -> None:
        """Let it end; kill it if it cannot."""
        try:
            self._child.wait(timeout=_STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._finish()

    def kill(self) -> None:
        """End it now; its workers end by themselves."""
        self._child.kill()
        self._child.wait()
        self._finish()

    def _finish(self) -> None:
        self._listener.join(timeout=10)
        if self._child.stdout is not None and not self._listener.is_alive():
            self._child.stdout.close()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until what is inside is done: nobody could end a process that is on no list yet."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    caught: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: caught.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if caught:
            before(*caught[0])


def run_jobs(jobs: Sequence[Job], parallel: int) -> Generator[tuple[Job, dict[str, Any]], None, None]:
    """Run points, `parallel` at once, in their order.

    Args:
        jobs: commands of simulations.sweeps.runner.run_point, with `log`, the file for what is said beside.

    Yields:
        (job, news) as they come: `round`, and once for every job `done`, with an `error` if it raised or its process
        died, which costs no other point.
    """
    inbox: queue.Queue[tuple[_Runner, dict[str, Any] | None]] = queue.Queue()
    waiting, runners = deque(jobs), list[_Runner]()

    def start() -> None:
        with _uninterrupted():
            runners.append(_Runner(inbox))
        runners[-1].give(waiting.popleft())

    try:
        for _ in range(min(parallel, len(jobs))):
            start()
        left = len(jobs)
        while left:
            runner, news = inbox.get()
            job = runner.job
            if news is None:  # it has ended
                runners.remove(runner)
                runner.wait()
                if job is None:
                    continue
                news = {"do": "done", "error": runner.ending()}
                if waiting:
                    start()
            elif news["do"] == "done":
                runner.give(waiting.popleft() if waiting else None)
            if job is not None:
                left -= news["do"] == "done"
                yield job, news
    finally:
        for runner in runners:
            runner.close()
        try:
            for runner in runners:
                runner.wait()
        except BaseException:  # a second Ctrl-C
            for runner in runners:
                runner.kill()
            raise
