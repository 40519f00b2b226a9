"""The experiment's file: TOML to checked settings. A default lives once, here, beside its meaning."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from client.config import Count, Positive, Section
from strategies.presets import PRESETS

ENGINES = ("in-process", "flower-simulation", "deployment")


def _amount(value: Any) -> Any:
    whole, share = isinstance(value, int) and not isinstance(value, bool), isinstance(value, float)
    if not ((whole and value >= 1) or (share and 0.0 < value < 1.0)):
        raise ValueError(f"{value!r} must be a number of rows, 1 or more, or a share of all rows between 0 and 1")
    return value


# A number of rows (2000) or a share of all rows (0.5).
Amount = Annotated[int | float, BeforeValidator(_amount)]
AmountOrAll = Annotated[int | float, BeforeValidator(lambda value: 0 if value == 0 else _amount(value))]


class ConfigError(ValueError):
    """A configuration that cannot be run; one sentence a problem."""


class FederationSection(Section):
    """How the federation runs."""

    engine: Literal["in-process", "flower-simulation", "deployment"] = "in-process"
    clients: Annotated[int, Field(ge=1, le=10_000)] = 10
    rounds: Annotated[int, Field(ge=1, le=1_000_000)] = 10
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    # Proxy rows that each round asks every client to vote on; all of them where there are fewer.
    rows_per_round: Annotated[int, Field(ge=1)] = 1000
    # Share of the asked clients whose answer must be usable; below it the round, and so the run, fails.
    quorum: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    # Share of the clients that a round asks.
    participation: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    # Worker processes; 0 = all cores.
    workers: Count = 0
    # auto = cuda where there is one.
    device: str = "auto"
    # A client that has not answered by then is missing in this round; over real nodes never under 70 s.
    timeout_s: Annotated[float, Field(gt=0.0, le=1e6)] = 600.0
    # Rounds between evaluations of every client's model (0 = only after the last); the student's is always done.
    evaluate_every: Count = 1


class DataSection(Section):
    """Which data, and how it is dealt out."""

    name: Literal["digits", "breast-cancer", "mnist", "cifar10", "heart-disease", "csv", "parquet", "imagefolder"] = (
        "digits"
    )
    # File or folder; relative to the configuration's own folder. The bundled sets need none.
    path: str = ""
    # How private rows are dealt to clients; the default is natural where the data has sites, else dirichlet.
    partition: Literal["auto", "iid", "dirichlet", "shards", "natural"] = "auto"
    alpha: Positive = 0.5
    shards_per_client: Annotated[int, Field(ge=1)] = 2
    # The smallest private set a client may get.
    min_rows: Annotated[int, Field(ge=1)] = 2
    # Rows, or shares of all rows. private = 0 means: all that proxy and test leave.
    private: AmountOrAll = 0
    proxy: Amount = 0.25
    # Where the data comes with a test part of its own, these rows are taken from it; 0 = all of that part, or a quarter
    # of all rows where there is none.
    test: AmountOrAll = 0
    # Tables: the column to predict, columns to leave out, the column that names a row's site.
    target: str = ""
    drop: tuple[str, ...] = ()
    site_column: str = ""
    # Tables: columns of numbers to treat as names (codes, postcodes); columns of text always are.
    categorical: tuple[str, ...] = ()

    @field_validator("drop", "categorical", mode="before")
    @classmethod
    def _lists(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value


class AggregatorSetting(BaseModel):
    """A rule by name, with the rule's own settings beside it."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    name: str

    @property
    def settings(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class StrategySection(Section):
    """What is exchanged and how votes become a teacher."""

    preset: str = "ds-fl"
    aggregator: AggregatorSetting
    codec: str

    @field_validator("aggregator", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class _TrainingSection(Section):
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Positive = 0.1
    # Step size against the teacher; 0 = lr.
    distil_lr: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    weight_decay: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0
    batch_size: Annotated[int, Field(ge=1, le=2**31 - 1)] = 50
    distil_epochs: Count = 5
    distil_loss: Literal["kl", "mae"] = "kl"
    temperature: Positive = 1.0


class ClientSection(_TrainingSection):
    """How each client trains."""

    # Architectures, dealt round-robin: clients may differ. The default fits the data.
    models: Annotated[tuple[str, ...], Field(min_length=1)] = ("auto",)
    # Passes over the private rows, each round.
    local_epochs: Count = 5
    # Before the first vote: passes over the labelled proxy set, then over the private rows (FedMD's first phase).
    public_epochs: Count = 0
    warmup_epochs: Count = 0

    @field_validator("models", mode="before")
    @classmethod
    def _lists(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


class StudentSection(_TrainingSection):
    """How the server's student learns from the teacher."""

    model: str = "auto"
    # Which held-out score chooses student-best; more is better for both.
    best_metric: Literal["accuracy", "macro_f1"] = "accuracy"


class BaselinesSection(Section):
    """What to compare with; each costs about as much as the run itself."""

    # Every client alone: its rounds' private training without any teacher.
    local_only: bool = False
    # The student's model on all private rows together: the upper bound that nobody may compute in earnest.
    pooled: bool = False
    # Passes over the pooled rows; 0 = rounds * local_epochs.
    pooled_epochs: Count = 0


class ExperimentConfig(Section):
    """One experiment, complete: every default filled in, by the preset first."""

    federation: FederationSection = FederationSection()
    data: DataSection = DataSection()
    strategy: StrategySection
    client: ClientSection = ClientSection()
    student: StudentSection = StudentSection()
    baselines: BaselinesSection = BaselinesSection()

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping) or not isinstance(raw.get("strategy", {}), Mapping):
            return raw
        name = raw.get("strategy", {}).get("preset", StrategySection.model_fields["preset"].default)
        if not isinstance(name, str) or name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}; known: {', '.join(sorted(PRESETS))}")
        filled = dict(raw)
        for section in ("strategy", "client", "student"):
            given = raw.get(section, {})
            if isinstance(given, Mapping):
                filled[section] = {**getattr(PRESETS[name], section), **given}
        rule = filled["strategy"]["aggregator"]
        if isinstance(rule, Mapping) and "name" not in rule:  # settings only: the preset's rule, changed
            filled["strategy"]["aggregator"] = {**PRESETS[name].strategy["aggregator"], **rule}
        return filled

    def resolved(self) -> dict[str, Any]:
        """The whole configuration as plain JSON values, to be written down and read back."""
        return self.model_dump(mode="json")


def load_config(path: Path, overrides: Iterable[str] = ()) -> ExperimentConfig:
    """Read an experiment's file.

    Args:
        path: a TOML file.
        overrides: `section.key=value`, value as TOML; a bare word is taken as text.

    Raises:
        ConfigError: no such file, no TOML, an unknown key or a value out of bounds.
    """
    try:
        raw = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): name a configuration file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no TOML: {error}") from error
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
    return config


def _override(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    section, dot, name = key.strip().partition(".")
    if not (equals and dot and name):
        raise ConfigError(f"--set {override!r} must read section.key=value, for example federation.rounds=5")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
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
    target[last] = value


def _sentence(problem: Mapping[str, Any]) -> str:
    """One pydantic error as one sentence: where, what was found, what is allowed."""
    where = [str(part) for part in problem["loc"]]
    name = ".".join(where)
    if problem["type"] == "extra_forbidden":
        section: Any = ExperimentConfig
        for part in where[:-1]:
            section = section.model_fields[part].annotation
        known = ", ".join(sorted(section.model_fields))
        return f"unknown key {name!r}; known{' in [' + where[0] + ']' if len(where) > 1 else ' sections'}: {known}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] in ("value_error", "missing"):
        return f"{name}: {message}" if name else message
    return f"{name} = {problem['input']!r}: {message[0].lower()}{message[1:]}"
