"""The messages of one round. Every field of a report is a release: there is no dictionary to slip a number into."""

from __future__ import annotations

from dataclasses import dataclass

from strategies.soft_labels import Int64, SoftLabels

# Only ratios of weights matter; within these bounds the order-free sum keeps nine digits of the lightest vote.
MIN_WEIGHT, MAX_WEIGHT = 0.001, 1.0

# Why a site may decline, as codes: never a path, a number or a sentence made from its data.
REFUSALS = (
    "no_policy",
    "proxy_not_allowed",
    "too_many_rows",
    "too_many_answers",
    "wrong_classes",
    "stale_round",
    "conflicting_plan",
    "unreadable_plan",
    "unknown_rows",
    "bad_teacher",
    "diverged",
    "storage_error",
    "internal_error",
)


@dataclass(frozen=True, slots=True, eq=False)
class RoundPlan:
    """What the coordinator sends down: last round's teacher and the rows that want a vote.

    Attributes:
        run: 32 hex digits, one run of one federation.
        round: from 1.
        proxy_sha256, classes_sha256: 64 hex digits each; content and order of the proxy set and of the classes.
        classes: number of classes.
        codec: name of the codec that answers must use.
        ask_rows: [n] proxy rows, strictly increasing.
        teacher: the ensemble teacher of the round before; None in the first round.
    """

    run: str
    round: int
    proxy_sha256: str
    classes_sha256: str
    classes: int
    codec: str
    ask_rows: Int64
    teacher: SoftLabels | None

    def __post_init__(self) -> None:
        if not 1 <= self.round < 2**32:
            raise ValueError(f"round={self.round} must be in [1, 2^32): the first round is 1")
        if not 2 <= self.classes < 2**32:
            raise ValueError(f"classes={self.classes} must be at least 2")
        for name, digits in (("run", 32), ("proxy_sha256", 64), ("classes_sha256", 64)):
            value = getattr(self, name)
            if len(value) != digits or not set(value) <= set("0123456789abcdef"):
                raise ValueError(f"{name}={value!r} must be {digits} lower-case hex digits")


@dataclass(frozen=True, slots=True, eq=False)
class ClientReport:
    """What one client sends up: its soft labels on the asked rows.

    Attributes:
        client: the site's name; sorted by it wherever order could matter.
        round: the round it answers.
        soft_labels: its votes.
        weight: trust in this client, in [0.001, 1]; only ratios matter.
    """

    client: str
    round: int
    soft_labels: SoftLabels
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not MIN_WEIGHT <= self.weight <= MAX_WEIGHT:
            raise ValueError(
                f"weight={self.weight} must be in [{MIN_WEIGHT}, {MAX_WEIGHT}]: divide all weights by the largest"
            )


@dataclass(frozen=True, slots=True)
class Refusal:
    """A site declines to answer a round; `code` is one of REFUSALS."""

    client: str
    round: int
    code: str

    def __post_init__(self) -> None:
        if self.code not in REFUSALS:
            raise ValueError(f"unknown refusal {self.code!r}; known: {', '.join(REFUSALS)}")
