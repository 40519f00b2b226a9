"""Trust in votes, row by row, as a step before any rule."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from strategies.aggregator import Weighting
from strategies.messages import ClientReport


def weighed(reports: Iterable[ClientReport], weighting: Weighting) -> Iterator[ClientReport]:
    """The same reports, their weight times what the weighting says of each of their rows; one at a time."""
    for report in reports:
        yield replace(report, weight=report.weight * weighting.weights(report))
