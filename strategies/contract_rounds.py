"""Small rounds that a rule is tried on: usual ones, and those at which rules break."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from strategies.aggregator import Ballot
from strategies.messages import ClientReport
from strategies.soft_labels import Float64, Int64, SoftLabels

CLASSES = 7
# Fewer rows than classes and none of them beyond, so that rows may also be class numbers (per-class tables).
ROWS: Int64 = np.array([0, 2, 3, 4, 6])


@dataclass(frozen=True, slots=True)
class Round:
    """A ballot and reports on it, with a name for messages."""

    name: str
    ballot: Ballot
    reports: tuple[ClientReport, ...]


def small_rounds(rng: Generator) -> Iterator[Round]:
    """Some sixteen rounds of 1 to 14 clients."""
    for clients, needed in ((1, 1), (2, 1), (2, 2), (3, 2), (6, 1), (14, 3)):
        ballot = Ballot(ROWS, CLASSES, clients, needed, seed=int(rng.integers(2**63)))
        yield Round(f"{clients} clients", ballot, reports_of(rng, some_votes(rng, clients)))
        mask = rng.random((clients, len(ROWS))) < 0.6
        mask[:, 0], mask[2:3] = False, False  # a row without a vote, a client without one
        yield Round(f"{clients} clients with abstentions", ballot, reports_of(rng, some_votes(rng, clients), mask))
    sure = np.full((4, len(ROWS), CLASSES), 1e-300)
    np.put_along_axis(sure, rng.integers(CLASSES, size=(4, len(ROWS), 1)), 1.0, axis=2)
    uniform = np.full((4, len(ROWS), CLASSES), 1.0 / CLASSES)
    extremes = {"certain votes": sure, "uniform votes": uniform, "equal certain votes": sure[[0, 0, 0, 0]]}
    for name, votes in extremes.items():
        yield Round(name, Ballot(ROWS, CLASSES, 4, 2), reports_of(rng, votes))
    mistrusted = [replace(report, weight=np.zeros(len(ROWS))) for report in reports_of(rng, some_votes(rng, 3))]
    yield Round("votes that nobody trusts", Ballot(ROWS, CLASSES, 3, 2), tuple(mistrusted))


def some_votes(rng: Generator, clients: int) -> Float64:
    """[clients, rows, classes] probabilities, drawn."""
    return rng.dirichlet(np.full(CLASSES, 0.5), (clients, len(ROWS))) + 1e-9


def reports_of(rng: Generator, votes: Float64, mask: NDArray[np.bool_] | None = None) -> tuple[ClientReport, ...]:
    """Reports c0, c1, ... with all that a rule may ask for; every third one has a weight for each row."""
    reports = []
    for index, vote in enumerate(votes):
        voted = np.ones(len(ROWS), bool) if mask is None else mask[index]
        count = int(voted.sum())
        labels = SoftLabels.from_logits(ROWS[voted], np.log(vote[voted]))
        weight = rng.uniform(0.1, 1.0, count) if index % 3 == 2 else float(rng.uniform(0.1, 1.0))
        scores, counts = rng.uniform(0.0, 1.0, count), np.floor(rng.uniform(0.0, 50.0, CLASSES))
        reports.append(ClientReport(f"c{index}", 1, labels, weight, scores, counts))
    return tuple(reports)
