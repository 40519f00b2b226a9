"""Record/replay: does the un-noised value at each noise primitive move no further than its sensitivity says?

After Cebere et al. 2026 (arXiv 2602.17454). A release runs on a data set and is recorded; it runs again on a neighbour,
and every primitive answers what it answered the first time. Then the two runs have seen the same outputs, and whatever
still differs must be covered by the noise. It cannot see whether the noise has its law (noise_tests) or whether events
are counted (the ledger's tests).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from privacy.events import Event, Events, Gaussian, RandomizedResponse, merged
from privacy.mechanisms.mechanism import GRID, Float64, Int64, Noise

Data = TypeVar("Data")
# Float sums of clipped values exceed the exact bound by their rounding.
_TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One use of a noise primitive. Holds un-noised values, which must never leave the machine.

    Attributes:
        kind: the primitive.
        parameters: sensitivity, multiplier and grid of Gaussian noise; classes and e0 of responses.
        values: what went in.
        released: what came out.
    """

    kind: str
    parameters: tuple[float, ...]
    values: NDArray[Any]
    released: NDArray[Any]

    @property
    def sensitivity(self) -> float:
        """The declared largest distance: L2, or for responses the number of labels, of which all may change."""
        return float(self.values.size) if self.kind == "responses" else self.parameters[0]

    def distance(self, values: NDArray[Any]) -> float:
        """How far another run's values are; NaN if either has values that are not finite."""
        if self.kind == "responses":
            return float((values != self.values).sum())
        with np.errstate(invalid="ignore", over="ignore"):
            return float(np.linalg.norm((values.astype(np.float64) - self.values.astype(np.float64)).ravel()))

    def event(self) -> Event:
        """What this one call costs."""
        if self.kind == "responses":
            return RandomizedResponse(self.parameters[1], int(self.parameters[0]), self.values.size)
        return Gaussian(self.parameters[1], 1)


@dataclass(slots=True)
class Recorder:
    """Noise that writes down what went in and out.

    Attributes:
        noise: what makes the noise.
        calls: so far.
    """

    noise: Noise
    calls: list[Call] = field(default_factory=list)

    def gaussian(self, values: Float64, sensitivity: float, multiplier: float, grid: float = GRID) -> Float64:
        """See Noise."""
        before = values.copy()
        released = self.noise.gaussian(values, sensitivity, multiplier, grid)
        self.calls.append(
            Call("gaussian", (float(sensitivity), float(multiplier), float(grid)), before, released.copy())
        )
        return released

    def discrete_gaussian(self, values: Int64, sensitivity: float, multiplier: float) -> Int64:
        """See Noise."""
        before = values.copy()
        released = self.noise.discrete_gaussian(values, sensitivity, multiplier)
        self.calls.append(Call("discrete_gaussian", (float(sensitivity), float(multiplier)), before, released.copy()))
        return released

    def responses(self, labels: Int64, classes: int, label_epsilon: float) -> Int64:
        """See Noise."""
        before = labels.copy()
        released = self.noise.responses(labels, classes, label_epsilon)
        self.calls.append(Call("responses", (float(classes), float(label_epsilon)), before, released.copy()))
        return released

    def cost(self) -> Events:
        """Events of the noise that was drawn, to compare with those that were charged."""
        return merged([call.event() for call in self.calls if call.values.size])


class _Apart(Exception):
    """The second run uses other noise than the first, so that there is nothing to answer it with."""


@dataclass(slots=True)
class _Replayer:
    """Noise that answers as it was recorded, and compares what comes in."""

    calls: Sequence[Call]
    ratios: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    apart: bool = False

    def gaussian(self, values: Float64, sensitivity: float, multiplier: float, grid: float = GRID) -> Float64:
        return self._replayed("gaussian", (float(sensitivity), float(multiplier), float(grid)), values)

    def discrete_gaussian(self, values: Int64, sensitivity: float, multiplier: float) -> Int64:
        return self._replayed("discrete_gaussian", (float(sensitivity), float(multiplier)), values)

    def responses(self, labels: Int64, classes: int, label_epsilon: float) -> Int64:
        return self._replayed("responses", (float(classes), float(label_epsilon)), labels)

    def _replayed(self, kind: str, parameters: tuple[float, ...], values: NDArray[Any]) -> NDArray[Any]:
        number = len(self.ratios) + 1
        if number > len(self.calls):
            raise self._apart(f"call {number}: {kind} noise that the first run did not draw")
        call = self.calls[number - 1]
        told, before = (kind, parameters, values.shape), (call.kind, call.parameters, call.values.shape)
        if told != before:
            raise self._apart(f"call {number}: {told} after {before}")
        distance = call.distance(values)
        self.ratios.append(distance / call.sensitivity if distance else 0.0)
        # NaN fails every comparison, so this one is the wrong way round on purpose.
        if not distance <= call.sensitivity * (1.0 + _TOLERANCE):
            self.problems.append(
                f"call {number}: {kind} input moved by {distance:.6g}, declared {call.sensitivity:.6g}"
            )
        return call.released.copy()

    def _apart(self, problem: str) -> _Apart:
        # Written down here, not where it is caught: the release itself might swallow it.
        self.apart = True
        self.problems.append(problem)
        return _Apart(problem)


@dataclass(frozen=True, slots=True)
class Replay:
    """What record/replay found.

    Attributes:
        ratios: distance over declared sensitivity, of each primitive.
        problems: one sentence each; none if nothing was found.
        cost: events of the noise that the first run drew.
    """

    ratios: tuple[float, ...]
    problems: tuple[str, ...]
    cost: Events

    @property
    def worst(self) -> float:
        """The largest ratio; 1 is allowed, and NaN is above everything."""
        return float(np.max(self.ratios, initial=0.0))


def record_replay(run: Callable[[Data, Noise], object], first: Data, second: Data, noise: Noise) -> Replay:
    """Run a release on two neighbours with the same outputs.

    Args:
        run: the release: it may use its Noise and nothing else that is random (masks and starts must be frozen in it);
            returns all that leaves, as arrays or tuples and lists of them.
        first: data.
        second: a neighbour of it.
        noise: makes the first run's noise.

    Returns:
        Distances, and as problems: a value that moved too far or is not finite; noise of another kind, shape or
        parameter, or drawn another number of times; a run that raises; a result that differs though all noised values
        were the same.
    """
    recorder = Recorder(noise)
    try:
        before = run(first, recorder)
    except Exception as error:
        return Replay((), (f"the first run raised {error!r}: an exception is a release",), recorder.cost())
    replayer = _Replayer(recorder.calls)
    try:
        after = run(second, replayer)
        if not replayer.apart and len(replayer.ratios) < len(recorder.calls):
            replayer.problems.append(f"{len(replayer.ratios)} noise calls after {len(recorder.calls)}")
        elif not replayer.apart and not _equal(before, after):
            replayer.problems.append(
                "the results differ though all noised values were the same: something leaves un-noised"
            )
    except _Apart:
        pass
    except Exception as error:
        replayer.problems.append(f"the second run raised {error!r}: an exception is a release")
    return Replay(tuple(replayer.ratios), tuple(replayer.problems), recorder.cost())


def _equal(first: object, second: object) -> bool:
    """Whether two results are the same, bit for bit."""
    if isinstance(first, tuple | list) and isinstance(second, tuple | list):
        return len(first) == len(second) and all(map(_equal, first, second))
    one, other = np.asarray(first), np.asarray(second)
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


@dataclass(frozen=True, slots=True, eq=False)
class Neighbours:
    """What one unit puts in, and what it might have put in instead.

    Attributes:
        name: the two kinds of matrix.
        first: [n, classes] meant to be probabilities.
        second: of the same shape.
    """

    name: str
    first: Float64
    second: Float64


_SHAPES = ((1, 2), (3, 4), (7, 2), (0, 3), (5, 10), (2, 3))
_KINDS: dict[str, Callable[[np.random.Generator, int, int], Float64]] = {
    "random": lambda rng, n, k: rng.dirichlet(np.full(k, 0.3), n).reshape(n, k),
    "one class": lambda rng, n, k: np.eye(k)[np.zeros(n, np.int64)],
    "opposite": lambda rng, n, k: np.eye(k)[np.full(n, k - 1)],
    "uniform": lambda rng, n, k: np.full((n, k), 1.0 / k),
    "nan": lambda rng, n, k: np.full((n, k), np.nan),
    "inf": lambda rng, n, k: np.full((n, k), np.inf),
    "minus inf": lambda rng, n, k: np.full((n, k), -np.inf),
    "huge": lambda rng, n, k: np.sign(rng.normal(size=(n, k))) * 1e308,
    "tiny": lambda rng, n, k: np.full((n, k), 5e-324),
    "zero": lambda rng, n, k: np.zeros((n, k)),
    "negative": lambda rng, n, k: -rng.exponential(size=(n, k)),
    "one bad entry": lambda rng, n, k: np.where(np.arange(k) == rng.integers(k), np.inf, 1.0 / k) * np.ones((n, 1)),
}


def adversarial_neighbours(cases: int, seed: int = 0) -> Iterator[Neighbours]:
    """Matrices of one unit's soft labels that try to break a mechanism: every ordered pair of kinds, and more.

    Args:
        cases: how many; from 144 on every ordered pair of kinds is among them.
        seed: of the random ones.

    Yields:
        Pairs of [n, classes], n from 0 to 7 and classes from 2 to 10: random, one class, opposite corners, huge,
        infinite, NaN, nothing at all.
    """
    rng = np.random.default_rng(seed)
    pairs = [(one, other) for one in _KINDS for other in _KINDS]
    for case in range(cases):
        one, other = pairs[case % len(pairs)]
        rows, classes = _SHAPES[int(rng.integers(len(_SHAPES)))]
        yield Neighbours(f"{one} / {other}", _KINDS[one](rng, rows, classes), _KINDS[other](rng, rows, classes))
