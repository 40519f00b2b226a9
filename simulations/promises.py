"""From an experiment's [privacy] to what each site's own file promises, and to what the run says of it afterwards."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from client.book import terms_of
from client.config import PrivacySection, SiteConfig, SiteConfigError
from client.promise import Promise, check_noise, promise_of
from privacy.ledger import Ledger
from privacy.ledger_errors import LedgerError, TermsDiffer
from server.client_sum import CLIENT, NAME, SPLIT_NAME
from simulations.config import ConfigError, ExperimentConfig
from simulations.sums import client_sum_misfits, client_sum_of, split_section, split_sum_misfits
from strategies.aggregator import Aggregator, traits_of

# What must not be in a site's report where each private record is promised something.
_STATISTICS = "statistics of private rows, which [privacy] does not pay for"

# What run.json, the page and a student's card hold beside a statement that does not pay for it.
_ON_THE_SIDE = (
    "Accuracies of clients, class counts and baselines in this file are computed by the simulation from private rows; "
    "no site releases them, and no epsilon here pays for them."
)
TEST_ROWS = (
    "Accuracy, macro F1 and the confusion matrix of a student are computed from the test rows, and student-best is "
    "chosen by its score on them: with real data these are rows of people, too, to whom nothing is promised. To pass "
    "them on is a release that no epsilon here pays for."
)


def section_of(config: ExperimentConfig, site: str, state: Path) -> PrivacySection | None:
    """A site's [privacy]; None in a run without noise.

    Args:
        state: the site's folder in this run; its ledger is there unless the configuration names a folder that outlives
            the run.
    """
    told = config.privacy
    if told is None or not told.promises or told.mechanism.name == NAME:
        return None
    section = PrivacySection(
        mechanism=told.mechanism,
        noise_multiplier=told.noise_multiplier,
        delta=told.delta,
        composition=told.composition,
        group_size=told.group_size,
        allow_baseline=told.allow_baseline,
        epsilon=told.epsilon,
        rounds=config.federation.rounds,
        ledger=str(ledger_of(config, site, state)),
        seeded=not told.os_entropy,
    )
    return section.model_copy(update=split_section(config))


def calibrated(site: SiteConfig, records: int, classes: int) -> SiteConfig:
    """A site's file with its noise written down, so that no worker has to find it again.

    Raises:
        ConfigError: the promise cannot be kept, or a ledger that outlives the run was made for another one.
    """
    try:
        promise = promise_of(site, records, classes)
        if promise is not None:
            check_noise(promise)
    except SiteConfigError as error:
        raise ConfigError(f"{site.site} with {records} rows: {error}") from None
    if promise is None or site.privacy is None:
        return site
    _refuse_other_terms(Path(site.privacy.ledger), promise)
    return site.model_copy(update={"privacy": site.privacy.model_copy(update={"noise_multiplier": promise.noise})})


def _refuse_other_terms(path: Path, promise: Promise) -> None:
    """Refuse what every answer would be refused for, and only the site's own log would say."""
    if not path.exists():
        return
    with suppress(LedgerError), Ledger.open(path) as ledger:
        try:
            ledger.insist(terms_of(promise, ledger.terms), None)
        except TermsDiffer as error:
            raise ConfigError(f"privacy.ledgers: {error}") from None


def ledger_of(config: ExperimentConfig, site: str, state: Path) -> Path:
    """File of a site's ledger; the coordinator's own where that is the one that pays.

    Args:
        state: the site's folder in this run.
    """
    kept = config.privacy.ledgers if config.privacy is not None else ""
    if client_sum_of(config) is not None:
        site, state = CLIENT, state.parent.parent
    return Path(kept) / f"{site}.sqlite" if kept else state / "ledger.sqlite"


def misfits(config: ExperimentConfig, rule: Aggregator) -> Iterator[tuple[bool, str]]:
    """What does not go with a promise: whether that is so here, and what to do about it."""
    told = config.privacy
    if told is None or not told.promises:
        return
    named, traits = f"strategy.aggregator {config.strategy.aggregator.name!r}", traits_of(rule)
    if told.mechanism.name == NAME:
        yield from client_sum_misfits(config, rule)
        return
    if told.mechanism.name == SPLIT_NAME:
        yield from split_sum_misfits(config)
    yield (
        bool(told.ledgers) and config.federation.engine == "flower-simulation",
        f"privacy.ledgers={told.ledgers} outlive the run, and federation.engine='flower-simulation' writes ledgers "
        "that a power cut may cut: take in-process or deployment, or leave privacy.ledgers out",
    )
    yield (
        config.client.selector is not None,
        f"client.selector chooses proxy rows by private ones, and where a site votes is one of the {_STATISTICS}: set "
        'it to "none"',
    )
    yield (
        bool(traits.needs),
        f"{named} needs {', '.join(traits.needs)}, {_STATISTICS}: choose a rule that needs votes alone",
    )
    yield (
        traits.subject == "classes",
        f"{named} exchanges class tables, {_STATISTICS}: choose a rule on proxy rows",
    )
    yield (
        traits.own_teachers and told.mechanism.name != "dp-sgd",
        f"{named} may give clients several teachers to choose from, and the choice depends on all records of a site, "
        f"of which {told.mechanism.name!r} promises that each reaches one model: use dp-sgd, or another rule",
    )


def statements_of(config: ExperimentConfig, ledgers: Mapping[str, Path]) -> dict[str, Any] | None:
    """What run.json says of privacy; None where nothing was promised.

    Args:
        ledgers: file of each site's ledger; a site that was never asked has none.

    Returns:
        `each`: a statement a client; `max`: what holds for the records of all of them, the largest epsilon at the
        largest delta; `on_the_side`: what of this file is no release.
    """
    told = config.privacy
    if told is None or not told.promises:
        return None
    from privacy.statement import covering, statement_of

    each = []
    # One ledger may be everybody's.
    paths = ledgers if client_sum_of(config) is None else {CLIENT: next(iter(ledgers.values()))}
    for site, path in paths.items():
        if path.exists():
            # Durably: closing a ledger empties its write-ahead log, and whoever wrote it may have waited for the disk.
            with Ledger.open(path) as ledger:
                each.append(statement_of(ledger, site, told.tuning))
    return {
        "max": covering(each).plain() if each else None,
        "each": [one.plain() for one in each],
        "epsilon_asked": None if told.epsilon is None or math.isinf(told.epsilon) else told.epsilon,
        "worth": _worth(told.mechanism.name),
        "on_the_side": f"{_ON_THE_SIDE} {TEST_ROWS}",
    }


def _worth(name: str) -> str:
    from privacy.mechanisms import MECHANISMS

    return MECHANISMS[name].WORTH
