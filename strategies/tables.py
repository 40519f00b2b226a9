"""A table of symbols by row that both ends of a link hold, so that only differences have to travel."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from strategies.soft_labels import Int64, UInt8


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Symbols of every row as of some round.

    Attributes:
        round: of the message that last changed it; 0: nothing was ever sent.
        symbols: [total, width]; 0 where nothing was sent yet, so that a difference to it is the symbol itself.
    """

    round: int
    symbols: UInt8

    @classmethod
    def empty(cls, total: int, width: int) -> Table:
        """What both ends hold before the first message."""
        return cls(0, np.zeros((total, width), np.uint8))

    def changed(self, round_: int, rows: Int64, symbols: UInt8) -> Table:
        """The table after a message of `round_`; this one stays as it was."""
        after = self.symbols.copy()
        after[rows] = symbols
        return Table(round_, after)

    def digest(self, rows: Int64) -> bytes:
        """8 bytes over these rows and their symbols."""
        return symbols_digest(rows, self.symbols[rows])


def symbols_digest(rows: Int64, symbols: UInt8) -> bytes:
    """8 bytes over rows and their symbols: what two honest ends compare; no defence against a forger."""
    digest = hashlib.sha256(np.ascontiguousarray(rows, "<i8").tobytes())
    digest.update(np.ascontiguousarray(symbols).tobytes())
    return digest.digest()[:8]
