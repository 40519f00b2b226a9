"""Selectors: which proxy rows a site votes on, and how much. A new one is one file here, one line below, one row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distillation.selectors.certainty import Certainty
from distillation.selectors.features import selector_features
from distillation.selectors.kmeans_ratio import KmeansRatio
from distillation.selectors.kulsif import Kulsif
from distillation.selectors.selector import Selector
from strategies.parts import build_part

__all__ = ["SELECTORS", "build_selector", "selector_features"]

SELECTORS: dict[str, type] = {
    "kulsif": Kulsif,
    "kmeans-ratio": KmeansRatio,
    "certainty": Certainty,
}


def build_selector(name: str, settings: Mapping[str, Any]) -> Selector:
    """The selector `name` with its settings; `module:Name` reaches one outside the tree.

    Raises:
        KeyError: unknown selector.
        ValueError: unknown setting, or a value out of the selector's bounds.

    >>> build_selector("certainty", {"ridge": 0.1})
    Certainty(ridge=0.1, quantile=0.0, known=0.8)
    """
    selector: Selector = build_part("selector", SELECTORS, name, settings, "select")
    return selector
