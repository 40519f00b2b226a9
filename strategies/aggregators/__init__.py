"""Aggregators: votes to teacher. A new rule is one file here, one line below, one test row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from strategies.aggregator import Aggregator
from strategies.aggregators.enhanced_era import EnhancedEra
from strategies.aggregators.era import Era
from strategies.aggregators.logit_mean import LogitMean
from strategies.aggregators.mean import Mean

AGGREGATORS: dict[str, type[Mean] | type[LogitMean] | type[Era] | type[EnhancedEra]] = {
    "mean": Mean,
    "logit-mean": LogitMean,
    "era": Era,
    "enhanced-era": EnhancedEra,
}


def build_aggregator(name: str, settings: Mapping[str, float]) -> Aggregator:
    """The rule `name` with its settings.

    Raises:
        KeyError: unknown rule.
        ValueError: unknown setting, or a value out of the rule's bounds.

    >>> build_aggregator("era", {"temperature": 0.2})
    Era(temperature=0.2)
    """
    if name not in AGGREGATORS:
        raise KeyError(f"unknown aggregator {name!r}; known: {', '.join(sorted(AGGREGATORS))}")
    rule = AGGREGATORS[name]
    known = [field.name for field in fields(rule)]
    for key, value in settings.items():
        if key not in known:
            raise ValueError(f"aggregator {name!r} has no setting {key!r}; known: {', '.join(known) or 'none'}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"aggregator {name!r}: {key}={value!r} must be a number")
    return rule(**settings)
