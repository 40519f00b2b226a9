"""The site's own file: data, model, limits. The coordinator can neither read nor set it."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from privacy.policy import Policy

Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


class SiteConfigError(ValueError):
    """A site file that cannot be used; one sentence a problem."""


class Section(BaseModel):
    """A table of a file that people write: unknown keys are refused, and so are values of another type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class TrainingSection(Section):
    """How this site's model trains; the names are those of distillation.learner.Training."""

    optimizer: str = "sgd"
    lr: Positive = 0.1
    distil_lr: Positive = 0.1
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    weight_decay: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0
    batch_size: Annotated[int, Field(ge=1)] = 50
    distil_loss: str = "kl"
    temperature: Positive = 1.0
    distil_epochs: Count = 5
    local_epochs: Count = 5
    public_epochs: Count = 0
    warmup_epochs: Count = 0
    # Every round from the first weights again, first epochs included: for a client that keeps no state (CFD).
    restart: bool = False
    # How much the others' class tables count beside the labels (Jeong's gamma).
    table_weight: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 1.0


class PartSection(BaseModel):
    """A part by name; its own settings stand beside the name."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    name: str

    @property
    def settings(self) -> dict[str, Any]:
        """The part's own."""
        return dict(self.model_extra or {})


class SelectorSection(PartSection):
    """On which proxy rows this site is competent, and how far: who may hear of it, its policy says."""

    # What it looks at: the inputs themselves, or the site's model's last hidden layer.
    on: Literal["inputs", "model"] = "inputs"


class PromiseSection(Section):
    """What one private record may lose, and by which mechanism: what a site's file and an experiment's share."""

    # How: dp-sgd, pate, or a baseline by name; a mechanism's own settings stand beside its name.
    mechanism: PartSection = PartSection(name="dp-sgd")
    # Standard deviation of the noise over the sensitivity; 0 = the least that keeps epsilon.
    noise_multiplier: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0
    # The probability with which epsilon need not hold; 0 = min(1e-5, 1/(10 n)), which every report prints.
    delta: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    # plan: rounds and noise are fixed before the first answer, and cost least. filter: they may be changed later.
    composition: Literal["plan", "filter"] = "plan"
    # Rows that one patient or machine has at most: epsilon then covers all of them together (unit "group").
    group_size: Annotated[int, Field(ge=1, le=1000)] = 1
    # k-rr and gaussian-output are for comparison; their reports say what they are worth.
    allow_baseline: bool = False

    @field_validator("mechanism", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class PrivacySection(PromiseSection):
    """The site's own promise, kept by a ledger on its own disk over all runs, coordinators and restarts."""

    # All that a record may lose over the life of this data set; may be left out where noise_multiplier is given.
    epsilon: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None = None
    # Answers that the budget is for; 0 = policy.max_answers.
    rounds: Count = 0
    # One file a data set; it and the private rows belong together.
    ledger: str = "ledger.sqlite"
    # The ledger of rows that these share records with: a copy, a part, a newer version. `ledger` begins with all that
    # it has spent, and it answers no more.
    parent: str = ""
    # An answer that was paid for and lost with its process: skip the round, or pay for another one.
    lost: Literal["skip", "pay-again"] = "skip"
    # Noise from the seed instead of the operating system: for simulations, NOT PRIVATE.
    seeded: bool = False

    @model_validator(mode="after")
    def _check_size(self) -> PrivacySection:
        if self.epsilon is None and not self.noise_multiplier:
            raise ValueError("give epsilon, noise_multiplier, or both: nothing says how much noise there must be")
        if self.parent and self.parent == self.ledger:
            raise ValueError(f"parent={self.parent!r} is the ledger itself: name another `ledger` for its child")
        return self


class PolicySection(Section):
    """What may leave; without this section nothing does."""

    proxy_sha256: list[str]
    max_rows_per_round: Annotated[int, Field(ge=1)]
    max_answers: Annotated[int, Field(ge=1)]
    # What else may leave, see privacy.policy.RELEASES: "abstentions", "scores", "counts", "class-tables".
    release: list[Literal["abstentions", "scores", "counts", "class-tables"]] = []
    # require: votes leave in a secure sum only. allow: also one by one, if the coordinator asks so.
    secure_sum: Literal["allow", "require"] = "allow"
    # The fewest sites that must stay in a sum that this site helps to open.
    sum_threshold: Annotated[int, Field(ge=2)] = 2
    # Files of `consilium keys`: all sites' public keys, as their owners agreed on them, and this site's private key.
    sum_registry: str = ""
    sum_identity: str = ""


class SiteConfig(Section):
    """One site. Paths are relative to the file's own folder.

    Attributes:
        site: the name that its reports carry.
        private: its own rows: `.safetensors`, or a `.csv` or `.parquet` with the proxy's columns.
        target: of a table, the column with the class names.
        proxy: folder of the public set.
        state: folder where its model survives restarts.
        seed: of its own training; nobody else knows it in a deployment.
        device: auto, cpu or cuda.
        model: a name of distillation.models.
        privacy: what a private record may lose; without it votes are plain functions of private rows.
    """

    site: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    private: str
    target: str = ""
    proxy: str
    state: str = "state"
    seed: Count
    device: str = "auto"
    model: str
    training: TrainingSection = TrainingSection()
    selector: SelectorSection | None = None
    policy: PolicySection | None = None
    privacy: PrivacySection | None = None

    @model_validator(mode="after")
    def _check_privacy(self) -> SiteConfig:
        if self.privacy and self.selector:
            raise ValueError(
                f"selector.name={self.selector.name!r} looks at private rows, and [privacy] does not pay for where it "
                "votes: take [selector] out, or take [privacy] out"
            )
        if self.privacy and self.policy and self.policy.release:
            raise ValueError(
                f"policy.release={self.policy.release} are statistics of private rows that [privacy] does not pay for: "
                "take them out, or take [privacy] out"
            )
        return self

    @model_validator(mode="after")
    def _check_selector(self) -> SiteConfig:
        if self.selector and self.policy and not {"abstentions", "scores"} & set(self.policy.release):
            raise ValueError(
                f"policy.release={self.policy.release} lets nothing leave of what [selector] finds: add "
                '"abstentions" to vote on the rows that it keeps only, which shows the coordinator which rows those '
                'are, or "scores" to vote on all asked rows with a score each, or take [selector] out'
            )
        return self

    @property
    def abstains(self) -> bool:
        """Whether the rows that its selector does not keep get no vote; else the selector only makes scores."""
        return self.selector is not None and self.policy is not None and "abstentions" in self.policy.release

    def limits(self) -> Policy | None:
        """The policy as the checks take it; None where the owner has written none."""
        if self.policy is None:
            return None
        told = self.policy
        return Policy(tuple(told.proxy_sha256), told.max_rows_per_round, told.max_answers, tuple(told.release))


def load_site(path: Path) -> SiteConfig:
    """Read a site's file.

    Raises:
        SiteConfigError: no such file, no TOML, an unknown key or a value out of bounds.
    """
    try:
        return SiteConfig.model_validate(tomllib.loads(path.read_bytes().decode("utf-8-sig")))
    except OSError as error:
        raise SiteConfigError(f"{path} cannot be read ({error.strerror}): name the site's file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SiteConfigError(f"{path} is no TOML: {error}") from error
    except ValidationError as error:
        found = ((".".join(map(str, p["loc"])), p["msg"].removeprefix("Value error, ")) for p in error.errors())
        problems = (": ".join(filter(None, said)) for said in found)
        raise SiteConfigError(f"{path}: {'; '.join(problems)}") from None


def write_site(path: Path, config: SiteConfig) -> None:
    """Write a site's file."""
    plain: dict[str, Any] = config.model_dump(exclude_none=True)
    path.write_bytes(tomli_w.dumps(plain).encode())
