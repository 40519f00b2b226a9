"""A federation without networks: clients whose votes are drawn by name and round, over the real wire."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from server.exchange import Exchange
from server.rounds import Cohort, Keep, Reply, RoundResult, Speak, run_rounds
from strategies.aggregator import traits_of
from strategies.aggregators import build_aggregator
from strategies.messages import ClientReport, RoundPlan
from strategies.soft_labels import SoftLabels
from strategies.wire import decode_plan, encode_report


def _exchange(**changed: Any) -> Exchange:
    told: dict[str, Any] = {
        "run": "ab" * 16,
        "seed": 3,
        "proxy_sha256": "a1" * 32,
        "classes_sha256": "b2" * 32,
        "classes": 3,
        "proxy_rows": 50,
        "uplink": "float32",
        "downlink": "float32",
        "rows_per_round": 8,
        "quorum": 0.5,
        "participation": 1.0,
    }
    return Exchange(**{**told, **changed})


@pytest.fixture
def exchange() -> Callable[..., Exchange]:
    """A function that makes an Exchange for 50 proxy rows and three classes."""
    return _exchange


class ScriptedCohort:
    """Clients that vote from a seeded generator, and misbehave as told: client -> function of its honest bytes.

    Attributes:
        plans: every plan that was asked, decoded, by exchange and client.
    """

    def __init__(
        self,
        count: int = 6,
        misbehave: Mapping[str, Callable[[bytes], Any]] | None = None,
        order: int = 1,
        classes: int = 3,
        proxy_rows: int = 50,
        keeps: Callable[[str, np.ndarray], np.ndarray] | None = None,
    ) -> None:
        self.clients = [f"c{i:04}" for i in range(count)]
        self.misbehave, self.order, self.classes, self.proxy_rows = misbehave or {}, order, classes, proxy_rows
        self.keeps = keeps or (lambda client, rows: rows)
        self.plans: list[dict[str, RoundPlan]] = []

    def votes(self, client: str, plan: RoundPlan) -> SoftLabels:
        """What a client says: drawn by (client, round, row), so that it does not depend on what else is asked."""
        rows = np.asarray(self.keeps(client, plan.ask_rows), np.int64)
        rng = np.random.default_rng(int(client[1:]) * 1000 + plan.round)
        return SoftLabels.from_logits(rows, rng.normal(size=(self.proxy_rows, self.classes))[rows])

    def report(self, client: str, plan: RoundPlan) -> ClientReport:
        """What a client answers."""
        extras: dict[str, Any] = {}
        votes = self.votes(client, plan)
        if "scores" in plan.wants:
            extras["scores"] = np.linspace(0.0, 1.0, len(votes.rows))
        if "counts" in plan.wants:
            extras["counts"] = np.arange(1.0, self.classes + 1)
        return ClientReport(client, plan.round, votes, **extras)

    def ask(self, plans: Mapping[str, bytes]) -> Iterator[Reply]:
        """Every client's answer at once."""
        decoded = {blob: decode_plan(blob, self.proxy_rows, self.classes) for blob in set(plans.values())}
        self.plans.append({client: decoded[blob] for client, blob in plans.items()})
        for client in list(plans)[:: self.order]:
            plan = self.plans[-1][client]
            honest = encode_report(self.report(client, plan), plan)
            answer = self.misbehave.get(client, lambda blob: blob)(honest)
            for payload in answer if isinstance(answer, list) else [answer]:
                yield Reply(client, payload)


@pytest.fixture
def scripted() -> type[ScriptedCohort]:
    """The cohort of clients without networks."""
    return ScriptedCohort


@pytest.fixture
def run() -> Callable[..., list[RoundResult]]:
    """A function that runs rounds of a cohort: run(cohort, rounds, rule, keep, speak, fields of the exchange)."""

    def go(
        cohort: Cohort,
        rounds: int = 3,
        rule: Any = "mean",
        keep: Keep | None = None,
        speak: Speak | None = None,
        **changed: Any,
    ) -> list[RoundResult]:
        aggregator = build_aggregator(rule, {}) if isinstance(rule, str) else rule
        changed.setdefault("subject", traits_of(aggregator).subject)
        hooks: dict[str, Any] = {key: value for key, value in (("keep", keep), ("speak", speak)) if value}
        return list(run_rounds(cohort, aggregator, _exchange(**changed), rounds, **hooks))

    return go
