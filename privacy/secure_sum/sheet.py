"""What is summed: votes on a public grid, as whole numbers modulo a power of two that their sum cannot reach."""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privacy.secure_sum.keys import digest
from privacy.secure_sum.masks import Words, word_type

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

# Up to here every sum of steps is a float64.
_MOST_BITS = 53
_LARGEST = 2**31 - 1
_HASH = re.compile(r"[0-9a-f]{64}")
_FIELDS = struct.Struct("<II?dddQ32s")


@dataclass(frozen=True, slots=True)
class Sheet:
    """The public form that every client fills in: which numbers, and how fine.

    Attributes:
        rows, columns: of the votes.
        about: 64 hex digits that name what is voted on, for example the hash of the plan without its addressee: masks
            cancel only between clients that were told the same.
        counted: with a column that says who voted on a row, for means over those. Who alone votes on a row is then
            seen by the server: leave it out where every client votes on every row.
        low, high: the votes' range, multiples of `step`.
        step: of the grid, a power of two.
        headroom: how far, in steps, noise in the inputs may move a sum; beyond it the sum wraps around, which costs
            accuracy and not privacy. 0: inputs are on the grid and in the range, or they are refused.

    Raises:
        ValueError: a field that breaks its rule.
    """

    rows: int
    columns: int
    about: str
    counted: bool = True
    low: float = 0.0
    high: float = 1.0
    step: float = 2.0**-12
    headroom: int = 0

    def __post_init__(self) -> None:
        for name, value in (("rows", self.rows), ("columns", self.columns)):
            if not 1 <= value <= _LARGEST:
                raise ValueError(f"{name}={value} must be in [1, {_LARGEST}]")
        if not _HASH.fullmatch(self.about):
            raise ValueError(f"about={self.about!r} must be 64 hex digits: use a SHA-256")
        if not (math.isfinite(self.step) and self.step > 0.0 and math.frexp(self.step)[0] == 0.5):
            raise ValueError(f"step={self.step} must be a power of two, as 2**-12: sums are then exact")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"low={self.low} must be below high={self.high}, both finite")
        for name, bound in (("low", self.low), ("high", self.high)):
            if not abs(bound / self.step) <= _LARGEST or not (bound / self.step).is_integer():
                raise ValueError(f"{name}={bound} must be a multiple of step={self.step}, at most {_LARGEST} steps")
        if not 0 <= self.headroom < 2**_MOST_BITS:
            raise ValueError(f"headroom={self.headroom} must be in [0, 2^{_MOST_BITS}) steps")

    @property
    def shape(self) -> tuple[int, int]:
        """Of an input: the votes, and the count where there is one."""
        return self.rows, self.columns + self.counted

    @property
    def entries(self) -> int:
        """Numbers in an input."""
        return self.shape[0] * self.shape[1]

    @property
    def digest(self) -> bytes:
        """32 bytes that name this very sheet."""
        told = (self.rows, self.columns, self.counted, self.low, self.high, self.step, self.headroom)
        return digest(b"sheet", _FIELDS.pack(*told, bytes.fromhex(self.about)))

    def limits(self, clients: int) -> tuple[int, int]:
        """The least and the greatest sum of so many clients' inputs, in steps."""
        least = clients * min(self._steps(self.low), 0) - self.headroom
        greatest = max(clients * max(self._steps(self.high), 0) + self.headroom, clients * self.counted)
        return least, greatest

    def bits(self, clients: int) -> int:
        """k: sums of so many clients' inputs are all different modulo 2^k.

        Raises:
            ValueError: more than 53; a float64 could not hold every sum.
        """
        least, greatest = self.limits(clients)
        bits = (greatest - least).bit_length()
        if bits > _MOST_BITS:
            raise ValueError(
                f"sums of {clients} clients need {bits} bits and {_MOST_BITS} are exact: take a larger step than "
                f"{self.step}, a smaller range or less headroom"
            )
        return bits

    def quantised(self, votes: Float64, voted: NDArray[np.bool_] | None = None) -> Int64:
        """[rows, columns] votes as an input: the nearest steps, halves to the even one; 0 on rows without a vote.

        Args:
            voted: [rows] which rows are votes; the others' values are not looked at. None: all.

        Raises:
            ValueError: another shape, a vote that is not finite or outside the range, or no vote on a row of a sheet
                without counts.

        Guarantees:
            No entry moves by more than step / 2, and no matrix by more than step * sqrt(entries) / 2 in L2.

        >>> quarters = Sheet(rows=2, columns=2, about="ab" * 32, step=0.25)
        >>> quarters.quantised(np.array([[0.3, 0.7], [9.0, 9.0]]), np.array([True, False])).tolist()
        [[1, 3, 1], [0, 0, 0]]
        """
        voted = np.ones(self.rows, bool) if voted is None else voted
        if votes.shape != (self.rows, self.columns) or voted.shape != (self.rows,):
            raise ValueError(
                f"votes are {list(votes.shape)} on {list(voted.shape)} rows; [{self.rows}, {self.columns}] asked"
            )
        if not self.counted and not voted.all():
            raise ValueError("a sheet without counts takes a vote on every row: set counted=True to abstain")
        given = votes[voted]
        if not ((given >= self.low) & (given <= self.high)).all():  # NaN is neither
            raise ValueError(f"a vote is not in [{self.low}, {self.high}]: clip before the sum")
        steps = np.zeros(self.shape, np.int64)
        steps[voted, : self.columns] = np.rint(given / self.step)
        if self.counted:
            steps[:, self.columns] = voted
        return steps

    def ring(self, steps: Int64, clients: int) -> Words:
        """[entries] an input as numbers modulo 2^bits, in words whose low bits count.

        Raises:
            ValueError: another shape; without headroom also an entry outside the range.
        """
        if steps.shape != self.shape or steps.dtype != np.int64:
            raise ValueError(f"an input is {steps.dtype}{list(steps.shape)}; int64{list(self.shape)} is asked")
        # With noise, to refuse what is far out would itself tell something of the input: it wraps around.
        if not self.headroom:
            votes, counts = steps[:, : self.columns], steps[:, self.columns :]
            low, high = min(self._steps(self.low), 0), max(self._steps(self.high), 0)
            if votes.min() < low or votes.max() > high or not ((counts == 0) | (counts == 1)).all():
                raise ValueError(f"an input outside [{low}, {high}] steps, or a count that is not 0 or 1")
        words: Words = steps.ravel().astype(word_type(self.bits(clients)))
        return words

    def total(self, words: Words, clients: int) -> Int64:
        """[rows, columns] the sum in steps, from [entries] words whose low bits count: the inverse of `ring`."""
        least, _ = self.limits(clients)
        mask = (1 << self.bits(clients)) - 1
        wide = words.astype(np.uint64).view(np.int64)
        steps: Int64 = (((wide - least) & mask) + least).reshape(self.shape)
        return steps

    def _steps(self, bound: float) -> int:
        return int(bound / self.step)


@dataclass(frozen=True, slots=True, eq=False)
class Total:
    """A sum, as far as the server knows it.

    Attributes:
        steps: [rows, columns] sums of votes, on the grid; with counts one column more.
        sheet: what was filled in.
        clients: whose inputs are in it, by name.
    """

    steps: Int64
    sheet: Sheet
    clients: tuple[str, ...]

    @property
    def votes(self) -> Float64:
        """[rows, columns] sums of the quantised votes; exact."""
        return np.multiply(self.steps[:, : self.sheet.columns], self.sheet.step, dtype=np.float64)

    @property
    def counts(self) -> Int64:
        """[rows] how many voted.

        Raises:
            ValueError: nobody was counted.
        """
        if not self.sheet.counted:
            raise ValueError("this sheet has no counts: divide by a public number of clients")
        return self.steps[:, self.sheet.columns]

    def means(self, needed: int = 1) -> tuple[Int64, Float64]:
        """Rows with at least `needed` votes, 1 or more, and [n', columns] the mean of their votes.

        Raises:
            ValueError: nobody was counted, or needed is below 1.
        """
        if needed < 1:
            raise ValueError(f"needed={needed} must be 1 or more: a mean of no votes is none")
        rows = np.flatnonzero(self.counts >= needed)
        return rows, self.votes[rows] / self.counts[rows, None]
