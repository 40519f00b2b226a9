"""What an answer must be before it is believed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from strategies.believing import believe_symbols, decode_symbols
from strategies.codecs import link_named
from strategies.envelope import WireError
from strategies.messages import MAX_WEIGHT, MIN_WEIGHT, ClientReport, Refusal, RoundPlan
from strategies.soft_labels import Int64, UInt8
from strategies.tables import Table
from strategies.wire import NO_RUN, RawReport, answer_run, decode_answer, rows_digest, spec_number

# What a site says that could not read its plan, and hence can name neither its run nor its round.
UNREAD = ("unreadable_plan", "bad_teacher", "unknown_rows", "wrong_classes")
# Envelope and fields of a report with the longest names stay below this; votes and extras come on top.
_OVERHEAD_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Failure:
    """One client did not contribute to one round.

    Attributes:
        reason: from a fixed list: strategies.envelope.REASONS for answers that are not believed, `refused_` and a
            code of strategies.messages.REFUSALS, `secure_sum` for a message of a secure sum that is not believed, or
            `no_reply`, `late`, `crashed`, `transport`.
        detail: a sentence for the operator; nothing that the sender wrote stands in it but numbers.
    """

    client: str
    reason: str
    detail: str = ""

    @property
    def answered(self) -> bool:
        """Whether something came back at all."""
        return self.reason not in ("no_reply", "late", "crashed", "transport")


@dataclass(frozen=True, slots=True, eq=False)
class Believed:
    """A report that passed all checks, and the symbols that it came from: the next difference may refer to them.

    `key`: it names no base, and its sender has forgotten what it sent before.
    """

    report: ClientReport
    symbols: UInt8
    key: bool


def check_answer(client: str, blob: bytes, plan: RoundPlan, heard: Table | None = None) -> Believed | Failure:
    """The report in `blob` if it is a believable answer of `client` to `plan`, else why not.

    Args:
        heard: what this client sent before; the base of an answer must be exactly this.

    Guarantees:
        Never raises, whatever the bytes; memory stays within a few times the legal size of an answer.
    """
    try:
        return _checked(client, blob, plan, heard)
    except WireError as error:
        return Failure(client, error.reason, str(error))


def _checked(client: str, blob: bytes, plan: RoundPlan, heard: Table | None) -> Believed | Failure:
    asked = len(plan.ask_rows)
    limit = link_named(plan.uplink).most_bytes(asked, plan.classes) + 2 * asked + 4 * plan.classes + _OVERHEAD_BYTES
    if len(blob) > limit:
        raise WireError("too_large", f"{len(blob)} bytes; an answer to this plan has at most {limit}")
    answer = decode_answer(blob)
    if isinstance(answer, Refusal):
        if answer.client != client:
            raise WireError("wrong_client", f"{client!r} was asked and another one refuses")
        unread = answer.code in UNREAD and answer_run(blob) == NO_RUN
        if answer_run(blob) != plan.run and not unread:
            raise WireError("wrong_run", "a refusal of another run")
        if answer.round != plan.round and not unread:
            raise WireError("wrong_round", f"a refusal of round {answer.round} where {plan.round} was asked")
        return Failure(client, f"refused_{answer.code}", "the site declined; its own log says why")
    rows = _rows(client, answer, plan)
    symbols = _symbols(answer, plan, rows, heard)
    if not MIN_WEIGHT <= answer.weight <= MAX_WEIGHT:  # also false for NaN
        raise WireError("weight", f"weight {answer.weight} outside [{MIN_WEIGHT}, {MAX_WEIGHT}]")
    votes = believe_symbols(rows, symbols, plan.uplink, plan.classes)
    report = ClientReport(client, plan.round, votes, answer.weight, answer.scores, answer.counts, answer.ledger)
    return Believed(report, symbols, answer.base == 0)


def _rows(client: str, answer: RawReport, plan: RoundPlan) -> Int64:
    """The rows that the votes are on, once everything that the sender claims has been compared with the plan."""
    for reason, found, expected in (
        ("wrong_run", answer.run, plan.run),
        ("wrong_round", answer.round, plan.round),
        ("wrong_client", answer.client, client),
        ("proxy_hash", answer.proxy, bytes.fromhex(plan.proxy_sha256)[:8]),
        ("class_list", answer.class_list, bytes.fromhex(plan.classes_sha256)[:8]),
        ("codec", answer.uplink, spec_number(plan.uplink)),
        ("shape", answer.classes, plan.classes),
        ("rows", answer.asked, rows_digest(plan.ask_rows)),
        ("extras", answer.scores is not None, "scores" in plan.wants),
        ("extras", answer.counts is not None, "counts" in plan.wants),
    ):
        if found != expected:
            raise WireError(reason, "not what was asked")
    if answer.counts is not None and not (np.isfinite(answer.counts).all() and (answer.counts >= 0).all()):
        raise WireError("extras", "a count is not finite or below 0")
    if answer.voted is None:
        rows = plan.ask_rows
    elif len(answer.voted) == len(plan.ask_rows):
        rows = plan.ask_rows[answer.voted]
    else:
        raise WireError("shape", f"abstentions on {len(answer.voted)} rows where {len(plan.ask_rows)} were asked")
    if answer.rows != len(rows):
        raise WireError("shape", f"{answer.rows} rows of votes for {len(rows)} rows")
    return rows


def _symbols(answer: RawReport, plan: RoundPlan, rows: Int64, heard: Table | None) -> UInt8:
    """The symbols of the votes, the difference undone if it is one."""
    symbols = decode_symbols(plan.uplink, answer.payload, len(rows), plan.classes)
    if answer.base == 0:
        return symbols
    link = link_named(plan.uplink)
    if not link.delta or heard is None or answer.base != heard.round or answer.base_digest != heard.digest(rows):
        raise WireError("base", f"a difference to round {answer.base}, which is not what this side holds")
    return symbols if answer.literal else link.apply(symbols, heard.symbols[rows], plan.classes)
