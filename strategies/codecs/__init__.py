"""Codecs: log-probabilities to bytes and back. A new codec is one file here, one line below, one test row."""

from __future__ import annotations

from typing import Protocol

from strategies.codecs.float16 import Float16
from strategies.codecs.float32 import Float32Codec
from strategies.soft_labels import Float32


class Codec(Protocol):
    """How votes become bytes."""

    def size(self, rows: int, classes: int) -> int:
        """Exact length in bytes of an encoded [rows, classes] block."""
        ...

    def sum_tolerance(self, classes: int) -> float:
        """How far a decoded row's probabilities may sum from 1 through the codec's own rounding."""
        ...

    def encode(self, log_probs: Float32) -> bytes:
        """[n, classes] log-probabilities to bytes, floored at ln 1e-7."""
        ...

    def decode(self, payload: bytes, rows: int, classes: int) -> Float32:
        """The raw values that were sent, not yet believed: a hostile sender may have put anything there.

        Raises:
            ValueError: the payload is not size(rows, classes) bytes long.
        """
        ...


CODECS: dict[str, Codec] = {
    "float32": Float32Codec(),
    "float16": Float16(),
}


def codec_named(name: str) -> Codec:
    """The codec of that name.

    Raises:
        KeyError: unknown name; the message lists the known ones.
    """
    if name not in CODECS:
        raise KeyError(f"unknown codec {name!r}; known: {', '.join(sorted(CODECS))}")
    return CODECS[name]
