"""Models that an audit trains itself: as a site would, on some of its rows; how they train is a callable.

They are simulations: where a site promises privacy, their noise is seeded. So they never leave, nor do their labels,
and no ledger is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from client.config import (
    PartSection,
    PolicySection,
    PrivacySection,
    SiteConfig,
    SiteConfigError,
    TrainingSection,
    load_site,
)
from client.data import load_private
from client.learners import Learner, fresh_learner, noisy_votes
from client.promise import Promise, promise_of
from distillation.data import DataError, Proxy, Samples, load_proxy
from distillation.ensemble import Ensemble
from distillation.learner import Diverged
from distillation.models import MODELS
from distillation.runtime import generator, single_thread
from privacy.mechanisms.mechanism import DrawnNoise
from privacy.noise import Draw, SeededEntropy
from simulations.config import ConfigError
from strategies.seeds import stream_seed
from strategies.soft_labels import SoftLabels

# The seam: trains one fresh learner on its private rows. The name says which one, so that no two share randomness.
Train = Callable[[Learner, str], None]
# Where nothing says for how many rounds a site will answer.
SITE_ROUNDS = 20


@dataclass(frozen=True, slots=True)
class Wanted:
    """DP-SGD that an audit's models train with, whatever the site's file promises.

    Attributes:
        epsilon: of all rounds together; the noise follows from it.
        delta: 0 = the site's default, min(1e-5, 1/(10 n)).
        clip_norm: of a record's gradient.
        batch_size: records that a step expects; 0 = training.batch_size.
    """

    epsilon: float
    delta: float = 0.0
    clip_norm: float = 1.0
    batch_size: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """The site that is audited.

    Attributes:
        config: its own file, with seeded noise where it promises privacy.
        proxy: the public set.
        private: its labelled rows.
        rounds: for how many its model trains.
        wanted: what its models train with instead of what its file promises; None: as the file says.
    """

    config: SiteConfig
    proxy: Proxy
    private: Samples
    rounds: int
    wanted: Wanted | None = None

    @classmethod
    def open(cls, site_file: Path, rounds: int = 0, wanted: Wanted | None = None) -> Subject:
        """The site that a file describes; nothing of its state or ledger is read or written.

        Args:
            rounds: 0 = those that its budget is for; without a promise 20.
            wanted: privacy instead of its own.

        Raises:
            SiteConfigError, DataError: the file, its rows or its proxy set cannot be used.
        """
        single_thread()
        config, folder = load_site(site_file), site_file.parent
        if config.model not in MODELS:
            raise SiteConfigError(f"unknown model {config.model!r}; known: {', '.join(sorted(MODELS))}")
        proxy = load_proxy(folder / config.proxy)
        private = load_private(folder / config.private, config.target, proxy)
        if wanted is not None:
            config = _promising(config, proxy, wanted, rounds or _rounds(config))
        elif config.privacy is not None:
            config = config.model_copy(update={"privacy": config.privacy.model_copy(update={"seeded": True})})
        return cls(config, proxy, private, rounds or _rounds(config), wanted)

    @property
    def labels(self) -> torch.Tensor:
        """[n] class numbers of its rows."""
        if self.private.labels is None:
            raise DataError(f"the rows of {self.config.site} have no labels: an audit needs them")
        return self.private.labels

    def rows(self, chosen: torch.Tensor) -> Samples:
        """The private rows that a mask or row numbers choose."""
        return Samples(self.private.features[chosen], self.labels[chosen])

    def promise(self, records: int) -> Promise | None:
        """What is promised to each of so many records; None where nothing is.

        Raises:
            SiteConfigError: a promise that cannot be kept, or one for fewer rounds than are trained.
        """
        promise = promise_of(self.config, records, len(self.proxy.classes))
        if promise is not None and promise.rounds < self.rounds:
            raise SiteConfigError(
                f"rounds={self.rounds} must be at most {promise.rounds}, those that the site's budget is for"
            )
        return promise


def _rounds(config: SiteConfig) -> int:
    if config.privacy is None or config.policy is None:
        return SITE_ROUNDS
    return config.privacy.rounds or config.policy.max_answers


def _promising(config: SiteConfig, proxy: Proxy, wanted: Wanted, rounds: int) -> SiteConfig:
    """The site's file with DP-SGD in it."""
    batch_size = wanted.batch_size or config.training.batch_size
    mechanism = PartSection.model_validate({"name": "dp-sgd", "clip_norm": wanted.clip_norm, "batch_size": batch_size})
    privacy = PrivacySection(
        mechanism=mechanism, epsilon=wanted.epsilon, delta=wanted.delta, rounds=rounds, seeded=True
    )
    policy = config.policy or PolicySection(
        proxy_sha256=[proxy.sha256], max_rows_per_round=len(proxy.samples), max_answers=rounds
    )
    return config.model_copy(update={"privacy": privacy, "policy": policy})


@dataclass(frozen=True, slots=True)
class SiteTraining:
    """Training as the site does it, round by round, with its own mechanism; no teacher comes back.

    Attributes:
        training: the site's section.
        rounds: of local epochs; with `restart` only one counts, as none is kept.
        seed: of the audit.
    """

    training: TrainingSection
    rounds: int
    seed: int

    def __call__(self, learner: Learner, name: str) -> None:
        """Train one."""
        told = self.training
        if told.public_epochs:
            learner.fit_public(told.public_epochs, self._rng("public", name, 0))
        if told.warmup_epochs:
            learner.fit(told.warmup_epochs, self._rng("warm-up", name, 0))
        for number in range(1 if told.restart else self.rounds):
            if told.local_epochs:
                learner.fit(told.local_epochs, self._rng("fit", name, number))

    def _rng(self, phase: str, name: str, number: int) -> torch.Generator:
        return generator(stream_seed(self.seed, "audit", phase, name, number))


def trained(subject: Subject, private: Samples, train: Train, seed: int, name: str) -> Learner:
    """A model with the site's settings, trained on these rows.

    Args:
        seed, name: of its first weights.

    Raises:
        ConfigError: its training diverged.
        SiteConfigError: a promise that cannot be kept.
    """
    config = subject.config.model_copy(update={"site": name, "seed": stream_seed(seed, "audit")})
    learner = fresh_learner(config, subject.proxy, private, subject.promise(len(private)))
    try:
        train(learner, name)
    except Diverged as error:
        raise ConfigError(f"a model of the audit has diverged ({error}), as the site's own would") from None
    return learner


def asked(subject: Subject, learner: Learner, records: int, seed: int, name: str) -> SoftLabels:
    """What leaves of a model's votes on all proxy rows, through the site's mechanism where that works on votes.

    Args:
        records: that the model was trained on.

    Raises:
        ConfigError: its outputs are not finite, or no vote leaves.
    """
    rows, promise = np.arange(len(subject.proxy.samples)), subject.promise(records)
    try:
        if promise is None or promise.training is not None or not isinstance(learner, Ensemble):
            return learner.predict(rows)
    except Diverged as error:
        raise ConfigError(f"a model of the audit has diverged ({error}), as the site's own would") from None
    noise = DrawnNoise(Draw(SeededEntropy(stream_seed(seed, "audit", "noise", name), promise.name)))
    votes = noisy_votes(learner, rows, promise.mechanism, noise)
    if not len(votes.rows):
        raise ConfigError(f"{promise.name} lets no vote leave: lower its threshold, or train longer")
    return votes
