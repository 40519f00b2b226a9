"""Points that draw on the same ledgers (privacy.ledgers): what they must have in common, before any of them pays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from privacy.mechanisms import MECHANISMS
from simulations.config import ConfigError, ExperimentConfig
from simulations.deals import deal_of
from simulations.sections import PrivacySettings

# What a ledger's terms are made of, fixed when the first point opens it.
_TERMS = ("epsilon", "delta", "composition", "group_size", "os_entropy")


def private_of(configs: Iterable[ExperimentConfig]) -> list[tuple[ExperimentConfig, PrivacySettings]]:
    """Those that promise something, with what."""
    return [(one, told) for one in configs if (told := one.privacy) is not None and told.promises]


def same_deal(configs: Iterable[ExperimentConfig]) -> bool:
    """Whether all of them deal the same rows to the same clients."""
    return len({deal_of(config) for config in configs}) <= 1


def shared_ledgers(configs: Iterable[ExperimentConfig]) -> bool:
    """Whether one folder of ledgers counts all that these points release of the same records."""
    private = private_of(configs)
    folders = {told.ledgers for _, told in private}
    return len(folders) == 1 and all(folders) and same_deal(config for config, _ in private)


def refuse_unpayable(configs: Sequence[ExperimentConfig]) -> None:
    """Refuse points that share ledgers and cannot all pay from them, whatever they find there.

    Raises:
        ConfigError: they deal rows differently, ask for different promises, or the first would take all of the budget.
    """
    together: dict[str, list[tuple[ExperimentConfig, PrivacySettings]]] = {}
    for config, told in private_of(configs):
        if told.ledgers:
            together.setdefault(told.ledgers, []).append((config, told))
    for folder, points in together.items():
        if len(points) > 1:
            _refuse(f"the {len(points)} private points share the ledgers in privacy.ledgers={folder}", points)


def _refuse(points_share: str, points: Sequence[tuple[ExperimentConfig, PrivacySettings]]) -> None:
    if not same_deal(config for config, _ in points):
        raise ConfigError(
            f"{points_share}, which count one deal of rows, and the points deal them differently: set data.seed, and "
            "sweep no key of [data] nor federation.clients; or leave privacy.ledgers out"
        )
    first = _terms(points[0][1])
    for _, told in points[1:]:
        if other := [key for key, value in _terms(told).items() if value != first[key]]:
            raise ConfigError(
                f"{points_share}, whose promise is fixed for ever, and the points ask for several values of "
                f"privacy.{other[0]} ({first[other[0]]} and {_terms(told)[other[0]]}): give all points one promise and "
                "sweep privacy.noise_multiplier below it, or leave privacy.ledgers out"
            )
    if first["composition"] == "plan":
        raise ConfigError(
            f'{points_share}, and with privacy.composition="plan" the first point reserves all of their delta: set '
            '"filter", with privacy.epsilon for all points together, or leave privacy.ledgers out'
        )
    for _, told in points:
        if told.epsilon is None or not told.noise_multiplier:
            raise ConfigError(
                f"{points_share}, and privacy.epsilon={told.epsilon} with privacy.noise_multiplier="
                f"{told.noise_multiplier} lets one point take all of it: give both, epsilon for all points together"
            )


def _terms(told: PrivacySettings) -> dict[str, Any]:
    kind = MECHANISMS.get(told.mechanism.name)
    hides = None if kind is None else (kind.UNIT, kind.ADJACENCY)
    return {**{key: getattr(told, key) for key in _TERMS}, "mechanism": hides}
