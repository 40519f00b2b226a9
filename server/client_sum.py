"""Client-level privacy of the teacher in the rounds: clipped answers are added, noise once, and the sum is paid for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from privacy.events import Events, Gaussian, to_json
from privacy.ledger import BudgetExceeded, Ledger, ReleaseLost, Request, Sealed, Terms, Token, canonical
from privacy.mechanisms.client_sum import ClientSum, difference, public_teacher
from privacy.mechanisms.distributed_sum import DistributedClientSum
from privacy.mechanisms.mechanism import DrawnNoise
from privacy.noise import Draw, OsEntropy, SeededEntropy
from server.exchange import Exchange
from server.plain_mean import outcome_of
from server.replies import QuorumError
from strategies.aggregator import Aggregator, Ballot, Outcome, State
from strategies.exact_sum import OrderFreeSum
from strategies.messages import ClientReport
from strategies.seeds import stream_seed
from strategies.soft_labels import Float64

NAME, CLIENT = "client-sum", "coordinator"
SPLIT_NAME = "client-sum-distributed"
# An attempt more for each time that the coordinator died between paying and storing.
_MOST_ATTEMPTS = 100
# OrderFreeSum rounds each term to a multiple of 2^-44; a term cut to this much less than the clip stays within it.
_CUT = 1.0 - 2.0**-20


class ClientSumSettings(BaseModel):
    """What the teacher promises each client, in numbers that are all known before the first round.

    Attributes:
        clip, noise_multiplier, clients: see privacy.mechanisms.client_sum.ClientSum.
        epsilon, delta: of all rounds together.
        rounds: that the budget is for.
        seeded: a simulation, NOT PRIVATE.
        ledger: file; "" = ledger.sqlite beside the checkpoint.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    clip: float
    noise_multiplier: float
    clients: int
    epsilon: float
    delta: float
    rounds: int
    seeded: bool
    ledger: str = ""

    @property
    def mechanism(self) -> ClientSum:
        """With its noise."""
        return ClientSum(self.clip, self.noise_multiplier, self.clients)

    @property
    def total(self) -> Events:
        """The price of all rounds."""
        return (Gaussian(self.noise_multiplier, self.rounds),)

    @property
    def terms(self) -> Terms:
        """Of the ledger."""
        return Terms("client", "zero_out", "plan", self.epsilon, self.delta, None, self.seeded)


class SplitSumSettings(BaseModel):
    """What the sites' own files promise, as far as the coordinator must know it to read their sums.

    Attributes:
        clip, noise_multiplier, clients, least, colluding: see privacy.mechanisms.distributed_sum.DistributedClientSum.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    clip: float
    noise_multiplier: float
    clients: int
    least: int
    colluding: float

    def mechanism(self, classes: int) -> DistributedClientSum:
        """As the sites have it."""
        return DistributedClientSum(**self.model_dump(), classes=classes)


@lru_cache(maxsize=64)
def calibrated(
    clip: float,
    clients: int,
    rounds: int,
    epsilon: float | None,
    delta: float,
    noise_multiplier: float,
    *,
    seeded: bool,
) -> ClientSumSettings:
    """Settings with what was left open filled in.

    Args:
        epsilon: None: what the rounds cost with this noise.
        delta: 0: min(1e-5, 1/(10 clients)).
        noise_multiplier: 0: the least that keeps epsilon.

    Raises:
        ValueError: neither epsilon nor noise, a number out of range, or noise too small for epsilon.
    """
    from privacy.accounting import check_delta, default_delta, epsilon_of
    from privacy.calibration import noise_for_events

    delta = delta or default_delta(clients)
    check_delta(delta, clients)
    if not noise_multiplier:
        if epsilon is None:
            raise ValueError("give epsilon, noise_multiplier, or both: nothing says how much noise there must be")
        noise_multiplier = noise_for_events(epsilon, delta, lambda noise: (Gaussian(noise, rounds),))
    ClientSum(clip, noise_multiplier, clients)  # refuses what is out of range
    cost = epsilon_of((Gaussian(noise_multiplier, rounds),), delta)
    if epsilon is not None and cost > epsilon:
        raise ValueError(
            f"noise_multiplier={noise_multiplier} costs {cost:.4g} in {rounds} rounds and epsilon={epsilon}: give more "
            "noise, fewer rounds, or leave noise_multiplier out"
        )
    return ClientSumSettings(
        clip=clip,
        noise_multiplier=noise_multiplier,
        clients=clients,
        epsilon=epsilon or cost,
        delta=delta,
        rounds=rounds,
        seeded=seeded,
    )


@dataclass(frozen=True, slots=True)
class ClientSumRule:
    """A rule on what ClientSum lets out of a round's votes: everything after the noise is free.

    The previous teacher, around which answers are clipped, is what was let out of a row last, or uniform. An abstention
    adds nothing, nor does a client that is not there.

    Attributes:
        rule: what follows from a mean: see server.plain_mean.
        settings: the promise.
        exchange: of the run.
        path: the coordinator's own ledger.

    Guarantees:
        A round is paid for before it is aggregated, once; resumed, it gets the bytes that were let out then. Every row
        of the ballot is in the teacher, whoever voted on it. Order of the reports changes no bit.
    """

    rule: Aggregator
    settings: ClientSumSettings
    exchange: Exchange
    path: Path

    def aggregate(self, state: State, ballot: Ballot, reports: Iterable[ClientReport]) -> Outcome:
        """See strategies.aggregator.Aggregator.

        Raises:
            QuorumError: the budget does not pay for this round.
            LedgerError: the ledger is not the one that it was.
        """
        told = state.get("told", np.full((self.exchange.universe, ballot.classes), 1.0 / ballot.classes))
        mean = self._released(ballot, public_teacher(told[ballot.rows]), reports)
        after = np.array(told, np.float64)
        after[ballot.rows] = mean
        outcome = outcome_of(self.rule, {}, ballot, mean)
        return Outcome(outcome.teacher, {"told": after})

    def _released(self, ballot: Ballot, base: Float64, reports: Iterable[ClientReport]) -> Float64:
        """[rows, classes] paid for, let out and stored; the stored one, where this round was let out before."""
        settings = self.settings
        with Ledger.open_or_create(self.path, settings.terms) as ledger:
            try:
                paid, attempt = self._paid(ledger, ballot, base)
            except BudgetExceeded as error:
                charged, delta = ledger.charged()
                reason = (
                    f"the budget of {CLIENT} is out: epsilon {charged:.4f} of {settings.epsilon:.4f} at delta "
                    f"{delta:.4g} is charged, for {ledger.count()} rounds so far"
                )
                raise QuorumError(ballot.round, reason, (), refused=True) from error
            total = _total(ballot, base, reports, settings.clip)
            if isinstance(paid, Sealed):
                return np.frombuffer(paid.payload, "<f8").reshape(base.shape)
            released = settings.mechanism.noised(total, base, self._noise(ballot.round, attempt))
            ledger.store(paid, released.astype("<f8").tobytes())
            return released

    def _paid(self, ledger: Ledger, ballot: Ballot, base: Float64) -> tuple[Token | Sealed, int]:
        """What pays for a round, and the attempt that it is.

        One that was paid for and lost with its process is paid for once more: the last round then finds no budget.
        """
        settings, mechanism = self.settings, self.settings.mechanism
        plan = canonical({"mechanism": NAME, "parameters": asdict(mechanism), "total": to_json(settings.total)})
        ledger.plan(plan, settings.total)
        asked = hashlib.sha256(ballot.rows.astype("<i8").tobytes() + base.astype("<f8").tobytes()).hexdigest()
        for attempt in range(_MOST_ATTEMPTS):
            request = Request(
                self.exchange.run, ballot.round, attempt, CLIENT, NAME, canonical(asdict(mechanism)), asked
            )
            try:
                return ledger.reserve(request, mechanism.events(len(ballot.rows)), plan=plan), attempt
            except ReleaseLost:
                continue
        raise BudgetExceeded(f"round {ballot.round} was paid for {_MOST_ATTEMPTS} times and never stored")

    def _noise(self, round_: int, attempt: int) -> DrawnNoise:
        seed = stream_seed(self.exchange.seed, "noise", CLIENT, self.exchange.run, round_, attempt)
        return DrawnNoise(Draw(SeededEntropy(seed, NAME) if self.settings.seeded else OsEntropy()))


def _total(ballot: Ballot, base: Float64, reports: Iterable[ClientReport], clip: float) -> Float64:
    """[rows, classes] the sum of the clients' differences to the previous teacher, each cut to the clip."""
    total = OrderFreeSum(base.shape, 2.0)
    for report in reports:
        answer = base.copy()
        answer[ballot.positions(report)] = report.soft_labels.probabilities()
        total.add(difference(answer, base, clip * _CUT))
    return total.value()
