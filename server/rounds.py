"""The round, on one screen: plan, ask, check, quorum, aggregate, yield."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Protocol

from server.checks import Failure, check_answer
from strategies.aggregator import Aggregator, State
from strategies.messages import ClientReport, RoundPlan
from strategies.selection import participants, proxy_rows
from strategies.soft_labels import SoftLabels
from strategies.wire import encode_plan


@dataclass(frozen=True, slots=True)
class Reply:
    """What the network says of one asked client: its bytes, or why there are none."""

    client: str
    payload: bytes | Failure


class Cohort(Protocol):
    """The network, as one method."""

    @property
    def clients(self) -> Sequence[str]:
        """Everybody who can be asked, by name."""
        ...

    def ask(self, plan: bytes, clients: Sequence[str]) -> Iterator[Reply]:
        """Send `plan` to `clients`; one reply each, as they arrive, within the cohort's own deadline."""
        ...


@dataclass(frozen=True, slots=True)
class Exchange:
    """What stays the same in all rounds of a run: identities, and how much is asked of whom.

    Attributes:
        run: 32 hex digits.
        seed: of the choice of rows and clients.
        proxy_sha256, classes_sha256: 64 hex digits each.
        classes, proxy_rows: sizes.
        codec: of the votes and of the teacher.
        rows_per_round: proxy rows that a round asks for.
        quorum: share of the asked clients whose answer must be usable.
        participation: share of the clients that a round asks.
    """

    run: str
    seed: int
    proxy_sha256: str
    classes_sha256: str
    classes: int
    proxy_rows: int
    codec: str
    rows_per_round: int
    quorum: float
    participation: float


@dataclass(frozen=True, slots=True, eq=False)
class RoundResult:
    """One finished round."""

    round: int
    teacher: SoftLabels
    state: State
    replies: int
    failures: tuple[Failure, ...]
    upload_bytes: int
    download_bytes: int


class QuorumError(RuntimeError):
    """Too few usable answers; the round, and with it the run, has failed."""

    def __init__(self, round_: int, replies: int, needed: int, asked: int, failures: tuple[Failure, ...]) -> None:
        self.round, self.failures = round_, failures
        named = ", ".join(f"{failure.client} ({failure.reason})" for failure in failures[:20])
        more = f" and {len(failures) - 20} more" if len(failures) > 20 else ""
        super().__init__(
            f"round {round_}: {replies} of {asked} answers were usable and the quorum is {needed}; "
            f"without one: {named}{more}"
        )


@dataclass(slots=True)
class _Tally:
    """What one round's replies amounted to, counted while they stream through."""

    replies: int = 0
    upload_bytes: int = 0
    failures: list[Failure] = field(default_factory=list)


def run_rounds(
    cohort: Cohort,
    aggregator: Aggregator,
    exchange: Exchange,
    rounds: int,
    *,
    done: int = 0,
    teacher: SoftLabels | None = None,
    state: State | None = None,
) -> Iterator[RoundResult]:
    """Run rounds `done` + 1 to `rounds`; checkpoint, metrics and logs are the caller's loop.

    Args:
        done, teacher, state: where a resumed run stands: rounds finished, their last teacher and rule state.

    Raises:
        QuorumError: too few usable answers in a round.

    Guarantees:
        One bad reply is that client's Failure, never the round's end. The teacher does not depend on the order
        in which replies arrive. With a streaming rule one report is held at a time.
    """
    state = {} if state is None else state
    for round_ in range(done + 1, rounds + 1):
        plan = RoundPlan(
            exchange.run,
            round_,
            exchange.proxy_sha256,
            exchange.classes_sha256,
            exchange.classes,
            exchange.codec,
            proxy_rows(exchange.seed, round_, exchange.proxy_rows, exchange.rows_per_round),
            teacher,
        )
        blob = encode_plan(plan)
        asked = participants(exchange.seed, round_, cohort.clients, exchange.participation)
        tally = _Tally()
        reports = _believable(cohort, plan, blob, asked, tally)
        first = next(reports, None)
        aggregated = None if first is None else aggregator.aggregate(state, chain([first], reports))
        needed = math.ceil(round(exchange.quorum * len(asked), 9))
        failures = tuple(sorted(tally.failures, key=lambda failure: failure.client))
        if aggregated is None or tally.replies < needed:
            raise QuorumError(round_, tally.replies, max(1, needed), len(asked), failures)
        teacher, state = aggregated
        yield RoundResult(round_, teacher, state, tally.replies, failures, tally.upload_bytes, len(blob) * len(asked))


def _believable(
    cohort: Cohort, plan: RoundPlan, blob: bytes, asked: Sequence[str], tally: _Tally
) -> Iterator[ClientReport]:
    """The usable reports as they arrive, one a client; everything else is counted as a failure."""
    waiting = set(asked)
    for reply in cohort.ask(blob, asked):
        if reply.client not in waiting:
            continue  # a second answer of one client, or one that nobody asked for
        waiting.remove(reply.client)
        if isinstance(reply.payload, Failure):
            tally.failures.append(reply.payload)
            continue
        tally.upload_bytes += len(reply.payload)
        checked = check_answer(reply.client, reply.payload, plan)
        if isinstance(checked, Failure):
            tally.failures.append(checked)
        else:
            tally.replies += 1
            yield checked
    tally.failures.extend(Failure(client, "no_reply") for client in sorted(waiting))
