"""From what went wrong at a site to the code that may leave; the sentence stays in the site's own log."""

from __future__ import annotations

import logging

from distillation.learner import Diverged
from privacy.policy import PolicyError
from privacy.secure_sum.errors import SecureSumError
from strategies.envelope import WireError
from strategies.messages import Refusal
from strategies.wire import NO_RUN, encode_refusal

log = logging.getLogger("consilium.node")
# What is wrong with a plan that cannot be read, as a refusal's code; anything else is unreadable.
_UNREADABLE = {
    "non_finite": "bad_teacher",
    "not_simplex": "bad_teacher",
    "rows": "unknown_rows",
    "class_list": "wrong_classes",
}


def unreadable(client: str, error: WireError) -> bytes:
    """The answer to bytes that are no plan: neither their run nor their round is believed."""
    log.warning("plan refused: %s", error)
    return encode_refusal(Refusal(client, 0, _UNREADABLE.get(error.reason, "unreadable_plan")), NO_RUN)


def refused(client: str, run: str, round_: int, error: Exception) -> bytes:
    """The answer to a plan, or to a message of a secure sum, that ended with this error; to be called in its handler.

    What is unforeseen is logged with its trace: what escaped would be sent to the coordinator with its text.
    """
    if isinstance(error, PolicyError):
        log.warning("round %d refused: %s", round_, error)
        code = error.code
    elif isinstance(error, SecureSumError):
        log.warning("round %d refused: %s", round_, error)
        code = "secure_sum_refused"
    elif isinstance(error, Diverged):
        log.error("round %d failed: %s", round_, error)
        code = "diverged"
    elif isinstance(error, OSError):
        log.error("round %d failed: the site's disk refused (%s)", round_, error)
        code = "storage_error"
    else:
        log.exception("round %d failed", round_)
        code = "internal_error"
    return encode_refusal(Refusal(client, round_, code), run)
