"""The grid attack x rule of `consilium bench robustness`, over seeds, with the targets of the deployment default.

python simulations/benchmarks/robustness.py [--write]
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from simulations.benchmarks.readme import machine, table, write_section
from simulations.benchmarks.runs import CONFIGS
from simulations.config import load_config
from simulations.probes.commands import robustness_of

SEEDS = 3
PLOT = Path(__file__).resolve().parent / "robustness.svg"


def main() -> None:
    """Measure, print, and on request write the README's section and the heat map beside this file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="write the README's section")
    arguments = parser.parse_args()
    config = load_config(CONFIGS / "robustness.toml")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        grid = robustness_of(
            config,
            out,
            seeds=SEEDS,
            on_cell=lambda done, total: print(f"{done}/{total}", flush=True) if done % 20 == 0 else None,
        )
        if arguments.write:
            shutil.copy(out / "robustness.svg", PLOT)
    rules = grid["rules"]
    rows = [["no attack: accuracy, %", *(f"{100 * grid['accuracy'][rule]:.1f}" for rule in rules)]]
    for attack in grid["attacks"]:
        lost = grid["lost"][attack]
        rows.append([attack, *("fails" if lost[rule] is None else f"{lost[rule]:.1f}" for rule in rules)])
    heading = ["points lost to (attackers of 10)", *(f"`{rule}`" for rule in rules)]
    text = f"{table(heading, rows)}\n\nMean of {SEEDS} seeds, {config.federation.rounds} rounds; {machine()}."
    print(text)
    if arguments.write:
        write_section("robustness", f"{text}\n\n![points lost](simulations/benchmarks/{PLOT.name})")


if __name__ == "__main__":
    main()
