"""Codecs: soft labels to bytes and back. A new codec is one file here, one line below, one test row.

A link is a codec and what is done to its symbols on the way, spelt NAME[:NUMBER][+delta][+entropy]: `float16`,
`top-k:4+entropy`, `quantised:1+delta+entropy`. With entropy coding a payload is what strategies.codecs.entropy makes,
or, where that is longer, a byte of 0 and the codec's own bytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from strategies.codecs.codec import Codec
from strategies.codecs.entropy import compress, expand
from strategies.codecs.float16 import Float16
from strategies.codecs.float32 import Float32Codec
from strategies.codecs.quantised import Quantised
from strategies.codecs.top_k import TopK
from strategies.soft_labels import UInt8

CODECS: dict[str, type[Codec]] = {
    "float32": Float32Codec,
    "float16": Float16,
    "quantised": Quantised,
    "top-k": TopK,
}
_SPEC = re.compile(r"([a-z0-9-]+)(?::(0|[1-9][0-9]{0,4}))?(\+delta)?(\+entropy)?")


@dataclass(frozen=True, slots=True)
class Link:
    """A codec and its options.

    Attributes:
        spec: its one spelling; `link_named(spec)` gives the same link.
        delta: symbols travel as differences to the ones the receiver has; 0 means unchanged.
        entropy: symbols are entropy coded, so that the length depends on them.
    """

    spec: str
    codec: Codec
    delta: bool
    entropy: bool

    def encode(self, symbols: UInt8, classes: int) -> bytes:
        """[n, width] symbols of the codec as bytes."""
        if not self.entropy:
            return self.codec.pack(symbols, classes)
        coded = compress(symbols, self.codec.alphabets(classes), self.codec.groups(classes))
        if len(coded) <= self.most_bytes(len(symbols), classes):
            return coded
        return b"\0" + self.codec.pack(symbols, classes)

    def encode_difference(self, symbols: UInt8, reference: UInt8, classes: int) -> bytes:
        """What `difference` gives, entropy coded; `decode` takes it back if it has no more than most_bytes.

        Not packed, however long: a difference of levels need not be a row that `quantised` can number.
        """
        changes = self.difference(symbols, reference, classes)
        return compress(changes, self.codec.alphabets(classes), self.codec.groups(classes))

    def decode(self, payload: bytes, rows: int, classes: int) -> UInt8:
        """The inverse of `encode` and `encode_difference`: [rows, width] symbols, each below its column's alphabet.

        Args:
            rows: from somebody trusted; with entropy coding a short payload may stand for many rows.

        Raises:
            ValueError: more than most_bytes, or bytes that neither makes.
        """
        if not self.entropy:
            return self.codec.unpack(payload, rows, classes)
        if len(payload) > (most := self.most_bytes(rows, classes)):
            raise ValueError(f"payload has {len(payload)} bytes; at most {most} expected")
        if payload[:1] != b"\0":
            return expand(payload, rows, self.codec.alphabets(classes), self.codec.groups(classes))
        symbols = self.codec.unpack(payload[1:], rows, classes)
        if self.encode(symbols, classes) != payload:
            raise ValueError("these symbols are packed where coding them takes no more")
        return symbols

    def most_bytes(self, rows: int, classes: int) -> int:
        """The length of `encode`: an upper bound with entropy coding, else exact."""
        return self.codec.size(rows, classes) + self.entropy

    def difference(self, symbols: UInt8, reference: UInt8, classes: int) -> UInt8:
        """(symbols - reference) modulo each column's alphabet; a row that the receiver lacks has reference 0."""
        return self._modulo(symbols.astype(np.int16) - reference, classes)

    def apply(self, difference: UInt8, reference: UInt8, classes: int) -> UInt8:
        """The inverse of `difference`: the symbols that are `difference` away from `reference`."""
        return self._modulo(difference.astype(np.int16) + reference, classes)

    def _modulo(self, numbers: NDArray[np.int16], classes: int) -> UInt8:
        return (numbers % self.codec.alphabets(classes).astype(np.int16)).astype(np.uint8)


@lru_cache
def link_named(spec: str) -> Link:
    """The link of that spelling.

    Raises:
        KeyError: an unknown codec; the message lists the known ones.
        ValueError: another spelling, or a number that the codec does not take.

    >>> link_named("quantised:1+delta+entropy").codec
    Quantised(bits=1)
    """
    name = spec.partition(":")[0].partition("+")[0]
    if name not in CODECS:
        raise KeyError(f"unknown codec {name!r}; known: {', '.join(sorted(CODECS))}")
    parts = _SPEC.fullmatch(spec)
    if parts is None:
        raise ValueError(f"codec {spec!r} must be spelt NAME[:NUMBER][+delta][+entropy], as top-k:4+delta+entropy")
    _, number, delta, entropy = parts.groups()
    settings = [field.name for field in fields(CODECS[name])]
    if settings and number is None:
        raise ValueError(f"codec {spec!r} needs its {settings[0]}: write {spec.replace(name, name + ':NUMBER', 1)}")
    if number and not settings:
        raise ValueError(f"codec {spec!r} takes no number: write {spec.replace(':' + number, '', 1)}")
    if delta and not entropy:
        raise ValueError(f"codec {spec!r} saves nothing, unchanged rows cost as much as others: write {spec}+entropy")
    codec = CODECS[name](*([int(number)] if number else []))
    return Link(spec, codec, delta=bool(delta), entropy=bool(entropy))
