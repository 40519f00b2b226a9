"""What a secure sum of 1,000 rows x 10 classes costs: seconds and bytes of a client and of the server.

    python simulations/benchmarks/secure_sum.py [--write]

Every message is real bytes; clients know each other by signed keys and sign who is in the sum. They drop out at the
worst moment: after they shared their keys, before their input.
"""

from __future__ import annotations

import argparse
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np

from privacy.noise import OsEntropy
from privacy.secure_sum import client, server
from privacy.secure_sum.client_state import ClientState
from privacy.secure_sum.keys import identity_key
from privacy.secure_sum.messages import invitation
from privacy.secure_sum.session import Session, Site
from privacy.secure_sum.sheet import Int64, Sheet
from simulations.benchmarks.readme import machine, table, write_section

ROWS, CLASSES = 1000, 10
_Made = TypeVar("_Made")


class Meter:
    """Seconds and bytes by who spent them."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.sent: defaultdict[str, int] = defaultdict(int)
        self.received: defaultdict[str, int] = defaultdict(int)

    def timed(self, who: str, work: Callable[[], _Made]) -> _Made:
        """Do something on somebody's clock."""
        started = time.perf_counter()
        made = work()
        self.seconds[who] += time.perf_counter() - started
        return made


class Round:
    """One session, each client's step on its own clock; a client is its name and its state as bytes."""

    def __init__(self, clients: int) -> None:
        names = tuple(f"site-{index:04}" for index in range(clients))
        self.session = Session(secrets.token_hex(16), 1, secrets.token_hex(16), names, 2 * clients // 3 + 1)
        self.meter, self._states = Meter(), dict.fromkeys(names, b"")
        keys = {name: secrets.token_bytes(32) for name in names}
        registry = {name: identity_key(key) for name, key in keys.items()}
        self.sites = {name: Site(name, registry=registry, identity=key, agreement=True) for name, key in keys.items()}

    def answers(
        self, requests: Iterable[tuple[str, bytes]], step: Callable[[str, bytes, bytes], tuple[ClientState, bytes]]
    ) -> dict[str, bytes]:
        """Ask each named client once."""
        told = {}
        for name, request in requests:
            state, told[name] = self.meter.timed(name, lambda: step(name, self._states[name], request))  # noqa: B023
            self._states[name] = state.to_bytes()
            self.meter.received[name] += len(request)
            self.meter.sent[name] += len(told[name])
        return told

    def run(self, sheet: Sheet, steps: dict[str, Int64], gone: int) -> server.Opened:
        """All stages; the last `gone` clients send no input."""
        meter, session, entropy = self.meter, self.session, OsEntropy()
        first = ((name, invitation(session)) for name in session.clients)
        joined = self.answers(first, lambda name, _, __: client.join(self.sites[name], session, entropy))
        keyed = meter.timed("server", lambda: server.keyed(session, joined))
        message = keyed.message
        shares = self.answers(
            ((name, message) for name in keyed.asked),
            lambda name, state, told: client.share(self.sites[name], ClientState.from_bytes(state), told, entropy),
        )
        shared = meter.timed("server", lambda: server.shared(keyed, shares))
        left = session.clients[: len(session.clients) - gone]
        masked = self.answers(
            ((name, shared.messages[name]) for name in left),
            lambda name, state, told: client.mask(ClientState.from_bytes(state), told, sheet, steps[name]),
        )
        summing = meter.timed("server", lambda: _summed(shared, sheet, masked))
        listed = server.survivors_list(summing)
        lists = self.answers(
            ((name, listed) for name in left),
            lambda name, state, told: client.agree(self.sites[name], ClientState.from_bytes(state), told),
        )
        agreement = meter.timed("server", lambda: server.signed_by(summing, lists))
        request = server.opening(summing, agreement)
        opened = self.answers(
            ((name, request) for name in summing.asked),
            lambda name, state, told: client.unmask(self.sites[name], ClientState.from_bytes(state), told),
        )
        return meter.timed("server", lambda: server.total(summing, opened))


def _summed(shared: server.Shared, sheet: Sheet, masked: dict[str, bytes]) -> server.Summing:
    summing = server.summing(shared, sheet)
    for name, answer in masked.items():
        summing = server.added(summing, name, answer)
    return summing


def measure(clients: int, dropouts: float) -> list[str]:
    """One row of the table, from a round whose total was compared with the plain sum."""
    rng, gone = np.random.default_rng(0), round(dropouts * clients)
    round_, sheet = Round(clients), Sheet(ROWS, CLASSES, "ab" * 32)
    votes = {name: rng.dirichlet(np.ones(CLASSES), ROWS) for name in round_.session.clients}
    steps = {name: sheet.quantised(vote) for name, vote in votes.items()}
    total = round_.run(sheet, steps, gone).total
    there = round_.session.clients[: clients - gone]
    if not (total.steps == sum(steps[name] for name in there)).all():
        raise RuntimeError("the sum is not the sum")
    meter = round_.meter
    return [
        str(clients),
        str(round_.session.threshold),
        f"{dropouts:.0%}".replace("%", " %"),
        f"{1e3 * np.mean([meter.seconds[name] for name in there]):.0f} ms",
        f"{1e3 * meter.seconds['server']:.0f} ms",
        f"{np.mean([meter.sent[name] for name in there]) / 1e3:.1f} kB",
        f"{np.mean([meter.received[name] for name in there]) / 1e3:.1f} kB",
        f"{sheet.bits(clients)}",
    ]


def main() -> None:
    """Measure, print, and on request write the README's section."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="write the README's section")
    arguments = parser.parse_args()
    measure(10, 0.2)  # first calls load libraries
    rows = [measure(clients, dropouts) for clients in (10, 50, 100) for dropouts in (0.0, 0.2)]
    heading = [
        "clients",
        "must stay",
        "drop out",
        "a client",
        "the server",
        "a client sends",
        "and gets",
        "bits a number",
    ]
    text = table(heading, rows)
    text += (
        f"\n\nAll five stages, with signatures, of one sum of {ROWS:,} rows x {CLASSES} classes with counts, grid "
        f"2^-12; as plain float16 votes a client sends {2 * ROWS * CLASSES / 1e3:.1f} kB; {machine()}."
    )
    print(text)
    if arguments.write:
        write_section("secure-sum", text)


if __name__ == "__main__":
    main()
