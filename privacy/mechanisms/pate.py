"""PATE inside one client: noisy votes of teachers that were trained on disjoint parts of its records."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from privacy.events import Events, Gaussian
from privacy.mechanisms.mechanism import (
    Bool,
    Float64,
    Int64,
    Noise,
    positive,
    renormalised,
    simplex_rows,
    whole,
)


def shards(records: int, teachers: int, keys: Sequence[str | int] | None = None) -> Int64:
    """Which teacher may see which record.

    Args:
        records: n.
        teachers: K.
        keys: [n] ids given when the records were taken in, the same for all rows of a patient; never content or label.
            None deals by position, which is sound only where n is fixed and public.

    Returns:
        [n] teacher of each record, from 0 to K - 1. A teacher may be left with none: it then votes uniformly.

    Raises:
        ValueError: no teacher, a negative n, or another number of keys than records.

    Guarantees:
        With keys, a record's teacher does not depend on any other record, and one key has one teacher.

    >>> shards(5, 2).tolist(), len(set(shards(3, 10, ["p7", "p7", "p7"]).tolist()))
    ([0, 1, 0, 1, 0], 1)
    """
    whole("teachers", teachers, 1)
    whole("records", records, 0)
    if keys is None:
        return np.arange(records, dtype=np.int64) % teachers
    if len(keys) != records:
        raise ValueError(f"keys has {len(keys)} entries for {records} records: one each")
    digests = (hashlib.sha256(str(key).encode()).digest() for key in keys)
    return np.array([int.from_bytes(digest, "little") % teachers for digest in digests], dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Pate:
    """Soft votes with Gaussian noise (Papernot et al. 2017, 2018), optionally behind the confident gate.

    One record changes one teacher, and so one row of the sum from u to v in the simplex:
    |u - v|^2 = |u|^2 + |v|^2 - 2 uv <= 2. The largest entry of the sum moves by at most 1.

    Attributes:
        teachers: K, at least 1.
        vote_std: sigma_v, standard deviation of the noise on each entry of the sum of votes.
        gate_std: sigma_g of the gate; None answers every row.
        threshold: the gate answers where the largest sum plus noise is at least this.
        hard: release only which class has the most noisy votes (GNMax); the same price for less.

    Raises:
        ValueError: a parameter out of range, or only one of gate_std and threshold.
    """

    WORTH: ClassVar[str] = (
        "for models that dp-sgd cannot train: at equal epsilon dp-sgd is better (digits at epsilon 3: .77 against .15, "
        "tabular .730 against .65), and a row is of little use unless the teachers are 5 times the noise per vote"
    )
    UNIT: ClassVar[str] = "record"
    ADJACENCY: ClassVar[str] = "zero_out"
    BASELINE: ClassVar[bool] = False
    teachers: int
    vote_std: float
    gate_std: float | None = None
    threshold: float | None = None
    hard: bool = False

    def __post_init__(self) -> None:
        whole("teachers", self.teachers, 1)
        positive("vote_std", self.vote_std)
        if (self.gate_std is None) != (self.threshold is None):
            raise ValueError(f"gate_std={self.gate_std} and threshold={self.threshold} must be given together")
        if self.gate_std is not None and self.threshold is not None:
            positive("gate_std", self.gate_std)
            positive("threshold", self.threshold)

    def sensitivity(self, rows: int) -> float:
        """Of the whole matrix of summed votes: sqrt(2 rows)."""
        return math.sqrt(2.0 * rows)

    def gate_events(self, rows: int) -> Events:
        """The cost of asking the gate about `rows` rows."""
        if not whole("rows", rows, 0) or self.gate_std is None:
            return ()
        return (Gaussian(self.gate_std, rows),)

    def vote_events(self, rows: int) -> Events:
        """The cost of releasing votes on `rows` rows."""
        return (Gaussian(self.vote_std / math.sqrt(2.0), rows),) if whole("rows", rows, 0) else ()

    def events(self, rows: int) -> Events:
        """The cost of `rows` asked rows in a plan: each is charged as answered.

        How many the gate lets through depends on records. Only a filter may charge gate_events(asked) first and
        vote_events(answered) once the gate's outcome, itself a paid release, is known.
        """
        return self.gate_events(rows) + self.vote_events(rows)

    def gate(self, votes: Float64, noise: Noise) -> Bool:
        """Which rows the teachers agree on well enough to answer; paid by gate_events.

        Args:
            votes: [teachers, n, classes] probabilities.

        Returns:
            [n] True where the row is answered; all of them without a gate.

        Raises:
            ValueError: a shape.
        """
        totals = self._totals(votes)
        rows = len(totals)
        if self.gate_std is None or self.threshold is None or not rows:
            return np.ones(rows, dtype=np.bool_)
        root = math.sqrt(rows)
        answered: Bool = noise.gaussian(totals.max(axis=1), root, self.gate_std / root) >= self.threshold
        return answered

    def release(self, votes: Float64, noise: Noise) -> Float64:
        """Noisy teacher of these rows; paid by vote_events.

        Args:
            votes: [teachers, n, classes] probabilities on the rows that are answered. A row that is no distribution
                becomes one, a row that is not finite the uniform one.

        Returns:
            [n, classes] distributions: noisy sums clipped to [0, K] and renormalised, or one-hot if `hard`.

        Raises:
            ValueError: a shape.
        """
        totals = self._totals(votes)
        if not len(totals):
            return totals
        sensitivity = self.sensitivity(len(totals))
        noised = noise.gaussian(totals, sensitivity, self.vote_std / sensitivity)
        if self.hard:
            one_hot: Float64 = np.eye(totals.shape[1])[noised.argmax(axis=1)]
            return one_hot
        return renormalised(noised, float(self.teachers))

    def _totals(self, votes: Float64) -> Float64:
        if np.ndim(votes) != 3 or len(votes) != self.teachers:
            raise ValueError(f"votes have shape {list(np.shape(votes))}: [{self.teachers}, n, classes] expected")
        totals: Float64 = simplex_rows(votes).sum(axis=0)
        return totals
