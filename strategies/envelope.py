"""What every message has around its body, and how a body is taken apart without trusting a length in it.

envelope   magic "CNSL" | version u8 | kind u8 | body length u32 | body | CRC-32 of everything before it
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from strategies.codecs import Link, link_named
from strategies.messages import Draw, LedgerHead
from strategies.row_sets import unpack_rows
from strategies.soft_labels import Float64, Int64

MAGIC, VERSION = b"CNSL", 3
PLAN, REPORT, REFUSAL = 1, 2, 3
# Their bodies are those of client.sum_wire: what they carry is no strategy's.
SUM_REQUEST, SUM_ANSWER, SUM_INPUT = 4, 5, 6
HEAD = struct.Struct("<4sBBI")

# Why bytes, or the votes in them, are not believed.
REASONS = (
    "too_large",  # more bytes than any legal message of this run
    "foreign",  # not our magic, or a kind that is not expected here
    "truncated",  # shorter than it says, or longer
    "corrupted",  # the checksum does not match
    "version",  # another version of the wire
    "malformed",  # a field that breaks its own rule
    "wrong_run",
    "wrong_round",
    "wrong_client",
    "proxy_hash",  # the sender's proxy set is another one
    "class_list",  # other classes, or the same in another order
    "shape",  # another number of classes or of rows
    "rows",  # other rows than the ones asked
    "codec",  # another codec than the plan's: a wrong dtype
    "base",  # a difference to something that this side does not hold
    "extras",  # scores or counts that were not asked, or are missing
    "non_finite",  # NaN or Inf
    "not_simplex",  # a row that is no distribution
    "weight",
)


class WireError(ValueError):
    """Bytes that are not believed; `reason` is one of REASONS."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


def seal(kind: int, body: bytes) -> bytes:
    """A body as a message."""
    message = HEAD.pack(MAGIC, VERSION, kind, len(body)) + body
    return message + struct.pack("<I", zlib.crc32(message))


def kind_of(blob: bytes) -> int:
    """What a message says that it is; -1 for bytes that are none of ours."""
    return blob[5] if len(blob) >= HEAD.size and blob[:4] == MAGIC else -1


def opened(blob: bytes, kind: int) -> Reader:
    """Check the envelope and hand out its body.

    Raises:
        WireError: `foreign`, `truncated`, `version` or `corrupted`.
    """
    if blob[:4] != MAGIC[: len(blob)] or not blob:
        raise WireError("foreign", "these bytes do not begin as a message of ours")
    if len(blob) < HEAD.size + 4:
        raise WireError("truncated", f"{len(blob)} bytes are less than an envelope")
    _, version, found, length = HEAD.unpack_from(blob)
    if version != VERSION:
        raise WireError("version", f"wire version {version}; {VERSION} is spoken here")
    if len(blob) != HEAD.size + length + 4:
        raise WireError("truncated", f"{len(blob)} bytes where {HEAD.size + length + 4} were announced")
    if zlib.crc32(blob[:-4]) != struct.unpack("<I", blob[-4:])[0]:
        raise WireError("corrupted", "the checksum does not match")
    if found != kind:
        raise WireError("foreign", f"kind {found} where {kind} is expected")
    return Reader(blob[HEAD.size : -4])


def name_field(text: str) -> bytes:
    """length u8 | UTF-8.

    Raises:
        ValueError: a name that `Reader.name` would refuse.
    """
    # First what cannot even be encoded: a lone surrogate is not printable.
    if not text.isprintable() or not 1 <= len(data := text.encode()) <= 255:
        raise ValueError(f"name {text!r} must be printable and have 1 to 255 bytes of UTF-8")
    return bytes([len(data)]) + data


def payload_field(data: bytes) -> bytes:
    """length u32 | bytes of a codec."""
    return struct.pack("<I", len(data)) + data


def scores_field(scores: Float64) -> bytes:
    """One byte a score: eight steps a halving, since only ratios count; 255 is 0, and so is what is below 2^-31."""
    with np.errstate(divide="ignore"):
        steps = np.rint(-8.0 * np.log2(scores))
    return np.where(steps > 254, 255, steps).astype(np.uint8).tobytes()


def ledger_field(head: LedgerHead | None) -> bytes:
    """seq u64 | digest 32; nothing without a head."""
    return b"" if head is None else struct.pack("<Q", head.seq) + head.digest


class Reader:
    """Takes fields off a body; every length is compared with what is really there before memory is taken."""

    def __init__(self, body: bytes) -> None:
        self._body, self._at = body, 0

    def take(self, count: int) -> bytes:
        """The next bytes."""
        if count > len(self._body) - self._at:
            raise WireError("truncated", f"a field of {count} bytes where {len(self._body) - self._at} are left")
        piece = self._body[self._at : self._at + count]
        self._at += count
        return piece

    def number(self, form: str) -> int:
        """One number of a struct format."""
        return int(struct.unpack(form, self.take(struct.calcsize(form)))[0])

    def name(self) -> str:
        """The inverse of `name_field`."""
        data = self.take(self.number("<B"))
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise WireError("malformed", "a name that is not UTF-8") from error
        if not text or not text.isprintable():
            raise WireError("malformed", "a name that is empty or not printable")
        return text

    def link(self, classes: int) -> Link:
        """A link by name that can carry so many classes."""
        name = self.name()
        try:
            link = link_named(name)
            link.codec.alphabets(classes)
        except (KeyError, ValueError) as error:
            raise WireError("codec", f"no codec here of that name takes {classes} classes") from error
        return link

    def payload(self) -> bytes:
        """The inverse of `payload_field`."""
        return self.take(self.number("<I"))

    def bitmap(self) -> NDArray[np.bool_]:
        """number of bits u32 | bits, zeros to a byte."""
        count = self.number("<I")
        packed = np.frombuffer(self.take((count + 7) // 8), np.uint8)
        bits = np.unpackbits(packed, count=count).astype(bool)
        if np.packbits(bits).tobytes() != packed.tobytes():
            raise WireError("malformed", "a bitmap with bits beyond its end")
        return bits

    def scores(self, rows: int) -> Float64:
        """The inverse of `scores_field`: [rows] in [0, 1], each within 4.5 % of what was sent, or 0."""
        steps = np.frombuffer(self.take(rows), np.uint8)
        return np.where(steps == 255, 0.0, 2.0 ** (-steps.astype(np.float64) / 8.0))

    def counts(self, classes: int) -> Float64:
        """[classes] float32, whatever they hold; a signalling NaN becomes a quiet one without a warning."""
        with np.errstate(invalid="ignore"):
            return np.frombuffer(self.take(4 * classes), "<f4").astype(np.float64)

    def ledger(self) -> LedgerHead | None:
        """The inverse of `ledger_field`, which is the last one: there is no head where nothing is left."""
        if self._at == len(self._body):
            return None
        seq = self.number("<Q")
        if not 1 <= seq < 2**63:
            raise WireError("malformed", f"a ledger with {seq} rows")
        return LedgerHead(seq, self.take(32))

    def rows(self, most: int) -> tuple[Int64, Draw | None]:
        """A set of rows below `most`: see strategies.row_sets."""
        try:
            return unpack_rows(self.take, most)
        except WireError:
            raise
        except ValueError as error:
            raise WireError("rows", str(error)) from error

    def end(self) -> None:
        """Nothing may be left."""
        if self._at != len(self._body):
            raise WireError("truncated", f"{len(self._body) - self._at} bytes too many")
