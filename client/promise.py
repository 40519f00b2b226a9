"""What a site promises each private record, as numbers that are all known before a record is read."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import lru_cache

from client.config import PrivacySection, SiteConfig, SiteConfigError
from privacy.events import Events, merged, times, to_json
from privacy.ledger import Terms, canonical
from privacy.mechanisms import MECHANISMS, build_mechanism
from privacy.mechanisms.distributed_sum import DistributedClientSum
from privacy.mechanisms.dp_sgd import DpSgdTraining
from privacy.mechanisms.mechanism import DrawnNoise, Mechanism
from privacy.mechanisms.pate import Pate
from privacy.noise import Draw, OsEntropy, SeededEntropy

log = logging.getLogger("consilium.node")

# What a site can do; the sum with noise at the coordinator is the coordinator's.
SITE_MECHANISMS = ("dp-sgd", "pate", "k-rr", "gaussian-output", "client-sum-distributed")
# Settings that change nothing of what is released: another value of theirs is the same plan.
_KNOBS = ("physical_batch", "allow_baseline")


@dataclass(frozen=True, slots=True)
class Promise:
    """A site's [privacy], complete.

    Attributes:
        name: of the mechanism.
        mechanism: with its noise.
        noise: what [privacy] calls noise_multiplier, calibrated where the file leaves it open.
        records: n, the site's private rows; public, as zero-out adjacency needs it.
        beginning, each: epochs of private training before a run's first answer, and before every answer.
        restart: whether every answer begins anew.
        rows: votes in one answer, at most.
        rounds: answers that the budget is for.
        epsilon, delta: over the life of the data set.
        epsilon_given: by the owner; else it is what the rounds cost at this noise.
        composition: "plan" or "filter".
        group_size: records that epsilon covers together.
        seeded: a simulation, NOT PRIVATE.
    """

    name: str
    mechanism: Mechanism
    noise: float
    records: int
    beginning: int
    each: int
    restart: bool
    rows: int
    rounds: int
    epsilon: float
    delta: float
    epsilon_given: bool
    composition: str
    group_size: int
    seeded: bool

    @property
    def training(self) -> DpSgdTraining | None:
        """How the model trains, where that is what is private."""
        return self.mechanism if isinstance(self.mechanism, DpSgdTraining) else None

    @property
    def split(self) -> DistributedClientSum | None:
        """A sum over sites that this one adds its share of the noise to, where that is what is private."""
        return self.mechanism if isinstance(self.mechanism, DistributedClientSum) else None

    def drawn_noise(self, seed: int) -> DrawnNoise:
        """The noise of one answer; `seed` is that answer's own, and counts in a simulation only."""
        return DrawnNoise(Draw(SeededEntropy(seed, self.name) if self.seeded else OsEntropy()))

    def answer(self, rows: int, *, first: bool) -> Events:
        """The price of one answer with `rows` votes; `first`: for which the model begins anew."""
        training = self.training
        if training is None:
            return self.mechanism.events(rows)
        before = training.fit_events(self.records, self.beginning) if first or self.restart else ()
        return merged([*before, *training.fit_events(self.records, self.each)])

    def total(self) -> Events:
        """The price of all of them, the first one of a run included."""
        later = [times(event, self.rounds - 1) for event in self.answer(self.rows, first=False) if self.rounds > 1]
        return merged([*self.answer(self.rows, first=True), *later])

    def terms(self) -> Terms:
        """Of the ledger."""
        from privacy.accounting import filter_order

        order = filter_order(self.total(), self.epsilon, self.delta) if self.composition == "filter" else None
        mode = "filter" if self.composition == "filter" else "plan"
        unit, adjacency = self.mechanism.UNIT, self.mechanism.ADJACENCY
        return Terms(unit, adjacency, mode, self.epsilon, self.delta, order, self.seeded, self.group_size)  # type: ignore[arg-type]

    @property
    def parameters(self) -> str:
        """What a release's request says of the mechanism: the settings that its outputs depend on."""
        names = (field.name for field in fields(self.mechanism))  # type: ignore[arg-type]
        settings = {name: getattr(self.mechanism, name) for name in names if name not in _KNOBS}
        return canonical({**settings, "records": self.records})

    @property
    def plan_name(self) -> str:
        """Of the plan in the ledger: another number of rounds, or of epochs, is another plan."""
        return canonical({"mechanism": self.name, "parameters": self.parameters, "total": to_json(self.total())})


def promise_of(config: SiteConfig, records: int, classes: int) -> Promise | None:
    """What a site's file promises; None where it promises nothing.

    Args:
        records: private rows.
        classes: of the proxy set.

    Raises:
        SiteConfigError: a mechanism that there is not, settings that it has not, or numbers that cannot be kept.
    """
    if config.privacy is None or config.policy is None:
        return None
    training, policy = config.training, config.policy
    told = _Told(
        config.privacy.model_dump_json(),
        records,
        classes,
        training.batch_size,
        training.warmup_epochs,
        training.local_epochs,
        training.restart,
        policy.max_rows_per_round,
        config.privacy.rounds or policy.max_answers,
    )
    try:
        return _promise(told)
    except (KeyError, TypeError, ValueError) as error:
        raise SiteConfigError(f"privacy: {error.args[0] if error.args else error}") from None


def check_noise(promise: Promise) -> None:
    """Return if a plan of all the rounds fits the promise, as its ledger will ask; a filter lets through what fits.

    Raises:
        SiteConfigError: it does not.
    """
    from privacy.accounting import group_epsilon_of, round_up

    if promise.composition == "filter":
        return
    cost = group_epsilon_of(promise.total(), promise.delta, promise.group_size)
    if cost > promise.epsilon:
        raise SiteConfigError(
            f"privacy: noise_multiplier={promise.noise:g} costs epsilon={round_up(cost):g} in {promise.rounds} rounds, "
            f"above epsilon={promise.epsilon:g}: leave one of the two out, or give fewer rounds"
        )


@dataclass(frozen=True, slots=True)
class _Told:
    """What a promise is made from: a section as JSON, and what Promise calls by the same names."""

    section: str
    records: int
    classes: int
    batch_size: int
    beginning: int
    each: int
    restart: bool
    rows: int
    rounds: int


# Calibration takes a second, and a simulation has many alike sites.
@lru_cache(maxsize=256)
def _promise(told: _Told) -> Promise:
    from privacy.accounting import check_delta, default_delta, group_epsilon_of
    from privacy.calibration import noise_for_events

    section = PrivacySection.model_validate_json(told.section)
    kind = _mechanism(section, told.batch_size, told.classes, section.noise_multiplier or 1.0)
    # Where a whole client is hidden, n is how many clients there are: (0, 1/n) is to publish one of them.
    units = kind.clients if isinstance(kind, DistributedClientSum) else told.records
    delta = section.delta or default_delta(units)
    check_delta(delta, units)
    _check_group(section, kind)
    _check_rows(kind, told.records)

    def at(noise: float) -> Promise:
        return Promise(
            section.mechanism.name,
            _mechanism(section, told.batch_size, told.classes, noise),
            noise,
            told.records,
            told.beginning,
            told.each,
            told.restart,
            told.rows,
            told.rounds,
            section.epsilon or math.inf,
            delta,
            section.epsilon is not None,
            section.composition,
            section.group_size,
            section.seeded,
        )

    noise = section.noise_multiplier
    if section.epsilon is not None and not noise:
        if section.composition == "plan":
            noise = noise_for_events(section.epsilon, delta, lambda noise: at(noise).total(), section.group_size)
        else:
            noise = _filter_noise(section.epsilon, delta, lambda noise: at(noise).total())
    promise = at(noise)
    if section.epsilon is not None:
        return promise
    return replace(promise, epsilon=group_epsilon_of(promise.total(), delta, section.group_size))


def _check_group(section: PrivacySection, mechanism: Mechanism) -> None:
    if section.group_size == 1:
        return
    if section.composition == "filter":
        raise ValueError(
            f"group_size={section.group_size} needs composition='plan': a filter counts single records; plan the rounds"
        )
    if mechanism.UNIT != "record":
        raise ValueError(
            f"group_size={section.group_size} is for mechanisms that protect records, and {section.mechanism.name!r} "
            f"protects a whole {mechanism.UNIT}: leave it out"
        )


def _check_rows(mechanism: Mechanism, records: int) -> None:
    """Refuse teachers without rows; sampling that samples nothing is sound, and said."""
    if isinstance(mechanism, Pate) and mechanism.teachers > records:
        raise ValueError(
            f"teachers={mechanism.teachers} must be at most the site's {records} rows: a teacher without one votes for "
            "nothing"
        )
    if isinstance(mechanism, DpSgdTraining) and mechanism.batch_size > records:
        log.warning(
            "batch_size=%d is above the site's %d rows: every step takes all of them (q = 1), and no sampling adds to "
            "their privacy",
            mechanism.batch_size,
            records,
        )


def check_mechanism(section: PrivacySection, batch_size: int) -> None:
    """Return if a site can have this mechanism with these settings, whatever its rows and its noise.

    Raises:
        KeyError, ValueError: it cannot, or no noise is so small as its epsilon.
    """
    if section.epsilon is not None and not section.noise_multiplier:
        from privacy.calibration import check_epsilon

        check_epsilon(section.epsilon)
    _check_group(section, _mechanism(section, batch_size, 2, section.noise_multiplier or 1.0))


def _mechanism(section: PrivacySection, batch_size: int, classes: int, noise: float) -> Mechanism:
    name, settings = section.mechanism.name, dict(section.mechanism.settings)
    if name in MECHANISMS and name not in SITE_MECHANISMS:
        raise ValueError(f"mechanism {name!r} is the coordinator's; a site has {', '.join(SITE_MECHANISMS)}")
    if name == "dp-sgd":
        settings.setdefault("batch_size", batch_size)
    if name in MECHANISMS and MECHANISMS[name].BASELINE:
        settings["allow_baseline"] = section.allow_baseline
    return build_mechanism(name, noise, classes, settings)


def _filter_noise(epsilon: float, delta: float, events_at: Callable[[float], Events]) -> float:
    """The least noise multiplier, to four decimals, whose answers all pass a filter at the order that suits them."""
    from privacy.accounting import filter_budget, filter_order, rdp_of

    def passes(noise: float) -> bool:
        events = events_at(noise)
        order = filter_order(events, epsilon, delta)
        return rdp_of(events, order) <= filter_budget(epsilon, delta, order)

    least, most = 1, 10**10  # in steps of 1e-4
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (least, middle) if passes(middle / 1e4) else (middle, most)
    return most / 1e4
