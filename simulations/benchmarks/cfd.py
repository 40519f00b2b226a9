"""CFD's claim: one bit a label, differences and an entropy coder, against float32 soft labels and against FedAvg.

    python simulations/benchmarks/cfd.py [--only mnist|cifar10] [--write]

Bytes are of the encoded messages until the student first comes within one point of what the yardstick reached at its
end. Finished runs are kept under runs/benchmarks/.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from simulations.benchmarks.readme import machine, table, write_section
from simulations.benchmarks.runs import kept_run
from simulations.reporting.comparison import human_bytes, percent, times
from simulations.reporting.traffic import bytes_to

LINKS = {
    "float32": ("float32", "float32"),
    "4 bits, delta, entropy": ("quantised:4+delta+entropy", "quantised:4+delta+entropy"),
    "1 bit": ("quantised:1", "quantised:1"),
    "1 bit, delta, entropy": ("quantised:1+delta+entropy", "quantised:1+delta+entropy"),
}
WITHIN = 0.01


def mnist() -> str:
    """Every link on one fixed subset of MNIST's proxy rows."""
    runs = {}
    for name, (up, down) in LINKS.items():
        links = (f"strategy.uplink={up}", f"strategy.downlink={down}")
        kept = kept_run(f"cfd-mnist-{name.replace(', ', '-').replace(' ', '-')}", "mnist-cfd-links", links)
        runs[name] = (kept.run, kept.metrics)
    yardstick = float(runs["float32"][0]["student"]["accuracy"])
    plain = bytes_to(runs["float32"][1], "student_accuracy", yardstick - WITHIN)
    assert plain is not None  # noqa: S101 - it reached what it reached
    rows = []
    for name, (run, metrics) in runs.items():
        goal = bytes_to(metrics, "student_accuracy", yardstick - WITHIN)
        rows.append([name, percent(run["student"]["accuracy"]), *_cells(goal, plain)])
    heading = ["link", "student at the end", *_headings(yardstick), "up: float32 / this", "down: float32 / this"]
    return table(heading, rows)


def cifar10() -> str:
    """1-bit links against FedAvg with resnet8 on CIFAR-10, averaging after one pass and after five."""
    kept = kept_run("cfd-cifar10", "cifar10-cfd")
    once = ("federation.rounds=1", "baselines.fedavg_epochs=1", "baselines.fedavg_rounds=40")
    averaged = {"5 epochs": kept, "1 epoch": kept_run("cfd-cifar10-1-epoch", "cifar10-cfd", once)}
    goal = max(float(row["student_accuracy"]) for row in kept.metrics) - WITHIN
    mine = bytes_to(kept.metrics, "student_accuracy", goal)
    assert mine is not None  # noqa: S101 - it reached what it reached
    rows = []
    for epochs, run in averaged.items():
        theirs = bytes_to(run.fedavg, "accuracy", goal)
        cells: Sequence[str] = ("not reached", "", "", "")
        if theirs is not None:
            cells = (*map(human_bytes, theirs), *(times(more / less) for more, less in zip(theirs, mine, strict=True)))
        rows.append([f"FedAvg, {epochs} a round", percent(run.run["fedavg"]["accuracy"]), *cells])
    rows.append(["1 bit, delta, entropy", percent(kept.run["student"]["accuracy"]), *map(human_bytes, mine), "", ""])
    up, down = (f"{way} to {percent(goal)}" for way in ("up", "down"))
    return table(["resnet8, CIFAR-10", "at the end", up, down, "up: this / 1 bit", "down: this / 1 bit"], rows)


def _headings(goal: float) -> Sequence[str]:
    return (f"up to {percent(goal - WITHIN)}", f"down to {percent(goal - WITHIN)}")


def _cells(goal: tuple[int, int] | None, plain: tuple[int, int]) -> Sequence[str]:
    if goal is None:
        return ("not reached",) * 2 + ("",) * 2
    return (*map(human_bytes, goal), *(times(theirs / mine) for mine, theirs in zip(goal, plain, strict=True)))


def main() -> None:
    """Measure, print, and on request write the README's section."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=["mnist", "cifar10"], help="one of the two")
    parser.add_argument("--write", action="store_true", help="write the README's sections")
    arguments = parser.parse_args()
    parts: Mapping[str, object] = {"mnist": mnist, "cifar10": cifar10}
    for name, make in parts.items():
        if arguments.only in (None, name):
            text = f"{make()}\n\nOne seed; {machine()}."  # type: ignore[operator]
            print(text)
            if arguments.write:
                write_section(f"cfd-{name}", text)


if __name__ == "__main__":
    main()
