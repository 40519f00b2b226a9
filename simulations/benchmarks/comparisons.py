"""What a federation is worth: `consilium demo` and the four hospitals, each against its baselines.

    python simulations/benchmarks/comparisons.py [demo|heart-disease] [--write]

Runs the command line in a process of its own, as a user does. The demo is repeated with other seeds without being
timed, because the seed decides how the classes are dealt out, and with it how well any rule can do.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from simulations.benchmarks.readme import machine, table, write_section
from simulations.reporting.comparison import comparison_rows, percent

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
LIMIT_S = 60
SEEDS = (1, 2, 3, 4, 5)


def run(name: str, *overrides: str) -> tuple[dict[str, Any], float]:
    """run.json and wall-clock seconds of the whole command."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        command = ["demo"] if name == "demo" else ["run", str(CONFIGS / f"{name}.toml")]
        sets = [part for override in overrides for part in ("--set", override)]
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "consilium.cli", *command, "--out", str(out), *sets], check=True)
        seconds = time.perf_counter() - started
        read: dict[str, Any] = json.loads((out / "run.json").read_text())
        return read, seconds


def spread(runs: list[dict[str, Any]], part: str, key: str) -> str:
    """Mean and range over runs."""
    values = [run[part][key] for run in runs]
    return f"{percent(statistics.mean(values))} ({percent(min(values))} to {percent(max(values))})"


def report(name: str) -> str:
    """The section's text."""
    got, seconds = run(name)
    rows = [[row.name, row.value, row.note] for row in comparison_rows(got)]
    if name != "demo":
        return table(["", "accuracy", ""], rows) + f"\n\nOne seed; {machine()}."
    gain = 100 * (got["student"]["accuracy"] - got["local_only"]["accuracy_mean"])
    gap = 100 * (got["pooled"]["accuracy"] - got["student"]["accuracy"])
    rows += [
        ["student above the mean client alone", f"{gain:.1f} points", "target: at least 10"],
        ["student below pooled data", f"{gap:.1f} points", "target: at most 6"],
        ["the whole command", f"{seconds:.0f} s", f"target: under {LIMIT_S} s"],
    ]
    others = [run(name, f"federation.seed={seed}", "federation.evaluate_every=0")[0] for seed in SEEDS]
    over = table(
        [f"seeds {SEEDS[0]} to {SEEDS[-1]}", "mean (worst to best seed)"],
        [
            ["each client alone, mean", spread(others, "local_only", "accuracy_mean")],
            ["clients after federation, mean", spread(others, "clients", "accuracy_mean")],
            ["student", spread(others, "student", "accuracy")],
            ["pooled data", spread(others, "pooled", "accuracy")],
        ],
    )
    return f"{table(['', 'accuracy', ''], rows)}\n\nSeed {got['seed']}; {machine()}. Other seeds:\n\n{over}"


def main() -> None:
    """Measure, print, and on request write the README's section."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=["demo", "heart-disease"], nargs="?", default="demo")
    parser.add_argument("--write", action="store_true", help="write the README's section")
    arguments = parser.parse_args()
    text = report(arguments.name)
    print(text)
    if arguments.write:
        write_section(arguments.name, text)


if __name__ == "__main__":
    main()
