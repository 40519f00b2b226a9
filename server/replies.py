"""What the network says to one exchange, and what a round has made of it so far."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from server.checks import Failure
from server.links import News


@dataclass(frozen=True, slots=True)
class Reply:
    """What the network says of one asked client: its bytes, or why there are none.

    Attributes:
        round: of the plan that it answers; 0: the one that was just sent.
    """

    client: str
    payload: bytes | Failure
    round: int = 0


class Cohort(Protocol):
    """The network, as one method."""

    @property
    def clients(self) -> Sequence[str]:
        """Everybody who can be asked, by name."""
        ...

    def ask(self, plans: Mapping[str, bytes]) -> Iterator[Reply]:
        """Send each client its plan; one reply each, as they arrive, within the cohort's own deadline.

        Equal plans are the same object. A cohort that can still hear an answer after its deadline yields it among
        those of a later round, with the round that it belongs to. The messages of a secure sum travel as plans do.
        """
        ...


# Why there is no answer where only the site's owner can change that.
_OWNERS = frozenset(
    f"refused_{code}"
    for code in (
        *("budget_out", "no_policy", "proxy_not_allowed", "too_many_rows", "too_many_answers", "not_released"),
        "secure_sum_required",
    )
)


class QuorumError(RuntimeError):
    """Too few usable answers, or no row with enough voters; the round, and with it the run, has failed.

    Attributes:
        lost: clients that must be told everything when the run is resumed, else they would refuse again.
        refused: privacy budgets or policies alone keep the round from going on, so that to resume cannot help.
    """

    def __init__(
        self,
        round_: int,
        reason: str,
        failures: tuple[Failure, ...],
        lost: Collection[str] = (),
        *,
        refused: bool = False,
    ) -> None:
        self.round, self.failures, self.lost, self.refused = round_, failures, frozenset(lost), refused
        named = ", ".join(f"{failure.client} ({failure.reason})" for failure in failures[:20])
        more = f" and {len(failures) - 20} more" if len(failures) > 20 else ""
        told = f"round {round_}: {reason}" + (f"; without one: {named}{more}" if failures else "")
        told += (
            "; `consilium budget` shows what is spent, another budget or policy is its owner's decision, and --resume "
            "does not help"
            if refused
            else ""
        )
        super().__init__(told)


@dataclass(slots=True)
class Tally:
    """What one round's replies amounted to, counted while they stream through."""

    news: News = field(default_factory=News)
    replies: int = 0
    late: int = 0
    upload_bytes: int = 0
    download_bytes: int = 0
    failures: list[Failure] = field(default_factory=list)

    def sorted_failures(self) -> tuple[Failure, ...]:
        """By client, so that their order of arrival cannot matter."""
        return tuple(sorted(self.failures, key=lambda failure: failure.client))

    def forbidden(self, voices: int, needed: int) -> bool:
        """Whether too few of so many voices would be left if everybody had answered whose owner lets them."""
        owners = {failure.client for failure in self.failures if failure.reason in _OWNERS}
        return bool(owners) and voices - len(owners) < needed

    def failed(self, failure: Failure) -> None:
        """One client did not contribute."""
        if failure.reason in ("base", "refused_need_key"):
            self.news.lost.add(failure.client)
        self.failures.append(failure)
