"""Does each mechanism's noise match its claim? Many releases of two synthetic neighbours, told apart as well as can be.

Both neighbours are made up, and as far apart as the mechanism's sensitivity allows where that can be had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from privacy.accounting import epsilon_of
from privacy.audit.mechanism_audit import audit_mechanism
from privacy.audit.record_replay import Call, Recorder
from privacy.dp_spec import DpSgd
from privacy.events import Events
from privacy.mechanisms.client_sum import ClientSum
from privacy.mechanisms.distributed_sum import DistributedClientSum
from privacy.mechanisms.gaussian import GaussianOutput
from privacy.mechanisms.krr import KRandomizedResponse
from privacy.mechanisms.mechanism import DrawnNoise, Noise
from privacy.mechanisms.pate import Pate
from privacy.noise import Draw, SeededEntropy
from simulations.config import ConfigError
from strategies.soft_labels import Float64

DELTA = 1e-5
LEAST_RUNS = 100
# All noise is twice the sensitivity of a whole release: epsilon 1.9931 at delta 1e-5, for Gaussians.
_NOISE, _ROWS, _TEACHERS, _CLIENTS = 2.0, 20, 10, 4
_LABEL_EPSILON = 0.1
_RECORDS = 8


@dataclass(frozen=True, slots=True)
class Case:
    """A mechanism and two neighbours.

    Attributes:
        unit: whose presence the neighbours differ in.
        events: what one release claims to cost.
        releases: `times` releases of the first neighbour, or of the second, as [values] that were noised, and as they
            were before.
    """

    unit: str
    events: Events
    releases: Callable[[bool, int, Noise], Iterator[tuple[Float64, Float64]]]


@dataclass(frozen=True, slots=True)
class Audited:
    """What the releases of one mechanism showed.

    Attributes:
        mechanism, unit: what was audited.
        runs: on each neighbour.
        delta: of all epsilons.
        claimed: epsilon of its events.
        epsilon_low: a lower bound at 95 %, without any assumption.
        gaussian_epsilon_low: the same if the noise is normal: 2 to 4 times tighter.
        refuted: whether either is above the claim.
    """

    mechanism: str
    unit: str
    runs: int
    delta: float
    claimed: float
    epsilon_low: float
    gaussian_epsilon_low: float
    refuted: bool

    def row(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def audit_mechanisms(
    names: Sequence[str] = (),
    runs: int = 1000,
    seed: int = 1,
    cases: Mapping[str, Callable[[], Case]] | None = None,
    on_case: Callable[[int, int], None] = lambda done, total: None,
) -> list[Audited]:
    """Audit mechanisms, each on its own neighbours.

    Args:
        names: of `cases`; all of them where empty.
        runs: releases of each neighbour.
        cases: CASES, or others.
        on_case: told after each.

    Raises:
        ConfigError: a mechanism that there is not, or too few runs.
    """
    known = CASES if cases is None else cases
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"unknown mechanism {unknown[0]!r}; known: {', '.join(sorted(known))}")
    if runs < LEAST_RUNS:
        raise ConfigError(f"runs={runs} must be at least {LEAST_RUNS}: fewer show nothing")
    found = []
    for name in names or known:
        found.append(_audited(name, known[name](), runs, seed))
        on_case(len(found), len(names or known))
    return found


def _audited(name: str, case: Case, runs: int, seed: int) -> Audited:
    released, clean = [], []
    for first in (True, False):
        noise = DrawnNoise(Draw(SeededEntropy(seed, "audit", "mechanism", name, int(first))))
        pairs = list(case.releases(first, runs, noise))
        released.append(np.stack([noised for noised, _ in pairs]))
        clean.append(pairs[0][1])
    found = audit_mechanism(released[0], released[1], clean[0] - clean[1], DELTA)
    claimed = epsilon_of(case.events, DELTA)
    told = (name, case.unit, runs, DELTA, claimed, found.epsilon, found.gaussian_epsilon)
    return Audited(*told, found.refutes(claimed))


def _repeated(
    run: Callable[[bool, Noise], object], seen: Callable[[Sequence[Call]], tuple[Float64, Float64]]
) -> Callable[[bool, int, Noise], Iterator[tuple[Float64, Float64]]]:
    """One release after another; `seen` says which of its noised values an adversary has."""

    def releases(first: bool, times: int, noise: Noise) -> Iterator[tuple[Float64, Float64]]:
        for _ in range(times):
            recorder = Recorder(noise)
            run(first, recorder)
            yield seen(recorder.calls)

    return releases


def _all(calls: Sequence[Call]) -> tuple[Float64, Float64]:
    """Whatever was noised, before clipping and projection."""
    return _flat([call.released for call in calls]), _flat([call.values for call in calls])


def _sum(calls: Sequence[Call]) -> tuple[Float64, Float64]:
    """Only the sum, as behind secure aggregation."""
    released = np.sum([call.released for call in calls], axis=0)
    return _flat([released]), _flat([np.sum([call.values for call in calls], axis=0)])


def _flat(parts: Sequence[Any]) -> Float64:
    values: Float64 = np.concatenate([np.asarray(part, np.float64).ravel() for part in parts])
    return values


def _votes(first: bool, rows: int = _ROWS) -> Float64:
    """[rows, 2] all rows in one corner, or in the other: one record may turn a whole model."""
    votes: Float64 = np.eye(2)[np.full(rows, 0 if first else 1)]
    return votes


def _pate() -> Case:
    mechanism = Pate(_TEACHERS, vote_std=_NOISE * np.sqrt(2.0 * _ROWS))
    others = np.broadcast_to(_votes(True), (_TEACHERS - 1, _ROWS, 2))

    def run(first: bool, noise: Noise) -> Float64:
        return mechanism.release(np.concatenate([_votes(first)[None], others]), noise)

    return Case(mechanism.UNIT, mechanism.events(_ROWS), _repeated(run, _all))


def _gaussian_output() -> Case:
    mechanism = GaussianOutput(_NOISE, allow_baseline=True)
    releases = _repeated(lambda first, noise: mechanism.release(_votes(first), noise), _all)
    return Case(mechanism.UNIT, mechanism.events(_ROWS), releases)


def _krr() -> Case:
    mechanism = KRandomizedResponse(_LABEL_EPSILON, 2, allow_baseline=True)
    releases = _repeated(lambda first, noise: mechanism.release(_votes(first), noise), _all)
    return Case(mechanism.UNIT, mechanism.events(_ROWS), releases)


def _client_sum() -> Case:
    mechanism, previous = ClientSum(1.0, _NOISE, _CLIENTS), np.full((_ROWS, 2), 0.5)

    def run(first: bool, noise: Noise) -> Float64:
        there = _CLIENTS if first else _CLIENTS - 1  # an absent client is what zero-out turns one into
        return mechanism.release([_votes(True)] * there, previous, noise)

    return Case(mechanism.UNIT, mechanism.events(_ROWS), _repeated(run, _all))


def _distributed_sum() -> Case:
    mechanism = DistributedClientSum(1.0, _NOISE, _CLIENTS, _CLIENTS, 0.0, 2)
    previous = np.full((2, 2), 0.5)  # few rows: integer noise takes its time

    def run(first: bool, noise: Noise) -> None:
        # The neighbour's client still adds its share of the noise, around nothing.
        for number in range(_CLIENTS):
            mechanism.contribution(previous if not first and not number else _votes(True, 2), previous, noise)

    return Case(mechanism.UNIT, mechanism.events(2), _repeated(run, _sum))


def _dp_sgd() -> Case:
    """Steps that draw everybody and move nothing: each is one release of the same sum."""
    from privacy.mechanisms.dp_sgd import DpSgdTraining

    step = DpSgd(_NOISE, clip_norm=1.0, sample_rate=1.0, steps=1)
    return Case(DpSgdTraining.UNIT, (step.event(),), _steps)


def _steps(first: bool, times: int, noise: Noise) -> Iterator[tuple[Float64, Float64]]:
    from privacy.dp_training import fit_privately

    features = torch.eye(_RECORDS)
    features[0] *= 100.0 if first else float("nan")  # its gradient is cut to clip_norm, or it adds nothing
    labels, model = torch.arange(_RECORDS) % 2, torch.nn.Linear(_RECORDS, 2)
    torch.nn.init.zeros_(model.weight)
    torch.nn.init.zeros_(model.bias)
    recorder = Recorder(noise)
    fit_privately(
        model,
        torch.optim.SGD(model.parameters(), lr=0.0),
        records=_RECORDS,
        batch=lambda rows: features[rows],
        losses=lambda logits, rows: torch.nn.functional.cross_entropy(logits, labels[rows], reduction="none"),
        spec=DpSgd(_NOISE, clip_norm=1.0, sample_rate=1.0, steps=times),
        entropy=SeededEntropy(0, "audit", "samples"),
        device=torch.device("cpu"),
        noise=recorder,
    )
    for call in recorder.calls:
        yield _all([call])


CASES: Mapping[str, Callable[[], Case]] = {
    "dp-sgd": _dp_sgd,
    "pate": _pate,
    "client-sum": _client_sum,
    "client-sum-distributed": _distributed_sum,
    "k-rr": _krr,
    "gaussian-output": _gaussian_output,
}
