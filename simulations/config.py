"""The experiment's file: TOML to checked settings."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError, model_validator

from client.config import Section
from simulations.sections import (
    AttackSection,
    BaselinesSection,
    ClientSection,
    DataSection,
    FederationSection,
    NewcomersSection,
    PrivacySettings,
    StragglersSection,
    StrategySection,
    StudentSection,
)
from strategies.presets import PRESETS


class ConfigError(ValueError):
    """A configuration that cannot be run; one sentence a problem."""


class ExperimentConfig(Section):
    """One experiment, complete: every default filled in, by the preset first."""

    federation: FederationSection = FederationSection()
    data: DataSection = DataSection()
    strategy: StrategySection
    client: ClientSection = ClientSection()
    student: StudentSection = StudentSection()
    baselines: BaselinesSection = BaselinesSection()
    privacy: PrivacySettings | None = None
    attack: AttackSection | None = None
    stragglers: StragglersSection = StragglersSection()
    newcomers: NewcomersSection = NewcomersSection()

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping) or not isinstance(raw.get("strategy", {}), Mapping):
            return raw
        name = raw.get("strategy", {}).get("preset", _default_preset(raw))
        if not isinstance(name, str) or name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}; known: {', '.join(sorted(PRESETS))}")
        filled = dict(raw)
        for section in ("strategy", "client", "student", "federation"):
            given = raw.get(section, {})
            if isinstance(given, Mapping):
                filled[section] = _changed(getattr(PRESETS[name], section), given)
        filled["strategy"]["preset"] = name
        return filled

    @model_validator(mode="after")
    def _refuse_what_the_preset_cannot(self) -> ExperimentConfig:
        used = {
            "partial participation": self.federation.participation < 1.0,
            "async": self.federation.mode == "async",
            "different models": len(set(self.client.models)) > 1,
            "late joiners": self.newcomers.share > 0.0,
        }
        for capability, why in PRESETS[self.strategy.preset].refuses.items():
            if used.get(capability):
                raise ValueError(f"preset {self.strategy.preset!r} does not go with {capability}: {why}")
        return self

    @property
    def deal_seed(self) -> int:
        """What rows are dealt by: data.seed, or else the experiment's own."""
        return self.federation.seed if self.data.seed is None else self.data.seed

    def resolved(self) -> dict[str, Any]:
        """The whole configuration as plain JSON values, to be written down and read back."""
        return self.model_dump(mode="json")


def _default_preset(raw: Mapping[str, Any]) -> str:
    federation = raw.get("federation")
    deployed = isinstance(federation, Mapping) and federation.get("engine") == "deployment"
    return "guarded" if deployed else "ds-fl"


def _changed(section: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A section with other values; settings without a name change the part that stands there, a name replaces it."""
    changed = {**section, **given}
    for key, value in given.items():
        before = {"name": section[key]} if isinstance(section.get(key), str) else section.get(key)
        if isinstance(value, Mapping) and "name" not in value and isinstance(before, Mapping):
            changed[key] = {**before, **value}
    return changed


def load_config(path: Path, overrides: Iterable[str] = ()) -> ExperimentConfig:
    """Read an experiment's file.

    Args:
        path: a TOML file; `extends = "other.toml"` at its top starts from that file, whose keys it changes.
        overrides: `section.key=value`, value as TOML; a bare word is taken as text.

    Raises:
        ConfigError: no such file, no TOML, an unknown key or a value out of bounds.
    """
    raw = _read(path)
    for override in overrides:
        _override(raw, override)
    return parse_config(raw, base=path.parent)


def parse_config(raw: Mapping[str, Any], base: Path | str) -> ExperimentConfig:
    """Check a configuration that is already a dictionary; `base` is where relative data paths start.

    Raises:
        ConfigError: an unknown key or a value out of bounds.
    """
    try:
        config = ExperimentConfig.model_validate(dict(raw))
    except ValidationError as error:
        raise ConfigError("; ".join(_sentence(problem) for problem in error.errors())) from None
    if config.data.path:
        data = config.data.model_copy(update={"path": str((Path(base) / config.data.path).resolve())})
        config = config.model_copy(update={"data": data})
    if config.privacy is not None and config.privacy.ledgers:
        kept = config.privacy.model_copy(update={"ledgers": str((Path(base) / config.privacy.ledgers).resolve())})
        config = config.model_copy(update={"privacy": kept})
    return config


def _read(path: Path, depth: int = 0) -> dict[str, Any]:
    """A file's tables over those of the file that it extends."""
    try:
        raw = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): name a configuration file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no TOML: {error}") from error
    if "extends" not in raw:
        return raw
    parent = raw.pop("extends")
    if not isinstance(parent, str) or depth >= 8:
        raise ConfigError(f"{path}: extends={parent!r} must name another file, at most 8 deep")
    merged = _read(path.parent / parent, depth + 1)
    data = merged.get("data")
    if isinstance(data, dict) and isinstance(data.get("path"), str) and data["path"]:
        # Absolute: the caller takes what is relative as relative to the file that extends.
        data["path"] = str(((path.parent / parent).parent / data["path"]).resolve())
    for section, values in raw.items():
        both = isinstance(values, dict) and isinstance(merged.get(section), dict)
        merged[section] = _changed(merged[section], values) if both else values
    return merged


def toml_value(text: str) -> Any:
    """What stands right of the = of a `--set`: TOML, or a bare word as text.

    >>> [toml_value(text) for text in ("3", "[1, 2]", "true", "shards", "nan", "inf")]
    [3, [1, 2], True, 'shards', 'nan', 'inf']
    """
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()
    # No setting is no number, but an attack is called nan; the one that may be infinite takes the word.
    return text.strip() if isinstance(value, float) and not math.isfinite(value) else value


def _override(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    section, dot, name = key.strip().partition(".")
    if not (equals and dot and name):
        raise ConfigError(f"--set {override!r} must read section.key=value, for example federation.rounds=5")
    target = raw.setdefault(section, {})
    if not isinstance(target, dict):
        raise ConfigError(f"--set {override!r}: {section!r} is no section")
    *parents, last = name.split(".")
    for parent in parents:
        if isinstance(target.get(parent), str):  # aggregator = "era" grows a setting
            target[parent] = {"name": target[parent]}
        target = target.setdefault(parent, {})
        if not isinstance(target, dict):
            raise ConfigError(f"--set {override!r}: {section}.{parent} is {target!r} and has no settings")
    target[last] = toml_value(text)


# For the kinds of errors that pydantic puts in its own words.
_SAID = {
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float"), "must be a whole number"),
    **dict.fromkeys(("float_parsing", "float_type", "finite_number"), "must be a finite number"),
    **dict.fromkeys(("bool_parsing", "bool_type"), "must be true or false"),
    **dict.fromkeys(("model_type", "model_attributes_type"), "is a section: its keys stand below its name in brackets"),
    "string_type": "must be text",
    "too_short": "must have at least one entry",
}


def _sentence(problem: Mapping[str, Any]) -> str:
    """One pydantic error as one sentence: where, what was found, what is allowed."""
    where = [str(part) for part in problem["loc"]]
    name = ".".join(where)
    if problem["type"] == "extra_forbidden":
        section: Any = ExperimentConfig
        for part in where[:-1]:
            kinds = (*get_args(section.model_fields[part].annotation), section.model_fields[part].annotation)
            section = next(kind for kind in kinds if hasattr(kind, "model_fields"))
        known = ", ".join(sorted(section.model_fields))
        return f"unknown key {name!r}; known{' in [' + where[0] + ']' if len(where) > 1 else ' sections'}: {known}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "missing":
        return f"{name} must be given"
    if problem["type"] == "value_error":
        return f"{name}: {message}" if name else message
    return f"{name} = {problem['input']!r}: {_SAID.get(problem['type'], message[0].lower() + message[1:])}"
