"""SCARLET's claim: the cache of labels halves the bytes at equal accuracy, also with half of the clients absent.

    python simulations/benchmarks/scarlet.py [--write]

mnist-scarlet.toml with 10,000 proxy rows, as in the paper, with and without its cache. Finished runs are kept under
runs/benchmarks/.
"""

from __future__ import annotations

import argparse

from simulations.benchmarks.readme import machine, table, write_section
from simulations.benchmarks.runs import kept_run
from simulations.reporting.comparison import human_bytes, percent

# Of 40 rounds; 50, the paper's, would never expire here.
DURATIONS = (0, 10, 20, 30)
PARTICIPATION = (1.0, 0.5)


def main() -> None:
    """Measure, print, and on request write the README's section."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="write the README's section")
    arguments = parser.parse_args()
    rows = []
    for share in PARTICIPATION:
        plain = 0
        for duration in DURATIONS:
            kept = kept_run(
                f"scarlet-{share}-{duration}",
                "mnist-scarlet",
                (
                    "data.proxy=10000",
                    "federation.evaluate_every=0",
                    f"federation.participation={share}",
                    f"strategy.cache_rounds={duration}",
                ),
            )
            up, down = kept.run["upload_bytes"], kept.run["download_bytes"]
            plain = plain or up + down
            last = [float(row["student_accuracy"]) for row in kept.metrics[-5:]]
            rows.append(
                [
                    percent(share),
                    str(duration) if duration else "no cache",
                    percent(kept.run["student"]["accuracy"]),
                    percent(sum(last) / len(last)),
                    human_bytes(up),
                    human_bytes(down),
                    f"{(up + down) / plain:.2f}",
                ]
            )
    heading = ["clients asked", "cache, rounds", "student", "mean of the last 5 rounds", "up", "down", "bytes"]
    text = f"{table(heading, rows)}\n\nMNIST, two shards a site, 40 rounds, 1,000 of 10,000 rows a round; {machine()}."
    print(text)
    if arguments.write:
        write_section("scarlet", text)


if __name__ == "__main__":
    main()
