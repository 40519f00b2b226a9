"""What a step of DP-SGD costs against a plain one: `cnn-small` on images of MNIST's size, both modes, two batch sizes.

    python simulations/benchmarks/dp_cost.py [--write]

Each number is processor time on one thread, so that other processes on the machine count less; ways to train take
turns, and the ratio is the median over turns of one turn's ratio. A private step draws masks and noise as a site's
does, from the operating system, over as many records as it then uses (sample rate 1).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention

from distillation.models import build_model, parameter_count
from distillation.runtime import single_thread
from privacy.dp_training import DpSgd, fit_privately
from privacy.noise import OsEntropy
from simulations.benchmarks.readme import machine, table, write_section

MODEL, SHAPE, CLASSES, BATCHES = "cnn-small", (1, 28, 28), 10, (64, 256)
STEPS, TURNS = 20, 15
# Of the plain step, for the cheaper mode.
TARGET = 2.6


def trainer(way: str, batch: int) -> Callable[[], object]:
    """A function that makes STEPS steps: "plain", or a mode of DP-SGD."""
    rng = torch.Generator().manual_seed(0)
    features = torch.randn((batch, *SHAPE), generator=rng)
    labels = torch.randint(CLASSES, (batch,), generator=rng)
    model = build_model(MODEL, SHAPE, CLASSES, 0).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def plain() -> None:
        for _ in range(STEPS):
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(model(features), labels).backward()
            optimizer.step()

    if way == "plain":
        return plain
    return lambda: fit_privately(
        model,
        optimizer,
        records=batch,
        batch=lambda rows: features[rows],
        losses=lambda logits, rows: F.cross_entropy(logits, labels[rows], reduction="none"),
        spec=DpSgd(1.0, 1.0, 1.0, STEPS, "ghost" if way == "ghost" else "hooks"),
        entropy=OsEntropy(),
        device=torch.device("cpu"),
    )


def measure(batch: int) -> dict[str, tuple[float, float]]:
    """By way: seconds a step, and how many times the plain step's."""
    ways = {way: trainer(way, batch) for way in ("plain", "hooks", "ghost")}
    turns: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(TURNS + 1):
        for way, train in ways.items():
            started = time.process_time()
            train()
            if turn:  # the first one warms up
                turns[way].append((time.process_time() - started) / STEPS)
    ratios = {way: [one / plain for one, plain in zip(turns[way], turns["plain"], strict=True)] for way in ways}
    return {way: (statistics.median(turns[way]), statistics.median(ratios[way])) for way in ways}


def main() -> None:
    """Measure, print, and on request write the README's section."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="write the README's section")
    arguments = parser.parse_args()
    single_thread()
    rows, best = [], []
    for batch in BATCHES:
        told = measure(batch)
        best.append(min(told[way][1] for way in ("hooks", "ghost")))
        cells = [f"{1000 * told['plain'][0]:.1f} ms"]
        cells += [f"{1000 * told[way][0]:.1f} ms ({told[way][1]:.2f} x)" for way in ("hooks", "ghost")]
        rows.append([str(batch), *cells])
        print(rows[-1], flush=True)
    size = parameter_count(build_model(MODEL, SHAPE, CLASSES, 0))
    text = (
        f"{table(['records a step', 'plain', 'hooks', 'ghost'], rows)}\n\n`{MODEL}`, {size:,} parameters; processor "
        f"time of one step on one thread, median of {TURNS} turns of {STEPS} steps. The better mode takes "
        f"{' and '.join(f'{ratio:.2f}' for ratio in best)} times as long as a plain step (target: at most {TARGET}). "
        "Opacus' other modes, `ew` and `functorch`, are not offered: an empty Poisson sample makes the one, and with "
        f"GroupNorm also the other, raise an error. {machine()}."
    )
    print(text)
    if arguments.write:
        write_section("dp-cost", text)


if __name__ == "__main__":
    main()
