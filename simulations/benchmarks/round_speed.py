"""A whole round of mnist-ds-fl.toml against the arithmetic floor, in turn, in one run.

    python simulations/benchmarks/round_speed.py [--rounds 9] [--write]

A round is everything between two calls of `on_round`: plan, wire, clients, checks, aggregation, student, checkpoint;
no evaluation. The floor does the same optimiser steps and predictions in plain PyTorch with one process a core.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from distillation.data import Samples, load_proxy
from server.coordinator import coordinate
from simulations.benchmarks.floor import BATCH, LR, cnn_small, distil
from simulations.benchmarks.readme import machine, table, write_section
from simulations.config import load_config
from simulations.engines.in_process import WorkerPool, available_cores
from simulations.preparation import prepare
from simulations.prepared import Setup

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "mnist-ds-fl.toml"
TARGET = 1.25


class Floor:
    """Plain PyTorch workers, and the student's steps in this process, as the server does them."""

    def __init__(self, setup: Setup) -> None:
        cores = available_cores()
        shares = [list(setup.study.names[index::cores]) for index in range(cores)]
        root = str(Path(__file__).resolve().parents[2])
        self._children = [
            subprocess.Popen(
                [sys.executable, "-m", "simulations.benchmarks.floor", str(setup.study.folder), *share],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=root,
            )
            for share in shares
        ]
        self._student = cnn_small()
        self._optimizer = torch.optim.SGD(self._student.parameters(), lr=LR)
        self._proxy = torch.rand(1000, 1, 28, 28)
        self._teacher = torch.log_softmax(torch.randn(1000, 10), 1)

    def round(self) -> float:
        """Seconds of one round."""
        started = time.perf_counter()
        for child in self._children:
            child.stdin.write(b".")  # type: ignore[union-attr]
            child.stdin.flush()  # type: ignore[union-attr]
        for child in self._children:
            child.stdout.read(1)  # type: ignore[union-attr]
        distil(self._student, self._optimizer, self._proxy, self._teacher)
        return time.perf_counter() - started

    def stop(self) -> None:
        """End the workers."""
        for child in self._children:
            child.communicate()


def measure(rounds: int) -> dict[str, float]:
    """Interleaved seconds of `rounds` rounds of each, and memory."""
    config = load_config(CONFIG, [f"federation.rounds={rounds + 1}"])
    with tempfile.TemporaryDirectory() as folder:
        setup = prepare(config, Path(folder))
        assert config.client.batch_size == BATCH  # noqa: S101
        sizes = setup.sizes
        with WorkerPool(setup.study.folder, sizes, 0, 600.0) as pool:
            ours, floors = _interleaved(setup, pool, Floor(setup))
            peak = statistics.mean(told["peak_bytes"] for told in pool.memory())
        with WorkerPool(setup.study.folder, sizes, 1, 600.0) as alone:
            one, *others = ({"do": "evaluate", "site": name} for name in setup.study.names)
            list(alone.tasks([one]))
            few = alone.memory()[0]["now_bytes"]
            list(alone.tasks(others))
            per_client = (alone.memory()[0]["now_bytes"] - few) / len(others)
    ratios = [mine / floor for mine, floor in zip(ours, floors, strict=True)]
    return {
        "round_s": statistics.median(ours),
        "floor_s": statistics.median(floors),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "worker_mb": peak / 1e6,
        "client_mb": per_client / 1e6,
    }


def _interleaved(setup: Setup, pool: WorkerPool, floor: Floor) -> tuple[list[float], list[float]]:
    ours: list[float] = []
    floors: list[float] = []
    mark = time.perf_counter()

    def on_round(row: object) -> None:
        nonlocal mark
        ours.append(time.perf_counter() - mark)
        floors.append(floor.round())
        print(f"round {len(ours) - 1}: {ours[-1]:.2f} s, floor {floors[-1]:.2f} s", flush=True)
        mark = time.perf_counter()

    proxy = load_proxy(Path(setup.federation.proxy), verify=False)
    nobody = Samples(proxy.samples.features[:0], None)
    try:
        coordinate(setup.federation, pool, proxy, nobody, setup.out, on_round=on_round)
    finally:
        floor.stop()
    return ours[1:], floors[1:]  # the first round opens the sites and has no teacher to learn from


def main() -> None:
    """Measure, print, and on request write the README's section."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--write", action="store_true", help="write the README's section")
    arguments = parser.parse_args()
    got = measure(arguments.rounds)
    text = table(
        ["mnist-ds-fl.toml, 20 clients", "measured", "target"],
        [
            ["whole round, median", f"{got['round_s']:.2f} s", ""],
            ["arithmetic floor, median", f"{got['floor_s']:.2f} s", ""],
            [
                "round / floor, median of pairs (min to max)",
                f"{got['ratio']:.2f} ({got['ratio_min']:.2f} to {got['ratio_max']:.2f})",
                f"at most {TARGET}",
            ],
            ["memory of a worker process, peak", f"{got['worker_mb']:.0f} MB", ""],
            ["memory of one more client in it", f"{got['client_mb']:.1f} MB", ""],
        ],
    )
    text += f"\n\n{arguments.rounds} rounds of each in turn; {machine()}."
    print(text)
    if arguments.write:
        write_section("round-speed", text)


if __name__ == "__main__":
    main()
