"""What a site compares a plan with before any model or private row is touched."""

from __future__ import annotations

from client.config import SiteConfig
from client.promise import Promise
from distillation.data import Proxy
from privacy.policy import PolicyError, check
from strategies.codecs import link_named
from strategies.messages import RoundPlan


def check_plan(
    plan: RoundPlan, answered: int, config: SiteConfig, proxy: Proxy, promise: Promise | None, *, summed: bool
) -> None:
    """Compare a plan with the site's own limits and public set.

    Args:
        answered: plans that private rows were touched for so far.
        summed: the answer leaves masked, in a secure sum, and not alone.

    Raises:
        PolicyError: the site declines; the code says why.
    """
    releases = [*plan.wants, *(["class-tables"] if plan.subject == "classes" else [])]
    check(config.limits(), plan.proxy_sha256, len(plan.ask_rows), answered, releases)
    if plan.proxy_sha256 != proxy.sha256:
        raise PolicyError("proxy_not_allowed", "the plan names another proxy set than the one installed here")
    if plan.classes_sha256 != proxy.classes_sha256 or plan.classes != len(proxy.classes):
        raise PolicyError("wrong_classes", "the plan's class list is not the one of the installed proxy set")
    if "scores" in plan.wants and (config.selector is None or plan.subject == "classes"):
        raise PolicyError("unsupported", "scores are of proxy rows, and only a site with a [selector] has them")
    if len(plan.teachers) > 1 and plan.subject == "classes":
        raise PolicyError("unsupported", "among several class tables there is no nearest one")
    if len(plan.teachers) > 1 and promise is not None and promise.training is None:
        raise PolicyError("unsupported", "the nearest teacher depends on all records, and each may reach one model")
    if summed:
        _check_summed(plan, config, promise)
    else:
        _check_alone(plan, config, promise)


def _check_alone(plan: RoundPlan, config: SiteConfig, promise: Promise | None) -> None:
    """Whether votes may leave one by one; a plan without rows takes none."""
    if promise is not None and promise.split is not None:
        raise PolicyError("secure_sum_required", f"{promise.name} protects a site in a sum, and the plan asks for none")
    if config.policy is not None and config.policy.secure_sum == "require" and len(plan.ask_rows):
        raise PolicyError("secure_sum_required", 'policy.secure_sum = "require", and the plan asks for votes alone')


def _check_summed(plan: RoundPlan, config: SiteConfig, promise: Promise | None) -> None:
    if config.abstains or (promise is not None and getattr(promise.mechanism, "gate_std", None) is not None):
        raise PolicyError("unsupported", "a sum takes a vote on every row: who votes on a row alone would be seen")
    if plan.subject != "proxy" or plan.wants or link_named(plan.uplink).delta or not len(plan.ask_rows):
        raise PolicyError("unsupported", "a sum takes votes on proxy rows, whole and with nothing beside them")
    if promise is not None and promise.split is not None and (plan.sync is not None or len(plan.teachers) > 1):
        raise PolicyError("unsupported", f"{promise.name} clips around the one teacher that the plan carries whole")


def check_again(*, summed: bool) -> None:
    """Whether votes that only the ledger has kept may leave once more.

    Raises:
        PolicyError: not in a sum: who has lost its state, or answered another run since, does not know any more whether
            the sum of these votes was opened, and two sums of other members would tell them.
    """
    if summed:
        raise PolicyError("release_lost", "votes for a sum that this site's state knows nothing of any more")
