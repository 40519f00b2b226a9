"""Bytes of the messages, version 3: fixed little-endian fields, then a codec's payload. No pickle, no names to import.

Each of these is the body of an envelope: see strategies.envelope.

plan       run 16 | round u32 | proxy 32 | classes 32 | classes u32 | subject u8 | wants u8 | uplink name
           | downlink name | have u32 | asked rows | teacher | ledger?
teacher    0                                                                  none
           1 | rows | count u8 | count times: payload                         whole, in the downlink's codec
           2 | base u32 | rows | digest 8 | changed rows | payload            as a difference to the client's table
report     run 16 | round u32 | proxy 8 | classes 8 | asked rows 8 | classes u32 | client name | weight f32 | flags u8
           | abstentions? | uplink CRC-32 of its name | base u32 | digest 8? | rows u32 | payload | scores u8[rows]?
           | counts f32[classes]? | ledger?
           flags: 1 abstentions, 2 scores, 4 counts, 8 the payload is the vote itself although there is a base
refusal    run 16 | round u32 | client name | code name
rows       see strategies.row_sets                abstentions   asked u32 | bitmap of the asked rows that have a vote
payload    length u32 | bytes of the codec        name          length u8 | UTF-8
ledger     seq u64 | digest 32

Where a report names the proxy set, the classes and the rows, 8 bytes of their SHA-256 tell a mistake; a liar could
name the whole digest just as well.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from strategies.believing import believe_symbols, decode_symbols, vote_symbols
from strategies.codecs import Link, link_named
from strategies.envelope import (
    HEAD,
    PLAN,
    REFUSAL,
    REPORT,
    Reader,
    WireError,
    kind_of,
    ledger_field,
    name_field,
    opened,
    payload_field,
    scores_field,
    seal,
)
from strategies.messages import (
    MOST_TEACHERS,
    REFUSALS,
    WANTS,
    ClientReport,
    Draw,
    LedgerHead,
    Refusal,
    RoundPlan,
    Subject,
    Sync,
)
from strategies.row_sets import pack_rows
from strategies.soft_labels import Float64, Int64, SoftLabels, UInt8
from strategies.tables import Table

_NONE, _WHOLE, _DIFFERENCE = 0, 1, 2
_ABSTAINS, _SCORES, _COUNTS, _LITERAL = 1, 2, 4, 8
_SUBJECTS: tuple[Subject, ...] = ("proxy", "classes")
# Every body begins with the run, a plan's goes on with the round.
_ROUND_AT = HEAD.size + 16
# In place of the run, from a site that could not read its plan.
NO_RUN = "0" * 32


@dataclass(frozen=True, slots=True, eq=False)
class RawReport:
    """A report as it came: every claim of the sender, nothing compared with the plan yet.

    Attributes:
        proxy, class_list, asked: 8 bytes each, the beginnings of SHA-256 digests.
        voted: [asked rows] bool, where the sender votes; None: on all of them.
        base, base_digest: what the sender's table held before this; 0 and b"": nothing, both ends begin anew.
        literal: the symbols are the vote's, although there is a base; else they are a difference to it.
        rows: number of rows in `payload`.
        scores: [rows] in [0, 1]; counts: [classes] as they came.
    """

    run: str
    round: int
    proxy: bytes
    class_list: bytes
    asked: bytes
    classes: int
    client: str
    weight: float
    voted: NDArray[np.bool_] | None
    uplink: int
    base: int
    base_digest: bytes
    literal: bool
    rows: int
    payload: bytes
    scores: Float64 | None
    counts: Float64 | None
    ledger: LedgerHead | None


def rows_digest(rows: Int64) -> bytes:
    """The first 8 bytes of the SHA-256 over the row numbers in order."""
    return hashlib.sha256(np.ascontiguousarray(rows, "<i8").tobytes()).digest()[:8]


def spec_number(spec: str) -> int:
    """What a report says of its codec: the CRC-32 of the name that the plan gave in full."""
    return zlib.crc32(spec.encode())


def encode_plan(plan: RoundPlan) -> bytes:
    """A plan as bytes; teachers travel in the downlink's codec."""
    return address_plan(plan_body(plan), plan.ledger)


def address_plan(body: bytes, ledger: LedgerHead | None) -> bytes:
    """A plan of which only the last field is one client's own, as bytes."""
    return seal(PLAN, body + ledger_field(ledger))


def plan_body(plan: RoundPlan) -> bytes:
    """What of a plan all clients that share it are told."""
    return b"".join(
        (
            bytes.fromhex(plan.run),
            struct.pack("<I", plan.round),
            bytes.fromhex(plan.proxy_sha256),
            bytes.fromhex(plan.classes_sha256),
            struct.pack("<IB", plan.classes, _SUBJECTS.index(plan.subject)),
            bytes([sum(1 << WANTS.index(want) for want in set(plan.wants))]),
            name_field(plan.uplink),
            name_field(plan.downlink),
            struct.pack("<I", plan.have),
            pack_rows(plan.ask_rows, plan.ask_draw),
            _teacher(plan),
        )
    )


def plan_sha256(blob: bytes, plan: RoundPlan) -> str:
    """What an encoded plan asks for, as 64 hex digits: the echo of a ledger's head is no part of it."""
    return hashlib.sha256(blob[HEAD.size : len(blob) - 4 - len(ledger_field(plan.ledger))]).hexdigest()


def plan_round(blob: bytes) -> int:
    """The round of an encoded plan, for those who carry it and do not read it."""
    return int.from_bytes(blob[_ROUND_AT : _ROUND_AT + 4], "little")


def decode_plan(blob: bytes, proxy_rows: int, classes: int | None = None) -> RoundPlan:
    """The plan in `blob`.

    Args:
        proxy_rows: rows of the proxy set here; a plan that names others is refused.
        classes: how many there are here; a plan for another number is refused. None: as many as the plan says, for a
            caller who trusts its sender.

    Raises:
        WireError: anything that is not a whole, well-formed plan with believable teachers.

    Guarantees:
        Memory is bounded by proxy_rows, classes and the length of `blob`, whatever `blob` says.
    """
    reader = opened(blob, PLAN)
    run, round_ = reader.take(16).hex(), reader.number("<I")
    proxy, class_list = reader.take(32).hex(), reader.take(32).hex()
    told, subject, wants = reader.number("<I"), reader.number("<B"), reader.number("<B")
    if subject >= len(_SUBJECTS) or wants >= 1 << len(WANTS) or told < 2:
        raise WireError("malformed", f"subject {subject}, wants {wants}, classes {told}")
    if classes is not None and told != classes:
        raise WireError("class_list", f"{told} classes where {classes} are known")
    uplink, downlink = reader.link(told), reader.link(told)
    have = reader.number("<I")
    most = proxy_rows if _SUBJECTS[subject] == "proxy" else told
    ask_rows, ask_draw = reader.rows(most)
    try:
        teachers, sync, teacher_draw = _told_teacher(reader, most, told, downlink)
        ledger = reader.ledger()
        reader.end()
        return RoundPlan(
            run,
            round_,
            proxy,
            class_list,
            told,
            ask_rows,
            uplink.spec,
            downlink.spec,
            teachers,
            sync,
            have,
            _SUBJECTS[subject],
            tuple(want for index, want in enumerate(WANTS) if wants >> index & 1),
            ask_draw,
            teacher_draw,
            ledger,
        )
    except WireError:
        raise
    except ValueError as error:
        raise WireError("malformed", str(error)) from error


def encode_report(
    report: ClientReport, plan: RoundPlan, sent: Table | None = None, symbols: UInt8 | None = None
) -> bytes:
    """A report as the answer to `plan`, in the plan's uplink.

    Args:
        sent: what this client last sent, where the uplink takes differences; it is the base only if the coordinator
            says that it has exactly this. The shorter travels then, difference or vote, and no end forgets anything.
        symbols: what vote_symbols made of the votes, if the caller already has it.

    Raises:
        ValueError: a vote on a row that the plan does not ask for, or a name that cannot be written.
    """
    votes, link = report.soft_labels, link_named(plan.uplink)
    symbols = vote_symbols(votes, plan.uplink) if symbols is None else symbols
    payload, literal = link.encode(symbols, votes.classes), False
    base = sent if link.delta and sent is not None and 0 < sent.round == plan.have else None
    if base is not None:
        changes = link.encode_difference(symbols, base.symbols[votes.rows], votes.classes)
        literal = len(changes) > len(payload)
        payload = payload if literal else changes
    voted = np.isin(plan.ask_rows, votes.rows)
    if voted.sum() != len(votes.rows):
        raise ValueError(f"votes on {len(votes.rows) - int(voted.sum())} rows that the plan does not ask for")
    flags = (
        (0 if voted.all() else _ABSTAINS)
        | (0 if report.scores is None else _SCORES)
        | (0 if report.counts is None else _COUNTS)
        | (_LITERAL if literal else 0)
    )
    body = b"".join(
        (
            bytes.fromhex(plan.run),
            struct.pack("<I", report.round),
            bytes.fromhex(plan.proxy_sha256)[:8],
            bytes.fromhex(plan.classes_sha256)[:8],
            rows_digest(plan.ask_rows),
            struct.pack("<I", votes.classes),
            name_field(report.client),
            struct.pack("<fB", report.weight, flags),
            b"" if voted.all() else struct.pack("<I", len(voted)) + np.packbits(voted).tobytes(),
            struct.pack("<I", spec_number(plan.uplink)),
            struct.pack("<I", base.round if base else 0) + (base.digest(votes.rows) if base else b""),
            struct.pack("<I", len(votes.rows)),
            payload_field(payload),
            b"" if report.scores is None else scores_field(report.scores),
            b"" if report.counts is None else report.counts.astype("<f4").tobytes(),
            ledger_field(report.ledger),
        )
    )
    return seal(REPORT, body)


def encode_refusal(refusal: Refusal, run: str) -> bytes:
    """A refusal as bytes; `run` is 32 hex digits, NO_RUN where the plan could not even be read."""
    body = bytes.fromhex(run) + struct.pack("<I", refusal.round) + name_field(refusal.client) + name_field(refusal.code)
    return seal(REFUSAL, body)


def answer_run(blob: bytes) -> str:
    """The run that a report or a refusal names; `blob` is one that decode_answer takes."""
    return blob[HEAD.size : _ROUND_AT].hex()


def decode_answer(blob: bytes) -> RawReport | Refusal:
    """A site's answer, structure checked; compare its claims with the plan before believing them.

    Raises:
        WireError: anything that is not a whole, well-formed report or refusal.
    """
    if kind_of(blob) == REFUSAL:
        reader = opened(blob, REFUSAL)
        reader.take(16)
        round_, client, code = reader.number("<I"), reader.name(), reader.name()
        reader.end()
        if code not in REFUSALS:
            raise WireError("malformed", "a refusal code that is not on the list")
        return Refusal(client, round_, code)
    reader = opened(blob, REPORT)
    run, round_ = reader.take(16).hex(), reader.number("<I")
    proxy, class_list, asked = reader.take(8), reader.take(8), reader.take(8)
    classes, client = reader.number("<I"), reader.name()
    weight, flags = struct.unpack("<fB", reader.take(5))
    if flags & ~(_ABSTAINS | _SCORES | _COUNTS | _LITERAL):
        raise WireError("malformed", f"flags {flags}")
    voted = reader.bitmap() if flags & _ABSTAINS else None
    if voted is not None and voted.all():
        raise WireError("malformed", "abstentions announced, and none there")
    uplink, base = reader.number("<I"), reader.number("<I")
    base_digest, literal = reader.take(8) if base else b"", bool(flags & _LITERAL)
    if literal and not base:
        raise WireError("malformed", "a vote instead of a difference, and no base for one")
    rows, payload = reader.number("<I"), reader.payload()
    if classes < 2 or (voted is not None and int(voted.sum()) != rows):
        raise WireError("shape", f"{classes} classes, {rows} rows of votes")
    scores = reader.scores(rows) if flags & _SCORES else None
    counts = reader.counts(classes) if flags & _COUNTS else None
    ledger = reader.ledger()
    reader.end()
    told = (proxy, class_list, asked, classes, client, weight, voted, uplink, base, base_digest, literal, rows, payload)
    return RawReport(run, round_, *told, scores, counts, ledger)


def _teacher(plan: RoundPlan) -> bytes:
    link, sync = link_named(plan.downlink), plan.sync
    if sync is not None:
        return b"".join(
            (
                struct.pack("<BI", _DIFFERENCE, sync.base),
                pack_rows(sync.rows, plan.teacher_draw),
                sync.digest,
                pack_rows(sync.changed, plan.teacher_draw),
                payload_field(link.encode(sync.symbols, plan.classes)),
            )
        )
    if not plan.teachers:
        return bytes([_NONE])
    rows = pack_rows(plan.teachers[0].rows, plan.teacher_draw)
    payloads = (
        payload_field(link.encode(vote_symbols(teacher, plan.downlink), plan.classes)) for teacher in plan.teachers
    )
    return b"".join((bytes([_WHOLE]), rows, bytes([len(plan.teachers)]), *payloads))


def _told_teacher(
    reader: Reader, most: int, classes: int, link: Link
) -> tuple[tuple[SoftLabels, ...], Sync | None, Draw | None]:
    """The inverse of `_teacher`, and the draw that its rows came from."""
    match reader.number("<B"):
        case 0:  # _NONE
            return (), None, None
        case 1:  # _WHOLE
            rows, draw = reader.rows(most)
            count = reader.number("<B")
            if not 1 <= count <= MOST_TEACHERS:
                raise WireError("malformed", f"{count} teachers; 1 to {MOST_TEACHERS} may come")
            return tuple(_whole(reader.payload(), rows, classes, link) for _ in range(count)), None, draw
        case 2:  # _DIFFERENCE
            base = reader.number("<I")
            rows, draw = reader.rows(most)
            digest = reader.take(8)
            changed, _ = reader.rows(most)
            symbols = decode_symbols(link.spec, reader.payload(), len(changed), classes)
            return (), Sync(base, rows, digest, changed, symbols), draw
        case kind:
            raise WireError("malformed", f"a teacher of kind {kind}")


def _whole(payload: bytes, rows: Int64, classes: int, link: Link) -> SoftLabels:
    return believe_symbols(rows, decode_symbols(link.spec, payload, len(rows), classes), link.spec, classes)
