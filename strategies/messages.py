"""The messages of one round. Every field of a report is a release: there is no dictionary to slip a number into."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from strategies.soft_labels import Float64, Int64, SoftLabels

# Only ratios of weights matter; within these bounds the order-free sum keeps nine digits of the lightest vote.
MIN_WEIGHT, MAX_WEIGHT = 0.001, 1.0

# Why a site may decline, as codes: never a path, a number or a sentence made from its data.
REFUSALS = (
    "no_policy",
    "proxy_not_allowed",
    "too_many_rows",
    "too_many_answers",
    "budget_out",  # the privacy budget of the site's data does not pay for this answer
    "release_lost",  # paid for, and its process died before it was sealed; the next round is another answer
    "ledger_rolled_back",  # the site's ledger is not the one that the coordinator has heard of
    "not_released",  # the plan asks for scores, counts or class tables, and the site's policy does not give them
    "wrong_classes",
    "stale_round",
    "conflicting_plan",
    "unreadable_plan",
    "unknown_rows",
    "bad_teacher",
    "need_key",  # the plan's difference does not fit what this site has: the next one must carry everything
    "unsupported",  # this site cannot do what the plan asks, for example class tables with its kind of data
    "secure_sum_required",  # the site's policy lets its votes leave in a secure sum only
    "secure_sum_refused",  # the site takes no part in this sum, or not in this step of it
    "diverged",
    "storage_error",
    "internal_error",
)

# What a plan may ask beside votes; each is a further release, and the site's policy decides.
WANTS = ("scores", "counts")

# Teachers that one plan may carry: what a site must hold at once.
MOST_TEACHERS = 16

# What a row number means: a row of the proxy set, or a class (per-class tables need no proxy rows).
Subject = Literal["proxy", "classes"]


@dataclass(frozen=True, slots=True)
class LedgerHead:
    """Where a site's privacy ledger stands: what a coordinator echoes, so that a ledger put back is noticed.

    Attributes:
        seq: number of the last row, from 1.
        digest: 32 bytes, its SHA-256 in the chain.
    """

    seq: int
    digest: bytes

    def __post_init__(self) -> None:
        if not 1 <= self.seq < 2**63 or len(self.digest) != 32:
            raise ValueError(f"seq={self.seq} must be in [1, 2^63) and its digest 32 bytes, not {len(self.digest)}")


@dataclass(frozen=True, slots=True)
class Draw:
    """Rows that both ends compute instead of sending them: see strategies.selection.drawn.

    Attributes:
        seed: 64 bits.
        total: of rows to draw from.
        offset, count: which ranks of the draw.
    """

    seed: int
    total: int
    offset: int
    count: int

    def __post_init__(self) -> None:
        if not (0 <= self.seed < 2**64 and self.offset >= 0 and self.count >= 0 and self.total < 2**32):
            raise ValueError(f"{self} has a number out of bounds")
        if self.offset + self.count > self.total:
            raise ValueError(f"ranks {self.offset} to {self.offset + self.count - 1} of {self.total} rows: too many")


@dataclass(frozen=True, slots=True, eq=False)
class Sync:
    """The teacher as a difference to the table of labels that a client already has.

    Attributes:
        base: the client's table must hold at least what it was sent up to this round; 0: nothing is needed.
        rows: [n] proxy rows that the teacher of this plan names.
        digest: 8 bytes over those rows and their symbols, in the client's table after the change.
        changed: [m] proxy rows whose symbols follow.
        symbols: [m, width] in the downlink's codec.
    """

    base: int
    rows: Int64
    digest: bytes
    changed: Int64
    symbols: NDArray[np.uint8]

    def __post_init__(self) -> None:
        if len(self.digest) != 8:
            raise ValueError(f"the digest has {len(self.digest)} bytes: 8 expected")
        if len(self.symbols) != len(self.changed):
            raise ValueError(f"{len(self.symbols)} rows of symbols for {len(self.changed)} changed rows")


@dataclass(frozen=True, slots=True, eq=False)
class RoundPlan:
    """What the coordinator sends down: the last teacher and the rows that want a vote.

    Attributes:
        run: 32 hex digits, one run of one federation.
        round: from 1.
        proxy_sha256, classes_sha256: 64 hex digits each; content and order of the proxy set and of the classes.
        classes: number of classes.
        uplink, downlink: how votes travel up and teachers down; see strategies.codecs.link_named.
        ask_rows: [n] rows, strictly increasing.
        teachers: none in the first round; one; or several on the same rows, of which a client takes, row by row, the
            one nearest to its own vote (COMET). With `sync` it is empty.
        sync: the teacher as a difference, instead of `teachers`.
        have: the round of this client's last answer that the coordinator has decoded; 0: none. A difference may refer
            to it.
        subject: what row numbers mean.
        wants: names of WANTS.
        ask_draw, teacher_draw: where rows are a draw, the few numbers that travel instead of them.
        ledger: what this client last said of its ledger; None if it never did.
    """

    run: str
    round: int
    proxy_sha256: str
    classes_sha256: str
    classes: int
    ask_rows: Int64
    uplink: str = "float32"
    downlink: str = "float32"
    teachers: tuple[SoftLabels, ...] = ()
    sync: Sync | None = None
    have: int = 0
    subject: Subject = "proxy"
    wants: tuple[str, ...] = ()
    ask_draw: Draw | None = None
    teacher_draw: Draw | None = None
    ledger: LedgerHead | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.round < 2**32:
            raise ValueError(f"round={self.round} must be in [1, 2^32): the first round is 1")
        if not 2 <= self.classes < 2**32:
            raise ValueError(f"classes={self.classes} must be at least 2")
        for name, digits in (("run", 32), ("proxy_sha256", 64), ("classes_sha256", 64)):
            value = getattr(self, name)
            if len(value) != digits or not set(value) <= set("0123456789abcdef"):
                raise ValueError(f"{name}={value!r} must be {digits} lower-case hex digits")
        if not 0 <= self.have < self.round:
            raise ValueError(f"have={self.have} must be a round before {self.round}, or 0")
        if self.sync is not None and (self.teachers or not 0 <= self.sync.base < self.round):
            raise ValueError("a plan has teachers or a difference to an earlier round, not both")
        if len(self.teachers) > MOST_TEACHERS:
            raise ValueError(f"{len(self.teachers)} teachers; a plan carries at most {MOST_TEACHERS}")
        if any(not np.array_equal(other.rows, self.teachers[0].rows) for other in self.teachers[1:]):
            raise ValueError("several teachers must be on the same rows")
        if not set(self.wants) <= set(WANTS):
            raise ValueError(f"wants={self.wants} must be of {', '.join(WANTS)}")


@dataclass(frozen=True, slots=True, eq=False)
class ClientReport:
    """What one client sends up: its soft labels on the asked rows, or on those of them that it votes on.

    Attributes:
        client: the site's name; sorted by it wherever order could matter.
        round: the round it answers.
        soft_labels: its votes; a row that is left out is an abstention.
        weight: trust in this client, in [0.001, 1]; only ratios matter. At the coordinator, after weighing, one
            number in [0, 1] for each of its rows.
        scores: [n] in [0, 1], the site's own trust in each of its votes (FedAUX); None unless asked and allowed.
        counts: [classes] at least 0, the site's own rows of each class; None unless asked and allowed.
        ledger: where the site's privacy ledger stands after this answer; None from a site that promises no privacy.
    """

    client: str
    round: int
    soft_labels: SoftLabels
    weight: float | Float64 = 1.0
    scores: Float64 | None = None
    counts: Float64 | None = None
    ledger: LedgerHead | None = None

    def __post_init__(self) -> None:
        votes = self.soft_labels
        if isinstance(self.weight, np.ndarray):
            _check_share("weight", self.weight, len(votes.rows))
        elif not MIN_WEIGHT <= self.weight <= MAX_WEIGHT:
            raise ValueError(
                f"weight={self.weight} must be in [{MIN_WEIGHT}, {MAX_WEIGHT}]: divide all weights by the largest"
            )
        if self.scores is not None:
            _check_share("scores", self.scores, len(votes.rows))
        if self.counts is not None and not (
            self.counts.shape == (votes.classes,) and np.isfinite(self.counts).all() and (self.counts >= 0).all()
        ):
            raise ValueError(f"counts must be {votes.classes} finite numbers, none below 0")


@dataclass(frozen=True, slots=True)
class Refusal:
    """A site declines to answer a round; `code` is one of REFUSALS."""

    client: str
    round: int
    code: str

    def __post_init__(self) -> None:
        if self.code not in REFUSALS:
            raise ValueError(f"unknown refusal {self.code!r}; known: {', '.join(REFUSALS)}")


def _check_share(name: str, values: Float64, rows: int) -> None:
    if values.shape != (rows,) or not (rows == 0 or (values.min() >= 0.0 and values.max() <= 1.0)):  # NaN is neither
        raise ValueError(f"{name} must be {rows} numbers in [0, 1], one a row")
