"""What the federation is compared with: every client alone, and one model on all private rows together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from client.node import Node
from distillation.data import Proxy, Samples, load_samples
from distillation.learner import TorchLearner, Training
from distillation.models import build_model
from distillation.runtime import device_named, generator
from strategies.seeds import stream_seed


def accuracy(learner: TorchLearner, test: Samples) -> float:
    """Share of test rows whose likeliest class is the true one."""
    assert test.labels is not None  # noqa: S101 - prepare_study always labels the test rows
    return float((learner.logits(test.features).argmax(axis=1) == test.labels.numpy()).mean())


def local_only(node: Node, rounds: int, test: Samples) -> float:
    """Test accuracy of a site that trains as often as in `rounds` rounds, with nobody's help.

    The same first weights, the same private batches in the same order; no teacher and no public labels.
    """
    learner, training = node.fresh(), node.config.training
    if training.warmup_epochs:
        learner.fit(training.warmup_epochs, node.rng("warm-up", 0))
    for round_ in range(1, rounds + 1):
        if training.local_epochs:
            learner.fit(training.local_epochs, node.rng("fit", round_))
    return accuracy(learner, test)


def pooled(
    sites: Sequence[Path],
    proxy: Proxy,
    test: Samples,
    *,
    model: str,
    training: Training,
    epochs: int,
    seed: int,
    device: str,
) -> float:
    """Test accuracy of the student's model, trained on the labels of all private rows in one place.

    Args:
        sites: files of private samples.
        epochs: passes over all of them.
    """
    parts = [load_samples(path) for path in sites]
    everything = Samples(
        torch.cat([part.features for part in parts]),
        torch.cat([part.labels for part in parts if part.labels is not None]),
    )
    learner = TorchLearner(
        build_model(model, tuple(proxy.inputs.shape), len(proxy.classes), stream_seed(seed, "model", "student")),
        training,
        proxy.inputs,
        proxy.samples,
        everything,
        device_named(device),
    )
    learner.fit(epochs, generator(stream_seed(seed, "fit", "pooled")))
    return accuracy(learner, test)
