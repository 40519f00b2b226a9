"""A sweep's folder: what it says of itself, that it is no other sweep's, and what its points have come to so far."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distillation.export import write_atomically
from simulations.config import ConfigError, ExperimentConfig, parse_config
from simulations.sweeps.grid import Axis, Point, plain
from simulations.sweeps.outcomes import Outcome

MANIFEST = "sweep.json"
# How a point is run, not what it computes: the sweep deals out the cores.
_FREE = "federation.workers"


def folder_of(out: Path, point: Point) -> Path:
    """Where a point's run lies."""
    return out / "points" / point.slug


def claim_sweep(out: Path, axes: Sequence[Axis], points: Sequence[Point], resume: bool) -> None:
    """Make `out` this sweep's folder, or make sure that it is.

    A sweep that is resumed may have more values than it was begun with, but the same axes and settings.

    Raises:
        ConfigError: the folder holds another sweep, or something else, or with `resume` no sweep.
    """
    begun = out / MANIFEST
    if resume:
        if not begun.is_file():
            raise ConfigError(f"nothing to resume in {out}: sweep without --resume, or name the --out of the sweep")
        _refuse_another(begun, axes, points)
        return
    if begun.exists():
        raise ConfigError(f"{out} already holds a sweep: add --resume to go on with it, or name another --out")
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ConfigError(f"{out} is no empty folder and holds no sweep: name another --out")
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written ({error.strerror}): name another --out") from None


def _refuse_another(begun: Path, axes: Sequence[Axis], points: Sequence[Point]) -> None:
    keys, settings = _read(begun)
    another = f"{begun.parent} holds a sweep"
    instead = "resume it with the same axes and settings, or name another --out"
    if keys != [axis.key for axis in axes]:
        raise ConfigError(f"{another} over {', '.join(keys)}: {instead}")
    now = {point.slug: point.config for point in points}
    for slug, before in settings.items():
        if slug not in now:
            raise ConfigError(f"{another} with the point {slug}, which this grid has not: {instead}")
        if changed := _changed(before, now[slug]):
            raise ConfigError(f"{another} that was begun with another {', '.join(changed)}: {instead}")


def _read(path: Path) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """A manifest's axes, and the settings of its points by slug."""
    try:
        told = json.loads(path.read_bytes())
        if told["schema"] != 1:
            raise ValueError(f"schema {told['schema']!r}")
        keys = [str(axis["key"]) for axis in told["axes"]]
        return keys, {point["slug"]: {**told["common"], **point["own"]} for point in told["points"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no sweep of this version: name another --out") from error


def _changed(before: Mapping[str, Any], config: ExperimentConfig) -> list[str]:
    """Settings that are not as they were; a key that is newer than `before` counts with its default."""
    try:
        old = flat(parse_config(nested(before), base="."))
    except ConfigError:
        old = dict(before)
    new = flat(config)
    return sorted(key for key in {**old, **new} if key != _FREE and old.get(key) != new.get(key))


def flat(config: ExperimentConfig) -> dict[str, Any]:
    """`section.key` to value as JSON has it; a section that is not there is one key."""
    return {
        name: value
        for section, values in config.resolved().items()
        for name, value in (
            ((f"{section}.{key}", inner) for key, inner in values.items())
            if isinstance(values, Mapping)
            else ((section, values),)
        )
    }


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The sections that `flat` took apart."""
    sections: dict[str, Any] = {}
    for name, value in settings.items():
        section, dot, key = name.partition(".")
        if dot:
            sections.setdefault(section, {})[key] = value
        else:
            sections[section] = value
    return sections


def common_settings(points: Sequence[Point]) -> dict[str, Any]:
    """What all points share, by `section.key`."""
    first, *others = (flat(point.config) for point in points)
    return {key: value for key, value in first.items() if all(key in one and one[key] == value for one in others)}


def write_manifest(out: Path, axes: Sequence[Axis], outcomes: Sequence[Outcome], price: str | None) -> None:
    """Write sweep.json: axes, settings, and what became of each point."""
    common = common_settings([outcome.point for outcome in outcomes])
    told = {
        "schema": 1,
        "axes": [{"key": axis.key, "values": [plain(value) for value in axis.values]} for axis in axes],
        "common": common,
        "price": price,
        "points": [
            {
                "slug": outcome.point.slug,
                "values": {key: plain(value) for key, value in outcome.point.values.items()},
                "own": {key: value for key, value in flat(outcome.point.config).items() if key not in common},
                "verdict": outcome.verdict or None,
                "reason": outcome.reason,
            }
            for outcome in outcomes
        ],
    }
    write_atomically(out / MANIFEST, (json.dumps(told, indent=1) + "\n").encode())


def outcome_of(out: Path, point: Point, reason: str | None = None) -> Outcome:
    """What a point has come to, from its folder.

    Args:
        reason: why it failed, if that is known better than its run.json can say.

    Raises:
        ConfigError: its folder holds the run of other settings.
    """
    path = folder_of(out, point) / "run.json"
    if not path.is_file():
        return Outcome(point, None, reason)
    try:
        run = json.loads(path.read_bytes())
        before = parse_config(run["config"], base=".")
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no run of this version: remove its folder to run the point anew") from error
    changed = _changed(flat(before), point.config)
    if changed:
        raise ConfigError(f"{path} was made with another {', '.join(changed)}: remove its folder to run the point anew")
    failed = None if run.get("verdict") in ("ok", "degraded") else run.get("reason") or "it failed"
    return Outcome(point, run, failed if failed is not None else reason)
