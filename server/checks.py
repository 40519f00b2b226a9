"""What an answer must be before it is believed."""

from __future__ import annotations

from dataclasses import dataclass

from strategies.codecs import codec_named
from strategies.messages import MAX_WEIGHT, MIN_WEIGHT, ClientReport, Refusal, RoundPlan
from strategies.wire import WireError, believe, decode_answer, rows_sha256

# Envelope and fields of a report with the longest names stay below this; the votes come on top.
_OVERHEAD_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Failure:
    """One client did not contribute to one round.

    Attributes:
        reason: from a fixed list: strategies.wire.REASONS for answers that are not believed, `refused_` and a
            code of strategies.messages.REFUSALS, or `no_reply`, `late`, `crashed`, `transport`.
        detail: a sentence for the operator; nothing that the sender wrote stands in it but numbers.
    """

    client: str
    reason: str
    detail: str = ""

    @property
    def answered(self) -> bool:
        """Whether something came back at all."""
        return self.reason not in ("no_reply", "late", "crashed", "transport")


def check_answer(client: str, blob: bytes, plan: RoundPlan) -> ClientReport | Failure:
    """The report in `blob` if it is a believable answer of `client` to `plan`, else why not.

    Guarantees:
        Never raises, whatever the bytes; memory stays within a few times the legal size of an answer.
    """
    try:
        return _checked(client, blob, plan)
    except WireError as error:
        return Failure(client, error.reason, str(error))


def _checked(client: str, blob: bytes, plan: RoundPlan) -> ClientReport | Failure:
    limit = codec_named(plan.codec).size(len(plan.ask_rows), plan.classes) + _OVERHEAD_BYTES
    if len(blob) > limit:
        raise WireError("too_large", f"{len(blob)} bytes; an answer to this plan has at most {limit}")
    answer = decode_answer(blob)
    if isinstance(answer, Refusal):
        if answer.client != client:
            raise WireError("wrong_client", f"{client!r} was asked and another one refuses")
        # A site that could not read the plan cannot name its round.
        if answer.code not in ("unreadable_plan", "bad_teacher") and answer.round != plan.round:
            raise WireError("wrong_round", f"a refusal of round {answer.round} where {plan.round} was asked")
        return Failure(client, f"refused_{answer.code}", "the site declined; its own log says why")
    for reason, found, expected in (
        ("wrong_run", answer.run, plan.run),
        ("wrong_round", answer.round, plan.round),
        ("wrong_client", answer.client, client),
        ("proxy_hash", answer.proxy_sha256, plan.proxy_sha256),
        ("class_list", answer.classes_sha256, plan.classes_sha256),
        ("codec", answer.votes.codec, plan.codec),
        ("shape", answer.votes.values.shape, (len(plan.ask_rows), plan.classes)),
        ("rows", answer.rows_sha256, rows_sha256(plan.ask_rows)),
    ):
        if found != expected:
            raise WireError(reason, f"not what was asked: {expected}")
    if not MIN_WEIGHT <= answer.weight <= MAX_WEIGHT:  # also false for NaN
        raise WireError("weight", f"weight {answer.weight} outside [{MIN_WEIGHT}, {MAX_WEIGHT}]")
    return ClientReport(client, plan.round, believe(plan.ask_rows, answer.votes), answer.weight)
