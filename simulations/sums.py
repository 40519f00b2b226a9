"""Experiments whose coordinator sees sums only, or adds noise to them: what that is, and what does not go with it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from client.config import PartSection
from client.identity import IDENTITY, own_key, write_registry
from privacy.delta import default_delta
from privacy.mechanisms import check_kinds
from privacy.secure_sum.session import FEWEST
from server.client_sum import CLIENT, NAME, SPLIT_NAME, ClientSumSettings, SplitSumSettings, calibrated
from server.plain_mean import noise_misfits, split_misfits, sum_misfits
from simulations.config import ConfigError, ExperimentConfig
from strategies.aggregator import Aggregator
from strategies.selection import count_of


def secure_misfits(config: ExperimentConfig, rule: Aggregator) -> Iterator[tuple[bool, str]]:
    """Parts that do not go with `strategy.secure_sum`: whether that is so here, and what to do about it."""
    strategy, federation = config.strategy, config.federation
    if not strategy.secure_sum:
        return
    yield from sum_misfits(
        rule,
        f"strategy.aggregator {strategy.aggregator.name!r}",
        uplink=strategy.uplink,
        mode=federation.mode,
        choice=strategy.choice,
        keep_votes=federation.keep_votes,
    )
    sums = "strategy.secure_sum=true shows the coordinator one sum and no single vote"
    asked = count_of(federation.participation, federation.clients)
    yield (
        asked < FEWEST,
        f"a secure sum takes {FEWEST} clients or more, and federation.participation={federation.participation} of "
        f"federation.clients={federation.clients} are {asked}: of two, each would know the other's votes",
    )
    yield (
        config.client.selector is not None,
        f'{sums}, and with client.selector a row may have few voters, whose votes the sum would tell: set it to "none"',
    )
    yield (
        config.privacy is not None and "gate_std" in config.privacy.mechanism.settings,
        f"{sums}, and with privacy.mechanism.gate_std a row may have few voters, whose votes the sum would tell: take "
        "the gate out",
    )
    yield (
        config.attack is not None,
        f"{sums}, and attack.name={'' if config.attack is None else repr(config.attack.name)} replaces single votes: "
        "take [attack] out, or strategy.secure_sum",
    )
    yield (
        config.stragglers.share > 0 or config.newcomers.share > 0,
        f"{sums}, in several exchanges a round, and stragglers and newcomers are counted in exchanges: set "
        "stragglers.share and newcomers.share to 0",
    )


def register(states: Mapping[str, Path], path: Path) -> None:
    """Give every site a key of its own, as the owners of real sites do, and all of them one registry.

    Args:
        states: folder of each site in this run; its key stays there, so that a resumed run has the same.
        path: of the registry.

    Guarantees:
        Keys are the operating system's; no result and no number of bytes depends on them.
    """
    registry = {}
    for site, folder in states.items():
        folder.mkdir(parents=True, exist_ok=True)
        registry[site] = own_key(folder / IDENTITY)
    write_registry(path, registry)


def client_sum_of(config: ExperimentConfig) -> ClientSumSettings | None:
    """What the coordinator promises each client; None where it promises nothing.

    Raises:
        ConfigError: the promise cannot be kept.
    """
    told = config.privacy
    if told is None or not told.promises or told.mechanism.name != NAME:
        return None
    settings = told.mechanism.settings
    if (
        list(settings) != ["clip"]
        or isinstance(settings["clip"], bool)
        or not isinstance(settings["clip"], int | float)
    ):
        raise ConfigError(f"privacy.mechanism: {NAME} has one setting, clip, a number, and {settings} is given")
    if told.composition != "plan":
        raise ConfigError(f'privacy.composition={told.composition!r} goes with sites\' mechanisms; {NAME} takes "plan"')
    if told.group_size > 1:
        raise ConfigError(f"privacy.group_size={told.group_size} goes with sites' mechanisms; {NAME} covers all rows")
    federation = config.federation
    try:
        made = calibrated(
            float(settings["clip"]),
            federation.clients,
            federation.rounds,
            told.epsilon,
            told.delta,
            told.noise_multiplier,
            seeded=not told.os_entropy,
        )
    except ValueError as error:
        raise ConfigError(f"privacy: {error}") from None
    return made.model_copy(update={"ledger": str(Path(told.ledgers) / f"{CLIENT}.sqlite")}) if told.ledgers else made


def split_sum_of(config: ExperimentConfig) -> SplitSumSettings | None:
    """What the sites' files promise who split the noise of their sums; None where they do not.

    Raises:
        ConfigError: the promise cannot be kept.
    """
    told, federation = config.privacy, config.federation
    if told is None or not told.promises or told.mechanism.name != SPLIT_NAME:
        return None
    asked = count_of(federation.participation, federation.clients)
    written = told.mechanism.settings
    settings = {"least": math.ceil(asked * 2 / 3), "colluding": 0.0, **written}
    if set(settings) != {"clip", "least", "colluding"}:
        raise ConfigError(
            f"privacy.mechanism: {SPLIT_NAME} has the settings clip, least and colluding, of which clip must be given; "
            f"{', '.join(sorted(written)) or 'none'} is given"
        )
    if told.composition != "plan":
        raise ConfigError(f'privacy.composition={told.composition!r} is for votes alone; {SPLIT_NAME} takes "plan"')
    try:
        check_kinds(SPLIT_NAME, settings)
        made = calibrated(
            float(settings["clip"]),
            federation.clients,
            federation.rounds,
            told.epsilon,
            told.delta,
            told.noise_multiplier,
            seeded=not told.os_entropy,
        )
        split = SplitSumSettings(**settings, noise_multiplier=made.noise_multiplier, clients=federation.clients)
        split.mechanism(2)  # refuses what is out of range
    except ValueError as error:
        raise ConfigError(f"privacy: {error}") from None
    return split


def split_section(config: ExperimentConfig) -> dict[str, Any]:
    """What a site's [privacy] says more than an experiment's, where the noise of sums is split; nothing elsewhere."""
    split = split_sum_of(config)
    if split is None or config.privacy is None:
        return {}
    settings = split.model_dump(exclude={"noise_multiplier"})
    return {
        "mechanism": PartSection(name=SPLIT_NAME, **settings),
        "noise_multiplier": split.noise_multiplier,
        "delta": config.privacy.delta or default_delta(split.clients),
    }


def split_sum_misfits(config: ExperimentConfig) -> Iterator[tuple[bool, str]]:
    """Parts that do not go with noise that is split among sites: whether that is so here, and what to do about it."""
    strategy = config.strategy
    split_sum_of(config)  # refuses what cannot be promised
    yield from split_misfits(
        secure_sum=strategy.secure_sum, cache_rounds=strategy.cache_rounds, downlink=strategy.downlink
    )


def client_sum_misfits(config: ExperimentConfig, rule: Aggregator) -> Iterator[tuple[bool, str]]:
    """Parts that do not go with noise on the sum of votes: whether that is so here, and what to do about it."""
    strategy, federation = config.strategy, config.federation
    client_sum_of(config)  # refuses what cannot be promised
    yield from noise_misfits(
        rule,
        f"strategy.aggregator {strategy.aggregator.name!r}",
        mode=federation.mode,
        choice=strategy.choice,
        keep_votes=federation.keep_votes,
        secure_sum=strategy.secure_sum,
    )
