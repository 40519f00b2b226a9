"""A process that runs points of a sweep, one after another, and says how far it is.

Frames as simulations.engines.worker has them: commands on standard input, news on standard output. A frame without a
folder ends the process; an input that closes without one (the sweep was interrupted or killed) ends it, too, and at
once: what was done of a point stays, and is resumed.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from simulations.engines.worker import read_frame, write_frame

# An interrupted run stops its own processes first; one that cannot is ended all the same.
_LAST_WORDS_S = 20.0

Tell = Callable[[dict[str, Any]], None]


class _Rounds:
    """Whoever watches a run hears of its rounds."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell

    def phase(self, text: str) -> None:
        """Nothing."""

    def row(self, metrics: Mapping[str, Any]) -> None:
        """A finished round."""
        self._tell({"do": "round", "round": metrics["round"]})


def run_point(command: Mapping[str, Any], tell: Tell) -> None:
    """Run one point or go on with it; tells `round` for each round, and at last `done`, with an `error` if it raised.

    Args:
        command: `out`, its folder; `config`, complete.
    """
    from distillation.export import locked
    from simulations.config import ExperimentConfig
    from simulations.experiment import run_experiment

    out = Path(command["out"])
    begun = (out / "config.json").is_file()
    try:
        if begun:
            (out / "checkpoint.lock").touch()
            with locked(out / "checkpoint.lock"):  # a killed sweep's process may still be letting go of it
                pass
        for cut in out.glob(".config.json.*.partial"):  # killed before the run had a name
            cut.unlink()
        config = ExperimentConfig.model_validate(command["config"])
        run_experiment(config, out, resume=begun, view=_Rounds(tell))
    except Exception as error:  # a point's failure; the sweep goes on
        traceback.print_exc()
        kind = type(error)
        own = kind.__module__ != "builtins"  # ours say what they mean; a KeyError says 'x'
        tell({"do": "done", "error": str(error) if own else f"{kind.__name__}: {error}"})
    else:
        tell({"do": "done"})


def serve(commands: BinaryIO, answers: BinaryIO) -> None:
    """Run points until told to stop."""
    waiting: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(commands, waiting), daemon=True).start()
    while (command := waiting.get()) is not None:
        with open(command["log"], "ab") as log:
            os.dup2(log.fileno(), 2)  # what this point and its workers say; theirs is inherited
        run_point(command, lambda frame: write_frame(answers, frame))


def _listen(commands: BinaryIO, waiting: queue.SimpleQueue[dict[str, Any] | None]) -> None:
    while (frame := read_frame(commands)) is not None:
        if "out" not in frame[0]:
            waiting.put(None)
            return
        waiting.put(frame[0])
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(_LAST_WORDS_S)
    os._exit(130)


def main() -> None:
    """`python -m simulations.sweeps.runner`, as simulations.sweeps.pool starts it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    commands, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a stray print must not become a frame
    code = 0
    try:
        serve(commands, answers)
    except (KeyboardInterrupt, BrokenPipeError):
        code = 130
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code)  # the listener may be reading still, and Python would stumble over it


if __name__ == "__main__":
    main()
