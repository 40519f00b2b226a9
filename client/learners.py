"""A site's model before its first round, and how its votes leave: plainly, or through a mechanism."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np

from client.config import SiteConfig, SiteConfigError
from client.promise import Promise
from distillation.data import Proxy, Samples
from distillation.ensemble import Ensemble
from distillation.learner import PrivateTraining, TorchLearner, Training
from distillation.models import build_model
from distillation.runtime import device_named
from privacy.dp_spec import UnsuitableModel
from privacy.mechanisms.mechanism import Mechanism, Noise
from privacy.mechanisms.pate import Pate, shards
from strategies.seeds import stream_seed
from strategies.soft_labels import LOG_FLOOR, Int64, SoftLabels

Learner = TorchLearner | Ensemble


def fresh_learner(config: SiteConfig, proxy: Proxy, private: Samples, promise: Promise | None) -> Learner:
    """The site's model before its first round, always the same one.

    A mechanism that adds its noise to votes gets an ensemble: PATE one of its teachers, the baselines one of a single
    model, so that one that diverges tells nobody.
    """
    if promise is None:
        return _learner(config, proxy, private, None)
    if promise.training is not None:
        return _learner(config, proxy, private, PrivateTraining(promise.training, promise.seeded))
    if not isinstance(promise.mechanism, Pate):
        return Ensemble([_learner(config, proxy, private, None)], proxy.samples)
    dealt = shards(len(private), promise.mechanism.teachers)
    parts = [_rows(private, np.flatnonzero(dealt == teacher)) for teacher in range(promise.mechanism.teachers)]
    return Ensemble([_learner(config, proxy, part, None, number) for number, part in enumerate(parts)], proxy.samples)


def check_learner(config: SiteConfig, proxy: Proxy, promise: Promise) -> None:
    """Return if the site's model can be trained as it promises: no output or gradient of a record depends on another.

    Raises:
        SiteConfigError: it cannot; the message names the part of the model.
    """
    if promise.training is None:
        return
    try:
        _checked(config.model, tuple(proxy.inputs.shape), len(proxy.classes), promise.training.clipping)
    except UnsuitableModel as error:
        raise SiteConfigError(f"model {config.model!r} cannot be trained by dp-sgd: {error}") from None


@lru_cache(maxsize=64)
def _checked(model: str, shape: tuple[int, ...], classes: int, clipping: Literal["hooks", "ghost"]) -> None:
    from distillation.isolation import check_model

    check_model(lambda: build_model(model, shape, classes, seed=0), shape, classes, clipping)


def _rows(samples: Samples, rows: Int64) -> Samples:
    return Samples(samples.features[rows], None if samples.labels is None else samples.labels[rows])


def _learner(
    config: SiteConfig, proxy: Proxy, private: Samples, dp: PrivateTraining | None, *number: int
) -> TorchLearner:
    model = build_model(
        config.model,
        tuple(proxy.inputs.shape),
        len(proxy.classes),
        stream_seed(config.seed, "model", config.site, *number),
    )
    settings = config.training.model_dump(
        exclude={"distil_epochs", "local_epochs", "public_epochs", "warmup_epochs", "restart", "table_weight"}
    )
    device = device_named(config.device)
    return TorchLearner(model, Training(**settings), proxy.inputs, proxy.samples, private, device, dp)


def noisy_votes(learner: Ensemble, rows: Int64, mechanism: Mechanism, noise: Noise) -> SoftLabels:
    """What a mechanism lets leave of the votes on proxy rows.

    Args:
        rows: [n]; PATE's gate may leave some of them out, which its noise pays for.
    """
    votes = learner.votes(rows)
    if isinstance(mechanism, Pate):
        answered = mechanism.gate(votes, noise)
        rows, released = rows[answered], mechanism.release(votes[:, answered], noise)
    else:
        released = mechanism.release(votes.mean(axis=0), noise)  # type: ignore[attr-defined]
    return SoftLabels.from_logits(rows, np.log(np.maximum(released, np.exp(LOG_FLOOR))))
