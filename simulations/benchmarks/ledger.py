"""What a release pays for its ledger: to open it, to reserve, to store the answer, to let the file go.

    python simulations/benchmarks/ledger.py [--write]

A commit survives a power cut only after the disk has said so; the table therefore depends on the disk first.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from privacy.events import Gaussian, PoissonGaussian
from privacy.ledger import Ledger, Request, Terms, Token, canonical
from simulations.benchmarks.readme import machine, table, write_section

ROUNDS = 200
LIMIT_MS = 20.0
# 5,000 votes among 10 classes, as float16.
PAYLOAD = bytes(100_000)
# Cheap enough that the budget outlasts the benchmark.
EVENTS = (PoissonGaussian(0.01, 20.0, 10), Gaussian(2000.0, 1))
TERMS = Terms("record", "zero_out", "filter", 3.0, 1e-5, 8, False)


def measure(path: Path, *, durable: bool, kept: bool) -> list[list[float]]:
    """[rounds][open, reserve, store, close] in ms.

    Args:
        kept: by one object, which opens its file again for every answer and reads the new rows; otherwise every answer
            begins with a new object that reads all of them.
    """
    ledger = Ledger.create(path, TERMS, durable=durable)
    ledger.close()
    times = []
    for round_ in range(ROUNDS):
        request = Request("ab" * 16, round_, 0, "site-a", "dp-sgd", canonical({"noise": 20.0}), "cd" * 32)
        marks = [time.perf_counter()]
        ledger = ledger.__enter__() if kept else Ledger.open(path, durable=durable)
        marks.append(time.perf_counter())
        token = ledger.reserve(request, EVENTS)
        marks.append(time.perf_counter())
        if not isinstance(token, Token):
            raise RuntimeError(f"round {round_} was answered before: measure in an empty folder")
        ledger.store(token, PAYLOAD)
        marks.append(time.perf_counter())
        ledger.close()
        marks.append(time.perf_counter())
        times.append([1e3 * (after - before) for before, after in pairwise(marks)])
    return times


def plain_sync(folder: Path) -> float:
    """Median time, in ms, in which this disk keeps 4 kB: what no commit can beat."""
    times = []
    with (folder / "plain").open("wb") as file:
        for _ in range(50):
            started = time.perf_counter()
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
            times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times)


def row(name: str, times: Sequence[Sequence[float]]) -> list[str]:
    """Medians of the steps and of their sum, and the slow commit."""
    medians = [f"{statistics.median(step):.2f} ms" for step in zip(*times, strict=True)]
    whole = statistics.median(sum(each) for each in times)
    return [name, *medians, f"{whole:.2f} ms", f"{slow_commit(times):.2f} ms"]


def slow_commit(times: Sequence[Sequence[float]]) -> float:
    """The commit that one of twenty exceeds, in ms."""
    commits = sorted(each[step] for each in times for step in (1, 2))
    return commits[int(0.95 * len(commits))]


def main() -> None:
    """Measure both kinds of ledger, print, and on request write the README's section."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="write the README's section")
    arguments = parser.parse_args()
    rows, slowest = [], 0.0
    kinds = {"survives a power cut (deployment)": True, "survives kill -9 (simulation)": False}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for told, durable in kinds.items():
            for kept in (False, True):
                times = measure(folder / f"{durable}{kept}.sqlite", durable=durable, kept=kept)
                slowest = max(slowest, slow_commit(times))
                for answers, part in (("first 20", times[:20]), (f"last 20 of {ROUNDS}", times[-20:])):
                    rows.append(row(f"{told}, {'kept object' if kept else 'opened anew'}, {answers} answers", part))
        sync = plain_sync(folder)
    verdict = f"{'All are' if slowest < LIMIT_MS else 'Not all are'} under the limit."
    heading = [
        "ledger",
        "open",
        "reserve",
        "store 100 kB",
        "close",
        "together",
        f"95 % of commits (limit {LIMIT_MS:.0f} ms)",
    ]
    text = table(heading, rows)
    text += (
        "\n\nMedians; `reserve` and `store` are one commit each. Opened anew, a ledger checks all of its rows; a site "
        f"that keeps the object reads the new ones. {verdict} This disk takes {sync:.2f} ms to keep 4 kB (`fsync`); "
        f"{machine()}."
    )
    print(text)
    if arguments.write:
        write_section("ledger", text)


if __name__ == "__main__":
    main()
