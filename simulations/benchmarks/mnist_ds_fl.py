"""mnist-ds-fl.toml with ERA and with the plain mean: both curves, from the runs themselves.

    python simulations/benchmarks/mnist_ds_fl.py [--rounds 40] [--write]

Needs the MNIST files that the configuration names.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from pathlib import Path
from typing import Any

from simulations.benchmarks.readme import machine, table, write_section
from simulations.comparison import percent
from simulations.config import load_config
from simulations.experiment import run_experiment

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "mnist-ds-fl.toml"
PLOT = Path(__file__).resolve().parent / "mnist-ds-fl.svg"
RULES = {"ERA": [], "mean": ['strategy.aggregator="mean"', "baselines.local_only=false", "baselines.pooled=false"]}


class _Lines:
    """A line a round, so that a long benchmark shows that it lives."""

    def phase(self, text: str) -> None:
        """What happens now."""
        print(text, flush=True)

    def row(self, metrics: Any) -> None:
        """One finished round."""
        print(f"round {metrics['round']}: student {percent(metrics['student_accuracy'])}", flush=True)


def measure(rounds: int) -> tuple[dict[str, dict[str, Any]], dict[str, list[dict[str, str]]]]:
    """run.json and the rows of metrics.csv, by rule."""
    runs, curves = {}, {}
    for name, overrides in RULES.items():
        config = load_config(CONFIG, [*overrides, f"federation.rounds={rounds}", "federation.evaluate_every=5"])
        with tempfile.TemporaryDirectory() as folder:
            runs[name] = run_experiment(config, Path(folder) / "out", view=_Lines())
            with (Path(folder) / "out" / "metrics.csv").open() as file:
                curves[name] = list(csv.DictReader(file))
    return runs, curves


def plot(curves: dict[str, list[dict[str, str]]], path: Path) -> None:
    """Student and teacher accuracy by round, both rules, as SVG."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = "consilium"
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for colour, (name, rows) in zip(("tab:blue", "tab:orange"), curves.items(), strict=True):
        rounds = [int(row["round"]) for row in rows]
        axes.plot(
            rounds, [100 * float(row["student_accuracy"]) for row in rows], color=colour, label=f"student, {name}"
        )
        teacher = [100 * float(row["teacher_accuracy"]) for row in rows]
        axes.plot(rounds, teacher, color=colour, linestyle=":", label=f"teacher, {name}")
    axes.set(xlabel="round", ylabel="accuracy, %", title="MNIST, 20 sites with two shards each")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, format="svg", metadata={"Date": None})


def main() -> None:
    """Measure, print, and on request write the README's section and the plot beside this file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--write", action="store_true", help="write the README's section")
    arguments = parser.parse_args()
    runs, curves = measure(arguments.rounds)
    shown = [row for row in range(arguments.rounds) if row == 0 or (row + 1) % 5 == 0]
    columns = ("student_accuracy", "teacher_accuracy", "client_accuracy_mean")
    rows = [
        [str(row + 1)]
        + [percent(float(cell)) if (cell := curves[name][row][column]) else "" for name in RULES for column in columns]
        for row in shown
    ]
    heading = ["round"] + [f"{kind}, {name}" for name in RULES for kind in ("student", "teacher", "clients")]
    era = runs["ERA"]
    facts = (
        f"Pooled data {percent(era['pooled']['accuracy'])}; each client alone "
        f"{percent(era['local_only']['accuracy_mean'])}. "
        f"Sent in {arguments.rounds} rounds: {(era['upload_bytes'] + era['download_bytes']) / 1e6:.1f} MB; averaging "
        f"weights would have sent {era['weights_bytes'] / 1e6:.1f} MB. One seed; {machine()}."
    )
    text = f"{table(heading, rows)}\n\n{facts}"
    print(text)
    if arguments.write:
        plot(curves, PLOT)
        write_section("mnist-ds-fl", f"{text}\n\n![student and teacher by round](simulations/benchmarks/{PLOT.name})")


if __name__ == "__main__":
    main()
