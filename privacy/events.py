"""What was released, as data: enough to compute what it costs, nothing that was computed from records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar


def _positive(name: str, value: float) -> None:
    if not (value > 0.0 and math.isfinite(value)):
        raise ValueError(f"{name}={value} must be a finite number above 0")


def _count(count: int) -> None:
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"count={count} must be a whole number, 1 or more: a release that costs nothing has no event")


@dataclass(frozen=True, slots=True)
class PoissonGaussian:
    """Noisy sums over Poisson samples: the steps of DP-SGD (Abadi et al. 2016).

    Attributes:
        sample_rate: q in (0, 1], the probability of each record in each step.
        noise_multiplier: s, standard deviation of the noise over the L2 sensitivity.
        count: steps.
    """

    KIND: ClassVar[str] = "poisson_gaussian"
    sample_rate: float
    noise_multiplier: float
    count: int

    def __post_init__(self) -> None:
        if not 0.0 < self.sample_rate <= 1.0:
            raise ValueError(f"sample_rate={self.sample_rate} must be in (0, 1]")
        _positive("noise_multiplier", self.noise_multiplier)
        _count(self.count)


@dataclass(frozen=True, slots=True)
class Gaussian:
    """Gaussian noise on a value of known L2 sensitivity.

    Attributes:
        noise_multiplier: standard deviation of the noise over the sensitivity of the whole release.
        count: releases.
    """

    KIND: ClassVar[str] = "gaussian"
    noise_multiplier: float
    count: int

    def __post_init__(self) -> None:
        _positive("noise_multiplier", self.noise_multiplier)
        _count(self.count)


@dataclass(frozen=True, slots=True)
class RandomizedResponse:
    """k-ary randomised response on labels, charged by the replace-one divergence: one record may flip them all.

    Attributes:
        label_epsilon: e0 of one label, the log of its probability over that of any other.
        classes: k, 2 or more.
        count: labels.
    """

    KIND: ClassVar[str] = "randomized_response"
    label_epsilon: float
    classes: int
    count: int

    def __post_init__(self) -> None:
        _positive("label_epsilon", self.label_epsilon)
        if isinstance(self.classes, bool) or not isinstance(self.classes, int) or self.classes < 2:
            raise ValueError(f"classes={self.classes} must be a whole number, 2 or more")
        _count(self.count)


Event = PoissonGaussian | Gaussian | RandomizedResponse
# What one release costs: some mechanisms are several events (PATE's gate and votes).
Events = tuple[Event, ...]
KINDS: Mapping[str, type[PoissonGaussian] | type[Gaussian] | type[RandomizedResponse]] = {
    kind.KIND: kind for kind in (PoissonGaussian, Gaussian, RandomizedResponse)
}


def times(event: Event, count: int) -> Event:
    """The same event, `count` times as often.

    Raises:
        ValueError: count is below 1.
    """
    _count(count)
    return type(event)(**{**asdict(event), "count": event.count * count})


def merged(events: Sequence[Event]) -> Events:
    """Equal events together, in the order of their first appearance.

    >>> merged([Gaussian(2.0, 1), Gaussian(3.0, 1), Gaussian(2.0, 4)])
    (Gaussian(noise_multiplier=2.0, count=5), Gaussian(noise_multiplier=3.0, count=1))
    """
    counts: dict[Event, int] = {}
    for event in events:
        one = type(event)(**{**asdict(event), "count": 1})
        counts[one] = counts.get(one, 0) + event.count
    return tuple(times(one, count) for one, count in counts.items())


def to_json(events: Sequence[Event]) -> list[list[Any]]:
    """[[kind, parameters, count], ...]; floats as float.hex(), so that reading them back is exact.

    >>> to_json([Gaussian(2.0, 3)])
    [['gaussian', {'noise_multiplier': '0x1.0000000000000p+1'}, 3]]
    """
    return [[event.KIND, _parameters(event), event.count] for event in events]


def from_json(plain: object) -> Events:
    """Read what to_json wrote.

    Raises:
        ValueError: anything else.
    """
    try:
        return tuple(KINDS[kind](**_read(parameters), count=count) for kind, parameters, count in plain)  # type: ignore[attr-defined]
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise ValueError(f"these are no privacy events: {error!r}") from error


def _parameters(event: Event) -> dict[str, Any]:
    plain = asdict(event)
    del plain["count"]
    return {key: value.hex() if isinstance(value, float) else value for key, value in plain.items()}


def _read(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {key: float.fromhex(value) if isinstance(value, str) else value for key, value in parameters.items()}
