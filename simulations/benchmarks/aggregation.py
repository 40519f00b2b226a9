"""A round's worth of 1,000 replies of 1,000 rows x 10 classes: time, and memory that does not grow with clients.

    python simulations/benchmarks/aggregation.py [--write]

Every reply is real bytes, decoded, checked and pooled as it arrives; each rule runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from server.exchange import Exchange
from server.rounds import Reply, run_rounds
from simulations.benchmarks.readme import machine, table, write_section
from simulations.engines.worker import peak_bytes
from strategies.aggregator import traits_of
from strategies.aggregators import AGGREGATORS, build_aggregator
from strategies.messages import ClientReport
from strategies.soft_labels import SoftLabels
from strategies.wire import decode_plan, encode_report

ROWS, CLASSES, CLIENTS = 1000, 10, 1000
LIMIT_MB = 500
EXCHANGE = Exchange(
    run="ab" * 16,
    seed=1,
    proxy_sha256="a1" * 32,
    classes_sha256="b2" * 32,
    classes=CLASSES,
    proxy_rows=ROWS,
    uplink="float16",
    downlink="float16",
    rows_per_round=ROWS,
    quorum=1.0,
    participation=1.0,
)


class Senders:
    """As many clients as asked for; each reply is encoded when its turn comes, and that time is not counted."""

    def __init__(self, count: int) -> None:
        self.clients = [f"site-{index:04}" for index in range(count)]
        self.away_s = 0.0

    def ask(self, plans: Mapping[str, bytes]) -> Iterator[Reply]:
        """One honest reply each, with what the plan asks beside votes."""
        rng = np.random.default_rng(0)
        (plan,) = (decode_plan(blob, ROWS, CLASSES) for blob in set(plans.values()))
        rows = plan.ask_rows
        scores = np.linspace(0.0, 1.0, len(rows)) if "scores" in plan.wants else None
        counts = np.arange(1.0, CLASSES + 1.0) if "counts" in plan.wants else None
        for client in plans:
            started = time.perf_counter()
            votes = SoftLabels.from_logits(rows, rng.normal(size=(len(rows), CLASSES)))
            blob = encode_report(ClientReport(client, 1, votes, scores=scores, counts=counts), plan)
            self.away_s += time.perf_counter() - started
            yield Reply(client, blob)


def measure(rule: str) -> dict[str, float]:
    """Seconds and peak memory for few and for all clients."""
    aggregator = build_aggregator(rule, {})
    exchange = replace(EXCHANGE, subject=traits_of(aggregator).subject)
    for count in (10, CLIENTS):
        senders = Senders(count)
        started = time.perf_counter()
        list(run_rounds(senders, aggregator, exchange, 1))
        seconds = time.perf_counter() - started - senders.away_s
        if count == 10:
            few = peak_bytes()
    return {"seconds": seconds, "peak_mb": peak_bytes() / 1e6, "growth_mb": (peak_bytes() - few) / 1e6}


def main() -> None:
    """Measure every rule, print, and on request write the README's section."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rule", choices=sorted(AGGREGATORS), help="measure one rule in this process, as JSON")
    parser.add_argument("--write", action="store_true", help="write the README's section")
    arguments = parser.parse_args()
    if arguments.rule:
        print(json.dumps(measure(arguments.rule)))
        return
    rows = []
    for rule in AGGREGATORS:
        command = [sys.executable, str(Path(__file__)), "--rule", rule]
        got = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        seconds, peak, growth = (
            f"{got[key]:.{digits}f}" for key, digits in (("seconds", 2), ("peak_mb", 0), ("growth_mb", 1))
        )
        rows.append([f"`{rule}`", f"{seconds} s", f"{peak} MB", f"{growth} MB"])
    text = table(
        ["rule", "1,000 replies", f"peak memory (limit {LIMIT_MB} MB)", "growth from 10 to 1,000 clients"], rows
    )
    text += f"\n\nEvery reply decoded from bytes, checked and pooled, 1,000 rows x 10 classes; {machine()}."
    print(text)
    if arguments.write:
        write_section("aggregation", text)


if __name__ == "__main__":
    main()
