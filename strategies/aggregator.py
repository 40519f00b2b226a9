"""What turns votes into a teacher: the seams that every rule, weighting and sharpening fits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from strategies.messages import ClientReport, Subject
from strategies.selection import count_of
from strategies.soft_labels import Float64, Int64, SoftLabels

# What a rule remembers between rounds: named arrays, so that a checkpoint is a safetensors file.
State = Mapping[str, NDArray[np.float64]]


def voters_needed(clients: int, quorum: float | int) -> int:
    """The one quorum rule: how many voters a row needs to be in the teacher.

    Args:
        clients: K, how many were asked; at least 1.
        quorum: a whole number of voters, or a share of the clients below 1.

    Returns:
        The number; or for a share min(K, max(2, ceil(quorum * K))): a row on which one client alone has a say is no
        row of everybody's teacher unless a number of 1 says so, or there is nobody else.

    >>> [voters_needed(clients, 0.3) for clients in (1, 2, 5, 20)], voters_needed(20, 1), voters_needed(2, 3)
    ([1, 2, 2, 6], 1, 3)
    """
    if isinstance(quorum, int):
        return max(1, quorum)
    return min(clients, max(2, count_of(quorum, clients)))


# The most of a row's trust that one of several votes has, whatever it or its sender claims: else who is sure among the
# unsure would be everybody's teacher, word for word, and a liar could be that at will.
LARGEST_SHARE = 0.9


def most_trust(others: Float64) -> Float64:
    """[n] the most that a vote counts where the others on its row are trusted with `others` together.

    >>> most_trust(np.array([1.0, 0.25])).round(9).tolist()
    [9.0, 2.25]
    """
    return LARGEST_SHARE / (1.0 - LARGEST_SHARE) * others


@dataclass(frozen=True, slots=True, eq=False)
class Ballot:
    """What a round's votes are about.

    Attributes:
        rows: [n] rows that anybody may have voted on, strictly increasing.
        classes: C.
        clients: K, how many were asked.
        needed: voters that a row needs; see voters_needed.
        round: from 1.
        seed: of draws that break ties.
        heard: names of those whose answers came in this round, where votes of earlier rounds count as well; None: all.
    """

    rows: Int64
    classes: int
    clients: int
    needed: int = 1
    round: int = 1
    seed: int = 0
    heard: frozenset[str] | None = None

    def positions(self, report: ClientReport) -> slice | Int64:
        """Where a report's rows stand among the ballot's.

        Raises:
            ValueError: it voted on a row that is not on the ballot, or on other classes.
        """
        rows = report.soft_labels.rows
        if report.soft_labels.classes != self.classes:
            raise ValueError(
                f"client {report.client!r} voted on {report.soft_labels.classes} classes, not {self.classes}"
            )
        if rows is self.rows or rows.tobytes() == self.rows.tobytes():  # a fifth of array_equal's time
            return slice(None)
        found = np.searchsorted(self.rows, rows)
        if len(rows) and (found[-1] >= len(self.rows) or not np.array_equal(self.rows[found], rows)):
            raise ValueError(f"client {report.client!r} voted on rows that are not on the ballot")
        return found.astype(np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What a rule made of a round's votes.

    Attributes:
        teacher: on the rows that met the quorum; what the student learns.
        state: what the rule remembers.
        choices: several teachers on the same rows, of which a client takes the nearest to its vote, row by row (COMET);
            empty: everybody gets `teacher`.
        personal: a teacher of its own by client name (Jeong's leave-one-out tables); empty: everybody gets `teacher`.
    """

    teacher: SoftLabels
    state: State = field(default_factory=dict)
    choices: tuple[SoftLabels, ...] = ()
    personal: Mapping[str, SoftLabels] = field(default_factory=dict)


class Aggregator(Protocol):
    """A frozen dataclass whose fields are the rule's hyper-parameters. State goes in and comes out.

    Class attributes with the names of Traits say what is unusual about a rule; most rules have none.
    """

    def aggregate(self, state: State, ballot: Ballot, reports: Iterable[ClientReport]) -> Outcome:
        """The ensemble teacher of one round.

        Args:
            state: what the rule remembered of earlier rounds; empty at first.
            ballot: rows, classes and quorum.
            reports: checked reports on rows of the ballot, in any order. A rule that streams consumes them one by
                one and never holds two; one that cannot says so, with its memory.

        Raises:
            ValueError: no report at all, or reports on rows that are not on the ballot.

        Guarantees:
            The teacher does not depend on the order of reports, bitwise; scaling all weights changes nothing
            beyond rounding. A row with fewer voters than the ballot needs is not in it. Where several vote, no vote
            has more than LARGEST_SHARE of the trust; a median takes over a vote that has half, a trimmed mean one that
            has all that is left between the ends.
        """
        ...


@dataclass(frozen=True, slots=True)
class Traits:
    """What a rule says of itself beside its settings.

    Attributes:
        needs: what its reports must carry beside votes: of strategies.messages.WANTS.
        subject: what its row numbers mean: see strategies.messages.Subject.
        own_teachers: whether it gives clients teachers of their own, or several to choose from.
    """

    needs: tuple[str, ...] = ()
    subject: Subject = "proxy"
    own_teachers: bool = False


def traits_of(part: object) -> Traits:
    """Those of a rule or a weighting; what it does not say is as in Traits."""
    subject: Subject = getattr(part, "subject", "proxy")
    return Traits(tuple(getattr(part, "needs", ())), subject, bool(getattr(part, "own_teachers", False)))


class Weighting(Protocol):
    """A rule whose trust in each vote can also be lent to another rule: `weight = "confidence"`."""

    def weights(self, report: ClientReport) -> Float64:
        """[n] in [0, 1], one for each row of the report; only ratios on a row matter."""
        ...


class Sharpening(Protocol):
    """A rule whose last step can also follow another rule: `then = { name = "enhanced-era", exponent = 2 }`."""

    def sharpen(self, log_probs: Float64) -> Float64:
        """[n, classes] log-probabilities in, unnormalised log-probabilities out."""
        ...
