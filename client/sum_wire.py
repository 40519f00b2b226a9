"""Messages of secure sums inside our envelope, and what is summed; the coordinator imports this too.

request    run 16 | round u32 | count u8 | count times: payload message | payload plan, empty but with an input's turn
answer     run 16 | round u32 | client name | count u8 | count times: payload | ledger?
input      run 16 | round u32 | i64[rows, classes] | ledger?     kept at the site: it leaves only under masks

Messages of several sums may travel together; each gets an answer of its own: a message of privacy.secure_sum, or a
refusal of strategies.wire.
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass, fields

import numpy as np

from privacy.chain import canonical
from privacy.mechanisms.distributed_sum import DistributedClientSum
from privacy.secure_sum.sheet import Float64, Int64, Sheet
from strategies.believing import believe_symbols, decode_symbols
from strategies.envelope import (
    SUM_ANSWER,
    SUM_INPUT,
    SUM_REQUEST,
    Reader,
    WireError,
    ledger_field,
    name_field,
    opened,
    payload_field,
    seal,
)
from strategies.messages import LedgerHead, RoundPlan
from strategies.wire import RawReport, rows_digest, spec_number

# So many standard deviations of a sum's noise until it wraps around, in one of 10^23 entries.
_NOISE_ROOM = 10.0
# Of one exchange: an input of this round and the first step of the next one are two.
MOST_PARTS = 8


@dataclass(frozen=True, slots=True)
class Part:
    """One message to one site.

    Attributes:
        message: of privacy.secure_sum.
        plan: what is voted on, where the message asks for an input.
    """

    message: bytes
    plan: bytes = b""


@dataclass(frozen=True, slots=True)
class SumRequest:
    """What one exchange asks one site."""

    run: str
    round: int
    parts: tuple[Part, ...]

    def encode(self) -> bytes:
        """As bytes."""
        body = bytes.fromhex(self.run) + struct.pack("<IB", self.round, len(self.parts))
        return seal(
            SUM_REQUEST,
            body + b"".join(payload_field(part.message) + payload_field(part.plan) for part in self.parts),
        )

    @classmethod
    def decode(cls, blob: bytes) -> SumRequest:
        """Read what `encode` wrote.

        Raises:
            WireError: anything else.
        """
        reader = opened(blob, SUM_REQUEST)
        run, round_ = reader.take(16).hex(), reader.number("<I")
        parts = tuple(Part(reader.payload(), reader.payload()) for _ in range(_count(reader)))
        reader.end()
        return cls(run, round_, parts)


@dataclass(frozen=True, slots=True)
class SumAnswer:
    """What one site says to a request: one answer a part, and where its privacy ledger stands."""

    run: str
    round: int
    client: str
    parts: tuple[bytes, ...]
    ledger: LedgerHead | None = None

    def encode(self) -> bytes:
        """As bytes."""
        body = bytes.fromhex(self.run) + struct.pack("<I", self.round) + name_field(self.client)
        parts = bytes([len(self.parts)]) + b"".join(map(payload_field, self.parts))
        return seal(SUM_ANSWER, body + parts + ledger_field(self.ledger))

    @classmethod
    def decode(cls, blob: bytes) -> SumAnswer:
        """Read what `encode` wrote.

        Raises:
            WireError: anything else.
        """
        reader = opened(blob, SUM_ANSWER)
        run, round_, client = reader.take(16).hex(), reader.number("<I"), reader.name()
        parts = tuple(reader.payload() for _ in range(_count(reader)))
        ledger = reader.ledger()
        reader.end()
        return cls(run, round_, client, parts, ledger)


@dataclass(frozen=True, slots=True, eq=False)
class NoisyInput:
    """A site's input to a sum whose noise is split: what it paid for, and will never draw again.

    Attributes:
        steps: [rows, classes] of DistributedClientSum.contribution.
        ledger: where the site's ledger stood.
    """

    run: str
    round: int
    steps: Int64
    ledger: LedgerHead | None

    def encode(self) -> bytes:
        """As bytes."""
        body = bytes.fromhex(self.run) + struct.pack("<III", self.round, *self.steps.shape)
        return seal(SUM_INPUT, body + self.steps.astype("<i8").tobytes() + ledger_field(self.ledger))

    @classmethod
    def decode(cls, blob: bytes) -> NoisyInput:
        """Read what `encode` wrote.

        Raises:
            WireError: anything else.
        """
        reader = opened(blob, SUM_INPUT)
        run, round_, rows, columns = reader.take(16).hex(), *(reader.number("<I") for _ in range(3))
        steps = np.frombuffer(reader.take(8 * rows * columns), "<i8").reshape(rows, columns).astype(np.int64)
        ledger = reader.ledger()
        reader.end()
        return cls(run, round_, steps, ledger)


def noisy_sheet(plan: RoundPlan, split: DistributedClientSum) -> Sheet:
    """What a sum whose noise is split is filled in on: differences to a teacher, with room for all clients' noise."""
    rows = len(plan.ask_rows)
    noise = split.sensitivity(rows) / split.grid * split.noise_multiplier * math.sqrt(split.clients / split.honest)
    room = math.ceil(_NOISE_ROOM * noise)
    told = about(plan, terms_of(split))
    return Sheet(rows, plan.classes, told, False, low=-1.0, high=1.0, step=split.grid, headroom=room)


def base_of(plan: RoundPlan) -> Float64:
    """[rows, classes] what answers are clipped around: the plan's own teacher where it has the row, else uniform."""
    base = np.full((len(plan.ask_rows), plan.classes), 1.0 / plan.classes)
    if plan.teachers:
        teacher = plan.teachers[0]
        base[np.isin(plan.ask_rows, teacher.rows)] = teacher.probabilities()[np.isin(teacher.rows, plan.ask_rows)]
    return base


def sheet_of(plan: RoundPlan) -> Sheet:
    """What the sum of a plan's votes is filled in on: every site votes on every row, so nobody is counted."""
    return Sheet(len(plan.ask_rows), plan.classes, about(plan), counted=False)


def colluding_of(split: DistributedClientSum) -> int:
    """How many sites of a sum may tell the coordinator their share of its noise, and all else that they know."""
    return split.least - split.honest


def terms_of(split: DistributedClientSum) -> str:
    """All that sites who split noise must have agreed on, as text: alike for 2 and 2.0."""
    return canonical({field.name: float(getattr(split, field.name)) for field in fields(split)})


def about(plan: RoundPlan, terms: str = "") -> str:
    """64 hex digits that name what is voted on, and on which terms; what a plan says to one site alone is left out.

    Every mask, and every signature under a list of survivors, depends on it: a site of other terms is in no sum.
    """
    told = (plan.run, str(plan.round), plan.proxy_sha256, plan.classes_sha256, plan.uplink, plan.subject, terms)
    return hashlib.sha256(" ".join(told).encode() + np.ascontiguousarray(plan.ask_rows, "<i8").tobytes()).hexdigest()


def steps_of(report: RawReport, plan: RoundPlan) -> Int64:
    """[rows, classes] the votes of a site's own report to this plan, on the sheet of the sum.

    Raises:
        WireError: the report votes on other rows, or its votes are none.
    """
    votes = believe_symbols(
        plan.ask_rows,
        decode_symbols(plan.uplink, report.payload, len(plan.ask_rows), plan.classes),
        plan.uplink,
        plan.classes,
    )
    # A float32 log-probability of a sure vote may be a last bit above 0.
    return sheet_of(plan).quantised(np.minimum(votes.probabilities(), 1.0))


def answers(report: RawReport, plan: RoundPlan) -> bool:
    """Whether a report votes on all rows of this plan, and as the plan wants it."""
    told = (report.asked, report.rows, report.voted is None, report.uplink, report.base)
    return told == (rows_digest(plan.ask_rows), len(plan.ask_rows), True, spec_number(plan.uplink), 0)


def _count(reader: Reader) -> int:
    count = reader.number("<B")
    if count > MOST_PARTS:
        raise WireError("malformed", f"{count} parts where {MOST_PARTS} travel together at most")
    return count
