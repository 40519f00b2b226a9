"""One training run with canaries among a site's rows: what does it prove that the training leaks?

The rows get columns of zeros, one a canary; a canary is 0 but for its own column. So what is audited is the training
(its noise, clipping and steps), on a model that takes a flat row: the site's, or mlp where the site's takes images.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from distillation.data import Proxy, Samples
from distillation.inputs import Column, TableInputs
from privacy.accounting import default_delta
from privacy.audit.one_run import Canaries, OneRun, audit, canaries, canary_scores
from simulations.config import ConfigError
from simulations.probes.shadows import Subject, Train, trained
from strategies.seeds import stream_seed

# Long enough that one canary's gradient is clipped wherever a clip is: without one it stands out.
CANARY_SIZE = 10.0
_FLAT = ("linear", "mlp")


@dataclass(frozen=True, slots=True)
class OneRunFound:
    """What one run proved.

    Attributes:
        site: whose rows.
        records: that stood beside the canaries.
        model: that was trained.
        audit: canaries, guesses, how many were right, and the lower bound.
        epsilon: that the training promises; None without privacy.
    """

    site: str
    records: int
    model: str
    audit: OneRun
    epsilon: float | None

    @property
    def refuted(self) -> bool:
        """Whether the claim is too small."""
        return self.epsilon is not None and self.audit.epsilon > self.epsilon

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return self.row()

    def row(self) -> dict[str, Any]:
        """The same in one line."""
        told = asdict(self.audit)
        told["epsilon_low"] = told.pop("epsilon")
        named = {"site": self.site, "records": self.records, "model": self.model, "epsilon": self.epsilon}
        return {**named, **told, "refuted": self.refuted}


def audit_one_run(
    subject: Subject, train: Train, *, count: int = 500, guesses: int = 100, seed: int = 1
) -> OneRunFound:
    """Train once on a site's rows with about half of the canaries, and guess which half.

    Args:
        train: how.
        count: canaries.
        guesses: even, at most count; fixed before anything is trained.

    Raises:
        ConfigError: counts that cannot be, a mechanism that is not in the training, training that diverged or that
            taught nothing.
        SiteConfigError: a promise that cannot be kept.
    """
    if guesses % 2 or not 2 <= guesses <= count:
        raise ConfigError(f"guesses={guesses} must be even, from 2 to {count}, the number of canaries")
    rng = np.random.default_rng(stream_seed(seed, "audit", "canaries"))
    rows = subject.proxy.inputs.tensor(subject.private.features).flatten(1)
    drawn = canaries(count, rows.shape[1], len(subject.proxy.classes), rng, CANARY_SIZE)
    widened = _widened(subject, rows, drawn)
    promise = widened.promise(len(widened.private))
    if promise is not None and promise.training is None:
        raise ConfigError(
            f"{promise.name} adds its noise to votes, and a one-run audit looks at the training: use audit mechanism"
        )
    learner = trained(widened, widened.private, train, seed, "one-run")
    scores = canary_scores(learner.logits(torch.from_numpy(drawn.features)), drawn.labels)
    delta = default_delta(len(widened.private)) if promise is None else promise.delta
    try:
        found = audit(scores, drawn.included, guesses, delta)
    except ValueError as error:
        raise ConfigError(f"one-run audit: {error}") from None
    epsilon = None if promise is None else promise.epsilon
    return OneRunFound(subject.config.site, len(rows), widened.config.model, found, epsilon)


def _widened(subject: Subject, rows: torch.Tensor, drawn: Canaries) -> Subject:
    """The site with flat rows that have a column more for each canary, and the included canaries among them."""
    count, included = len(drawn.labels), torch.from_numpy(drawn.included)
    features = torch.cat([_padded(rows, count), torch.from_numpy(drawn.features)[included]])
    labels = torch.cat([subject.labels, torch.from_numpy(drawn.labels)[included]])
    inputs = TableInputs((Column("flat", categories=tuple(map(str, range(features.shape[1])))),))
    public = subject.proxy.inputs.tensor(subject.proxy.samples.features).flatten(1)
    samples = Samples(_padded(public, count), subject.proxy.samples.labels)
    proxy = Proxy(samples, subject.proxy.classes, inputs, sha256="", classes_sha256=subject.proxy.classes_sha256)
    model = subject.config.model if subject.config.model in _FLAT else "mlp"
    config = subject.config.model_copy(update={"model": model})
    return replace(subject, config=config, proxy=proxy, private=Samples(features, labels))


def _padded(rows: torch.Tensor, count: int) -> torch.Tensor:
    return torch.cat([rows, torch.zeros(len(rows), count)], dim=1)
