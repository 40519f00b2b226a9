"""Several learners on disjoint parts of one site's rows: the teachers of PATE."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import numpy as np
import torch

from distillation.data import Samples
from distillation.learner import Diverged, TorchLearner
from strategies.soft_labels import LOG_FLOOR, Float32, Float64, Int64, SoftLabels, log_softmax


class Ensemble:
    """A learner made of learners; what it says is their mean, what a mechanism may see is each one's vote.

    Args:
        members: one or more, each with private rows of its own, or with none.
        proxy: the public rows.

    Guarantees:
        A private row reaches one member only. A member that leaves the finite numbers says nothing of it: it votes
        uniformly from then on, since that one diverged is a fact about its rows.
    """

    def __init__(self, members: Sequence[TorchLearner], proxy: Samples) -> None:
        self.members, self._proxy = tuple(members), proxy

    def distil(self, teacher: SoftLabels, epochs: int, rng: torch.Generator) -> None:
        """Every member learns the teacher's answers."""
        self._each(lambda member: member.distil(teacher, epochs, rng))

    def fit(self, epochs: int, rng: torch.Generator) -> None:
        """Every member that has rows learns them."""
        self._each(lambda member: member.fit(epochs, rng) if member.records else None)

    def fit_public(self, epochs: int, rng: torch.Generator) -> None:
        """Every member learns the proxy rows' labels."""
        self._each(lambda member: member.fit_public(epochs, rng))

    def votes(self, rows: Int64) -> Float64:
        """[members, n, classes] probabilities on proxy rows."""
        return self._votes(self._proxy.features, torch.from_numpy(rows))

    def predict(self, rows: Int64) -> SoftLabels:
        """The mean vote on proxy rows."""
        return SoftLabels.from_logits(rows, self.logits(self._proxy.features, torch.from_numpy(rows)))

    def logits(self, features: torch.Tensor, at: torch.Tensor | None = None) -> Float32:
        """[n, classes] the logarithm of the mean vote on stored features, or on those `at` these numbers."""
        means = self._votes(features, at).mean(axis=0)
        logits: Float32 = np.log(np.maximum(means, np.exp(LOG_FLOOR))).astype(np.float32)
        return logits

    def state(self) -> dict[str, torch.Tensor]:
        """What all members' state() says, by number."""
        states = enumerate(member.state() for member in self.members)
        return {f"{number}.{key}": value for number, state in states for key, value in state.items()}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Become what state() described.

        Raises:
            RuntimeError, KeyError, ValueError: the tensors belong to other members.
        """
        for number, member in enumerate(self.members):
            own = ((key.partition("."), value) for key, value in tensors.items())
            member.restore({key: value for (owner, _, key), value in own if owner == str(number)})

    def _each(self, work: Callable[[TorchLearner], object]) -> None:
        for member in self.members:
            with suppress(Diverged):
                work(member)

    def _votes(self, features: torch.Tensor, at: torch.Tensor | None) -> Float64:
        return np.stack([_vote(member.logits(features, at)) for member in self.members])


def _vote(logits: Float32) -> Float64:
    """[n, classes] probabilities; uniform where a logit is not finite."""
    finite = np.isfinite(logits).all(axis=1, keepdims=True)
    votes: Float64 = np.exp(log_softmax(np.where(finite, logits, 0.0)))
    return votes
