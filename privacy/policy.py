"""The site's own limits on what its model answers. The coordinator can neither see nor set them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


class PolicyError(Exception):
    """The site declines; `code` is public, the message stays at the site."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


@dataclass(frozen=True, slots=True)
class Policy:
    """What a site is willing to answer, over the life of its state: a coordinator that begins new runs gains nothing.

    Attributes:
        proxy_sha256: the public sets whose rows it votes on.
        max_rows_per_round: votes in one answer.
        max_answers: different plans that private rows are touched for, over all runs; one that fails counts as well.
        release: what else may leave, beside one vote on every asked row: of RELEASES.
    """

    proxy_sha256: tuple[str, ...]
    max_rows_per_round: int
    max_answers: int
    release: tuple[str, ...] = ()


# What may leave beside votes; each is a statistic of private rows.
RELEASES = (
    "abstentions",  # which asked rows the site's selector leaves out; without it the site votes on all of them
    "scores",  # how competent its selector finds it on each row that it votes on
    "counts",  # how many private rows of each class there are
    "class-tables",  # the model's mean outputs on the private rows of each class, and so which classes there are
)


def check(policy: Policy | None, proxy_sha256: str, rows: int, answered: int, releases: Collection[str] = ()) -> None:
    """Return if the policy allows one more answer with `rows` votes after `answered` ones; no policy allows nothing.

    Args:
        answered: plans counted so far, the failed ones among them.
        releases: what the plan asks beside votes.

    Raises:
        PolicyError: codes no_policy, proxy_not_allowed, too_many_rows, too_many_answers, not_released.
    """
    if policy is None:
        raise PolicyError("no_policy", "the site's file has no [policy]: nothing leaves until its owner writes one")
    if proxy_sha256 not in policy.proxy_sha256:
        raise PolicyError("proxy_not_allowed", f"proxy set {proxy_sha256} is not on the policy's list")
    if rows > policy.max_rows_per_round:
        raise PolicyError("too_many_rows", f"{rows} rows asked; the policy allows {policy.max_rows_per_round}")
    if answered >= policy.max_answers:
        raise PolicyError("too_many_answers", f"{answered} answers given; the policy allows {policy.max_answers}")
    for name in releases:
        if name not in policy.release:
            raise PolicyError("not_released", f"the plan asks for {name}; policy.release does not list it")
