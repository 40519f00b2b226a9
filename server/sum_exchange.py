"""One exchange of secure sums: each client gets its messages in one request, and says something to each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from client.sum_wire import Part, SumAnswer, SumRequest
from server.checks import UNREAD, Failure
from server.replies import Cohort, Reply, Tally
from strategies.envelope import REFUSAL, WireError, kind_of
from strategies.messages import LedgerHead, Refusal
from strategies.wire import NO_RUN, answer_run, decode_answer

# What one client said to one message, or why it said nothing.
Said = bytes | Failure
# Envelopes, names and fields that do not grow with anything stay below this.
_OVERHEAD_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Heard:
    """What an exchange brought.

    Attributes:
        said: by purpose and client; everybody who was asked is in it.
        heads: by client, where its privacy ledger stands.
    """

    said: Mapping[str, Mapping[str, Said]]
    heads: Mapping[str, LedgerHead] = field(default_factory=dict)


def exchanged(
    cohort: Cohort, run: str, round_: int, asked: Mapping[str, Mapping[str, Part]], most_bytes: int, tally: Tally
) -> Heard:
    """Ask every client for all that is wanted of it.

    Args:
        asked: by purpose and client, the message.
        most_bytes: of one client's answers, beside what does not grow.
        tally: bytes are counted in it.

    Guarantees:
        Never raises for what a client says. A client answers once; what comes after that is not looked at.
    """
    parts: dict[str, dict[str, Part]] = {}
    for purpose, messages in asked.items():
        for client, part in messages.items():
            parts.setdefault(client, {})[purpose] = part
    blobs = _encoded(run, round_, parts)
    tally.download_bytes += sum(map(len, blobs.values()))
    said: dict[str, dict[str, Said]] = {purpose: {} for purpose in asked}
    heads: dict[str, LedgerHead] = {}
    waiting = dict(parts)
    for reply in cohort.ask(blobs) if blobs else ():
        if reply.client not in waiting or reply.round not in (0, round_):
            continue  # a second answer of one client, or one to an exchange that is over
        wanted = waiting.pop(reply.client)
        if isinstance(reply.payload, bytes):
            tally.upload_bytes += len(reply.payload)
        answer = _answer(reply, run, round_, len(wanted), most_bytes)
        if isinstance(answer, SumAnswer) and answer.ledger is not None:
            heads[reply.client] = answer.ledger
        told = [answer] * len(wanted) if isinstance(answer, Failure) else _said(answer, run, round_)
        for purpose, one in zip(wanted, told, strict=True):
            said[purpose][reply.client] = one
    for client, wanted in waiting.items():
        for purpose in wanted:
            said[purpose][client] = Failure(client, "no_reply")
    return Heard(said, heads)


def _encoded(run: str, round_: int, parts: Mapping[str, Mapping[str, Part]]) -> dict[str, bytes]:
    """Bytes by client; one object for all who are asked the same."""
    made: dict[tuple[Part, ...], bytes] = {}
    blobs = {}
    for client, wanted in parts.items():
        key = tuple(wanted.values())
        if key not in made:
            made[key] = SumRequest(run, round_, key).encode()
        blobs[client] = made[key]
    return blobs


def _answer(reply: Reply, run: str, round_: int, count: int, most_bytes: int) -> SumAnswer | Failure:
    """A reply as an answer to this exchange, if it is one."""
    if isinstance(reply.payload, Failure):
        return reply.payload
    try:
        if len(reply.payload) > most_bytes + _OVERHEAD_BYTES:
            raise WireError("too_large", f"{len(reply.payload)} bytes; at most {most_bytes + _OVERHEAD_BYTES} expected")
        if kind_of(reply.payload) == REFUSAL:
            return _refusal(reply.client, reply.payload, run, round_)
        answer = SumAnswer.decode(reply.payload)
        for reason, found, expected in (
            ("wrong_run", answer.run, run),
            ("wrong_round", answer.round, round_),
            ("wrong_client", answer.client, reply.client),
            ("shape", len(answer.parts), count),
        ):
            if found != expected:
                raise WireError(reason, "not what was asked")
    except WireError as error:
        return Failure(reply.client, error.reason, str(error))
    return answer


def _said(answer: SumAnswer, run: str, round_: int) -> Sequence[Said]:
    return [_refused(answer.client, part, run, round_) if kind_of(part) == REFUSAL else part for part in answer.parts]


def _refused(client: str, blob: bytes, run: str, round_: int) -> Failure:
    try:
        return _refusal(client, blob, run, round_)
    except WireError as error:
        return Failure(client, error.reason, str(error))


def _refusal(client: str, blob: bytes, run: str, round_: int) -> Failure:
    """A refusal as a failure.

    Raises:
        WireError: it is none of this client's, run and round.
    """
    refusal = decode_answer(blob)
    assert isinstance(refusal, Refusal)  # noqa: S101 - the caller looked at its kind
    unread = refusal.code in UNREAD and answer_run(blob) == NO_RUN
    if refusal.client != client or (not unread and (answer_run(blob), refusal.round) != (run, round_)):
        raise WireError("wrong_client", "a refusal by somebody else, or of another round")
    return Failure(client, f"refused_{refusal.code}", "the site declined; its own log says why")
