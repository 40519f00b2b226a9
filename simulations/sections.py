"""The sections of an experiment's file. A default lives once, here, beside its meaning."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, field_validator, model_validator

from client.config import Count, PartSection, Positive, PromiseSection, Section
from privacy.caveats import Tuning


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


def _epsilon(value: Any) -> Any:
    if value == "inf":
        return math.inf
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ValueError(f'{value!r} must be a number above 0, or "inf" for a run without noise')
    return float(value)


def _plain(value: float) -> float | str:
    return value if value < math.inf else "inf"  # JSON has no infinity


_Epsilon = Annotated[float, BeforeValidator(_epsilon), PlainSerializer(_plain)]


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
    # Of the deal alone: which rows are private, public or for testing, and whose. Left out it is federation.seed; set,
    # other seeds train anew on the same rows.
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    # The smallest private set a client may get.
    min_rows: Annotated[int, Field(ge=1)] = 2
    # Rows, or shares of all rows. private = 0 means: all that proxy and test leave.
    private: AmountOrAll = 0
    proxy: Amount = 0.25
    # Where the data comes with a test part of its own, these rows are taken from it; 0 = all of that part, or a quarter
    # of all rows where there is none.
    test: AmountOrAll = 0
    # Images: of each channel, or one number for all, once pixels are 0 to 1; constants, not statistics of private rows.
    mean: Annotated[tuple[float, ...], Field(min_length=1)] | None = None
    std: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
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

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _channels(cls, value: Any) -> Any:
        numbers = tuple(value) if isinstance(value, list) else (value,) if isinstance(value, int | float) else value
        return tuple(map(float, numbers)) if isinstance(numbers, tuple) else numbers


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
    # The coordinator sees the sum of all votes and no single one; a third of the clients may be gone. Two exchanges a
    # round, and rules that follow from the mean alone.
    secure_sum: bool = False

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


class PrivacySettings(PromiseSection):
    """What a private record of each client may lose in this run; inf, or "none", is a run without noise."""

    epsilon: _Epsilon | None = None
    # Noise that nobody can draw again, from the operating system. Else it comes from the seed: repeatable, NOT PRIVATE.
    os_entropy: bool = False
    # How these settings were chosen, for every statement to say: on public data or on none ("public"), on private data
    # at a price that the same ledgers have ("paid"), or nobody says.
    tuning: Tuning = "unpaid"
    # A folder of ledgers, one a client, that outlive the run: for private data that more than one run is spent on.
    ledgers: str = ""

    @model_validator(mode="after")
    def _check_size(self) -> PrivacySettings:
        if self.epsilon is None and not self.noise_multiplier and self.mechanism.name != "none":
            raise ValueError("give epsilon, noise_multiplier, or both: nothing says how much noise there must be")
        if self.epsilon == math.inf and self.noise_multiplier:
            raise ValueError(
                f"epsilon=inf is a run without noise, and noise_multiplier={self.noise_multiplier:g} asks for some: "
                "leave epsilon out, or set noise_multiplier to 0"
            )
        return self

    @property
    def promises(self) -> bool:
        """Whether there is noise at all."""
        return self.mechanism.name != "none" and self.epsilon != math.inf


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
