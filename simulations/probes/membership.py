"""Who was trained on: membership attacks on a site's model, and on nothing but its soft labels on public rows.

Distillation-LiRA is what the coordinator can do: every shadow answers the proxy set, a student is distilled from those
labels alone, and LiRA is run on the student. Design reference 8.3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from client.config import TrainingSection
from client.learners import fresh_learner
from client.promise import Promise
from distillation.data import DataError
from distillation.learner import Diverged, TorchLearner
from distillation.runtime import generator
from privacy.accounting import default_delta, epsilon_of
from privacy.audit.bounds import epsilon_lower_bound, most_true_positives
from privacy.audit.membership import ATTACKS, Bool, Float64, each_in_turn, halves, logit_scores
from privacy.audit.roc import Roc, area, rate_at, roc
from simulations.config import ConfigError
from simulations.probes.shadows import Subject, Train, asked, trained
from strategies.codecs import link_named
from strategies.seeds import stream_seed
from strategies.soft_labels import SoftLabels, floored, log_softmax

# What is done to the soft labels before they are sent: a codec's name, or temperature:T. None of it is privacy.
TREATMENTS = ("float32", "quantised:4", "temperature:5", "quantised:1")
_STEPS_AN_EPOCH, _LARGEST_BATCH = 8, 512
# What the reference's bound is looked at, and so the columns of the table.
FALSE_ALARMS = (0.01, 0.001)
_ON_LABELS = ("loss", "lira", "rmia")


@dataclass(frozen=True, slots=True)
class Student:
    """How the attacker distils: Adam, about eight steps an epoch.

    Attributes:
        epochs: passes over the proxy rows.
        lr: step size.
    """

    epochs: int = 40
    lr: float = 0.005


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """One attack through one opening.

    Attributes:
        seen: "model", or the treatment of the soft labels that were all that was seen.
        attack: a key of privacy.audit.membership.ATTACKS; on soft labels it is run on the distilled student.
        auc, auc_low, auc_high: area under the curve, 95 %.
        tpr_1, tpr_1_low, tpr_1_high: members found at 1 % false alarms.
        tpr_01, tpr_01_low, tpr_01_high: at 0.1 %.
        epsilon_low: what the attack refutes: what it saw is not (epsilon, delta)-DP for any smaller epsilon (95 %,
            over all thresholds).
        epsilon: what is promised of what it saw; None where nothing is.
        curve: for the plot.
    """

    seen: str
    attack: str
    auc: float
    auc_low: float
    auc_high: float
    tpr_1: float
    tpr_1_low: float
    tpr_1_high: float
    tpr_01: float
    tpr_01_low: float
    tpr_01_high: float
    epsilon_low: float
    epsilon: float | None
    curve: Roc

    @property
    def refutes(self) -> bool:
        """Whether it found more members than the promise allows."""
        return self.epsilon is not None and self.epsilon_low > self.epsilon

    def row(self) -> dict[str, Any]:
        """All but the curve."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "curve"}


@dataclass(frozen=True, slots=True, eq=False)
class Membership:
    """What the attacks found.

    Attributes:
        site: whose rows.
        mechanism: that its promise is kept by; "" without one.
        records, shadows: the pool, and the models that were each trained on half of it and attacked in turn.
        accuracy_in, accuracy_out: of the shadows on what they were trained on, and on what not.
        delta: that all epsilons are for.
        found: by opening and attack.
    """

    site: str
    mechanism: str
    records: int
    shadows: int
    accuracy_in: float
    accuracy_out: float
    delta: float
    found: tuple[Found, ...]

    @property
    def epsilon(self) -> float | None:
        """The smallest promise; None where nothing is promised."""
        return min((each.epsilon for each in self.found if each.epsilon is not None), default=None)

    @property
    def refuted(self) -> bool:
        """Whether some attack found more members than was promised."""
        return any(each.refutes for each in self.found)

    @property
    def strangers(self) -> int:
        """Guesses on records that the attacked model did not know."""
        return self.found[0].curve.strangers

    @property
    def most(self) -> tuple[float, ...] | None:
        """What the promise bounds the share of members found by, at each of FALSE_ALARMS; None without one."""
        if self.epsilon is None:
            return None
        return tuple(most_true_positives(FALSE_ALARMS, self.epsilon, self.delta).tolist())

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        told = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "found"}
        told |= {"epsilon": self.epsilon, "refuted": self.refuted, "strangers": self.strangers}
        told |= {"most_tpr_1": None, "most_tpr_01": None}
        if self.most is not None:
            told |= dict(zip(("most_tpr_1", "most_tpr_01"), self.most, strict=True))
        return {**told, "found": [each.row() for each in self.found]}


def audit_membership(
    subject: Subject,
    train: Train,
    *,
    shadows: int = 16,
    treatments: Sequence[str] = TREATMENTS,
    student: Student | None = None,
    seed: int = 1,
    on_model: Callable[[int, int], None] = lambda done, total: None,
) -> Membership:
    """Train shadows on halves of a site's rows and attack each, first through its outputs, then through its labels.

    Args:
        train: how a shadow is trained.
        shadows: even, at least 6.
        treatments: of the soft labels; a student a shadow each.
        on_model: told after each trained model.

    Raises:
        ConfigError: a number of shadows or a treatment that cannot be, or training that diverged.
        DataError: too few rows, or models that say the same of every record.
        SiteConfigError: a promise that cannot be kept.
    """
    changes = {name: treatment_named(name, len(subject.proxy.classes)) for name in treatments}
    labels, features, done = subject.labels.numpy(), subject.private.features, 0
    taken = _halves(shadows, len(labels), seed)
    scores: dict[str, list[Float64]] = {name: [] for name in ("model", *changes)}
    right = np.zeros(taken.shape, bool)
    for index, half in enumerate(taken):
        name, rows = f"shadow-{index}", subject.rows(torch.from_numpy(half))
        shadow = trained(subject, rows, train, seed, name)
        outputs = log_softmax(shadow.logits(features))
        right[index] = outputs.argmax(axis=1) == labels
        scores["model"].append(logit_scores(outputs, labels))
        votes = asked(subject, shadow, len(rows), seed, name)
        on_model(done := done + 1, shadows * (1 + len(changes)))
        for treatment, change in changes.items():
            told = _distilled(subject, change(votes), student or Student(), seed)
            scores[treatment].append(logit_scores(log_softmax(told.logits(features)), labels))
            on_model(done := done + 1, shadows * (1 + len(changes)))
    # Of an odd number of rows some shadows have one more than others: what is promised to all is the larger epsilon.
    promise = max((subject.promise(int(half.sum())) for half in taken[:2]), key=_epsilon)
    delta = default_delta(len(labels)) if promise is None else promise.delta
    of_model, of_labels = _promised(promise, len(subject.proxy.samples))
    found = [
        _found(seen, attack, np.stack(scores[seen]), taken, delta, of_model if seen == "model" else of_labels)
        for seen in scores
        for attack in (ATTACKS if seen == "model" else _ON_LABELS)
    ]
    accuracies = float(right[taken].mean()), float(right[~taken].mean())
    mechanism = "" if promise is None else promise.name
    return Membership(subject.config.site, mechanism, len(labels), shadows, *accuracies, delta, tuple(found))


def _epsilon(promise: Promise | None) -> float:
    return 0.0 if promise is None else promise.epsilon


def _promised(promise: Promise | None, rows: int) -> tuple[float | None, float | None]:
    """Epsilon of a shadow's model, and of its soft labels on all proxy rows, once; None where nothing is promised."""
    if promise is None:
        return None, None
    if promise.training is not None:
        return promise.epsilon, promise.epsilon
    return None, epsilon_of(promise.mechanism.events(rows), promise.delta)


def treatment_named(name: str, classes: int) -> Callable[[SoftLabels], SoftLabels]:
    """What a treatment makes of soft labels: a codec's round trip, or temperature:T.

    Raises:
        ConfigError: neither, or not with so many classes.
    """
    kind, _, number = name.partition(":")
    try:
        if kind == "temperature":
            degree = float(number)
            if not 0.0 < degree < float("inf"):
                raise ValueError(f"temperature {number} must be a finite number above 0, for example temperature:5")
            return lambda votes: SoftLabels.from_logits(votes.rows, votes.log_probs / np.float32(degree))
        codec = link_named(name).codec
        codec.alphabets(classes)
    except (KeyError, ValueError) as error:
        raise ConfigError(f"labels {name!r}: {error.args[0]}") from None

    def rounded(votes: SoftLabels) -> SoftLabels:
        symbols = codec.symbols(floored(votes.log_probs), votes.rows)
        return SoftLabels.from_logits(votes.rows, codec.values(symbols, classes))

    return rounded


def _halves(shadows: int, records: int, seed: int) -> Bool:
    try:
        return halves(shadows, records, np.random.default_rng(stream_seed(seed, "audit", "halves")))
    except ValueError as error:
        raise (ConfigError if records >= 2 else DataError)(str(error)) from None


def _distilled(subject: Subject, votes: SoftLabels, student: Student, seed: int) -> TorchLearner:
    """A student of these labels alone; all begin alike, so that they differ by their labels only."""
    training = TrainingSection(
        optimizer="adam",
        lr=student.lr,
        distil_lr=student.lr,
        batch_size=min(max(1, len(votes.rows) // _STEPS_AN_EPOCH), _LARGEST_BATCH),
    )
    changed = {"site": "student", "seed": stream_seed(seed, "audit"), "training": training}
    learner = fresh_learner(subject.config.model_copy(update=changed), subject.proxy, subject.private, None)
    assert isinstance(learner, TorchLearner)  # noqa: S101 - without a promise it is
    try:
        learner.distil(votes, student.epochs, generator(stream_seed(seed, "audit", "distil")))
    except Diverged as error:
        raise ConfigError(f"the attacker's student has diverged ({error}): lower --student-lr") from None
    return learner


def _found(seen: str, attack: str, scores: Float64, taken: Bool, delta: float, epsilon: float | None) -> Found:
    try:
        guesses = each_in_turn(ATTACKS[attack], scores, taken)
        curve, whole = roc(guesses, taken), area(guesses, taken)
    except ValueError as error:
        raise DataError(f"{attack} on {seen}: {error}") from None
    few, fewer = (rate_at(curve, share) for share in FALSE_ALARMS)
    return Found(
        seen,
        attack,
        *(whole.value, whole.low, whole.high),
        *(few.value, few.low, few.high),
        *(fewer.value, fewer.low, fewer.high),
        epsilon_lower_bound(curve, delta),
        epsilon,
        curve,
    )
