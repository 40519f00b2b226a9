"""The one error of secure sums: a reason from a fixed list, and a sentence."""

from __future__ import annotations

# Why a message, or what somebody wants to do next, is refused.
REASONS = (
    "foreign",  # not our magic, or a kind that is not expected here
    "truncated",  # shorter than it says, or longer
    "corrupted",  # the checksum does not match
    "version",  # another version of these messages
    "malformed",  # a field that breaks its own rule
    "wrong_session",  # another run, round or attempt
    "wrong_party",  # from or for another client
    "wrong_view",  # other keys, other members or another sheet than the ones seen here
    "wrong_stage",  # too early: an earlier stage is still open
    "replayed",  # a request that was answered
    "conflict",  # another request for a stage that was answered
    "not_invited",
    "not_in_sum",  # asked to open a sum without one's own input
    "too_few",  # fewer than the threshold, or a threshold below what the site accepts
    "identity",  # a signature that is missing or wrong, or a client that is not in the registry
    "key",  # a public key that cannot be used, or one that its owner did not send
    "sealed",  # a share that cannot be opened
    "shares",  # shares that do not combine to what was announced
)


class SecureSumError(ValueError):
    """A message or a step that is refused; `reason` is one of REASONS, and no text holds a value or a secret."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
