"""Aggregators: votes to teacher. A new rule is one file here, one line below, one test row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from strategies.aggregator import Aggregator
from strategies.aggregators.class_count import ClassCount
from strategies.aggregators.clustered import Clustered
from strategies.aggregators.confidence import Confidence
from strategies.aggregators.cosine_filter import CosineFilter
from strategies.aggregators.cronus import Cronus
from strategies.aggregators.enhanced_era import EnhancedEra
from strategies.aggregators.entropy import Entropy
from strategies.aggregators.era import Era
from strategies.aggregators.expguard import ExpGuard
from strategies.aggregators.geometric_median import GeometricMedian
from strategies.aggregators.hard_vote import HardVote
from strategies.aggregators.logit_mean import LogitMean
from strategies.aggregators.mean import Mean
from strategies.aggregators.median import Median
from strategies.aggregators.per_class import PerClass
from strategies.aggregators.pipeline import Pipeline
from strategies.aggregators.sample_weighted import SampleWeighted
from strategies.aggregators.spectral_filter import SpectralFilter
from strategies.aggregators.trimmed_mean import TrimmedMean
from strategies.aggregators.variance import Variance
from strategies.parts import build_part, named_table, part_class

AGGREGATORS: dict[str, type] = {
    "mean": Mean,
    "logit-mean": LogitMean,
    "era": Era,
    "enhanced-era": EnhancedEra,
    "confidence": Confidence,
    "entropy": Entropy,
    "variance": Variance,
    "sample-weighted": SampleWeighted,
    "class-count": ClassCount,
    "hard-vote": HardVote,
    "median": Median,
    "trimmed-mean": TrimmedMean,
    "geometric-median": GeometricMedian,
    "spectral-filter": SpectralFilter,
    "cosine-filter": CosineFilter,
    "cronus": Cronus,
    "expguard": ExpGuard,
    "clustered": Clustered,
    "per-class": PerClass,
}


def build_aggregator(name: str, settings: Mapping[str, Any]) -> Aggregator:
    """The rule `name`, with its settings and with what stands around it.

    Args:
        name: a key of AGGREGATORS, or `module:Name` of a rule outside the tree.
        settings: the rule's fields, a rule itself by name or as a table with a name; and, for every rule, `weight`
            (a rule that has weights), `then` (a rule that sharpens) and `ambiguity`: see Pipeline.

    Raises:
        KeyError: unknown rule.
        ValueError: unknown setting, a value out of the rule's bounds, a rule that cannot stand in that place.

    >>> build_aggregator("era", {"temperature": 0.2})
    Era(temperature=0.2)
    >>> build_aggregator("mean", {"weight": "entropy", "then": {"name": "enhanced-era", "exponent": 3}})
    Pipeline(rule=Mean(), weight=Entropy(cap=1.0), ambiguity=2.0, then=EnhancedEra(exponent=3))
    """
    own = {key: value for key, value in settings.items() if key not in ("weight", "then", "ambiguity")}
    rule: Aggregator = build_part("aggregator", AGGREGATORS, name, own, "aggregate")
    around: dict[str, Any] = {key: settings[key] for key in ("ambiguity",) if key in settings}
    for key, method in (("weight", "weights"), ("then", "sharpen")):
        if key in settings:
            around[key] = _companion(key, settings[key], method)
    if not around:
        return rule
    ambiguity = around.get("ambiguity", 2.0)
    if isinstance(ambiguity, bool) or not isinstance(ambiguity, int | float):
        raise ValueError(f"aggregator {name!r}: ambiguity={ambiguity!r} must be a number")
    return Pipeline(rule, **around)


def _companion(key: str, told: Any, method: str) -> Any:
    """A rule beside the rule: by name, or as a table with a name."""
    name, settings = named_table(f"aggregator: {key}", told, "a rule's name")
    able = sorted(known for known, rule in AGGREGATORS.items() if hasattr(rule, method))
    if name not in AGGREGATORS and ":" not in name:
        raise KeyError(f"unknown {key} {name!r}; known: {', '.join(able)}; your own: module:Name")
    if not hasattr(part_class("aggregator", AGGREGATORS, name), method):
        raise ValueError(f"aggregator: {key}={name!r} has no {method}; {key} can be {', '.join(able)}")
    return build_part("aggregator", AGGREGATORS, name, settings, method)
