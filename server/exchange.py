"""What stays the same in all rounds of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from strategies.codecs import link_named
from strategies.messages import Subject


@dataclass(frozen=True, slots=True)
class Exchange:
    """Identities of a run, and how much is asked of whom.

    Attributes:
        run: 32 hex digits.
        seed: of the choice of rows and clients.
        proxy_sha256, classes_sha256: 64 hex digits each.
        classes, proxy_rows: sizes.
        uplink, downlink: how votes travel up and teachers down; see strategies.codecs.
        rows_per_round: proxy rows that a round asks for.
        quorum: share of the asked clients whose answer must be usable; in async mode those count who may still answer.
        participation: share of the clients that a round asks.
        row_quorum: voters that a row needs; see strategies.aggregator.voters_needed.
        choice: which rows: one of strategies.selection.CHOICES.
        cache_rounds: D, how long a label is used before its row is asked again (SCARLET); 0: no cache.
        subject: what is voted on: rows of the proxy set, or classes (the tables of Jeong et al.).
        mode: `sync`: a reply after the deadline is lost; `async`: it counts in the round in which it comes.
        staleness: exponent a of a late vote's weight (1 + rounds late)^-a.
        patience: rounds after which a late answer is no longer waited for, and its client is asked again.
        secure_sum: votes come as one masked sum: see server.secure_round.
    """

    run: str
    seed: int
    proxy_sha256: str
    classes_sha256: str
    classes: int
    proxy_rows: int
    uplink: str
    downlink: str
    rows_per_round: int
    quorum: float
    participation: float
    row_quorum: float | int = 0.3
    choice: str = "random"
    cache_rounds: int = 0
    subject: Subject = "proxy"
    mode: Literal["sync", "async"] = "sync"
    staleness: float = 0.5
    patience: int = 5
    secure_sum: bool = False

    @property
    def universe(self) -> int:
        """How many different rows there are."""
        return self.proxy_rows if self.subject == "proxy" else self.classes

    @property
    def synced(self) -> bool:
        """Whether teachers go down as differences to what a client holds."""
        return self.cache_rounds > 0 or link_named(self.downlink).delta
