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
from simulations.comparison import human_bytes, percent, times
from simulations.traffic import bytes_to

LINKS = {
    "float32": ("float32", "float32"),
    "float16": ("float16", "float16"),
    "4 bits": ("quantised:4", "quantised:4"),
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
    """1-bit links against FedAvg with resnet8 on CIFAR-10."""
    kept = kept_run("cfd-cifar10", "cifar10-cfd")
    student = max(float(row["student_accuracy"]) for row in kept.metrics)
    goal = min(student, float(kept.run["fedavg"]["accuracy"]))
    mine = bytes_to(kept.metrics, "student_accuracy", goal - WITHIN)
    plain = bytes_to(kept.fedavg, "accuracy", goal - WITHIN)
    assert mine is not None and plain is not None  # noqa: S101, PT018 - both reached the smaller of the two
    rows = [
        ["FedAvg", percent(kept.run["fedavg"]["accuracy"]), *_cells(plain, plain)],
        ["1 bit, delta, entropy", percent(kept.run["student"]["accuracy"]), *_cells(mine, plain)],
    ]
    heading = ["resnet8, CIFAR-10", "at the end", *_headings(goal), "up: FedAvg / this", "down: FedAvg / this"]
    return table(heading, rows)


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
