"""Bytes of the messages, version 1: fixed little-endian fields, then a codec's payload. No pickle, no names to import.

envelope   magic "CNSL" | version u8 | kind u8 | body length u32 | body | CRC-32 of everything before it
plan       run 16 | round u32 | proxy 32 | classes 32 | classes u32 | codec name | asked rows | teacher?
report     run 16 | round u32 | proxy 32 | classes 32 | rows digest 32 | classes u32 | client | weight f32 | votes
refusal    run 16 | round u32 | client | code
rows       count u32 | width u8 | first u32 | gaps of that width
votes      codec name | rows u32 | payload
name       length u8 | UTF-8
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass

import numpy as np

from strategies.codecs import CODECS, codec_named
from strategies.messages import REFUSALS, ClientReport, Refusal, RoundPlan
from strategies.soft_labels import Float32, Int64, SoftLabels

MAGIC, VERSION = b"CNSL", 1
_PLAN, _REPORT, _REFUSAL = 1, 2, 3
_ENVELOPE = struct.Struct("<4sBBI")

# Why bytes, or the votes in them, are not believed. The order is the order in which they are checked.
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
    "non_finite",  # NaN or Inf
    "not_simplex",  # a row that is no distribution
    "weight",
)


class WireError(ValueError):
    """Bytes that are not believed; `reason` is one of REASONS."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


@dataclass(frozen=True, slots=True, eq=False)
class RawVotes:
    """Votes as they came, structure checked, values not: [n, classes] float32 in the order of the asked rows."""

    codec: str
    values: Float32


@dataclass(frozen=True, slots=True, eq=False)
class RawReport:
    """A report as it came: every claim of the sender, nothing compared with the plan yet."""

    run: str
    round: int
    proxy_sha256: str
    classes_sha256: str
    rows_sha256: str
    client: str
    weight: float
    votes: RawVotes


def rows_sha256(rows: Int64) -> str:
    """64 hex digits over the row numbers in order."""
    return hashlib.sha256(np.ascontiguousarray(rows, "<i8").tobytes()).hexdigest()


def encode_plan(plan: RoundPlan) -> bytes:
    """A plan as bytes; the teacher travels in the plan's codec."""
    body = b"".join(
        (
            bytes.fromhex(plan.run),
            struct.pack("<I", plan.round),
            bytes.fromhex(plan.proxy_sha256),
            bytes.fromhex(plan.classes_sha256),
            struct.pack("<I", plan.classes),
            _name(plan.codec),
            _rows(plan.ask_rows),
            b"\x00" if plan.teacher is None else b"\x01" + _rows(plan.teacher.rows),
            b"" if plan.teacher is None else _votes(plan.codec, plan.teacher),
        )
    )
    return _seal(_PLAN, body)


def decode_plan(blob: bytes) -> RoundPlan:
    """The plan in `blob`.

    Raises:
        WireError: anything that is not a whole, well-formed plan with a believable teacher.
    """
    reader = _open(blob, _PLAN)
    run, round_ = reader.take(16).hex(), reader.number("<I")
    proxy, classes_digest = reader.take(32).hex(), reader.take(32).hex()
    classes = reader.number("<I")
    codec = reader.name()
    if codec not in CODECS:
        raise WireError("codec", "a codec that is not known here")
    ask_rows = reader.rows()
    teacher = None
    if reader.number("<B"):
        teacher_rows = reader.rows()
        teacher = believe(teacher_rows, reader.votes(len(teacher_rows), classes))
    reader.end()
    try:
        return RoundPlan(run, round_, proxy, classes_digest, classes, codec, ask_rows, teacher)
    except ValueError as error:
        raise WireError("malformed", str(error)) from error


def encode_report(report: ClientReport, plan: RoundPlan) -> bytes:
    """A report as the answer to `plan`, in the plan's codec."""
    body = b"".join(
        (
            bytes.fromhex(plan.run),
            struct.pack("<I", report.round),
            bytes.fromhex(plan.proxy_sha256),
            bytes.fromhex(plan.classes_sha256),
            bytes.fromhex(rows_sha256(report.soft_labels.rows)),
            struct.pack("<I", report.soft_labels.classes),
            _name(report.client),
            struct.pack("<f", report.weight),
            _votes(plan.codec, report.soft_labels),
        )
    )
    return _seal(_REPORT, body)


def encode_refusal(refusal: Refusal, run: str) -> bytes:
    """A refusal as bytes; `run` is 32 hex digits, zeros where the plan could not even be read."""
    body = bytes.fromhex(run) + struct.pack("<I", refusal.round) + _name(refusal.client) + _name(refusal.code)
    return _seal(_REFUSAL, body)


def decode_answer(blob: bytes) -> RawReport | Refusal:
    """A site's answer, structure checked; compare its claims with the plan before believing them.

    Raises:
        WireError: anything that is not a whole, well-formed report or refusal.
    """
    if _kind(blob) == _REFUSAL:
        reader = _open(blob, _REFUSAL)
        reader.take(16)
        round_, client, code = reader.number("<I"), reader.name(), reader.name()
        reader.end()
        if code not in REFUSALS:
            raise WireError("malformed", "a refusal code that is not on the list")
        return Refusal(client, round_, code)
    reader = _open(blob, _REPORT)
    run, round_ = reader.take(16).hex(), reader.number("<I")
    proxy, classes_digest, rows_digest = (reader.take(32).hex() for _ in range(3))
    classes, client = reader.number("<I"), reader.name()
    (weight,) = struct.unpack("<f", reader.take(4))
    votes = reader.votes(None, classes)
    reader.end()
    return RawReport(run, round_, proxy, classes_digest, rows_digest, client, weight, votes)


def believe(rows: Int64, votes: RawVotes) -> SoftLabels:
    """Votes on `rows` as soft labels, if their values are those of distributions.

    Raises:
        WireError: `shape`, `non_finite` or `not_simplex`.
    """
    values = votes.values
    if len(values) != len(rows):
        raise WireError("shape", f"{len(values)} rows of votes for {len(rows)} rows")
    if not np.isfinite(values).all():
        raise WireError("non_finite", "a vote is NaN or infinite")
    classes = values.shape[1]
    with np.errstate(over="ignore"):
        sums = np.exp(values, dtype=np.float64).sum(axis=1)
    tolerance = codec_named(votes.codec).sum_tolerance(classes)
    worst = float(np.abs(sums - 1.0).max()) if len(sums) else 0.0
    if worst > tolerance:
        raise WireError("not_simplex", f"a row of probabilities is {worst:.3g} away from 1; {tolerance:.3g} is allowed")
    return SoftLabels.from_logits(rows, values)


def _seal(kind: int, body: bytes) -> bytes:
    message = _ENVELOPE.pack(MAGIC, VERSION, kind, len(body)) + body
    return message + struct.pack("<I", zlib.crc32(message))


def _kind(blob: bytes) -> int:
    return blob[5] if len(blob) >= _ENVELOPE.size and blob[:4] == MAGIC else -1


def _open(blob: bytes, kind: int) -> _Reader:
    """Check the envelope and hand out its body."""
    if blob[:4] != MAGIC[: len(blob)] or not blob:
        raise WireError("foreign", "these bytes do not begin as a message of ours")
    if len(blob) < _ENVELOPE.size + 4:
        raise WireError("truncated", f"{len(blob)} bytes are less than an envelope")
    _, version, found, length = _ENVELOPE.unpack_from(blob)
    if version != VERSION:
        raise WireError("version", f"wire version {version}; {VERSION} is spoken here")
    if len(blob) != _ENVELOPE.size + length + 4:
        raise WireError("truncated", f"{len(blob)} bytes where {_ENVELOPE.size + length + 4} were announced")
    if zlib.crc32(blob[:-4]) != struct.unpack("<I", blob[-4:])[0]:
        raise WireError("corrupted", "the checksum does not match")
    if found != kind:
        raise WireError("foreign", f"kind {found} where {kind} is expected")
    return _Reader(blob[_ENVELOPE.size : -4])


def _name(text: str) -> bytes:
    data = text.encode()
    if not 1 <= len(data) <= 255:
        raise ValueError(f"name {text!r} must have 1 to 255 bytes of UTF-8")
    return bytes([len(data)]) + data


def _rows(rows: Int64) -> bytes:
    """Row numbers as gaps in the narrowest unsigned type that holds the widest gap."""
    if len(rows) == 0:
        return struct.pack("<IBI", 0, 1, 0)
    gaps = np.diff(rows)
    if rows[0] < 0 or rows[-1] >= 2**32 or (gaps <= 0).any():
        raise ValueError("rows must be strictly increasing from 0 and below 2^32")
    widest = int(gaps.max()) if len(gaps) else 1
    width = next(width for width in (1, 2, 4) if widest < 2 ** (8 * width))
    return struct.pack("<IBI", len(rows), width, int(rows[0])) + gaps.astype(f"<u{width}").tobytes()


def _votes(codec: str, soft_labels: SoftLabels) -> bytes:
    payload = codec_named(codec).encode(soft_labels.log_probs)
    return _name(codec) + struct.pack("<I", len(soft_labels.rows)) + payload


class _Reader:
    """Takes fields off a body; every length is compared with what is really there before memory is taken."""

    def __init__(self, body: bytes) -> None:
        self._body, self._at = body, 0

    def take(self, count: int) -> bytes:
        if count > len(self._body) - self._at:
            raise WireError("truncated", f"a field of {count} bytes where {len(self._body) - self._at} are left")
        piece = self._body[self._at : self._at + count]
        self._at += count
        return piece

    def number(self, form: str) -> int:
        return int(struct.unpack(form, self.take(struct.calcsize(form)))[0])

    def name(self) -> str:
        data = self.take(self.number("<B"))
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise WireError("malformed", "a name that is not UTF-8") from error
        if not text or not text.isprintable():
            raise WireError("malformed", "a name that is empty or not printable")
        return text

    def rows(self) -> Int64:
        count, width, first = struct.unpack("<IBI", self.take(9))
        if width not in (1, 2, 4):
            raise WireError("malformed", f"gaps of {width} bytes; 1, 2 or 4 are known")
        if count == 0:
            return np.empty(0, np.int64)
        gaps = np.frombuffer(self.take((count - 1) * width), f"<u{width}").astype(np.int64)
        if (gaps == 0).any():
            raise WireError("malformed", "a row twice")
        rows: Int64 = np.concatenate([[first], first + np.cumsum(gaps)]).astype(np.int64)
        return rows

    def votes(self, rows: int | None, classes: int) -> RawVotes:
        """The votes, which end the body; `rows` is None where the sender may say any number."""
        name, count = self.name(), self.number("<I")
        if name not in CODECS:
            raise WireError("codec", "a codec that is not known here")
        if classes < 2:
            raise WireError("shape", f"{classes} classes")
        if rows is not None and count != rows:
            raise WireError("shape", f"{count} rows of votes for {rows} rows")
        expected, left = CODECS[name].size(count, classes), len(self._body) - self._at
        if expected != left:
            raise WireError("shape", f"{count} x {classes} votes need {expected} bytes; {left} are there")
        return RawVotes(name, CODECS[name].decode(self.take(expected), count, classes))

    def end(self) -> None:
        if self._at != len(self._body):
            raise WireError("truncated", f"{len(self._body) - self._at} bytes too many")
