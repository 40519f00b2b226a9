"""A torch model that learns from soft labels and from its own rows, and votes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import nn

from distillation.data import Samples
from distillation.fixed_features import fixed_features
from distillation.inputs import Inputs
from distillation.losses import DISTIL_LOSSES
from privacy.mechanisms.dp_sgd import DpSgdTraining
from privacy.noise import Entropy, OsEntropy, SeededEntropy
from strategies.soft_labels import LOG_FLOOR, Float32, Int64, SoftLabels, log_softmax

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}
_PREDICT_BATCH = 500
# Inputs above this many bytes are scaled batch by batch instead of once a phase.
_PREPARE_LIMIT = 2**28


class Diverged(ArithmeticError):
    """Training left the finite numbers."""


@dataclass(frozen=True, slots=True)
class Training:
    """How a learner trains. One optimiser serves both phases and keeps its state over rounds.

    Attributes:
        optimizer: a key of OPTIMIZERS.
        lr, distil_lr: step sizes of `fit` and of `distil`.
        momentum: of sgd; 0 for the others.
        weight_decay: L2, as the optimiser defines it.
        batch_size: rows a step; the last batch of an epoch may be smaller.
        distil_loss: a key of DISTIL_LOSSES.
        temperature: of the distillation loss, applied to both sides.
    """

    optimizer: str = "sgd"
    lr: float = 0.1
    distil_lr: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    batch_size: int = 50
    distil_loss: str = "kl"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"momentum={self.momentum} does nothing with {self.optimizer!r}: use 'sgd' or set it to 0")


@dataclass(frozen=True, slots=True)
class TrainLog:
    """What a phase did: optimiser steps, and the mean loss of its last epoch (a release where rows are private).

    `loss` is NaN after training with DP-SGD: nobody looks at a private loss.
    """

    steps: int
    loss: float


@dataclass(frozen=True, slots=True)
class PrivateTraining:
    """That private rows are learnt by DP-SGD, and where its noise comes from.

    Attributes:
        training: clipping, noise and batches.
        seeded: noise from the seed of each phase: a simulation, NOT PRIVATE; else from the operating system.
    """

    training: DpSgdTraining
    seeded: bool

    def entropy(self, rng: torch.Generator) -> Entropy:
        """Of the phase whose stream this is."""
        return SeededEntropy(rng.initial_seed(), "dp-sgd") if self.seeded else OsEntropy()


class TorchLearner:
    """Any model that maps [n, *shape] to [n, classes] logits, with its optimiser.

    Args:
        model: its weights are changed in place.
        training: hyper-parameters.
        inputs: from stored features to the model's inputs.
        proxy: the public rows; teachers and votes name rows of it.
        private: the site's own labelled rows; None for a server's student.
        device: where the model computes.
        dp: how private rows are learnt if each of them is promised privacy; None: by plain gradients.

    A model with a `fixed` part, which has no parameters, and a `head` learns by its head, on features made once.

    Guarantees:
        With `dp` no gradient of a private row reaches the weights but through privacy.dp_training.
    """

    def __init__(
        self,
        model: nn.Module,
        training: Training,
        inputs: Inputs,
        proxy: Samples,
        private: Samples | None,
        device: torch.device,
        dp: PrivateTraining | None = None,
    ) -> None:
        self.model = model.to(device)
        self._training, self._inputs, self._device, self._dp = training, inputs, device, dp
        self._proxy, self._private = proxy, private
        fixed = getattr(model, "fixed", None)
        self._fixed: nn.Module | None = fixed if isinstance(fixed, nn.Module) else None
        extra = {"momentum": training.momentum} if training.optimizer == "sgd" else {}
        self._optimizer = OPTIMIZERS[training.optimizer](
            self.model.parameters(), lr=training.lr, weight_decay=training.weight_decay, **extra
        )

    @property
    def records(self) -> int:
        """How many private rows there are to learn."""
        return 0 if self._private is None else len(self._private)

    def distil(self, teacher: SoftLabels, epochs: int, rng: torch.Generator) -> TrainLog:
        """Learn the teacher's answers on the proxy rows that it names.

        Raises:
            Diverged: the loss is no longer finite.
        """
        target = torch.from_numpy(teacher.log_probs).to(self._device)
        loss, temperature = DISTIL_LOSSES[self._training.distil_loss], self._training.temperature
        return self._train(
            self._proxy.features,
            lambda logits, rows: loss(logits, target[rows], temperature),
            epochs,
            self._training.distil_lr,
            rng,
            at=torch.from_numpy(teacher.rows),
        )

    def fit(
        self, epochs: int, rng: torch.Generator, *, tables: SoftLabels | None = None, table_weight: float = 1.0
    ) -> TrainLog:
        """Learn the private rows' labels by cross-entropy.

        Args:
            tables: row c is what others' models answer on their own samples of class c; a private sample of class c
                also learns it, by cross-entropy (Jeong et al. 2018). A class without a row has no such term.
            table_weight: of that term.

        Raises:
            Diverged: the loss is no longer finite.
            ValueError: this learner has no private rows.
        """
        if self._private is None or self._private.labels is None:
            raise ValueError("no labelled private rows to fit")
        if self._dp is not None:
            return self._fit_privately(self._private, self._private.labels, self._dp, epochs, rng)
        if tables is None or not len(tables.rows):
            return self._classify(self._private.features, self._private.labels, epochs, rng)
        labels = self._private.labels.to(self._device)
        targets, known = torch.zeros(tables.classes, tables.classes), torch.zeros(tables.classes)
        targets[torch.from_numpy(tables.rows)] = torch.from_numpy(tables.probabilities()).float()
        known[torch.from_numpy(tables.rows)] = table_weight
        targets, known = targets.to(self._device), known.to(self._device)

        def loss(logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            own = labels[rows]
            others = -(targets[own] * F.log_softmax(logits.float(), dim=1)).sum(dim=1)
            return F.cross_entropy(logits, own) + (known[own] * others).mean()

        return self._train(self._private.features, loss, epochs, self._training.lr, rng)

    def _fit_privately(
        self, private: Samples, labels: torch.Tensor, dp: PrivateTraining, epochs: int, rng: torch.Generator
    ) -> TrainLog:
        """Cross-entropy by DP-SGD; the cost is that of dp.training.fit_events, paid by the caller beforehand."""
        from privacy.dp_training import DpSgd, fit_privately  # imports Opacus, which takes seconds

        training, target = dp.training, labels.to(self._device)
        steps = training.steps(len(private), epochs)
        if not steps:
            return TrainLog(0, math.nan)
        for group in self._optimizer.param_groups:
            group["lr"] = self._training.lr
        prepared = self._prepared(private.features, None)
        done = fit_privately(
            self._learning,
            self._optimizer,
            records=len(private),
            batch=lambda rows: prepared[rows] if prepared is not None else self._ready(private.features[rows]),
            losses=lambda logits, rows: F.cross_entropy(logits, target[rows], reduction="none"),
            spec=DpSgd(
                training.noise_multiplier,
                training.clip_norm,
                training.sample_rate(len(private)),
                steps,
                training.clipping,
                training.physical_batch,
            ),
            entropy=dp.entropy(rng),
            device=self._device,
        )
        if not all(torch.isfinite(weight).all() for weight in self.model.parameters()):
            raise Diverged("the weights are not finite: lower lr")
        return TrainLog(done.steps, math.nan)

    def class_tables(self) -> SoftLabels:
        """Row c: the mean softmax output on the private samples of class c; classes without samples have no row.

        Raises:
            Diverged: an output is not finite.
            ValueError: this learner has no private rows.
        """
        if self._private is None or self._private.labels is None:
            raise ValueError("no labelled private rows to average over")
        logits, labels = self.logits(self._private.features), self._private.labels.numpy()
        if not np.isfinite(logits).all():
            raise Diverged("the model's outputs are not finite: lower lr")
        outputs, present = np.exp(log_softmax(logits)), np.unique(labels)
        means = np.stack([outputs[labels == label].mean(axis=0) for label in present])
        return SoftLabels.from_logits(present.astype(np.int64), np.log(np.maximum(means, np.exp(LOG_FLOOR))))

    def fit_public(self, epochs: int, rng: torch.Generator) -> TrainLog:
        """Learn the proxy rows' labels: FedMD's transfer phase, where those labels are public.

        Raises:
            Diverged: the loss is no longer finite.
            ValueError: the proxy has no labels.
        """
        if self._proxy.labels is None:
            raise ValueError("public_epochs needs a proxy set with labels; this one has none: set public_epochs=0")
        return self._classify(self._proxy.features, self._proxy.labels, epochs, rng)

    def predict(self, rows: Int64) -> SoftLabels:
        """The model's votes on proxy rows, in evaluation mode and row order.

        Raises:
            Diverged: an output is not finite.
        """
        logits = self.logits(self._proxy.features, torch.from_numpy(rows))
        if not torch.isfinite(torch.from_numpy(logits)).all():
            raise Diverged("the model's outputs are not finite: lower lr")
        return SoftLabels.from_logits(rows, logits)

    def logits(self, features: torch.Tensor, at: torch.Tensor | None = None) -> Float32:
        """[n, classes] raw outputs on stored features, or on those `at` these numbers, in evaluation mode."""
        kept = None if self._fixed is None else self._prepared(features, None)
        rows = torch.arange(len(features)) if at is None else at
        self.model.eval()
        with torch.inference_mode():
            batches = [
                self._learning(self._ready(features[part]) if kept is None else kept[part]).float().cpu()
                for part in rows.split(_PREDICT_BATCH)
            ]
        outputs: Float32 = torch.cat(batches).numpy()
        return outputs

    def state(self) -> dict[str, torch.Tensor]:
        """Weights and optimiser state as named tensors on the CPU, copied."""
        tensors = {f"model.{key}": value for key, value in self.model.state_dict().items()}
        for index, slots in self._optimizer.state_dict()["state"].items():
            for key, value in slots.items():
                if value is not None:
                    tensors[f"optimizer.{index}.{key}"] = torch.as_tensor(value)
        return {key: value.detach().to("cpu", copy=True).contiguous() for key, value in tensors.items()}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Become what state() described.

        Raises:
            RuntimeError, KeyError, ValueError: the tensors belong to another model or optimiser.
        """
        weights = {key.removeprefix("model."): value for key, value in tensors.items() if key.startswith("model.")}
        self.model.load_state_dict(weights)
        slots: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, index, name = key.split(".", 2)
                slots.setdefault(int(index), {})[name] = value.clone()
        self._optimizer.load_state_dict({"state": slots, "param_groups": self._optimizer.state_dict()["param_groups"]})

    def _classify(self, features: torch.Tensor, labels: torch.Tensor, epochs: int, rng: torch.Generator) -> TrainLog:
        target = labels.to(self._device)
        return self._train(
            features,
            lambda logits, rows: F.cross_entropy(logits, target[rows]),
            epochs,
            self._training.lr,
            rng,
        )

    def _train(
        self,
        features: torch.Tensor,
        loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        epochs: int,
        lr: float,
        rng: torch.Generator,
        at: torch.Tensor | None = None,
    ) -> TrainLog:
        """Epochs of shuffled batches of all rows, or of those `at` these numbers; a fresh order every epoch."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        prepared = self._prepared(features, at)
        count = len(features) if at is None else len(at)
        self.model.train()
        steps, losses = 0, [torch.zeros(())]
        for _ in range(epochs):
            losses = []
            for rows in torch.randperm(count, generator=rng).split(self._training.batch_size):
                stored = rows if at is None else at[rows]
                batch = prepared[rows] if prepared is not None else self._ready(features[stored])
                self._optimizer.zero_grad(set_to_none=True)
                loss = loss_of(self._learning(batch), rows.to(self._device))
                loss.backward()
                self._optimizer.step()
                losses.append(loss.detach())
            steps += len(losses)
        mean = float(torch.stack(losses).mean())
        if not math.isfinite(mean):
            raise Diverged("the training loss is not finite: lower lr")
        return TrainLog(steps, mean)

    @property
    def _learning(self) -> nn.Module:
        """The part of the model that has parameters."""
        head = self.model.head if self._fixed is not None else self.model
        assert isinstance(head, nn.Module)  # noqa: S101 - what has a fixed part has a head
        return head

    def _ready(self, features: torch.Tensor) -> torch.Tensor:
        """Stored features as `_learning` takes them."""
        inputs = self._inputs.tensor(features).to(self._device)
        if self._fixed is None:
            return inputs
        with torch.no_grad():
            made: torch.Tensor = self._fixed(inputs)
        return made

    def _prepared(self, features: torch.Tensor, at: torch.Tensor | None) -> torch.Tensor | None:
        """Rows as `_learning` takes them, all at once; None if they would take too much memory."""
        if self._fixed is not None:
            made = fixed_features(features, self._fixed, self._ready)
            return made if made is None or at is None else made[at]
        count = len(features) if at is None else len(at)
        small = count * math.prod(self._inputs.shape) * 4 <= _PREPARE_LIMIT
        return self._ready(features if at is None else features[at]) if small else None
