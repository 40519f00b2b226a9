"""ExpGuard: trust from round to round by how near a client was to a robust teacher (Roux et al. 2025)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from strategies.aggregator import Aggregator, Ballot, Outcome, State, traits_of
from strategies.aggregators.median import Median
from strategies.aggregators.pooling import TRUST_FLOOR
from strategies.aggregators.stacking import Block, Stack, stacked, weighted_mean
from strategies.messages import ClientReport
from strategies.soft_labels import Float64, SoftLabels

_KEY = "expguard."


@dataclass(frozen=True, slots=True)
class ExpGuard:
    """y = sum_k w_k exp(g_k) p_k over the row's voters, normalised. Nobody is dropped. Holds all votes.

    d_k is the mean L2 distance of client k's votes to the teacher of `base`, over its rows. After each round
    g_k <- g_k - step * d_k + c for those whose answers came in it, in time or late, c such that the sum of their exp(g)
    stays what it was: neither voting nor staying away wins or costs trust (the sleeping experts of Freund et al. 1997;
    subtracting the plain mean of d would let the present grow away from honest absentees with every attack). A new
    client starts with the mean trust of the known, exp(g), times exp(-probation).

    Weights multiply exp(g) in the teacher and count in `base`; distances and trust do not see them.

    Attributes:
        step: eta in (0, 100].
        probation: in [0, 100], what a new client starts below the others; whoever comes under a new name pays it.
        base: the rule that distances are taken to; rows that it leaves out are left out.
    """

    step: float = 1.0
    probation: float = 1.0
    base: Aggregator = field(default_factory=Median)

    def __post_init__(self) -> None:
        if not 0.0 < self.step <= 100.0:
            raise ValueError(f"step={self.step} must be in (0, 100]: at 0 nobody would ever lose trust")
        if not 0.0 <= self.probation <= 100.0:
            raise ValueError(f"probation={self.probation} must be in [0, 100]: 0 trusts newcomers like the others")
        if isinstance(self.base, ExpGuard):
            raise ValueError("base=expguard would keep two books under the same names: take another rule")
        traits = traits_of(self.base)
        if traits.own_teachers or traits.subject == "classes":
            raise ValueError("base must give one teacher on proxy rows: clustered and per-class give several or none")

    @property
    def needs(self) -> tuple[str, ...]:
        """What reports must carry beside votes: what the base needs."""
        return traits_of(self.base).needs

    def aggregate(self, state: State, ballot: Ballot, reports: Iterable[ClientReport]) -> Outcome:
        reports = list(reports)
        ours = {key.removeprefix(_KEY): float(value) for key, value in state.items() if key.startswith(_KEY)}
        theirs = {key: value for key, value in state.items() if not key.startswith(_KEY)}
        outcome = self.base.aggregate(theirs, ballot, reports)
        stack = stacked(ballot, reports).only(outcome.teacher.rows)
        before = self._trust(ours, stack.clients)
        heard = [ballot.heard is None or name in ballot.heard for name in stack.clients]
        after = _moved(before, np.where(heard, self.step * _distances(stack, outcome.teacher), np.nan))
        kept = {**ours, **dict(zip(stack.clients, after, strict=True))}
        logs = {_KEY + name: np.array(value, np.float64) for name, value in sorted(kept.items())}
        return Outcome(stack.teacher(lambda block: _trusted_mean(block, after)), {**outcome.state, **logs})

    def _trust(self, known: dict[str, float], clients: tuple[str, ...]) -> Float64:
        """[K] log-trust before the round."""
        start = 0.0
        if known:
            start = float(np.logaddexp.reduce(sorted(known.values())) - np.log(len(known))) - self.probation
        return np.array([known.get(name, start) for name in clients])


def _moved(trust: Float64, losses: Float64) -> Float64:
    """Log-trust after losses, NaN for a client that was not measured; the measured keep their sum of exp(trust)."""
    measured = ~np.isnan(losses)
    if not measured.any():
        return trust
    lost = np.where(measured, trust - losses, trust)
    given_back = np.logaddexp.reduce(trust[measured]) - np.logaddexp.reduce(lost[measured])
    return np.where(measured, lost + given_back, trust)


def _distances(stack: Stack, teacher: SoftLabels) -> Float64:
    """[K] mean L2 distance of each client's votes to the teacher; NaN without a vote on its rows."""
    total, rows, start = np.zeros(len(stack.clients)), np.zeros(len(stack.clients)), 0
    truth = teacher.probabilities()[np.isin(teacher.rows, stack.rows)]
    for block in stack.blocks():
        apart = block.probabilities() - truth[start : start + len(block.rows), :, None]
        total += (np.sqrt(np.einsum("mck,mck->mk", apart, apart)) * block.mask).sum(axis=0)
        rows += block.mask.sum(axis=0)
        start += len(block.rows)
    return np.where(rows > 0, total / np.maximum(rows, 1), np.nan)


def _trusted_mean(block: Block, log_trust: Float64) -> Float64:
    """[m, C] mean of a block's votes by weight times exp(log_trust), whatever its scale on the row."""
    logs = np.where(block.mask, log_trust, -np.inf)
    # Who voted is trusted with something: of nothing nine tenths could not be had.
    shares = np.where(block.mask, np.maximum(np.exp(logs - logs.max(axis=1, keepdims=True)), TRUST_FLOOR), 0.0)
    return weighted_mean(block.probabilities(), block.weights * shares)
