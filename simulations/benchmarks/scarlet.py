"""SCARLET's claim: the cache of labels halves the bytes at equal accuracy, also with half of the clients absent.

    python simulations/benchmarks/scarlet.py [--write]

mnist-scarlet.toml with 10,000 proxy rows, as in the paper, with and without its cache. Finished runs are kept under
runs/benchmarks/.
"""

from __future__ import annotations

import argparse
import statistics

from simulations.benchmarks.readme import machine, table, write_section
from simulations.benchmarks.runs import Kept, kept_run
from simulations.reporting.comparison import human_bytes, percent

# Of 40 rounds; 50, the paper's, would never expire here.
DURATIONS = (0, 10, 20, 25, 30)
PARTICIPATION = (1.0, 0.5)
# Where clients are absent a student moves by points from round to round: one seed says little.
SEEDS, REPEATED = (1, 2, 3), (0, 20, 25)


def run(share: float, duration: int, seed: int) -> Kept:
    """One run, made or kept."""
    settings = {
        "data.proxy": 10000,
        "federation.evaluate_every": 0,
        "federation.participation": share,
        "strategy.cache_rounds": duration,
        **({} if seed == 1 else {"federation.seed": seed}),
    }
    name = f"scarlet-{share}-{duration}" + ("" if seed == 1 else f"-seed-{seed}")
    return kept_run(name, "mnist-scarlet", [f"{key}={value}" for key, value in settings.items()])


def last_rounds(kept: Kept) -> float:
    """Mean student accuracy of the last five rounds."""
    return statistics.mean(float(row["student_accuracy"]) for row in kept.metrics[-5:])


def total(kept: Kept) -> int:
    """Bytes up and down."""
    return int(kept.run["upload_bytes"]) + int(kept.run["download_bytes"])


def main() -> None:
    """Measure, print, and on request write the README's section."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="write the README's section")
    arguments = parser.parse_args()
    rows = []
    for share in PARTICIPATION:
        plain = [run(share, 0, seed) for seed in (SEEDS if share < 1.0 else SEEDS[:1])]
        for duration in DURATIONS:
            repeated = share < 1.0 and duration in REPEATED
            runs = [run(share, duration, seed) for seed in (SEEDS if repeated else SEEDS[:1])]
            first = runs[0]
            rows.append(
                [
                    percent(share),
                    str(duration) if duration else "no cache",
                    percent(first.run["student"]["accuracy"]),
                    percent(last_rounds(first)),
                    percent(statistics.mean(map(last_rounds, runs))) if repeated else "",
                    human_bytes(first.run["upload_bytes"]),
                    human_bytes(first.run["download_bytes"]),
                    f"{sum(map(total, runs)) / sum(map(total, plain[: len(runs)])):.2f}",
                ]
            )
    heading = ["clients asked", "cache, rounds", "student", "mean of the last 5 rounds"]
    heading += [f"that, seeds {SEEDS[0]} to {SEEDS[-1]}", "up", "down", "bytes"]
    text = f"{table(heading, rows)}\n\nMNIST, two shards a site, 40 rounds, 1,000 of 10,000 rows a round; {machine()}."
    print(text)
    if arguments.write:
        write_section("scarlet", text)


if __name__ == "__main__":
    main()
