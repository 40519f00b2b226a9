"""The coordinator's settings: what a federation does. It never says how a site trains or what a site allows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from distillation.learner import Training
from server.client_sum import ClientSumSettings, SplitSumSettings
from server.exchange import Exchange
from server.plain_mean import noise_misfits, split_misfits, sum_misfits
from strategies.aggregators import build_aggregator


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StudentSettings(_Settings):
    """The server's student: its model and how it learns from the teacher."""

    model: str
    training: Training
    distil_epochs: int
    best_metric: str
    # Whether it starts from its first weights in every round.
    restart: bool = False
    # Whether clients learn the student's answers on the teacher's rows instead of the teacher (CFD).
    speaks: bool = False


class FederationConfig(_Settings):
    """Everything the coordinator needs beside the network.

    Attributes:
        exchange: what stays the same in all rounds.
        rounds: how many.
        clients: how many must be there before the first round.
        aggregator, aggregator_settings: the rule.
        student: what learns from the teacher here.
        proxy, test: folder of the public set, file of the held-out rows ("" = the student is not judged).
        device: auto, cpu or cuda.
        timeout_s: of one exchange.
        keep_votes: keep every believed report beside the checkpoint, for `consilium forget`.
        client_sum: what the teacher promises each client; None: nothing.
        split_sum: what the sites promise who split that noise among them; None: nothing.
    """

    exchange: Exchange
    rounds: int
    clients: int
    aggregator: str
    aggregator_settings: dict[str, Any]
    student: StudentSettings
    proxy: str
    test: str
    device: str
    timeout_s: float
    keep_votes: bool = False
    client_sum: ClientSumSettings | None = None
    split_sum: SplitSumSettings | None = None

    @model_validator(mode="after")
    def _has_something_to_say(self) -> Self:
        if self.student.speaks and not self.has_student:
            raise ValueError("student.speaks=true needs a student, and class tables teach none: set it to false")
        return self

    @model_validator(mode="after")
    def _can_sum(self) -> Self:
        named = f"aggregator {self.aggregator!r}"
        told = self.exchange
        misfits = sum_misfits(
            self.rule(), named, uplink=told.uplink, mode=told.mode, choice=told.choice, keep_votes=self.keep_votes
        )
        split = split_misfits(secure_sum=told.secure_sum, cache_rounds=told.cache_rounds, downlink=told.downlink)
        private = noise_misfits(
            self.rule(),
            named,
            mode=told.mode,
            choice=told.choice,
            keep_votes=self.keep_votes,
            secure_sum=told.secure_sum,
        )
        for bad, why in (
            *(split if self.split_sum else ()),
            *(private if self.client_sum else ()),
            *(misfits if told.secure_sum else ()),
        ):
            if bad:
                raise ValueError(why)
        return self

    @property
    def has_student(self) -> bool:
        """Whether there is anything that a student could learn from: class tables name no proxy rows."""
        return self.exchange.subject == "proxy"

    def rule(self) -> Any:
        """The aggregator."""
        return build_aggregator(self.aggregator, self.aggregator_settings)


def write_job(path: Path, config: FederationConfig) -> None:
    """Write the settings for a coordinator in another process."""
    path.write_text(config.model_dump_json(indent=1) + "\n")


def read_job(path: Path) -> FederationConfig:
    """Read what write_job wrote.

    Raises:
        ValueError: no such settings.
    """
    try:
        return FederationConfig.model_validate(json.loads(path.read_text()))
    except ValidationError as error:
        raise ValueError(f"{path} is no federation's settings: {error.errors()[0]['msg']}") from None
