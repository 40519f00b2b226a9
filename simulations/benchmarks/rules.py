"""How long each rule takes on 1,000 clients x 1,000 rows x 10 classes, against plain NumPy on the same arrays.

    python simulations/benchmarks/rules.py [--write]

Each rule is timed in a process of its own, in turn with its yardstick: for means a loop that adds up the same arrays,
for medians np.median. Reports are made before the clock starts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from simulations.benchmarks.readme import machine, table, write_section
from simulations.engines.worker import peak_bytes
from strategies.aggregator import Ballot
from strategies.aggregators import AGGREGATORS, build_aggregator
from strategies.messages import ClientReport
from strategies.soft_labels import SoftLabels

CLIENTS, ROWS, CLASSES, REPEATS = 1000, 1000, 10, 3
# What a rule is measured against: the sum of votes as they are, of their probabilities, or the median of those.
YARDSTICKS = {
    "logit-mean": "sum",
    "mean": "sum of exp",
    "era": "sum of exp",
    "enhanced-era": "sum of exp",
    "confidence": "sum of exp",
    "entropy": "sum of exp",
    "sample-weighted": "sum of exp",
    "class-count": "sum of exp",
    "hard-vote": "sum of exp",
    "median": "np.median",
    "trimmed-mean": "np.median",
}


def reports() -> list[ClientReport]:
    """Votes of 1,000 clients, with scores and counts for the rules that need them."""
    rng, rows = np.random.default_rng(0), np.arange(ROWS)
    made = []
    for client in range(CLIENTS):
        votes = SoftLabels.from_logits(rows, rng.normal(scale=2.0, size=(ROWS, CLASSES)))
        scores, counts = rng.uniform(0.1, 1.0, ROWS), rng.integers(0, 50, CLASSES).astype(np.float64)
        made.append(ClientReport(f"c{client:04}", 1, votes, scores=scores, counts=counts))
    return made


def yardstick(kind: str, made: list[ClientReport]) -> float:
    """Seconds of plain NumPy."""
    if kind == "np.median":
        stack = np.stack([report.soft_labels.probabilities() for report in made])
        return _timed(lambda: np.median(stack, axis=0))

    def add() -> Any:
        total = np.zeros((ROWS, CLASSES))
        for report in made:
            log_probs = report.soft_labels.log_probs
            total += log_probs if kind == "sum" else np.exp(log_probs, dtype=np.float64)
        return total

    return _timed(add)


def measure(rule: str) -> dict[str, float]:
    """Median seconds of the rule and of its yardstick, and the largest memory of this process."""
    made = reports()
    ballot = Ballot(np.arange(ROWS), CLASSES, CLIENTS)
    built = build_aggregator(rule, {})
    kind = YARDSTICKS.get(rule)
    seconds, plain = [], []
    for _ in range(REPEATS):
        seconds.append(_timed(lambda: built.aggregate({}, ballot, made)))
        if kind is not None:
            plain.append(yardstick(kind, made))
    ratios = [mine / theirs for mine, theirs in zip(seconds, plain, strict=True)] if plain else []
    return {
        "seconds": statistics.median(seconds),
        "plain": statistics.median(plain) if plain else 0.0,
        "ratio": statistics.median(ratios) if plain else 0.0,
        "peak": float(peak_bytes()),
    }


def _timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    """Measure, print, and on request write the README's section."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rule", help="one rule, in this process; prints JSON")
    parser.add_argument("--write", action="store_true", help="write the README's section")
    arguments = parser.parse_args()
    if arguments.rule:
        print(json.dumps(measure(arguments.rule)))
        return
    rows = []
    for rule in (name for name in AGGREGATORS if name != "per-class"):
        command = [sys.executable, __file__, "--rule", rule]
        told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        kind = YARDSTICKS.get(rule, "")
        ratio = f"{told['ratio']:.2f} x {kind} ({1000 * told['plain']:.0f} ms)" if kind else ""
        rows.append([f"`{rule}`", f"{told['seconds']:.2f} s", ratio, f"{told['peak'] / 1e6:.0f} MB"])
        print(rows[-1], flush=True)
    text = (
        f"{table(['rule', 'seconds', 'against plain NumPy', 'peak of the process'], rows)}\n\n{CLIENTS:,} clients x "
        f"{ROWS:,} rows x {CLASSES} classes, all reports held in memory ({CLIENTS * ROWS * CLASSES * 4 / 1e6:.0f} MB "
        f"of votes); median of {REPEATS}; {machine()}."
    )
    print(text)
    if arguments.write:
        write_section("rules", text)


if __name__ == "__main__":
    main()
