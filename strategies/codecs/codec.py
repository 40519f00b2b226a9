"""The seam: a codec turns a vote into a row of small symbols, symbols into bytes, and both back."""

from __future__ import annotations

from dataclasses import Field
from typing import Any, ClassVar, Protocol

from strategies.soft_labels import Float32, Int64, UInt8


class Codec(Protocol):
    """How votes become symbols and bytes.

    Implementations are frozen dataclasses whose fields are the settings.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def alphabets(self, classes: int) -> Int64:
        """[width] number of different symbols of each column of a row, each in [2, 256].

        Raises:
            ValueError: a number of classes that the codec cannot carry; all but `sum_tolerance` refuse it too.
        """
        ...

    def groups(self, classes: int) -> Int64:
        """[width] a number from 0; columns with the same number share statistics and hence one table."""
        ...

    def symbols(self, log_probs: Float32, rows: Int64) -> UInt8:
        """The votes as the codec rounds them.

        Args:
            log_probs: [n, classes] natural log, finite, normalised; floored at ln 1e-7.
            rows: [n] proxy row numbers, from 0; they only decide ties.

        Returns:
            [n, width] symbols, each below its column's alphabet.
        """
        ...

    def values(self, symbols: UInt8, classes: int) -> Float32:
        """The log-probabilities that symbols mean, not yet believed: a hostile sender may put NaN or infinity there.

        Args:
            symbols: [n, width] each below its column's alphabet.

        Returns:
            [n, classes] natural log.

        Raises:
            ValueError: symbols that `symbols` never makes.
        """
        ...

    def size(self, rows: int, classes: int) -> int:
        """Exact length of `pack` in bytes."""
        ...

    def pack(self, symbols: UInt8, classes: int) -> bytes:
        """[n, width] symbols of `symbols` in size(n, classes) bytes."""
        ...

    def unpack(self, payload: bytes, rows: int, classes: int) -> UInt8:
        """The symbols in `payload`.

        Returns:
            [rows, width] symbols, each below its column's alphabet.

        Raises:
            ValueError: a wrong length, or bytes that `pack` never makes.
        """
        ...

    def sum_tolerance(self, classes: int) -> float:
        """How far a row's decoded probabilities may sum from 1 through the codec's own rounding."""
        ...
