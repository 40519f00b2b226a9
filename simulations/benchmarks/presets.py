"""Every preset under the two-shard split of MNIST, in one table, with the baselines beside them.

    python simulations/benchmarks/presets.py [--write]

Needs the MNIST files that simulations/configs/mnist.toml names. Finished runs are kept under runs/benchmarks/: remove
that folder to measure anew.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence

from simulations.benchmarks.readme import machine, table, write_section
from simulations.benchmarks.runs import CONFIGS, Kept, kept_run
from simulations.reporting.comparison import human_bytes, percent
from simulations.reporting.traffic import bytes_to
from strategies.presets import PRESETS

GOAL = 0.9
SEEDS = (1, 2, 3)
BEST = 5


def main() -> None:
    """Measure, print, and on request write the README's section."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="write the README's section")
    parser.add_argument("--only", default="", help="some presets, separated by commas")
    arguments = parser.parse_args()
    names = [name for name in PRESETS if (CONFIGS / f"mnist-{name}.toml").exists()]
    if arguments.only:
        names = arguments.only.split(",")
    base = kept_run("mnist-ds-fl-1", "mnist-ds-fl")
    first = {name: kept_run(f"mnist-{name}-1", f"mnist-{name}") for name in names}
    # The baselines' own runs stand in mnist-ds-fl.toml; its time is that of the rounds alone.
    reached = {name: accuracy for name in names if (accuracy := _student(first[name])) is not None}
    ranked = sorted(reached, key=lambda name: -reached[name])
    best = ranked[:BEST]
    seeds = {
        name: [first[name], *(kept_run(f"mnist-{name}-{s}", f"mnist-{name}", _seeded(s)) for s in SEEDS[1:])]
        for name in best
    }
    rows = [_row(name, first[name], seeds.get(name)) for name in [*ranked, *(n for n in names if n not in ranked)]]
    text = "\n\n".join((table(HEADING, [*rows, *_baselines(base)]), _facts(best)))
    print(text)
    if arguments.write:
        write_section("presets", text)


HEADING = (
    "preset",
    "student",
    f"seeds {SEEDS[0]} to {SEEDS[-1]}: mean (range)",
    "clients, mean",
    f"up to {percent(GOAL)}",
    f"down to {percent(GOAL)}",
    "up, whole run",
    "down, whole run",
    "seconds",
)


def _seeded(seed: int) -> Sequence[str]:
    off = [f"baselines.{name}=false" for name in ("local_only", "pooled", "fedavg")]
    return (f"federation.seed={seed}", *off)


def _student(kept: Kept) -> float | None:
    accuracy: float | None = kept.run["student"]["accuracy"]
    return accuracy


def _row(name: str, kept: Kept, seeds: Sequence[Kept] | None) -> list[str]:
    goal = bytes_to(kept.metrics, "student_accuracy", GOAL)
    return [
        f"`{name}`",
        percent(_student(kept)),
        "" if seeds is None else _spread([accuracy for each in seeds if (accuracy := _student(each)) is not None]),
        percent(kept.run["clients"]["accuracy_mean"]),
        *("not reached" if goal is None else human_bytes(part) for part in (goal or (0, 0))),
        human_bytes(kept.run["upload_bytes"]),
        human_bytes(kept.run["download_bytes"]),
        f"{sum(float(row['seconds']) for row in kept.metrics):.0f}",
    ]


def _spread(values: Sequence[float]) -> str:
    return f"{percent(statistics.mean(values))} ({percent(min(values))} to {percent(max(values))})"


def _baselines(base: Kept) -> list[list[str]]:
    averaged = base.run["fedavg"]
    goal = bytes_to(base.fedavg, "accuracy", GOAL)
    empty = [""] * 5
    return [
        [
            "FedAvg (weights leave)",
            percent(averaged["accuracy"]),
            "",
            "",
            *("not reached" if goal is None else human_bytes(part) for part in (goal or (0, 0))),
            human_bytes(averaged["upload_bytes"]),
            human_bytes(averaged["download_bytes"]),
            f"{averaged['seconds']:.0f}",
        ],
        ["each client alone", "", "", percent(base.run["local_only"]["accuracy_mean"]), *empty],
        ["pooled data", percent(base.run["pooled"]["accuracy"]), "", "", *empty],
    ]


def _facts(best: Sequence[str]) -> str:
    return (
        f"20 sites, two shards each, 40 rounds (`one-shot`: one), seed 1; three seeds for {', '.join(best)}. Bytes "
        f"are of the encoded messages of all clients, until the student first reaches {percent(GOAL)} and in the whole "
        "run; `fedmd` first learns the labels of all proxy rows, which the others never see; "
        f"seconds are of the rounds, evaluation of the clients every tenth round left in; {machine()}."
    )


if __name__ == "__main__":
    main()
