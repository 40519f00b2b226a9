"""How every command ends: exit codes, one sentence for each failure, one JSON object where asked."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

import typer
from rich.console import Console

# What each kind of failure exits with; the README and users.md list them.
FAILED, DEGRADED, REFUSED, REFUTED, INTERRUPTED = 3, 4, 5, 10, 130
_CODES = {
    "ConfigError": 2,
    "ProjectError": 2,
    "SiteConfigError": 2,
    "UnsuitableModel": 2,
    "RunFailed": 3,
    "RuleError": 3,
    "QuorumError": 3,
    "WorkerError": 3,
    "BudgetExceeded": 5,
    "PolicyError": 5,
    "PlatformError": 6,
    "DataError": 7,
    "TermsDiffer": 2,
    "LedgerUnavailable": 9,
    "LedgerError": 8,
    "CheckpointError": 8,
    "VotesError": 8,
    "StateError": 8,
    "ModuleNotFoundError": 9,
    "OSError": 9,
}

# A disk that refuses in the middle of a run; other errors of the operating system speak for themselves.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


class Format(StrEnum):
    """How a command reports."""

    text = "text"
    json = "json"


def print_json(status: str, code: int, data: Any) -> None:
    typer.echo(json.dumps({"schema": 1, "status": status, "code": code, "data": data}))


@contextmanager
def exit_codes(reporting: Format) -> Iterator[None]:
    """Translate what commands raise into one sentence and an exit code; SIGTERM ends a command as Ctrl-C does."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except typer.Exit:
        raise
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted", style="bold red")
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        # A worker's error counts as what the worker met.
        kinds = (*getattr(error, "kinds", ()), *(kind.__name__ for kind in type(error).__mro__))
        code = next((_CODES[kind] for kind in kinds if kind in _CODES), 1)
        message = _sentence(error)
        if code == 1:
            traceback.print_exc()
            message = f"internal error, this is our bug: {type(error).__name__}: {error}"
        if reporting is Format.json:
            print_json("error", code, {"message": message})
        Console(stderr=True).print(f"error: {message}", style="bold red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(code) from None


def _sentence(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        extra = "sim" if error.name == "ray" else "lab"
        return f"the package {error.name!r} is not installed: pip install 'consilium[{extra}]'"
    if isinstance(error, OSError) and error.errno in _DISK:
        where = error.filename or "the disk"
        return (
            f"{where}: {os.strerror(error.errno).lower()}; finished rounds are safe: mend that and go on with --resume"
        )
    return str(error)
