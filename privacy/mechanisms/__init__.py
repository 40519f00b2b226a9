"""Mechanisms: what a release adds noise to. A new one is one file here, one line below, one test row."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any, get_args, get_type_hints

from privacy.mechanisms.client_sum import ClientSum
from privacy.mechanisms.distributed_sum import DistributedClientSum
from privacy.mechanisms.dp_sgd import DpSgdTraining
from privacy.mechanisms.gaussian import GaussianOutput
from privacy.mechanisms.krr import KRandomizedResponse
from privacy.mechanisms.mechanism import Mechanism
from privacy.mechanisms.pate import Pate

MECHANISMS: dict[str, type[Mechanism]] = {
    "dp-sgd": DpSgdTraining,
    "pate": Pate,
    "client-sum": ClientSum,
    "client-sum-distributed": DistributedClientSum,
    "k-rr": KRandomizedResponse,
    "gaussian-output": GaussianOutput,
}


def _multiplier(noise: float) -> dict[str, float]:
    return {"noise_multiplier": noise}


# Which field a mechanism's one noise number sets, where that is not its noise_multiplier; more noise costs less.
_NOISE: dict[str, Callable[[float], dict[str, float]]] = {
    "pate": lambda noise: {"vote_std": math.sqrt(2.0) * noise},
    "k-rr": lambda noise: {"label_epsilon": 1.0 / noise},
}


def build_mechanism(name: str, noise: float, classes: int, settings: Mapping[str, Any]) -> Mechanism:
    """The mechanism `name`, with so much noise.

    Args:
        name: a key of MECHANISMS.
        noise: standard deviation over the sensitivity of one event: a step, a row of votes, a matrix, a sum. For k-rr,
            which has none, 1/e0.
        classes: of the proxy set.
        settings: the mechanism's other fields.

    Raises:
        KeyError: no such mechanism.
        ValueError: a setting that it has not, or lacks, or that is out of range; a baseline without allow_baseline.

    >>> build_mechanism("pate", 2.0, 10, {"teachers": 50}).events(300)
    (Gaussian(noise_multiplier=2.0, count=300),)
    """
    if name not in MECHANISMS:
        raise KeyError(f"unknown mechanism {name!r}; known: {', '.join(sorted(MECHANISMS))}")
    if not (noise > 0.0 and math.isfinite(noise)):
        raise ValueError(f"noise={noise} must be a finite number above 0")
    kind: Any = MECHANISMS[name]
    known = {field.name for field in fields(kind)}
    given: dict[str, Any] = dict(_NOISE.get(name, _multiplier)(noise))
    if "classes" in known:
        given["classes"] = classes
    if unknown := sorted(set(settings) - (known - set(given))):
        raise ValueError(f"{name} has no setting {unknown[0]!r}; it has: {', '.join(sorted(known - set(given)))}")
    needed = {field.name for field in fields(kind) if field.default is MISSING}
    if missing := sorted(needed - set(given) - set(settings)):
        raise ValueError(f"{name} needs a setting {missing[0]!r}")
    check_kinds(name, {key: value for key, value in settings.items() if key != "allow_baseline"})  # says so itself
    mechanism: Mechanism = kind(**given, **settings)
    return mechanism


# What a field's type takes: types, and what they are called; a bool is an int, and no number here.
_KINDS: dict[Any, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
}


def check_kinds(name: str, settings: Mapping[str, Any]) -> None:
    """Return if the settings are of the kinds that a mechanism's fields are; their bounds are the mechanism's own.

    Raises:
        ValueError: a text or a list where a number belongs, and the like.
    """
    hints = get_type_hints(MECHANISMS[name])
    for key, value in settings.items():
        options = get_args(hints[key]) or (hints[key],)
        for wanted in options:
            if wanted not in _KINDS or (value is None and type(None) in options):
                continue
            kinds, called = _KINDS[wanted]
            if not isinstance(value, kinds) or (isinstance(value, bool) and wanted is not bool):
                raise ValueError(f"{name}: {key}={value!r} must be {called}")
