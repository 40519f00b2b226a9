"""The student: a compact model at the server that learns from the ensemble teacher and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distillation.data import Proxy, Samples
from distillation.learner import TorchLearner
from distillation.models import build_model
from distillation.runtime import device_named, generator
from server.config import FederationConfig, StudentSettings
from strategies.seeds import stream_seed
from strategies.soft_labels import SoftLabels


@dataclass(frozen=True, slots=True)
class Scores:
    """Accuracy and macro-averaged F1, both in [0, 1]."""

    accuracy: float
    macro_f1: float


def build_student(config: FederationConfig, proxy: Proxy) -> TorchLearner:
    """A fresh student; its first weights depend on the federation's seed only."""
    model = build_model(
        config.student.model,
        tuple(proxy.inputs.shape),
        len(proxy.classes),
        stream_seed(config.exchange.seed, "model", "student"),
    )
    device = device_named(config.device)
    return TorchLearner(model, config.student.training, proxy.inputs, proxy.samples, None, device)


def teach(student: TorchLearner, settings: StudentSettings, teacher: SoftLabels, seed: int, round_: int) -> None:
    """One round of distillation, in place; the order of rows depends on (seed, round) only."""
    if settings.distil_epochs:
        student.distil(teacher, settings.distil_epochs, generator(stream_seed(seed, "distil", "student", round_)))


def predicted(learner: TorchLearner, test: Samples) -> NDArray[np.int64]:
    """[n] likeliest class of each test row."""
    return np.asarray(learner.logits(test.features).argmax(axis=1), np.int64)


def scores(predictions: NDArray[np.int64], test: Samples, classes: int) -> Scores | None:
    """How good predictions are; None where there are no labelled rows to judge on.

    A class without test rows counts as F1 0 only if it is ever predicted.
    """
    from sklearn.metrics import accuracy_score, f1_score

    if test.labels is None or len(test) == 0:
        return None
    truth = test.labels.numpy()
    present = np.union1d(truth, predictions)
    return Scores(
        float(accuracy_score(truth, predictions)),
        float(f1_score(truth, predictions, average="macro", labels=present[present < classes], zero_division=0)),
    )


def teacher_accuracy(teacher: SoftLabels, proxy: Proxy) -> float | None:
    """Accuracy on the proxy rows that the teacher names; None where the proxy has no public labels."""
    if proxy.samples.labels is None:
        return None
    truth = proxy.samples.labels.numpy()[teacher.rows]
    return float((teacher.log_probs.argmax(axis=1) == truth).mean())
