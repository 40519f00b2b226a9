"""DP-SGD on MNIST against what others have published, with a band that can be left at both ends.

    python simulations/benchmarks/dp_accuracy.py [--only NAMES] [--write]

One client alone, no federation: a model, private training through the learner, accuracy on the 10,000 test rows. Noise
and samples come from seeds, so nothing here is private. A result above its band is as wrong as one below: noise is
missing. Needs the MNIST files that simulations/configs/mnist.toml names. Finished runs are kept under
runs/benchmarks/dp-accuracy/: remove that folder to measure anew.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from distillation.data import Samples
from distillation.export import write_atomically
from distillation.inputs import ImageInputs
from distillation.learner import PrivateTraining, TorchLearner, Training
from distillation.models import build_model
from distillation.runtime import generator, single_thread
from privacy.accounting import best_of_epsilon, epsilon_of, round_up
from privacy.events import Events
from privacy.mechanisms.dp_sgd import DpSgdTraining
from simulations.benchmarks.readme import machine, table, write_section
from simulations.benchmarks.runs import CONFIGS, KEPT
from simulations.config import load_config
from simulations.datasets import mnist
from strategies.seeds import stream_seed

DELTA = 1e-5
# As Opacus' example scales its images: constants of public data.
STANDARDISED = replace(mnist.INPUTS, mean=(0.1307,), std=(0.3081,))


@dataclass(frozen=True, slots=True)
class Recipe:
    """One row of the table.

    Attributes:
        title: what the row is, and whose settings.
        model: a key of MODELS.
        private: clipping, noise and batches.
        epochs: expected passes over the private rows.
        lr, momentum: of SGD.
        band: accuracies within which the mean over the seeds must lie.
        published: accuracy, or None where nobody has published this set-up.
        rows: private rows; fewer than 60,000 are another draw for each seed.
        inputs: scaling of the pixels.
        seeds: of first weights, samples and noise.
    """

    title: str
    model: str
    private: DpSgdTraining
    epochs: int
    lr: float
    momentum: float
    band: tuple[float, float]
    published: float | None = None
    rows: int = 60_000
    inputs: ImageInputs = mnist.INPUTS
    seeds: tuple[int, ...] = (1, 2, 3)

    def events(self) -> Events:
        """What one run costs each of its records."""
        return self.private.fit_events(self.rows, self.epochs)

    def epsilon(self) -> float:
        """At DELTA, zero-out, as a plan."""
        return epsilon_of(self.events(), DELTA)


def _opacus(published: float, epochs: int, lr: float, noise: float, clip: float) -> Recipe:
    return Recipe(
        title="Opacus' MNIST example, its model and settings",
        model="cnn-opacus",
        private=DpSgdTraining(noise, clip, batch_size=240),
        epochs=epochs,
        lr=lr,
        momentum=0.0,
        band=(published - 0.01, published + 0.02),
        published=published,
        inputs=STANDARDISED,
        seeds=(1, 2),
    )


RECIPES = {
    "opacus-0.83": _opacus(0.9463, 15, 0.25, 1.3, 1.5),
    "opacus-2.30": _opacus(0.9678, 60, 0.15, 1.1, 1.0),
    "opacus-5.43": _opacus(0.9709, 45, 0.25, 0.7, 1.5),
    "scatter-linear": Recipe(
        title="scattering, linear head (Tramer and Boneh 2021, settings found here)",
        model="scatter-linear",
        private=DpSgdTraining(4.0566, 0.1, batch_size=8000, clipping="ghost"),
        epochs=60,
        lr=15.0,
        momentum=0.9,
        band=(0.982, 0.99),
        published=0.987,
        seeds=(1, 2, 3, 4, 5),
    ),
    "site": Recipe(
        title="one site of 5,000 rows alone, scattering, linear head",
        model="scatter-linear",
        private=DpSgdTraining(1.6747, 0.1, batch_size=500, clipping="ghost"),
        epochs=10,
        lr=20.0,
        momentum=0.0,
        band=(0.96, 0.975),
        rows=5_000,
    ),
}


@dataclass(frozen=True, slots=True)
class Search:
    """How a recipe was found: what was tried on the public test rows, and how often."""

    recipe: str
    tried: str
    trials: int


SEARCHES = (
    Search(
        "scatter-linear",
        "61 settings, the later ones with 3 or 4 seeds: batches of 2,048 to 16,384, 20 to 100 epochs, step sizes of "
        ".08 to 28, clipping at .03 to 10, a falling step size, averaged weights, sizes of groups, roots and "
        "logarithms, inhibition of neighbouring directions and pixels",
        141,
    ),
    Search(
        "site",
        "41 settings, each seed on other rows: batches of 250 to 5,000, 30 to 200 steps, step sizes of .2 to 30, with "
        "and without momentum, principal components of public rows, inhibition",
        41,
    ),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished run: share of the test rows that it names rightly, processor seconds of private training."""

    accuracy: float
    seconds: float


HEADING = (
    "model and settings",
    "rows",
    "epsilon",
    "DP-SGD",
    "published",
    "reached: mean (range)",
    "band",
    "seconds",
)
SEARCH_HEADING = ("recipe", "what was tried", "trials", "epsilon, all kept", "epsilon, the best of so many in the mean")
# What a kept run must have been made with; the rest of a recipe only says how it is told.
_SETTINGS = ("model", "private", "epochs", "lr", "momentum", "rows", "inputs")


def main() -> None:
    """Measure, print, and on request write the README's section."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="write the README's section")
    parser.add_argument("--only", default=",".join(RECIPES), help="some recipes, separated by commas")
    arguments = parser.parse_args()
    single_thread()
    rows = [row(RECIPES[name], outcomes(name, RECIPES[name])) for name in arguments.only.split(",")]
    text = "\n\n".join((table(HEADING, rows), _facts(), table(SEARCH_HEADING, [_price(each) for each in SEARCHES])))
    print(text)
    if arguments.write:
        write_section("dp-accuracy", text)


def outcomes(name: str, recipe: Recipe, folder: Path = KEPT / "dp-accuracy") -> list[Outcome]:
    """A run for each seed, from the folder or made now.

    Raises:
        RuntimeError: what is kept was made with other settings.
    """
    settings = {key: value for key, value in asdict(recipe).items() if key in _SETTINGS}
    settings, told = json.loads(json.dumps(settings)), []
    for seed in recipe.seeds:
        path = folder / f"{name}-{seed}.json"
        if not path.is_file():
            outcome = _trained(name, recipe, seed)
            print(f"{name} seed {seed}: {_hundredths(outcome.accuracy)} in {outcome.seconds:.0f} s", flush=True)
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps({**asdict(outcome), "settings": settings}, indent=1).encode())
        kept = json.loads(path.read_text())
        if kept["settings"] != settings:
            raise RuntimeError(
                f"{path} was made with other settings than the recipe has now: remove it to measure anew"
            )
        told.append(Outcome(kept["accuracy"], kept["seconds"]))
    return told


def _trained(name: str, recipe: Recipe, seed: int) -> Outcome:
    """One run. Its noise comes from a seed: NOT PRIVATE."""
    source = mnist.load(load_config(CONFIGS / "mnist.toml").data)
    assert source.images is not None  # noqa: S101 - MNIST is images
    assert source.test_rows is not None  # noqa: S101 - and has a test part
    images, labels = torch.from_numpy(source.images), torch.from_numpy(source.labels)
    test = torch.from_numpy(source.test_rows)
    others = np.setdiff1d(np.arange(len(source)), source.test_rows)
    # Ascending where all are taken: which rows a site has is then no matter of the seed.
    drawn = np.random.default_rng(stream_seed(seed, "rows")).permutation(others)[: recipe.rows]
    rows = torch.from_numpy(np.sort(drawn))
    learner = TorchLearner(
        build_model(recipe.model, recipe.inputs.shape, len(source.classes), stream_seed(seed, "model")),
        Training(lr=recipe.lr, momentum=recipe.momentum),
        recipe.inputs,
        Samples(images[test[:0]], None),
        Samples(images[rows], labels[rows]),
        torch.device("cpu"),
        PrivateTraining(recipe.private, seeded=True),
    )
    started = time.process_time()
    learner.fit(recipe.epochs, generator(stream_seed(seed, "dp-accuracy", name)))
    seconds = time.process_time() - started
    right = learner.logits(images[test]).argmax(axis=1) == labels[test].numpy()
    return Outcome(float(right.mean()), seconds)


def row(recipe: Recipe, told: Sequence[Outcome]) -> list[str]:
    """A recipe's line: its settings, what it costs, what it reached, and whether that is believable."""
    accuracies = [outcome.accuracy for outcome in told]
    mean, (low, high) = statistics.mean(accuracies), recipe.band
    verdict = "below" if mean < low else "above: is there noise?" if mean > high else "inside"
    private = recipe.private
    (event,) = recipe.events()
    return [
        recipe.title,
        f"{recipe.rows:,}",
        f"{round_up(recipe.epsilon()):.4f}",
        f"batch {private.batch_size}, {event.count:,} steps, noise {private.noise_multiplier}, "
        f"clip {private.clip_norm}, lr {recipe.lr}, momentum {recipe.momentum}",
        "" if recipe.published is None else _hundredths(recipe.published),
        f"{_hundredths(mean)} ({_hundredths(min(accuracies))} to {_hundredths(max(accuracies))}; {len(told)} seeds)",
        f"{_hundredths(low)} to {_hundredths(high)}: {verdict}",
        f"{statistics.mean(outcome.seconds for outcome in told):.0f}",
    ]


def _hundredths(share: float) -> str:
    return f"{100 * share:.2f} %"


def _facts() -> str:
    return (
        f"Record-level, zero-out, delta {DELTA:g}, as a plan, by privacy loss distributions; Poisson samples. Seeded "
        "simulations of one client: NOT PRIVATE. Test rows are the 10,000 of the files, whose split is not the "
        f"original one. Seconds are processor time of the private training on one thread, fixed features made anew in "
        f"each; {machine()}."
    )


def _price(search: Search) -> list[str]:
    events = RECIPES[search.recipe].events()
    every = [event for event in events for _ in range(search.trials)]
    return [
        RECIPES[search.recipe].title,
        search.tried,
        str(search.trials),
        _nats(epsilon_of(every, DELTA)),
        _nats(best_of_epsilon(events, DELTA, search.trials)),
    ]


def _nats(epsilon: float) -> str:
    """An epsilon, rounded up; the accountant computes none where none is of use."""
    return "above 100" if epsilon == math.inf else f"{round_up(epsilon, 2):.2f}"


if __name__ == "__main__":
    main()
