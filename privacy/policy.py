"""The site's own limits on what its model answers. The coordinator can neither see nor set them."""

from __future__ import annotations

from dataclasses import dataclass


class PolicyError(Exception):
    """The site declines; `code` is public, the message stays at the site."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


@dataclass(frozen=True, slots=True)
class Policy:
    """What a site is willing to answer, over the life of one run.

    Attributes:
        proxy_sha256: the public sets whose rows it votes on.
        max_rows_per_round: votes in one answer.
        max_rounds: rounds of one run that it answers.
    """

    proxy_sha256: tuple[str, ...]
    max_rows_per_round: int
    max_rounds: int


def check(policy: Policy | None, proxy_sha256: str, rows: int, round_: int) -> None:
    """Return if the policy allows an answer with `rows` votes in round `round_`; no policy allows nothing.

    Raises:
        PolicyError: codes no_policy, proxy_not_allowed, too_many_rows, too_many_rounds.
    """
    if policy is None:
        raise PolicyError("no_policy", "the site's file has no [policy]: nothing leaves until its owner writes one")
    if proxy_sha256 not in policy.proxy_sha256:
        raise PolicyError("proxy_not_allowed", f"proxy set {proxy_sha256} is not on the policy's list")
    if rows > policy.max_rows_per_round:
        raise PolicyError("too_many_rows", f"{rows} rows asked; the policy allows {policy.max_rows_per_round}")
    if round_ > policy.max_rounds:
        raise PolicyError("too_many_rounds", f"round {round_}; the policy allows {policy.max_rounds}")
