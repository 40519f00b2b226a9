"""The experiment's file: TOML to checked settings. A default lives once, here, beside its meaning."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from client.config import Count, PartSection, Positive, Section
from strategies.presets import PRESETS


def _amount(value: Any, what: str = "rows") -> Any:
    whole, share = isinstance(value, int) and not isinstance(value, bool), isinstance(value, float)
    if not ((whole and value >= 1) or (share and 0.0 < value < 1.0)):
        raise ValueError(f"{value!r} must be a number of {what}, 1 or more, or a share of all {what} between 0 and 1")
    return value


# A number of rows (2000) or a share of all rows (0.5).
Amount = Annotated[int | float, BeforeValidator(lambda value: _amount(value))]
AmountOrAll = Annotated[int | float, BeforeValidator(lambda value: 0 if value == 0 else _amount(value))]


def _some_clients(value: Any) -> Any:
    if isinstance(value, list | tuple) and value and all(isinstance(name, str) for name in value):
        return tuple(value)
    return _amount(value, "clients")


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
    # sync: a reply after the deadline is lost. async: it counts in the round in which it comes, with less weight.
    mode: Literal["sync", "async"] = "sync"
    # A vote that is s rounds late weighs (1 + s)^-staleness.
    staleness: Annotated[float, Field(ge=0.0, le=10.0)] = 0.5
    # Rounds after which a late answer is no longer waited for, and its client is asked again.
    patience: Annotated[int, Field(ge=1, le=1000)] = 5
    # Keep every believed vote in votes/, so that `consilium forget` can work.
    keep_votes: bool = False
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


class StrategySection(Section):
    """What is exchanged and how votes become a teacher."""

    # Without one: ds-fl in simulations, guarded in deployments.
    preset: str
    aggregator: PartSection
    # How votes travel up and teachers down: float32, float16, quantised:BITS, top-k:K, each with +delta and +entropy.
    uplink: str = "float32"
    downlink: str = "float32"
    # Which proxy rows: random (new ones each round), fixed (the same ones), epoch (all in turn), disagreement (half of
    # them where voters disagreed most).
    choice: Literal["random", "fixed", "epoch", "disagreement"] = "random"
    # Rounds for which a label is used again instead of being asked (SCARLET's D); 0 = no cache.
    cache_rounds: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    # Voters that a row needs to be in the teacher: a number, or a share of the asked clients (then at least two).
    row_quorum: Annotated[int | float, BeforeValidator(lambda value: _amount(value, "clients"))] = 0.3

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
    # Every round from the first weights again: clients that keep no state.
    restart: bool = False
    # Weight of the other clients' class tables beside the labels (Jeong's gamma).
    table_weight: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 1.0
    # On which proxy rows a client votes, by name or as a table with a name; all of them without one. `on` says what it
    # looks at: "inputs" or "model" (the client's last hidden layer).
    selector: PartSection | None = None

    @field_validator("models", mode="before")
    @classmethod
    def _lists(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value

    @field_validator("selector", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return ({"name": value} if value not in ("", "none") else None) if isinstance(value, str) else value


class StudentSection(_TrainingSection):
    """How the server's student learns from the teacher."""

    model: str = "auto"
    # Which held-out score chooses student-best; more is better for both.
    best_metric: Literal["accuracy", "macro_f1"] = "accuracy"
    # Every round from its first weights again.
    restart: bool = False
    # Clients learn the student's answers on the teacher's rows instead of the teacher (CFD).
    speaks: bool = False


class AttackSection(PartSection):
    """Who lies, and how; in simulations only."""

    # A number of clients, a share of them, or their names.
    clients: Annotated[int | float | tuple[str, ...], BeforeValidator(_some_clients)] = 1


class StragglersSection(Section):
    """Clients whose answers come late; in simulations only, by rounds and not by the clock."""

    # Share of the clients, the same ones in every round.
    share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    # How many rounds late they are; a run that is resumed asks them anew instead of waiting on.
    rounds: Annotated[int, Field(ge=1, le=100)] = 1


class NewcomersSection(Section):
    """Clients that join while the run is under way; in simulations only."""

    # Share of the clients.
    share: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    # The first round that may ask them.
    round: Annotated[int, Field(ge=2)] = 2


class BaselinesSection(Section):
    """What to compare with; each costs about as much as the run itself."""

    # Every client alone: its rounds' private training without any teacher.
    local_only: bool = False
    # The student's model on all private rows together: the upper bound that nobody may compute in earnest.
    pooled: bool = False
    # Passes over the pooled rows; 0 = rounds * local_epochs.
    pooled_epochs: Count = 0
    # FedAvg with the student's model at every client: the weights leave the sites, soft labels are not needed.
    fedavg: bool = False
    # Its rounds; 0 = federation.rounds.
    fedavg_rounds: Count = 0
    # Its passes over the private rows in a round; 0 = client.local_epochs.
    fedavg_epochs: Count = 0


class ExperimentConfig(Section):
    """One experiment, complete: every default filled in, by the preset first."""

    federation: FederationSection = FederationSection()
    data: DataSection = DataSection()
    strategy: StrategySection
    client: ClientSection = ClientSection()
    student: StudentSection = StudentSection()
    baselines: BaselinesSection = BaselinesSection()
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

    >>> [toml_value(text) for text in ("3", "[1, 2]", "true", "shards", "nan")]
    [3, [1, 2], True, 'shards', 'nan']
    """
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()
    # No setting is infinite or no number, but an attack is called nan.
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
            section = section.model_fields[part].annotation
        known = ", ".join(sorted(section.model_fields))
        return f"unknown key {name!r}; known{' in [' + where[0] + ']' if len(where) > 1 else ' sections'}: {known}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "missing":
        return f"{name} must be given"
    if problem["type"] == "value_error":
        return f"{name}: {message}" if name else message
    return f"{name} = {problem['input']!r}: {_SAID.get(problem['type'], message[0].lower() + message[1:])}"
