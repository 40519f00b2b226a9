"""What a sweep runs: axes of settings, and their product as points that are all checked before any of them runs."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulations.config import ConfigError, ExperimentConfig, load_config, toml_value
from simulations.preparation import check_config

SEED = "federation.seed"
_EPSILON, _NOISE = "privacy.epsilon", "privacy.noise_multiplier"
# What may be written without its section.
SHORT_FORMS = {
    "seed": SEED,
    "rounds": "federation.rounds",
    "clients": "federation.clients",
    "preset": "strategy.preset",
    "aggregator": "strategy.aggregator",
}
MOST_POINTS = 10_000
# A folder's name has 255 bytes at most.
_LONGEST_SLUG = 120
_CLOSING = {"]": "[", "}": "{"}
_INFINITE = ("inf", "+inf")


@dataclass(frozen=True, slots=True)
class Axis:
    """One setting and the values that it takes.

    Attributes:
        key: `section.key`, in full.
        texts: the values as they were typed, as `--set` takes them.
        values: what they mean; `inf` is infinity.
    """

    key: str
    texts: tuple[str, ...]
    values: tuple[Any, ...]

    @property
    def numeric(self) -> bool:
        """Whether all values are numbers."""
        return all(isinstance(value, int | float) and not isinstance(value, bool) for value in self.values)


@dataclass(frozen=True, slots=True)
class Point:
    """One run of a sweep: what `consilium run CONFIG` with `--set` for each of `sets` would run.

    Attributes:
        slug: name of its folder, the same in every sweep over these axes.
        values: by the axis' key.
        sets: `section.key=value`, one an axis, as `--set` takes them.
        config: complete and checked.
    """

    slug: str
    values: Mapping[str, Any]
    sets: tuple[str, ...]
    config: ExperimentConfig

    @property
    def label(self) -> str:
        """`epsilon=0.5 seed=1`, for people."""
        return " ".join(f"{name}={label(value)}" for name, value in _short_named(self.values).items())


def axes_of(grids: Iterable[str]) -> tuple[Axis, ...]:
    """Read `--grid` options, in their order.

    Args:
        grids: `key=value,value,...`; values are TOML, a bare word is text, and a comma inside brackets or quotes is the
            value's own.

    Raises:
        ConfigError: no axis, one that cannot be read, or an axis or a value that stands twice.

    >>> [(axis.key, axis.values) for axis in axes_of(["privacy.epsilon=0.5,inf", "seed=1,2"])]
    [('privacy.epsilon', (0.5, inf)), ('federation.seed', (1, 2))]
    """
    axes = tuple(_axis(grid) for grid in grids)
    if not axes:
        raise ConfigError("a sweep needs an axis: add for example --grid seed=1,2,3")
    keys = [axis.key for axis in axes]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(f"--grid {key} stands {keys.count(key)} times: write all its values behind one")
    return axes


def _axis(grid: str) -> Axis:
    key, equals, told = grid.partition("=")
    key = SHORT_FORMS.get(key.strip(), key.strip())
    if not (equals and re.fullmatch(r"[^.\s]+(\.[^.\s]+)+", key)):
        known = ", ".join(SHORT_FORMS)
        raise ConfigError(
            f"--grid {grid!r} must read key=value,value with a key as section.key or one of {known}: for example "
            "seed=1,2,3"
        )
    texts = tuple(text.strip() for text in _split(told))
    if not all(texts):
        raise ConfigError(f"--grid {grid!r} has an empty value: name each between two commas")
    values = tuple(_value(key, text) for text in texts)
    for (text, value), (_, other) in itertools.combinations(zip(texts, values, strict=True), 2):
        if _same(value, other):
            raise ConfigError(f"--grid {key} has the value {text} twice: name each once")
    return Axis(key, texts, values)


def _split(text: str) -> Iterator[str]:
    """At the commas that stand in no brackets and no quotes."""
    start, open_, quote = 0, list[str](), ""
    for place, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "[{":
            open_.append(letter)
        elif letter in _CLOSING and open_ and open_[-1] == _CLOSING[letter]:
            open_.pop()
        elif letter == "," and not open_:
            yield text[start:place]
            start = place + 1
    yield text[start:]


def _value(key: str, text: str) -> Any:
    if text in _INFINITE:
        return math.inf
    if text in ("nan", "+nan", "-nan"):
        raise ConfigError(f"--grid {key} has the value {text}, which is no number: leave it out")
    return toml_value(text)


def _same(one: Any, other: Any) -> bool:
    """Equal settings: 1 and 1.0 are, true and 1 are not."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def points_of(path: Path, overrides: Sequence[str], axes: Sequence[Axis]) -> tuple[Point, ...]:
    """The product of all axes over a configuration's file, the last axis running fastest.

    Args:
        overrides: `section.key=value` for all points; an axis beats them.

    Raises:
        ConfigError: too many points, or one that cannot be run: nothing was begun.
        ModuleNotFoundError: an engine needs a package that is not installed.
    """
    count = math.prod(len(axis.texts) for axis in axes)
    if count > MOST_POINTS:
        sizes = " * ".join(str(len(axis.texts)) for axis in axes)
        raise ConfigError(f"the grid has {sizes} = {count} points and at most {MOST_POINTS} are run: name fewer values")
    choices = ([(axis.key, text, value) for text, value in zip(axis.texts, axis.values, strict=True)] for axis in axes)
    points = tuple(_point(path, overrides, chosen) for chosen in itertools.product(*choices))
    _refuse_fixed_noise(points, axes)
    return points


def _refuse_fixed_noise(points: Sequence[Point], axes: Sequence[Axis]) -> None:
    keys = {axis.key for axis in axes if len(axis.values) > 1}
    fixed = {told.noise_multiplier for point in points if (told := point.config.privacy) is not None} - {0.0}
    if _EPSILON in keys and _NOISE not in keys and fixed:
        raise ConfigError(
            f"--grid {_EPSILON} over {_NOISE}={fixed.pop():g} would be the same noise at every point: "
            f"--set {_NOISE}=0 lets each epsilon have its own, or take {_NOISE} as the axis"
        )


def _point(path: Path, overrides: Sequence[str], chosen: Sequence[tuple[str, str, Any]]) -> Point:
    values = {key: value for key, _, value in chosen}
    # A part before its own settings: naming another part would drop them.
    sets = tuple(f"{key}={text}" for key, text, _ in sorted(chosen, key=lambda one: one[0].count(".")))
    try:
        config = load_config(path, [*overrides, *sets])
        check_config(config)
    except ConfigError as error:
        told = " ".join(sets)
        raise ConfigError(f"the point {told} cannot be run, so nothing was begun: {error}") from None
    return Point(slug(values), values, sets, config)


def label(value: Any) -> str:
    """A value as text, in tables and beside axes.

    >>> label(0.5), label(True), label("pate"), label(["mlp", "cnn"]), label(float("inf"))
    ('0.5', 'true', 'pate', '["mlp", "cnn"]', 'inf')
    """
    return value if isinstance(value, str) else str(value) if isinstance(value, float) else json.dumps(value)


def plain(value: Any) -> Any:
    """A value as JSON has it, which knows no infinity."""
    return label(value) if isinstance(value, float) and math.isinf(value) else value


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """The last part of each key; all of it where two keys end alike.

    >>> short_names(["client.lr", "student.lr", "federation.seed"])
    {'client.lr': 'client.lr', 'student.lr': 'student.lr', 'federation.seed': 'seed'}
    """
    ends = [key.rpartition(".")[2] for key in keys]
    return {key: end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)}


def _short_named(values: Mapping[str, Any]) -> dict[str, Any]:
    names = short_names(list(values))
    return {names[key]: value for key, value in values.items()}


def slug(values: Mapping[str, Any]) -> str:
    """A point's name as a folder's: readable, and another one for other values.

    A value that a folder's name cannot hold as it is, on a file system that knows no capitals either, is cut to what it
    can hold and followed by a digest of itself.

    >>> slug({"privacy.epsilon": 0.5, "federation.seed": 1})
    'epsilon=0.5_seed=1'
    """
    # No "_" in a value: it stands between the axes.
    text = "_".join(f"{name}={_portable(value)}" for name, value in _short_named(values).items())
    return (
        text if len(text) <= _LONGEST_SLUG else f"{text[:_LONGEST_SLUG]}~{_digest(list(map(plain, values.values())))}"
    )


def _portable(value: Any) -> str:
    text = label(value)
    safe = re.sub(r"[^a-z0-9.+-]+", "-", text.lower())
    # The text "true" beside the value true, "inf" beside infinity.
    looks_typed = isinstance(value, str) and (value in _INFINITE or not isinstance(toml_value(value), str))
    return text if safe == text and not looks_typed else f"{safe[:40]}~{_digest(value)}"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(plain(value), sort_keys=True).encode()).hexdigest()[:12]
