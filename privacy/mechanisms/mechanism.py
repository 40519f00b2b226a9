"""What all mechanisms share: their shape, the noise they may add, and how rows are made safe before it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from privacy.events import Events
from privacy.mechanisms.discrete_gaussian import DiscreteGaussian
from privacy.noise import Draw

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]

# Noised values are rounded to multiples of this: a float sum's last bits tell what it can be the sum of (Mironov 2012).
# Rounding makes that harder and is free; it is no exact discrete mechanism, and reports say "float noise".
GRID = 2.0**-12
# Beyond this, multiples of the grid are no longer exact in float64.
_MOST_STD = 2.0**32


class Mechanism(Protocol):
    """A frozen dataclass; its fields are public parameters, never computed from records.

    `release` is not in here because each takes what its file says; always private values first, `noise: Noise` last.

    Attributes:
        WORTH: what it is good for, in one sentence that reports print.
        UNIT: whose presence is hidden: "record" or "client".
        ADJACENCY: against which change: "zero_out" or "replace_one".
        BASELINE: whether it is kept for comparison only, and must be switched on with `allow_baseline`.
    """

    WORTH: ClassVar[str]
    UNIT: ClassVar[str]
    ADJACENCY: ClassVar[str]
    BASELINE: ClassVar[bool]

    def events(self, rows: int, /) -> Events:
        """What a release for `rows` asked proxy rows costs, known before any record is read; () for none."""
        ...


class Noise(Protocol):
    """All noise that a mechanism may add: what passes through here is paid for; nothing else may depend on records."""

    def gaussian(self, values: Float64, sensitivity: float, multiplier: float, grid: float = GRID) -> Float64:
        """Values plus normal noise of standard deviation sensitivity * multiplier, rounded to multiples of grid.

        Args:
            values: any shape.
            sensitivity: the largest L2 distance that the unit can move all the values together.
            multiplier: as in events.Gaussian.
            grid: public.
        """
        ...

    def discrete_gaussian(self, values: Int64, sensitivity: float, multiplier: float) -> Int64:
        """Integers plus integer noise; the parameters as above, in integer steps. Sums wrap around at 2^64."""
        ...

    def responses(self, labels: Int64, classes: int, label_epsilon: float) -> Int64:
        """Each label kept with probability e^e0 / (e^e0 + classes - 1), else one of the others, all alike."""
        ...


@dataclass(frozen=True, slots=True)
class DrawnNoise:
    """Noise made of a stream of random bytes.

    Attributes:
        draw: the stream; only with OsEntropy is the noise private.
    """

    draw: Draw

    def gaussian(self, values: Float64, sensitivity: float, multiplier: float, grid: float = GRID) -> Float64:
        """See Noise.

        Raises:
            ValueError: noise that is 0, not finite or above 2^32.
        """
        if not values.size:
            return values.copy()
        noised: Float64 = values + std_of(sensitivity, multiplier) * self.draw.normal(values.shape)
        rounded: Float64 = np.rint(noised / grid) * grid
        return rounded

    def discrete_gaussian(self, values: Int64, sensitivity: float, multiplier: float) -> Int64:
        """See Noise.

        Raises:
            ValueError: as above.
        """
        if not values.size:
            return values.copy()
        sampler = DiscreteGaussian(std_of(sensitivity, multiplier))
        return values + sampler.draw(self.draw.entropy, values.size).reshape(values.shape)

    def responses(self, labels: Int64, classes: int, label_epsilon: float) -> Int64:
        """See Noise."""
        keep = keep_probability(label_epsilon, classes)
        change = self.draw.uniform(labels.shape) >= keep
        # 1 to classes - 1 steps further, modulo classes: each other label alike.
        steps = 1 + (self.draw.uniform(labels.shape) * (classes - 1)).astype(np.int64)
        return (labels + np.where(change, steps, 0)) % classes


def std_of(sensitivity: float, multiplier: float) -> float:
    """Standard deviation of the noise.

    Raises:
        ValueError: it is 0, not finite or above 2^32.
    """
    std = sensitivity * multiplier
    if not 0.0 < std <= _MOST_STD:
        raise ValueError(
            f"noise of sensitivity {sensitivity} times multiplier {multiplier} must be in (0, 2^32]: "
            "choose another multiplier or fewer rows"
        )
    return std


def keep_probability(label_epsilon: float, classes: int) -> float:
    """P of k-ary randomised response.

    >>> round(keep_probability(0.0189, 10), 4)
    0.1017
    """
    return 1.0 / (1.0 + (classes - 1) * math.exp(-label_epsilon))


def simplex_rows(values: ArrayLike, instead: Float64 | None = None) -> Float64:
    """Rows that are certainly distributions, whatever came in.

    Args:
        values: [..., n, classes] meant to be probabilities.
        instead: [n, classes] public rows for those that are not finite or nowhere above 0; uniform ones if None.

    Returns:
        [..., n, classes] a copy; each row is at least 0 and sums to 1. Any two rows are at most sqrt(2) apart.

    Raises:
        ValueError: a shape that is no matrix of two or more classes. No value raises: that would tell of records.

    >>> simplex_rows([[3.0, 1.0], [np.nan, 1.0]]).tolist()
    [[0.75, 0.25], [0.5, 0.5]]
    """
    rows = np.array(values, dtype=np.float64)
    if rows.ndim < 2 or rows.shape[-1] < 2:
        raise ValueError(f"values have shape {list(rows.shape)}: [n, classes] expected, two classes or more")
    rows[~np.isfinite(rows).all(axis=-1)] = 0.0
    np.maximum(rows, 0.0, out=rows)
    # Divided by the largest first: a sum of huge values would overflow.
    largest = rows.max(axis=-1, keepdims=True)
    empty = largest[..., 0] == 0.0
    rows /= np.where(largest > 0.0, largest, 1.0)
    rows[empty] = 1.0
    rows /= rows.sum(axis=-1, keepdims=True)
    if instead is not None:
        rows[empty] = np.broadcast_to(instead, rows.shape)[empty]
    return rows


def renormalised(values: Float64, most: float = math.inf) -> Float64:
    """Noisy votes as distributions: clipped to [0, most], then divided by their sum; a row of zeros becomes uniform."""
    return simplex_rows(np.clip(values, 0.0, most))


def projected(values: Float64) -> Float64:
    """The nearest distribution to each row, in L2 (Duchi et al. 2008).

    Args:
        values: [n, classes] finite.

    >>> projected(np.array([[2.0, 0.0, -1.0], [0.5, 0.7, 0.0]])).round(3).tolist()
    [[1.0, 0.0, 0.0], [0.4, 0.6, 0.0]]
    """
    if not values.size:
        return values.copy()
    falling = -np.sort(-values, axis=1)
    excess = (np.cumsum(falling, axis=1) - 1.0) / np.arange(1, values.shape[1] + 1)
    kept = (falling > excess).sum(axis=1, keepdims=True)
    # Distances of 1e10 leave sums that are off by their rounding, so the result is normalised once more.
    return simplex_rows(values - np.take_along_axis(excess, kept - 1, axis=1))


def clipped(values: Float64, bound: float) -> Float64:
    """A finite array, shrunk to an L2 norm of at most `bound`.

    >>> clipped(np.array([[3.0, 4.0]]), 10.0).tolist(), clipped(np.array([[1e-9, 1e300]]), 2.0).round(9).tolist()
    ([[3.0, 4.0]], [[0.0, 2.0]])
    """
    largest = float(np.abs(values).max(initial=0.0))
    if largest == 0.0:
        return values.copy()
    # The norm of huge values would overflow.
    norm = float(np.linalg.norm(values / largest))
    if largest <= bound / norm:
        return values.copy()
    return values / largest * (bound / norm)


def positive(name: str, value: float) -> None:
    """Refuse what is no finite number above 0.

    Raises:
        ValueError: it is not.
    """
    if not (value > 0.0 and math.isfinite(value)):
        raise ValueError(f"{name}={value} must be a finite number above 0")


def whole(name: str, value: int, least: int) -> int:
    """The value, if it is a whole number of at least `least`.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}={value} must be a whole number, {least} or more")
    return value


def switched_on(name: str, allow_baseline: bool, worth: str) -> None:
    """Refuse a baseline that nobody asked for by name.

    Raises:
        ValueError: allow_baseline is not True.
    """
    if allow_baseline is not True:
        raise ValueError(f"allow_baseline={allow_baseline} must be True to run {name}: {worth}")
